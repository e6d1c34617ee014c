"""What proxies put before a stream or take off its beginning: PROXY protocol lines, CONNECT and SOCKS exchanges.

Works on the first bytes of streams and knows nothing of sockets or programs. A TLS ClientHello at which a proxy has
only looked is no preamble: it goes on unchanged.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Protocol

from dysco.wire.tuples import FiveTuple, show_address

V1_LONGEST: Final = 107  # HAProxy proxy-protocol.txt section 2.1
V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"  # section 2.2
_V2_HEADER: Final = 16
_V2_ADDRESSES: Final = {4: 12, 6: 36}
_LONGEST_HEADER: Final = 8192
_CONNECT: Final = re.compile(rb"CONNECT [^ \r\n]+ HTTP/1\.[01]\r\n")
_CONNECTED: Final = re.compile(rb"HTTP/1\.[01] 2[0-9][0-9][ \r]")
_SOCKS5_ADDRESS: Final = {1: 4, 4: 16}  # RFC 1928 section 5


class Heads(NamedTuple):
    """The first bytes of a session in both directions, from the first byte on, as far as they were seen.

    sent: of who opened it; answered: of the other end.
    """

    sent: bytes
    answered: bytes


class Fingerprints(Protocol):
    """Who has seen the first bytes of sessions; a dictionary of Heads by the five-tuple of the SYN is one."""

    def get(self, session: FiveTuple, /) -> Heads | None:
        """Give the first bytes of a session; None if they were not seen."""
        ...


class Preamble(NamedTuple):
    """Bytes that a proxy has taken out of a session's two directions because they were meant for itself."""

    sent: int
    answered: int
    what: str


class Unclear(Exception):
    """The bytes that were seen are too few to say, or contradict each other; the text says which."""


def v1_length(session: FiveTuple) -> int:
    """Give the length of a PROXY protocol line of version 1 that tells a session (section 2.1)."""
    addresses = f"{show_address(session.src)} {show_address(session.dst)}"
    return len(f"PROXY TCP{session.family} {addresses} {session.sport} {session.dport}\r\n")


def v2_length(session: FiveTuple) -> int:
    """Give the length of a PROXY protocol header of version 2 without additional fields (section 2.2)."""
    return _V2_HEADER + _V2_ADDRESSES[session.family]


def proxy_line(first: bytes) -> int:
    """Give the length of the PROXY protocol line, of version 1 or 2, with which a stream begins; 0 if there is none.

    Raises Unclear if the bytes end before this is known.
    """
    if first.startswith(V2_SIGNATURE):
        if len(first) < _V2_HEADER:
            raise Unclear("a PROXY protocol header whose end was not seen")
        return _V2_HEADER + int.from_bytes(first[14:16], "big")
    if first.startswith(b"PROXY "):
        end = first.find(b"\r\n", 0, V1_LONGEST)
        if end < 0 and len(first) < V1_LONGEST:
            raise Unclear("a PROXY protocol line whose end was not seen")
        return end + 2 if end >= 0 else 0
    if len(first) < len(V2_SIGNATURE) and (V2_SIGNATURE.startswith(first) or b"PROXY ".startswith(first)):
        raise Unclear("too few first bytes were seen")
    return 0


def consumed(left: Heads) -> Preamble:
    """Say what a proxy has taken off the beginning of the session that its client opened.

    That is a PROXY protocol line, a CONNECT exchange (RFC 9110 section 9.3.6), a SOCKS exchange (RFC 1928, 1929), or
    nothing. Raises Unclear.
    """
    line = proxy_line(left.sent)
    rest = Heads(left.sent[line:], left.answered)
    for find in (_connect, _socks5, _socks4):
        found = find(rest)
        if found is not None:
            return found._replace(sent=found.sent + line)
    return Preamble(line, 0, "PROXY protocol line" if line else "")


def _connect(heads: Heads) -> Preamble | None:
    if not _CONNECT.match(heads.sent):
        return None
    request = heads.sent.find(b"\r\n\r\n", 0, _LONGEST_HEADER)
    answer = heads.answered.find(b"\r\n\r\n", 0, _LONGEST_HEADER)
    if request < 0 or answer < 0:
        raise Unclear("a CONNECT exchange whose end was not seen")
    if not _CONNECTED.match(heads.answered):
        raise Unclear("a CONNECT request that was refused, or answered by more than one message")
    return Preamble(request + 4, answer + 4, "CONNECT exchange")


def _socks5(heads: Heads) -> Preamble | None:
    sent, answered = heads
    if sent[:1] != b"\5" or answered[:1] != b"\5":
        return None
    try:
        at, back = 2 + sent[1], 2
        if answered[1] == 2:  # RFC 1929: user name and password
            at += 2 + sent[at + 1]
            at += 1 + sent[at]
            back += 2
        elif answered[1] != 0:
            raise Unclear("a SOCKS exchange with a method of authentication that may go on")
        if sent[at] != 5 or sent[at + 1] != 1:
            return None
        at += _socks5_length(sent, at)
        if answered[back] != 5 or answered[back + 1] != 0:
            raise Unclear("a SOCKS request that was refused")
        back += _socks5_length(answered, back)
    except IndexError:
        raise Unclear("a SOCKS exchange whose end was not seen") from None
    if at > len(sent) or back > len(answered):
        raise Unclear("a SOCKS exchange whose end was not seen")
    return Preamble(at, back, "SOCKS exchange")


def _socks5_length(stream: bytes, at: int) -> int:
    kind = stream[at + 3]
    length = 1 + stream[at + 4] if kind == 3 else _SOCKS5_ADDRESS.get(kind)
    if length is None:
        raise Unclear("a SOCKS exchange with an unknown kind of address")
    return 4 + length + 2


def _socks4(heads: Heads) -> Preamble | None:
    sent, answered = heads
    if sent[:2] != b"\4\1" or answered[:1] != b"\0":
        return None
    end = sent.find(b"\0", 8)
    if sent[4:7] == bytes(3) and sent[7:8] != b"\0" and end >= 0:  # SOCKS 4a: a name follows
        end = sent.find(b"\0", end + 1)
    if end < 0 or len(answered) < 8:
        raise Unclear("a SOCKS exchange whose end was not seen")
    if answered[1] != 90:
        raise Unclear("a SOCKS request that was refused")
    return Preamble(end + 1, 8, "SOCKS exchange")


class Added(NamedTuple):
    """What a proxy has done to two streams, and the bytes of them that were compared and are equal."""

    right: int
    left: int
    compared: int
    what: str


def _same(left: Heads, right: Heads) -> bool:
    return all(one[: len(other)] == other[: len(one)] for one, other in zip(left, right, strict=True))


def compare(left: Heads, right: Heads) -> Added | None:
    """Say what a proxy has added between two sessions by their first bytes; None if they are different streams.

    Raises Unclear if that cannot be told from these bytes.
    """
    taken = consumed(left)
    if _same(left, right) and len(right.sent) >= taken.sent:  # passed on, for another proxy behind this one
        taken = Preamble(0, 0, "")
    put = 0 if left.sent[taken.sent :].startswith(right.sent[:6]) else proxy_line(right.sent)
    pairs = (
        (left.sent[taken.sent :], right.sent[put:]),
        (left.answered[taken.answered :], right.answered),
    )
    compared = 0
    for one, other in pairs:
        length = min(len(one), len(other))
        if one[:length] != other[:length]:
            return None
        compared += length
    what = ", ".join(
        filter(None, (taken.what + " taken off" * bool(taken.what), "PROXY protocol line added" * bool(put)))
    )
    return Added(put - taken.sent, taken.answered, compared, what)
