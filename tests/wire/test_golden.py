"""Golden vectors: bytes that other implementations may rely on, read and written."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco.wire import chain_header, frames, messages
from dysco.wire.chain_header import ChainHeader, Egress, Hop
from dysco.wire.tuples import FiveTuple

HERE = Path(__file__).parent / "golden"
KEY = bytes(range(32))
CHAIN = bytes(range(16))
FOUR = FiveTuple.parse("10.0.0.1:40000 > 10.0.0.4:80")
SIX = FiveTuple.parse("[fd00::1]:40000 > [fd00::4]:80")

HEADERS = {
    "chain-header-ipv4": ChainHeader(
        CHAIN,
        0,
        FOUR,
        FiveTuple.parse("10.0.0.1:61000 > 10.0.0.2:61001"),
        (Hop(b"\x0a\0\0\x02", 0x01020304), Hop(FOUR.dst)),
        7,
    ),
    "chain-header-ipv6": ChainHeader(
        CHAIN,
        1,
        SIX,
        FiveTuple.parse("[fd00::2]:61000 > [fd00::3]:61001"),
        (Hop(FiveTuple.parse("[fd00::3]:1 > [fd00::3]:1").src),),
        2**40,
        Egress.NAT,
        True,
    ),
}
MESSAGES: dict[str, messages.Message] = {
    "hello": messages.Hello(1, 5, CHAIN, "firewall", (61000, 65535), FOUR.src),
    "keepalive": messages.Keepalive(3, b"digest!!"),
    "keepalive-ack": messages.KeepaliveAck(3),
    "gone": messages.Gone(CHAIN, "stopped"),
    "syn-refused": messages.SynRefused(CHAIN, "no such middlebox here"),
    "mtu-probe": messages.MtuProbe(9, 1400, messages.Padding(bytes(8))),
    "mtu-probe-ack": messages.MtuProbeAck(9, 1400),
}


def golden(name: str) -> bytes:
    return bytes.fromhex((HERE / f"{name}.hex").read_text())


@pytest.mark.parametrize("name", HEADERS)
def test_chain_headers(name: str) -> None:
    raw = golden(name)
    assert chain_header.encode(HEADERS[name], KEY) == raw
    assert chain_header.peek(raw) == HEADERS[name]
    assert chain_header.verify(raw, KEY)


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    raw = golden(name)
    assert frames.encode_one(MESSAGES[name]) == raw
    assert frames.decode(raw) == [MESSAGES[name]]


def test_the_page_shows_the_vector() -> None:
    page = (HERE.parents[2] / "docs" / "protocol.md").read_text()
    assert (HERE / "chain-header-ipv4.hex").read_text().strip() in page
