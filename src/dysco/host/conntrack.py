"""Entries of the kernel's connection tracker: read, put in, changed and taken out for one session at a time.

Speaks ctnetlink (linux/netfilter/nfnetlink_conntrack.h) on a raw netlink socket that stays in its namespace; a call is
one or two exchanges with the kernel and blocks for microseconds. Knows nothing of who wants the state moved.

What the kernel does with an entry that was put in (nf_conntrack_proto_tcp.c; the tests in namespaces show it):

* It has no window data (td_maxwin is 0). The first packet of each direction is taken as it is and sets them, so even a
  strict ruleset (INVALID dropped, NEW only by SYN, be_liberal and loose off) lets the session go on.
* That first packet also sets the other direction's highest number from its ack. Until a packet of that other direction
  has come by, any later ack is "over the upper bound", INVALID, and changes nothing. While a session moves, bytes may
  still arrive by the old path and be acknowledged here; if both directions do that, each waits for the other for ever.
  So a new entry gets IP_CT_TCP_FLAG_BE_LIBERAL, as conntrackd's entries do, and keeps it: taken away later, the same
  deadlock comes then. The rest of the tracking (states, FIN, time-outs, ASSURED) is as for any other session.
* An entry that is there has windows, which may be those of an earlier stay of the session: it gets the flag too.
* A handshake that comes after the entry was put in passes, and gives it new numbers.

Not moved: helpers and their expectations (FTP), sequence adjustments, zones other than 0, counters. An entry with
sequence adjustments is refused, for without them the session would be corrupted.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from dysco.errors import HostError, PermissionDeniedError
from dysco.host import tracked
from dysco.host.netns import run_in
from dysco.host.tracked import Entry
from dysco.wire.tuples import FiveTuple

_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = 0, 1, 2  # IPCTNL_MSG_CT_*
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400  # NLM_F_*
_ERROR: Final = 2  # NLMSG_ERROR
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF

# enum ctattr_type
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _NAT_SRC, _TIMEOUT, _MARK = 1, 2, 3, 4, 6, 7, 8
_NAT_DST, _ADJUST_ORIGINAL, _ADJUST_REPLY, _LABELS = 13, 15, 16, 22
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP: Final = {4: (1, 2), 6: (3, 4)}  # CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST
_PROTO_NUM, _PROTO_SPORT, _PROTO_DPORT = 1, 2, 3
_TCP: Final = 1  # CTA_PROTOINFO_TCP
_TCP_STATE, _TCP_SCALE, _TCP_SCALE_BACK, _TCP_FLAGS, _TCP_FLAGS_BACK = 1, 2, 3, 4, 5
_NAT_IP: Final = {4: (1, 2), 6: (4, 5)}  # CTA_NAT_V4_MINIP and _MAXIP, CTA_NAT_V6_MINIP and _MAXIP
_NAT_PROTO: Final = 3
_PORT_MIN, _PORT_MAX = 1, 2
_ADJUST_AFTER: Final = 3  # CTA_SEQADJ_OFFSET_AFTER

_SEEN_REPLY, _ASSURED, _CONFIRMED = 1 << 1, 1 << 2, 1 << 3  # IPS_*, nf_conntrack_common.h
_BE_LIBERAL: Final = 0x08
_FAMILY: Final = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ANSWER_LIMIT_S: Final = 2.0
_RECEIVE_BYTES: Final = 65536


class Conntrack:
    """The connection tracker of one namespace; None is the caller's. Raises HostError, PermissionDeniedError."""

    def __init__(self, netns: str | None = None) -> None:
        self._socket = run_in(netns, _open)
        self._number = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, session: FiveTuple) -> Entry | None:
        """Read the entry of an established session, in whichever direction it was first seen.

        None: there is none, or it is not established, or over. Raises HostError if it cannot be moved.
        """
        return _entry(self._get(session))

    def export(self, session: FiveTuple) -> bytes | None:
        """Give the entry of a session as bytes for `install`; None and errors as for `find`."""
        entry = self.find(session)
        return None if entry is None else tracked.encode(entry)

    def install(self, session: FiveTuple, state: bytes, right: FiveTuple | None = None) -> Entry:
        """Put in the entry of a session that another host has exported; a repetition changes nothing.

        right: the tuple behind the box, where NAT changes it. An entry that is there already, from a handshake on the
        new path or an earlier stay of the session, keeps its TCP state. Raises WireError, RemoteError (state of another
        session), HostError.
        """
        entry = tracked.decode(state)
        tracked.check(entry, session, right or session)
        raw = self._get(session)
        if raw is not None and _tuples(raw) == (entry.original, entry.reply):
            self._change(entry, _tcp(raw).get(_TCP_STATE, bytes([entry.state])))
            return entry
        if raw is not None:
            # It was made by a handshake here and got another translation; the session's own has to win.
            self.remove(session)
        # nfnetlink answers EEXIST if a packet was faster than we are: then it is there.
        self._ask(_NEW, entry.original, _new(entry), _CREATE | _EXCL | _ACK, allowed=(errno.EEXIST,))
        return entry

    def remove(self, session: FiveTuple) -> bool:
        """Take the entry of a session out; False if there was none."""
        raw = self._get(session)
        if raw is None:
            return False
        original, _ = _tuples(raw)
        return self._ask(_DELETE, original, b"", _ACK, allowed=(errno.ENOENT,)) is not None

    def _change(self, entry: Entry, state: bytes) -> None:
        flags = bytes([_BE_LIBERAL, _BE_LIBERAL])
        info = (
            _attribute(_TCP_STATE, state) + _attribute(_TCP_FLAGS, flags) + _attribute(_TCP_FLAGS_BACK, flags)
        )
        body = _common(entry) + _nested(_PROTOINFO, _nested(_TCP, info))
        labels = _attribute(_LABELS, entry.labels) if any(entry.labels) else b""
        done = self._ask(_NEW, entry.original, body + labels, _ACK, allowed=(errno.ENOSPC, errno.EOPNOTSUPP))
        if done is None and labels:
            # No rule here uses labels, so the kernel keeps no room for them (nf_connlabels_replace).
            self._ask(_NEW, entry.original, body, _ACK)

    def _get(self, session: FiveTuple) -> dict[int, bytes] | None:
        return self._ask(_GET, session, b"", 0, allowed=(errno.ENOENT,))

    def _ask(
        self, message: int, original: FiveTuple, body: bytes, flags: int, allowed: tuple[int, ...] = ()
    ) -> dict[int, bytes] | None:
        """Send one request; its answer's attributes, or None for an error that is allowed."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        payload = bytes([_FAMILY[original.family], 0, 0, 0]) + _tuple(_ORIGINAL, original) + body
        size = _HEADER.size + len(payload)
        header = _HEADER.pack(size, _SUBSYSTEM | message, _REQUEST | flags, self._number, 0)
        try:
            self._socket.send(header + payload)
            answer = self._socket.recv(_RECEIVE_BYTES)
            while _HEADER.unpack_from(answer)[3] != self._number:  # of a request that was given up
                answer = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            raise HostError(f"connection tracker, {original}: {error.strerror or error}") from None
        size, kind, _, _, _ = _HEADER.unpack_from(answer)
        if kind != _ERROR:
            return _attributes(answer[_HEADER.size + 4 : size])
        code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if code == errno.EPERM:
            raise PermissionDeniedError("the connection tracker needs CAP_NET_ADMIN in its namespace")
        if code and code not in allowed:
            raise HostError(f"connection tracker, {original}: {os.strerror(code)}")
        return None if code else {}


def _open() -> socket.socket:
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        raise HostError(f"netlink for netfilter cannot be opened: {error.strerror}") from None
    made.bind((0, 0))
    made.settimeout(_ANSWER_LIMIT_S)
    return made


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Attributes one after the other; what is cut off ends the walk."""
    at = 0
    while at + 4 <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4 or at + size > len(data):
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + size]
        at += (size + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    return dict(_walk(data))


def _port(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _tuple(kind: int, value: FiveTuple) -> bytes:
    src, dst = _IP[value.family]
    ip = _attribute(src, value.src) + _attribute(dst, value.dst)
    proto = (
        _attribute(_PROTO_NUM, bytes([socket.IPPROTO_TCP]))
        + _attribute(_PROTO_SPORT, _port(value.sport))
        + _attribute(_PROTO_DPORT, _port(value.dport))
    )
    return _nested(kind, _nested(_TUPLE_IP, ip) + _nested(_TUPLE_PROTO, proto))


def _read_tuple(data: bytes) -> FiveTuple:
    parts = _attributes(data)
    ip, proto = _attributes(parts[_TUPLE_IP]), _attributes(parts[_TUPLE_PROTO])
    src, dst = _IP[4] if _IP[4][0] in ip else _IP[6]
    return FiveTuple(ip[src] + ip[dst] + proto[_PROTO_SPORT] + proto[_PROTO_DPORT])


def _tuples(raw: dict[int, bytes]) -> tuple[FiveTuple, FiveTuple]:
    return _read_tuple(raw[_ORIGINAL]), _read_tuple(raw[_REPLY])


def _tcp(raw: dict[int, bytes]) -> dict[int, bytes]:
    return _attributes(_attributes(raw.get(_PROTOINFO, b"")).get(_TCP, b""))


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


def _entry(raw: dict[int, bytes] | None) -> Entry | None:
    """An entry out of the kernel's attributes; None if it is not in a state that moves."""
    if raw is None:
        return None
    info = _tcp(raw)
    state = _number(info.get(_TCP_STATE))
    if not tracked.ESTABLISHED <= state <= tracked.TIME_WAIT:
        return None
    original, reply = _tuples(raw)
    for kind in (_ADJUST_ORIGINAL, _ADJUST_REPLY):
        if _number(_attributes(raw.get(kind, b"")).get(_ADJUST_AFTER)):
            raise HostError(
                f"{original}: a conntrack helper has changed its numbers; its state cannot be moved"
            )
    status = _number(raw.get(_STATUS))
    flags = [info.get(kind, b"\0")[0] & tracked.MOVED_FLAGS for kind in (_TCP_FLAGS, _TCP_FLAGS_BACK)]
    scales = [
        min(_number(info.get(kind)), tracked.MAX_SCALE) if flag & tracked.WINDOW_SCALE else 0
        for kind, flag in zip((_TCP_SCALE, _TCP_SCALE_BACK), flags, strict=True)
    ]
    return Entry(
        original,
        reply,
        state,
        bool(status & _SEEN_REPLY),
        bool(status & _ASSURED),
        (scales[0], scales[1]),
        (flags[0], flags[1]),
        max(1, min(_number(raw.get(_TIMEOUT)), tracked.MAX_TIMEOUT_S)),
        _number(raw.get(_MARK)),
        raw.get(_LABELS, b"")[: tracked.LABELS_LEN].ljust(tracked.LABELS_LEN, b"\0"),
    )


def _common(entry: Entry) -> bytes:
    """What may be said of an entry that is there and of a new one alike."""
    status = _CONFIRMED | _SEEN_REPLY * entry.seen_reply | _ASSURED * entry.assured
    return (
        _attribute(_STATUS, status.to_bytes(4, "big"))
        + _attribute(_TIMEOUT, entry.timeout_s.to_bytes(4, "big"))
        + _attribute(_MARK, entry.mark.to_bytes(4, "big"))
    )


def _new(entry: Entry) -> bytes:
    info = _attribute(_TCP_STATE, bytes([entry.state]))
    kinds = ((_TCP_SCALE, _TCP_FLAGS), (_TCP_SCALE_BACK, _TCP_FLAGS_BACK))
    for (scale_kind, flags_kind), scale, flags in zip(kinds, entry.scales, entry.flags, strict=True):
        mask = tracked.MOVED_FLAGS | _BE_LIBERAL
        info += _attribute(scale_kind, bytes([scale])) + _attribute(
            flags_kind, bytes([flags | _BE_LIBERAL, mask])
        )
    # The kernel makes the reply's tuple itself from the translation; both given at once would be applied twice.
    body = (
        _tuple(_REPLY, entry.original.reversed()) + _common(entry) + _nested(_PROTOINFO, _nested(_TCP, info))
    )
    if any(entry.labels):
        body += _attribute(_LABELS, entry.labels)
    plain = entry.original.reversed()
    if (entry.reply.dst, entry.reply.dport) != (plain.dst, plain.dport):
        body += _nat(_NAT_SRC, entry.reply.dst, entry.reply.dport)
    if (entry.reply.src, entry.reply.sport) != (plain.src, plain.sport):
        body += _nat(_NAT_DST, entry.reply.src, entry.reply.sport)
    return body


def _nat(kind: int, address: bytes, port: int) -> bytes:
    low, high = _NAT_IP[4 if len(address) == 4 else 6]
    ports = _attribute(_PORT_MIN, _port(port)) + _attribute(_PORT_MAX, _port(port))
    return _nested(kind, _attribute(low, address) + _attribute(high, address) + _nested(_NAT_PROTO, ports))
