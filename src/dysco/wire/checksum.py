"""Internet checksums: sums, incremental updates, and the two forms that a TCP checksum takes.

A complete checksum field is the complement of the sum of pseudo-header and segment (RFC 1071). A partial one
(NEEDS_CSUM of the virtio-net header) is the folded sum of the pseudo-header alone, not complemented; a device
or the receiver adds the rest. Sums are 16 bits; a delta is what to add to a sum, modulo 0xffff.
"""

from __future__ import annotations


def internet_sum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """The folded one's-complement sum of big-endian 16-bit words; an odd last byte counts as high byte."""
    # 2**16 is 1 modulo 0xffff, so a big integer modulo 0xffff is the folded sum of its words.
    odd = len(data) & 1
    number = int.from_bytes(data, "big") << (8 if odd else 0)
    total = start + number % 0xFFFF
    folded = total % 0xFFFF
    return folded or (0xFFFF if start or number else 0)


def add(field: int, delta: int) -> int:
    """Add a delta to the data behind a complemented checksum field (RFC 1624, equation 3).

    The sum of data that is not all zero is never zero, so the field never becomes 0xffff.
    """
    return ~((0xFFFF - field + delta) % 0xFFFF or 0xFFFF) & 0xFFFF


def add_partial(field: int, delta: int) -> int:
    """Add a delta to a partial checksum field, which is a plain sum."""
    return (field + delta) % 0xFFFF or 0xFFFF


def pseudo_sum(addresses: bytes | bytearray | memoryview, length: int, protocol: int = 6) -> int:
    """The sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1); length in bytes of TCP."""
    return internet_sum(addresses, (length >> 16) + (length & 0xFFFF) + protocol)
