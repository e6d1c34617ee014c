"""Five-tuples in the byte order of the packet header, so that one slice of a packet is a table key.

Knows addresses and ports; knows nothing of packets, sessions or sockets. The protocol number is always TCP.
"""

from __future__ import annotations

import ipaddress
import struct
from functools import lru_cache
from typing import Literal

from dysco.errors import WireError

Family = Literal[4, 6]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

IPV4_TUPLE_LEN = 12
IPV6_TUPLE_LEN = 36
_PORTS = struct.Struct("!HH")


class FiveTuple(bytes):
    """Source address, destination address, source port, destination port as they stand in a packet.

    12 bytes for IPv4, 36 for IPv6. It compares and hashes as the bytes it is, so a plain slice of a
    packet finds it in a dictionary.
    """

    __slots__ = ()

    def __new__(cls, packed: bytes | bytearray | memoryview) -> FiveTuple:
        """Take packed bytes; WireError unless there are 12 or 36 of them."""
        if len(packed) not in (IPV4_TUPLE_LEN, IPV6_TUPLE_LEN):
            raise WireError(f"a five-tuple has 12 or 36 bytes, not {len(packed)}")
        return super().__new__(cls, packed)

    @classmethod
    def of(cls, src: bytes, sport: int, dst: bytes, dport: int) -> FiveTuple:
        """Pack addresses (4 or 16 bytes, both alike) and ports (0 to 65535)."""
        return cls(src + dst + _PORTS.pack(sport, dport))

    @classmethod
    def parse(cls, text: str) -> FiveTuple:
        """Read `10.0.0.1:1234 > 10.0.0.9:80` or `[fd00::1]:1234 > [fd00::9]:80`, `tcp ` allowed before.

        Raises WireError.
        """
        body = text.strip()
        if body.lower().startswith("tcp "):
            body = body[4:]
        left, separator, right = body.partition(">")
        if not separator:
            raise WireError(f"{text!r}: a five-tuple is written ADDRESS:PORT > ADDRESS:PORT")
        src, sport = _endpoint(left.strip(), text)
        dst, dport = _endpoint(right.strip(), text)
        if len(src) != len(dst):
            raise WireError(f"{text!r}: both addresses must be of one family")
        return cls.of(src, sport, dst, dport)

    @property
    def family(self) -> Family:
        return 4 if len(self) == IPV4_TUPLE_LEN else 6

    @property
    def src(self) -> bytes:
        return self[: (len(self) - 4) // 2]

    @property
    def dst(self) -> bytes:
        return self[(len(self) - 4) // 2 : -4]

    @property
    def sport(self) -> int:
        return self[-4] << 8 | self[-3]

    @property
    def dport(self) -> int:
        return self[-2] << 8 | self[-1]

    def reversed(self) -> FiveTuple:
        """The same flow as seen in the other direction."""
        half = (len(self) - 4) // 2
        return trusted(self[half:-4] + self[:half] + self[-2:] + self[-4:-2])

    def __str__(self) -> str:
        return f"{show_endpoint(self.src, self.sport)} > {show_endpoint(self.dst, self.dport)}"

    def __repr__(self) -> str:
        return f"<{self}>"


def trusted(packed: bytes | bytearray) -> FiveTuple:
    """A five-tuple of bytes whose length the caller has checked."""
    return bytes.__new__(FiveTuple, packed)


@lru_cache(maxsize=1024)
def show_address(packed: bytes) -> str:
    """Text of a packed IPv4 or IPv6 address."""
    return str(ipaddress.ip_address(packed))


def show_endpoint(address: bytes, port: int) -> str:
    """`10.0.0.1:80` or `[2001:db8::1]:80`."""
    text = show_address(address)
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"


def _endpoint(text: str, whole: str) -> tuple[bytes, int]:
    address, separator, port = text.rpartition(":")
    try:
        if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError
        return ipaddress.ip_address(address.removeprefix("[").removesuffix("]")).packed, int(port)
    except ValueError:
        raise WireError(f"{whole!r}: {text!r} is not ADDRESS:PORT") from None
