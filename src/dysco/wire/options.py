"""TCP options: what a SYN announces, the MSS clamp, and the tag that finds a SYN again behind a middlebox.

The tag is an experimental option (RFC 6994): kind 253, length 12, ExID 0xD15C, eight bytes. It is inserted as
the first option, so that the kernel program finds it at a fixed place, and is always taken out again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from dysco.wire.packet import TCP_HEADER_LEN, Located, Packet, locate, set_word, splice

END: Final = 0
NOP: Final = 1
MSS: Final = 2
WINDOW_SCALE: Final = 3
SACK_PERMITTED: Final = 4
SACK: Final = 5
TIMESTAMP: Final = 8
MD5: Final = 19
AO: Final = 29
MPTCP: Final = 30
EXPERIMENT: Final = 253

EXID: Final = 0xD15C
TAG_LEN: Final = 8
_TAG_HEADER: Final = struct.pack("!BBH", EXPERIMENT, 12, EXID)
_OPTION_SPACE: Final = 40


class SynOptions(NamedTuple):
    """Options of a packet. mss in bytes, wscale as shift, timestamps as 32-bit numbers; None: not there."""

    mss: int | None = None
    wscale: int | None = None
    sack: bool = False
    tsval: int | None = None
    tsecr: int | None = None
    has_md5: bool = False
    has_ao: bool = False
    has_mptcp: bool = False


def walk(packet: Packet, at: Located) -> Iterator[tuple[int, int, int]]:
    """Yield (kind, offset, length) of each well-formed option; ends at the first that is not."""
    data, position, end = packet.data, at.tcp_offset + TCP_HEADER_LEN, at.payload_offset
    while position < end:
        kind = data[position]
        if kind == END:
            return
        if kind == NOP:
            position += 1
            continue
        if position + 2 > end:
            return
        length = data[position + 1]
        if length < 2 or position + length > end:
            return
        yield kind, position, length
        position += length


def syn_options(packet: Packet, at: Located | None = None) -> SynOptions:
    """Read the options of a packet; options of a wrong length count as not there. at: as `locate` gives it."""
    at = at or locate(packet)
    if at is None or at.payload_offset == at.tcp_offset + TCP_HEADER_LEN:
        return SynOptions()
    data = packet.data
    mss = wscale = tsval = tsecr = None
    sack = md5 = ao = mptcp = False
    for kind, position, length in walk(packet, at):
        if kind == MSS and length == 4:
            mss = data[position + 2] << 8 | data[position + 3]
        elif kind == WINDOW_SCALE and length == 3:
            wscale = min(data[position + 2], 14)  # RFC 7323 section 2.3
        elif kind == SACK_PERMITTED and length == 2:
            sack = True
        elif kind == TIMESTAMP and length == 10:
            tsval, tsecr = struct.unpack_from("!II", data, position + 2)
        elif kind == MD5:
            md5 = True
        elif kind == AO:
            ao = True
        elif kind == MPTCP:
            mptcp = True
    return SynOptions(mss, wscale, sack, tsval, tsecr, md5, ao, mptcp)


def mss(packet: Packet) -> int | None:
    """The announced maximum segment size in bytes."""
    return syn_options(packet).mss


def clamp_mss(packet: Packet, limit: int, at: Located | None = None) -> bool:
    """Lower the announced MSS to `limit` bytes; True if something changed. at: as `locate` gives it now.

    An option that is repeated is lowered each time, for receivers differ in which one they take.
    """
    at = at or locate(packet)
    changed = False
    if at is None:
        return changed
    for kind, position, length in walk(packet, at):
        value = (
            packet.data[position + 2] << 8 | packet.data[position + 3] if kind == MSS and length == 4 else 0
        )
        if value <= limit:
            continue
        offset = position + 2 - at.tcp_offset
        if offset & 1:
            # The two bytes lie in two words of the sum: change each word on its own.
            high, low = limit >> 8, limit & 0xFF
            set_word(packet, at, offset - 1, packet.data[position + 1] << 8 | high)
            set_word(packet, at, offset + 1, low << 8 | packet.data[position + 4])
        else:
            set_word(packet, at, offset, limit)
        changed = True
    return changed


def insert_tag(packet: Packet, tag: bytes) -> bool:
    """Put our option first; False, and nothing changed, if 40 bytes of options cannot hold it."""
    at = locate(packet)
    if at is None or len(tag) != TAG_LEN:
        return False
    header = at.payload_offset - at.tcp_offset + len(_TAG_HEADER) + TAG_LEN
    if header - TCP_HEADER_LEN > _OPTION_SPACE:
        return False
    packet.data[at.tcp_offset + 12] = packet.data[at.tcp_offset + 12] & 0x0F | (header << 2)
    start = at.tcp_offset + TCP_HEADER_LEN
    splice(packet, start, start, _TAG_HEADER + tag)
    return True


def find_tag(packet: Packet) -> bytes | None:
    """The eight bytes of our option, wherever it stands."""
    at = locate(packet) if _TAG_HEADER in packet.data else None
    position = None if at is None else _tag_position(packet, at)
    return None if position is None else bytes(packet.data[position + 4 : position + 4 + TAG_LEN])


def strip_tag(packet: Packet, at: Located | None = None) -> bool:
    """Take our option out; True if it was there. at: as `locate` gives it now."""
    if _TAG_HEADER not in packet.data:
        return False
    at = at or locate(packet)
    position = None if at is None else _tag_position(packet, at)
    if at is None or position is None:
        return False
    header = at.payload_offset - at.tcp_offset - len(_TAG_HEADER) - TAG_LEN
    packet.data[at.tcp_offset + 12] = packet.data[at.tcp_offset + 12] & 0x0F | (header << 2)
    splice(packet, position, position + len(_TAG_HEADER) + TAG_LEN, b"")
    return True


def _tag_position(packet: Packet, at: Located) -> int | None:
    for kind, position, length in walk(packet, at):
        if (
            kind == EXPERIMENT
            and length == 12
            and packet.data[position + 2 : position + 4] == _TAG_HEADER[2:]
        ):
            return position
    return None
