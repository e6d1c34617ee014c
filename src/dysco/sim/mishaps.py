"""What happens to whole hosts of a scenario: they move to other addresses, and middleboxes die and may come back.

    move    new address, the old one gone or not --> peers are told --> each subsession from an old address is replaced
    death   silence --> the others notice, or not --> somebody on the chain asks for a path around it, by force
                    --> it may come back, with what its journal holds

All is drawn from numbers of its own, so that a seed draws all else as it does without. What does not succeed is asked
for again, as a person would, until there is nothing left to do.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dysco.protocol.chain import Chain
from dysco.protocol.ground import name_of
from dysco.protocol.neighbours import ANNOUNCE_S
from dysco.sim.changer import Wish
from dysco.sim.host import Host
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Change, Hops, Moved, Place

if TYPE_CHECKING:
    from dysco.sim.scenario import Scenario

GIVE_UP_S: Final = 600.0
"""For how long things are asked for again; more than the life of any session of a scenario."""
_KEEPALIVES_S: Final = range(10, 65, 5)
"""When it is said with keepalives where a host is that has moved; every partition of a scenario is over after 40 s."""
_FIRST_NUMBER: Final = 100
"""Of the addresses to which hosts move."""


class Mishaps:
    """Plans and does them. rng: of its own. left: addresses that hosts have left, by name."""

    def __init__(self, scenario: Scenario, rng: random.Random) -> None:
        self.scenario = scenario
        self.rng = rng
        self.clock = scenario.clock
        self.network = scenario.network
        self.left: dict[str, set[bytes]] = {}
        self._numbers = iter(range(_FIRST_NUMBER, _FIRST_NUMBER + 100))
        self._asked: dict[tuple[str, bytes, int], int] = {}
        self._moves: Counter[str] = Counter()

    def plan(self) -> None:
        """Draw what will happen, and when."""
        rng, now = self.rng, self.clock.now
        moves, deaths = rng.choice(((1, 0), (2, 0), (4, 0), (0, 1), (0, 2), (1, 1)))
        movers = rng.choices([*self.scenario.hosts, *self.scenario.spares], k=min(moves, 2))
        for number in range(moves):
            mover = movers[number % len(movers)]
            self._at(now + rng.random() * rng.choice((0.5, 4.0)), self._move, mover)
        if moves and not deaths:
            self.scenario.begin_session(4.0, 0.5)
        mortal = [*self.scenario.hosts[1:-1], *self.scenario.spares]
        for host in rng.sample(mortal, min(deaths, len(mortal))):
            at = now + 0.5 + rng.random() * rng.choice((1.0, 4.0))
            self._at(at, self._kill, host)
            if rng.random() < 0.5:
                self._at(at + rng.choice((1.0, 10.0, 60.0)), self._revive, host)

    # Moves.

    def _move(self, host: Host) -> None:
        """Have another address, a new one or one that was left."""
        if host.silent:
            return
        left = self.left.setdefault(host.name, set())
        now_at = [one for one in host.addresses if one not in left]
        new = self.scenario.address(next(self._numbers))
        if left and self.rng.random() < 0.6:
            new = self.rng.choice(sorted(left))
        gone = self.rng.random() < 0.7
        self.note(f"{host.name} moves to {list(new)}")
        self.network.route(new, host)
        self._moves[host.name] += 1
        left.discard(new)
        left.update(one for one in now_at if one != new)
        if gone:
            self._excuse(host)
            for old in left:
                self.network.cut(old)
        host.addresses = tuple(dict.fromkeys((*host.addresses, new)))
        settings = self.scenario.settings[host.name]
        addresses = tuple(dict.fromkeys((new, *settings.addresses)))
        self.scenario.settings[host.name] = replace(settings, addresses=addresses, left=frozenset(left))
        assert host.agent is not None
        host.agent.configure(self.scenario.settings[host.name], self.scenario.decide_of(host))
        for peer in self._everyone():
            self._tell(host, peer)
        self._follow(host, self.clock.now + GIVE_UP_S)

    def associated(self, host: Host) -> None:
        """Tell a host that has associated anew who has moved, and others where it is."""
        for mover in self._living() if self.left else ():
            for peer in self._living():
                if mover.name in self.left and host in (mover, peer):
                    self._tell(mover, peer)

    def _tell(self, host: Host, peer: Host) -> None:
        """Say where a host is, more than once, as agents do."""
        for wait in (*ANNOUNCE_S, *_KEEPALIVES_S):
            self._at(self.clock.now + wait, self._announce, host, peer.name)

    def _announce(self, host: Host, peer: str) -> None:
        left = self.left[host.name]
        [new] = [one for one in host.addresses if one not in left]
        if peer != host.name and not host.silent:
            self.network.message(host, peer, Moved(self._moves[host.name], Hops((Hop(new),))))

    def _follow(self, host: Host, until: float) -> None:
        """Ask for another subsession in the place of each that has an old end here; look again later."""
        if self.clock.now > until:
            return
        agent, left = host.agent, self.left[host.name]
        assert agent is not None
        found = False
        for info in [] if host.silent else list(agent.sessions()):
            found = True
            key = info.chain_id + bytes((info.hop_index,))
            for right, subsession, label in agent.subsessions(key):
                own = subsession.src if right else subsession.dst
                facing = info.right if right else info.left
                if own not in left or facing is None or facing.peer is None:
                    continue
                self._announce(host, facing.peer)
                [new] = [one for one in host.addresses if one not in left]
                target = subsession.dst if right else new
                self._ask(host, key, label, label, Hops((Hop(target),)), rightward=False)
        if found or self.clock.now < until - GIVE_UP_S + 10:
            self._at(self._later(until, 1.0), self._follow, host, until)

    # Deaths.

    def _kill(self, host: Host) -> None:
        """Let a host fall silent."""
        self.note(f"{host.name} dies")
        self._excuse(host, dies=True)
        self.scenario.changer.forget(host)
        host.fall_silent()
        for other in self._living():
            if self.rng.random() < 0.7:
                self._at(self.clock.now + self.rng.random() * 5, self._notice, other, host)
        self._at(self.clock.now + self.rng.random() * 3, self._bypass, host, self.clock.now + GIVE_UP_S)

    def _notice(self, other: Host, dead: Host) -> None:
        if dead.silent and not other.silent:
            assert other.agent is not None
            other.agent.peer_down(dead.name, self.clock.now)
            other.drain()

    def _revive(self, host: Host) -> None:
        self.note(f"{host.name} comes back")
        host.silent = False
        host.restart()
        self.associated(host)

    def _bypass(self, dead: Host, until: float) -> None:
        """Let somebody on each chain ask for a path around a dead host; look again later."""
        if self.clock.now > until or not dead.silent:
            return
        found = False
        for chain_id in sorted({chain.chain_id for _, chain in self._chains()}):
            on_it = [(host, chain) for host, chain in self._chains() if chain.chain_id == chain_id]
            beside = [
                chain
                for _, chain in on_it
                if dead.name in (chain.left.peer, None if chain.right is None else chain.right.peer)
            ]
            if not beside:
                continue
            found = True
            host, chain = self.rng.choice(on_it)
            self._around(dead, host, chain)
        if found or self.clock.now < until - GIVE_UP_S + 10:
            self._at(self._later(until, 2.0), self._bypass, dead, until)

    def _around(self, dead: Host, asker: Host, chain: Chain) -> None:
        places = tuple(chain.places)
        silent = {host.name for host in self._everyone() if host.silent}
        at = next((i for i, place in enumerate(places) if place.agent == dead.name), 0)
        own = next((i for i, place in enumerate(places) if place.agent == asker.name), None)
        left, right = at, at
        while left > 0 and places[left].agent in silent:
            left -= 1
        while right < len(places) - 1 and places[right].agent in silent:
            right += 1
        if own is None or not 0 < at < len(places) - 1:
            return
        there = {place.agent for place in places} | silent
        free = [spare for spare in self.scenario.spares if spare.name not in there]
        new = [self.rng.choice(free)] if free and self.rng.random() < 0.3 else []
        hops = self._hops(new, places[right])
        self._ask(asker, chain.key, places[left].right, places[right].left, hops, rightward=left > own)

    def _hops(self, new: Sequence[Host], anchor: Place) -> Hops:
        return Hops((*(Hop(host.addresses[0]) for host in new), Hop(anchor.address)))

    def _ask(self, host: Host, key: bytes, first: int, last: int, hops: Hops, *, rightward: bool) -> None:
        """Ask by force, unless what was asked for the same goes on."""
        wishes = self.scenario.changer.wishes
        before = wishes.get(self._asked.get((host.name, key, first), 0))
        if before is not None and before.outcome is None:
            return
        request = self.rng.randrange(1, 1 << 62)
        change = Change(request, first, last, hops, force=True, origin=host.name)
        assert host.agent is not None
        wishes[request] = Wish(host.name, self.clock.now)
        self._asked[host.name, key, first] = request
        if host.agent.change(key, change, self.clock.now, rightward=rightward):
            host.drain()
        else:
            del wishes[request]

    def _excuse(self, host: Host, *, dies: bool = False) -> None:
        """Excuse the sessions that need not survive what happens to a host.

        They are being opened or changed at that moment, with subsessions that are gone with it; or it dies, and not all
        on the chain know who is there.
        """
        for number, pair in enumerate(self.scenario.pairs):
            port = self.scenario.server_port(number)
            on_it = [(other, chain) for other, chain in self._chains() if chain.session_in.dport == port]
            open_ = pair.server is not None and all(
                chain.opening is None and chain.changing is None for _, chain in on_it
            )
            known = len({tuple(chain.places) for _, chain in on_it}) == 1 and all(
                (other.name, name_of(chain, chain.left), _right_name(chain))
                in {(place.agent, place.left, place.right) for place in chain.places}
                for other, chain in on_it
            )
            concerned = any(other is host for other, _ in on_it) or not open_
            if concerned and pair.client is not None and not (open_ and (known or not dies)):
                pair.excused = True

    def _later(self, until: float, spread: float) -> float:
        """When to look again: soon at first, then after longer and longer."""
        asked_for = self.clock.now - until + GIVE_UP_S
        return self.clock.now + (0.2 + self.rng.random() * spread) * max(1.0, asked_for / 5)

    # Who is there.

    def _everyone(self) -> list[Host]:
        return [*self.scenario.hosts, *self.scenario.spares]

    def _living(self) -> list[Host]:
        return [host for host in self._everyone() if not host.silent]

    def _chains(self) -> Iterator[tuple[Host, Chain]]:
        """All chains of hosts that live."""
        for host in self._living():
            assert host.agent is not None
            for chain in list(host.agent._life.chains.values()):
                yield host, chain

    def _at(self, at: float, action: Callable[..., None], *arguments: object) -> None:
        self.clock.call_at(at, lambda: action(*arguments))

    def note(self, text: str) -> None:
        """Write a line between those of the dialogue."""
        if self.network.dialogue is not None:
            self.network.dialogue.append(f"{self.clock.now:12.6f} {text}")


def _right_name(chain: Chain) -> int:
    return 0 if chain.right is None else name_of(chain, chain.right)
