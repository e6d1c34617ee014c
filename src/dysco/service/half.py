"""One direction of a stream that a box rewrites: bytes in order in, rewritten bytes kept until acknowledged.

Knows positions, bytes and windows; knows nothing of packets. Positions are those of TCP without wrap-around: the
first byte is at ISN + 1, FIN takes the position behind the last byte.

    sender --> early (out of order) --> box --> held: [una ... sent ... out_end) --> receiver
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final

from dysco.service.boundary import Boundaries

EARLY_LIMIT: Final = 8 << 20
"""Bytes ahead of a hole that are kept; ours: above the largest receive buffer that Linux gives by itself (6 MiB)."""
UNSENT_LIMIT: Final = 8 << 20
"""Bytes made but not yet wanted by the receiver, from which on the sender's data wait for a retransmission."""
DEFAULT_MSS: Final = 536  # RFC 9293 section 3.7.1
_MASK: Final = 0xFFFFFFFF


def unwrap(number: int, near: int) -> int:
    """The position that a sequence number means, closest to `near` (RFC 9293 section 3.4)."""
    return near + ((number - near + 0x80000000) & _MASK) - 0x80000000


class Half:
    """One direction, from the first byte to FIN.

    una, sent, edge: positions that go out; acknowledged, sent and allowed by the receiver's window up to there.
    told, told_window, promised: what the sender was last told, and the right edge that it may use since then.
    owed: packets ahead of a hole that were not answered yet.
    """

    __slots__ = (
        "_base",
        "_data",
        "_early",
        "_end",
        "_held",
        "_starts",
        "edge",
        "fin_in",
        "fin_out",
        "limit",
        "map",
        "mss",
        "owed",
        "promised",
        "sent",
        "shift",
        "told",
        "told_window",
        "una",
    )

    def __init__(self, start: int, data: Callable[[bytes], bytes], end: Callable[[], bytes]) -> None:
        self._data = data
        self._end = end
        self.map = Boundaries(start)
        self.una = self.sent = self.edge = start
        self.told = start
        self.told_window = 0
        self.promised = start
        self.shift = 0
        self.mss = DEFAULT_MSS
        self.limit = 1 << 16
        self.owed = 0
        self.fin_in: int | None = None
        self.fin_out: int | None = None
        self._held = bytearray()
        self._base = start
        self._starts: list[int] = []
        self._early: list[bytearray] = []

    @property
    def in_acked(self) -> int:
        """What the sender may take as acknowledged."""
        return self.map.in_acked(self.una)

    @property
    def window(self) -> int:
        """Bytes that the sender may send from `in_acked` on: the receiver's window less what the box has added.

        Its right edge never moves back (RFC 9293 section 3.8.6): a sender that finds what it has under way outside
        its window repeats but a byte at a time, and its repetition is what carries ours.
        """
        free = self.map.in_end + max(0, self.edge - self.map.out_end)
        return max(free, self.promised) - self.in_acked

    def tell(self, window: int) -> None:
        """The sender is told `in_acked` and so many bytes of window."""
        self.told, self.told_window = self.in_acked, window
        self.promised = max(self.promised, self.told + (min(window >> self.shift, 0xFFFF) << self.shift))

    @property
    def has_hole(self) -> bool:
        """Whether bytes are here that cannot be given to the box before others come."""
        return bool(self._starts)

    @property
    def is_over(self) -> bool:
        """Whether FIN was acknowledged."""
        return self.fin_out is not None and self.una > self.fin_out

    def segment(self, options_len: int) -> int:
        """The largest payload of one packet with so many bytes of TCP options."""
        return max(1, min(self.mss, self.limit) - options_len)

    def take(self, start: int, payload: bytes, fin: bool) -> None:
        """Take bytes that begin at or before the end of what is known, or behind a hole."""
        end = start + len(payload)
        if self.map.out_end - self.sent > UNSENT_LIMIT or end > self.map.in_end + EARLY_LIMIT:
            return
        if fin and self.fin_in is None and end >= self.map.in_end:
            self.fin_in = end
        if self.fin_in is not None and end > self.fin_in:
            payload = payload[: max(0, self.fin_in - start)]
        if start > self.map.in_end:
            if payload:
                self._keep(start, payload)
        else:
            self._rewrite(payload[self.map.in_end - start :])
            while self._starts and self._starts[0] <= self.map.in_end:
                at, more = self._starts.pop(0), self._early.pop(0)
                self._rewrite(bytes(more[self.map.in_end - at :]))
        if self.fin_in == self.map.in_end and self.fin_out is None:
            last = self._end()
            self._held += last
            self.map.add(1, len(last) + 1)
            self.fin_out = self.map.out_end - 1

    def acked(self, position: int) -> None:
        """The receiver has everything before `position`; it is not beyond `sent`."""
        self.una = position
        done = min(position - self._base, len(self._held))
        del self._held[:done]
        self._base += done
        self.map.forget(position)

    def read(self, start: int, end: int) -> bytes:
        """What is held of the bytes between two positions."""
        return bytes(memoryview(self._held)[start - self._base : end - self._base])

    @property
    def data_end(self) -> int:
        """The position behind the last byte that is held."""
        return self._base + len(self._held)

    def sendable(self) -> int:
        """Up to where new bytes may be sent now."""
        end = self.map.out_end
        limit = min(end, max(self.edge, self.sent))
        if limit == self.fin_out:
            return end  # FIN alone needs no window
        # No small packets into a small window while others are under way (RFC 9293 section 3.8.6.2.1).
        if limit < end and limit - self.sent < self.segment(0) and self.sent > self.una:
            return self.sent
        return limit

    def repeated(self, start: int, end: int) -> tuple[int, int]:
        """What to send again if the sender repeats [start, end); empty if the first is not below the second."""
        first = max(self.map.out_from(start), self.una)
        return first, min(self.map.out_to(min(end, self.map.in_end)), self.sent)

    def out_of(self, position: int) -> int:
        """The sequence number to use for a packet without data."""
        if position >= self.map.in_end:
            return self.sent
        acked = self.in_acked
        if position < acked:
            return self.una - (acked - position)
        return min(self.map.out_from(position), self.sent)

    def blocks(self) -> list[tuple[int, int]]:
        """The ranges that are kept behind a hole, lowest first."""
        return [(at, at + len(more)) for at, more in zip(self._starts, self._early, strict=True)]

    def _rewrite(self, payload: bytes) -> None:
        if payload:
            made = self._data(payload)
            self._held += made
            self.map.add(len(payload), len(made))

    def _keep(self, start: int, payload: bytes) -> None:
        starts, early = self._starts, self._early
        end = start + len(payload)
        i = bisect_right(starts, start) - 1
        if i >= 0 and start <= starts[i] + len(early[i]):
            early[i] += payload[starts[i] + len(early[i]) - start :]
        else:
            i += 1
            starts.insert(i, start)
            early.insert(i, bytearray(payload))
        while i + 1 < len(starts) and starts[i + 1] <= end:
            early[i] += early[i + 1][max(0, starts[i] + len(early[i]) - starts[i + 1]) :]
            del starts[i + 1], early[i + 1]
