"""The bytes of control messages.

A datagram is a sequence of frames, each: type (1), length of the body (2), body. Everything is big-endian.
Text, addresses and tuples have a length byte before them, lists a count; text is UTF-8. Unknown types are refused,
for versions are settled by `Hello`. A field is packed by its name or
by its type.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Final, get_type_hints

from dysco.errors import WireError
from dysco.wire.chain_header import MAX_HOPS, Hop
from dysco.wire.messages import TYPES, Change, Handshake, Hops, Message, Padding, Part, Place, Places
from dysco.wire.tuples import FiveTuple

MAX_DATAGRAM: Final = 1200
_FRAME = struct.Struct("!BH")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_NUMBERS = {kind: number for number, kind in TYPES.items()}
_INTEGERS = {
    "version": "!H",
    "capabilities": "!I",
    "number": "!Q",
    "size": "!H",
    "hop": "!I",
    "request": "!Q",
    "first": "!I",
    "last": "!I",
    "left": "!I",
    "right": "!I",
    "forward_sum": "!I",
    "backward_sum": "!I",
    "cutoff": "!I",
    "acked": "!I",
    "answered": "!I",
    "stamp": "!I",
    "edge": "!I",
    "state": "!B",
    "phase": "!B",
    "status": "!B",
    "verdict": "!B",
    "leg": "!B",
    "fins": "!B",
    "index": "!H",
    "count": "!H",
}
_FIXED_BYTES = {"boot_id": 16, "digest": 8, "chain_id": 16, "handshake": 16}
_MOST_PLACES: Final = 66


class _Layout:
    """How a message is packed: a head of fields whose size is fixed, at one go, and the rest field by field.

    flags: which of the head's values are bool. sizes: index, length, name of bytes.
    """

    __slots__ = ("flags", "head", "names", "rest", "sizes")

    def __init__(self, kind: type[Any]) -> None:
        hints = get_type_hints(kind)
        self.names: list[str] = []
        self.flags: list[int] = []
        self.sizes: list[tuple[int, int, str]] = []
        formats = "!"
        remaining = [(field.name, hints[field.name]) for field in fields(kind)]
        while remaining:
            name, hint = remaining[0]
            index = len(self.names)
            if hint is bool:
                self.flags.append(index)
                formats += "B"
            elif name in _INTEGERS:
                formats += _INTEGERS[name][1:]
            elif name in _FIXED_BYTES:
                self.sizes.append((index, _FIXED_BYTES[name], name))
                formats += f"{_FIXED_BYTES[name]}s"
            else:
                break
            self.names.append(name)
            del remaining[0]
        self.head = struct.Struct(formats)
        self.rest: tuple[tuple[str, Any], ...] = tuple(remaining)


_LAYOUTS = {kind: _Layout(kind) for kind in (*_NUMBERS, Change, Place)}


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
    body = _pack_fields(message)
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
        reader = _Reader(kind.__name__, body)
        messages.append(reader.value(kind))
        reader.end()
        position += length
    return messages


@functools.lru_cache(maxsize=1024)
def encode_places(places: Places) -> bytes:
    """The bytes of places, as they are in a message; a change notes the same ones a few times."""
    return _pack("places", places)


def decode_places(data: bytes) -> Places:
    """Read places; raises WireError."""
    reader = _Reader("Places", data)
    places = Places(reader.value(Place) for _ in range(reader.count("places", _MOST_PLACES)))
    reader.end()
    return places


def _pack_fields(value: Any) -> bytes:
    layout = _LAYOUTS[type(value)]
    values = [getattr(value, name) for name in layout.names]
    for index, size, name in layout.sizes:
        if len(values[index]) != size:
            raise WireError(f"{name} has {size} bytes, not {len(values[index])}")
    head = layout.head.pack(*values)
    if not layout.rest:
        return head
    return head + b"".join([_pack(name, getattr(value, name)) for name, _ in layout.rest])


def _pack(name: str, value: Any) -> bytes:
    if isinstance(value, bool):
        return b"\1" if value else b"\0"
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
    if isinstance(value, Change):
        return _pack_fields(value)
    if isinstance(value, Part):
        return _U16.pack(len(value)) + value
    if isinstance(value, Hops):
        packed = (bytes([len(hop.address)]) + hop.address + _U32.pack(hop.box) for hop in value)
        return bytes([len(value)]) + b"".join(packed)
    if isinstance(value, Places):
        return bytes([len(value)]) + b"".join(map(_pack_fields, value))
    raw = value.encode()[:255] if isinstance(value, str) else value
    return bytes([len(raw)]) + raw


class _Reader:
    """The body of one frame; each method takes what it names from the front or raises WireError."""

    def __init__(self, name: str, body: bytes) -> None:
        self._name = name
        self._body = body
        self._position = 0

    def value(self, kind: type[Any]) -> Any:
        """A message, or what a message is made of."""
        layout = _LAYOUTS[kind]
        end = self._position + layout.head.size
        if end > len(self._body):
            raise WireError(f"{self._name}: {layout.names[-1]} or a field before it is cut off")
        values: list[Any] = list(layout.head.unpack_from(self._body, self._position))
        self._position = end
        for index in layout.flags:
            if values[index] > 1:
                raise WireError(f"{self._name}.{layout.names[index]} is neither 0 nor 1")
            values[index] = values[index] == 1
        return kind(*values, *[self._field(name, hint) for name, hint in layout.rest])

    def end(self) -> None:
        """There must be nothing left."""
        left = len(self._body) - self._position
        if left:
            raise WireError(f"{self._name} has {left} bytes too many")

    def _field(self, name: str, hint: Any) -> object:
        if hint is Padding:
            return Padding(self._take(len(self._body) - self._position, name))
        if hint is bool:
            raw = self._take(1, name)
            if raw > b"\1":
                raise WireError(f"{self._name}.{name} is neither 0 nor 1")
            return raw == b"\1"
        if name in _INTEGERS:
            return struct.unpack(_INTEGERS[name], self._take(struct.calcsize(_INTEGERS[name]), name))[0]
        if name in _FIXED_BYTES:
            raw = self._take(_FIXED_BYTES[name], name)
            return Handshake(raw) if hint is Handshake else raw
        if name == "port_range":
            low, high = struct.unpack("!HH", self._take(4, name))
            if not 1024 <= low < high:
                raise WireError(f"port_range {low}-{high} is not a range of ports above 1023")
            return low, high
        if hint is Change:
            return self.value(Change)
        if hint is Part:
            return Part(self._take(_U16.unpack(self._take(_U16.size, name))[0], name))
        if hint is Hops:
            return Hops(self._hop() for _ in range(self.count(name, MAX_HOPS)))
        if hint is Places:
            return Places(self.value(Place) for _ in range(self.count(name, _MOST_PLACES)))
        raw = self._take(self._take(1, name)[0], name)
        if hint is FiveTuple:
            return FiveTuple(raw)
        if hint is str:
            try:
                return raw.decode()
            except UnicodeDecodeError:
                raise WireError(f"{name} is not UTF-8") from None
        if name.endswith("address") and len(raw) not in (0, 4, 16):
            raise WireError(f"{name} is neither IPv4 nor IPv6")
        return raw

    def _hop(self) -> Hop:
        address = self._take(self._take(1, "hops")[0], "hops")
        if len(address) not in (4, 16):
            raise WireError("a hop's address is neither IPv4 nor IPv6")
        return Hop(address, _U32.unpack(self._take(_U32.size, "hops"))[0])

    def count(self, name: str, most: int) -> int:
        """How many entries follow."""
        count = self._take(1, name)[0]
        if count > most:
            raise WireError(f"{self._name}.{name} has {count} entries, more than {most}")
        return count

    def _take(self, length: int, name: str) -> bytes:
        raw = self._body[self._position : self._position + length]
        if len(raw) != length:
            raise WireError(f"{self._name}.{name} is cut off")
        self._position += length
        return raw
