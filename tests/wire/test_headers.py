"""Chain headers, control messages and ICMP errors: what is written is read, what is changed is refused."""

from __future__ import annotations

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.errors import WireError
from dysco.wire import chain_header, messages
from dysco.wire.chain_header import ChainHeader, Egress, Hop
from dysco.wire.decode import Decoded, Malformed, decode
from dysco.wire.icmp import make_fragmentation_needed, parse_error, translate_error
from dysco.wire.packet import ACK, Packet, build_tcp
from dysco.wire.tuples import FiveTuple
from wire.strategies import tuples

KEY = b"k" * 32


@st.composite
def headers(draw: st.DrawFn) -> ChainHeader:
    family = draw(st.sampled_from((4, 6)))
    size = 4 if family == 4 else 16
    hop = st.builds(Hop, st.binary(min_size=size, max_size=size), st.integers(0, 2**32 - 1))
    return ChainHeader(
        draw(st.binary(min_size=16, max_size=16)),
        draw(st.integers(0, 255)),
        draw(tuples(family)),
        draw(tuples(family)),
        tuple(draw(st.lists(hop, min_size=1, max_size=16))),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.sampled_from(Egress)),
        draw(st.booleans()),
    )


@given(headers(), st.binary(max_size=40))
def test_a_header_is_read_as_written(header: ChainHeader, data: bytes) -> None:
    raw = chain_header.encode(header, KEY)
    assert len(raw) <= chain_header.MAX_LEN
    assert chain_header.peek(raw + data) == header
    assert chain_header.length(raw + data) == len(raw)
    assert chain_header.verify(raw + data, KEY)
    assert not chain_header.verify(raw + data, b"x" * 32)


def test_every_flipped_bit_is_refused() -> None:
    hops = tuple(Hop(bytes((10, 0, 0, number))) for number in range(3))
    one = FiveTuple.parse("10.0.0.1:1 > 10.0.0.2:2")
    raw = chain_header.encode(ChainHeader(b"i" * 16, 1, one, one.reversed(), hops, 9), KEY)
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert chain_header.peek(changed) is None or not chain_header.verify(changed, KEY)


@given(headers(), st.data())
def test_a_cut_header_is_none(header: ChainHeader, data: st.DataObject) -> None:
    raw = chain_header.encode(header, KEY)
    assert chain_header.peek(raw[: data.draw(st.integers(0, len(raw) - 1))]) is None


def test_headers_that_cannot_be_written() -> None:
    four, six = FiveTuple.parse("10.0.0.1:1 > 10.0.0.2:2"), FiveTuple.parse("[::1]:1 > [::2]:2")
    for hops in ((), (Hop(b"1234"),) * 17):
        with pytest.raises(WireError, match="1 to 16 hops"):
            chain_header.encode(ChainHeader(bytes(16), 0, four, four, hops, 1), KEY)
    for session, hop in ((six, Hop(b"1234")), (four, Hop(b"1" * 16))):
        with pytest.raises(WireError, match="one family"):
            chain_header.encode(ChainHeader(bytes(16), 0, session, four, (Hop(b"1234"), hop), 1), KEY)
    assert str(Hop(b"\x0a\0\0\x01", 255)) == "10.0.0.1/000000ff"
    assert str(Hop(b"\x0a\0\0\x01")) == "10.0.0.1"


TEXT = st.text(max_size=20)
NUMBER = st.integers(0, 2**64 - 1)
ID = st.binary(min_size=16, max_size=16)
SIZE = st.integers(0, 65535)
ADDRESS = st.sampled_from((b"", b"1234", bytes(16)))
MESSAGES = st.one_of(
    st.builds(
        messages.Hello,
        SIZE,
        st.integers(0, 2**32 - 1),
        ID,
        TEXT,
        st.just((61000, 65535)),
        st.sampled_from((b"", b"1234", bytes(16))),
    ),
    st.builds(messages.Keepalive, NUMBER, st.binary(min_size=8, max_size=8)),
    st.builds(messages.KeepaliveAck, NUMBER),
    st.builds(messages.Gone, ID, TEXT),
    st.builds(messages.SynRefused, ID, TEXT),
    st.builds(messages.MtuProbe, NUMBER, SIZE, st.binary(max_size=50).map(messages.Padding)),
    st.builds(messages.MtuProbeAck, NUMBER, SIZE),
)


@given(st.lists(MESSAGES, max_size=40))
def test_messages_are_read_as_written(sent: list[messages.Message]) -> None:
    datagrams = messages.encode(sent)
    assert all(len(datagram) <= messages.MAX_DATAGRAM for datagram in datagrams)
    assert [one for datagram in datagrams for one in messages.decode(datagram)] == sent


