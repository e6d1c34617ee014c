"""Control messages between agents: frozen values, and their bytes.

A datagram is a sequence of frames, each: type (1), length of the body (2), body. Everything is big-endian.
Text, addresses and tuples have a length byte before them, lists a count; text is UTF-8. Unknown types are refused,
for versions are settled by `Hello`.

Locks and reconfiguration (DESIGN sections 6 to 9): `hop` is the label by which both neighbours know the subsession
along which a message goes, `request` the random number of the change that it is about.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final, get_type_hints

from dysco.errors import WireError
from dysco.wire.chain_header import MAX_HOPS, Hop
from dysco.wire.tuples import FiveTuple

MAX_DATAGRAM: Final = 1200
_FRAME = struct.Struct("!BH")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


class Padding(bytes):
    """Bytes without meaning that fill a probe."""


_NO_PADDING: Final = Padding()


class Handshake(bytes):
    """What SYN and SYN-ACK announced: two halves of 8 bytes (see `dysco.protocol.chain.Half`)."""


class Part(bytes):
    """Bytes with a length of two bytes before them."""


class Hops(tuple[Hop, ...]):
    """Hops in order."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Place:
    """One agent on a chain: its name, its box ("" for none), the address of its left facing, and the labels of the
    subsessions on both sides of it (0 at an end).

    steady: its box leaves the length of the stream alone, and no chains were joined here; then the sums are what this
    host adds to numbers, for ever.
    """

    agent: str
    box: str
    address: bytes
    left: int
    right: int
    mandatory: bool = False
    steady: bool = True
    forward_sum: int = 0
    backward_sum: int = 0


class Places(tuple[Place, ...]):
    """Agents on a chain, from left to right."""

    __slots__ = ()


_NO_HOPS: Final = Hops()
_NO_PLACES: Final = Places()


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
class Moved:
    """The sender can be reached at these addresses from now on, one of each family that has moved; boxes are 0."""

    addresses: Hops


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


@dataclass(frozen=True, slots=True)
class Change:
    """A segment of a chain, and what shall take its place.

    request: random, names this wish for ever. first, last: labels of the segment's first and last subsession. hops:
    the new middlebox hosts in order. force: the old path is dead, do not wait for it. state: how the state of the
    old box comes to the new one (0 none, 1 copy, 2 freeze). origin: the agent that wishes it.
    """

    request: int
    first: int
    last: int
    hops: Hops = _NO_HOPS
    force: bool = False
    state: int = 0
    origin: str = ""


@dataclass(frozen=True, slots=True)
class RightRequest:
    """Ask the left anchor of a segment for a change; goes along the chain, to the right if `rightward`."""

    chain_id: bytes
    hop: int
    change: Change
    rightward: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """What has become of a change; goes along the chain to who asked for it, to the right if `rightward`.

    phase: a `dysco.protocol.changing.Phase`.
    """

    chain_id: bytes
    hop: int
    request: int
    phase: int
    rightward: bool = False
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RequestLock:
    """Lock a segment, from the left anchor to the right; the sums are of what lies between.

    joined: an agent in between joins two chains, so timestamps do not pass unchanged.
    """

    chain_id: bytes
    hop: int
    change: Change
    anchor: str = ""
    forward_sum: int = 0
    backward_sum: int = 0
    joined: bool = False


@dataclass(frozen=True, slots=True)
class AckLock:
    """The segment is locked, says the right anchor. joined: as in the RequestLock that has come there."""

    chain_id: bytes
    hop: int
    request: int
    joined: bool = False


@dataclass(frozen=True, slots=True)
class NackLock:
    """The segment is not locked. by: the agent that refuses."""

    chain_id: bytes
    hop: int
    request: int
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CancelLock:
    """The left anchor gives up; nothing was sent on the new path. Goes along the old path and along the new one."""

    chain_id: bytes
    hop: int
    request: int
    last: int


@dataclass(frozen=True, slots=True)
class AckCancel:
    """A CancelLock has come to its end."""

    chain_id: bytes
    hop: int
    request: int


@dataclass(frozen=True, slots=True)
class RenewLock:
    """The change goes on: whoever is between the anchors keeps its lock."""

    chain_id: bytes
    hop: int
    request: int
    last: int


@dataclass(frozen=True, slots=True)
class Syn:
    """Make the next subsession of a new path; hop is its label.

    hops: the first is the receiver, the last the right anchor. last: the label by which the right anchor knows the
    segment. handshake: what both SYNs announced, in the left anchor's numbers.
    """

    chain_id: bytes
    hop: int
    request: int
    last: int
    session: FiveTuple
    subsession: FiveTuple
    hops: Hops
    handshake: Handshake
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class SynAck:
    """The new path stands as far as the right anchor. stamp: latest timestamp behind it, if chains are joined."""

    chain_id: bytes
    hop: int
    request: int
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class NackSyn:
    """The new path cannot be made. by: the agent that refuses."""

    chain_id: bytes
    hop: int
    request: int
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ack:
    """The left anchor has switched: the point of no return. cutoff in its numbers; done: its half is empty if the
    right cutoff is `acked`. stamp: latest timestamp behind it, if chains are joined."""

    chain_id: bytes
    hop: int
    request: int
    cutoff: int
    acked: int = 0
    done: bool = False
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class AckAck:
    """The right anchor has switched. cutoff in the left anchor's numbers; acked: all before it has come to its side."""

    chain_id: bytes
    hop: int
    request: int
    cutoff: int
    acked: int = 0


