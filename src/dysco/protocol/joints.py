"""A proxy that ends TCP on both sides, and how it is taken out: two chains are joined into one session.

    left chain  ... == left anchor ==> this host | proxy | this host ==> right anchor == ...  right chain
                                     ends here             begins here

To everybody else this host is a host inside of the segment. Here a message goes from one chain to the other and gets
the other id with it (`Seam`). What the proxy adds to numbers follows from the initial numbers of both sides and from
what it has added to the stream or taken off it, which somebody has to say; the numbers seen here must agree with that
at any time, before the lock is granted and after. When both anchors say that the old path is empty, both sockets of the
proxy get a FIN, and what it still sends is answered here.

Knows chains, facings and numbers; which messages there are is the affair of `inside` and `changes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from dysco.protocol.chain import (
    BACKWARD_FIN,
    FORWARD_FIN,
    SEEN,
    WITH_ECN,
    WITH_TIMESTAMPS,
    Chain,
    Facing,
    Half,
    Seam,
    agreed,
)
from dysco.protocol.changing import Inside, Joined
from dysco.protocol.flow import HOST, UNKNOWN
from dysco.protocol.ground import LIVE, Ground, Numbers
from dysco.protocol.life import question
from dysco.protocol.paths import TwoPaths
from dysco.wire.edit import split
from dysco.wire.numbers import MASK32, distance, later
from dysco.wire.packet import ACK, FIN, RST, SYN, Located, Packet, build_tcp

LINGER_S: Final = 2.0  # ours: longer than the repetitions of oldDone that this host may still have to pass on
PATIENCE_S: Final = (
    75.0  # ours: longer than a change takes to be locked; a joint without a lock is forgotten then
)
_WINDOW: Final = 0xFFFF
_LEAST_MSS: Final = {4: 536, 6: 1220}  # RFC 9293 section 3.7.1: what holds without the option


class Added(NamedTuple):
    """Bytes that the proxy has written more than it has read, by direction; negative: fewer."""

    right: int = 0
    left: int = 0


class Joint:
    """Two chains that are being joined: left ends at the proxy, right begins there.

    ends: where each stood when this host left. over: chains whose socket has ended.
    """

    __slots__ = ("added", "ends", "left", "over", "request", "right")

    def __init__(self, left: Chain, right: Chain, request: int, added: Added) -> None:
        self.left = left
        self.right = right
        self.request = request
        self.added = added
        self.ends: dict[bytes, Numbers | None] = {}
        self.over: set[bytes] = set()


class Joints:
    """Does what a proxy's host does."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    # Joining and parting.

    def make(self, left: Chain, right: Chain, request: int, added: Added, now: float) -> str | None:
        """Join two chains, so that a change can take the proxy out; why they cannot be joined, if so."""
        if left.joint is not None or right.joint is not None:
            return "busy"
        joint = Joint(left, right, request, added)
        refusal = self.refusal(joint)
        if refusal is not None:
            return refusal
        left.joint = right.joint = joint
        for chain, facing in ((left, left.left), (right, right.right)):
            assert facing is not None
            if facing.seam is None:
                facing.seam = Seam()
            facing.seam.chain_id = facing.seam.chain_id or chain.chain_id
        self._ground.alarm(now + PATIENCE_S, lambda at: self._forget(joint, at))
        return None

    def resume(self, chain: Chain, inside: Inside, joined: Joined, now: float) -> Joint | None:
        """Go on after a restart, once both chains are there; until then None."""
        other = self._ground.life.chains.get(joined.partner)
        its = None if other is None or other.changing is None else other.changing.inside
        if other is None or its is None or its.joined is None or its.joined.is_left is joined.is_left:
            return None
        assert other.changing is not None
        left, right = (chain, other) if joined.is_left else (other, chain)
        joint = left.joint = right.joint = Joint(left, right, inside.request, Added(*joined.added))
        for one, known in ((chain, joined), (other, its.joined)):
            joint.ends[one.key] = None if known.ends is None else Numbers(*known.ends)
            if known.over:
                joint.over.add(one.key)
        other.changing.inside = inside
        inside.joined = its.joined = None
        if inside.committed:
            self._let_go(joint, now)
        else:
            self._ground.alarm(now + PATIENCE_S, lambda at: self._forget(joint, at))
        return joint

    def part(self, chain: Chain, request: int) -> None:
        """Let the chains be two again if nothing came of the change."""
        joint = chain.joint
        if joint is not None and joint.request == request and inside(joint) is None:
            joint.left.joint = joint.right.joint = None

    def _forget(self, joint: Joint, now: float) -> None:
        if joint.left.joint is not joint:
            return
        self.part(joint.left, joint.request)
        found = inside(joint)
        if found is not None and not found.committed:
            self._ground.alarm(now + PATIENCE_S, lambda at: self._forget(joint, at))

    # What the proxy does to numbers.

    def refusal(self, joint: Joint) -> str | None:
        """Why a proxy cannot be taken out now, if so."""
        left, right = joint.left, joint.right
        for chain in (left, right):
            if chain.opening is not None or chain.state not in LIVE:
                return "the session is not established"
        if left.right is None or left.right.read != HOST or left.right.peer is not None or left.box:
            return "the left chain does not end at this host"
        if right.left.read != HOST or right.left.peer is not None or right.box:
            return "the right chain does not begin at this host"
        assert right.right is not None
        if (left.changing is not None and left.changing.right is not None) or (
            right.changing is not None and right.changing.left is not None
        ):
            return "busy"
        for fin in (FORWARD_FIN, BACKWARD_FIN):
            if left.fins & fin != right.fins & fin:
                return "not ready: one side has closed, and the proxy has not passed that on"
        if not self._has_answered(left):
            return "not ready: the client has said nothing since its SYN"
        return differences(left, right) or self._disagreement(joint)

    def _has_answered(self, left: Chain) -> bool:
        """Whether the client has heard the SYN-ACK: behind the switch nobody could say it again."""
        flow = self._ground.table.get(*self._ground.forward_key(left, "left"))
        if flow is None:
            return False
        self._ground.table.refresh(flow)
        return flow.top_ack != UNKNOWN

    def sums(self, joint: Joint) -> tuple[int, int]:
        """What a proxy adds to forward and backward numbers (DESIGN section 9)."""
        left, right = joint.left.left, joint.right.right
        assert right is not None
        return (
            (right.forward.isn - left.forward.isn + joint.added.right) & MASK32,
            (left.backward.isn - right.backward.isn + joint.added.left) & MASK32,
        )

    def _disagreement(self, joint: Joint) -> str | None:
        """What both sides have shown cannot come from a proxy that adds so much: it has written what it has not read.

        What was written is asked for first: the kernel may go on counting meanwhile.
        """
        left, right = joint.left, joint.right
        wrote_right, wrote_left = self._ground.numbers(right, "right"), self._ground.numbers(left, "left")
        read_right, read_left = self._ground.numbers(right, "right"), self._ground.numbers(left, "left")
        if wrote_right is None or wrote_left is None or read_right is None or read_left is None:
            return "not ready: no packets have passed since the agent began"
        forward, backward = self.sums(joint)
        inner = left.left.sums or (0, 0)
        forward, backward = forward - inner[0], backward - inner[1]
        for where, excess in (
            ("right", distance(wrote_right.sent, read_left.received + forward)),
            ("left", distance(wrote_left.sent, read_right.received + backward)),
        ):
            if excess > 0:
                return f"not ready: the proxy has written {excess} bytes more to the {where} than it has read"
        return None

    def is_empty(self, joint: Joint) -> bool:
        """Whether the proxy has written all that it has read, and all of that is acknowledged."""
        right, left = self._ground.numbers(joint.right, "right"), self._ground.numbers(joint.left, "left")
        if right is None or left is None:
            return False
        forward, backward = self.sums(joint)
        inner = joint.left.left.sums or (0, 0)
        forward, backward = forward - inner[0], backward - inner[1]
        return (
            right.sent == right.acked == (left.received + forward) & MASK32
            and left.sent == left.acked == (right.received + backward) & MASK32
        )

    # Leaving.

    def leave(self, joint: Joint, now: float) -> None:
        """Let both sockets of the proxy see an ordinary end of stream; nothing of it leaves the host from here on."""
        for chain, side, fin, _ in self._sides(joint):
            numbers = self._ground.numbers(chain, "left" if side == "right" else "right")
            if numbers is not None and numbers.answered != numbers.received and not chain.fins & fin:
                numbers = None  # something that came is missing there: only it knows where it stands
            joint.ends[chain.key] = numbers
            if chain.fins & ~fin or chain.state not in LIVE:
                joint.over.add(chain.key)  # the proxy has closed this side before
        for chain in (joint.left, joint.right):
            self._ground.life.record(chain)
        self._let_go(joint, now)

    def _let_go(self, joint: Joint, now: float) -> None:
        """Keep the two flows by which the sockets speak, and end them; also after a restart."""
        ground = self._ground
        for chain, side, fin, facing in self._sides(joint):
            numbers = joint.ends.get(chain.key)
            towards = facing.tuple if side == "right" else facing.tuple.reversed()
            if not chain.fins & fin:
                packet = question(facing, towards)
                if numbers is not None:
                    packet = build_tcp(towards, numbers.received, numbers.sent, FIN | ACK, _WINDOW)
                ground.output.packet(facing.write, packet)
            for flow in (*chain.left_flows(), *chain.right_flows()):
                old = ground.table.get(flow.port, flow.match)
                if flow.port == facing.read and flow.match == towards.reversed():
                    flow.slow = True
                    assert old is not None
                    flow.carry_over(old)
                    ground.table.insert(flow)
                else:
                    ground.table.delete(flow.port, flow.match)
        over = len(joint.over) == len(members(joint.left))
        ground.alarm(
            now + (LINGER_S if over else ground.settings.timers.half_closed), lambda at: self._gone(joint, at)
        )

    def closing(self, chain: Chain, joint: Joint, at: Located, now: float) -> None:
        """Answer what a socket of the proxy still sends, until both have ended."""
        ground = self._ground
        if at.flags & SYN:
            self._gone(joint, now)  # the proxy has taken the port for another session; its SYN comes again
            return
        fin, facing = next((fin, one) for of, _, fin, one in self._sides(joint) if of is chain)
        numbers = joint.ends.get(chain.key)
        if numbers is None and not at.flags & RST and not chain.fins & fin:
            # The answer to a question: it is empty, so this is where it stands.
            numbers = joint.ends[chain.key] = Numbers(at.next_seq, at.ack, at.ack, at.next_seq)
            end = build_tcp(at.five_tuple.reversed(), at.ack, at.next_seq, FIN | ACK, _WINDOW)
            ground.output.packet(facing.write, end)
        # What it has got ends with a FIN: the other end's, which was received, or the one that it got here.
        own = not chain.fins & fin
        is_probe = numbers is not None and distance(at.seq, numbers.sent) < 0
        back = at.five_tuple.reversed()
        if not at.flags & RST and (at.flags & FIN or at.payload_len or is_probe):
            # Behind that FIN, also if it did not know it yet.
            seq = at.ack if numbers is None else later(at.ack, (numbers.received + own) & MASK32)
            ground.output.packet(facing.write, build_tcp(back, seq, at.next_seq, ACK, _WINDOW))
        if at.flags & FIN and own and numbers is not None and at.ack == numbers.received:
            # Both FINs have crossed, so the socket is in TIME-WAIT now, which nobody needs: no copy of a packet of the
            # session can come here any more. A reset ends that unseen (RFC 9293 section 3.10.7.4, TIME-WAIT).
            after = (numbers.received + 1) & MASK32
            ground.output.packet(facing.write, build_tcp(back, after, at.next_seq, RST | ACK, _WINDOW))
        if at.flags & (FIN | RST) and chain.key not in joint.over:
            joint.over.add(chain.key)
            if len(joint.over) == len(members(joint.left)):
                ground.alarm(now + LINGER_S, lambda late: self._gone(joint, late))

    def _gone(self, joint: Joint, now: float) -> None:
        for chain in (joint.left, joint.right):
            self._ground.life.close(chain, "moved", now)

    @staticmethod
    def _sides(joint: Joint) -> Iterator[tuple[Chain, str, int, Facing]]:
        """Each chain with the side on which the proxy is, the FIN that comes to the proxy, and the facing there."""
        assert joint.left.right is not None
        yield joint.left, "right", FORWARD_FIN, joint.left.right
        yield joint.right, "left", BACKWARD_FIN, joint.right.left