@given(MESSAGES, st.data())
def test_a_cut_message_is_an_error(message: messages.Message, data: st.DataObject) -> None:
    raw = messages.encode_one(message)
    cut = raw[: data.draw(st.integers(1, len(raw) - 1))]
    with pytest.raises(WireError):
        messages.decode(cut)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\xff\x00\x00", "unknown message type 255"),
        (b"\x07\x00\x07" + bytes(7), "is cut off"),
        (b"\x07\x00\x09" + bytes(9), "1 bytes too many"),
        (b"\x04\x00\x12" + bytes(16) + b"\x01\xff", "not UTF-8"),
        (b"\x01\x00\x1c" + bytes(22) + b"\x00" + b"\x00\x01\x00\x02" + b"\x00", "no range|not a range"),
        (b"\x01\x00\x1d" + bytes(22) + b"\x00" + b"\xee\x48\xff\xff" + b"\x01\x09", "neither IPv4 nor IPv6"),
    ],
)
def test_what_messages_may_not_say(raw: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        messages.decode(raw)


def test_bytes_of_a_fixed_length() -> None:
    with pytest.raises(WireError, match="chain_id has 16 bytes, not 3"):
        messages.encode_one(messages.Gone(b"abc"))


@given(tuples(), tuples(), st.integers(68, 9000), st.integers(0, 2**32 - 1))
def test_an_icmp_error_is_read_and_translated(about: FiveTuple, other: FiveTuple, mtu: int, seq: int) -> None:
    if about.family != other.family:
        return
    packet = build_tcp(about, seq, 0, ACK, 1, b"", b"x" * 40)
    error = make_fragmentation_needed(packet, mtu, src=other.src, dst=about.src)
    found = parse_error(error)
    assert found is not None
    assert (found.five_tuple, found.mtu, found.seq) == (about, mtu, seq)
    assert (found.src, found.dst) == (other.src, about.src)
    translate_error(error, found, other, src=about.dst, dst=other.dst, seq_delta=5, mtu=1300)
    again = parse_error(error)
    assert again is not None
    assert (again.five_tuple, again.mtu, again.seq) == (other, 1300, (seq + 5) % 2**32)
    assert (again.src, again.dst) == (about.dst, other.dst)
    data = bytes(error.data)
    if about.family == 4:
        ip = dpkt.ip.IP(data)
        kept, ip.data.sum, ip.sum = (ip.data.sum, ip.sum), 0, 0
        rebuilt = dpkt.ip.IP(bytes(ip))
        assert (rebuilt.data.sum, rebuilt.sum) == kept
    else:
        six = dpkt.ip6.IP6(data)
        kept_sum, six.data.sum = six.data.sum, 0
        assert dpkt.ip6.IP6(bytes(six)).data.sum == kept_sum


def test_what_is_no_icmp_error_about_tcp() -> None:
    four = build_tcp(FiveTuple.parse("10.0.0.1:1 > 10.0.0.2:2"), 1, 2, ACK, 3, b"", bytes(40))
    six = build_tcp(FiveTuple.parse("[fd00::1]:1 > [fd00::2]:2"), 1, 2, ACK, 3, b"", bytes(80))
    for whole, src, dst in ((four, b"\1\2\3\4", b"\5\6\7\x08"), (six, bytes(16), bytes(16))):
        assert parse_error(whole) is None
        error = make_fragmentation_needed(whole, 1300, src=src, dst=dst)
        start = 20 if whole is four else 40
        changes = [(start, 200), (start + 8, 0x15), (start + 8 + (9 if whole is four else 6), 17)]
        if whole is four:
            changes += [(0, 0x44), (6, 0x20), (start + 8, 0x41), (start + 14, 0x1F), (3, 40)]
        else:
            changes += [(6, 17), (6, 0x2C), (5, 50), (4, 200), (start + 14, 0x2C)]
        for at, value in changes:
            other = error.copy()
            other.data[at] = value
            assert parse_error(other) is None, (at, value)
    assert parse_error(Packet(bytearray(3))) is None
    assert parse_error(Packet(bytearray(b"\x60" + bytes(30)))) is None
    assert parse_error(Packet(bytearray(b"\x10" + bytes(30)))) is None


def test_decoding_says_why_not() -> None:
    whole = build_tcp(FiveTuple.parse("10.0.0.1:1 > 10.0.0.2:2"), 1, 2, ACK, 3)
    assert isinstance(decode(whole), Decoded)
    assert decode(Packet(bytearray(3))) == Malformed("malformed")
    whole.data[9] = 17
    assert decode(whole) == Malformed("not_tcp")
