"""One IP packet as the kernel hands it over, and a checked view of its TCP header.

Knows header layouts; knows nothing of sessions. A packet may be an offload packet of up to 64 KiB whose
checksum is partial. `locate` checks lengths once; what it returns can be read and edited without a check.
"""

from __future__ import annotations

from dataclasses import dataclass


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
