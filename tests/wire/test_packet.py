"""Packets: read, edited, made; checksums in both forms."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.errors import WireError
from dysco.wire import options, vnet
from dysco.wire.checksum import add, add_partial, internet_sum
from dysco.wire.packet import (
    ACK,
    FIN,
    SYN,
    Packet,
    Reason,
    build_tcp,
    complete,
    locate,
    set_payload,
    set_word,
    verify,
    why,
)
from dysco.wire.tuples import FiveTuple, show_endpoint
from wire.strategies import packets, tuples

FOUR = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")
SIX = FiveTuple.parse("[fd00::1]:1234 > [fd00::9]:80")


@given(tuples())
def test_a_tuple_reads_as_it_is_written_and_turns_around(one: FiveTuple) -> None:
    assert FiveTuple.parse(f"tcp {one}") == one
    assert one.reversed().reversed() == one
    assert (one.reversed().src, one.reversed().sport) == (one.dst, one.dport)
    assert one.family == (4 if len(one) == 12 else 6)
    assert FiveTuple.of(one.src, one.sport, one.dst, one.dport) == one
    assert repr(one) == f"<{one}>"
    assert show_endpoint(one.src, one.sport) in str(one)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1:1",
        "10.0.0.1:1 > x:2",
        "10.0.0.1 > 10.0.0.2:1",
        "10.0.0.1:1 > [::1]:2",
        "10.0.0.1:70000 > 10.0.0.2:1",
    ],
)
def test_what_is_no_tuple_is_said_to_be_none(text: str) -> None:
    with pytest.raises(WireError):
        FiveTuple.parse(text)


def test_a_tuple_has_one_of_two_lengths() -> None:
    with pytest.raises(WireError, match="12 or 36 bytes, not 5"):
        FiveTuple(b"12345")


@given(st.binary(max_size=99), st.binary(min_size=2, max_size=2), st.data())
def test_an_incremental_checksum_is_the_whole_one(rest: bytes, new: bytes, data: st.DataObject) -> None:
    body = bytearray(b"\x01\x02" + rest)
    at = data.draw(st.integers(0, (len(body) - 2) // 2)) * 2
    field = ~internet_sum(body) & 0xFFFF
    partial = internet_sum(body)
    delta = (int.from_bytes(new, "big") - int.from_bytes(body[at : at + 2], "big")) % 0xFFFF
    body[at : at + 2] = new
    if any(body):
        assert add(field, delta) == ~internet_sum(body) & 0xFFFF
        assert add_partial(partial, delta) % 0xFFFF == internet_sum(body) % 0xFFFF


@given(packets())
def test_completing_a_checksum(packet: Packet) -> None:
    assert verify(packet)
    complete(packet)
    assert not packet.partial
    assert verify(packet)
    packet.data[-1] ^= 1
    assert not verify(packet)


@given(packets(), st.binary(max_size=100))
def test_other_payload(packet: Packet, payload: bytes) -> None:
    before = locate(packet)
    assert before is not None
    set_payload(packet, payload)
    after = locate(packet)
    assert after is not None
    assert verify(packet)
    assert bytes(packet.data[after.payload_offset :]) == payload
    assert after.five_tuple == before.five_tuple
    assert (
        after.next_seq
        == (after.seq + len(payload) + bool(after.flags & SYN) + bool(after.flags & FIN)) % 2**32
    )


@given(packets(), st.integers(0, 65535))
def test_one_word(packet: Packet, value: int) -> None:
    at = locate(packet)
    assert at is not None
    set_word(packet, at, 14, value)
    again = locate(packet)
    assert again is not None
    assert again.window == value
    assert verify(packet)


def test_why_a_packet_is_not_handled() -> None:
    whole = build_tcp(FOUR, 1, 2, ACK, 3)
    six = build_tcp(SIX, 1, 2, ACK, 3)

    def changed(packet: Packet, at: int, new: bytes) -> Reason | None:
        other = packet.copy()
        other.data[at : at + len(new)] = new
        assert (locate(other) is None) == (why(other) is not None)
        return why(other)

    assert why(whole) is None
    assert changed(whole, 0, b"\x25") is Reason.MALFORMED
    assert changed(whole, 0, b"\x43") is Reason.MALFORMED
    assert changed(whole, 2, b"\xff\xff") is Reason.MALFORMED
    assert changed(whole, 2, struct.pack("!H", 30)) is Reason.MALFORMED
    assert changed(whole, 6, b"\x20\x00") is Reason.FRAGMENT
    assert changed(whole, 9, b"\x11") is Reason.NOT_TCP
    assert changed(whole, 32, b"\x40") is Reason.MALFORMED
    assert changed(whole, 32, b"\xf0") is Reason.MALFORMED
    assert changed(six, 4, b"\xff\xff") is Reason.MALFORMED
    assert changed(six, 6, b"\x2c") is Reason.FRAGMENT
    assert changed(six, 6, b"\x11") is Reason.NOT_TCP
    assert changed(six, 6, b"\x00") is Reason.MALFORMED
    assert why(Packet(bytearray(b"\x60" + bytes(25)))) is Reason.MALFORMED
    assert why(Packet(bytearray(3))) is Reason.MALFORMED
    assert not verify(Packet(bytearray(3)))
    complete(Packet(bytearray(3), partial=True))


def test_a_wrong_sum_of_the_ipv4_header_is_seen() -> None:
    packet = build_tcp(FOUR, 1, 2, ACK, 3)
    packet.data[8] -= 1  # the TTL, which the TCP checksum does not cover
    assert not verify(packet)


def test_an_extension_header_that_is_cut_off() -> None:
    packet = Packet(build_tcp(SIX, 1, 2, ACK, 3).data[:44])
    packet.data[4:7] = b"\x00\x04\x3c"
    assert why(packet) is Reason.MALFORMED


def test_extension_headers_are_passed_over() -> None:
    packet = build_tcp(SIX, 1, 2, ACK, 3, b"", b"data")
    packet.data[6:7] = b"\x3c"
    packet.data[40:40] = b"\x06\x00\x01\x04\x00\x00\x00\x00"
    packet.data[4:6] = struct.pack("!H", len(packet.data) - 40)
    at = locate(packet)
    assert at is not None
    assert at.tcp_offset == 48
    assert at.five_tuple == SIX
    packet.data[41] = 200
    assert why(packet) is Reason.MALFORMED


@pytest.mark.parametrize("ecn", [False, True])
@given(packet=packets(), gso_size=st.integers(0, 3000))
def test_a_frame_of_the_device_and_back(packet: Packet, gso_size: int, ecn: bool) -> None:
    packet.gso_size, packet.ecn = gso_size, ecn and gso_size > 0
    again = vnet.unpack(vnet.pack(packet) + packet.data)
    assert (again.data, again.partial, again.gso_size, again.ecn) == (
        packet.data, packet.partial, packet.gso_size, packet.ecn,
    )  # fmt: skip


@pytest.mark.parametrize("one", [FOUR, SIX])
@pytest.mark.parametrize(("partial", "gso_size"), [(False, 0), (True, 0), (False, 1400), (True, 1400)])
def test_a_frame_says_what_is_left_to_the_device(one: FiveTuple, partial: bool, gso_size: int) -> None:
    packet = build_tcp(one, 1, 2, ACK, 3, b"", bytes(2000))
    packet.partial, packet.gso_size = partial, gso_size
    flags, kind, header_len, size, start, offset = vnet.HEADER.unpack(vnet.pack(packet))
    tcp = 20 if one is FOUR else 40
    if partial or gso_size:
        assert (header_len, start, offset) == (tcp + 20, tcp, 16)
    assert flags == partial * vnet.NEEDS_CSUM
    assert (kind, size) == (0 if not gso_size else 1 if one is FOUR else 4, gso_size)


def test_a_frame_without_its_header() -> None:
    with pytest.raises(WireError, match="a frame of 3 bytes"):
        vnet.unpack(b"123")
    assert vnet.pack(Packet(bytearray(3), partial=True)) == vnet.NO_HEADER


@given(packets(), st.integers(0, 65535))
def test_clamping_the_mss(packet: Packet, limit: int) -> None:
    before = options.mss(packet)
    changed = options.clamp_mss(packet, limit)
    assert verify(packet)
    after = options.mss(packet)
    assert (after is None) == (before is None)
    if before is not None and after is not None:
        assert after == min(before, limit)
        assert changed or before <= limit


@pytest.mark.parametrize("before", [b"", b"\x01", b"\x01\x01\x01"])
def test_the_mss_is_clamped_wherever_it_stands(before: bytes) -> None:
    twice = b"\x02\x04\x23\x00" + b"\x02\x04\x05\xb4"
    packet = build_tcp(FOUR, 1, 2, SYN, 3, before + twice)
    assert options.clamp_mss(packet, 1400)
    assert verify(packet)
    start = 40 + len(before)
    assert packet.data[start : start + 8] == b"\x02\x04\x05\x78" * 2
    assert not options.clamp_mss(packet, 1400)


@given(packets(), st.binary(min_size=8, max_size=8))
def test_a_tag_goes_in_first_and_comes_out_again(packet: Packet, tag: bytes) -> None:
    before = bytes(packet.data)
    at = locate(packet)
    assert at is not None
    fits = at.payload_offset - at.tcp_offset + 12 <= 60
    assert options.insert_tag(packet, tag) == fits
    if not fits:
        assert bytes(packet.data) == before
        return
    assert verify(packet)
    assert packet.data[at.tcp_offset + 20 : at.tcp_offset + 24] == b"\xfd\x0c\xd1\x5c"
    assert options.find_tag(packet) == tag
    assert options.strip_tag(packet)
    assert bytes(packet.data) == before
    assert not options.strip_tag(packet)


def test_a_tag_needs_a_packet_and_eight_bytes() -> None:
    assert not options.insert_tag(build_tcp(FOUR, 1, 2, SYN, 3), b"short")
    full = build_tcp(FOUR, 1, 2, SYN, 3, b"\x01" * 32)
    before = bytes(full.data)
    assert not options.insert_tag(full, bytes(8))
    assert full.data == before
    nothing = Packet(bytearray(3))
    assert not options.insert_tag(nothing, bytes(8))
    assert not options.strip_tag(nothing)
    assert options.find_tag(nothing) is None
    assert not options.clamp_mss(nothing, 1)
    assert options.syn_options(nothing) == options.SynOptions()


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"\x02\x04\x05\xb4", options.SynOptions(mss=1460)),
        (b"\x03\x03\x0f\x01", options.SynOptions(wscale=14)),
        (b"\x04\x02", options.SynOptions(sack=True)),
        (b"\x08\x0a\0\0\0\x01\0\0\0\x02", options.SynOptions(tsval=1, tsecr=2)),
        (b"\x13\x12" + bytes(16), options.SynOptions(has_md5=True)),
        (b"\x1d\x04\x00\x00", options.SynOptions(has_ao=True)),
        (b"\x1e\x04\x00\x00", options.SynOptions(has_mptcp=True)),
        (b"\x02\x03\x05\x00", options.SynOptions()),
        (b"\x02\x00", options.SynOptions()),
        (b"\x01\x01\x01\x08", options.SynOptions()),
        (b"\x00\x02\x04\x05", options.SynOptions()),
        (b"\xfd\x09\x01\x01", options.SynOptions()),
    ],
)
def test_options_of_a_syn(raw: bytes, wanted: options.SynOptions) -> None:
    assert options.syn_options(build_tcp(FOUR, 1, 2, SYN, 3, raw)) == wanted


@pytest.mark.parametrize("options_before", [b"", b"\xfe\x0c\xd1\x5c" + bytes(8), b"\xfd\x04\xd1\x5c"])
def test_what_only_looks_like_a_tag_stays(options_before: bytes) -> None:
    packet = build_tcp(FOUR, 1, 2, SYN, 3, options_before, b"\xfd\x0c\xd1\x5c" + bytes(8))
    before = bytes(packet.data)
    assert options.find_tag(packet) is None
    assert not options.strip_tag(packet)
    assert bytes(packet.data) == before
