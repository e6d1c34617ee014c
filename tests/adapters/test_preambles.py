"""What proxies put before streams and take off them, by the examples of the specifications."""

from __future__ import annotations

import pytest

from dysco.adapters.preambles import (
    V2_SIGNATURE,
    Heads,
    Preamble,
    Unclear,
    compare,
    consumed,
    proxy_line,
    v1_length,
    v2_length,
)
from dysco.wire.tuples import FiveTuple

V1 = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"  # proxy-protocol.txt section 2.1
V2 = V2_SIGNATURE + bytes.fromhex("2111000c 7f000001 7f000001 d431 1f90")  # its section 2.2, TCP over IPv4
HELLO = bytes.fromhex("16030100050100000100")  # the beginning of a TLS ClientHello
ASK = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
YES = b"HTTP/1.1 200 Connection established\r\n\r\n"


def test_lines() -> None:
    assert proxy_line(V1 + b"GET /") == len(V1)
    assert proxy_line(V2 + b"GET /") == len(V2) == 28
    assert proxy_line(V2[:14] + b"\x01\x00" + bytes(256)) == 16 + 256
    assert proxy_line(b"GET / HTTP/1.1\r\n") == 0
    assert proxy_line(b"PROXY " + b"x" * 200) == 0


@pytest.mark.parametrize("first", [b"", b"PRO", V1[:-1], V2[:12], V2[:15]])
def test_too_few_bytes(first: bytes) -> None:
    with pytest.raises(Unclear):
        proxy_line(first)


def test_lengths() -> None:
    four = FiveTuple.parse("192.168.0.1:56324 > 192.168.0.11:443")
    six = FiveTuple.parse("[2001:db8::1]:1 > [2001:db8::2]:65535")
    assert (v1_length(four), v2_length(four)) == (len(V1), 28)
    assert v1_length(six) == len("PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n")
    assert v2_length(six) == 52


def socks5(name: bytes) -> tuple[bytes, bytes]:
    sent = b"\5\2\0\2" + b"\1\4user\6secret" + b"\5\1\0\3" + bytes([len(name)]) + name + b"\1\xbb"
    return sent, b"\5\2" + b"\1\0" + b"\5\0\0\1\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("sent", "answered", "what"),
    [
        (ASK, YES, "CONNECT exchange"),
        (*socks5(b"example.com"), "SOCKS exchange"),
        (b"\5\1\0" + b"\5\1\0\1\x0a\0\0\2\0\x50", b"\5\0" + b"\5\0\0\4" + bytes(18), "SOCKS exchange"),
        (b"\4\1\0\x50\x0a\0\0\2name\0", b"\0\x5a" + bytes(6), "SOCKS exchange"),
        (b"\4\1\0\x50\0\0\0\1name\0example.com\0", b"\0\x5a" + bytes(6), "SOCKS exchange"),
        (V1, b"", "PROXY protocol line"),
        (b"", b"", ""),
    ],
)
def test_exchanges(sent: bytes, answered: bytes, what: str) -> None:
    found = consumed(Heads(sent + HELLO, answered + b"\x16\3\3"))
    assert found == Preamble(len(sent), len(answered), what)
    assert compare(Heads(sent + HELLO, answered + b"\x16\3\3"), Heads(HELLO, b"\x16\3\3ab")) == (
        -len(sent),
        len(answered),
        len(HELLO) + 3,
        f"{what} taken off" if what else "",
    )


def test_a_line_before_an_exchange() -> None:
    assert consumed(Heads(V1 + ASK + b"x", YES)) == Preamble(len(V1 + ASK), len(YES), "CONNECT exchange")


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (ASK[:-2], YES),
        (ASK, YES[:-2]),
        (ASK, b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"),
        (b"\5\1\0", b"\5\xff"),
        (b"\5\1\0" + b"\5\1\0\1\x0a\0", b"\5\0"),
        (b"\5\1\0" + b"\5\1\0\1\x0a\0\0\2\0\x50", b"\5\0" + b"\5\5\0\1" + bytes(6)),
        (b"\5\1\0" + b"\5\1\0\7\x0a\0\0\2\0\x50", b"\5\0"),
        (b"\4\1\0\x50\x0a\0\0\2name\0", b"\0\x5b" + bytes(6)),
        (b"\4\1\0\x50\x0a\0\0\2name", b"\0\x5a" + bytes(6)),
    ],
)
def test_exchanges_that_tell_nothing(sent: bytes, answered: bytes) -> None:
    with pytest.raises(Unclear):
        consumed(Heads(sent, answered))


def test_a_looked_at_hello_is_no_preamble() -> None:
    """SNI routing passes the ClientHello on as it is."""
    assert compare(Heads(HELLO, b"\x16"), Heads(HELLO, b"\x16")) == (0, 0, len(HELLO) + 1, "")


def test_a_line_that_was_added() -> None:
    assert compare(Heads(b"GET /", b"HTTP"), Heads(V1 + b"GET /", b"HTTP")) == (
        len(V1),
        0,
        9,
        "PROXY protocol line added",
    )
    # One that the client sent and the proxy passed on was not added and not taken off.
    assert compare(Heads(V1 + b"GET", b""), Heads(V1 + b"GET", b"")) == (0, 0, len(V1) + 3, "")


def test_an_exchange_with_a_proxy_behind() -> None:
    """A relay that passes a CONNECT exchange on has taken nothing off."""
    assert compare(Heads(ASK + HELLO, YES), Heads(ASK + HELLO, YES)) == (0, 0, len(ASK + HELLO + YES), "")
    assert compare(Heads(ASK + HELLO, YES), Heads(b"", b"")) == (
        -len(ASK),
        len(YES),
        0,
        "CONNECT exchange taken off",
    )


def test_other_streams() -> None:
    assert compare(Heads(b"one", b""), Heads(b"two", b"")) is None
    assert compare(Heads(b"one", b"a"), Heads(b"one", b"b")) is None