def members(chain: Chain) -> tuple[Chain, ...]:
    """The chains that are changed together with this one."""
    return (chain,) if chain.joint is None else (chain.joint.left, chain.joint.right)


def ours(two: TwoPaths, packet: Packet, at: Located) -> Packet | None:
    """What of a packet of the old path is the session's, for an anchor; None: nothing, a proxy ends by itself.

    The other end's FIN takes the new path unless it lies below its cutoff, as the last that does. A reset ends nothing
    when all that the proxy had to pass on has arrived: when it was acknowledged, for what has been received may have
    come past a gap.
    """
    if at.flags & RST:
        drained = (
            two.peer_cutoff is not None
            and distance(two.answered, two.peer_cutoff) >= 0
            and distance(two.acked, two.cutoff) >= 0
        )
        return None if drained else packet
    if not at.flags & FIN or is_last(two, at.next_seq):
        return packet
    return split(packet, at, at.payload_len)[0] if at.payload_len else None


def is_last(two: TwoPaths, next_seq: int) -> bool:
    """Whether a FIN of the old path, before this number, is the other end's: the last that it sent before it switched.

    That of a proxy comes behind all that it had to pass on, or sooner if it dies. Where it had passed on
    all but one byte, its FIN is taken for the other end's.
    """
    return two.peer_cutoff == next_seq


