"""The protocol core of one agent: packets, messages, times and commands in; packets, messages and events out.

Knows no socket, no clock, no asyncio. The driver calls `receive_packet`, `receive_message`,
`handle_deadline` and the commands, each with the time in monotonic seconds; after each it takes what
`outgoing` and `next_event` give and looks at `next_deadline`. The data plane hands over only what its flow
table cannot do: packets that no flow matches, packets with SYN, FIN or RST, ICMP errors. Established
sessions never come here.

    setup.py       how a chain begins: policy, chain header, middlebox, next hop, refusal
    admission.py   whether a neighbour's SYN may begin one here
    boxes.py       SYNs that are inside a middlebox
    states.py      where a chain stands, and what moves it
    life.py        how it goes on and ends: FIN, RST, timers, limits
    icmp.py        errors about its packets
    changes.py     changing the chain of a session that lives
    records.py     what the journal keeps of it
    resting.py     and what is kept of it while there is nothing to be done
    this           who gets what, sessions for people
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from dysco.protocol import counters
from dysco.protocol.adoption import Adoption
from dysco.protocol.chain import Chain, Facing, FacingInfo, SessionInfo, key_of, role
from dysco.protocol.changes import MESSAGES, Changes
from dysco.protocol.events import Event, PeerDown, PeerMoved, PeerUp
from dysco.protocol.flow import HOST, UNDERLAY, FlowTable
from dysco.protocol.ground import Ground, id_of, name_of
from dysco.protocol.icmp import IcmpErrors
from dysco.protocol.inside import BoxSums
from dysco.protocol.joints import Added
from dysco.protocol.life import Life
from dysco.protocol.neighbours import SELF, Neighbours
from dysco.protocol.output import MessageOut, Output, PacketOut
from dysco.protocol.records import read_record
from dysco.protocol.replay import ReplayWindow, Window
from dysco.protocol.reports import PlainReport
from dysco.protocol.settings import Decide, Settings
from dysco.protocol.setup import Setup
from dysco.protocol.states import BROKEN, UNSETTLED
from dysco.wire.chain_header import Hop
from dysco.wire.decode import Malformed, decode
from dysco.wire.messages import Change, Gone, Hello, Message, Moved, Place, SynRefused
from dysco.wire.packet import ACK, FIN, RST, SYN, Located, Packet, Reason, locate, why
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple, show_address

__all__ = ["Agent", "MessageOut", "PacketOut"]


class Agent:
    """One agent. rng(n) gives n random bytes; decide is asked once for each session that begins here."""

    def __init__(
        self,
        settings: Settings,
        table: FlowTable,
        decide: Decide,
        rng: Callable[[int], bytes],
        windows: Callable[[], Window] = ReplayWindow,
    ) -> None:
        self.counters: Counter[str] = counters.counters()
        self._output = Output()
        self._neighbours = Neighbours(settings, rng, windows)
        self._table = table
        self._life = Life(settings, table, self._neighbours, self._output, self.counters)
        self._setup = Setup(
            settings, table, self._neighbours, self._life, self._output, self.counters, decide, rng
        )
        self.adoption = Adoption(
            self._setup, table, self._neighbours, self._life, self._output, self.counters
        )
        self._ground = Ground(settings, table, self._neighbours, self._life, self._output, self.counters, rng)
        self._changes = Changes(self._ground)
        self._setup.rehearsed = self._ground.hold
        self._icmp = IcmpErrors(table, self._neighbours, self._setup, self._output, self.counters)

    def configure(self, settings: Settings, decide: Decide) -> None:
        """Take changed settings and policies; sessions that live are left alone."""
        self._neighbours.configure(settings)
        self._life.settings = settings
        self._setup.settings = settings
        self._ground.settings = settings
        self._setup.decide = decide

    def begin_anew(self, now: float) -> None:
        """Forget what is being opened from an address that `configure` does not name first any more: TCP repeats it."""
        own = self._neighbours.own  # old ones may come behind it, for applications still have them
        self._life.begin_anew(lambda _, right: right.opened and own(right.tuple.src) != right.tuple.src, now)

    def receive_packet(self, port: int, packet: Packet, now: float, at: Located | None = None) -> None:
        """Take a packet that was read from `port` and that the data plane did not handle by itself.

        at: what `locate` gives for it, if the caller knows.
        """
        at = at or locate(packet)
        if at is None:
            if why(packet) is Reason.NOT_TCP and self._icmp.receive(port, packet, now):
                return
            self._pass(port, packet, (why(packet) or Reason.MALFORMED).value)
            return
        flow = self._table.get(port, at.five_tuple)
        if flow is None and self.adoption.briefs.wake(port, at.five_tuple, now):
            flow = self._table.get(port, at.five_tuple)
        if at.flags & (SYN | FIN | RST):
            decoded = decode(packet, at)
            if isinstance(decoded, Malformed):
                self.counters[decoded.reason] += 1
                return
        chain = None if flow is None else flow.owner
        if flow is not None and isinstance(chain, Chain) and self._changes.packets.takes(chain, flow, at):
            self._changes.packets.receive(chain, flow, packet, at, now)
            return
        if at.flags & SYN and self._changes.packets.drops(packet, at):
            return
        if at.flags & SYN and not at.flags & ACK:
            self._setup.syn(port, packet, at, flow, now)
            return
        if flow is None:
            if port == UNDERLAY:
                self.counters["unknown_subsession"] += 1
            else:
                self._pass(port, packet, "unknown_session")
            return
        assert isinstance(chain, Chain)
        if chain.key in self._life.resetting:
            self._life.answer_with_reset(chain, flow, at, now)
            return
        if at.flags & SYN:
            self._setup.syn_ack(chain, flow, packet, at, now)
            return
        forward = chain.is_forward(flow)
        if at.flags & RST and not forward and flow.port == UNDERLAY and self._setup.no_agent(chain, at, now):
            return
        if at.flags & RST and self._ground.is_needless(chain, forward=forward):
            self.counters["reset_late"] += 1
            return
        if at.flags & RST and chain.state in BROKEN and chain.is_from_end(flow):
            # It may answer what has come past the chain, from an end whose agent has gone before it could reset it.
            self.counters["reset_past_chain"] += 1
            self._output.packet(UNDERLAY, packet.copy())
        apply(packet, flow, at)
        if at.flags & RST:
            flow.packets += 1
            flow.bytes += len(packet.data)
        else:
            # A kernel may have carried gigabytes since, and then a number says nothing.
            self._table.refresh(flow)
            flow.count(at, len(packet.data))
            if flow.slow:
                self._ground.beginnings.see(chain, flow, packet, at)
        self._output.packet(flow.out, packet)
        if at.flags & (FIN | RST):
            self._life.closing(chain, forward=forward, reset=bool(at.flags & RST), now=now)

    def take_reports(
        self, reports: Iterable[PlainReport], now: float, mark: int = 0, *, settle: bool = True
    ) -> None:
        """Take what the kernel has done by itself. settle: whether somebody is about to act on sessions.

        mark: what the caller calls the place of these reports; `adoption.briefs.mark` says which are still needed.
        """
        self.adoption.briefs.take(reports, now, mark, settle=settle)

    def draw_counters(self, peer: str, draw: Callable[[], int] | None) -> int:
        """Take the counters of headers for a peer from where the kernel takes its own; give the last one used."""
        neighbour = self._neighbours.by_name[peer]
        neighbour.draw = draw
        return neighbour.counter

    def receive_message(self, peer: str, message: Message, now: float) -> None:
        """Take a message that the association with `peer` has authenticated."""
        if peer not in self._neighbours.by_name or peer == SELF:
            self.counters["message_of_unknown_peer"] += 1
        elif isinstance(message, SynRefused):
            self._setup.refused_by(peer, message, now)
        elif isinstance(message, MESSAGES):
            self._changes.receive(peer, message, now)
        elif isinstance(message, Moved):
            addresses = tuple(hop.address for hop in message.addresses)
            if self._neighbours.moved(peer, message.number, addresses):
                self._moved(peer, addresses, now)
        elif isinstance(message, Gone):
            self.counters["gone"] += 1

    def _moved(self, peer: str, addresses: tuple[bytes, ...], now: float) -> None:
        """A peer is elsewhere: say so, and begin anew what is being opened through it."""
        self._output.event(PeerMoved(peer, tuple(map(show_address, addresses))))
        at, mover = self._neighbours.at, self._neighbours.by_name[peer]
        self._life.begin_anew(lambda opening, _: any(at(hop.address) is mover for hop in opening.hops), now)

    def outgoing(self) -> list[PacketOut | MessageOut]:
        """Take what is to be sent, in order."""
        return self._output.take()

    def next_event(self) -> Event | None:
        """Take the oldest event, if there is one."""
        return self._output.next_event()

    def events(self) -> list[Event]:
        """Take all events, oldest first."""
        return self._output.take_events()

    def next_deadline(self) -> float | None:
        """When `handle_deadline` must be called; None: no need."""
        parts = (self._life, self._life.chains, self._ground, self.adoption.briefs)
        deadlines = [at for part in parts if (at := part.next_deadline()) is not None]
        return min(deadlines) if deadlines else None

    def handle_deadline(self, now: float) -> None:
        """Do what time asks for."""
        for chain in self._life.due(now):
            self._life.expired(chain, now)
        self.adoption.briefs.handle_deadline(now)
        self._changes.handle_deadline(now)
        self._life.let_rest(now)

    def accept_key(self, peer: str, receive_key: bytes, now: float) -> None:
        """A peer may sign with this key from now on, even before it is up with it."""
        neighbour = self._neighbours.by_name.get(peer)
        if neighbour is not None:
            neighbour.accept(receive_key, now)

    def peer_up(
        self,
        peer: str,
        hello: Hello,
        send_key: bytes,
        receive_key: bytes,
        now: float,
        *,
        address: bytes = b"",
    ) -> None:
        """An association is there; keys of 32 bytes, one for each direction. address: where the peer answers."""
        neighbour = self._neighbours.by_name.get(peer)
        if neighbour is None:
            return
        fresh = not neighbour.up
        before = neighbour.hello
        neighbour.associate(hello, send_key, receive_key, now)
        if fresh:
            self._output.event(PeerUp(peer))
        if before is not None and before.boot_id != hello.boot_id:
            elsewhere = neighbour.begins_again(address)
            if elsewhere:
                self._moved(peer, elsewhere, now)
        self._setup.associated(peer, now)

    def peer_down(self, peer: str, now: float) -> None:
        """An association is gone; sessions stay, for their packets need none."""
        neighbour = self._neighbours.by_name.get(peer)
        if neighbour is not None and neighbour.up:
            neighbour.up = False
            self._output.event(PeerDown(peer))

    def moved(self) -> None:
        """This host has another address: chains toward a peer begin again when it is said to be aware of that."""
        for name, neighbour in self._neighbours.by_name.items():
            neighbour.aware = name == SELF

    def peer_aware(self, peer: str, now: float) -> None:
        """A peer has been told where this host is now."""
        neighbour = self._neighbours.by_name.get(peer)
        if neighbour is not None and not neighbour.aware:
            neighbour.aware = True
            self._setup.associated(peer, now)

    def peer_mtu(self, peer: str, mtu: int) -> None:
        """Probing has found that IP packets of `mtu` bytes reach the peer."""
        if peer in self._neighbours.by_name:
            self._neighbours.by_name[peer].probed_mtu = mtu

    def peer_is_up(self, peer: str) -> bool:
        """Whether there is an association with the peer."""
        neighbour = self._neighbours.by_name.get(peer)
        return neighbour is not None and neighbour.up

    def sessions_via(self, address: bytes) -> int:
        """How many sessions go from here to the agent at an address."""
        via, moved = self._life.via, self._neighbours.reach(address)
        return via[address] + (via[moved] if moved != address else 0)

    def ports_held(self) -> int:
        """How many pairs of ports subsessions hold that were opened here."""
        return self._neighbours.ports()

    def set_hops(self, session: FiveTuple, hops: tuple[Hop, ...]) -> bool:
        """Let a middlebox choose the hops behind it before its SYN leaves; False if none is waited for."""
        return self._setup.set_hops(session, hops)

    def expect(self, session_in: FiveTuple, session_out: FiveTuple) -> bool:
        """A middlebox says that `session_in` will leave it as `session_out`; False if none is waited for."""
        return self._setup.expect(session_in, session_out)

    def change(self, key: bytes, change: Change, now: float, *, rightward: bool = False) -> bool:
        """Ask for a change of the chain with this key; ChangeMoved events tell how it goes. False: no such chain.

        rightward: whether the left anchor of the segment lies to the right of this agent.
        """
        chain = self._life.chains.get(key)
        if chain is not None:
            self._changes.ask(chain, change, now, rightward=rightward)
        return chain is not None

    def splice(
        self,
        left: bytes,
        right: bytes,
        request: int,
        now: float,
        *,
        added_right: int = 0,
        added_left: int = 0,
    ) -> bool:
        """Take out the proxy of this host between the chains with these keys; ChangeMoved events tell how it goes.

        left: the chain that ends at the proxy; right: the one that begins there. added_right, added_left: bytes that
        it has written more in that direction than it has read. False: no such chains.
        """
        chains = self._life.chains.get(left), self._life.chains.get(right)
        if chains[0] is None or chains[1] is None or chains[0] is chains[1]:
            return False
        self._changes.splice(chains[0], chains[1], request, Added(added_right, added_left), now)
        return True

    def state_exported(
        self, key: bytes, request: int, data: bytes | None, now: float, reason: str = ""
    ) -> None:
        """Answer a StateWanted event; None and a reason: there is no state to be had."""
        chain = self._life.chains.get(key)
        if chain is not None:
            self._changes.transfers.exported(chain, request, data, reason, now)
            self._changes.settle_local(now)

    def state_installed(self, key: bytes, request: int, done: bool, now: float, reason: str = "") -> None:
        """Answer a StateArrived event."""
        chain = self._life.chains.get(key)
        if chain is not None:
            self._changes.transfers.installed(chain, request, done, reason, now)
            self._changes.settle_local(now)

    def boxes_settle(self, settle: BoxSums, unsettle: Callable[[Chain], None]) -> None:
        """Say who knows what stream boxes have added to a session, and lets them pass it unchanged from then on."""
        self._changes.hosts.settle = settle
        self._changes.hosts.unsettle = unsettle

    def trace(self, key: bytes, number: int, now: float) -> bool:
        """Ask who is on a chain; a Traced event with this number is the answer. False: no such chain."""
        chain = self._life.chains.get(key)
        if chain is not None:
            self._changes.traces.ask(chain, number, now)
            self._changes.settle_local(now)
        return chain is not None

    def places(self, key: bytes) -> tuple[Place, ...]:
        """Who was on a chain when its agents were last told; empty if they were not, or there is no such chain."""
        chain = self._life.chains.get(key)
        return () if chain is None else tuple(chain.places)

    def subsessions(self, key: bytes) -> tuple[tuple[bool, FiveTuple, int], ...]:
        """The subsessions with other agents of a chain, by their ends here: whether it is the right one, tuple, label.

        None if they cannot be moved now, for the session is being opened or has ended.
        """
        chain = self._life.chains.get(key)
        if chain is None or chain.opening is not None:
            return ()
        ends = ((False, chain.left), (True, chain.right))
        return tuple(
            (right, one.tuple, name_of(chain, one)) for right, one in ends if one is not None and one.peer
        )

    def first_bytes(self, session: FiveTuple) -> tuple[bytes, bytes] | None:
        """What was sent first in a session of this host's stack and what was answered; None if it was not watched."""
        return self._ground.beginnings.get(session)

    def peer_address(self, address: bytes) -> bytes:
        """Where the peer with an address can be reached now."""
        return self._neighbours.reach(address)

    def leftovers(self) -> list[str]:
        """What changes have left behind when there is no session any more; nothing, unless there is a defect."""
        return self._changes.leftovers()

    def session_keys(self) -> list[bytes]:
        """Every session by its key, but for those that are over at once (`brief`)."""
        return list(self._life.chains)

    def has(self, key: bytes) -> bool:
        """Whether there is a session with this key."""
        return key in self._life.chains

    def reset(self, keys: Iterable[bytes], now: float) -> None:
        """Begin to reset both ends of these sessions; each is gone when both have answered."""
        for key in keys:
            chain = self._life.chains.get(key)
            if chain is not None:
                self._life.stop(chain, now)

    def abandon(self, key: bytes, peer: str, now: float) -> bool:
        """Begin to reset a session if it goes by a peer that has gone for good; it is gone soon, answered or not."""
        chain = self._life.chains.get(key)
        if (
            chain is None
            or not chain.goes_by(peer)
            or chain.changing is not None
            or chain.state not in UNSETTLED
            or key in self._life.resetting
        ):
            return False
        self._life.reset(chain, "abandoned", now, stays=True)
        return True

    def restore(self, data: bytes, now: float) -> bool:
        """Take up a session that a journal remembers; False if the record does not fit this host any more."""
        chain = read_record(data, self._setup.settings.boxes, now)
        return chain is not None and self._life.restore(chain, now)

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and record of every session, for a journal that begins anew."""
        return self._life.records()

    def sessions(self, now: float = 0.0) -> Iterator[SessionInfo]:
        """Every session of this agent; ages count up to `now`."""
        for chain in self._life.chains.values():
            yield self._about(chain, now)
        yield from self.adoption.briefs.infos(now)

    def session(self, key: bytes, now: float = 0.0) -> SessionInfo | None:
        """The session with a key; None if there is none."""
        chain = self._life.chains.get(key)
        if chain is not None:
            return self._about(chain, now)
        return next((one for one in self.adoption.briefs.infos(now) if key_of(one) == key), None)

    def _about(self, chain: Chain, now: float) -> SessionInfo:
        packets, octets = self._life.traffic(chain)
        right = chain.right
        return SessionInfo(
            chain.chain_id,
            chain.hop_index,
            role(chain),
            chain.state.value,
            chain.session_in,
            chain.session_out,
            chain.policy,
            None if chain.box is None else chain.box.name,
            _info(chain, chain.left),
            None if right is None else _info(chain, right),
            max(0.0, now - chain.created_at),
            packets,
            octets,
            () if chain.changing is None else chain.changing.infos(now),
        )

    def __len__(self) -> int:
        """How many sessions this agent has."""
        return len(self._life.chains) + len(self.adoption.briefs)

    @property
    def at_rest(self) -> int:
        """Of how many sessions only a record is kept."""
        return self._life.chains.at_rest

    def _pass(self, port: int, packet: Packet, reason: str) -> None:
        """Let a packet go on as if there were no agent, and count it. Nothing foreign goes into a box."""
        self.counters[reason] += 1
        if port in (HOST, UNDERLAY) and reason != Reason.MALFORMED.value:
            self._output.packet(HOST, packet)


def _info(chain: Chain, facing: Facing) -> FacingInfo:
    other = id_of(chain, facing)
    joined = b"" if other == chain.chain_id else other
    return FacingInfo(facing.peer, facing.tuple, name_of(chain, facing), joined)
