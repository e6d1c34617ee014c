"""`python -m dysco.sim.flight`: many changes at the same time, each between its first message and its last.

    a ── b (a firewall) ── d       idle sessions; b leaves all of them at once, and comes back

Real agents would not do this: whoever asks for thousands of changes has a few run at a time (`service.changes`), since
more would only wait for each other. Here time stands still while agents work, so that all are under way together, and
what counts is shown: that each ends well, and that nothing of them stays in memory.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dysco.protocol.agent import Agent
from dysco.protocol.events import ChangeMoved, Event, Traced
from dysco.protocol.flow import FORWARD, HOST
from dysco.protocol.settings import Decision, Limits, LocalBox, Peer, Settings
from dysco.sim.box import Firewall
from dysco.sim.clock import Clock
from dysco.sim.endpoint import Endpoint, Profile
from dysco.sim.host import Host, Listener
from dysco.sim.link import Fault
from dysco.sim.network import Network
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Change, Hello, Hops
from dysco.wire.tuples import FiveTuple

PORT: Final = 80
DELAY_S: Final = 0.05
ROUNDS: Final = 3
REST_S: Final = 70.0  # longer than any timer of a change that has ended, and than ports are not used again
CLOSED_S: Final = 6 * 3600.0  # longer than any timer of a session
_OF_SESSIONS: Final = frozenset(
    f"dysco.protocol.{name}" for name in ("chain", "changing", "flow", "locks", "paths", "stamps", "windows")
)
_PROFILE: Final = Profile(mss=1460, wscale=7, timestamps=True, sack=True, buffer=65535, burst=1)


@dataclass
class Round:
    """What became of one change of all sessions.

    most: under way at once. took_s: virtual seconds until all had ended.
    """

    ends: Counter[str] = field(default_factory=Counter)
    most: int = 0
    took_s: float = 0.0


class Flight:
    """Three hosts and their sessions. loss: of packets and messages, 0 to 1."""

    def __init__(self, sessions: int, *, loss: float = 0.0, seed: int = 1) -> None:
        self.clock = Clock()
        rng = random.Random(seed)
        fault = Fault(delay_s=DELAY_S, loss=loss)
        self.network = Network(self.clock, rng, fault, Fault(delay_s=DELAY_S, loss=loss))
        self.a, self.b, self.d = (
            self.network.add(name, bytes((10, 0, 0, number))) for number, name in enumerate("abd", 1)
        )
        self.b.box = Firewall()
        self._rng = rng
        self._flying: set[int] = set()
        self._round = Round()
        self._asked: dict[int, tuple[bytes, tuple[Hop, ...]]] = {}
        self.a.hear = self._hear
        self._agents(sessions)
        self.d.listeners[PORT] = Listener(_PROFILE, lambda endpoint: None)
        self.clients: list[Endpoint] = []
        for number in range(sessions):
            # One after the other: what is to be seen is changes.
            self.clock.call_at(self.clock.now + number * 1e-3, partial(self._connect, number))
        self.rest()

    def change(self, *hops: Host) -> Round:
        """Let the chains of all sessions have these hosts between their ends; returns when every change has ended."""
        agent = self.a.agent
        assert agent is not None
        self._round, began = Round(), self.clock.now
        infos = list(agent.sessions())
        for info in infos:
            number = self._rng.randrange(1, 1 << 60)
            key = info.chain_id + bytes((info.hop_index,))
            self._asked[number] = key, tuple(Hop(host.addresses[0]) for host in hops)
            agent.trace(key, number, self.clock.now)
        self.a.drain()
        while sum(self._round.ends.values()) < len(infos) and self.clock.step():
            pass
        self._round.took_s = self.clock.now - began
        return self._round

    def rest(self) -> None:
        """Let every timer of what has ended run out."""
        self.clock.run_until(self.clock.now + REST_S)
        for host in (self.a, self.b, self.d):
            host.events.clear()

    def close(self) -> list[str]:
        """End all sessions; what agents then still keep."""
        for endpoint in (*self.clients, *self.d.endpoints.values()):
            endpoint.close(self.clock.now)
        self.clock.run_until(self.clock.now + CLOSED_S)
        found = []
        for host in (self.a, self.b, self.d):
            assert host.agent is not None
            kept = [*host.agent.leftovers(), *map(str, host.agent.sessions()), *map(str, host.table.flows)]
            if kept:
                found.append(f"{host.name}: {len(kept)}, the first: {kept[0]}")
        return found

    def _hear(self, event: Event) -> None:
        if isinstance(event, Traced):
            self.clock.call_at(self.clock.now, lambda: self._ask(event))
        elif (
            isinstance(event, ChangeMoved)
            and event.request in self._flying
            and event.phase in ("done", "refused", "aborted")
        ):
            self._flying.discard(event.request)
            said = "" if event.phase == "done" else f" by {event.by}: {event.reason}"
            self._round.ends[event.phase + said] += 1

    def _ask(self, traced: Traced) -> None:
        agent, places = self.a.agent, traced.places
        assert agent is not None
        key, hops = self._asked.pop(traced.number)
        if not places:
            self._round.ends["the chain did not answer"] += 1
            return
        request = self._rng.randrange(1, 1 << 62)
        last = places[-1]
        change = Change(request, places[0].right, last.left, Hops((*hops, Hop(last.address))), origin="a")
        self._flying.add(request)
        self._round.most = max(self._round.most, len(self._flying))
        if not agent.change(key, change, self.clock.now):
            self._flying.discard(request)
            self._round.ends["the session has ended"] += 1
        self.a.drain()

    def _connect(self, number: int) -> None:
        # As many as one likes: each thousand goes to another port of the server.
        port = PORT + number // 20_000
        self.d.listeners.setdefault(port, self.d.listeners[PORT])
        tuple_ = FiveTuple.of(self.a.addresses[0], 20_000 + number % 20_000, self.d.addresses[0], port)
        self.clients.append(self.a.connect(tuple_, self._rng.randrange(1 << 32), _PROFILE))

    def _agents(self, sessions: int) -> None:
        hosts = (self.a, self.b, self.d)
        for host in hosts:
            boxes = (
                LocalBox(
                    name="firewall",
                    tag=0,
                    left_read=HOST,
                    left_write=FORWARD,
                    right_read=HOST,
                    right_write=FORWARD,
                    changes_tuple=False,
                    match=("tuple",),
                ),
            )
            peers = tuple(Peer(name=one.name, addresses=one.addresses) for one in hosts if one is not host)
            settings = Settings(
                name=host.name,
                addresses=host.addresses,
                boxes=boxes if host is self.b else (),
                peers=peers,
                limits=Limits(setups_per_second=sessions),  # all come back in the same moment
            )
            route = tuple(Hop(one.addresses[0], 0) for one in hosts[1:]) if host is self.a else ()

            def decide(tuple_: FiveTuple, now: float, route: tuple[Hop, ...] = route) -> Decision | None:
                return Decision("all", route) if route else None

            host.agent = Agent(settings, host.table, decide, random.Random(self._rng.random()).randbytes)
        for one in hosts:
            for other in hosts:
                if one is not other:
                    keys = bytes([hosts.index(one)]) * 32, bytes([hosts.index(other)]) * 32
                    hello = Hello(
                        name=other.name,
                        boot_id=bytes(16),
                        port_range=other.port_range,
                        observed_address=other.addresses[0],
                    )
                    assert one.agent is not None
                    one.agent.peer_up(other.name, hello, *keys, self.clock.now)
            one.drain()


def main() -> int:
    """Fly as many changes as the command line says; 0 if all have ended well and nothing is left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("changes", nargs="?", type=int, default=10_000, help="at once (default %(default)s)")
    parser.add_argument("--loss", type=float, default=0.0, help="of packets and messages (default: none)")
    options = parser.parse_args()
    flight = Flight(options.changes, loss=options.loss)
    fine = True
    sizes: list[int] = []
    for what, hops in (("leaves", ()), ("comes back", (flight.b,))) * ROUNDS:
        gone = flight.change(*hops)
        flight.rest()
        fine = fine and gone.ends == {"done": options.changes}
        fine = fine and (gone.most == options.changes or options.loss > 0)
        sys.stdout.write(
            f"b {what}: {gone.most:,} changes at once, {dict(gone.ends)}, all ended after {gone.took_s:.1f} s\n"
        )
        sys.stdout.flush()
        if hops:
            sizes.append(objects())
    left = flight.close()
    sys.stdout.write(
        f"objects of sessions after each return: {sizes}; left when all sessions have ended: {left or 'nothing'}\n"
    )
    return 0 if fine and not left and len(set(sizes)) == 1 else 1


def objects() -> int:
    """How many objects there are of which sessions and changes consist.

    What agents remember of changes that are over, to answer repetitions, is limited however many there were.
    """
    gc.collect()
    return sum(type(one).__module__ in _OF_SESSIONS for one in gc.get_objects())


if __name__ == "__main__":
    sys.exit(main())
