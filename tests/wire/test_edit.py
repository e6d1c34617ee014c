"""Packets renumbered, cut in two, stripped to their acknowledgement; SACK blocks moved and taken out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dysco.wire.edit import bare, edit_sack, renumber, split
from dysco.wire.numbers import distance, earlier, later
from dysco.wire.options import NOP, SACK, walk
from dysco.wire.packet import (
    ACK,
    CWR,
    FIN,
    PSH,
    URG,
    Located,
    Packet,
    build_tcp,
    fix_checksums,
    locate,
    verify,
)
from dysco.wire.tuples import FiveTuple
from wire.strategies import U32, packets

FOUR = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")
MASK = 0xFFFFFFFF


def read(packet: Packet) -> Located:
    at = locate(packet)
    assert at is not None
    assert at.total_len == len(packet.data)
    return at


@given(U32, st.integers(0, 2**31 - 1))
def test_what_is_ahead_stays_ahead_across_the_wrap(start: int, by: int) -> None:
    ahead = (start + by) & MASK
    assert distance(ahead, start) == by
    assert distance(start, ahead) == -by
    assert later(start, ahead) == later(ahead, start) == ahead
    assert earlier(start, ahead) == earlier(ahead, start) == start


@given(packets(), st.none() | U32, st.none() | U32)
def test_other_numbers(packet: Packet, seq: int | None, ack: int | None) -> None:
    before, old = bytes(packet.data), read(packet)
    at = renumber(packet, read(packet), seq=seq, ack=ack)
    assert at == read(packet)
    assert verify(packet)
    assert at.seq == (old.seq if seq is None else seq)
    assert at.ack == (ack if ack is not None and old.flags & ACK else old.ack)
    tcp, field = at.tcp_offset, at.tcp_offset + 16
    kept = bytes(packet.data)
    assert kept[: tcp + 4] == before[: tcp + 4]
    assert kept[tcp + 12 : field] == before[tcp + 12 : field]
    assert kept[field + 2 :] == before[field + 2 :]


@given(packets(), U32, U32, st.integers(0, 65535))
def test_an_acknowledgement_alone(packet: Packet, seq: int, ack: int, least: int) -> None:
    old = read(packet)
    made = bare(packet, old, seq, ack, least)
    at = read(made)
    assert verify(made)
    assert not made.partial
    assert (at.seq, at.ack, at.payload_len, at.five_tuple) == (seq, ack, 0, old.five_tuple)
    assert at.window == max(old.window, least)
    assert at.flags == old.flags & ~(FIN | PSH | URG | CWR)
    options = slice(old.tcp_offset + 20, old.payload_offset)
    assert made.data[options] == packet.data[options]


@given(packets(), st.data())
def test_two_parts_are_the_whole(packet: Packet, data: st.DataObject) -> None:
    old = read(packet)
    most = old.payload_len - (not old.flags & FIN)
    assume(most >= 0)
    length = data.draw(st.integers(0, most))
    packet.gso_size = data.draw(st.integers(0, 60))
    first, second = split(packet, old, length)
    one, two = read(first), read(second)
    assert verify(first)
    assert verify(second)
    assert (first.partial, second.partial) == (packet.partial, packet.partial)
    assert (one.seq, one.payload_len) == (old.seq, length)
    assert (two.seq, two.payload_len) == ((old.seq + length) & MASK, old.payload_len - length)
    whole = packet.data[old.payload_offset :]
    assert first.data[one.payload_offset :] + second.data[two.payload_offset :] == whole
    assert one.flags == old.flags & ~(FIN | PSH)
    assert two.flags == old.flags & ~CWR
    for part, at in ((first, one), (second, two)):
        assert part.gso_size == (packet.gso_size if at.payload_len > packet.gso_size else 0)


def sacked(*blocks: tuple[int, int], partial: bool = False, lead: bytes = b"\x01\x01") -> Packet:
    options = lead + bytes((SACK, 2 + 8 * len(blocks))) + b"".join(struct.pack("!II", *one) for one in blocks)
    packet = build_tcp(FOUR, 1, 2, ACK, 100, options, b"data")
    packet.partial = partial
    fix_checksums(packet, read(packet))
    return packet


def blocks_of(packet: Packet) -> list[tuple[int, int]]:
    return [
        struct.unpack_from("!II", packet.data, position + 2 + i)
        for kind, position, length in walk(packet, read(packet))
        if kind == SACK
        for i in range(0, length - 2, 8)
    ]


@given(
    st.lists(st.tuples(U32, U32), max_size=3), st.lists(st.booleans(), min_size=3), U32, st.booleans(),
    st.sampled_from((b"", b"\x01", b"\x01\x01")),
)  # fmt: skip
def test_sack_blocks_are_moved_and_taken_out(
    blocks: list[tuple[int, int]], keep: list[bool], by: int, partial: bool, lead: bytes
) -> None:
    packet = sacked(*blocks, partial=partial, lead=lead)
    before = read(packet)
    kept = iter(keep)
    asked = []

    def decide(left: int, right: int) -> tuple[int, int] | None:
        asked.append((left, right))
        return ((left + by) & MASK, (right + by) & MASK) if next(kept) else None

    edit_sack(packet, before, decide)
    assert asked == blocks
    assert verify(packet)
    assert read(packet) == before
    assert blocks_of(packet) == [
        ((left + by) & MASK, (right + by) & MASK)
        for (left, right), stays in zip(blocks, keep, strict=False)
        if stays
    ]
    assert packet.data.endswith(b"data")


def test_without_blocks_only_nops_are_left() -> None:
    packet = sacked((10, 20))
    edit_sack(packet, read(packet), lambda *_: None)
    at = read(packet)
    assert bytes(packet.data[at.tcp_offset + 20 : at.payload_offset]) == bytes((NOP,)) * 12


@pytest.mark.parametrize("options", [b"", b"\x05\x04\x00\x00", b"\x01\x01\x08\x0a" + bytes(8)])
def test_what_is_no_list_of_blocks_is_left_alone(options: bytes) -> None:
    packet = build_tcp(FOUR, 1, 2, ACK, 100, options)
    before = packet.copy()
    edit_sack(packet, read(packet), lambda *_: pytest.fail("nothing to ask"))
    assert packet.data == before.data
