"""What a relay has added to a stream, found by counting: bytes read on one side against bytes written on the other.

    source socket --read--> relay (holds some) --written--> sink socket        added = written - read + held

What the relay holds in its own memory cannot be seen. But it holds nothing when its source has nothing unread, its
sink's peer has acknowledged all, and nothing has moved for a moment: at rest. And written - read is never above what
was added; a transfer that never rests shows its true value again and again as the largest.

Knows counts only, neither programs nor first bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from dysco.adapters.sockets import Socket

REST_S: Final = 0.01  # ours: longer than a relay that was woken needs to pass on what it has read
_HITS: Final = 3  # ours: positions at which the largest difference of a busy transfer must have been seen
_CHANGES: Final = (
    3  # ours: a proxy whose difference changes so often works on the data, and does not only begin so
)


class Both(NamedTuple):
    """Two sockets of one program at one moment: one that a client opened, and one that the program opened."""

    left: Socket
    right: Socket


class Sum(NamedTuple):
    """What was added in one direction, or None, and why it is not known."""

    added: int | None
    why: str


class Way:
    """One direction of one pair, over all observations."""

    __slots__ = ("_changes", "_high", "_hits", "_resting", "_rests")

    def __init__(self) -> None:
        self._resting: int | None = None  # the difference at the latest rest
        self._rests: set[int] = set()  # positions of the source at which it was seen
        self._changes = 0
        self._high: int | None = None  # the largest difference of exact observations since the latest change
        self._hits: set[int] = set()

    def observe(self, source: tuple[Socket, Socket], sink: tuple[Socket, Socket], *, spaced: bool) -> None:
        """Take a source and its sink, each before and after; spaced: with REST_S between.

        The two spans of time must overlap. Data that moved meanwhile make it worth nothing.
        """
        (one, other), (begin, end) = source, sink
        if one.read != other.read or begin.written != end.written or not (begin.sure and end.sure):
            return
        difference = end.written - other.read
        rests = spaced and not (one.unread or other.unread or begin.unacked or end.unacked)
        if rests and difference != self._resting:
            if self._resting is not None and self._rests - {0}:
                self._changes += 1
            self._resting, self._rests = difference, set()
            self._high, self._hits = None, set()
        if rests:
            self._rests.add(other.read)
        if self._high is None or difference > self._high:
            self._high, self._hits = difference, set()
        if difference == self._high:
            self._hits.add(other.read)

    @property
    def restless(self) -> bool:
        """Whether it was never seen at rest."""
        return self._resting is None

    def sum(self, explained: Collection[int]) -> Sum:
        """Say what was added; explained: values for which there is a reason, 0 among them."""
        if self._changes >= _CHANGES:
            return Sum(None, "the program changes the data")
        if self._resting is not None:
            if self._high is not None and self._high > self._resting:
                return Sum(None, "the program had held data back when it seemed to rest")
            if self._resting in explained or len(self._rests) > 1:
                return Sum(self._resting, "")
            what = f"{abs(self._resting)} bytes {'more' if self._resting > 0 else 'fewer'}"
            return Sum(
                None, f"it has written {what} than it has read, and it is not known yet whether it goes on so"
            )
        if self._high in explained and len(self._hits) >= _HITS:
            return Sum(self._high, "")
        return Sum(None, "data move all the time, and it was never seen at rest")


class Tally:
    """Both directions of one pair."""

    __slots__ = ("left", "moved", "right")

    def __init__(self) -> None:
        self.right = Way()
        self.left = Way()
        self.moved = False

    @property
    def restless(self) -> bool:
        """Whether one direction was never seen at rest."""
        return self.right.restless or self.left.restless

    def observe(self, before: Both, after: Both, *, spaced: bool) -> None:
        """Take two observations of both sockets; in each, the left one was asked first."""
        self.right.observe((before.left, after.left), (before.right, after.right), spaced=spaced)
        self.left.observe((before.right, after.right), (before.left, after.left), spaced=spaced)
        self.moved = self.moved or after.left.written > 0 or after.right.written > 0
