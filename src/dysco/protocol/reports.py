"""What the kernel reports of chains that it opens by itself.

BEGAN      a SYN of this host, sent to the first hop          ARRIVED    a SYN with a header, given to host or box
WENT_ON    a SYN out of the box, sent to the next hop         ANSWERED   a SYN-ACK has passed
ENDED      a FIN has passed
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from dysco.wire.tuples import FiveTuple, trusted


class Kind(IntEnum):
    """What a report tells; the module's drawing."""

    BEGAN = 1
    ARRIVED = 2
    WENT_ON = 3
    ANSWERED = 4
    ENDED = 5


class Report(NamedTuple):
    """One report. port and match: of the flow by which the packet came; half: what SYN or SYN-ACK announces, packed.

    header: the chain header as it was sent, or as it came (ARRIVED). policy: of BEGAN.
    """

    kind: Kind
    port: int
    match: FiveTuple
    half: bytes = b""
    header: bytes = b""
    policy: str = ""

    @classmethod
    def of(cls, plain: PlainReport) -> Report:
        """The same with its types."""
        kind, port, match, half, header, policy = plain
        return cls(Kind(kind), port, trusted(match), half, header, policy)


PlainReport = tuple[int, int, bytes, bytes, bytes, str]
"""A report of which each session has several: Python's garbage collection need not look at what is made of these."""
BEGAN: Final = int(Kind.BEGAN)
ARRIVED: Final = int(Kind.ARRIVED)
WENT_ON: Final = int(Kind.WENT_ON)
ANSWERED: Final = int(Kind.ANSWERED)
ENDED: Final = int(Kind.ENDED)
