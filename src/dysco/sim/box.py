"""Middleboxes of the simulator: what a kernel that forwards would do to a packet.

A box takes a packet and the side it came from and returns the packets that leave by the other side. The boxes
judge as real ones do: a firewall drops what no SYN announced, a NAT knows only what it has translated.
"""

from __future__ import annotations

from typing import Literal, Protocol

from dysco.protocol.flow import Flow, Translation
from dysco.wire.packet import ACK, RST, SYN, Packet, locate
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple

Side = Literal["left", "right"]


class Box(Protocol):
    """What the simulator asks of a middlebox."""

    changes_tuple: bool
    dropped: int

    def forward(self, packet: Packet, side: Side) -> list[Packet]:
        """Take a packet that came in on `side`; return what goes out."""
        ...


class Firewall:
    """Forwards sessions whose SYN it has seen, from either side; drops all else."""

    changes_tuple = False

    def __init__(self) -> None:
        self.dropped = 0
        self.known: set[FiveTuple] = set()

    def forward(self, packet: Packet, side: Side) -> list[Packet]:
        at = locate(packet)
        if at is None:
            self.dropped += 1
            return []
        if at.flags & SYN and not at.flags & ACK:
            self.known.add(at.five_tuple)
        elif at.five_tuple not in self.known and at.five_tuple.reversed() not in self.known:
            self.dropped += 1
            return []
        if at.flags & RST:
            pass
        return [packet]


class Renumber:
    """Gives sessions other initial numbers, as firewalls do that do not trust an endpoint's choice.

    forward, backward: what is added to the numbers of the SYN's direction and of the other one, modulo 2**32.
    """

    changes_tuple = False

    def __init__(self, forward: int, backward: int) -> None:
        self.forward_sum = forward
        self.backward_sum = backward
        self.dropped = 0
        self._sessions: set[FiveTuple] = set()

    def forward(self, packet: Packet, side: Side) -> list[Packet]:
        at = locate(packet)
        if at is None:
            self.dropped += 1
            return []
        seen = at.five_tuple
        if at.flags & SYN and not at.flags & ACK:
            self._sessions.add(seen)
        if seen in self._sessions:
            translation = Translation(self.forward_sum, -self.backward_sum)
        elif seen.reversed() in self._sessions:
            translation = Translation(self.backward_sum, -self.forward_sum)
        else:
            self.dropped += 1
            return []
        apply(packet, Flow(0, seen, 0, seen, translation=translation))
        return [packet]


class SourceNat:
    """Gives sessions a source address and ports of its own, as MASQUERADE does."""

    changes_tuple = True

    def __init__(self, address: bytes, first_port: int = 20000) -> None:
        self.address = address
        self.dropped = 0
        self._next = first_port
        self._out: dict[FiveTuple, FiveTuple] = {}
        self._back: dict[FiveTuple, FiveTuple] = {}

    def forward(self, packet: Packet, side: Side) -> list[Packet]:
        at = locate(packet)
        if at is None:
            self.dropped += 1
            return []
        seen = at.five_tuple
        new = self._back.get(seen) or self._out.get(seen)
        if new is None:
            if not at.flags & SYN or at.flags & ACK:
                self.dropped += 1
                return []
            new = FiveTuple.of(self.address, self._next, seen.dst, seen.dport)
            self._next += 1
            self._out[seen] = new
            self._back[new.reversed()] = seen.reversed()
        apply(packet, Flow(0, seen, 0, new))
        return [packet]
