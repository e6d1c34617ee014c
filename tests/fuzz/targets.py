"""What is fuzzed: each target takes any bytes and must not raise, but for the exceptions that it names."""

from __future__ import annotations

from collections.abc import Callable

from dysco.errors import WireError
from dysco.host import tracked
from dysco.protocol.records import read_record
from dysco.wire import chain_header, frames
from dysco.wire.decode import decode
from dysco.wire.icmp import parse_error, translate_error
from dysco.wire.options import clamp_mss, find_tag, insert_tag, strip_tag, syn_options
from dysco.wire.packet import Packet, locate, verify, why
from dysco.wire.tuples import FiveTuple
from dysco.wire.vnet import unpack


def packet(data: bytes) -> None:
    """Every look at a packet; exactly one of `locate` and `why` has an answer."""
    one = Packet(bytearray(data))
    at = locate(one)
    assert (at is None) == (why(one) is not None)
    verify(one)
    decode(one)
    syn_options(one)
    if at is not None:
        assert at.payload_offset <= at.total_len <= len(data)


def edits(data: bytes) -> None:
    """Edits of options keep what `locate` accepts acceptable, and a tag that is put in comes out again."""
    one = Packet(bytearray(data))
    at = locate(one)
    clamp_mss(one, 1000)
    had = find_tag(one) is not None
    if at is not None and len(one.data) == at.total_len and insert_tag(one, b"12345678"):
        assert find_tag(one) == b"12345678"
        assert strip_tag(one)
        assert (find_tag(one) is not None) == had
        assert locate(one) is not None


def icmp(data: bytes) -> None:
    """An error that is read can be translated."""
    one = Packet(bytearray(data))
    error = parse_error(one)
    if error is not None:
        quoted = error.five_tuple.reversed()
        translate_error(one, error, quoted, src=error.dst, dst=error.src)
        again = parse_error(one)
        assert again is not None
        assert again.five_tuple == quoted


def header(data: bytes) -> None:
    """A chain header that is read is written again to the same bytes, but for the HMAC."""
    found = chain_header.peek(data)
    if found is not None:
        length = chain_header.length(data)
        assert chain_header.encode(found, b"key")[:-16] == data[: length - 16]
        assert not chain_header.verify(data, b"another key")


def control(data: bytes) -> None:
    """What is read from a datagram is written again to bytes that read the same."""
    try:
        found = frames.decode(data)
    except WireError:
        return
    for message in found:
        assert frames.decode(frames.encode_one(message)) == [message]


def frame(data: bytes) -> None:
    """A frame of the device."""
    try:
        unpack(data)
    except WireError:
        return


def record(data: bytes) -> None:
    """A record of the session journal."""
    read_record(data, (), 0.0)


def tracker(data: bytes) -> None:
    """A tracker entry that is read is written again to the same bytes."""
    try:
        entry = tracked.decode(data)
    except WireError:
        return
    assert tracked.encode(entry) == data


def text(data: bytes) -> None:
    """A five-tuple that a person writes."""
    try:
        parsed = FiveTuple.parse(data.decode(errors="replace"))
    except WireError:
        return
    assert FiveTuple.parse(str(parsed)) == parsed


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (packet, edits, icmp, header, control, frame, record, tracker, text)
}
