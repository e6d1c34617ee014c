"""One anchor while its session has two paths: which packet goes where, and when the old path is empty.

Everything here is in the anchor's own numbers; a `Path` knows what to add on the wire.

    inner side (endpoint, box)            old path: numbers below the own cutoff, acks up to old_rcvd
        -- send() -->            anchor
        <-- receive() --                  new path: numbers from the own cutoff on, acks from old_rcvd on

The rules are those of DESIGN section 8 and never need the peer's cutoff; that only says when all is done. What has
neither ACK nor RST goes nowhere: no end takes it (RFC 9293 section 3.10.7.4). Where an agent further on asks an end
what it expects, far out of its window, the question passes on both paths, and nothing is learned from it.
They hold for any loss, repetition and order, and for an old path that acknowledges what it has not delivered.
"""

from __future__ import annotations

from dataclasses import dataclass

from dysco.wire.edit import bare, edit_sack, renumber, split
from dysco.wire.numbers import FAR, distance, earlier, later
from dysco.wire.options import SACK, walk
from dysco.wire.packet import ACK, FIN, RST, Located, Packet, locate

_LEAST_WINDOW = 1460


@dataclass(frozen=True, slots=True)
class Shift:
    """What an anchor adds to its own numbers on the way out over a path, modulo 2**32; taken off on the way in."""

    seq: int = 0
    ack: int = 0


