"""The outside of DTLS records, read without OpenSSL: what is cheap to check before anything is spent on a
datagram.

Knows the 13-byte record header and the place of a few fields of a ClientHello (RFC 6347, 4.1 and 4.2). Must
not know keys, peers or sockets. Nothing here is authenticated: it only decides who looks next.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

CHANGE_CIPHER_SPEC: Final = 20
ALERT: Final = 21
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23

HEADER_LEN: Final = 13
CLIENT_HELLO: Final = 1
# Record header, handshake header (12), legacy version (2); then the 32 random bytes.
_RANDOM_AT: Final = HEADER_LEN + 12 + 2
_RANDOM_LEN: Final = 32
# A ClientHello of ours has over 130 bytes; a HelloVerifyRequest with a cookie of 16 bytes has 44. So the
# answer to an unproved source is always smaller than the question.
CLIENT_HELLO_LEAST: Final = 100

# What AES-GCM adds to a record: header, explicit nonce, tag (RFC 5288, 3). Only such suites are offered.
RECORD_OVERHEAD: Final = HEADER_LEN + 8 + 16
# RFC 6347, 4.1: a record carries at most 2^14 bytes.
RECORD_LIMIT: Final = 1 << 14

_LENGTH = struct.Struct("!H")


def sane(datagram: bytes) -> bool:
    """Tell whether a datagram begins with a whole record of a kind, version and epoch that occur here."""
    return (
        len(datagram) > HEADER_LEN
        and CHANGE_CIPHER_SPEC <= datagram[0] <= APPLICATION_DATA
        and datagram[1] == 0xFE
        and datagram[2] in (0xFD, 0xFF)
        and datagram[3] == 0
        and datagram[4] <= 1
        and HEADER_LEN + (datagram[11] << 8 | datagram[12]) <= len(datagram)
    )


def epoch(datagram: bytes) -> int:
    """Give the epoch of the first record: 0 is in clear, 1 is protected."""
    return datagram[3] << 8 | datagram[4]


def is_client_hello(datagram: bytes) -> bool:
    """Tell whether a sane datagram begins with an unfragmented ClientHello in clear."""
    return (
        len(datagram) >= CLIENT_HELLO_LEAST
        and datagram[0] == HANDSHAKE
        and datagram[4] == 0
        and datagram[HEADER_LEN] == CLIENT_HELLO
    )


def client_random(datagram: bytes) -> bytes:
    """Give the 32 random bytes that name the attempt to which a ClientHello belongs."""
    return datagram[_RANDOM_AT : _RANDOM_AT + _RANDOM_LEN]


def cookie(datagram: bytes) -> bytes:
    """Give the cookie of a ClientHello, empty if it has none or is cut off."""
    session_at = _RANDOM_AT + _RANDOM_LEN
    cookie_at = session_at + 1 + datagram[session_at]
    if cookie_at >= len(datagram):
        return b""
    return datagram[cookie_at + 1 : cookie_at + 1 + datagram[cookie_at]]


def split(stream: bytes) -> Iterator[bytes]:
    """Cut what OpenSSL has written into its records."""
    at = 0
    while at < len(stream):
        (length,) = _LENGTH.unpack_from(stream, at + HEADER_LEN - 2)
        end = at + HEADER_LEN + length
        yield stream[at:end]
        at = end


def renumber(stream: bytes, number: int) -> tuple[bytes, int]:
    """Give the records in clear new sequence numbers from `number` on; gives the next number too.

    They are not authenticated, so this is allowed; protected ones stay as they are.
    """
    numbered: list[bytes] = []
    for record in split(stream):
        if epoch(record) == 0:
            record = record[:5] + number.to_bytes(6, "big") + record[11:]
            number += 1
        numbered.append(record)
    return b"".join(numbered), number


def number_of(datagram: bytes) -> int:
    """Give the sequence number of the first record."""
    return int.from_bytes(datagram[5:11], "big")


def pack(stream: bytes, limit: int) -> list[bytes]:
    """Put the records of `stream` into as few datagrams of at most `limit` bytes as their order allows."""
    datagrams: list[bytes] = []
    for record in split(stream):
        if datagrams and len(datagrams[-1]) + len(record) <= limit:
            datagrams[-1] += record
        else:
            datagrams.append(record)
    return datagrams
