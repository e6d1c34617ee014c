"""Edits that a session on two paths needs: other numbers, a packet cut in two, an acknowledgement alone, SACK blocks.

Works on packets that `locate` accepts and keeps their checksums right, complete ones and partial ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from dysco.wire.checksum import add
from dysco.wire.options import NOP, SACK, walk
from dysco.wire.packet import (
    ACK,
    CHECKSUM_OFFSET,
    CWR,
    FIN,
    IPV6_HEADER_LEN,
    PSH,
    URG,
    Located,
    Packet,
    fix_checksums,
    locate,
)
from dysco.wire.rewrite import shift32

_U16: Final = struct.Struct("!H")
_U32: Final = struct.Struct("!I")
_FLAGS_OFFSET: Final = 13
_BLOCK: Final = 8

Blocks = Callable[[int, int], tuple[int, int] | None]
"""Give what shall become of a SACK block with these edges; None: take it out."""


def renumber(packet: Packet, at: Located, *, seq: int | None = None, ack: int | None = None) -> Located:
    """Write other numbers; an acknowledgement only into a packet that has one."""
    data, tcp = packet.data, at.tcp_offset
    delta = 0
    if seq is not None and seq != at.seq:
        delta += shift32(data, tcp + 4, seq - at.seq)
        at.seq = seq
    if ack is not None and at.flags & ACK and ack != at.ack:
        delta += shift32(data, tcp + 8, ack - at.ack)
        at.ack = ack
    if delta and not packet.partial:
        field = tcp + CHECKSUM_OFFSET
        _U16.pack_into(data, field, add(_U16.unpack_from(data, field)[0], delta))
    return at


def bare(packet: Packet, at: Located, seq: int, ack: int, least_window: int = 0) -> Packet:
    """Make the acknowledgement alone that a packet carries, with these numbers and the packet's own options."""
    data = bytearray(packet.data[: at.payload_offset])
    data[at.tcp_offset + _FLAGS_OFFSET] = at.flags & ~(FIN | PSH | URG | CWR)
    _U32.pack_into(data, at.tcp_offset + 4, seq)
    _U32.pack_into(data, at.tcp_offset + 8, ack)
    if at.window < least_window:
        _U16.pack_into(data, at.tcp_offset + 14, least_window)
    return _sized(Packet(data))


def split(packet: Packet, at: Located, length: int) -> tuple[Packet, Packet]:
    """Cut a packet after `length` bytes of its payload, of which it has more, or as many and a FIN.

    FIN and PSH stay with the second part, CWR with the first (RFC 3168 section 6.1.2). Offload packets give offload
    packets where there is still more than one segment.
    """
    middle = at.payload_offset + length
    first = Packet(bytearray(packet.data[:middle]), packet.partial, _still(packet, length), packet.ecn)
    rest = at.total_len - middle
    second = Packet(
        packet.data[: at.payload_offset] + packet.data[middle : at.total_len],
        packet.partial,
        _still(packet, rest),
    )
    first.data[at.tcp_offset + _FLAGS_OFFSET] &= ~(FIN | PSH)
    second.data[at.tcp_offset + _FLAGS_OFFSET] &= ~CWR
    _U32.pack_into(second.data, at.tcp_offset + 4, (at.seq + length) & 0xFFFFFFFF)
    return _sized(first), _sized(second)


def edit_sack(packet: Packet, at: Located, decide: Blocks) -> None:
    """Ask what shall become of each SACK block (RFC 2018); what is taken out leaves NOPs."""
    data = packet.data
    for kind, position, length in walk(packet, at):
        if kind != SACK or (length - 2) % _BLOCK:
            continue
        old = [struct.unpack_from("!II", data, position + 2 + i) for i in range(0, length - 2, _BLOCK)]
        kept = [block for block in (decide(*edges) for edges in old) if block is not None]
        if kept == old:
            continue
        size = 2 + _BLOCK * len(kept) if kept else 0
        new = bytes((SACK, size)) + b"".join(struct.pack("!II", *block) for block in kept) if kept else b""
        data[position : position + length] = new + bytes((NOP,)) * (length - size)
        if not packet.partial:
            fix_checksums(packet, at)
        return


def _still(packet: Packet, length: int) -> int:
    return packet.gso_size if length > packet.gso_size else 0


def _sized(packet: Packet) -> Packet:
    """Write the length that the packet has into its IP header, and the checksums."""
    if packet.data[0] >> 4 == 4:
        _U16.pack_into(packet.data, 2, len(packet.data))
    else:
        _U16.pack_into(packet.data, 4, len(packet.data) - IPV6_HEADER_LEN)
    at = locate(packet)
    assert at is not None
    fix_checksums(packet, at)
    return packet
