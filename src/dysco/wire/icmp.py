"""ICMP and ICMPv6 errors about TCP packets: read, translate, make.

An error quotes the beginning of the packet that it is about (RFC 792, RFC 4443). Behind a rewrite that
quotation names a five-tuple that the receiver does not know, so it must be rewritten too, or path-MTU
discovery breaks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from dysco.wire.checksum import internet_sum, pseudo_sum
from dysco.wire.packet import IPV6_HEADER_LEN, PROTOCOL_TCP, Packet, Reason, ipv6_upper
from dysco.wire.tuples import Family, FiveTuple

PROTOCOL_ICMP: Final = 1
PROTOCOL_ICMPV6: Final = 58
UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4
TOO_BIG: Final = 2
_V4_ERRORS: Final = frozenset((3, 11, 12))
_V6_ERRORS: Final = frozenset((1, 2, 3, 4))
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An error message about a TCP packet.

    five_tuple and seq are those of the quoted packet; mtu in bytes of IP packet, 0 if the error is of another
    kind; offsets are from the start of the outer IP header.
    """

    family: Family
    src: bytes
    dst: bytes
    type: int
    code: int
    mtu: int
    five_tuple: FiveTuple
    seq: int
    icmp_offset: int
    quoted_offset: int
    quoted_tcp: int
    total_len: int


def parse_error(packet: Packet) -> IcmpError | None:
    """Read an ICMP error that quotes at least eight bytes of a TCP header; None for anything else."""
    data = packet.data
    if len(data) < 20:
        return None
    return _parse_v4(data) if data[0] >> 4 == 4 else _parse_v6(data) if data[0] >> 4 == 6 else None


def _parse_v4(data: bytearray) -> IcmpError | None:
    icmp, total = (data[0] & 0x0F) * 4, _U16.unpack_from(data, 2)[0]
    if icmp < 20 or total > len(data) or total < icmp + 8 + 20 + 8 or _U16.unpack_from(data, 6)[0] & 0x3FFF:
        return None
    quoted = icmp + 8
    tcp = quoted + (data[quoted] & 0x0F) * 4
    if data[9] != PROTOCOL_ICMP or data[icmp] not in _V4_ERRORS or data[quoted] >> 4 != 4:
        return None
    if tcp < quoted + 20 or tcp + 8 > total or data[quoted + 9] != PROTOCOL_TCP:
        return None
    if _U16.unpack_from(data, quoted + 6)[0] & 0x1FFF:
        return None
    is_mtu = data[icmp] == UNREACHABLE and data[icmp + 1] == FRAGMENTATION_NEEDED
    return IcmpError(
        4,
        bytes(data[12:16]),
        bytes(data[16:20]),
        data[icmp],
        data[icmp + 1],
        _U16.unpack_from(data, icmp + 6)[0] if is_mtu else 0,
        FiveTuple(bytes(data[quoted + 12 : quoted + 20]) + bytes(data[tcp : tcp + 4])),
        _U32.unpack_from(data, tcp + 4)[0],
        icmp,
        quoted,
        tcp,
        total,
    )


def _parse_v6(data: bytearray) -> IcmpError | None:
    if len(data) < IPV6_HEADER_LEN:
        return None
    total = IPV6_HEADER_LEN + _U16.unpack_from(data, 4)[0]
    if total > len(data):
        return None
    outer = ipv6_upper(data, total)
    if isinstance(outer, Reason) or outer[0] != PROTOCOL_ICMPV6 or outer[1] + 8 + IPV6_HEADER_LEN + 8 > total:
        return None
    icmp = outer[1]
    quoted = icmp + 8
    if data[icmp] not in _V6_ERRORS or data[quoted] >> 4 != 6:
        return None
    inner = ipv6_upper(data[quoted:total], total - quoted)
    if isinstance(inner, Reason) or inner[0] != PROTOCOL_TCP or quoted + inner[1] + 8 > total:
        return None
    tcp = quoted + inner[1]
    return IcmpError(
        6,
        bytes(data[8:24]),
        bytes(data[24:40]),
        data[icmp],
        data[icmp + 1],
        _U32.unpack_from(data, icmp + 4)[0] if data[icmp] == TOO_BIG else 0,
        FiveTuple(bytes(data[quoted + 8 : quoted + 40]) + bytes(data[tcp : tcp + 4])),
        _U32.unpack_from(data, tcp + 4)[0],
        icmp,
        quoted,
        tcp,
        total,
    )


def translate_error(
    packet: Packet,
    error: IcmpError,
    quoted: FiveTuple,
    *,
    src: bytes,
    dst: bytes,
    seq_delta: int = 0,
    mtu: int = 0,
) -> None:
    """Rewrite an error in place: its addresses, and tuple and sequence number of what it quotes.

    mtu: put this in place of the MTU it carries, if not 0. The quoted TCP checksum cannot be kept right, for
    most of what it covers is not there; receivers do not check it (RFC 5508 section 4.2 allows both).
    """
    data = packet.data
    del data[error.total_len :]
    packet.partial = False
    if error.family == 4:
        data[12:16], data[16:20] = src, dst
        data[error.quoted_offset + 12 : error.quoted_offset + 20] = quoted[:8]
        _fix_ipv4(data, 0)
        _fix_ipv4(data, error.quoted_offset)
        if mtu:
            _U16.pack_into(data, error.icmp_offset + 6, mtu)
    else:
        data[8:24], data[24:40] = src, dst
        data[error.quoted_offset + 8 : error.quoted_offset + 40] = quoted[:32]
        if mtu:
            _U32.pack_into(data, error.icmp_offset + 4, mtu)
    data[error.quoted_tcp : error.quoted_tcp + 4] = quoted[-4:]
    _U32.pack_into(data, error.quoted_tcp + 4, (error.seq + seq_delta) & 0xFFFFFFFF)
    _fix_icmp(data, error.family, error.icmp_offset)


def make_fragmentation_needed(about: Packet, mtu: int, *, src: bytes, dst: bytes, ttl: int = 64) -> Packet:
    """Make "fragmentation needed" or "packet too big" about an IP packet; mtu in bytes; src, dst packed."""
    if len(src) == 4:
        quoted = bytes(about.data[: (about.data[0] & 0x0F) * 4 + 8])
        body = struct.pack("!BBHHH", UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, mtu) + quoted
        ip = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(body), 0, 0, ttl, PROTOCOL_ICMP, 0) + src + dst
        data = bytearray(ip + body)
        _fix_ipv4(data, 0)
        _fix_icmp(data, 4, 20)
    else:
        body = struct.pack("!BBHI", TOO_BIG, 0, 0, mtu) + bytes(about.data[: 1280 - IPV6_HEADER_LEN - 8])
        data = bytearray(struct.pack("!IHBB", 6 << 28, len(body), PROTOCOL_ICMPV6, ttl) + src + dst + body)
        _fix_icmp(data, 6, IPV6_HEADER_LEN)
    return Packet(data)


def _fix_ipv4(data: bytearray, offset: int) -> None:
    header = (data[offset] & 0x0F) * 4
    _U16.pack_into(data, offset + 10, 0)
    _U16.pack_into(data, offset + 10, ~internet_sum(data[offset : offset + header]) & 0xFFFF)


def _fix_icmp(data: bytearray, family: Family, offset: int) -> None:
    start = 0 if family == 4 else pseudo_sum(data[8:40], len(data) - offset, PROTOCOL_ICMPV6)
    _U16.pack_into(data, offset + 2, 0)
    _U16.pack_into(data, offset + 2, ~internet_sum(data[offset:], start) & 0xFFFF)
