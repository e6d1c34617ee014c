"""What an agent knows of one session: the chain it is part of, and the facings on both sides.

    left facing                       box                       right facing
    (read, write, tuple)   left side     right side     (read, write, tuple)
           |  forward -->  session_in    session_out  -->  |
           |  <-- backward                                 |

A facing is this agent's end of a subsession, or, at the ends of a chain, the host's own side. Without a box
packets go from one facing to the other. Everything that a packet needs follows from here, so flows are made
and found again without being stored: `flows` gives them.

States of a chain at one agent, and what moves it:

    (none) --SYN, no association--> WAITING --association--> OPENING
    (none) --SYN--> OPENING                            the SYN has gone to the next hop
    (none) --SYN with chain header--> AT_BOX --SYN leaves the box--> OPENING or WAITING
    OPENING --SYN-ACK--> ESTABLISHED --FIN--> HALF_CLOSED --FIN the other way--> TIME_WAIT
    OPENING and later --RST--> RESET --packets go on--> what it was before
    WAITING, OPENING, AT_BOX --refused, timer--> (gone);  all others --timer without activity--> (gone)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from dysco.protocol.flow import HOST, LOOP, UNDERLAY, Flow
from dysco.protocol.settings import LocalBox
from dysco.wire.chain_header import CHAIN_ID_LEN, Egress, Hop
from dysco.wire.packet import Packet
from dysco.wire.tuples import FiveTuple

FORWARD_FIN: Final = 1
BACKWARD_FIN: Final = 2
Fingerprint = tuple[int, int | None, int, int | None]
"""Initial sequence number, TSval, window and MSS of a SYN."""


class State(Enum):
    """Where a chain stands at this agent; the module's drawing has the transitions."""

    WAITING = "waiting"
    AT_BOX = "at-box"
    OPENING = "opening"
    ESTABLISHED = "established"
    HALF_CLOSED = "half-closed"
    TIME_WAIT = "time-wait"
    RESET = "reset"
    CLOSED = "closed"


class Input(Enum):
    """What can happen to a chain at this agent."""

    ASSOCIATED = "association up"
    SYN_OUT = "syn left the box"
    SENT = "syn sent on"
    SYN_ACK = "syn-ack"
    FIN_ONE = "fin of one direction"
    FIN_BOTH = "fin of both directions"
    RST = "rst"
    ACTIVE = "packets after rst"
    FORGET = "timer, refusal or replacement"


_OPENED = (State.OPENING, State.ESTABLISHED, State.HALF_CLOSED, State.TIME_WAIT, State.RESET)

TRANSITIONS: Final[dict[tuple[State, Input], State]] = {
    (State.WAITING, Input.SENT): State.OPENING,
    (State.AT_BOX, Input.SENT): State.OPENING,
    (State.AT_BOX, Input.SYN_OUT): State.WAITING,
    (State.OPENING, Input.SYN_ACK): State.ESTABLISHED,
    (State.OPENING, Input.FIN_ONE): State.OPENING,
    (State.OPENING, Input.FIN_BOTH): State.TIME_WAIT,
    (State.ESTABLISHED, Input.FIN_ONE): State.HALF_CLOSED,
    (State.ESTABLISHED, Input.FIN_BOTH): State.TIME_WAIT,
    (State.HALF_CLOSED, Input.FIN_BOTH): State.TIME_WAIT,
    (State.RESET, Input.ACTIVE): State.ESTABLISHED,
    **{(state, Input.RST): State.RESET for state in (*_OPENED, State.AT_BOX)},
    **{(state, Input.FORGET): State.CLOSED for state in State},
}
"""What is not here is a repetition and changes nothing (IGNORE)."""


class Facing:
    """One end: packets of this side are read from `read` and written to `write`; `tuple` is left to right.

    peer names the neighbour agent, "" for this agent itself; None if this is the host's side of the chain.
    opened: this agent chose the ports, and gives them back.
    """

    __slots__ = ("opened", "peer", "read", "tuple", "write")

    def __init__(
        self, read: int, write: int, tuple_: FiveTuple, peer: str | None, opened: bool = False
    ) -> None:
        self.read = read
        self.write = write
        self.tuple = tuple_
        self.peer = peer
        self.opened = opened


class Opening:
    """What only a session that is being opened needs; dropped when the SYN-ACK has passed."""

    __slots__ = ("egress", "fingerprint", "header", "hops", "on_fail_open", "syn", "tag")

    def __init__(self, hops: tuple[Hop, ...], egress: Egress, on_fail_open: bool) -> None:
        self.hops = hops
        self.egress = egress
        self.on_fail_open = on_fail_open
        self.fingerprint: Fingerprint = (0, None, 0, None)
        self.header = b""
        self.syn: Packet | None = None
        self.tag = b""


class Chain:
    """One session at this agent; see the module's drawing."""

    __slots__ = (
        "active",
        "box",
        "created_at",
        "deadline",
        "fins",
        "isn",
        "key",
        "left",
        "opening",
        "policy",
        "right",
        "session_in",
        "session_out",
        "state",
    )

    def __init__(
        self,
        key: bytes,
        left: Facing,
        session: FiveTuple,
        isn: int,
        policy: str,
        opening: Opening,
        now: float,
    ) -> None:
        self.key = key
        self.left = left
        self.right: Facing | None = None
        self.box: LocalBox | None = None
        self.session_in = session
        self.session_out = session
        self.isn = isn
        self.policy = policy
        self.opening: Opening | None = opening
        self.state = State.WAITING
        self.fins = 0
        self.active = 0
        self.created_at = now
        self.deadline = now

    @property
    def chain_id(self) -> bytes:
        return self.key[:CHAIN_ID_LEN]

    @property
    def hop_index(self) -> int:
        """How many subsessions lie to the left of this agent."""
        return self.key[CHAIN_ID_LEN]

    def advance(self, what: Input) -> bool:
        """Take an input; True if the state changed."""
        new = TRANSITIONS.get((self.state, what), self.state)
        changed = new is not self.state
        self.state = new
        return changed

    def left_flows(self) -> Iterator[Flow]:
        """The flows between the left facing and the box; none without a box."""
        if self.box is not None:
            yield Flow(self.left.read, self.left.tuple, self.box.left_write, self.session_in, owner=self)
            yield Flow(
                self.box.left_read,
                self.session_in.reversed(),
                self.left.write,
                self.left.tuple.reversed(),
                owner=self,
            )

    def right_flows(self) -> Iterator[Flow]:
        """The flows between the box and the right facing, or between both facings without a box."""
        if self.right is None:
            return
        if self.box is None:
            read, write, session = self.left.read, self.left.write, self.left.tuple
        else:
            read, write, session = self.box.right_read, self.box.right_write, self.session_out
        yield Flow(read, session, self.right.write, self.right.tuple, owner=self)
        yield Flow(self.right.read, self.right.tuple.reversed(), write, session.reversed(), owner=self)

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


@dataclass(frozen=True, slots=True)
class FacingInfo:
    """A facing for people: neighbour ("" for this host itself, None for the host's side) and subsession."""

    peer: str | None
    tuple: FiveTuple


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


def facing_agent(tuple_: FiveTuple, peer: str, *, opened: bool) -> Facing:
    """The end of a subsession with a neighbour; "" is this agent itself."""
    return Facing(UNDERLAY, UNDERLAY if peer else LOOP, tuple_, peer, opened)
