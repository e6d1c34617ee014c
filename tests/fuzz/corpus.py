"""The seeds of the corpus, made from the code that writes what is fuzzed; and the files found by fuzzing."""

from __future__ import annotations

import struct
from pathlib import Path

from dysco.host import tracked
from dysco.host.tracked import Entry
from dysco.wire import chain_header, frames, messages
from dysco.wire.chain_header import ChainHeader, Egress, Hop
from dysco.wire.icmp import make_fragmentation_needed
from dysco.wire.packet import ACK, SYN, Packet, build_tcp
from dysco.wire.tuples import FiveTuple

DIRECTORY = Path(__file__).parent / "corpus"
FOUR = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")
SIX = FiveTuple.parse("[fd00::1]:1234 > [fd00::9]:80")
OPTIONS = struct.pack("!BBHBBBBBBII", 2, 4, 1460, 4, 2, 1, 1, 8, 10, 7, 0)[:20]


def found(target: str) -> list[bytes]:
    """Inputs that once failed, kept as files."""
    return [path.read_bytes() for path in sorted((DIRECTORY / target).glob("*"))]


def seeds(target: str) -> list[bytes]:
    """Well-formed inputs, from which a fuzzer begins."""
    packets = [
        build_tcp(one, 1, 2, flags, 100, OPTIONS, b"data") for one in (FOUR, SIX) for flags in (SYN, ACK)
    ]
    extended = bytearray(packets[2].data)
    extended[6:7] = b"\x00"
    extended[40:40] = b"\x06\x00\x00\x00\x00\x00\x00\x00"
    extended[4:6] = struct.pack("!H", len(extended) - 40)
    errors = [
        make_fragmentation_needed(packets[0], 1280, src=b"\x0a\x00\x00\x05", dst=FOUR.src),
        make_fragmentation_needed(packets[2], 1280, src=SIX.dst, dst=SIX.src),
    ]
    headers = [
        chain_header.encode(
            ChainHeader(b"i" * 16, 0, one, one, (Hop(one.dst, 7), Hop(one.src)), 5, Egress.NAT, True), b"key"
        )
        for one in (FOUR, SIX)
    ]
    control = [
        frames.encode_one(message)
        for message in (
            messages.Hello(name="fw", observed_address=FOUR.src),
            messages.Keepalive(3),
            messages.KeepaliveAck(3),
            messages.Gone(bytes(16), "gone"),
            messages.SynRefused(bytes(16), "no"),
            messages.MtuProbe(1, 1400, messages.Padding(bytes(30))),
            messages.MtuProbeAck(1, 1400),
        )
    ]
    raw = [bytes(one.data) for one in (*packets, Packet(extended), *errors)]
    return {
        "packet": raw,
        "edits": raw,
        "icmp": raw,
        "header": headers,
        "control": [*control, b"".join(control)],
        "frame": [bytes(10) + one for one in raw],
        "record": [b"{}", b'{"v":1,"key":"00","in":"","out":"","box":null}'],
        "tracker": [tracked.encode(Entry(one, one.reversed(), timeout_s=9)) for one in (FOUR, SIX)],
        "text": [str(one).encode() for one in (FOUR, SIX)],
    }[target]
