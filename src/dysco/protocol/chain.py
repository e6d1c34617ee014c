"""What an agent knows of one session: the chain it is part of, and the facings on both sides.

    left facing                       box                       right facing
    (read, write, tuple)   left side     right side     (read, write, tuple)
           |  forward -->  session_in    session_out  -->  |
           |  <-- backward                                 |

A facing is this agent's end of a subsession, or, at the ends of a chain, the host's own side. Without a box
packets go from one facing to the other. Everything that a packet needs follows from here, so flows are made
and found again without being stored: `flows` gives them.

`states` says where a chain stands and what moves it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from dysco.protocol.flow import HOST, LOOP, UNDERLAY, Flow, Translation
from dysco.protocol.locks import Lock
from dysco.protocol.settings import LocalBox
from dysco.protocol.states import State
from dysco.wire.chain_header import CHAIN_ID_LEN, Egress, Hop
from dysco.wire.frames import decode_places, encode_places
from dysco.wire.messages import Places
from dysco.wire.options import syn_options
from dysco.wire.packet import ACK, CWR, ECE, Located, Packet
from dysco.wire.tuples import FiveTuple

if TYPE_CHECKING:
    from dysco.protocol.changing import ChangeInfo, Changing
    from dysco.protocol.joints import Joint

FORWARD_FIN: Final = 1
BACKWARD_FIN: Final = 2
Fingerprint = tuple[int, int | None, int, int | None]
"""Initial sequence number, TSval, window and MSS of a SYN."""


class Half(NamedTuple):
    """What one direction announced: its ISN, and options as numbers; mss 0, wscale 255: not there."""

    isn: int
    mss: int
    wscale: int
    flags: int


HALF: Final = struct.Struct("!IHBB")
SEEN: Final = 1
WITH_SACK: Final = 2
WITH_TIMESTAMPS: Final = 4
WITH_ECN: Final = 8
NO_HANDSHAKE: Final = bytes(2 * HALF.size)
_NO_WSCALE: Final = 255


def agreed(halves: tuple[Half, Half], flag: int) -> bool:
    """Whether both ends have announced an option."""
    return all(half.flags & flag for half in halves)


def scales(halves: tuple[Half, Half]) -> tuple[int, int]:
    """Window scales of both ends; they count only if both have announced one (RFC 7323 section 2.2)."""
    found = halves[0].wscale, halves[1].wscale
    return (0, 0) if _NO_WSCALE in found else found


NOWHERE: Final = Places()


def announced(packet: Packet, at: Located) -> bytes:
    """What a SYN or SYN-ACK announces, packed as a `Half`."""
    options = syn_options(packet, at)
    # RFC 3168 section 6.1.1: a SYN offers ECN with both flags, a SYN-ACK accepts it with ECE alone.
    ecn = at.flags & (ECE | CWR) == (ECE if at.flags & ACK else ECE | CWR)
    flags = SEEN | WITH_SACK * options.sack | WITH_TIMESTAMPS * (options.tsval is not None) | WITH_ECN * ecn
    wscale = 255 if options.wscale is None else options.wscale
    return HALF.pack(at.seq, options.mss or 0, wscale, flags)


class Terms(NamedTuple):
    """How options that were agreed on differ between the outer side of a facing and the inner one.

    scale_in, scale_out: how far windows are shifted to the left on the way in and out. strip_in, strip_out: SACK blocks
    mean nothing to who gets them.
    """

    scale_in: int = 0
    scale_out: int = 0
    strip_in: bool = False
    strip_out: bool = False


SAME_TERMS: Final = Terms()


class Seam:
    """What a facing has of two chains that were joined into one session.

    chain_id: by which both neighbours know this subsession; empty: the id of the chain. stamp: what is added to
    timestamps that come in here, and taken off their echoes. terms: what the handshakes differ in.
    """

    __slots__ = ("chain_id", "stamp", "terms")

    def __init__(self, chain_id: bytes = b"", stamp: int = 0, terms: Terms = SAME_TERMS) -> None:
        self.chain_id = chain_id
        self.stamp = stamp
        self.terms = terms


class Facing:
    """One end: packets of this side are read from `read` and written to `write`; `tuple` is left to right.

    peer names the neighbour agent, "" for this agent itself; None if this is the host's side of the chain.
    opened: this agent chose the ports, and gives them back. handshake: what SYN and SYN-ACK announced in this
    facing's numbers, two packed halves in one value, which facings with equal numbers share.

    hop: the label by which both neighbours know the subsession, 0 on the host's side. sums: what an earlier change
    has left to this facing to translate (see `translations`). lock: of the subsession that begins here; None: free.
    seam: what joined chains have left here.
    """

    __slots__ = ("handshake", "hop", "lock", "opened", "peer", "read", "seam", "sums", "tuple", "write")

    def __init__(
        self, read: int, write: int, tuple_: FiveTuple, peer: str | None, opened: bool = False
    ) -> None:
        self.read = read
        self.write = write
        self.tuple = tuple_
        self.peer = peer
        self.opened = opened
        self.handshake = NO_HANDSHAKE
        self.hop = 0
        self.sums: tuple[int, int] | None = None
        self.lock: Lock | None = None
        self.seam: Seam | None = None

    @property
    def translates(self) -> bool:
        """Whether it has other numbers or terms than the side inside: what passes there says nothing of its own."""
        return self.seam is not None or self.sums not in (None, (0, 0))

    def translations(self) -> tuple[Translation | None, Translation | None]:
        """What flows add that come in here and go out here (DESIGN section 9).

        With sums (Df, Db): inside = outside + Df and its ack - Db on the way in, outside = inside + Db and its ack - Df
        on the way out.
        """
        stamp, terms = (0, SAME_TERMS) if self.seam is None else (self.seam.stamp, self.seam.terms)
        if not stamp and terms == SAME_TERMS and (self.sums is None or self.sums == (0, 0)):
            return None, None
        forward, backward = self.sums or (0, 0)
        return (
            Translation(forward, -backward, stamp, 0, terms.scale_in, terms.strip_in),
            Translation(backward, -forward, 0, -stamp, terms.scale_out, terms.strip_out),
        )

    @property
    def forward(self) -> Half:
        """What the SYN announced on this side."""
        return Half(*HALF.unpack_from(self.handshake))

    @property
    def backward(self) -> Half:
        """What the SYN-ACK announced on this side; without SEEN in its flags there was none."""
        return Half(*HALF.unpack_from(self.handshake, HALF.size))


class Opening:
    """What only a session that is being opened needs; dropped when the SYN-ACK has passed.

    route: all hops as this agent first had them. syn: the SYN while it is held, and a copy while it may still have
    to go natively. header: as signed with `key`; sent: payload bytes of the SYN that went out last.
    """

    __slots__ = (
        "egress",
        "fingerprint",
        "header",
        "hops",
        "key",
        "on_fail_open",
        "route",
        "sent",
        "syn",
        "tag",
    )

    def __init__(self, hops: tuple[Hop, ...], egress: Egress, on_fail_open: bool) -> None:
        self.route = hops
        self.hops = hops
        self.egress = egress
        self.on_fail_open = on_fail_open
        self.fingerprint: Fingerprint = (0, None, 0, None)
        self.header = b""
        self.key = b""
        self.sent = 0
        self.syn: Packet | None = None
        self.tag = b""


class Chain:
    """One session at this agent; see the module's drawing.

    told: `places` as they are kept. active: packets that the flows had counted when the timer was set. fins:
    FORWARD_FIN, BACKWARD_FIN. queued: when the entry of its timer comes up, `deadline` or sooner. joint: while a
    proxy's other session is being joined to it. done: the last changes that were completed here as an anchor.
    """

    __slots__ = (
        "active",
        "box",
        "changing",
        "created_at",
        "deadline",
        "done",
        "fins",
        "joint",
        "key",
        "left",
        "opening",
        "policy",
        "queued",
        "right",
        "session_in",
        "session_out",
        "state",
        "told",
    )

    def __init__(
        self,
        key: bytes,
        left: Facing,
        session: FiveTuple,
        policy: str,
        opening: Opening | None,
        now: float,
    ) -> None:
        self.key = key
        self.left = left
        self.right: Facing | None = None
        self.box: LocalBox | None = None
        self.session_in = session
        self.session_out = session
        self.policy = policy
        self.opening = opening
        self.changing: Changing | None = None
        self.told = b""
        self.done: tuple[tuple[int, int], ...] = ()
        self.joint: Joint | None = None
        self.state = State.NEW
        self.fins = 0
        self.active = 0
        self.created_at = now
        self.deadline = now
        self.queued = math.inf

    @property
    def places(self) -> Places:
        """Who was on the chain when its agents were last told.

        Kept packed, for the labels differ from session to session, and objects for all of it would be a third of what a
        session takes.
        """
        return decode_places(self.told) if self.told else NOWHERE

    @places.setter
    def places(self, places: Places) -> None:
        self.told = encode_places(places) if places else b""

    @property
    def chain_id(self) -> bytes:
        return self.key[:CHAIN_ID_LEN]

    @property
    def came_by(self) -> tuple[int, FiveTuple]:
        """Port and tuple of the SYN that this chain sends on."""
        if self.box is None:
            return self.left.read, self.left.tuple
        return self.box.right_read, self.session_out

    @property
    def hop_index(self) -> int:
        """How many subsessions lie to the left of this agent."""
        return self.key[CHAIN_ID_LEN]

    def left_flows(self) -> Iterator[Flow]:
        """The flows between the left facing and the box; none without a box."""
        if self.box is not None:
            into, out = self.left.translations()
            yield Flow(
                self.left.read,
                self.left.tuple,
                self.box.left_write,
                self.session_in,
                owner=self,
                translation=into,
            )
            yield Flow(
                self.box.left_read,
                self.session_in.reversed(),
                self.left.write,
                self.left.tuple.reversed(),
                owner=self,
                translation=out,
            )

    def right_flows(self) -> Iterator[Flow]:
        """The flows between the box and the right facing, or between both facings without a box."""
        assert self.right is not None
        backward, forward = self.right.translations()
        if self.box is None:
            read, write, session = self.left.read, self.left.write, self.left.tuple
            into, out = self.left.translations()
            forward, backward = _both(into, forward), _both(backward, out)
        else:
            read, write, session = self.box.right_read, self.box.right_write, self.session_out
        yield Flow(read, session, self.right.write, self.right.tuple, owner=self, translation=forward)
        yield Flow(
            self.right.read,
            self.right.tuple.reversed(),
            write,
            session.reversed(),
            owner=self,
            translation=backward,
        )

    def flow_keys(self) -> Iterator[tuple[int, FiveTuple]]:
        """Port and match of each flow that this chain has."""
        if self.box is not None:
            yield self.left.read, self.left.tuple
            yield self.box.left_read, self.session_in.reversed()
            if self.right is not None:
                yield self.box.right_read, self.session_out
        elif self.right is not None:
            yield self.left.read, self.left.tuple
        if self.right is not None:
            yield self.right.read, self.right.tuple.reversed()

    def is_forward(self, flow: Flow) -> bool:
        """Whether a flow of this chain leads to the right."""
        if flow.port == self.left.read and flow.match == self.left.tuple:
            return True
        return self.box is not None and flow.port == self.box.right_read and flow.match == self.session_out

    def goes_by(self, peer: str) -> bool:
        """Whether a peer is this session's next agent on one side."""
        return self.left.peer == peer or (self.right is not None and self.right.peer == peer)

    def is_from_end(self, flow: Flow) -> bool:
        """Whether a flow is of what this host's own stack, or a network behind it, sends as an end of the session."""
        here, left, right = (flow.port, flow.match), self.left, self.right
        if left.peer is None and here == (HOST, left.tuple):
            return True
        return right is not None and right.peer is None and here == (HOST, right.tuple.reversed())