def is_cut_short(two: TwoPaths, at: Located) -> bool:
    """Whether a packet shows that a proxy has ended before all had passed it, and that nothing is under way any more.

    The kernel of one that is killed sends what was written, and a FIN; it resets only where the proxy had not read all.
    """
    if not at.flags & FIN or two.peer_cutoff is None or distance(at.next_seq, two.peer_cutoff) >= 0:
        return False
    return distance(two.answered, at.next_seq) >= -1


def inside(joint: Joint) -> Inside | None:
    """The part of the proxy's host in the change, once it is locked."""
    changing = joint.left.changing
    return None if changing is None else changing.inside


def differences(left: Chain, right: Chain) -> str | None:
    """What both handshakes have agreed so differently that the ends cannot speak with each other; None: nothing."""
    assert right.right is not None
    near, far = left.left, right.right
    if near.tuple.family != far.tuple.family or left.session_in.family != right.session_out.family:
        return "both sides are of different address families"
    ours, theirs = (near.forward, near.backward), (far.forward, far.backward)
    if not all(half.flags & SEEN for half in (*ours, *theirs)):
        return "not ready: a handshake was not seen"
    for flag, what in ((WITH_TIMESTAMPS, "timestamps"), (WITH_ECN, "ECN")):
        if agreed(ours, flag) != agreed(theirs, flag):
            return f"only one side of the proxy has {what}"
    for sender, taker, towards in ((ours[1], theirs[1], "right"), (theirs[0], ours[0], "left")):
        if _mss(sender, near) > _mss(taker, near):
            return f"segments to the {towards} may be larger than its end takes"
    return None


def _mss(half: Half, facing: Facing) -> int:
    return half.mss or _LEAST_MSS[facing.tuple.family]
