"""Reports as they lie in the kernel's ring."""

from __future__ import annotations

import struct

from dysco.dataplane import opening
from dysco.dataplane.opening import Openings
from dysco.dataplane.steer import OUT, PAGE
from dysco.protocol.flow import HOST
from dysco.protocol.reports import Kind, Report
from dysco.wire.tuples import FiveTuple

_HEAD = struct.Struct("=II")
HALF = bytes(8)


def began(match: FiveTuple, ticket: int, header: bytes) -> bytes:
    """A record of a SYN that has taken a ticket of the first neighbour, by the second rule."""
    key = (match.src.ljust(16, b"\0"), match.dst.ljust(16, b"\0"), match[-4:], match.family, OUT)
    body = opening._REPORT.pack(int(Kind.BEGAN), 1, 2, ticket, HALF, len(header), *key) + header.ljust(
        248, b"\0"
    )
    return _HEAD.pack(len(body), 0) + body


def test_the_highest_ticket_counts_whatever_order_processors_report_in() -> None:
    matches = [FiveTuple.of(bytes((10, 0, 0, 1)), 1000 + one, bytes((10, 0, 0, 2)), 80) for one in range(3)]
    records = b"".join(
        began(match, ticket, b"header") for match, ticket in zip(matches, (5, 7, 6), strict=True)
    )
    openings = object.__new__(Openings)
    openings.tickets = {}
    openings._position = 0
    openings._ring = struct.pack("=Q", len(records)).ljust(PAGE, b"\0") + records  # type: ignore[assignment]
    found = list(openings.reports({2: "web"}))
    assert found == [Report(Kind.BEGAN, HOST, match, HALF, b"header", "web") for match in matches]
    assert openings.tickets == {(1, 4): 7}
