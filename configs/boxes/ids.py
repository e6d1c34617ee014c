"""A small intrusion detection in Python: it looks for a pattern and cuts the session off.

    [[box]]
    name = "ids"
    kind = "packet"
    python = "ids.py:Ids"

It looks at the payload of each packet and at the end of the one before, so a pattern that is cut in two by TCP is
found too; what comes out of order is not put in order (a `stream` box would see it so). Alerts are written to
`alerts.txt` in the directory in which the agent runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import dysco
from dysco.middlebox import Direction, Packet, Session
from dysco.wire.packet import locate


class Ids(dysco.Middlebox):
    """Drops every packet of a session from the one on that completes the pattern."""

    pattern: ClassVar[bytes] = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR"

    def __init__(self) -> None:
        self.tails: dict[tuple[Session, Direction], bytes] = {}
        self.bad: set[Session] = set()

    def packet(self, session: Session, direction: Direction, packet: Packet) -> Packet | None:
        """Look for the pattern; None drops the packet."""
        if session in self.bad:
            return None
        at = locate(packet)
        if at is None or not at.payload_len:
            return packet
        seen = self.tails.get((session, direction), b"") + packet.data[at.payload_offset : at.total_len]
        if self.pattern in seen:
            self.bad.add(session)
            with Path("alerts.txt").open("a") as file:
                file.write(f"{session}: pattern seen {direction.value}\n")
            return None
        self.tails[session, direction] = bytes(seen[1 - len(self.pattern) :])
        return packet

    def closed(self, session: Session) -> None:
        """Forget the session."""
        self.bad.discard(session)
        for direction in Direction:
            self.tails.pop((session, direction), None)
