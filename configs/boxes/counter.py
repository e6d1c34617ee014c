"""A middlebox in Python that counts what passes, and says so in a file.

    [[box]]
    name = "counter"
    kind = "packet"
    python = "counter.py:Counter"

The file is `counter.txt` in the directory in which the agent runs.
"""

from __future__ import annotations

from pathlib import Path

import dysco
from dysco.middlebox import Direction, Packet, Session


class Counter(dysco.Middlebox):
    """Counts packets of each direction of each session; changes nothing."""

    def __init__(self) -> None:
        self.counts: dict[Session, dict[Direction, int]] = {}

    def opened(self, session: Session) -> None:
        """Begin to count, and say so."""
        self.counts[session] = dict.fromkeys(Direction, 0)
        self.say(f"{session}: begins")

    def packet(self, session: Session, direction: Direction, packet: Packet) -> Packet:
        """Count the packet and let it pass."""
        self.counts[session][direction] += 1
        return packet

    def closed(self, session: Session) -> None:
        """Write down what was counted."""
        counts = self.counts.pop(session)
        forward, backward = counts[Direction.FORWARD], counts[Direction.BACKWARD]
        self.say(f"{session}: ended after {forward} packets forward, {backward} backward")

    def say(self, line: str) -> None:
        """Write a line into the file."""
        with Path("counter.txt").open("a") as file:
            file.write(line + "\n")
