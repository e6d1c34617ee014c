"""Hypothesis strategies for packets, tuples and headers."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from dysco.wire.packet import Packet, build_tcp, fix_checksums, locate
from dysco.wire.tuples import FiveTuple

U32 = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from((0, 1, 0xFFFF, 0x10000, 2**31, 2**32 - 1)))


def tuples(family: int | None = None) -> st.SearchStrategy[FiveTuple]:
    """Five-tuples of one family, or of either."""
    sizes = {4: (12,), 6: (36,), None: (12, 36)}[family]
    return st.sampled_from(sizes).flatmap(lambda n: st.binary(min_size=n, max_size=n)).map(FiveTuple)


@st.composite
def option_lists(draw: st.DrawFn) -> bytes:
    """Well-formed TCP options of at most 28 bytes, in any order, with any alignment."""
    parts = draw(
        st.lists(
            st.one_of(
                st.just(b"\x01"),
                st.integers(0, 65535).map(lambda mss: struct.pack("!BBH", 2, 4, mss)),
                st.integers(0, 255).map(lambda shift: bytes((3, 3, shift))),
                st.just(b"\x04\x02"),
                st.tuples(U32, U32).map(lambda ts: struct.pack("!BBII", 8, 10, *ts)),
                st.tuples(U32, U32).map(lambda edges: struct.pack("!BBII", 5, 10, *edges)),
                st.binary(max_size=4).map(lambda body: bytes((200, 2 + len(body))) + body),
            ),
            max_size=5,
        )
    )
    options = b""
    for part in parts:
        if len(options) + len(part) <= 28:
            options += part
    return options


@st.composite
def packets(
    draw: st.DrawFn, flags: st.SearchStrategy[int] | None = None, partial: bool | None = None
) -> Packet:
    """TCP packets with right checksums, complete or partial."""
    packet = build_tcp(
        draw(tuples()),
        draw(U32),
        draw(U32),
        draw(flags if flags is not None else st.integers(0, 255)),
        draw(st.integers(0, 65535)),
        draw(option_lists()),
        draw(st.binary(max_size=50)),
        draw(st.integers(1, 255)),
    )
    packet.partial = draw(st.booleans()) if partial is None else partial
    at = locate(packet)
    assert at is not None
    fix_checksums(packet, at)
    return packet
