"""dpkt behind one total function.

Packets that make or change state are decoded here before anything believes them. dpkt raises AttributeError
and others on hostile headers and leaves bytes where a TCP header is cut off, so lengths are checked first and
whatever it raises becomes `Malformed`.
"""

from __future__ import annotations

from dataclasses import dataclass

import dpkt

from dysco.wire.packet import Located, Packet, locate, why


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that are not a whole TCP packet; reason names a counter."""

    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """What dpkt made of a TCP packet."""

    ip: dpkt.ip.IP | dpkt.ip6.IP6
    tcp: dpkt.tcp.TCP


def decode(packet: Packet, at: Located | None = None) -> Decoded | Malformed:
    """Decode a TCP packet; never raises. at: what `locate` gave for it, if the caller has it."""
    at = at or locate(packet)
    if at is None:
        reason = why(packet)
        return Malformed(reason.value if reason is not None else "malformed")
    # The headers are enough, and the length of the payload was checked.
    data = bytes(packet.data[: at.total_len])
    try:
        ip = dpkt.ip.IP(data) if at.family == 4 else dpkt.ip6.IP6(data)
        tcp = ip.data
        if not isinstance(tcp, dpkt.tcp.TCP):
            return Malformed("malformed")
    except Exception:  # dpkt documents no list of what it raises
        return Malformed("malformed")
    if (tcp.seq, tcp.ack, tcp.flags & 0xFF) != (at.seq, at.ack, at.flags):
        return Malformed("malformed")
    return Decoded(ip, tcp)