class TwoPaths:
    """The state of one anchor; see the module's drawing.

    cutoff: the next number to be sent when the anchor switched. top: the highest that was sent. old_rcvd: the
    number behind the last byte received on the old path, rcvd: on either. acked: the highest acknowledgement given to
    the inner side, answered: the highest that it has given, told_old: the highest given to the old path.
    peer_cutoff: once known. peer_answered: what `answered` is at the other anchor, of what this one has sent, if the
    old path is dead. hurried: that is not waited for any more. ack_limit: until the other anchor has switched, acks on
    the new path stay at what the path handshake has shown: a tracker there has not seen the data that were received on
    the old path. copied: the window of the acknowledgement of all below the cutoff that the old path has given, while
    its copy may come on the new one. empty: it was done before, which a restart must not forget: what was acknowledged
    once is not acknowledged again.
    """

    __slots__ = (
        "ack_limit", "acked", "answered", "bytes_new", "bytes_old", "copied", "cutoff", "empty", "forced", "hurried",
        "last", "old_rcvd", "peer_answered", "peer_cutoff", "rcvd", "told_old", "top",
    )  # fmt: skip

    def __init__(
        self, cutoff: int, old_rcvd: int, acked: int, answered: int, *, forced: bool = False
    ) -> None:
        self.cutoff = cutoff
        self.top = cutoff
        self.old_rcvd = old_rcvd
        self.rcvd = old_rcvd
        self.acked = acked
        self.answered = answered
        self.told_old = earlier(answered, old_rcvd)
        self.peer_cutoff: int | None = None
        self.peer_answered: int | None = None
        self.hurried = False
        self.ack_limit: int | None = None
        self.forced = forced
        self.last: Packet | None = None
        self.copied: int | None = None
        self.empty = False
        self.bytes_old = 0
        self.bytes_new = 0

    @property
    def is_done(self) -> bool:
        """Whether this half of the old path is empty: all below both cutoffs is acknowledged, and the path knows."""
        if self.peer_cutoff is None or self.empty:
            return self.empty
        if self.forced:
            # Acknowledgements that the dead path has swallowed come again over the new one.
            return self.hurried or self.peer_answered is None or distance(self.acked, self.peer_answered) >= 0
        return (
            distance(self.acked, self.cutoff) >= 0
            and distance(self.answered, self.peer_cutoff) >= 0
            and distance(self.told_old, self.peer_cutoff) >= 0
        )

    @property
    def shown(self) -> int:
        """The number that trackers on the new path must have seen: what is acknowledged there is not above it.

        It is the cutoff, or what has come to the other side over a path that died before it could say so.
        """
        return self.cutoff if self.peer_answered is None else later(self.cutoff, self.peer_answered)

    def has_come(self, answered: int) -> None:
        """The other anchor tells what has come to its side."""
        if self.forced and distance(answered, self.top) <= 0:
            self.peer_answered = (
                answered if self.peer_answered is None else later(self.peer_answered, answered)
            )

    def send(self, packet: Packet, at: Located) -> tuple[list[Packet], list[Packet]]:
        """Take a packet from the inner side; give what goes to the old path and what goes to the new one."""
        if at.flags & RST:
            return self._reset(packet, at)
        old: list[Packet] = []
        new: list[Packet] = []
        if not at.flags & ACK:
            return old, new
        if _is_question(at, self.top):
            return [self._for_old(packet.copy(), None)], [self._for_new(packet, at)]
        ack = at.ack
        self.answered = later(self.answered, ack)
        self._count_missed()
        self.last = bare(packet, at, at.seq, ack)
        behind = distance(ack, self.old_rcvd) < 0
        end = at.next_seq
        self.top = later(self.top, end)
        size = at.payload_len
        probe = not size and not at.flags & FIN and distance(at.seq, self.top) < 0
        if not size and not at.flags & FIN and not probe:
            if behind:
                old.append(self._for_old(packet, at))
            else:
                old.append(self._bare_for_old(packet, at))
                if not self._is_limited(ack):
                    new.append(self._for_new(packet, at))
        elif distance(end, self.cutoff) <= 0 and not (probe and at.seq == self.cutoff):
            if not behind and (probe or ack != self.old_rcvd) and not self._is_limited(ack):
                new.append(self._for_new(bare(packet, at, self.top, ack), None))
            old.append(self._for_old(packet, at))
            self.bytes_old += size
        elif distance(at.seq, self.cutoff) >= 0:
            # With data once: if it is lost, acks alone and reminders say it again.
            if not size or distance(earlier(ack, self.old_rcvd), self.told_old) > 0:
                old.append(self._bare_for_old(packet, at))
            new.append(self._for_new(packet, at))
            self.bytes_new += size
        else:
            below = distance(self.cutoff, at.seq)
            self.bytes_old += below
            self.bytes_new += size - below
            first, second = split(packet, at, below)
            old.append(self._for_old(first, None))
            new.append(self._for_new(second, None))
        return old, new

    def receive_old(self, packet: Packet, at: Located) -> bool:
        """Take a packet of the old path in the anchor's numbers; whether it goes on to the inner side."""
        if at.flags & RST or not at.flags & ACK:
            return bool(at.flags & RST)
        if _is_question(at, self.rcvd):
            return True
        size = at.payload_len
        if size or at.flags & FIN:
            self.old_rcvd = later(self.old_rcvd, at.next_seq)
            self.rcvd = later(self.rcvd, at.next_seq)
            self.bytes_old += size
        if not size and not at.flags & FIN and self._is_stale(at.ack):
            return False
        if not size and not at.flags & FIN and at.ack == self.cutoff:
            self.copied = at.window
        self.acked = later(self.acked, at.ack)
        return True

    def receive_new(self, packet: Packet, at: Located) -> bool:
        """Take a packet of the new path in the anchor's numbers; whether it goes on to the inner side.

        An acknowledgement is believed from the own cutoff on, for there the sums are final; below it the last one that
        was believed stands in its place.
        """
        if at.flags & RST or not at.flags & ACK:
            return bool(at.flags & RST)
        if _is_question(at, self.rcvd):
            return True
        size = at.payload_len
        self.bytes_new += size
        if size or at.flags & FIN:
            self.rcvd = later(self.rcvd, at.next_seq)
            self.ack_limit = None
        if self._is_copy(packet, at):
            return False
        if distance(at.ack, self.cutoff) >= 0:
            self.acked = later(self.acked, at.ack)
        elif not size and not at.flags & FIN:
            return False
        else:
            renumber(packet, at, ack=self.acked)
        edit_sack(packet, at, self._known_block)
        return True

    def remind(self) -> Packet | None:
        """Repeat the last acknowledgement for the old path; None if none is known."""
        self._count_missed()
        last = self.last
        at = None if last is None else locate(last)
        return None if last is None or at is None else self._bare_for_old(last, at)

    def _count_missed(self) -> None:
        """Know what has come on the old path and was not counted here.

        All that is acknowledged below the peer's cutoff has; a kernel may have been in the middle of a packet when this
        anchor asked it where it stands.
        """
        if self.peer_cutoff is not None and not self.forced:
            self.old_rcvd = later(self.old_rcvd, earlier(self.answered, self.peer_cutoff))

    def _is_stale(self, ack: int) -> bool:
        """Whether the new path has said as much: a reminder of it would look like a request to send again."""
        return distance(ack, self.acked) < 0 or ack == self.acked == self.cutoff

    def _is_copy(self, packet: Packet, at: Located) -> bool:
        """Whether the old path has given the same; an endpoint that has closed would answer it with a reset."""
        if at.payload_len or at.flags & FIN or not at.ack == self.acked == self.cutoff:
            return False
        window, self.copied = self.copied, None
        same = window in (at.window, max(at.window, _LEAST_WINDOW))
        return same and all(kind != SACK for kind, *_ in walk(packet, at))

    def _reset(self, packet: Packet, at: Located) -> tuple[list[Packet], list[Packet]]:
        old = packet.copy()
        renumber(old, _located(old), seq=earlier(at.seq, self.cutoff), ack=earlier(at.ack, self.old_rcvd))
        return [old], [packet]

    def _for_old(self, packet: Packet, at: Located | None) -> Packet:
        """Numbers that the old path may see: never above the own cutoff, never an ack above what it delivered."""
        at = at or _located(packet)
        ack = earlier(at.ack, self.old_rcvd)
        renumber(packet, at, seq=earlier(at.seq, self.cutoff), ack=ack)
        edit_sack(packet, at, self._old_block)
        self.told_old = later(self.told_old, ack)
        return packet

    def _bare_for_old(self, packet: Packet, at: Located) -> Packet:
        seq = earlier(self.top, self.cutoff)
        return self._for_old(bare(packet, at, seq, at.ack, _LEAST_WINDOW), None)

    def _for_new(self, packet: Packet, at: Located | None) -> Packet:
        at = at or _located(packet)
        if self.ack_limit is not None:
            renumber(packet, at, ack=earlier(at.ack, self.ack_limit))
        edit_sack(packet, at, self._new_block)
        return packet

    def _is_limited(self, ack: int) -> bool:
        return self.ack_limit is not None and distance(ack, self.ack_limit) > 0

    def _old_block(self, left: int, right: int) -> tuple[int, int] | None:
        right = earlier(right, self.old_rcvd)
        return (left, right) if distance(right, left) > 0 else None

    def _new_block(self, left: int, right: int) -> tuple[int, int] | None:
        left = later(left, self.old_rcvd)
        return (left, right) if distance(right, left) > 0 else None

    def _known_block(self, left: int, right: int) -> tuple[int, int] | None:
        left = later(left, self.cutoff)
        return (left, right) if distance(right, left) > 0 else None


def _is_question(at: Located, top: int) -> bool:
    """Whether a bare ACK lies so far behind that no end has made it, but an agent that asks one where it stands."""
    return at.flags == ACK and not at.payload_len and distance(at.seq, top) < -FAR // 2


def _located(packet: Packet) -> Located:
    at = locate(packet)
    assert at is not None
    return at
