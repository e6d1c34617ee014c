"""Reports as they lie in the kernel's ring."""

from __future__ import annotations

import struct
from collections import Counter

from dysco.dataplane.opening import Openings
from dysco.dataplane.steer import OUT, PAGE, pack_key
from dysco.protocol.flow import HOST
from dysco.protocol.reports import Kind, Report
from dysco.wire.tuples import FiveTuple

_HEAD = struct.Struct("=II")
_REPORT = struct.Struct("=B3xIII8sH6x40s")
HALF = bytes(8)
TUPLES = [FiveTuple.of(bytes((10, 0, 0, 1)), 1000 + one, bytes((10, 0, 0, 2)), 80) for one in range(3)]
OF_IPV6 = FiveTuple.parse("[fd00::1]:1000 > [fd00::2]:80")


def record(kind: Kind, neighbour: int, match: FiveTuple, ticket: int, header: bytes) -> bytes:
    """A record of a SYN, by the second rule."""
    body = _REPORT.pack(int(kind), neighbour, 2, ticket, HALF, len(header), pack_key(match, OUT))
    body += header.ljust(248, b"\0")
    return _HEAD.pack(len(body), 0) + body


def ring(*records: bytes) -> Openings:
    """What reads them."""
    openings = object.__new__(Openings)
    openings.tickets, openings.begun = {}, Counter()
    openings._position = 0
    size = sum(map(len, records))
    openings._ring = struct.pack("=Q", size).ljust(PAGE, b"\0") + b"".join(records)  # type: ignore[assignment]
    return openings


def test_the_highest_ticket_counts_whatever_order_processors_report_in() -> None:
    openings = ring(
        *(
            record(Kind.BEGAN, 1, match, ticket, b"header")
            for match, ticket in zip(TUPLES, (5, 7, 6), strict=True)
        )
    )
    found = list(openings.reports({2: "web"}))
    assert found == [Report(Kind.BEGAN, HOST, match, HALF, b"header", "web") for match in TUPLES]
    assert openings.tickets == {(1, 4): 7}
    assert not openings.begun


def test_chains_that_neighbours_begin_are_counted() -> None:
    openings = ring(*(record(Kind.ARRIVED, neighbour, TUPLES[0], 0, b"header") for neighbour in (3, 4, 3)))
    assert len(list(openings.reports({}))) == 3
    assert openings.begun == {3: 2, 4: 1}


def test_a_report_says_what_its_kind_has_to_say() -> None:
    kinds = (Kind.BEGAN, Kind.ANSWERED, Kind.ENDED)
    for match in (TUPLES[0], OF_IPV6):
        found = [
            Report.of(one) for one in ring(*(record(kind, 1, match, 0, b"h") for kind in kinds)).reports({})
        ]
        assert found == [
            Report(Kind.BEGAN, HOST, match, HALF, b"h"),
            Report(Kind.ANSWERED, HOST, match, HALF),
            Report(Kind.ENDED, HOST, match),
        ]
