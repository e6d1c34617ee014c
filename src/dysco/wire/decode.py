"""dpkt behind one total function.

Packets that make or change state are decoded here before anything believes them. dpkt raises AttributeError
and others on hostile headers and leaves bytes where a TCP header is cut off, so lengths are checked first and
whatever it raises becomes `Malformed`. It is given the TCP header alone: taking the IP header apart a second time
costs three times as much and finds nothing that the checks of `locate` let pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import dpkt

from dysco.wire.packet import Located, Packet, locate, why


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that are not a whole TCP packet; reason names a counter."""

    reason: str


_MALFORMED = Malformed("malformed")


def decode(packet: Packet, at: Located | None = None) -> dpkt.tcp.TCP | Malformed:
    """Decode the TCP header of a packet; never raises. at: what `locate` gave for it, if the caller has it."""
    at = at or locate(packet)
    if at is None:
        reason = why(packet)
        return Malformed(reason.value) if reason is not None else _MALFORMED
    try:
        tcp = dpkt.tcp.TCP(bytes(packet.data[at.tcp_offset : at.payload_offset]))
        if (tcp.seq, tcp.ack, tcp.flags & 0xFF, tcp.data) == (at.seq, at.ack, at.flags, b""):
            return tcp
    except Exception:  # dpkt documents no list of what it raises
        return _MALFORMED
    return _MALFORMED
