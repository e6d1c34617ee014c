"""The TCP sockets of a network namespace and of a process, with the bytes that went through each (sock_diag(7)).

Knows netlink and /proc; knows no proxy. It asks and changes nothing. It speaks netlink itself because pyroute2 needs
some hundred microseconds for one socket and a proxy has thousands; five-tuples come out as the bytes that tables use.

What the kernel says of a socket is not of one instant: the lengths of its queues are read before the lock is taken
under which everything in TCP_INFO is read (net/ipv4/tcp_diag.c). Therefore `written` is made of what stands in TCP_INFO
alone, and is believed (`sure`) only if the queues say the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from dysco.errors import HostError, PermissionDeniedError
from dysco.wire.tuples import FiveTuple

# net/tcp_states.h
ESTABLISHED: Final = 1
FIN_WAIT1: Final = 4
FIN_WAIT2: Final = 5
CLOSE_WAIT: Final = 8
LISTEN: Final = 10
CONNECTED: Final = (ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT)

_NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h
_SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h
_REQUEST_DUMP: Final = 0x001 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR: Final = 2  # NLMSG_ERROR
_DONE: Final = 3  # NLMSG_DONE
_INFO: Final = 2  # INET_DIAG_INFO, linux/inet_diag.h
_HEADER: Final = struct.Struct("=IHHII")
# inet_diag_req_v2 with an inet_diag_sockid: family, protocol, extensions, -, states, ports, addresses, device, cookie
_QUESTION: Final = struct.Struct("=BBBxI2s2s16s16sI8s")
# inet_diag_msg: family, state, timer, retransmissions, sockid, expires, receive and send queue, user, inode
_ANSWER: Final = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
_ATTRIBUTE: Final = struct.Struct("=HH")
# struct tcp_info, linux/tcp.h: byte offsets of the fields that count here
_ACKED: Final = struct.Struct("=QQ")  # bytes_acked, bytes_received
_ACKED_AT: Final = 120
_NOT_SENT: Final = struct.Struct("=I")
_NOT_SENT_AT: Final = 144
_SENT: Final = struct.Struct("=QQ")  # bytes_sent, bytes_retrans
_SENT_AT: Final = 200
_INFO_LEN: Final = 216
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 section 2.5.5.2
_ANY: Final = bytes(16)
_NO_COOKIE: Final = b"\xff" * 8


class Socket(NamedTuple):
    """One connected socket at one moment.

    tuple: as its own packets carry it, local end first. read, written: bytes of the stream that the program has taken
    and given, without SYN and FIN. unread, unacked: bytes that wait in its two queues. sure: the numbers are of one
    moment; if not, data moved while the kernel counted, and it has to be asked again. opened: it sent the SYN; None if
    that cannot be told now.
    """

    inode: int
    tuple: FiveTuple
    state: int
    read: int
    written: int
    unread: int
    unacked: int
    sure: bool
    opened: bool | None
    cookie: bytes

    @property
    def session(self) -> FiveTuple:
        """The five-tuple of the SYN, if it is known who sent it; else as its own packets carry it."""
        return self.tuple.reversed() if self.opened is False else self.tuple

    @property
    def still(self) -> bool:
        """Whether the program has read all that came, and all that it wrote has been acknowledged."""
        return self.sure and not self.unread and not self.unacked


class Sockets:
    """What the kernel knows of TCP sockets in the namespace of the thread that makes this object."""

    def __init__(self) -> None:
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        )
        self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    def __enter__(self) -> Sockets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connected(self) -> dict[int, Socket]:
        """Give all sockets of sessions that are open in at least one direction, by inode; raises HostError."""
        found = {}
        served = {(address, port) for address, port, _ in self.listening()}
        for family in (socket.AF_INET, socket.AF_INET6):
            for fields, info in self._ask(_question(family, CONNECTED), dump=True):
                if info is not None:
                    one = _socket(fields, info)
                    if one.opened is None:
                        end = one.tuple.src, one.tuple.sport
                        one = one._replace(opened=served.isdisjoint((end, (b"", end[1]))))
                    found[one.inode] = one
        return found

    def listening(self) -> set[tuple[bytes, int, int]]:
        """Give address (empty: all), port and inode of what listens in this namespace; raises HostError."""
        found = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for fields, _ in self._ask(_question(family, (LISTEN,)), dump=True):
                address = _address(family, fields[6])
                found.add((address if any(address) else b"", int.from_bytes(fields[4], "big"), fields[-1]))
        return found

    def again(self, one: Socket) -> Socket | None:
        """Ask for one socket again; None if it is no longer connected. Raises HostError."""
        source, target = one.tuple.src, one.tuple.dst
        family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
        for candidate in (family, socket.AF_INET6):  # an IPv4 session may belong to a socket of IPv6
            wide = candidate == socket.AF_INET6 and len(source) == 4
            question = _QUESTION.pack(
                candidate,
                socket.IPPROTO_TCP,
                1 << (_INFO - 1),
                0xFFFFFFFF,
                one.tuple.sport.to_bytes(2, "big"),
                one.tuple.dport.to_bytes(2, "big"),
                ((_MAPPED if wide else b"") + source).ljust(16, b"\0"),
                ((_MAPPED if wide else b"") + target).ljust(16, b"\0"),
                0,
                one.cookie,
            )
            for fields, info in self._ask(question, dump=False):
                if fields[1] in CONNECTED and info is not None:
                    now = _socket(fields, info)
                    return now if now.opened is not None else now._replace(opened=one.opened)
        return None

    def _ask(self, question: bytes, *, dump: bool) -> Iterator[tuple[Any, bytes | None]]:
        flags = _REQUEST_DUMP if dump else 0x001
        header = _HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, flags, 1, 0)
        try:
            self._netlink.send(header + question)
            while True:
                data = self._netlink.recv(1 << 18)
                at = 0
                while at + _HEADER.size <= len(data):
                    length, kind, _, _, _ = _HEADER.unpack_from(data, at)
                    if kind == _DONE:
                        return
                    if kind == _ERROR:
                        number = -struct.unpack_from("=i", data, at + _HEADER.size)[0]
                        if number in (0, errno.ENOENT):
                            return
                        raise HostError(f"the kernel does not tell its sockets: {os.strerror(number)}")
                    body = at + _HEADER.size
                    yield _ANSWER.unpack_from(data, body), _info(data, body + _ANSWER.size, at + length)
                    at += (length + 3) & ~3
                if not dump:
                    return
        except OSError as error:
            raise HostError(f"the kernel does not tell its sockets: {error.strerror}") from None


def _question(family: int, states: Iterable[int]) -> bytes:
    wanted = sum(1 << state for state in states)
    return _QUESTION.pack(
        family, socket.IPPROTO_TCP, 1 << (_INFO - 1), wanted, b"\0\0", b"\0\0", _ANY, _ANY, 0, _NO_COOKIE
    )


def _info(data: bytes, at: int, end: int) -> bytes | None:
    """Find TCP_INFO among the attributes; None if the kernel gave none that is long enough."""
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind == _INFO and length - _ATTRIBUTE.size >= _INFO_LEN:
            return data[at + _ATTRIBUTE.size : at + length]
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
    return None


def _address(family: int, packed: bytes) -> bytes:
    if family == socket.AF_INET:
        return packed[:4]
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _socket(fields: Any, info: bytes) -> Socket:
    family, state, _, _, sport, dport, source, target, _, cookie, _, waiting, unacked, _, inode = fields
    acked, received = _ACKED.unpack_from(info, _ACKED_AT)
    (not_sent,) = _NOT_SENT.unpack_from(info, _NOT_SENT_AT)
    sent, repeated = _SENT.unpack_from(info, _SENT_AT)
    once = sent - repeated
    # Each FIN takes a number, as do the SYN of who opened: the counts of acknowledged and received bytes, and the
    # queues, hold them; those of sent bytes do not.
    closing = state in (FIN_WAIT1, FIN_WAIT2)
    fin_waits = closing and not_sent > 0
    syn = acked + unacked - not_sent - once - (closing and not fin_waits)
    sure = syn in (0, 1)
    read, unread = received - waiting, waiting
    if state == CLOSE_WAIT:
        read, unread = (read, waiting - 1) if waiting else (read - 1, 0)
    return Socket(
        inode,
        FiveTuple(_address(family, source) + _address(family, target) + sport + dport),
        state,
        read,
        once + not_sent - fin_waits,
        unread,
        unacked - (state == FIN_WAIT1),
        sure,
        bool(syn) if sure else None,
        cookie,
    )


def inodes(pid: int) -> dict[int, int]:
    """Give the sockets that a process holds: inode by descriptor; empty if it is gone.

    Raises PermissionDeniedError if it may not be looked into.
    """
    found = {}
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    target = os.readlink(entry.path)
                    if target.startswith("socket:["):
                        found[int(entry.name)] = int(target[8:-1])
    except PermissionError:
        raise PermissionDeniedError(f"/proc/{pid}/fd: permission denied; CAP_SYS_PTRACE is needed") from None
    except OSError:
        return {}
    return found


def with_children(pid: int) -> list[int]:
    """Give a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything (proc_pid_stat(5)); the parent is the second field after it.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    family = [pid]
    for one in family:
        family += children.get(one, [])
    return family


def holders(wanted: set[int]) -> list[int]:
    """Give the processes that hold one of these sockets, by inode."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(PermissionDeniedError):
                if not wanted.isdisjoint(inodes(int(path.name)).values()):
                    found.append(int(path.name))
    return sorted(found)
