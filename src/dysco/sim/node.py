"""One simulated host as a function: its state, one input and the time give its next state and what it sends.

What one host does depends on nothing else, so each such step is done once and remembered, however many states of the
whole network it occurs in. The state is the real host with the real agent, kept as bytes (`freeze`). With each state
goes a `View`: what a checker wants to know of it.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final

from dysco.protocol.agent import Agent
from dysco.protocol.anchors import LeftState
from dysco.protocol.changing import Phase
from dysco.protocol.events import ChangeMoved, SessionForgotten, SessionRecord
from dysco.protocol.flow import FORWARD, HOST
from dysco.protocol.locks import LockState
from dysco.protocol.settings import Decision, LocalBox, Peer, Settings, Timers
from dysco.sim.box import Firewall, Renumber
from dysco.sim.clock import Clock
from dysco.sim.endpoint import Endpoint, Profile, State
from dysco.sim.freeze import freeze, thaw
from dysco.sim.host import Host, Listener
from dysco.sim.network import Network
from dysco.sim.relay import PUT_LEFT, PUT_RIGHT, Proxy, RelayHost, out_of
from dysco.wire.chain_header import Hop
from dysco.wire.frames import decode, encode
from dysco.wire.messages import Change, Hello, Hops, Message
from dysco.wire.numbers import distance, later
from dysco.wire.packet import ACK, RST, Packet, locate
from dysco.wire.tuples import FiveTuple

START_S: Final = 1000.0
PORT: Final = 80
SUMS: Final = (0x1005, -7)
"""What boxes add to forward and backward numbers; they differ, for then a sum at the wrong anchor shows."""
PLAIN: Final = Profile(mss=1000, wscale=None, timestamps=False, sack=False, buffer=4000)
FINAL: Final = frozenset(phase.words for phase in Phase if phase.is_final)


@dataclass(frozen=True, slots=True)
class Item:
    """What is under way from one host to another: a packet, or a datagram with one message."""

    source: str
    target: str
    kind: str
    data: bytes

    def __str__(self) -> str:
        if self.kind == "control":
            return f"{self.source} -> {self.target} {_brief(decode(self.data)[0])}"
        at = locate(Packet(bytearray(self.data)))
        assert at is not None
        return (
            f"{self.source} -> {self.target} {at.five_tuple} flags={at.flags:#04x} seq={at.seq} ack={at.ack} "
            f"len={at.payload_len}"
        )


@dataclass(frozen=True, slots=True)
class Command:
    """What a host is told from outside: a change to ask for, bytes to send, or a wish ("restart", "timer", "open").

    rightward: of a change, where its left anchor is; of bytes to expect at a proxy, whether the server sends them.
    """

    target: str
    what: str
    change: Change | None = None
    rightward: bool = False
    data: bytes = b""

    def __str__(self) -> str:
        what = _brief(self.change) if self.change else f"{len(self.data)} bytes" if self.data else ""
        return f"{self.target}: {self.what} {what}"


@dataclass(frozen=True, slots=True)
class View:
    """What there is to know of a state of a host.

    due: when its next timer is (seconds). rest_at: from when on nothing is being changed. grants: requests whose left
    anchor is here and holds the lock. locks: label, request and whether it is locked, of what begins here. outcomes:
    of changes, as told here. missing: bytes that endpoints wait for. violations: what must never be. sockets: states of
    endpoints. closed: whether one of them will send nothing more.
    """

    due: float
    rest_at: float
    grants: frozenset[int]
    locks: frozenset[tuple[int, int, bool]]
    outcomes: tuple[tuple[int, str, str], ...]
    missing: int
    violations: tuple[str, ...]
    chains: tuple[str, ...]
    sockets: tuple[str, ...]
    closed: bool


class Draw:
    """Random bytes that depend on nothing but how many were drawn before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0

    def __call__(self, size: int) -> bytes:
        self.count += 1
        return hashlib.shake_128(f"{self.name} {self.count}".encode()).digest(size)


class Policy:
    """Chain everything through these hops, or nothing."""

    def __init__(self, hops: tuple[Hop, ...]) -> None:
        self.hops = hops

    def __call__(self, tuple_: FiveTuple, now: float) -> Decision | None:
        return Decision("all", self.hops) if self.hops else None


