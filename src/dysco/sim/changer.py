"""Random changes of the chains of a scenario, asked for by any agent at any time.

trace --> places --> two anchors and hosts to put between them --> change --> its end, whatever it is
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dysco.protocol.events import ChangeMoved, Event, Traced
from dysco.sim.clock import Clock
from dysco.sim.host import Host
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Change, Hops, Place

FINAL = frozenset(("done", "refused", "aborted"))


@dataclass
class Wish:
    """One change that was asked for, and how it ended."""

    asker: str
    asked_at: float
    phases: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def outcome(self) -> str | None:
        return next((phase for phase in self.phases if phase in FINAL), None)


class Changer:
    """Asks for changes. spares: hosts that no policy names, which may be put into chains."""

    def __init__(
        self, clock: Clock, rng: random.Random, hosts: Sequence[Host], spares: Sequence[Host]
    ) -> None:
        self.clock = clock
        self.rng = rng
        self.hosts = (*hosts, *spares)
        self.spares = spares
        self.wishes: dict[int, Wish] = {}
        self._traces: dict[int, tuple[Host, bytes]] = {}
        for host in self.hosts:
            host.hear = self._hearer(host)

    def ask(self, first: Host) -> None:
        """Choose a session that began at `first`, somebody on its chain, and let that one ask for a change."""
        assert first.agent is not None
        chain_ids = [info.chain_id for info in first.agent.sessions() if info.state == "established"]
        if not chain_ids:
            return
        chain_id = self.rng.choice(chain_ids)
        candidates = [
            (host, info.chain_id + bytes((info.hop_index,)))
            for host in self.hosts
            if host.agent is not None
            for info in host.agent.sessions()
            if info.chain_id == chain_id and info.state in ("established", "half-closed")
        ]
        if not candidates:
            return
        host, key = self.rng.choice(candidates)
        assert host.agent is not None
        number = self.rng.randrange(1, 1 << 60)
        self._traces[number] = (host, key)
        host.agent.trace(key, number, self.clock.now)
        host.drain()

    def forget(self, host: Host) -> None:
        """The agent of a host is killed: what it has asked for ends without its hearing of it."""
        self.wishes = {
            request: wish for request, wish in self.wishes.items() if wish.asker != host.name or wish.outcome
        }
        self._traces = {number: one for number, one in self._traces.items() if one[0] is not host}

    def _hearer(self, host: Host) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            if isinstance(event, Traced) and event.number in self._traces:
                # The agent is in the middle of telling: what is asked of it waits for its turn.
                self.clock.call_at(self.clock.now, lambda: self._plan(event))
            elif isinstance(event, ChangeMoved) and event.request in self.wishes:
                wish = self.wishes[event.request]
                if host.name == wish.asker:
                    wish.phases.append(event.phase)
                    wish.reason = f"{event.by}: {event.reason}" if event.reason else wish.reason

        return hear

    def _plan(self, traced: Traced) -> None:
        host, key = self._traces.pop(traced.number)
        places = traced.places
        own = next((i for i, place in enumerate(places) if place.agent == host.name), None)
        if own is None or len(places) < 2:
            return
        rng = self.rng
        left = rng.randrange(len(places) - 1)
        right = min(left + rng.choice((1, 1, 2, 2, 3)), len(places) - 1)
        there = {place.agent for place in places}
        free = [spare for spare in self.spares if spare.name not in there]
        new = rng.sample(free, min(len(free), rng.choice((0, 1, 1, 2))))
        request = rng.randrange(1, 1 << 62)
        change = Change(
            request, places[left].right, places[right].left, _hops(new, places[right]), origin=host.name
        )
        self.wishes[request] = Wish(host.name, self.clock.now)
        assert host.agent is not None
        if host.agent.change(key, change, self.clock.now, rightward=left > own):
            host.drain()
        else:
            del self.wishes[request]


def _hops(new: Sequence[Host], anchor: Place) -> Hops:
    size = len(anchor.address)
    addresses = [next(one for one in host.addresses if len(one) == size) for host in new]
    return Hops((*(Hop(address) for address in addresses), Hop(anchor.address)))
