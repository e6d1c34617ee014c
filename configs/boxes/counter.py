"""A middlebox in Python that counts what passes, and says so in a file.

    [[box]]
    name = "counter"
    kind = "packet"
    python = "counter.py:Counter"
    state = "python"

With the last line the counts of a session go along when a counter on another host takes over. The file is
`counter.txt` in the directory in which the agent runs.
"""

from __future__ import annotations

import json
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

    def export_state(self, session: Session) -> bytes:
        """Give the counts to the counter that takes over."""
        counts = self.counts[session]
        return json.dumps([counts[Direction.FORWARD], counts[Direction.BACKWARD]]).encode()

    def import_state(self, session: Session, state: bytes) -> None:
        """Go on from the counts of the counter before."""
        counts = json.loads(state)
        if not isinstance(counts, list) or [type(count) for count in counts] != [int, int] or min(counts) < 0:
            raise ValueError("not two counts")
        self.counts[session] = dict(zip(Direction, counts, strict=True))

    def closed(self, session: Session) -> None:
        """Write down what was counted."""
        counts = self.counts.pop(session)
        forward, backward = counts[Direction.FORWARD], counts[Direction.BACKWARD]
        self.say(f"{session}: ended after {forward} packets forward, {backward} backward")

    def say(self, line: str) -> None:
        """Write a line into the file."""
        with Path("counter.txt").open("a") as file:
            file.write(line + "\n")
