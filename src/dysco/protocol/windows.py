"""Receive windows where a proxy leaves: nobody is let send more over the new path than the end there takes.

A proxy's window says what the proxy takes. What is sent beyond the cutoff goes to the other end, whose window may be
far smaller, and whose turn comes only when the old path has brought what lies before. So while there are two paths, an
anchor lets the windows of the old path reach no further than the cutoff, or the right edge of the other end's own
window where that is known and lies beyond: the other anchor tells it with the cutoff, and acknowledgements on the new
path do. What was offered before the switch cannot be taken back; an end that uses it all at once repeats what does not
fit. Once there is one path the windows are the other end's own.

All numbers are those of the anchor, modulo 2**32.
"""

from __future__ import annotations

from typing import Final

from dysco.protocol.chain import SAME_TERMS, SEEN, Chain, scales
from dysco.wire.numbers import distance, later
from dysco.wire.packet import ACK, RST, Located, Packet, set_word

_WINDOW_OFFSET: Final = 14


class Windows:
    """What one anchor knows. own: right edge of the inner end's window; limit: of the other end's; None: not known.

    inner, outer: window scales of what the inner end sends, and of what it is given.
    """

    __slots__ = ("inner", "limit", "outer", "own")

    def __init__(self, inner: int, outer: int) -> None:
        self.inner = inner
        self.outer = outer
        self.own: int | None = None
        self.limit: int | None = None

    def from_inside(self, at: Located) -> None:
        """See what the inner end offers."""
        if at.flags & ACK and not at.flags & RST:
            edge = at.ack + (at.window << self.inner)
            self.own = edge if self.own is None else later(self.own, edge)

    def learn(self, edge: int) -> None:
        """The other end takes what lies before `edge`."""
        self.limit = edge if self.limit is None else later(self.limit, edge)

    def from_new(self, at: Located) -> None:
        """See what the other end offers, in the numbers and the scale of the inner side."""
        if at.flags & ACK and not at.flags & RST:
            self.learn(at.ack + (at.window << self.outer))

    def clamp(self, packet: Packet, at: Located, cutoff: int) -> bool:
        """Let the window of a packet for the inner end reach no further than it may; whether it did."""
        if not at.flags & ACK or at.flags & RST:
            return False
        edge = cutoff if self.limit is None else later(cutoff, self.limit)
        room = max(0, distance(edge, at.ack)) >> self.outer
        if at.window <= room:
            return False
        set_word(packet, at, _WINDOW_OFFSET, room)
        return True


def windows(chain: Chain, *, inner_left: bool) -> Windows | None:
    """Make the windows of an anchor; None if its inner end's scales are not known.

    inner_left: whether the inner end is the left one, as it is for a left anchor.
    """
    facing = chain.left if inner_left else chain.right
    if facing is None or (facing.seam is not None and facing.seam.terms != SAME_TERMS):
        return None
    halves = facing.forward, facing.backward
    if not all(half.flags & SEEN for half in halves):
        return None
    left, right = scales(halves)
    return Windows(left, right) if inner_left else Windows(right, left)