class Accept:
    """Take a session; nothing is sent before a command says so."""

    def __call__(self, endpoint: Endpoint) -> None:
        return


class Outbox(Network):
    """The network as one host sees it: what is sent waits to be taken.

    tops: number behind the last byte that was sent on each subsession.
    """

    def __init__(self, names: dict[bytes, str], clock: Clock) -> None:
        super().__init__(clock, random.Random(0))
        self.names = names
        self.out: list[Item] = []
        self.tops: dict[FiveTuple, int] = {}

    def send(self, source: Host, packet: Packet) -> None:
        at = locate(packet)
        assert at is not None
        target = self.names[at.five_tuple.dst]
        if not at.flags & RST:
            top = self.tops.get(at.five_tuple)
            self.tops[at.five_tuple] = at.next_seq if top is None else later(top, at.next_seq)
        self.out.append(Item(source.name, target, "data", bytes(packet.data)))

    def message(self, source: Host, peer: str, message: Message) -> None:
        [datagram] = encode([message])
        self.out.append(Item(source.name, peer, "control", datagram))


@dataclass
class Node:
    """A host with all that its next steps depend on. expected: bytes, by endpoint."""

    host: Host
    clock: Clock
    outbox: Outbox
    settings: Settings
    policy: Policy
    draw: Draw
    peers: tuple[str, ...]
    expected: list[bytes] = field(default_factory=lambda: [b"", b""])
    proxy: Proxy | None = None
    journal: dict[bytes, bytes] = field(default_factory=dict)
    outcomes: dict[int, tuple[str, str]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    @property
    def agent(self) -> Agent:
        agent = self.host.agent
        assert agent is not None
        return agent

    def step(self, what: Item | Command, now: float) -> list[Item]:
        """Do one thing, and give what is sent."""
        self.clock.now = now
        if isinstance(what, Command):
            self._obey(what, now)
        elif what.kind == "control":
            for message in decode(what.data):
                self.agent.receive_message(what.source, message, now)
            self.host.drain()
        else:
            packet = Packet(bytearray(what.data))
            self._judge(packet)
            self.host.from_wire(packet)
        if self.proxy is not None:
            self.proxy.go_on()
        self._look()
        sent, self.outbox.out = self.outbox.out, []
        return sent

    def view(self) -> View:
        """What there is to know."""
        life = self.agent._life
        changes, ground = self.agent._changes, self.agent._ground
        grants, locks, chains = set(), set(), []
        rest_at = math.inf if changes.wishes.leftovers()["wishes"] or ground.telling else 0.0
        for chain in life.chains.values():
            lock = None if chain.right is None else chain.right.lock
            if lock is not None and chain.right is not None:
                locks.add((chain.right.hop, lock.request, lock.state is LockState.LOCKED))
                rest_at = max(rest_at, lock.until)
            roles = chain.changing
            if roles is not None:
                rest_at = math.inf
                left = roles.left
                if left is not None and left.state in (LeftState.SETTING_UP, LeftState.TWO_PATHS):
                    grants.add(left.change.request)
            labels = chain.left.hop, None if chain.right is None else chain.right.hop
            chains.append(f"{chain.state.value} {labels}")
        relay = None if self.proxy is None else self.proxy.relay
        if relay is not None and not relay.is_at_rest:
            rest_at = math.inf
        ends = list(self.host.endpoints.values())
        sockets = tuple(one.state.value for one in ends)
        missing = sum(map(len, self.expected)) - sum(len(one.received) for one in ends)
        outcomes = tuple(sorted((request, *told) for request, told in self.outcomes.items()))
        return View(
            self._due(), rest_at, frozenset(grants), frozenset(locks), outcomes, missing, tuple(self.violations),
            tuple(chains), sockets, any(one.closing for one in ends),
        )  # fmt: skip

    def tidy(self) -> None:
        """Take out what no next step depends on, so that equal states are equal bytes."""
        self.agent.counters.clear()
        ground, clock = self.agent._ground, self.clock
        ground._alarms = [(at, number, one[2]) for number, one in enumerate(sorted(ground._alarms, key=_order), 1)
                          for at in one[:1]]  # fmt: skip
        ground._alarm_number = len(ground._alarms)
        live = sorted((one for one in clock._queue if one[2].action is not None), key=_order)
        clock._queue = [(one[0], number, one[2]) for number, one in enumerate(live, 1)]
        clock._planned = len(live)

    def _obey(self, command: Command, now: float) -> None:
        match command.what:
            case "timer":
                self.clock.run_until(now)
            case "restart":
                self._restart(now)
            case "change":
                assert command.change is not None
                key = next(iter(self.agent._life.chains), b"")
                self.agent.change(key, command.change, now, rightward=command.rightward)
                self.host.drain()
            case "splice":
                assert command.change is not None
                assert self.proxy is not None
                if not self.proxy.splice(self.agent, command.change.request, now):
                    self._fault("the proxy's agent does not know its chains")
                self.host.drain()
            case "open":
                source, target = self.host.addresses[0], command.data
                wanted = FiveTuple.of(source, 40000, target, PORT)
                self.host.connect(wanted, 0xFFFFFF00, PLAIN)
            case "write":
                [endpoint] = self.host.endpoints.values()
                endpoint.write(command.data, now)
                self.host.arm(endpoint)
            case "close":
                [endpoint] = self.host.endpoints.values()
                endpoint.close(now)
                self.host.arm(endpoint)
            case "expect":
                self.expected[command.rightward] += command.data
            case _:
                raise AssertionError(command.what)

    def _restart(self, now: float) -> None:
        host = self.host
        if host._timer is not None:
            host._timer.cancel()
        host._timer, host._armed_at = None, None
        host.table = type(host.table)()
        host.agent = Agent(self.settings, host.table, self.policy, self.draw)
        for record in list(self.journal.values()):
            host.agent.restore(record, now)
        self.associate(now)
        host.drain()

    def associate(self, now: float) -> None:
        """Be associated with every peer."""
        for peer in self.settings.peers:
            one, two = sorted((self.host.name, peer.name))
            keys = one.encode() * 32, two.encode() * 32
            send, receive = keys if self.host.name == one else keys[::-1]
            hello = Hello(
                name=peer.name,
                boot_id=bytes(16),
                port_range=self.host.port_range,
                observed_address=self.host.addresses[0],
            )
            self.agent.peer_up(peer.name, hello, send, receive, now)

    def _judge(self, packet: Packet) -> None:
        """No host is given an acknowledgement, on any path, of what it has not sent there."""
        at = locate(packet)
        assert at is not None
        top = self.outbox.tops.get(at.five_tuple.reversed())
        if top is not None and at.flags & ACK and not at.flags & RST and distance(at.ack, top) > 0:
            self._fault(f"ack of {distance(at.ack, top)} bytes that were not sent on {at.five_tuple}")

    def _look(self) -> None:
        host = self.host
        for event in host.events:
            match event:
                case SessionRecord():
                    self.journal[event.key] = event.data
                case SessionForgotten():
                    self.journal.pop(event.key, None)
                case ChangeMoved() if event.phase in FINAL:
                    self.outcomes[event.request] = (event.phase, event.reason)
        host.events.clear()
        if self.agent.counters["bug"]:
            self._fault("a state machine was given what its table calls a bug")
        if len(host.endpoints) > (1 if self.proxy is None else 2):
            self._fault("another session has begun")
        for endpoint, expected in zip(host.endpoints.values(), self.expected, strict=False):
            for text in endpoint.violations:
                self._fault(text)
            if bytes(endpoint.received) != expected[: len(endpoint.received)]:
                self._fault("other bytes were received than were sent")
            if self.proxy is not None and endpoint.state is State.FAILED:
                self._fault(f"a socket of the proxy has failed: {endpoint.why_failed}")

    def _fault(self, text: str) -> None:
        if text not in self.violations:
            self.violations.append(text)

    def _due(self) -> float:
        times = [one[0] for one in self.clock._queue if one[2].action is not None]
        return min(times, default=math.inf)


def _brief(value: object) -> str:
    """A message or change without what is the same in all of them or says nothing."""
    if not is_dataclass(value):
        return str(value)
    texts = []
    for one in fields(value):
        content = getattr(value, one.name)
        if one.name in ("chain_id", "handshake", "session") or content in (False, "", 0, ()):
            continue
        if isinstance(content, Hops):
            content = "+".join(".".join(map(str, hop.address)) for hop in content)
        texts.append(f"{one.name}={_brief(content)}")
    return f"{type(value).__name__}({', '.join(texts)})"


def _order(entry: tuple[float, int, Any]) -> tuple[float, int]:
    return entry[0], entry[1]


class Nodes:
    """All states of all hosts that were met, by number, and every step that was taken."""

    def __init__(self) -> None:
        self.views: list[View] = []
        self.steps = 0
        self._frozen: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        self._known: dict[tuple[int, Item | Command, float], tuple[int, tuple[Item, ...]]] = {}

    def __len__(self) -> int:
        return len(self._frozen)

    def add(self, node: Node) -> int:
        """The number of a state."""
        node.tidy()
        frozen = freeze(node, (Settings, Policy))
        digest = hashlib.blake2b(frozen, digest_size=16).digest()
        number = self._numbers.get(digest)
        if number is None:
            # What was thawed shares its parts differently from what was made: only the second is compared.
            frozen = freeze(thaw(frozen), (Settings, Policy))
            second = hashlib.blake2b(frozen, digest_size=16).digest()
            number = self._numbers.get(second)
            if number is None:
                number = self._numbers[second] = len(self._frozen)
                self._frozen.append(frozen)
                self.views.append(node.view())
            self._numbers[digest] = number
        return number

    def step(self, number: int, what: Item | Command, now: float) -> tuple[int, tuple[Item, ...]]:
        """The state that follows, and what is sent."""
        key = (number, what, now)
        found = self._known.get(key)
        if found is None:
            node = thaw(self._frozen[number])
            sent = tuple(node.step(what, now))
            found = self._known[key] = self.add(node), sent
            self.steps += 1
        return found

    def thaw(self, number: int) -> Node:
        """A state as it was."""
        node: Node = thaw(self._frozen[number])
        return node


def make_nodes(names: str, route: str, proxy: str = "", *, late: bool = False) -> dict[str, Node]:
    """Hosts 10.0.0.1 and so on by name: the route's first is the client, its last the server, others have a box.

    Boxes of the route give sessions other numbers, for only then does a translation show. proxy: which host of the
    route has a proxy instead, to which the client connects. late: the proxy moves bytes when its timer comes.
    """
    addresses = {name: bytes((10, 0, 0, number)) for number, name in enumerate(names, 1)}
    by_address = {address: name for name, address in addresses.items()}
    middle = route.index(proxy) if proxy else len(route) - 1
    begins = {route[0]: route[1 : middle + 1], **({proxy: route[middle + 1 :]} if proxy else {})}
    nodes: dict[str, Node] = {}
    for name in names:
        clock = Clock(START_S)
        outbox = Outbox(by_address, clock)
        kind = RelayHost if name == proxy else Host
        host = kind(name, (addresses[name],), outbox, clock, random.Random(0))
        boxes: tuple[LocalBox, ...] = ()
        if name not in (route[0], route[-1], proxy):
            host.box = Renumber(*SUMS) if name in route else Firewall()
            boxes = (LocalBox(f"box of {name}", 0, HOST, FORWARD, HOST, FORWARD),)
        peers = tuple(Peer(other, (addresses[other],)) for other in names if other != name)
        # Nobody dies for good here, so nobody needs to be told who is on a chain: it would only be more states.
        timers = Timers(learn=math.inf)
        settings = Settings(name=name, addresses=host.addresses, boxes=boxes, peers=peers, timers=timers)
        policy = Policy(tuple(Hop(addresses[other]) for other in begins.get(name, "")))
        draw = Draw(name)
        host.agent = Agent(settings, host.table, policy, draw)
        node = nodes[name] = Node(
            host, clock, outbox, settings, policy, draw, tuple(peer.name for peer in peers)
        )
        if isinstance(host, RelayHost):
            server = out_of(addresses[name], addresses[route[-1]], PORT)
            node.proxy = Proxy(host, server, PLAIN, late=late)
            host.listeners[PORT] = Listener(node.proxy.profile, node.proxy)
        elif name == route[-1]:
            host.listeners[PORT] = Listener(PLAIN, Accept())
        node.associate(START_S)
        host.drain()
        host.events.clear()
    if proxy:
        nodes[route[0]].expected[0], nodes[route[-1]].expected[0] = PUT_LEFT, PUT_RIGHT
    return nodes
