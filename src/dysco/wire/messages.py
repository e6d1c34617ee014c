"""Control messages between agents as frozen values; `frames` makes bytes of them.

Locks and reconfiguration (DESIGN sections 6 to 9): `hop` is the label by which both neighbours know the subsession
along which a message goes, `request` the random number of the change that it is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dysco.wire.chain_header import Hop
from dysco.wire.tuples import FiveTuple


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


WHOLE_AGENT: Final = bytes(16)
AGENT_AND_SESSIONS: Final = b"\xff" * 16


@dataclass(frozen=True, slots=True)
class Gone:
    """The sender does not know this chain (any more).

    Or it goes away altogether, and another agent may take up its sessions (chain id WHOLE_AGENT), or nobody will
    (AGENT_AND_SESSIONS).
    """

    chain_id: bytes
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SynRefused:
    """The sender refuses to be a hop of this chain, or was refused further on."""

    chain_id: bytes
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """The sender can be reached at these addresses from now on, one of each family that has moved; boxes are 0.

    number: how often it has moved since its agent began. A network may keep what was said before for a second, until it
    knows the way again.
    """

    number: int
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
    right cutoff is `acked`. stamp: latest timestamp behind it, if chains are joined; edge: then, the right edge of the
    window there (0: not known)."""

    chain_id: bytes
    hop: int
    request: int
    cutoff: int
    acked: int = 0
    done: bool = False
    stamp: int = 0
    edge: int = 0


@dataclass(frozen=True, slots=True)
class AckAck:
    """The right anchor has switched. cutoff in the left anchor's numbers; acked: all before it has come to its side.

    edge: the right edge of the window there, if chains are joined (0: not known).
    """

    chain_id: bytes
    hop: int
    request: int
    cutoff: int
    acked: int = 0
    edge: int = 0


@dataclass(frozen=True, slots=True)
class OldDone:
    """The sender's half of the old path is empty; goes along both paths, to the right if `rightward`.

    last: label of the old path's last subsession; 0 on the new path. waiting: it has not heard the same from the
    other anchor. fins: on the new path, which FINs have passed by the old one: 1 that of the left end, 2 of the right.
    """

    chain_id: bytes
    hop: int
    request: int
    rightward: bool
    last: int = 0
    waiting: bool = False
    fins: int = 0


@dataclass(frozen=True, slots=True)
class OldDoneAck:
    """Answer to an OldDone; goes back where that came from, so to the right if `rightward`."""

    chain_id: bytes
    hop: int
    request: int
    rightward: bool
    last: int = 0


@dataclass(frozen=True, slots=True)
class OldDead:
    """An anchor takes the old path for dead, and a proxy with it; goes along the new path, to the right if `rightward`.

    acked: what its end was given as acknowledged until then; answered: what its end has acknowledged; both in the left
    anchor's numbers. verdict: 0 not known yet, 1 nothing is lost and the sender goes on without the old path, 2 the
    sender cannot go on, 3 nothing is lost, and the sender goes on when the other one says so, too.
    """

    chain_id: bytes
    hop: int
    request: int
    rightward: bool
    acked: int
    answered: int
    verdict: int = 0


@dataclass(frozen=True, slots=True)
class LockQuery:
    """A right anchor asks the left one what has become of a change."""

    chain_id: bytes
    hop: int
    request: int


@dataclass(frozen=True, slots=True)
class LockStatus:
    """Answer to LockQuery. status: 0 unknown, 1 cancelled, 2 not decided yet, 3 committed with this cutoff.

    4, also unasked: taken back, if the right anchor has not switched; it says AckCancel if it has not.
    """

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

    leg: 0 to the left end, 1 collecting, 2 on the way back, 3 the chain does not pass there any more, 4 as 2, from the
    left neighbour of a dead host, which adds what it knows to stand right of it. number: names the question. Without an
    origin nobody asks: it goes back to the left end, and everybody on the way learns who is on the chain.
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
    | OldDead
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
    37: OldDead,
}
"""Numbers on the wire."""
