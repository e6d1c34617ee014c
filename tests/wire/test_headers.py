"""Chain headers, control messages and ICMP errors: what is written is read, what is changed is refused."""

from __future__ import annotations

import hmac
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, get_type_hints

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.errors import WireError
from dysco.wire import chain_header, frames, messages
from dysco.wire.chain_header import ChainHeader, Egress, Hop
from dysco.wire.decode import Malformed, decode
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


@given(headers(), st.binary(max_size=150))
def test_a_signature_is_that_of_rfc_2104(header: ChainHeader, key: bytes) -> None:
    raw = chain_header.encode(header, key)
    assert raw[-16:] == hmac.digest(key, raw[:-16], "sha256")[:16]


@pytest.mark.parametrize("size", [0, 32, 63, 64, 65, 150])
def test_a_key_may_be_longer_than_a_block(size: int) -> None:
    one, key = FiveTuple.parse("10.0.0.1:1 > 10.0.0.2:2"), bytes(range(1, size + 1))
    raw = chain_header.encode(ChainHeader(b"i" * 16, 1, one, one, (Hop(b"1234"),), 9), key)
    assert raw[-16:] == hmac.digest(key, raw[:-16], "sha256")[:16]


def test_every_interpreter_has_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    assert chain_header._plain_sha256()(b"abc").hexdigest().startswith("ba7816bf")  # FIPS 180-2 appendix B.1


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


U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
ID = bytes(16)
TEXT = st.text(max_size=20)
ADDRESS = st.sampled_from((b"", b"1234", bytes(16)))
HOPS = st.lists(
    st.builds(Hop, ADDRESS.filter(bool), st.integers(0, 2**32 - 1)), max_size=chain_header.MAX_HOPS
)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "version": U16,
    "size": U16,
    "number": U64,
    "request": U64,
    "state": U8,
    "phase": U8,
    "status": U8,
    "verdict": U8,
    "leg": U8,
    "fins": U8,
    "index": st.integers(0, 65535),
    "count": st.integers(0, 65535),
    "boot_id": st.binary(min_size=16, max_size=16),
    "chain_id": st.binary(min_size=16, max_size=16),
    "digest": st.binary(min_size=8, max_size=8),
    "port_range": st.tuples(st.integers(1024, 40000), st.integers(40001, 65535)),
}
BY_HINT: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: U32,
    str: TEXT,
    bytes: ADDRESS,
    FiveTuple: tuples(),
    messages.Padding: st.binary(max_size=50).map(messages.Padding),
    messages.Handshake: st.binary(min_size=16, max_size=16).map(messages.Handshake),
    messages.Hops: HOPS.map(messages.Hops),
    messages.Part: st.binary(max_size=900).map(messages.Part),
}


