"""What all parts of a reconfiguration stand on: labels, messages along a chain, flows, numbers, alarms.

A message names the subsession along which it goes by chain id and label; here the chain is found that has that
subsession to its left or to its right. Labels of the first subsessions follow from the hop index; those that changes
draw are kept in two dictionaries.
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sized
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple

from dysco.protocol.beginnings import Beginnings
from dysco.protocol.chain import HALF, Chain, Facing, Half
from dysco.protocol.changing import MOST_DONE, Anchor, Changing, Phase
from dysco.protocol.events import ChangeMoved
from dysco.protocol.flow import FORGOTTEN, UNDERLAY, UNKNOWN, Flow, FlowTable, Translation
from dysco.protocol.life import Life
from dysco.protocol.neighbours import SELF, Neighbours
from dysco.protocol.output import Output
from dysco.protocol.settings import Settings
from dysco.protocol.states import State
from dysco.wire.chain_header import MAX_HOPS
from dysco.wire.messages import Change, Message, RequestLock
from dysco.wire.numbers import FAR, MASK32, later
from dysco.wire.options import syn_options
from dysco.wire.packet import ACK, Located, Packet, build_tcp, locate
from dysco.wire.rewrite import apply, retarget
from dysco.wire.tuples import FiveTuple

Side = Literal["left", "right"]
LIVE: Final = frozenset((State.ESTABLISHED, State.HALF_CLOSED))
FIRST_DRAWN: Final = 256
REHEARSED_WINDOW: Final = 0xFFFF  # in every packet of a path handshake; not scaled
LIFETIME_S: Final = 60.0  # how long a copy of a packet may wander, as with the quarantine of ports
MOST_FIRST: Final = MAX_HOPS  # labels that follow from the hop index
_MOST_OVERTAKEN: Final = 1024
_MOST_COMPLETED: Final = 16_384


class Numbers(NamedTuple):
    """Where one direction pair stands, in the numbers of an anchor: sent, received, acked by the peer, answered."""

    sent: int
    received: int
    acked: int
    answered: int


class Ground:
    """Shared by both anchors, by hosts inside a segment, and by who dispatches to them."""

    def __init__(
        self,
        settings: Settings,
        table: FlowTable,
        neighbours: Neighbours,
        life: Life,
        output: Output,
        counters: Counter[str],
        rng: Callable[[int], bytes],
    ) -> None:
        self.settings = settings
        self.table = table
        self.neighbours = neighbours
        self.life = life
        self.output = output
        self.counters = counters
        self.rng = rng
        self.beginnings = Beginnings(table)
        self.local: deque[Message] = deque()
        self.completed: OrderedDict[int, int] = OrderedDict()
        self.passing: OrderedDict[int, int] = OrderedDict()
        self.telling: dict[tuple[int, bool], Anchor] = {}
        self.cancelled: OrderedDict[int, int] = OrderedDict()
        self.cancelling: dict[tuple[int, int], str] = {}
        self.overtaken: OrderedDict[FiveTuple, Packet] = OrderedDict()
        self.replay: deque[Packet] = deque()
        self.again: deque[tuple[Chain, RequestLock]] = deque()
        self.report: Callable[[Chain, Anchor, Phase, str, str, float], None] = lambda *_: None
        self._rehearsed: dict[FiveTuple, int] = {}
        self.requested: dict[int, Chain] = {}
        self._labels: dict[tuple[Side, bytes, int], bytes] = {}
        self._alarms: list[tuple[float, int, Callable[[float], None]]] = []
        self._alarm_number = 0

    # Labels.

    def find(self, side: Side, chain_id: bytes, hop: int) -> Chain | None:
        """The chain that has the subsession with this label on this side of the agent, on any of its paths."""
        if hop >= FIRST_DRAWN and (side, chain_id, hop) not in self._labels:
            hop = next((one for one in range(1, MOST_FIRST + 1) if alias(chain_id, one) == hop), hop)
        key = self._labels.get((side, chain_id, hop))
        if key is None:
            if not 0 < hop < FIRST_DRAWN:
                return None
            key = chain_id + bytes((hop if side == "left" else hop - 1,))
        chain = self.life.chains.get(key)
        return chain if chain is not None and self.facing(chain, side, hop) is not None else None

    def facing(self, chain: Chain, side: Side, hop: int) -> Facing | None:
        """The facing with this label."""
        current = chain.left if side == "left" else chain.right
        if current is not None and current.hop == hop and hop:
            return current
        anchor = self.anchor(chain, side)
        for one in (anchor.old, anchor.new) if anchor is not None else ():
            if one is not None and one.hop == hop:
                return one
        if current is not None and hop >= FIRST_DRAWN and means(chain, current, hop):
            return current
        return None

    @staticmethod
    def anchor(chain: Chain, side: Side) -> Anchor | None:
        """The anchor whose paths lie on this side: a right anchor has them on its left."""
        if chain.changing is None:
            return None
        return chain.changing.right if side == "left" else chain.changing.left

    def draw_label(self) -> int:
        """A label that no subsession has that a SYN opened."""
        return int.from_bytes(self.rng(4), "big") % (MASK32 - FIRST_DRAWN) + FIRST_DRAWN

    def label(self, side: Side, chain: Chain, facing: Facing) -> None:
        """Let the facing be found."""
        if facing.hop >= FIRST_DRAWN:
            self._labels[side, id_of(chain, facing), facing.hop] = chain.key

    def unlabel(self, side: Side, chain: Chain, facing: Facing) -> None:
        self._labels.pop((side, id_of(chain, facing), facing.hop), None)

    # Messages and alarms.

    def send(self, facing: Facing | None, message: Any) -> bool:
        """Send a message along a subsession, under the id that its other end knows; False if there is no agent."""
        if facing is None or facing.peer is None:
            return False
        if facing.seam is not None and facing.seam.chain_id:
            message = replace(message, hop=facing.hop, chain_id=facing.seam.chain_id)
        else:
            message = replace(message, hop=facing.hop)
        if facing.peer == SELF:
            self.local.append(message)
        else:
            self.output.message(facing.peer, message)
        return True

    def is_up(self, peer: str | None) -> bool:
        """Whether there is an association with a neighbour."""
        neighbour = None if peer is None else self.neighbours.by_name.get(peer)
        return neighbour is not None and neighbour.up

    def tell(self, agent: str, message: Message) -> None:
        """Send a message to an agent by its name, past the subsessions that lie between; SELF: to this one."""
        if agent in (SELF, self.settings.name):
            self.local.append(message)
        else:
            self.output.message(agent, message)

    def alarm(self, at: float, action: Callable[[float], None]) -> None:
        """Call `action` at a time; it sees for itself whether that still matters."""
        self._alarm_number += 1
        heapq.heappush(self._alarms, (at, self._alarm_number, action))

    def next_deadline(self) -> float | None:
        return self._alarms[0][0] if self._alarms else None

    def handle_deadline(self, now: float) -> None:
        while self._alarms and self._alarms[0][0] <= now:
            heapq.heappop(self._alarms)[2](now)

    def rehearse(self, match: FiveTuple, seq: int, now: float) -> None:
        """Know the SYN or SYN-ACK of a path handshake by its number, for as long as a network may keep a copy."""

        def forget(at: float) -> None:
            self._rehearsed.pop(match, None)

        if self._rehearsed.get(match) != seq:
            self._rehearsed[match] = seq
            self.alarm(now + LIFETIME_S, forget)

    def is_late_rehearsal(self, packet: Packet, at: Located) -> bool:
        """Whether a SYN or SYN-ACK is a copy out of a path handshake that is over.

        An endpoint's own, whose answer was lost, has the same number as long as nobody has sent data. A path handshake
        has its window, and no timestamp.
        """
        if self._rehearsed.get(at.five_tuple) != at.seq:
            return False
        return at.window == REHEARSED_WINDOW and syn_options(packet, at).tsval is None

    def move(
        self, chain: Chain, anchor: Anchor, phase: Phase, now: float, by: str = "", reason: str = ""
    ) -> None:
        """A change has come to a phase at one of its anchors."""
        anchor.phase = phase
        anchor.since[phase] = now
        self.counters[f"change_{phase.name.lower()}"] += 1
        self.say(chain, anchor, phase, now, by, reason)

    def say(
        self, chain: Chain, anchor: Anchor, phase: Phase, now: float, by: str = "", reason: str = ""
    ) -> None:
        """Tell here, and who has asked, how a change goes."""
        moved = ChangeMoved(
            chain.chain_id, chain.hop_index, chain.session_in, anchor.change.request, phase.words, by, reason
        )
        self.output.event(moved)
        self.report(chain, anchor, phase, by, reason, now)

    def hold(self, subsession: FiveTuple, packet: Packet) -> None:
        """Keep a SYN of a path handshake that has overtaken the message which tells of it."""
        self.overtaken[subsession] = packet
        if len(self.overtaken) > _MOST_OVERTAKEN:
            self.overtaken.popitem(last=False)

    def catch_up(self, subsession: FiveTuple) -> None:
        """The message has come."""
        packet = self.overtaken.pop(subsession, None)
        if packet is not None:
            self.replay.append(packet)

    def complete(self, chain: Chain, request: int, cutoff: int = 0) -> None:
        """Remember that a change is done at an anchor here, and with which cutoff, so that repetitions are answered.

        Also after a restart: the other anchor, or a proxy's host, may not have heard it yet, and would ask for ever.
        """
        _remember(self.completed, request, cutoff)
        chain.done = (*chain.done[1 - MOST_DONE :], (request, cutoff))

    def recall(self, chain: Chain) -> None:
        """Know the changes that were done here before the agent began again."""
        for request, cutoff in chain.done:
            _remember(self.completed, request, cutoff)

    def cancel(self, request: int, last: int) -> None:
        """A change was given up: what comes of it from now on is late. last: the label of its right anchor."""
        _remember(self.cancelled, request, last)

    def pass_on(self, request: int) -> None:
        """Remember that a change has brought a session here, so that its last messages are passed on."""
        _remember(self.passing, request, 0)

    # Roles.

    def changing(self, chain: Chain) -> Changing:
        if chain.changing is None:
            chain.changing = Changing()
        return chain.changing

    def tidy(self, chain: Chain) -> None:
        """Forget the roles of a chain if none is left."""
        if chain.changing is not None and chain.changing.is_over and chain.changing.early is None:
            chain.changing = None

    def allowed(self, chain: Chain, *names: str) -> bool:
        """Whether all of these agents, as far as they are peers, may change this session here."""
        peers = (self.neighbours.by_name[name].peer for name in names if name in self.neighbours.by_name)
        return all(peer.may_change(chain.session_in) for peer in peers)

    def new_subsession(self, address: bytes, now: float) -> tuple[FiveTuple, str] | str:
        """A five-tuple toward the agent at an address, and its name; text: why there is none."""
        address = self.neighbours.reach(address)
        neighbour = self.neighbours.at(address)
        if neighbour is None:
            return "the next hop is no peer of this host"
        if not neighbour.up:
            return f"no association with {neighbour.peer.name}"
        own = self.neighbours.own(address)
        if own is None:
            return "no address of this family"
        pair = self.neighbours.pool(own, address, neighbour).allocate(now)
        if pair is None:
            return "no free ports"
        return FiveTuple.of(own, pair[0], address, pair[1]), neighbour.peer.name

    def is_ours(self, subsession: FiveTuple) -> bool:
        """Whether a subsession that a neighbour opens leads here, to a port that nobody else may have."""
        low, high = self.settings.port_range
        return subsession.dst in self.settings.addresses and low <= subsession.dport <= high

    def is_free(self, subsession: FiveTuple) -> bool:
        """Whether it leads here and is not another session's."""
        return self.is_ours(subsession) and self.table.get(UNDERLAY, subsession) is None

    def leftovers(self) -> dict[str, Sized]:
        """What must be empty once all is at rest."""
        return {
            "labels": self._labels,
            "alarms": self._alarms,
            "rehearsed": self._rehearsed,
            "telling": self.telling,
            "cancelling": self.cancelling,
            "requested": self.requested,
            "beginnings": self.beginnings,
        }

    # Flows.

    def install(self, chain: Chain) -> None:
        """Make every flow of a chain as it must be now; what is to be seen packet by packet is slow."""
        changing = chain.changing
        flows = [*chain.left_flows(), *chain.right_flows()]
        slow: set[tuple[int, FiveTuple]] = set()
        if changing is not None and changing.left is not None:
            new = changing.left.new
            assert new is not None
            flows.append(Flow(new.read, new.tuple.reversed(), new.write, new.tuple, owner=chain, slow=True))
            if changing.left.two is not None or changing.left.joined:
                slow.update(self._keys(chain, "right"))
        if changing is not None and changing.right is not None:
            new = changing.right.new
            if new is not None:
                flows.append(Flow(new.read, new.tuple, new.write, new.tuple, owner=chain, slow=True))
            if changing.right.two is not None or changing.right.joined:
                slow.update(self._keys(chain, "left"))
        for flow in flows:
            old = self.table.get(flow.port, flow.match)
            flow.slow = flow.slow or (flow.port, flow.match) in slow
            if old is not None and old.owner is chain:
                if old.does_as(flow):
                    continue  # what moves its packets would have to stop for nothing
                self.table.refresh(old)
                flow.carry_over(old)
            self.table.insert(flow)

    def forward_key(self, chain: Chain, side: Side) -> tuple[int, FiveTuple]:
        """Port and match of the flow to the right on one side of the box; without a box there is one."""
        if side == "left" or chain.box is None:
            return chain.left.read, chain.left.tuple
        return chain.box.right_read, chain.session_out

    def backward_key(self, chain: Chain, side: Side) -> tuple[int, FiveTuple]:
        """Port and match of the flow to the left on one side of the box; without a box there is one."""
        if side == "right" or chain.box is None:
            assert chain.right is not None
            return chain.right.read, chain.right.tuple.reversed()
        return chain.box.left_read, chain.session_in.reversed()

    def stop(self, chain: Chain, side: Side, *, forced: bool = False) -> Numbers | None:
        """Have each packet of one side handed to the core from now on, and say where the side stands.

        In this order: a kernel that moves packets by itself goes on doing so until it is told, and what it has sent
        and received is below the cutoffs.
        """
        for key in self._keys(chain, side):
            old = self.table.get(*key)
            if old is not None and not old.slow:
                self.table.refresh(old)
                slow = Flow(
                    old.port, old.match, old.out, old.rewrite, owner=old.owner, slow=True,
                    translation=old.translation,
                )  # fmt: skip
                slow.carry_over(old)
                self.table.insert(slow)
        return self.numbers(chain, side, forced=forced)

    def _keys(self, chain: Chain, side: Side) -> tuple[tuple[int, FiveTuple], ...]:
        return self.forward_key(chain, side), self.backward_key(chain, side)

    # Numbers.

    def may_change(self, chain: Chain, change: Change) -> bool:
        """Whether a session is open; if its path is gone, both FINs and data before them may have to come again."""
        return chain.opening is None and (
            chain.state in LIVE or (change.force and chain.state is State.TIME_WAIT)
        )

    def is_needless(self, chain: Chain, *, forward: bool) -> bool:
        """Whether a RST of this host's stack tells nobody anything: both ends have closed, and know it of each other.

        A closed socket answers so what comes late, such as the acknowledgement with which the other end answers a copy
        out of a path handshake.
        """
        facing = chain.left if forward else chain.right
        if chain.state is not State.TIME_WAIT or facing is None or facing.peer is not None:
            return False
        numbers = self.numbers(chain, "right" if forward else "left")
        return numbers is not None and numbers.sent == numbers.acked and numbers.received == numbers.answered

    def is_opened(self, chain: Chain) -> bool:
        """Whether the end on the left has acknowledged the SYN-ACK; what an anchor says of it must be true.

        The ACK of a path handshake may come when the change is done, and an end of the session that still waits for
        the third packet of its own takes it for that. The other end would have its SYN answered by ACKs only.
        """
        flow = self.table.get(*self.forward_key(chain, "right"))
        assert flow is not None  # else there would be no numbers
        self.table.refresh(flow)
        return flow.top_ack != UNKNOWN

    def left_behind(self, change: Change, *own: bytes) -> str | None:
        """Why a change that waits for the old path cannot pass these own addresses, if so: they may be gone."""
        if change.force or self.settings.left.isdisjoint(own):
            return None
        return "busy: this host has moved, and its subsession has not followed yet"

    def numbers(self, chain: Chain, side: Side, *, forced: bool = False) -> Numbers | None:
        """Where the anchor with its paths on `side` stands; None if packets must pass first (after a restart).

        forced: the old path may be dead, so nothing passes there any more. What the inner side says is enough: of all
        that it sends nothing may go to the old path, and what the old path has acknowledged need not be known for that.
        """
        forward, backward = (
            self._tops(chain, self.forward_key(chain, side), forward=True, side=side),
            self._tops(chain, self.backward_key(chain, side), forward=False, side=side),
        )
        out, into = (forward, backward) if side == "right" else (backward, forward)
        if forced and out is not None and into is None:
            into = out[1], (out[0] - FAR // 2) & MASK32  # out itself may be FAR behind, see `ask_inside`
        if out is None or into is None:
            return None
        return Numbers(later(out[0], into[1]), later(into[0], out[1]), into[1], out[1])

    def _tops(
        self, chain: Chain, key: tuple[int, FiveTuple], *, forward: bool, side: Side
    ) -> tuple[int, int] | None:
        """Number behind the last byte and highest ack of a flow, in the numbers inside of the left facing."""
        flow = self.table.get(*key)
        if flow is None:
            return None
        self.table.refresh(flow)
        if FORGOTTEN in (flow.top_seq, flow.top_ack):
            return None
        from_left = key == (chain.left.read, chain.left.tuple)
        sums = chain.left.sums if from_left else None
        df, db = sums or (0, 0)
        facing = chain.right if side == "right" or chain.box is None else chain.left
        assert facing is not None
        inside = (0, 0) if facing is chain.right else chain.left.sums or (0, 0)
        isn_forward = facing.forward.isn + inside[0] + 1
        isn_backward = facing.backward.isn - inside[1] + 1
        first_seq, first_ack = (isn_forward, isn_backward) if forward else (isn_backward, isn_forward)
        seq = first_seq if flow.top_seq == UNKNOWN else flow.top_seq + df
        ack = first_ack if flow.top_ack == UNKNOWN else flow.top_ack - db
        return seq & MASK32, ack & MASK32

    def presume(self, chain: Chain, side: Side, received: int, acked: int) -> bool:
        """Take the other anchor's word for what has come for the end; whether it was needed.

        After a restart the old path must show it, and does not where a proxy ends it that has given all it had. All
        that the other anchor has sent on the old path lies below `received`, and its end has got all below `acked`.
        """
        if self.numbers(chain, side) is not None:
            return False
        self.stop(chain, side)
        key = self.forward_key(chain, side) if side == "left" else self.backward_key(chain, side)
        flow = self.table.get(*key)
        if flow is None or FORGOTTEN not in (flow.top_seq, flow.top_ack):
            return False
        df, db = (chain.left.sums or (0, 0)) if key == (chain.left.read, chain.left.tuple) else (0, 0)
        flow.top_seq = (received - df) & MASK32
        flow.top_ack = (acked + db) & MASK32
        return True

    def set_tops(self, chain: Chain, side: Side, numbers: Numbers) -> None:
        """Let the flows of one side, whose packets the core sees by now, go on counting from here."""
        out_key, into_key = self.forward_key(chain, side), self.backward_key(chain, side)
        if side == "left":
            out_key, into_key = into_key, out_key
        for key, seq, ack in (
            (out_key, numbers.sent, numbers.answered),
            (into_key, numbers.received, numbers.acked),
        ):
            flow = self.table.get(*key)
            assert flow is not None
            from_left = key == (chain.left.read, chain.left.tuple)
            df, db = (chain.left.sums or (0, 0)) if from_left else (0, 0)
            flow.top_seq = (seq - df) & MASK32
            flow.top_ack = (ack + db) & MASK32

    def sums(self, chain: Chain) -> tuple[int, int]:
        """What this host adds to forward and backward numbers, box and translation together (DESIGN section 9)."""
        right = chain.right
        assert right is not None
        return (
            (right.forward.isn - chain.left.forward.isn) & MASK32,
            (chain.left.backward.isn - right.backward.isn) & MASK32,
        )

    # Packets.

    def to_right(self, facing: Facing, packet: Packet) -> None:
        """Write a packet from inside to a facing on the right."""
        readdress(packet, facing.tuple, facing.translations()[1])
        self.output.packet(facing.write, packet)

    def to_left(self, facing: Facing, packet: Packet) -> None:
        """Write a packet from inside to a facing on the left."""
        readdress(packet, facing.tuple.reversed(), facing.translations()[1])
        self.output.packet(facing.write, packet)

    def ask_inside(
        self, chain: Chain, side: Side, numbers: Numbers | None = None, *, forced: bool = False
    ) -> None:
        """Let the end behind an anchor with its paths on `side` show its timestamps, and where it stands.

        numbers: where the anchor stands, if its flows do not know; after a restart, what has come for the end is
        enough. The end is sent an ACK far behind its window, which it answers with one of its own (RFC 9293 section
        3.10.7.4). forced: nothing may come from the other end any more, so if nothing at all is known, it is asked with
        a number far behind the first one.
        """
        numbers = numbers or self.numbers(chain, side)
        assert chain.right is not None
        if numbers is not None:
            seq, ack = numbers.received, numbers.acked
        else:
            inward = side == "left"
            key = self.forward_key(chain, side) if inward else self.backward_key(chain, side)
            tops = self._tops(chain, key, forward=inward, side=side)
            if tops is None and forced:
                facing, (df, db) = chain.left, chain.left.sums or (0, 0)
                firsts = (facing.forward.isn + df + 1) & MASK32, (facing.backward.isn - db + 1) & MASK32
                tops = firsts if inward else firsts[::-1]
            if tops is None:
                return
            seq, ack = tops
        seq = (seq - FAR) & MASK32
        if side == "right":
            packet = build_tcp(chain.session_out.reversed(), seq, ack, ACK, 0)
            if chain.box is not None:
                self.output.packet(chain.box.right_write, packet)
                chain.active += 1  # it is counted behind the box, and must not look like activity
            else:
                self.to_left(chain.left, packet)
        else:
            packet = build_tcp(chain.session_in, seq, ack, ACK, 0)
            if chain.box is not None:
                self.output.packet(chain.box.left_write, packet)
                chain.active += 1
            else:
                self.to_right(chain.right, packet)


def _remember(known: OrderedDict[int, int], request: int, value: int) -> None:
    known[request] = value
    if len(known) > _MOST_COMPLETED:
        known.popitem(last=False)


def readdress(packet: Packet, new: FiveTuple, numbers: Translation | None = None) -> Located:
    """Give a packet another tuple, and add to its numbers; returns where everything stands then."""
    at = located(packet)
    if numbers is None:
        retarget(packet, new, at)
        return at
    apply(packet, Flow(0, at.five_tuple, 0, new, translation=numbers), at)
    return located(packet)


def located(packet: Packet) -> Located:
    """Where everything stands in a packet that is known to be whole."""
    at = locate(packet)
    assert at is not None
    return at


def leftward(chain: Chain) -> Facing:
    """The facing along which messages go on to the left; where chains are joined, that of the left one."""
    return chain.left if chain.joint is None else chain.joint.left.left


def rightward(chain: Chain) -> Facing | None:
    """The facing along which messages go on to the right; where chains are joined, that of the right one."""
    return chain.right if chain.joint is None else chain.joint.right.right


def along(chain: Chain, *, to_right: bool) -> Facing | None:
    """The facing along which a message goes on."""
    return rightward(chain) if to_right else leftward(chain)


def id_of(chain: Chain, facing: Facing) -> bytes:
    """The chain id by which a subsession is known."""
    return facing.seam.chain_id if facing.seam is not None and facing.seam.chain_id else chain.chain_id


def alias(chain_id: bytes, hop: int) -> int:
    """A label that means one subsession wherever chains are joined; drawn labels do so by themselves."""
    if not 0 < hop < FIRST_DRAWN:
        return hop
    return zlib.crc32(chain_id + bytes((hop,))) % (MASK32 - FIRST_DRAWN) + FIRST_DRAWN


def name_of(chain: Chain, facing: Facing | None) -> int:
    """The label of a facing as others may know it; 0: it has none."""
    return 0 if facing is None else alias(id_of(chain, facing), facing.hop)


def means(chain: Chain, facing: Facing, label: int) -> bool:
    """Whether a label names the subsession of a facing."""
    return label != 0 and label in (facing.hop, name_of(chain, facing))


def shifted(half: Half, by: int) -> bytes:
    """A half of a handshake with another initial number."""
    return HALF.pack((half.isn + by) & MASK32, half.mss, half.wscale, half.flags)
