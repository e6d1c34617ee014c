"""Where the bytes of a stream stand after a box has changed it.

Knows positions only: what came in is counted in the sender's numbers, what goes out in the receiver's; both
without wrap-around. A segment of the map says that bytes [a, b) that came in became bytes [c, d) that go out. Inside
a segment positions are interpolated, always rounded so that

* an acknowledgement never covers more than was acknowledged: while one byte of [c, d) is missing at the receiver,
  one byte of [a, b) stays unacknowledged at the sender, and its retransmission asks for the missing one;
* what a sender repeats because it is neither acknowledged nor SACKed covers all that the receiver misses.

So the sender's own retransmission carries the rewritten stream too, and the box needs no timer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Boundaries:
    """A monotone map between two streams. FIN is the last position of each."""

    __slots__ = ("_ins", "_outs")

    def __init__(self, start: int) -> None:
        self._ins = [start]
        self._outs = [start]

    @property
    def in_end(self) -> int:
        """The next position that is to come in."""
        return self._ins[-1]

    @property
    def out_end(self) -> int:
        """The position behind all that was made."""
        return self._outs[-1]

    @property
    def delta(self) -> int:
        """How much longer the stream has become; negative: shorter."""
        return self._outs[-1] - self._ins[-1]

    def __len__(self) -> int:
        return len(self._ins) - 1

    def add(self, taken: int, given: int) -> None:
        """The next `taken` positions (at least one) have become `given` ones."""
        ins, outs = self._ins, self._outs
        if taken == given and len(ins) > 1 and ins[-1] - ins[-2] == outs[-1] - outs[-2]:
            # Two neighbours that keep the length are one: a stream that is not changed has a map of one segment.
            ins[-1] += taken
            outs[-1] += given
        else:
            ins.append(ins[-1] + taken)
            outs.append(outs[-1] + given)

    def out_from(self, position: int) -> int:
        """From where to send again if the sender repeats from `position`."""
        ins, outs = self._ins, self._outs
        i = bisect_right(ins, position) - 1
        if i < 0:
            return outs[0] - (ins[0] - position)
        if i == len(ins) - 1:
            return outs[-1] + (position - ins[-1])
        a, c = ins[i], outs[i]
        return c + (position - a) * (outs[i + 1] - c) // (ins[i + 1] - a)

    def out_to(self, position: int) -> int:
        """Up to where to send again if the sender repeats up to `position`."""
        ins, outs = self._ins, self._outs
        i = bisect_left(ins, position) - 1
        if i < 0:
            return outs[0] - (ins[0] - position)
        if i == len(ins) - 1:
            return outs[-1] + (position - ins[-1])
        a, c = ins[i], outs[i]
        return c - (-(position - a) * (outs[i + 1] - c) // (ins[i + 1] - a))

    def in_acked(self, position: int) -> int:
        """What the sender may take as acknowledged when the receiver has acknowledged `position`."""
        ins, outs = self._ins, self._outs
        i = bisect_right(outs, position) - 1
        if i < 0:
            return ins[0] - (outs[0] - position)
        if i == len(outs) - 1:
            return ins[-1]
        a, c = ins[i], outs[i]
        return a + (position - c) * (ins[i + 1] - a) // (outs[i + 1] - c)

    def in_sacked(self, start: int, end: int) -> tuple[int, int] | None:
        """The part of the sender's bytes that a SACK block of the receiver covers wholly; None: not one byte."""
        ins, outs = self._ins, self._outs
        if not outs[0] <= start < end <= outs[-1]:
            return None
        i = bisect_right(outs, start) - 1
        a, c = ins[i], outs[i]
        low = a - (-(start - c) * (ins[i + 1] - a) // (outs[i + 1] - c))  # rounded up
        i = bisect_left(outs, end) - 1
        a, c = ins[i], outs[i]
        high = a + (end - c) * (ins[i + 1] - a) // (outs[i + 1] - c)
        return (low, high) if low < high else None

    def forget(self, position: int) -> None:
        """Nothing before `position` of what goes out is asked for again."""
        ins, outs = self._ins, self._outs
        i = bisect_right(outs, position) - 1
        if i > 0:
            del ins[:i], outs[:i]
        if len(ins) > 1 and position > outs[0] and ins[1] - ins[0] == outs[1] - outs[0]:
            ins[0] += position - outs[0]
            outs[0] = position
