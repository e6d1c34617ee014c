"""One random run of whole chains, made from a seed, and its verdict.

A scenario draws a chain of hosts, boxes, TCP stacks, faults, amounts of data and ways to close. It runs until
everything has come to rest and long enough after that for every timer, and judges: the streams at both ends
are equal, nobody was given a number that a correct path cannot deliver, no agent keeps anything.

    client A --- box 1 --- box 2 --- ... --- server Z
"""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from dysco.protocol.agent import Agent
from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST
from dysco.protocol.settings import Decide, Decision, Limits, LocalBox, Peer, Settings, unwatched
from dysco.sim.box import Box, Firewall, SourceNat
from dysco.sim.changer import Changer
from dysco.sim.clock import Clock
from dysco.sim.endpoint import Endpoint, Profile, State
from dysco.sim.host import Host, Listener
from dysco.sim.link import Fault
from dysco.sim.mishaps import Mishaps
from dysco.sim.network import Network
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Hello
from dysco.wire.tuples import FiveTuple

TIME_LIMIT_S = 600.0
REST_S = 6 * 3600.0
MOST_STEPS = 300_000
RESTLESS = 0.4
SERVER_PORT = 80


@dataclass
class Verdict:
    """What a seed showed: `faults` is empty if all was right."""

    seed: int
    faults: list[str] = field(default_factory=list)
    sessions: int = 0
    completed: int = 0
    bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    dialogue: list[str] = field(default_factory=list)


@dataclass
class Pair:
    """The two ends of one session and what each means to send.

    excused: an agent was killed while it was being opened, so it may fail; TCP connects again.
    """

    upload: bytes
    download: bytes
    aborted: bool = False
    excused: bool = False
    client: Endpoint | None = None
    server: Endpoint | None = None
    incarnations: int = 1


