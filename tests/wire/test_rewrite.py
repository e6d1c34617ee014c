"""In-place rewriting against full recomputation, and against dpkt."""

from __future__ import annotations

import struct

import dpkt
from hypothesis import given
from hypothesis import strategies as st

from dysco.protocol.flow import Flow, Translation
from dysco.wire.decode import Decoded, decode
from dysco.wire.options import walk
from dysco.wire.packet import ACK, Packet, locate, verify
from dysco.wire.rewrite import apply
from wire.strategies import U32, packets, tuples

MASK = 0xFFFFFFFF


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


@given(packets(partial=False))
def test_dpkt_agrees_with_what_is_read_and_with_the_checksum(packet: Packet) -> None:
    at = locate(packet)
    found = decode(packet)
    assert at is not None
    assert isinstance(found, Decoded)
    assert (found.tcp.sport, found.tcp.dport) == (at.five_tuple.sport, at.five_tuple.dport)
    assert (found.tcp.seq, found.tcp.ack, found.tcp.win) == (at.seq, at.ack, at.window)
    assert bytes(found.tcp.data) == bytes(packet.data[at.payload_offset : at.total_len])
    kept = found.tcp.sum
    found.tcp.sum = 0
    if at.family == 4:
        found.ip.sum = 0
        again = dpkt.ip.IP(bytes(found.ip))
        assert again.sum == struct.unpack_from("!H", packet.data, 10)[0]
    else:
        again = dpkt.ip6.IP6(bytes(found.ip))
    assert again.data.sum == kept
