"""Middleboxes of the proofs: two that change the length of a stream, one that renumbers it."""

from __future__ import annotations

import random
from typing import ClassVar

import dysco
from dysco.middlebox import Direction, Packet, Session
from dysco.wire.edit import edit_sack, renumber
from dysco.wire.numbers import MASK32
from dysco.wire.packet import locate


class Words(dysco.StreamMiddlebox):
    """Puts one word in place of another, whole lines at a time: grows forward, shrinks backward."""

    words: ClassVar = {Direction.FORWARD: (b"sheep", b"elephant"), Direction.BACKWARD: (b"cow", b"")}

    def __init__(self) -> None:
        self.held: dict[tuple[Session, Direction], bytes] = {}

    def data(self, session: Session, direction: Direction, chunk: bytes) -> bytes:
        whole, end, rest = (self.held.get((session, direction), b"") + chunk).rpartition(b"\n")
        self.held[session, direction] = rest
        return (whole + end).replace(*self.words[direction])

    def end(self, session: Session, direction: Direction) -> bytes:
        return self.held.pop((session, direction), b"")

    def may_leave(self, session: Session) -> bool:
        """Between lines."""
        return not any(self.held.get((session, direction)) for direction in Direction)


class Sdrow(Words):
    """The other way round: shrinks forward, grows backward."""

    words: ClassVar = {Direction.FORWARD: (b"sheep", b"emu"), Direction.BACKWARD: (b"cow", b"rhinoceros")}


class Renumber(dysco.Middlebox):
    """Adds something of its own to the numbers of each direction of a session, as firewalls do that hide ISNs."""

    def __init__(self) -> None:
        self.added: dict[Session, dict[Direction, int]] = {}

    def opened(self, session: Session) -> None:
        self.added[session] = {direction: random.getrandbits(32) for direction in Direction}

    def packet(self, session: Session, direction: Direction, packet: Packet) -> Packet:
        at = locate(packet)
        added = self.added[session]
        other = Direction.BACKWARD if direction is Direction.FORWARD else Direction.FORWARD
        if at is not None:
            back = added[other]
            edit_sack(packet, at, lambda left, right: ((left - back) & MASK32, (right - back) & MASK32))
            renumber(packet, at, seq=(at.seq + added[direction]) & MASK32, ack=(at.ack - back) & MASK32)
        return packet

    def closed(self, session: Session) -> None:
        self.added.pop(session, None)
