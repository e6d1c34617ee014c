"""A small network with a session that lives: hosts a to f, of which agents can die, come back, and move.

a (client) == b == c == d (server)        e, f: spare hosts
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

from dysco.protocol.agent import Agent
from dysco.protocol.events import ChangeMoved, Event, SessionClosed
from dysco.protocol.flow import FORWARD, HOST
from dysco.protocol.settings import Decision, LocalBox, Peer, Settings
from dysco.sim.box import Box, Firewall
from dysco.sim.clock import Clock
from dysco.sim.endpoint import Endpoint, Profile
from dysco.sim.host import Host, Listener
from dysco.sim.link import Fault
from dysco.sim.network import Network
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Change, Hello, Hops, Moved
from dysco.wire.tuples import FiveTuple
from protocol.rig import address

PROFILE = Profile(mss=1460, wscale=7, timestamps=True, sack=True, buffer=65535, burst=4)
NAMES = "abcdef"
_REQUESTS = itertools.count(1)
_MOVES = itertools.count(1)


class Living:
    """A session from a to d through b and c, open, with nothing said yet.

    boxes: what b and c have. lost: on this link the client's first ACKs are lost; the server has not opened yet.
    """

    def __init__(
        self,
        *,
        family: int = 4,
        steady: bool = True,
        boxes: dict[str, Box] | None = None,
        peers: Callable[[str, Peer], Peer] = lambda _, peer: peer,
        loss: float = 0.0,
        profile: Profile = PROFILE,
        lost: tuple[str, str] | None = None,
    ) -> None:
        self.clock = Clock()
        self.rng = random.Random(5)
        fault = Fault(delay_s=0.001, loss=loss)
        self.network = Network(self.clock, self.rng, fault, fault)
        self.family, self.steady = family, steady
        self.peers = peers
        self.heard: list[tuple[str, Event]] = []
        self.settings: dict[str, Settings] = {}
        self.hosts: dict[str, Host] = {}
        self.dead: set[str] = set()
        self.said = {"a": b"", "d": b""}
        for number, name in enumerate(NAMES, 1):
            host = self.hosts[name] = self.network.add(name, address(number, family))
            if name in "bcef":
                host.box = (boxes or {}).get(name, Firewall())
            host.hear = self._hearer(name)
            self.settings[name] = self._settings(name)
            host.born = lambda name=name: self._born(name)
        for host in self.hosts.values():
            assert host.born is not None
            host.agent = host.born()
        for host in self.hosts.values():
            host.drain()
        self.hosts["d"].listeners[80] = Listener(profile, self._accept)
        self.server: Endpoint | None = None
        source, target = (self.hosts[name].addresses[0] for name in "ad")
        self.session = FiveTuple.of(source, 40000, target, 80)
        self.client = self.hosts["a"].connect(self.session, 0xFFFFFF00, profile)
        if lost is not None:
            self.network.link("data", *lost).mask = dict.fromkeys(range(2, 6), "lose")
        self.wait(3.0 if lost is None else 2.0)

    def _settings(self, name: str) -> Settings:
        peers = tuple(
            self.peers(name, Peer(other, (address(1 + NAMES.index(other), self.family),)))
            for other in NAMES
            if other != name
        )
        box = LocalBox(f"box-{name}", 0, HOST, FORWARD, HOST, FORWARD, steady=self.steady)
        has_box = self.hosts[name].box is not None
        return Settings(name, self.hosts[name].addresses, boxes=(box,) if has_box else (), peers=peers)

    def _born(self, name: str) -> Agent:
        route = tuple(Hop(address(1 + NAMES.index(other), self.family)) for other in "bcd")

        def decide(_: FiveTuple, __: float) -> Decision | None:
            return Decision("all", route) if name == "a" else None

        agent = Agent(self.settings[name], self.hosts[name].table, decide, self.rng.randbytes)
        for other in NAMES:
            if other != name and other not in self.dead:
                keys = name.encode() * 32, other.encode() * 32
                agent.peer_up(other, Hello(name=other), *keys, self.clock.now)
        return agent

    def _hearer(self, name: str) -> Callable[[Event], None]:
        return lambda event: self.heard.append((name, event))

    def _accept(self, endpoint: Endpoint) -> None:
        self.server = endpoint

    def agent(self, name: str) -> Agent:
        agent = self.hosts[name].agent
        assert agent is not None
        return agent

    def key(self, name: str) -> bytes:
        [info] = self.agent(name).sessions()
        return info.chain_id + bytes((info.hop_index,))

    def wait(self, seconds: float) -> None:
        self.clock.run_until(self.clock.now + seconds)

    def kill(self, *names: str) -> None:
        """Let hosts fall silent with all they know; the others notice that later, or never."""
        for name in names:
            self.dead.add(name)
            for other in NAMES:
                for kind in ("data", "control"):
                    for link in (self.network.link(kind, name, other), self.network.link(kind, other, name)):
                        link.up = False

    def notice(self, *names: str) -> None:
        """Let the others notice that these hosts are silent."""
        for name, other in itertools.product(names, NAMES):
            if other not in self.dead:
                self.agent(other).peer_down(name, self.clock.now)

    def revive(self, name: str) -> None:
        """Let a host come back, with what its journal holds."""
        self.dead.discard(name)
        for other in NAMES:
            for kind in ("data", "control"):
                for link in (self.network.link(kind, name, other), self.network.link(kind, other, name)):
                    link.up = other not in self.dead
        self.hosts[name].restart()
        for other in NAMES:
            if other != name and other not in self.dead:
                keys = other.encode() * 32, name.encode() * 32
                self.agent(other).peer_up(name, Hello(name=name), *keys, self.clock.now)
                self.hosts[other].drain()

    def change(self, asker: str, left: str, right: str, *new: str, force: bool = False) -> int:
        """Let an agent ask for other hosts between two agents, as it was told who is on the chain."""
        places = {place.agent: place for place in self.agent(asker).places(self.key(asker))}
        hops = [Hop(self.hosts[name].addresses[0]) for name in new] + [Hop(places[right].address)]
        request = next(_REQUESTS)
        change = Change(
            request, places[left].right, places[right].left, Hops(hops), force=force, origin=asker
        )
        order = [place.agent for place in self.agent(asker).places(self.key(asker))]
        rightward = order.index(left) > order.index(asker)
        assert self.agent(asker).change(self.key(asker), change, self.clock.now, rightward=rightward)
        self.hosts[asker].drain()
        return request

    def outcome(self, asker: str, request: int) -> tuple[str, str, str]:
        """How a change has ended as its asker was told: phase, by whom, why."""
        told = [
            (event.phase, event.by, event.reason)
            for name, event in self.heard
            if name == asker and isinstance(event, ChangeMoved) and event.request == request
        ]
        return told[-1] if told else ("", "", "")

    def chain(self, asker: str = "a") -> str:
        """Who is on the chain, as an agent was told."""
        return "".join(place.agent for place in self.agent(asker).places(self.key(asker)))

    def say(self, data: bytes) -> None:
        """Let both ends send something."""
        assert self.server is not None
        for sender, name in ((self.client, "a"), (self.server, "d")):
            self.said[name] += data
            sender.write(data, self.clock.now)
            self.hosts[name].arm(sender)

    def talk(self, size: int = 60_000, *, wait: float = 20.0) -> None:
        """Let both ends send bytes; these and all before must arrive, and nothing else."""
        self.say(self.rng.randbytes(size))
        self.wait(wait)
        assert self.server is not None
        for receiver, sender in ((self.server, "a"), (self.client, "d")):
            assert bytes(receiver.received) == self.said[sender]
            assert receiver.violations == []

    def closed(self, name: str) -> list[str]:
        """Why sessions of an agent have ended."""
        return [one.reason for who, one in self.heard if who == name and isinstance(one, SessionClosed)]

    def move(self, name: str, number: int) -> list[int]:
        """Let a host have another address, and no way to the old one; asks for its sessions to follow."""
        self.readdress(name, number)
        return self.follow(name, number)

    def readdress(self, name: str, number: int) -> None:
        """Let a host have another address, and no way to the old one, and say so."""
        host, new = self.hosts[name], address(number, self.family)
        self.network.route(new, host)
        self.network.cut(self.settings[name].addresses[0])
        host.addresses = tuple(dict.fromkeys((*host.addresses, new)))  # the old one stays the stack's own
        before = self.settings[name]
        left = frozenset(before.addresses) - {new}
        addresses = tuple(dict.fromkeys((new, *before.addresses)))
        self.settings[name] = replace(before, addresses=addresses, left=left)
        self.agent(name).configure(self.settings[name], lambda _, __: None)
        moves = next(_MOVES)
        for other in 3 * NAMES:  # one or two may be lost
            if other != name:
                self.network.message(host, other, Moved(moves, Hops((Hop(new),))))
        self.wait(0.1)

    def follow(self, name: str, number: int) -> list[int]:
        """Ask for the subsessions of a host that has moved to follow, those that have not."""
        host, new = self.hosts[name], address(number, self.family)
        requests = []
        key = self.key(name)
        for right, subsession, label in self.agent(name).subsessions(key):
            if new in (subsession.src, subsession.dst):
                continue
            request = next(_REQUESTS)
            requests.append(request)
            hops = Hops((Hop(subsession.dst if right else new),))
            change = Change(request, label, label, hops, force=True, origin=name)
            assert self.agent(name).change(key, change, self.clock.now)
        host.drain()
        return requests

    def replace_peer(self, name: str, other: str, **fields: object) -> None:
        """Let an agent think otherwise of another one."""
        peers = tuple(
            replace(peer, **fields) if peer.name == other else peer  # type: ignore[arg-type]
            for peer in self.settings[name].peers
        )
        self.settings[name] = replace(self.settings[name], peers=peers)
        self.agent(name).configure(self.settings[name], lambda _, __: None)
