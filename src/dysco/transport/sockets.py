"""UDP sockets as the channel needs them: never fragmenting, never blocking, read many at a time.

Knows the socket API of Linux and addresses as text. Must not know DTLS or peers.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import Final

from dysco.errors import ConfigError, HostError, PermissionDeniedError

# linux/in.h, linux/in6.h: DF is set, and what the kernel believes of the path's MTU is not asked, so that
# probes may be larger.
_IP_MTU_DISCOVER: Final = 10
_IP_PMTUDISC_PROBE: Final = 3
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_PMTUDISC_PROBE: Final = 3
_SIOCGIFMTU: Final = 0x8921  # linux/sockios.h
_IFREQ: Final = struct.Struct("16si20x")
_BUFFER: Final = 4 << 20
_DATAGRAM_LIMIT: Final = 65535

IP_UDP_V4: Final = 20 + 8
IP_UDP_V6: Final = 40 + 8

Endpoint = tuple[str, int]


def listen(address: str, port: int) -> socket.socket:
    """Bind a socket; raises ConfigError (no such address, port taken), PermissionDeniedError, HostError."""
    opened = _open(address)
    try:
        opened.bind((address, port))
    except PermissionError:
        opened.close()
        raise PermissionDeniedError(f"UDP {address} port {port}: permission denied") from None
    except OSError as error:
        opened.close()
        raise ConfigError(f"UDP {address} port {port}: {error.strerror}") from error
    return opened


def call(remote: Endpoint, own: Sequence[str]) -> socket.socket:
    """Open a socket from a fresh port to call `remote`, from one of the own addresses; raises HostError.

    The kernel's choice of the source address is taken if it is one of ours, else the first of the family. The socket
    is not connected: on a connected one any ICMP error, which anybody may forge, is an error of the socket, at which
    uvloop stops to read for good.
    """
    opened: socket.socket | None = None
    try:
        with _open(remote[0]) as asking:
            asking.connect(remote)
            source: str | None = asking.getsockname()[0]
        if source not in own:
            source = next((address for address in own if _family(address) == _family(remote[0])), None)
        if source is None:
            raise HostError(f"no own address of the family of {remote[0]}")
        opened = _open(remote[0])
        opened.bind((source, 0))
    except OSError as error:
        if opened is not None:
            opened.close()
        raise HostError(f"UDP to {remote[0]} port {remote[1]}: {error.strerror}") from error
    return opened


class Reader:
    """A buffer that many datagrams are read into, one after the other."""

    __slots__ = ("_buffer", "_view")

    def __init__(self) -> None:
        """Make room for the largest datagram."""
        self._buffer = bytearray(_DATAGRAM_LIMIT)
        self._view = memoryview(self._buffer)

    def read(self, opened: socket.socket) -> tuple[bytes, Endpoint] | None:
        """Give a datagram and whence it came, or None if there is none; raises OSError."""
        try:
            length, source = opened.recvfrom_into(self._buffer)
        except BlockingIOError:
            return None
        return bytes(self._view[:length]), source[:2]


def ip_udp_length(address: str) -> int:
    """Give the length of IP and UDP headers towards an address."""
    return IP_UDP_V6 if ":" in address else IP_UDP_V4


def device_mtu(device: str) -> int:
    """Give the MTU of a network device in bytes; raises HostError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFMTU, _IFREQ.pack(device.encode(), 0))
        except OSError as error:
            raise HostError(f"{device}: {error.strerror}") from error
    mtu: int = _IFREQ.unpack(answer)[1]
    return mtu


def packed(endpoint: Endpoint) -> bytes:
    """Give address and port as bytes."""
    return ipaddress.ip_address(endpoint[0]).packed + endpoint[1].to_bytes(2, "big")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _open(address: str) -> socket.socket:
    opened = socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE)
    else:
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return opened