def _both(one: Translation | None, other: Translation | None) -> Translation | None:
    return one + other if one is not None and other is not None else one or other


@dataclass(frozen=True, slots=True)
class FacingInfo:
    """A facing for people: neighbour ("" for this host itself, None for the host's side), subsession, its label.

    chain_id: by what id the neighbour knows the chain, if not by this host's: two chains were joined.
    """

    peer: str | None
    tuple: FiveTuple
    label: int = 0
    chain_id: bytes = b""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session of this agent for people. Ages in seconds; packets and bytes of all its flows here."""

    chain_id: bytes
    hop_index: int
    role: str
    state: str
    session: FiveTuple
    session_out: FiveTuple
    policy: str
    box: str | None
    left: FacingInfo
    right: FacingInfo | None
    age_s: float
    packets: int
    bytes: int
    changes: tuple[ChangeInfo, ...] = ()


def key_of(info: SessionInfo) -> bytes:
    """The key by which the agent knows a session."""
    return info.chain_id + bytes((info.hop_index,))


def role(chain: Chain) -> str:
    """What this agent is in the chain: first, middle, last, or relay (no box)."""
    if chain.left.peer is None:
        return "first"
    if chain.right is not None and chain.right.peer is None and chain.right.read == HOST:
        return "last"
    return "relay" if chain.box is None else "middle"


def facing_host(session: FiveTuple) -> Facing:
    """The host's own side of a chain: its stack sends and receives the session itself."""
    return Facing(HOST, HOST, session, None)


def facing_agent(tuple_: FiveTuple, peer: str, hop: int, *, opened: bool) -> Facing:
    """The end of a subsession with a neighbour; "" is this agent itself. hop: its label."""
    facing = Facing(UNDERLAY, UNDERLAY if peer else LOOP, tuple_, peer, opened)
    facing.hop = hop
    return facing


def first_label(hop_index: int) -> int:
    """The label of the subsession that a SYN opens which has passed `hop_index` others; later ones are drawn."""
    return hop_index + 1
