"""One session as a connection tracker knows it, as a value and as the bytes that travel to another host.

Pure: knows the layout and what values are allowed, and nothing of netlink. The bytes come from a peer, so reading is
total: any bytes give an `Entry` or `WireError`, and what is read is written again to the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from dysco.errors import RemoteError, WireError
from dysco.wire.tuples import FiveTuple

MAGIC: Final = b"DYCT"
VERSION: Final = 1
LABELS_LEN: Final = 16  # NF_CT_LABELS_MAX_SIZE, nf_conntrack_labels.h
MAX_TIMEOUT_S: Final = 2_592_000  # ours: 30 days; the kernel's default for established sessions is 5
MAX_SCALE: Final = 14  # RFC 7323 section 2.3

# enum tcp_conntrack, nf_conntrack_tcp.h: before ESTABLISHED a new handshake tells more than an old entry would,
# after TIME_WAIT there is nothing to move.
ESTABLISHED: Final = 3
TIME_WAIT: Final = 7

# IP_CT_TCP_FLAG_*, nf_conntrack_tcp.h. The rest belong to window data, which the kernel does not tell.
WINDOW_SCALE: Final = 0x01
SACK_PERM: Final = 0x02
CLOSE_INIT: Final = 0x04
MOVED_FLAGS: Final = WINDOW_SCALE | SACK_PERM | CLOSE_INIT

_SEEN_REPLY: Final = 1
_ASSURED: Final = 2
_HEAD: Final = struct.Struct("!4sBBBBBBBBII16s")
_TUPLE_LEN: Final = {4: 12, 6: 36}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tracked session; pairs are (original direction, reply direction).

    Windows and sequence numbers are not in it: Linux keeps them and does not tell them (tcp_to_nlattr in
    nf_conntrack_proto_tcp.c), so the new host takes them from the first packet of each direction.
    """

    original: FiveTuple
    reply: FiveTuple  # as packets of the reply look on the wire; with NAT not the reverse of the original
    state: int = ESTABLISHED
    seen_reply: bool = True
    assured: bool = True
    scales: tuple[int, int] = (0, 0)
    flags: tuple[int, int] = (0, 0)
    timeout_s: int = 1
    mark: int = 0
    labels: bytes = bytes(LABELS_LEN)

    @property
    def has_nat(self) -> bool:
        """Whether addresses or ports are changed."""
        return self.reply != self.original.reversed()


def encode(entry: Entry) -> bytes:
    """Write an entry: 60 bytes with IPv4, 108 with IPv6."""
    return (
        _HEAD.pack(
            MAGIC,
            VERSION,
            entry.original.family,
            entry.state,
            _SEEN_REPLY * entry.seen_reply | _ASSURED * entry.assured,
            *entry.scales,
            *entry.flags,
            entry.timeout_s,
            entry.mark,
            entry.labels,
        )
        + entry.original
        + entry.reply
    )


def decode(data: bytes) -> Entry:
    """Read an entry; raises WireError."""
    if len(data) < _HEAD.size:
        raise WireError(f"a tracker entry has at least {_HEAD.size} bytes, not {len(data)}")
    magic, version, family, state, status, scale, scale_back, flags, flags_back, timeout_s, mark, labels = (
        _HEAD.unpack_from(data)
    )
    if magic != MAGIC or version != VERSION:
        raise WireError("not a tracker entry, or of an unknown version")
    size = _TUPLE_LEN.get(family)
    if size is None or len(data) != _HEAD.size + 2 * size:
        raise WireError(f"a tracker entry of family {family} with {len(data)} bytes")
    if not ESTABLISHED <= state <= TIME_WAIT:
        raise WireError(f"a tracker entry in TCP state {state}")
    if status & ~(_SEEN_REPLY | _ASSURED):
        raise WireError(f"a tracker entry with status {status:#x}")
    for one_scale, one_flags in ((scale, flags), (scale_back, flags_back)):
        if one_flags & ~MOVED_FLAGS:
            raise WireError(f"a tracker entry with TCP flags {one_flags:#x}")
        if one_scale > (MAX_SCALE if one_flags & WINDOW_SCALE else 0):
            raise WireError(f"a tracker entry with window scale {one_scale}")
    if not 1 <= timeout_s <= MAX_TIMEOUT_S:
        raise WireError(f"a tracker entry that lasts {timeout_s} s")
    middle = _HEAD.size + size
    return Entry(
        FiveTuple(data[_HEAD.size : middle]),
        FiveTuple(data[middle:]),
        state,
        bool(status & _SEEN_REPLY),
        bool(status & _ASSURED),
        (scale, scale_back),
        (flags, flags_back),
        timeout_s,
        mark,
        labels,
    )


def check(entry: Entry, session: FiveTuple, right: FiveTuple) -> None:
    """Raise RemoteError unless the entry is of this session, and changes its tuple as said.

    session: the tuple of the SYN before the box; right: behind it. A session that the tracker first saw in its
    backward direction has original and reply exchanged.
    """
    back = right.reversed()
    if (entry.original, entry.reply) not in ((session, back), (back, session)):
        raise RemoteError(f"state of {entry.original}, reply {entry.reply}, came for the session {session}")
