"""One IP packet as the kernel hands it over, and a checked view of its TCP header.

Knows header layouts; knows nothing of sessions. A packet may be an offload packet of up to 64 KiB whose
checksum is partial. `locate` checks lengths once; what it returns can be read and edited without a check.
Offsets are bytes from the start of the IP header (RFC 791, RFC 8200, RFC 9293 section 3.1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

from dysco.wire.checksum import add, internet_sum, pseudo_sum
from dysco.wire.tuples import Family, FiveTuple, trusted

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80

PROTOCOL_TCP: Final = 6
IPV6_HEADER_LEN: Final = 40
TCP_HEADER_LEN: Final = 20
CHECKSUM_OFFSET: Final = 16
_FRAGMENT_HEADER: Final = 44
_EXTENSIONS: Final = frozenset((0, 43, 60))  # hop-by-hop, routing, destination options (RFC 8200 section 4)
_TCP = struct.Struct("!HHIIBBHHH")
_TCP_READ = struct.Struct("!4sIIBBH")
_IPV4 = struct.Struct("!2xH2xHxB")
_U16 = struct.Struct("!H")


@dataclass(slots=True)
class Packet:
    """An IP packet with what the virtio-net header says of it.

    data: from the first byte of the IP header to the last byte of payload.
    partial: the TCP checksum field holds only the folded sum of the pseudo-header (NEEDS_CSUM).
    gso_size: payload bytes of each segment on the wire if this is an offload packet, else 0.
    ecn: the offload packet carries CWR on its first segment only (VIRTIO_NET_HDR_GSO_ECN).
    """

    data: bytearray
    partial: bool = False
    gso_size: int = 0
    ecn: bool = False

    def copy(self) -> Packet:
        """An independent packet with the same content."""
        return Packet(bytearray(self.data), self.partial, self.gso_size, self.ecn)


class Reason(Enum):
    """Why a packet is not one that we handle. The values name counters."""

    MALFORMED = "malformed"
    NOT_TCP = "not_tcp"
    FRAGMENT = "fragment"


@dataclass(slots=True)
class Located:
    """Where the parts of a TCP packet are, and the numbers that every decision needs.

    Offsets and lengths in bytes; total_len is the length that the IP header gives; window is not scaled.
    """

    family: Family
    tcp_offset: int
    payload_offset: int
    total_len: int
    five_tuple: FiveTuple
    seq: int
    ack: int
    flags: int
    window: int

    @property
    def payload_len(self) -> int:
        return self.total_len - self.payload_offset

    @property
    def next_seq(self) -> int:
        """The number behind this packet; SYN and FIN take one each."""
        return (self.seq + self.payload_len + bool(self.flags & SYN) + bool(self.flags & FIN)) & 0xFFFFFFFF


def locate(packet: Packet) -> Located | None:
    """Check a packet once; None if it is not a whole TCP packet (then `why` says what it is)."""
    found = _locate(packet.data)
    return found if isinstance(found, Located) else None


def why(packet: Packet) -> Reason | None:
    """The reason for which `locate` gives None; None if it does not."""
    found = _locate(packet.data)
    return found if isinstance(found, Reason) else None


def _locate(data: bytearray) -> Located | Reason:
    size = len(data)
    if size < 20:
        return Reason.MALFORMED
    version = data[0] >> 4
    family: Family
    if version == 4:
        tcp = (data[0] & 0x0F) * 4
        total, fragment, protocol = _IPV4.unpack_from(data)
        if tcp < 20 or total < tcp or total > size:
            return Reason.MALFORMED
        if fragment & 0x3FFF:
            return Reason.FRAGMENT
        if protocol != PROTOCOL_TCP:
            return Reason.NOT_TCP
        family, addresses = 4, data[12:20]
    elif version == 6:
        if size < IPV6_HEADER_LEN:
            return Reason.MALFORMED
        total = IPV6_HEADER_LEN + _U16.unpack_from(data, 4)[0]
        if total > size:
            return Reason.MALFORMED
        upper = ipv6_upper(data, total)
        if isinstance(upper, Reason):
            return upper
        protocol, tcp = upper
        if protocol != PROTOCOL_TCP:
            return Reason.NOT_TCP
        family, addresses = 6, data[8:40]
    else:
        return Reason.MALFORMED
    if total < tcp + TCP_HEADER_LEN:
        return Reason.MALFORMED
    ports, seq, ack, offset, flags, window = _TCP_READ.unpack_from(data, tcp)
    payload = tcp + (offset >> 4) * 4
    if payload < tcp + TCP_HEADER_LEN or payload > total:
        return Reason.MALFORMED
    five_tuple = trusted(addresses + ports)
    return Located(family, tcp, payload, total, five_tuple, seq, ack, flags, window)


def ipv6_upper(data: bytearray | bytes, total: int) -> tuple[int, int] | Reason:
    """The upper-layer protocol of an IPv6 packet and its offset, behind extension headers."""
    protocol, offset = data[6], IPV6_HEADER_LEN
    while protocol in _EXTENSIONS:
        if offset + 8 > total:
            return Reason.MALFORMED
        protocol, offset = data[offset], offset + 8 + data[offset + 1] * 8
    if protocol == _FRAGMENT_HEADER:
        return Reason.FRAGMENT
    return (protocol, offset) if offset <= total else Reason.MALFORMED


def address_bytes(packet: Packet, at: Located) -> memoryview:
    """Source and destination address of the IP header, for pseudo-header sums."""
    view = memoryview(packet.data)
    return view[12:20] if at.family == 4 else view[8:40]


def verify(packet: Packet, at: Located | None = None) -> bool:
    """Whether IPv4 header and TCP checksum are right; a partial checksum must be the pseudo-header's sum.

    at: as `locate` gives it.
    """
    at = at or locate(packet)
    if at is None:
        return False
    data = memoryview(packet.data)[: at.total_len]
    if at.family == 4 and internet_sum(data[: at.tcp_offset]) != 0xFFFF:
        return False
    pseudo = pseudo_sum(address_bytes(packet, at), at.total_len - at.tcp_offset)
    if packet.partial:
        field = _U16.unpack_from(data, at.tcp_offset + CHECKSUM_OFFSET)[0]
        return bool(field % 0xFFFF == pseudo % 0xFFFF)
    return internet_sum(data[at.tcp_offset :], pseudo) == 0xFFFF


def fix_checksums(packet: Packet, at: Located) -> None:
    """Compute the IPv4 header checksum and the TCP checksum anew, in the form that the packet has."""
    data = packet.data
    if at.family == 4:
        _U16.pack_into(data, 10, 0)
        _U16.pack_into(data, 10, ~internet_sum(memoryview(data)[: at.tcp_offset]) & 0xFFFF)
    field = at.tcp_offset + CHECKSUM_OFFSET
    total = pseudo_sum(address_bytes(packet, at), at.total_len - at.tcp_offset)
    if packet.partial:
        _U16.pack_into(data, field, total)
        return
    _U16.pack_into(data, field, 0)
    total = internet_sum(memoryview(data)[at.tcp_offset : at.total_len], total)
    _U16.pack_into(data, field, ~total & 0xFFFF)


def complete(packet: Packet, at: Located | None = None) -> None:
    """Turn a partial checksum into a complete one; only for packets that `locate` accepts."""
    if packet.partial and (at := at or locate(packet)) is not None:
        packet.partial = False
        fix_checksums(packet, at)


def splice(packet: Packet, start: int, end: int, new: bytes) -> Located:
    """Replace bytes `start` to `end` behind the IP header by `new`; lengths and checksums are mended.

    The caller vouches that the result is well-formed, and for the TCP data offset (`set_header_len`).
    """
    packet.data[start:end] = new
    _set_total(packet.data)
    at = locate(packet)
    assert at is not None
    fix_checksums(packet, at)
    return at


def set_payload(packet: Packet, payload: bytes, at: Located | None = None) -> None:
    """Put other payload into a packet that is not an offload packet. at: as `locate` gives it now; it follows."""
    at = at or locate(packet)
    assert at is not None
    packet.data[at.payload_offset :] = payload
    at.total_len = len(packet.data)
    _set_total(packet.data)
    fix_checksums(packet, at)


def _set_total(data: bytearray) -> None:
    """Say in the IP header how long the packet is."""
    if data[0] >> 4 == 4:
        _U16.pack_into(data, 2, len(data))
    else:
        _U16.pack_into(data, 4, len(data) - IPV6_HEADER_LEN)


def set_word(packet: Packet, at: Located, offset: int, value: int) -> None:
    """Write a 16-bit word at an even offset from the TCP header, and keep a complete checksum right."""
    position = at.tcp_offset + offset
    old = _U16.unpack_from(packet.data, position)[0]
    _U16.pack_into(packet.data, position, value)
    if not packet.partial:
        field = at.tcp_offset + CHECKSUM_OFFSET
        checksum = _U16.unpack_from(packet.data, field)[0]
        _U16.pack_into(packet.data, field, add(checksum, (value - old) % 0xFFFF))


def build_tcp(
    five_tuple: FiveTuple,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes = b"",
    payload: bytes = b"",
    ttl: int = 64,
) -> Packet:
    """Make a TCP packet with complete checksums; options are padded to a multiple of four bytes."""
    options += bytes(-len(options) % 4)
    header = TCP_HEADER_LEN + len(options)
    tcp = (
        _TCP.pack(five_tuple.sport, five_tuple.dport, seq, ack, header << 2, flags, window, 0, 0)
        + options
        + payload
    )
    if five_tuple.family == 4:
        ip = (
            struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, ttl, PROTOCOL_TCP, 0) + five_tuple[:8]
        )
    else:
        ip = struct.pack("!IHBB", 6 << 28, len(tcp), PROTOCOL_TCP, ttl) + five_tuple[:32]
    packet = Packet(bytearray(ip + tcp))
    at = locate(packet)
    assert at is not None
    fix_checksums(packet, at)
    return packet