@dataclass(frozen=True, slots=True)
class OldDone:
    """The sender's half of the old path is empty; goes along both paths, to the right if `rightward`.

    last: label of the old path's last subsession; 0 on the new path. waiting: it has not heard the same from the
    other anchor.
    """

    chain_id: bytes
    hop: int
    request: int
    rightward: bool
    last: int = 0
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class OldDoneAck:
    """Answer to an OldDone; goes back where that came from, so to the right if `rightward`."""

    chain_id: bytes
    hop: int
    request: int
    rightward: bool
    last: int = 0


@dataclass(frozen=True, slots=True)
class LockQuery:
    """A right anchor asks the left one what has become of a change."""

    chain_id: bytes
    hop: int
    request: int


@dataclass(frozen=True, slots=True)
class LockStatus:
    """Answer to LockQuery. status: 0 unknown, 1 cancelled, 2 not decided yet, 3 committed with this cutoff."""

    chain_id: bytes
    hop: int
    request: int
    status: int
    last: int
    cutoff: int = 0


@dataclass(frozen=True, slots=True)
class CopyState:
    """Give the state of the box that leaves; from the left anchor along the old path."""

    chain_id: bytes
    hop: int
    request: int
    last: int


@dataclass(frozen=True, slots=True)
class PutState:
    """A part of a box's state: to the left along the old path, from the left anchor on to the right along the new one.

    index, count: which part of how many. digest: the first 8 bytes of SHA-256 of the whole.
    """

    chain_id: bytes
    hop: int
    request: int
    index: int
    count: int
    digest: bytes
    part: Part
    rightward: bool = False


@dataclass(frozen=True, slots=True)
class StateTransferred:
    """How far the state has come. status: 0 all parts before `index`, 1 it is in its new box, 2 it cannot be moved."""

    chain_id: bytes
    hop: int
    request: int
    status: int
    index: int = 0
    rightward: bool = False
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """Who is on a chain: goes to its left end, then collects to the right end, then goes back to who asked.

    leg: 0 to the left end, 1 collecting, 2 on the way back, 3 the chain does not pass there any more. number: names the
    question. Without an origin nobody asks: it goes back to the left end, and everybody on the way learns who is on the
    chain.
    """

    chain_id: bytes
    hop: int
    number: int
    leg: int
    origin: str
    places: Places = _NO_PLACES


Message = (
    Hello
    | Keepalive
    | KeepaliveAck
    | Gone
    | SynRefused
    | Moved
    | MtuProbe
    | MtuProbeAck
    | RightRequest
    | Progress
    | RequestLock
    | AckLock
    | NackLock
    | CancelLock
    | AckCancel
    | RenewLock
    | Syn
    | SynAck
    | NackSyn
    | Ack
    | AckAck
    | OldDone
    | OldDoneAck
    | LockQuery
    | LockStatus
    | CopyState
    | PutState
    | StateTransferred
    | Trace
)

TYPES: Final[dict[int, type[Message]]] = {
    1: Hello,
    2: Keepalive,
    3: Gone,
    4: SynRefused,
    5: MtuProbe,
    6: MtuProbeAck,
    7: KeepaliveAck,
    8: Moved,
    16: RightRequest,
    17: Progress,
    18: RequestLock,
    19: AckLock,
    20: NackLock,
    21: CancelLock,
    22: AckCancel,
    23: RenewLock,
    24: Syn,
    25: SynAck,
    26: NackSyn,
    27: Ack,
    28: AckAck,
    29: OldDone,
    30: OldDoneAck,
    31: LockQuery,
    32: LockStatus,
    33: Trace,
    34: CopyState,
    35: PutState,
    36: StateTransferred,
}
"""Numbers on the wire."""

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
    "stamp": "!I",
    "state": "!B",
    "phase": "!B",
    "status": "!B",
    "leg": "!B",
    "index": "!H",
    "count": "!H",
}
_FIXED_BYTES = {"boot_id": 16, "digest": 8, "chain_id": 16, "handshake": 16}
_MOST_PLACES: Final = 66


class _Layout:
    """How a message is packed: a head of fields whose size is fixed, at one go, and the rest field by field.

    flags, handshakes: which of the head's values are bool, and which a Handshake. sizes: index, length, name of bytes.
    """

    __slots__ = ("flags", "handshakes", "head", "names", "rest", "sizes")

    def __init__(self, kind: type[Any]) -> None:
        hints = get_type_hints(kind)
        self.names: list[str] = []
        self.flags: list[int] = []
        self.handshakes: list[int] = []
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
                if hint is Handshake:
                    self.handshakes.append(index)
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


def encode_places(places: Places) -> bytes:
    """The bytes of places, as they are in a message."""
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
        for index in layout.handshakes:
            values[index] = Handshake(values[index])
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
