"""Timestamps where two chains are joined (RFC 7323): each anchor translates those that come in from the other end.

A proxy has shown each end its own clock. When it goes, the ends see each other's, so the anchor beside an end adds a
constant to the timestamps that come in over the new path and takes it off their echoes. It chooses the constant from
what its own end was given last, which its echoes show, and from the other end's latest, which the other anchor tells.
What had passed before the anchor began to look may be newer, and still on its way to the end: the constant leaves room.
While there are two paths both clocks are in use; what would be a step back for the receiver (PAWS, section 5) is raised
to the latest that it was given, and the constant with it, so that it never has to be raised again afterwards.
"""

from __future__ import annotations

import struct
from typing import Final

from dysco.protocol.chain import Facing, Seam
from dysco.wire.checksum import add
from dysco.wire.numbers import MASK32, distance, earlier, later
from dysco.wire.options import TIMESTAMP, walk
from dysco.wire.packet import ACK, CHECKSUM_OFFSET, Located, Packet
from dysco.wire.rewrite import shift_at

_U16: Final = struct.Struct("!H")
_PAIR: Final = struct.Struct("!II")
AHEAD: Final = 1 << 12  # ours: ticks of room, mostly four seconds; what is on its way is not so much newer


class Stamps:
    """What one anchor knows of timestamps, in the numbers of its inner side.

    given: the latest that the inner side was given; own: the latest that it has sent; None: not seen yet. old: the
    latest that the old path has brought, new: the latest of the new one, translated. peer: the latest of the other end,
    in its own numbers. settled: the constant was chosen; least: what stood for `peer` then, None after a restart.
    """

    __slots__ = ("given", "least", "new", "old", "own", "peer", "settled")

    def __init__(self) -> None:
        self.given: int | None = None
        self.own: int | None = None
        self.old: int | None = None
        self.new: int | None = None
        self.peer: int | None = None
        self.least: int | None = None
        self.settled = False

    @property
    def is_known(self) -> bool:
        """Whether the inner side has shown what it was given last."""
        return self.given is not None and self.own is not None

    @property
    def latest(self) -> tuple[int, int, int]:
        """What a journal keeps: the latest that was given, that the old path has brought, and the new one."""
        given = self.given or 0
        return given, given if self.old is None else self.old, given if self.new is None else self.new

    def resume(self, given: int, old: int, new: int, *, settled: bool) -> None:
        """Go on after a restart with what was `latest`: an echo may be older than it need be, never newer."""
        self.given = given
        self.settled = settled
        if settled:
            self.old, self.new = old, new

    def from_inside(self, packet: Packet, at: Located) -> None:
        """See what the inner side sends: its own clock, and as an echo what it was given."""
        found = _find(packet, at)
        if found is None:
            return
        value, echo = _PAIR.unpack_from(packet.data, found)
        self.own = _later(self.own, value)
        if at.flags & ACK:
            self.given = _later(self.given, echo)

    def from_old(self, packet: Packet, at: Located) -> None:
        """Take a packet of the old path; its timestamp never goes back for the inner side."""
        found = _find(packet, at)
        if found is None:
            return
        value = _PAIR.unpack_from(packet.data, found)[0]
        self.old = _later(self.old, value)
        raised = _later(self.given, value)
        if self.settled:
            _write(packet, at, found, value, raised)
        self.given = raised

    def settle(self, facing: Facing) -> None:
        """Choose the constant from the other end's latest timestamp, once both are known.

        It lies ahead of all that may be on its way to the inner side: else an echo of that would be newer than what the
        other end has sent, and what that sends next older than what the inner side was given.
        """
        if not self.settled and self.given is not None and self.peer is not None:
            self.old = _later(self.old, self.given)
            self.given = self.new = self.least = (self.given + AHEAD) & MASK32
            _seam(facing).stamp = (self.given - self.peer) & MASK32
            self.settled = True

    def from_new(self, packet: Packet, at: Located, facing: Facing) -> None:
        """Take a packet of the new path, translated already; raise it, and the constant, if it would go back."""
        found = _find(packet, at)
        if found is None:
            return
        value = _PAIR.unpack_from(packet.data, found)[0]
        if self.given is not None and distance(value, self.given) < 0:
            seam = _seam(facing)
            seam.stamp = (seam.stamp + self.given - value) & MASK32
            _write(packet, at, found, value, self.given)
        else:
            self.given = value
        self.new = self.given

    def to_old(self, packet: Packet, at: Located) -> None:
        """Let the old path have no echo of what it has not sent."""
        _limit_echo(packet, at, self.old)

    def to_new(self, packet: Packet, at: Located) -> None:
        """Let the new path have no echo of what it has not sent, nor of what is older than the constant."""
        _limit_echo(packet, at, self.new, self.least)

    def finish(self, facing: Facing) -> None:
        """There is only the new path from here on: let its latest timestamp be the latest that was given."""
        if self.given is not None and self.new is not None:
            seam = _seam(facing)
            seam.stamp = (seam.stamp + self.given - self.new) & MASK32


def raw_stamp(packet: Packet, at: Located) -> int | None:
    """The timestamp of a packet as it is."""
    found = _find(packet, at)
    return None if found is None else int(_PAIR.unpack_from(packet.data, found)[0])


def _seam(facing: Facing) -> Seam:
    if facing.seam is None:
        facing.seam = Seam()
    return facing.seam


def _later(known: int | None, value: int) -> int:
    return value if known is None else later(known, value)


def _limit_echo(packet: Packet, at: Located, most: int | None, least: int | None = None) -> None:
    found = _find(packet, at)
    if found is None or most is None or not at.flags & ACK:
        return
    echo = _PAIR.unpack_from(packet.data, found)[1]
    _write(packet, at, found + 4, echo, earlier(most, echo if least is None else later(least, echo)))


def _find(packet: Packet, at: Located) -> int | None:
    """Where the timestamp of a packet stands."""
    for kind, position, length in walk(packet, at):
        if kind == TIMESTAMP and length == 10:
            return position + 2
    return None


def _write(packet: Packet, at: Located, position: int, old: int, new: int) -> None:
    if new == old:
        return
    delta = shift_at(packet.data, at.tcp_offset, position, new - old)
    if not packet.partial:
        field = at.tcp_offset + CHECKSUM_OFFSET
        _U16.pack_into(packet.data, field, add(_U16.unpack_from(packet.data, field)[0], delta))
