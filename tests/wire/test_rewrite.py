"""In-place rewriting against full recomputation, and against dpkt."""

from __future__ import annotations

import struct

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.protocol.flow import Flow, Translation
from dysco.wire.decode import Malformed, decode
from dysco.wire.options import walk
from dysco.wire.packet import ACK, SYN, Packet, build_tcp, locate, verify
from dysco.wire.rewrite import apply, retarget
from dysco.wire.tuples import FiveTuple
from wire.strategies import U32, packets, tuples

MASK = 0xFFFFFFFF
FOUR = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")


@given(st.data())
def test_a_rewritten_packet_is_what_a_full_recomputation_gives(data: st.DataObject) -> None:
    packet = data.draw(packets())
    at = locate(packet)
    assert at is not None
    new = data.draw(tuples(at.family))
    numbers = data.draw(st.none() | st.builds(Translation, U32, U32, U32, U32))
    before = packet.copy()
    apply(packet, Flow(0, at.five_tuple, 0, new, translation=numbers))
    after = locate(packet)
    assert after is not None
    assert verify(packet)
    assert after.five_tuple == new
    assert packet.data[at.payload_offset :] == before.data[at.payload_offset :]
    assert len(packet.data) == len(before.data)
    numbers = numbers or Translation()
    assert after.seq == (at.seq + numbers.seq_delta) & MASK
    assert after.ack == (at.ack + (numbers.ack_delta if at.flags & ACK else 0)) & MASK
    for kind, position, length in walk(before, at):
        old = bytes(before.data[position : position + length])
        got = bytes(packet.data[position : position + length])
        if kind == 5:
            assert struct.unpack("!II", got[2:]) == tuple(
                (edge + numbers.ack_delta) & MASK for edge in struct.unpack("!II", old[2:])
            )
        elif kind == 8:
            value, echo = struct.unpack("!II", old[2:])
            echo_delta = numbers.tsecr_delta if at.flags & ACK else 0
            assert struct.unpack("!II", got[2:]) == (
                (value + numbers.tsval_delta) & MASK,
                (echo + echo_delta) & MASK,
            )
        else:
            assert got == old


@pytest.mark.parametrize("partial", [False, True])
@given(data=st.data())
def test_another_tuple_leaves_all_else_as_it_is(partial: bool, data: st.DataObject) -> None:
    packet = data.draw(packets(partial=partial))
    at = locate(packet)
    assert at is not None
    new = data.draw(tuples(at.family))
    expected = packet.copy()
    apply(expected, Flow(0, at.five_tuple, 0, new))
    retarget(packet, new, at)
    assert verify(packet)
    assert at.five_tuple == new
    assert (packet.data, packet.partial) == (expected.data, partial)


@given(st.binary(max_size=80), tuples(4))
def test_what_is_no_packet_is_left_alone(data: bytes, new: FiveTuple) -> None:
    packet = Packet(bytearray(data))
    if locate(packet) is None:
        apply(packet, Flow(0, FOUR, 0, new, translation=Translation(1, 1, 1, 1)))
        assert packet.data == data


TIMES = b"\x08\x0a" + bytes(8)


@pytest.mark.parametrize(
    ("options", "shifted"),
    [
        (TIMES + b"\x00\x01", True),
        (b"\x00\x01" + TIMES, False),  # behind the end of options nothing is an option (RFC 9293 section 3.1)
        (b"\xc8\x01" + TIMES, False),  # a length below two has no end
        (b"\xc8\xff" + TIMES, False),  # one beyond the header
        (b"\x01" * 11 + b"\x08", False),  # a kind without its length
        (b"\x08\x04\x00\x00" + b"\x01" * 8, False),  # timestamps of another length
    ],
)
def test_numbers_in_options_that_end_early(options: bytes, shifted: bool) -> None:
    packet = build_tcp(FOUR, 1, 2, ACK, 3, options)
    at = locate(packet)
    assert at is not None
    apply(packet, Flow(0, FOUR, 0, FOUR.reversed(), translation=Translation(0, 0, 5, 6)))
    assert verify(packet)
    got = bytes(packet.data[at.tcp_offset + 20 : at.payload_offset])
    assert got == (options.replace(TIMES, b"\x08\x0a\0\0\0\x05\0\0\0\x06") if shifted else options)


def test_without_an_acknowledgement_nothing_is_acknowledged() -> None:
    """Neither the number nor the echoed timestamp means anything then (RFC 7323 section 3.2)."""
    packet = build_tcp(FOUR, 1, 2, SYN, 3, b"\x01\x01" + TIMES)
    apply(packet, Flow(0, FOUR, 0, FOUR, translation=Translation(7, 7, 5, 6)))
    at = locate(packet)
    assert at is not None
    assert (at.seq, at.ack) == (8, 2)
    assert verify(packet)
    assert packet.data[at.tcp_offset + 24 : at.payload_offset] == b"\0\0\0\x05\0\0\0\0"


@given(packets(partial=False))
def test_dpkt_agrees_with_what_is_read_and_with_the_checksum(packet: Packet) -> None:
    at = locate(packet)
    found = decode(packet)
    assert at is not None
    assert not isinstance(found, Malformed)
    assert (found.sport, found.dport) == (at.five_tuple.sport, at.five_tuple.dport)
    assert (found.seq, found.ack, found.win) == (at.seq, at.ack, at.window)
    ip = (dpkt.ip.IP if at.family == 4 else dpkt.ip6.IP6)(bytes(packet.data[: at.total_len]))
    assert bytes(ip.data.data) == bytes(packet.data[at.payload_offset : at.total_len])
    kept = ip.data.sum
    ip.data.sum = 0
    if at.family == 4:
        ip.sum = 0
        again = dpkt.ip.IP(bytes(ip))
        assert again.sum == struct.unpack_from("!H", packet.data, 10)[0]
    else:
        again = dpkt.ip6.IP6(bytes(ip))
    assert again.data.sum == kept
