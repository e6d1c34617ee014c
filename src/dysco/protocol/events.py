"""What the core tells its driver: things that happened to sessions and peers, and what the journal must keep.

Nobody changes them. Those of every session are not frozen, for that would double what they cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from dysco.wire.messages import Place
from dysco.wire.tuples import FiveTuple


@dataclass(slots=True)
class SessionOpened:
    """A SYN began a chain here, or came along one."""

    chain_id: bytes
    hop_index: int
    session: FiveTuple
    policy: str


@dataclass(slots=True)
class SessionEstablished:
    """The SYN-ACK passed."""

    chain_id: bytes
    hop_index: int
    session: FiveTuple


@dataclass(slots=True)
class SessionClosed:
    """Nothing of the session is left here. reason: closed, reset, idle, embryonic, refused, replaced, stopped."""

    chain_id: bytes
    hop_index: int
    session: FiveTuple
    reason: str
    packets: int
    bytes: int
    box: str | None = None


@dataclass(frozen=True, slots=True)
class SetupRefused:
    """A chain could not be made; `by` is who said so (a peer, or this agent)."""

    chain_id: bytes
    session: FiveTuple
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class SentNatively:
    """A session goes without its chain, because the policy says `on_fail = "open"`."""

    session: FiveTuple
    policy: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChangeMoved:
    """A change of a chain has come to a phase at one of its anchors, or at who asked for it. by: who refused it."""

    chain_id: bytes
    hop_index: int
    session: FiveTuple
    request: int
    phase: str
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StateWanted:
    """The driver shall give a box's state of a session: `Agent.state_exported` with key and request.

    session: its tuple before the box. right: behind it.
    """

    key: bytes
    request: int
    box: str
    session: FiveTuple
    right: FiveTuple


@dataclass(frozen=True, slots=True)
class StateArrived:
    """The driver shall put a session's state into a box: `Agent.state_installed` with key and request."""

    key: bytes
    request: int
    box: str
    session: FiveTuple
    right: FiveTuple
    data: bytes


@dataclass(frozen=True, slots=True)
class Traced:
    """The answer to a question who is on a chain; no places: there was none."""

    number: int
    chain_id: bytes
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class PeerUp:
    """An association with a peer is there."""

    peer: str


@dataclass(frozen=True, slots=True)
class PeerDown:
    """An association with a peer is gone."""

    peer: str


@dataclass(frozen=True, slots=True)
class PeerMoved:
    """A peer says that it can be reached at other addresses from now on; these as text."""

    peer: str
    addresses: tuple[str, ...]


@dataclass(slots=True)
class SessionRecord:
    """The journal must remember this; `data` is what `dysco.protocol.records` reads back."""

    key: bytes
    data: bytes


@dataclass(slots=True)
class SessionForgotten:
    """The journal may forget the session with this key."""

    key: bytes


Event = (
    SessionOpened
    | SessionEstablished
    | SessionClosed
    | SetupRefused
    | SentNatively
    | ChangeMoved
    | StateWanted
    | StateArrived
    | Traced
    | PeerUp
    | PeerDown
    | PeerMoved
    | SessionRecord
    | SessionForgotten
)
