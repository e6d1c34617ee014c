"""The chain header, which a SYN carries in front of its payload from one agent to the next.

    0   4  magic "DYSC"
    4   1  version (1)
    5   1  flags: bits 0-1 egress (0 agent, 1 native, 2 nat), bit 2 on_fail open
    6   2  header length, all of it, HMAC included
    8  16  chain id
    24  1  hop index: how many subsessions lie to the left of this one
    25  1  hop count: hops in the list
    26  1  address family (4 or 6)
    27  1  reserved (0)
    28  .. session tuple as the sender's application side sees it     12 or 36
        .. subsession tuple as sent                                   12 or 36
        .. hop list: address (4 or 16) and box number (4) each; the first is the receiver
        8  counter of the association
       16  truncated HMAC-SHA256 over all before it

Everything is big-endian. The header takes no sequence space, for the next agent strips it.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import struct
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple

from dysco.errors import WireError
from dysco.wire.tuples import FiveTuple, show_address

MAGIC: Final = b"DYSC"
VERSION: Final = 1
MAX_LEN: Final = 496
MAX_HOPS: Final = 16
CHAIN_ID_LEN: Final = 16
HMAC_LEN: Final = 16
_FIXED = struct.Struct("!4sBBH16sBBBB")
_COUNTER = struct.Struct("!Q")
_BOX = struct.Struct("!I")
_OPEN: Final = 0x04
_KNOWN_FLAGS: Final = 0x07
_SHA256_BLOCK: Final = 64  # bytes (FIPS 180-4)
_KEYS: Final = 256  # whose beginnings are kept; each takes about 300 bytes


def _plain_sha256() -> Any:
    """SHA-256 of the interpreter itself, else of hashlib.

    A SYN comes to a processor whose caches hold other things: there hashlib's way through OpenSSL costs 44 us a
    signature and this one 25 us; `hmac.digest`, which looks its algorithm up each time, costs 100 us.
    """
    for module in ("_sha256", "_sha2"):  # Python 3.11; 3.12 and later
        try:
            return importlib.import_module(module).sha256
        except ImportError:
            continue
    return hashlib.sha256


_sha256: Final = _plain_sha256()


class Egress(IntEnum):
    """What the last agent of a chain does: hand over to the final host's agent, or send plain packets on."""

    AGENT = 0
    NATIVE = 1
    NAT = 2


_EGRESS: Final = tuple(Egress)


class Hop(NamedTuple):
    """One hop: packed address of its agent, and the 32-bit number of the box there (0: the default box)."""

    address: bytes
    box: int = 0

    def __str__(self) -> str:
        return show_address(self.address) + (f"/{self.box:08x}" if self.box else "")


class ChainHeader(NamedTuple):
    """What the header says; see the module's drawing."""

    chain_id: bytes
    hop_index: int
    session: FiveTuple
    subsession: FiveTuple
    hops: tuple[Hop, ...]
    counter: int
    egress: Egress = Egress.AGENT
    on_fail_open: bool = False


def encode(header: ChainHeader, key: bytes) -> bytes:
    """Pack and sign a header. Raises WireError if it has no hop, more than 16, or two address families."""
    address_len = len(header.hops[0].address) if header.hops else 0
    if not 1 <= len(header.hops) <= MAX_HOPS:
        raise WireError(f"a chain header has 1 to {MAX_HOPS} hops, not {len(header.hops)}")
    tuple_len = 2 * address_len + 4
    if {len(header.session), len(header.subsession)} != {tuple_len} or any(
        len(hop.address) != address_len for hop in header.hops
    ):
        raise WireError("a chain header has addresses of one family")
    length = _FIXED.size + 2 * tuple_len + len(header.hops) * (address_len + 4) + _COUNTER.size + HMAC_LEN
    body = b"".join(
        (
            _FIXED.pack(
                MAGIC,
                VERSION,
                header.egress | (_OPEN if header.on_fail_open else 0),
                length,
                header.chain_id,
                header.hop_index,
                len(header.hops),
                4 if address_len == 4 else 6,
                0,
            ),
            header.session,
            header.subsession,
            *(hop.address + _BOX.pack(hop.box) for hop in header.hops),
            _COUNTER.pack(header.counter),
        )
    )
    return body + _sign(body, key)


def peek(payload: bytes | bytearray | memoryview) -> ChainHeader | None:
    """Read the header at the beginning of a SYN's payload without believing it; None if there is none."""
    if len(payload) < _FIXED.size or bytes(payload[:4]) != MAGIC:
        return None
    _, version, flags, length, chain_id, index, count, family, reserved = _FIXED.unpack_from(payload)
    if version != VERSION or flags & ~_KNOWN_FLAGS or flags & 3 == 3 or family not in (4, 6) or reserved:
        return None
    address_len = 4 if family == 4 else 16
    tuple_len = 2 * address_len + 4
    hops_at = _FIXED.size + 2 * tuple_len
    counter_at = hops_at + count * (address_len + 4)
    if not 1 <= count <= MAX_HOPS or length != counter_at + _COUNTER.size + HMAC_LEN or length > len(payload):
        return None
    data = bytes(payload[:length])
    hops = tuple(
        Hop(data[at : at + address_len], _BOX.unpack_from(data, at + address_len)[0])
        for at in range(hops_at, counter_at, address_len + 4)
    )
    return ChainHeader(
        chain_id,
        index,
        FiveTuple(data[_FIXED.size : _FIXED.size + tuple_len]),
        FiveTuple(data[_FIXED.size + tuple_len : hops_at]),
        hops,
        _COUNTER.unpack_from(data, counter_at)[0],
        _EGRESS[flags & 3],
        bool(flags & _OPEN),
    )


def length(payload: bytes | bytearray | memoryview) -> int:
    """How many bytes the header takes; only for a payload that `peek` accepts."""
    return payload[6] << 8 | payload[7]


def verify(payload: bytes | bytearray | memoryview, key: bytes) -> bool:
    """Whether the HMAC of the header is right; only for a payload that `peek` accepts."""
    data = bytes(payload[: length(payload)])
    return hmac.compare_digest(_sign(data[:-HMAC_LEN], key), data[-HMAC_LEN:])


def _sign(body: bytes, key: bytes) -> bytes:
    inner, outer = _keyed(key)
    inner, outer = inner.copy(), outer.copy()
    inner.update(body)
    outer.update(inner.digest())
    return bytes(outer.digest()[:HMAC_LEN])


@lru_cache(_KEYS)
def _keyed(key: bytes) -> tuple[Any, Any]:
    """Both hashes of RFC 2104 after their first block, which is the same for every header under a key."""
    if len(key) > _SHA256_BLOCK:
        key = _sha256(key).digest()
    key = key.ljust(_SHA256_BLOCK, b"\0")
    return _sha256(bytes(byte ^ 0x36 for byte in key)), _sha256(bytes(byte ^ 0x5C for byte in key))
