"""Control messages between agents: frozen values, and their bytes.

A datagram is a sequence of frames, each: type (1), length of the body (2), body. Everything is big-endian.
Text is UTF-8 with a length byte before it. Unknown types are refused, for versions are settled by `Hello`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final, get_type_hints

from dysco.errors import WireError

MAX_DATAGRAM: Final = 1200
_FRAME = struct.Struct("!BH")


class Padding(bytes):
    """Bytes without meaning that fill a probe."""


_NO_PADDING: Final = Padding()


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of an association: who speaks, and what the neighbour must know."""

    version: int = 1
    capabilities: int = 0
    boot_id: bytes = bytes(16)
    name: str = ""
    port_range: tuple[int, int] = (61000, 65535)
    observed_address: bytes = b""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Shows that the sender lives. number: counts up; digest: of the shared sessions (8 bytes)."""

    number: int = 0
    digest: bytes = bytes(8)


@dataclass(frozen=True, slots=True)
class KeepaliveAck:
    """Answer to a Keepalive with the same number."""

    number: int = 0


@dataclass(frozen=True, slots=True)
class Gone:
    """The sender does not know this chain (any more), or goes away altogether (chain id all zero)."""

    chain_id: bytes
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SynRefused:
    """The sender refuses to be a hop of this chain, or was refused further on."""

    chain_id: bytes
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MtuProbe:
    """Fills a datagram to `size` bytes of IP packet, to see whether it arrives."""

    number: int
    size: int
    padding: Padding = _NO_PADDING


@dataclass(frozen=True, slots=True)
class MtuProbeAck:
    """The probe with this number and size arrived."""

    number: int
    size: int


Message = Hello | Keepalive | KeepaliveAck | Gone | SynRefused | MtuProbe | MtuProbeAck

TYPES: Final[dict[int, type[Message]]] = {
    1: Hello,
    2: Keepalive,
    3: Gone,
    4: SynRefused,
    5: MtuProbe,
    6: MtuProbeAck,
    7: KeepaliveAck,
}
"""Numbers on the wire. 16 to 47 are kept for locks, reconfiguration and state (rightRequest to putState)."""

_NUMBERS = {kind: number for number, kind in TYPES.items()}
_INTEGERS = {"version": "!H", "capabilities": "!I", "number": "!Q", "size": "!H"}
_FIXED_BYTES = {"boot_id": 16, "digest": 8, "chain_id": 16}
_HINTS = {kind: get_type_hints(kind) for kind in _NUMBERS}


def encode(messages: Iterable[Message]) -> list[bytes]:
    """Pack messages into as few datagrams of at most 1200 bytes as their order allows.

    A message that is larger by itself (an MtuProbe) gets a datagram of its own.
    """
    datagrams: list[bytes] = []
    current = b""
    for message in messages:
        frame = encode_one(message)
        if current and len(current) + len(frame) > MAX_DATAGRAM:
            datagrams.append(current)
            current = b""
        current += frame
    return [*datagrams, current] if current else datagrams


def encode_one(message: Message) -> bytes:
    """The frame of one message."""
    body = b"".join(_pack(field.name, getattr(message, field.name)) for field in fields(message))
    return _FRAME.pack(_NUMBERS[type(message)], len(body)) + body


def decode(datagram: bytes | bytearray | memoryview) -> list[Message]:
    """Read every frame of a datagram; WireError if any is not well-formed."""
    data = bytes(datagram)
    messages: list[Message] = []
    position = 0
    while position < len(data):
        if position + _FRAME.size > len(data):
            raise WireError("a frame's header is cut off")
        number, length = _FRAME.unpack_from(data, position)
        position += _FRAME.size
        body = data[position : position + length]
        if len(body) != length:
            raise WireError("a frame's body is cut off")
        kind = TYPES.get(number)
        if kind is None:
            raise WireError(f"unknown message type {number}")
        messages.append(_read(kind, body))
        position += length
    return messages


def _pack(name: str, value: Any) -> bytes:
    if name in _INTEGERS:
        return struct.pack(_INTEGERS[name], value)
    if name in _FIXED_BYTES:
        if len(value) != _FIXED_BYTES[name]:
            raise WireError(f"{name} has {_FIXED_BYTES[name]} bytes, not {len(value)}")
        return bytes(value)
    if name == "port_range":
        return struct.pack("!HH", *value)
    if isinstance(value, Padding):
        return bytes(value)
    raw = value.encode()[:255] if isinstance(value, str) else value
    return bytes([len(raw)]) + raw


def _read(kind: type[Message], body: bytes) -> Message:
    values: dict[str, Any] = {}
    position = 0
    for field in fields(kind):
        name, hint = field.name, _HINTS[kind][field.name]
        if hint is Padding:
            values[name] = Padding(body[position:])
            position = len(body)
            continue
        if name in _INTEGERS:
            length = struct.calcsize(_INTEGERS[name])
        elif name == "port_range":
            length = 4
        elif name in _FIXED_BYTES:
            length = _FIXED_BYTES[name]
        else:
            length = body[position] if position < len(body) else 0
            position += 1
        raw = body[position : position + length]
        if len(raw) != length or position > len(body):
            raise WireError(f"{kind.__name__}.{name} is cut off")
        position += length
        values[name] = _value(name, hint, raw)
    if position != len(body):
        raise WireError(f"{kind.__name__} has {len(body) - position} bytes too many")
    return kind(**values)


def _value(name: str, hint: object, raw: bytes) -> object:
    if name in _INTEGERS:
        return struct.unpack(_INTEGERS[name], raw)[0]
    if name == "port_range":
        low, high = struct.unpack("!HH", raw)
        if not 1024 <= low < high:
            raise WireError(f"port_range {low}-{high} is not a range of ports above 1023")
        return low, high
    if hint is str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise WireError(f"{name} is not UTF-8") from None
    if name == "observed_address" and len(raw) not in (0, 4, 16):
        raise WireError("observed_address is neither IPv4 nor IPv6")
    return raw
