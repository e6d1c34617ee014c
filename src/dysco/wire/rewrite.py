"""Edit addresses, ports and numbers of a TCP packet in place, and keep its checksums right.

The reference of the hot loop in `dysco.dataplane`, and what the core and the simulator use. Nothing of the
payload is read: checksums are updated (RFC 1624). In a partial checksum only the addresses count, for the
device or the receiver adds the rest.
"""

from __future__ import annotations

import struct
from typing import Protocol

from dysco.wire.checksum import add, add_partial
from dysco.wire.packet import ACK, CHECKSUM_OFFSET, TCP_HEADER_LEN, Located, Packet, locate
from dysco.wire.tuples import FiveTuple

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
MASK32 = 0xFFFFFFFF


class Numbers(Protocol):
    """What to add to sequence numbers, acknowledgements and timestamps, modulo 2**32."""

    seq_delta: int
    ack_delta: int
    tsval_delta: int
    tsecr_delta: int
    window_shift: int
    strip_sack: bool


class Rewrite(Protocol):
    """What `apply` needs of a flow; see `dysco.protocol.flow.Flow`."""

    rewrite: FiveTuple
    address_delta: int
    full_delta: int

    @property
    def translation(self) -> Numbers | None: ...


def apply(packet: Packet, flow: Rewrite, at: Located | None = None) -> None:
    """Rewrite a packet that matches the flow; a packet that `locate` refuses is left alone.

    at: what `locate` gave for the packet as it is now, if the caller has it.
    """
    at = at or locate(packet)
    if at is None:
        return
    data, new, tcp = packet.data, flow.rewrite, at.tcp_offset
    if at.family == 4:
        data[12:20] = new[:8]
        _U16.pack_into(data, 10, add(_U16.unpack_from(data, 10)[0], flow.address_delta))
    else:
        data[8:40] = new[:32]
    data[tcp : tcp + 4] = new[-4:]
    delta = 0 if flow.translation is None else _translate(packet, at, flow.translation)
    field = tcp + CHECKSUM_OFFSET
    checksum = _U16.unpack_from(data, field)[0]
    if packet.partial:
        _U16.pack_into(data, field, add_partial(checksum, flow.address_delta))
    else:
        _U16.pack_into(data, field, add(checksum, flow.full_delta + delta))


def retarget(packet: Packet, new: FiveTuple, at: Located) -> None:
    """Give a packet other addresses and ports; `at`, as `locate` gives it now, follows."""
    data, old, tcp = packet.data, at.five_tuple, at.tcp_offset
    if at.family == 4:
        data[12:20] = new[:8]
        _U16.pack_into(data, 10, add(_U16.unpack_from(data, 10)[0], _difference(old[:8], new[:8])))
    else:
        data[8:40] = new[:32]
    data[tcp : tcp + 4] = new[-4:]
    field = tcp + CHECKSUM_OFFSET
    checksum = _U16.unpack_from(data, field)[0]
    if packet.partial:
        _U16.pack_into(data, field, add_partial(checksum, _difference(old[:-4], new[:-4])))
    else:
        _U16.pack_into(data, field, add(checksum, _difference(old, new)))
    at.five_tuple = new


def _difference(old: bytes, new: bytes) -> int:
    """What to add to the sum of 16-bit words: 2**16 is 1 modulo 0xffff, so that of the whole numbers."""
    return (int.from_bytes(new, "big") - int.from_bytes(old, "big")) % 0xFFFF


def _translate(packet: Packet, at: Located, numbers: Numbers) -> int:
    """Shift the numbers; return the sum to add to a complete checksum."""
    data, tcp = packet.data, at.tcp_offset
    delta = shift32(data, tcp + 4, numbers.seq_delta)
    if at.flags & ACK:
        delta += shift32(data, tcp + 8, numbers.ack_delta)
    if numbers.window_shift:
        delta += _scale_window(data, tcp + 14, numbers.window_shift)
    position, end = tcp + TCP_HEADER_LEN, at.payload_offset
    while position < end:
        kind = data[position]
        if kind == 0:
            break
        if kind == 1:
            position += 1
            continue
        if position + 2 > end or data[position + 1] < 2 or position + data[position + 1] > end:
            break
        length = data[position + 1]
        if kind == 5 and numbers.strip_sack:
            for byte in range(position, position + length):
                delta += (1 - data[byte]) * (1 if (byte - tcp) & 1 else 256)
                data[byte] = 1
        elif kind == 5:
            for edge in range(position + 2, position + length - 3, 4):
                delta += _shift_odd(data, edge, numbers.ack_delta, (edge - tcp) & 1)
        elif kind == 8 and length == 10:
            odd = (position - tcp) & 1
            delta += _shift_odd(data, position + 2, numbers.tsval_delta, odd)
            if at.flags & ACK:
                delta += _shift_odd(data, position + 6, numbers.tsecr_delta, odd)
        position += length
    return delta


def _scale_window(data: bytearray, position: int, shift: int) -> int:
    """Write a window in units of another scale; never more than it was, and 0 only for 0 (RFC 7323 section 2)."""
    old = _U16.unpack_from(data, position)[0]
    new = min(old << shift, 0xFFFF) if shift > 0 else old >> -shift or min(old, 1)
    _U16.pack_into(data, position, new)
    return int(new - old) % 0xFFFF


def shift32(data: bytearray, position: int, delta: int) -> int:
    """Add to a 32-bit number in place, modulo 2**32; return the change of the one's-complement sum."""
    old = _U32.unpack_from(data, position)[0]
    new = (old + delta) & MASK32
    _U32.pack_into(data, position, new)
    return int(new - old) % 0xFFFF


def shift_at(data: bytearray, tcp: int, position: int, delta: int) -> int:
    """As shift32, at any position of the TCP header that begins at `tcp`."""
    return _shift_odd(data, position, delta, (position - tcp) & 1)


def _shift_odd(data: bytearray, position: int, delta: int, odd: int) -> int:
    """As shift32; at an odd offset the bytes of the change stand swapped in the sum (RFC 1071 section 2)."""
    change = shift32(data, position, delta)
    return change * 256 if odd else change