class Scenario:
    """A whole network made from `seed`; `run()` once.

    restless: whether hosts move and die (see `mishaps`); None: two seeds in five. Seeds from before there was such a
    thing mean without it what they have meant.
    """

    def __init__(self, seed: int, *, record: bool = False, restless: bool | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.clock = Clock()
        rng = self.rng
        hostile = rng.random()
        fault = Fault(
            delay_s=rng.choice((0.0005, 0.005, 0.05)),
            jitter_s=rng.choice((0.0, 0.0, 0.002)),
            loss=rng.choice((0.0, 0.02, 0.1, 0.2)) * (hostile > 0.3),
            repeat=rng.choice((0.0, 0.02, 0.1)),
            late=rng.choice((0.0, 0.02, 0.1)),
        )
        control = Fault(
            delay_s=fault.delay_s, loss=rng.choice((0.0, 0.1, 0.3)), repeat=rng.choice((0.0, 0.2)), late=0.1
        )
        self.network = Network(self.clock, rng, fault, control)
        self.network.dialogue = [] if record else None
        self.family = rng.choice((4, 6))
        self.pairs: list[Pair] = []
        self.hosts = [self.network.add(f"h{i}", self.address(i)) for i in range(rng.randint(2, 5))]
        self.client, self.server = self.hosts[0], self.hosts[-1]
        self.settings: dict[str, Settings] = {}
        self.spares = [self.network.add(f"s{i}", self.address(20 + i)) for i in range(rng.randint(0, 2))]
        self._make_agents()
        self._make_sessions()
        self.changer = Changer(self.clock, rng, self.hosts, self.spares)
        self._plan_changes()
        draw = random.Random(f"mishaps {seed}")
        self.mishaps = Mishaps(self, draw)
        if restless or (restless is None and draw.random() < RESTLESS):
            self.mishaps.plan()

    def run(self) -> Verdict:
        """Run to rest and judge."""
        verdict = Verdict(self.seed)
        end = self.clock.now + TIME_LIMIT_S
        for _ in range(MOST_STEPS):
            if (
                self.clock.now >= end
                or all(self._settled(pair) for pair in self.pairs)
                or not self.clock.step()
            ):
                break
        else:
            verdict.faults.append(f"packets go round for ever, at {self.clock.now:.6f}")
            return verdict
        verdict.sessions = len(self.pairs)
        for number, pair in enumerate(self.pairs):
            self._judge(number, pair, verdict)
        self.clock.run_until(self.clock.now + REST_S)
        for host in (*self.hosts, *self.spares):
            if not host.silent:
                self._judge_rest(host, verdict)
        for wish in self.changer.wishes.values():
            outcome = wish.outcome
            verdict.outcomes[outcome or "none"] += 1
            if outcome is None:
                verdict.faults.append(f"a change that {wish.asker} asked for never ended: {wish.phases}")
        verdict.dialogue = self.network.dialogue or []
        return verdict

    @staticmethod
    def server_port(number: int) -> int:
        """Give the port at which the server waits for the session with this number."""
        return SERVER_PORT + number

    def address(self, number: int) -> bytes:
        """Give the address of the host with this number, in the family of the scenario."""
        base = "10.0.0.1" if self.family == 4 else "fd00::1"
        return (ipaddress.ip_address(base) + number).packed

    def _make_agents(self) -> None:
        everyone = [*self.hosts, *self.spares]
        names = [host.name for host in everyone]
        for index, host in enumerate(everyone):
            boxes: tuple[LocalBox, ...] = ()
            if self._has_box(host):
                boxes = (self._make_box(host, index, spare=host in self.spares),)
            peers = tuple(
                Peer(name=n, addresses=self.network.hosts[n].addresses) for n in names if n != host.name
            )
            self.settings[host.name] = Settings(
                name=host.name,
                addresses=host.addresses,
                boxes=boxes,
                peers=peers,
                limits=Limits(awake=0 if self.seed % 2 else Limits().awake),
                watch=self._watch(host),
            )
            decide = self.decide_of(host)
            seeded = random.Random(self.rng.randrange(1 << 62))

            def born(host: Host = host, decide: Decide = decide, seeded: random.Random = seeded) -> Agent:
                agent = Agent(self.settings[host.name], host.table, decide, seeded.randbytes)
                incarnation = bytes((seeded.randrange(256),))
                for other in everyone:
                    if other is not host and not other.silent:
                        pair = sorted((host.name, other.name))
                        one, two = (bytes([names.index(n)]) * 31 + incarnation for n in pair)
                        send, receive = (one, two) if host.name == pair[0] else (two, one)
                        agent.peer_up(other.name, self._hello(other), send, receive, self.clock.now)
                        if other.agent is not None:
                            other.agent.peer_up(host.name, self._hello(host), receive, send, self.clock.now)
                return agent

            host.born = born
            host.agent = born()
        for host in everyone:
            host.drain()

    def decide_of(self, host: Host) -> Decide:
        """Give what the policies of a host are."""
        route = self._route(host)

        def decide(tuple_: FiveTuple, now: float) -> Decision | None:
            return Decision("all", route) if route else None

        return decide

    def _route(self, host: Host) -> tuple[Hop, ...]:
        """Which hops sessions get that begin at a host."""
        return tuple(Hop(one.addresses[0], 0) for one in self.hosts[1:]) if host is self.client else ()

    def _watch(self, host: Host) -> Callable[[FiveTuple, bool], bool]:
        """Of which sessions of a host the first bytes are kept."""
        return unwatched

    def _has_box(self, host: Host) -> bool:
        return host not in (self.client, self.server)

    def _hello(self, host: Host) -> Hello:
        return Hello(
            name=host.name, boot_id=bytes(16), port_range=host.port_range, observed_address=host.addresses[0]
        )

    def _make_box(self, host: Host, index: int, *, spare: bool) -> LocalBox:
        kind = self.rng.choice(("kernel", "pair") if spare else ("kernel", "pair", "nat"))
        box: Box = SourceNat(host.addresses[0]) if kind == "nat" else Firewall()
        if kind == "pair":
            host.boxes[FIRST_BOX] = box
            ports = (FIRST_BOX, FIRST_BOX, FIRST_BOX + 1, FIRST_BOX + 1)
        else:
            host.box = box
            ports = (HOST, FORWARD, HOST, FORWARD)
        return LocalBox(
            name=f"box{index}",
            tag=0,
            left_read=ports[0],
            left_write=ports[1],
            right_read=ports[2],
            right_write=ports[3],
            changes_tuple=box.changes_tuple,
            match=("tuple", "tag", "fingerprint") if box.changes_tuple else ("tuple",),
        )

    def _profile(self) -> Profile:
        rng = self.rng
        return Profile(
            mss=rng.choice((536, 1220, 1460)),
            wscale=rng.choice((None, 0, 7)),
            timestamps=rng.random() < 0.7,
            sack=rng.random() < 0.7,
            buffer=rng.choice((2000, 20000, 65535)),
            burst=rng.choice((1, 1, 4)),
        )

    def _make_sessions(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            self.begin_session(0.2)

    def begin_session(self, within: float, after: float = 0.0) -> None:
        """Let one more session begin, so many seconds from now."""
        number = len(self.pairs)
        sizes = (0, 1, 700, 3000, 8000, 25000)
        pair = Pair(self.rng.randbytes(self.rng.choice(sizes)), self.rng.randbytes(self.rng.choice(sizes)))
        self.pairs.append(pair)
        listener = Listener(self._profile(), partial(self._accept, pair))
        self.server.listeners[self.server_port(number)] = listener
        at = self.clock.now + after + self.rng.random() * within
        self.clock.call_at(at, partial(self._begin, number))

    def _plan_changes(self) -> None:
        """Some changes, alone or several at the same moment; and links that are cut for a while."""
        rng, now = self.rng, self.clock.now
        for _ in range(rng.choice((0, 1, 2, 3, 5))):
            at = now + rng.random() * rng.choice((0.3, 3.0))
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                self.clock.call_at(at, lambda: self.changer.ask(self.client))
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            left, right = rng.sample([*self.hosts, *self.spares], 2)
            kinds = rng.choice((("data",), ("control",), ("data", "control")))
            links = [self.network.link(kind, left.name, right.name) for kind in kinds]
            if rng.random() < 0.7:
                links += [self.network.link(kind, right.name, left.name) for kind in kinds]
            at = now + rng.random() * 2
            for link in links:
                self.clock.call_at(at, partial(setattr, link, "up", False))
                self.clock.call_at(
                    at + rng.choice((0.1, 1.0, 10.0, 30.0)), partial(setattr, link, "up", True)
                )

        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            host = rng.choice([*self.hosts, *self.spares])
            self.clock.call_at(now + 0.5 + rng.random() * 3, partial(self._restart, host))

    def _restart(self, host: Host) -> None:
        """Kill an agent; what it was asked is forgotten with it."""
        if host.silent:
            return
        for pair in self.pairs:
            is_open = [
                end is not None and end.state is not State.SYN_SENT for end in (pair.client, pair.server)
            ]
            received = pair.server is not None and pair.server.state is State.SYN_RECEIVED
            pair.excused = pair.excused or not all(is_open) or received
        self.changer.forget(host)
        host.restart()
        self.mishaps.associated(host)

    def _accept(self, pair: Pair, endpoint: Endpoint) -> None:
        if pair.server is not None:
            pair.incarnations += 1
        pair.server = endpoint
        self._talk(self.server, endpoint, pair.download)

    def _begin(self, number: int) -> None:
        rng = self.rng
        pair = self.pairs[number]
        wanted = FiveTuple.of(
            self.client.addresses[0], 30000 + number, self.server.addresses[0], self.server_port(number)
        )
        isn = rng.choice((rng.randrange(1 << 32), (1 << 32) - rng.randrange(1, 30000)))
        pair.client = client = self.client.connect(wanted, isn, self._profile())
        self._talk(self.client, client, pair.upload)
        if rng.random() < 0.1:
            pair.aborted = True
            self.clock.call_at(self.clock.now + rng.random(), partial(self._abort, client))

    def _abort(self, endpoint: Endpoint) -> None:
        endpoint.abort(self.clock.now)

    def _talk(self, host: Host, endpoint: Endpoint, data: bytes) -> None:
        """Send it all, and close at once or when the other side has closed, at the latest after 2 s."""
        endpoint.write(data, self.clock.now)
        if self.rng.random() < 0.5:
            endpoint.close(self.clock.now)
            return
        last = self.clock.now + 2

        def look() -> None:
            if endpoint.state in (State.DONE, State.FAILED):
                return
            if endpoint.fin_received or self.clock.now >= last:
                endpoint.close(self.clock.now)
                host.arm(endpoint)
            else:
                self.clock.call_at(self.clock.now + 0.1, look)

        look()

    def _settled(self, pair: Pair) -> bool:
        if pair.aborted:
            return pair.client is not None and pair.client.state is State.FAILED
        if pair.excused and pair.client is not None and pair.client.state is State.FAILED:
            return True
        return all(
            end is not None and end.state in (State.DONE, State.FAILED) for end in (pair.client, pair.server)
        )

    def _judge(self, number: int, pair: Pair, verdict: Verdict) -> None:
        for end, received, who in (
            (pair.client, pair.download, "client"),
            (pair.server, pair.upload, "server"),
        ):
            if end is None:
                if not pair.aborted and not pair.excused:
                    verdict.faults.append(f"session {number}: the {who} never began")
                continue
            verdict.faults += [f"session {number}: {who}: {text}" for text in end.violations]
            if bytes(end.received) != received[: len(end.received)]:
                verdict.faults.append(f"session {number}: the {who} received other bytes than were sent")
            if pair.aborted or (pair.excused and self._has_failed(number, pair)):
                continue
            if end.state is not State.DONE:
                verdict.faults.append(f"session {number}: {who} {end.state.value} {end.why_failed}")
            elif len(end.received) != len(received):
                verdict.faults.append(f"session {number}: the {who} lacks bytes")
            verdict.bytes += len(end.received)
        verdict.completed += not pair.aborted

    def _has_failed(self, number: int, pair: Pair) -> bool:
        """Whether anybody's end has; a reset may be lost, and the other end wait for ever."""
        return any(end is not None and end.state is State.FAILED for end in (pair.client, pair.server))

    def _judge_rest(self, host: Host, verdict: Verdict) -> None:
        assert host.agent is not None
        left = [str(info) for info in host.agent.sessions()]
        if left:
            verdict.faults.append(f"{host.name} keeps sessions: {left}")
        if host.table.flows:
            verdict.faults.append(f"{host.name} keeps flows: {list(host.table.flows)}")
        faults = host.agent.leftovers()
        if faults:
            verdict.faults.append(f"{host.name} keeps {faults}")
        if host.table.captured:
            verdict.faults.append(f"{host.name} keeps captures: {host.table.captured}")


def run(seed: int, *, record: bool = False, restless: bool | None = None) -> Verdict:
    """Make the scenario of a seed and run it; the same seed gives the same run."""
    return Scenario(seed, record=record, restless=restless).run()
