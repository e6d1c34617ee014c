"""What both anchors do alike when they switch: cutoffs, the end of the old path, and its ports."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from dysco.protocol.chain import BACKWARD_FIN, FORWARD_FIN, WITH_SACK, Chain, Facing
from dysco.protocol.changing import Anchor, Phase
from dysco.protocol.ground import REHEARSED_WINDOW, Ground, Numbers
from dysco.protocol.paths import TwoPaths
from dysco.wire.messages import CancelLock, OldDone
from dysco.wire.numbers import MASK32
from dysco.wire.packet import ACK, PSH, Located, Packet, build_tcp
from dysco.wire.tuples import FiveTuple

FIRST_WAIT_S: Final = 0.2  # DESIGN section 6: requesters repeat, 200 ms doubling
MOST_WAIT_S: Final = 1.6
DONE_TRIES: Final = 8
JOINED_TRIES: Final = 64  # ours: nobody else ends the sockets of a proxy, so its host must hear it
ALARM_S: Final = 60.0  # DESIGN section 8: an old path that is not empty by then is worth an alarm
FROZEN_S: Final = 0.5  # DESIGN section 9: anchors hold new data so long at most
HURRY_S: Final = (
    2.0  # ours: how long trackers on a new path are shown what has come over one that is dead now
)
FROZEN_BYTES: Final = 256 * 1024  # DESIGN section 9
NOT_FREE: Final = "its subsession is not free here"
BEGUN_AGAIN: Final = "the left anchor has begun again in the middle of this change"
_NO_WSCALE: Final = 255
_TCP_LEAST: Final = 20


def patience(tries: int) -> float:
    """Seconds to wait for an answer after so many tries."""
    return min(FIRST_WAIT_S * (1 << min(tries, 8)), MOST_WAIT_S)


def begin_two(numbers: Numbers, *, forced: bool) -> TwoPaths:
    """Freeze the cutoff: what is sent next, or, if the old path is dead, what was not acknowledged."""
    cutoff = numbers.acked if forced else numbers.sent
    received = numbers.answered if forced else numbers.received
    two = TwoPaths(cutoff, received, numbers.acked, numbers.answered, forced=forced)
    two.top = numbers.sent
    return two


def where(two: TwoPaths) -> Numbers:
    """Where an anchor with two paths stands."""
    return Numbers(two.top, two.rcvd, two.acked, two.answered)


def rehearsed_isn(numbers: Numbers, *, forced: bool) -> int:
    """The initial number for a path handshake, before what is sent next; if the old path is dead, acknowledged next.

    A copy of the handshake may come when the change is done, and looks like any other acknowledgement then: it must not
    acknowledge what a dead path has swallowed.
    """
    return ((numbers.acked if forced else numbers.sent) - 1) & MASK32


def hold(ground: Ground, anchor: Anchor, packets: list[Packet]) -> list[Packet]:
    """What may go to the new path now; while a state is under way it is kept, or lost if it is too much."""
    if anchor.holding is None:
        return packets
    for packet in packets:
        if anchor.held_bytes + len(packet.data) > FROZEN_BYTES:
            ground.counters["frozen_dropped"] += 1
        else:
            anchor.held_bytes += len(packet.data)
            anchor.holding.append(packet)
    return []


def give_back(ground: Ground, facing: Facing, now: float) -> None:
    """Return the ports of a subsession, if this agent opened it."""
    if facing.opened:
        ground.life.leave(facing.tuple, now)


def tell_done(ground: Ground, chain: Chain, anchor: Anchor, now: float, *, rightward: bool) -> None:
    """Tell the other anchor that this half of the old path is empty, along both paths, until it says that it knows.

    Along the old path, so that the hosts on it learn it, too; along the new one, for the old one may be dead. There
    `last` is 0, so that a host that has forgotten the change does not take itself for one of the old path.
    """
    key = (anchor.change.request, rightward)
    ground.telling[key] = anchor

    def again(at: float, tries: int = 0) -> None:
        if anchor.told_done or tries >= (JOINED_TRIES if anchor.joined else DONE_TRIES):
            ground.telling.pop(key, None)
            return
        say_done(ground, chain, anchor, rightward=rightward)
        due = at + patience(tries)
        ground.alarm(due, lambda late: again(late, tries + 1))

    again(now)


def say_done(ground: Ground, chain: Chain, anchor: Anchor, *, rightward: bool) -> None:
    """Say once that this half is empty."""
    change, waiting = anchor.change, not anchor.peer_done
    message = OldDone(chain.chain_id, 0, change.request, rightward, change.last, waiting)
    ground.send(anchor.old, message)
    ground.send(anchor.new, replace(message, last=0, fins=_unseen_fins(chain, anchor, rightward=rightward)))


def _unseen_fins(chain: Chain, anchor: Anchor, *, rightward: bool) -> int:
    """The FINs that have passed below a cutoff: hosts of the new path do not see them, and would wait for them."""
    two = anchor.two
    own, other = (FORWARD_FIN, BACKWARD_FIN) if rightward else (BACKWARD_FIN, FORWARD_FIN)
    assert two is not None
    below = own * (two.top == two.cutoff) | other * (two.rcvd == two.peer_cutoff)
    return chain.fins & below


def tell_cancelled(ground: Ground, chain: Chain, facing: Facing, request: int, last: int, now: float) -> None:
    """Tell a neighbour that a change was given up, until it says that it knows.

    One that was not told would keep a lock, or a path that leads nowhere, and refuse other changes for a whole lease.
    """
    ground.cancel(request, last)
    key = (request, facing.hop)
    if key in ground.cancelling:
        return
    assert facing.peer is not None
    ground.cancelling[key] = facing.peer
    message = CancelLock(chain.chain_id, 0, request, last)

    def again(at: float, tries: int = 0) -> None:
        if key not in ground.cancelling or tries >= DONE_TRIES:
            ground.cancelling.pop(key, None)
            return
        ground.send(facing, message)
        ground.alarm(at + patience(tries), lambda late: again(late, tries + 1))

    again(now)


def raise_alarm(ground: Ground, chain: Chain, anchor: Anchor, now: float) -> None:
    """Say once that the old path does not get empty; both paths stay, for correctness needs them."""
    if Phase.STUCK not in anchor.since and now - anchor.since.get(Phase.TWO_PATHS, now) > ALARM_S:
        phase = anchor.phase
        ground.move(chain, anchor, Phase.STUCK, now, ground.settings.name, "the old path does not get empty")
        anchor.phase = phase


def at_cutoff(tuple_: FiveTuple, seq: int, ack: int) -> Packet:
    """Make the ACK at a cutoff, the last packet of the path handshake; PSH tells it from those before."""
    return build_tcp(tuple_, seq, ack, ACK | PSH, REHEARSED_WINDOW)


def is_at_cutoff(at: Located) -> bool:
    """Whether a packet of the new path is the other anchor's ACK at its cutoff: no endpoint makes such a one."""
    is_plain = at.flags == ACK | PSH and not at.payload_len and at.window == REHEARSED_WINDOW
    return is_plain and at.payload_offset == at.tcp_offset + _TCP_LEAST


def rehearsed_options(facing: Facing, *, forward: bool) -> bytes:
    """MSS, window scale and SACK as the session's own SYN or SYN-ACK announced them.

    Without timestamps: only the endpoints know theirs, and a tracker takes these three from here.
    """
    halves = facing.forward, facing.backward
    half = halves[0] if forward else halves[1]
    options = b""
    if half.mss:
        options += b"\x02\x04" + half.mss.to_bytes(2, "big")
    if all(one.wscale != _NO_WSCALE for one in halves):
        options += b"\x01\x03\x03" + bytes((half.wscale,))
    if all(one.flags & WITH_SACK for one in halves):
        options += b"\x01\x01\x04\x02"
    return options