def built(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Values of a message, or of a part of one, from the types of its fields."""
    hints = get_type_hints(kind)
    names = [one.name for one in fields(kind)]
    return st.builds(
        kind, **{name: BY_NAME[name] if name in BY_NAME else BY_HINT[hints[name]] for name in names}
    )


BY_HINT[messages.Change] = built(messages.Change)
BY_HINT[messages.Places] = st.lists(built(messages.Place), max_size=5).map(messages.Places)
MESSAGES = st.one_of([built(kind) for kind in messages.TYPES.values()])


@pytest.mark.parametrize("kind", messages.TYPES.values(), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_each_message_is_read_as_written_and_refused_with_more(kind: type[Any], data: st.DataObject) -> None:
    sent = data.draw(built(kind))
    raw = frames.encode_one(sent)
    assert frames.decode(raw) == [sent]
    longer = raw[:1] + (len(raw) - 2).to_bytes(2, "big") + raw[3:] + b"\0"
    if kind is messages.MtuProbe:  # whose end is padding
        assert len(frames.decode(longer)) == 1
    else:
        with pytest.raises(WireError):
            frames.decode(longer)


@given(MESSAGES, st.data())
def test_a_changed_message_is_refused_or_means_what_it_says(
    message: messages.Message, data: st.DataObject
) -> None:
    raw = bytearray(frames.encode_one(message))
    raw[data.draw(st.integers(3, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        [read] = frames.decode(raw)
    except WireError:
        return
    assert frames.encode_one(read) == raw


@given(st.lists(MESSAGES, max_size=40))
def test_messages_are_read_as_written(sent: list[messages.Message]) -> None:
    datagrams = frames.encode(sent)
    assert all(len(datagram) <= frames.MAX_DATAGRAM for datagram in datagrams)
    assert [one for datagram in datagrams for one in frames.decode(datagram)] == sent


def test_messages_fill_datagrams_in_their_order() -> None:
    said = [messages.Gone(ID, "x" * 200) for _ in range(9)]
    huge = messages.MtuProbe(1, 1500, messages.Padding(1440))
    datagrams = frames.encode([*said, huge, *said])
    per = frames.MAX_DATAGRAM // len(frames.encode_one(said[0]))
    assert [len(frames.decode(one)) for one in datagrams] == [per, 9 - per, 1, per, 9 - per]
    assert frames.decode(datagrams[2]) == [huge]
    assert frames.encode([]) == []


@given(MESSAGES, st.data())
def test_a_cut_message_is_an_error(message: messages.Message, data: st.DataObject) -> None:
    raw = frames.encode_one(message)
    cut = raw[: data.draw(st.integers(1, len(raw) - 1))]
    with pytest.raises(WireError):
        frames.decode(cut)


def framed(message: messages.Message, more: bytes = b"", cut: int = 0) -> bytes:
    """The frame of a message whose body ends otherwise."""
    raw = frames.encode_one(message)
    body = raw[3 : len(raw) - cut] + more
    return raw[:1] + len(body).to_bytes(2, "big") + body


def change(tail: bytes) -> bytes:
    """A RightRequest whose change ends with these bytes in place of its hops and what is behind them."""
    return framed(messages.RightRequest(ID, 1, messages.Change(1, 2, 3)), tail, cut=5)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\xff\x00\x00", "unknown message type 255"),
        (b"\x07\x00\x07" + bytes(7), "is cut off"),
        (b"\x07\x00\x09" + bytes(9), "1 bytes too many"),
        (b"\x04\x00\x12" + bytes(16) + b"\x01\xff", "not UTF-8"),
        (b"\x01\x00\x1c" + bytes(22) + b"\x00" + b"\x00\x01\x00\x02" + b"\x00", "no range|not a range"),
        (b"\x01\x00\x1d" + bytes(22) + b"\x00" + b"\xee\x48\xff\xff" + b"\x01\x09", "neither IPv4 nor IPv6"),
        (framed(messages.AckCancel(ID, 1, 2), b"\0"), "1 bytes too many"),
        (change(b"\x01\x03abc\0\0\0\0"), "hop's address is neither IPv4 nor IPv6"),
        (change(b"\x11"), "hops has 17 entries, more than 16"),
        (change(b"\x00\x02"), "force is neither 0 nor 1"),
        (framed(messages.AckLock(ID, 1, 2), b"\x02", cut=1), "AckLock.joined is neither 0 nor 1"),
    ],
)
def test_what_messages_may_not_say(raw: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        frames.decode(raw)


def test_bytes_of_a_fixed_length() -> None:
    with pytest.raises(WireError, match="chain_id has 16 bytes, not 3"):
        frames.encode_one(messages.Gone(b"abc"))
    one = FiveTuple.parse("10.0.0.1:1 > 10.0.0.2:2")
    for size in (15, 17):
        short = messages.Syn(ID, 1, 2, 3, one, one, messages.Hops(), messages.Handshake(bytes(size)))
        with pytest.raises(WireError, match=f"handshake has 16 bytes, not {size}"):
            frames.encode_one(short)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("instead", [0, 1300])
@given(data=st.data(), mtu=st.integers(68, 9000), seq=U32)
def test_an_icmp_error_is_read_and_translated(
    family: int, instead: int, data: st.DataObject, mtu: int, seq: int
) -> None:
    about, other = data.draw(tuples(family)), data.draw(tuples(family))
    packet = build_tcp(about, seq, 0, ACK, 1, b"", b"x" * 40)
    error = make_fragmentation_needed(packet, mtu, src=other.src, dst=about.src)
    found = parse_error(error)
    assert found is not None
    assert (found.five_tuple, found.mtu, found.seq) == (about, mtu, seq)
    assert (found.src, found.dst) == (other.src, about.src)
    translate_error(error, found, other, src=about.dst, dst=other.dst, seq_delta=5, mtu=instead)
    again = parse_error(error)
    assert again is not None
    assert (again.five_tuple, again.mtu, again.seq) == (other, instead or mtu, (seq + 5) % 2**32)
    assert (again.src, again.dst) == (about.dst, other.dst)
    raw = bytes(error.data)
    if about.family == 4:
        ip = dpkt.ip.IP(raw)
        kept, ip.data.sum, ip.sum = (ip.data.sum, ip.sum), 0, 0
        rebuilt = dpkt.ip.IP(bytes(ip))
        assert (rebuilt.data.sum, rebuilt.sum) == kept
    else:
        six = dpkt.ip6.IP6(raw)
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
    assert isinstance(decode(whole), dpkt.tcp.TCP)
    assert decode(Packet(bytearray(3))) == Malformed("malformed")
    whole.data[9] = 17
    assert decode(whole) == Malformed("not_tcp")


def misled(data: bytes) -> dpkt.tcp.TCP:
    """dpkt where it does not see what `locate` sees."""
    found = dpkt.tcp.TCP(data)
    found.ack += 1
    return found


def short(data: bytes) -> dpkt.tcp.TCP:
    """dpkt where it finds a shorter header."""
    found = dpkt.tcp.TCP(data)
    found.data = b"left"
    return found


def broken(_: bytes) -> dpkt.tcp.TCP:
    raise AttributeError("as dpkt raises it")


@pytest.mark.parametrize("reader", [misled, short, broken])
def test_two_readings_that_differ_are_no_packet(reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one reader lets pass and another one takes for something else must not change state."""
    whole = build_tcp(FiveTuple.parse("10.0.0.1:1 > 10.0.0.2:2"), 1, 2, ACK, 3)
    # Not in dpkt itself, which looks its own classes up by their names.
    monkeypatch.setattr("dysco.wire.decode.dpkt", SimpleNamespace(tcp=SimpleNamespace(TCP=reader)))
    assert decode(whole) == Malformed("malformed")


def test_places_that_are_cut_off_or_too_long_are_refused() -> None:
    data = frames.encode_places(messages.Places())
    assert frames.decode_places(data) == messages.Places()
    for wrong in (b"", b"\x01", data + b"\0"):
        with pytest.raises(WireError):
            frames.decode_places(wrong)
