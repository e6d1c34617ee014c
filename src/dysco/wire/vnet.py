"""The virtio-net header that stands before each packet of a TUN device with IFF_VNET_HDR.

Ten bytes in the byte order of the machine (virtio 1.2 section 5.1.6, legacy form; linux/virtio_net.h).
"""

from __future__ import annotations

import struct
from typing import Final

from dysco.errors import WireError
from dysco.wire.packet import CHECKSUM_OFFSET, Packet, locate

HEADER = struct.Struct("=BBHHHH")
HEADER_LEN: Final = HEADER.size
NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_ECN: Final = 0x80
NO_HEADER: Final = bytes(HEADER_LEN)


def unpack(frame: bytes | bytearray | memoryview) -> Packet:
    """Take a frame of the device apart; the packet is a copy. Raises WireError if it is too short."""
    if len(frame) < HEADER_LEN:
        raise WireError(f"a frame of {len(frame)} bytes has no virtio-net header")
    flags, gso_type, _, gso_size, _, _ = HEADER.unpack_from(frame)
    return Packet(
        bytearray(frame[HEADER_LEN:]),
        partial=bool(flags & NEEDS_CSUM),
        gso_size=gso_size if gso_type & ~GSO_ECN else 0,
        ecn=bool(gso_type & GSO_ECN),
    )


def pack(packet: Packet) -> bytes:
    """The virtio-net header for a packet that goes to the device."""
    if not packet.partial and not packet.gso_size:
        return NO_HEADER
    at = locate(packet)
    if at is None:
        return NO_HEADER
    gso_type = GSO_NONE
    if packet.gso_size:
        gso_type = (GSO_TCPV4 if at.family == 4 else GSO_TCPV6) | (GSO_ECN if packet.ecn else 0)
    flags = NEEDS_CSUM if packet.partial else 0
    return HEADER.pack(flags, gso_type, at.payload_offset, packet.gso_size, at.tcp_offset, CHECKSUM_OFFSET)
