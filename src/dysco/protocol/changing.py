"""What a chain keeps at one agent while it is being changed: its roles in the changes that touch it.

An agent can be the right anchor of one segment and the left anchor of the next at the same time; whoever lies inside
a segment is neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from dysco.protocol.anchors import LeftState, RightState
from dysco.protocol.chain import WITH_TIMESTAMPS
from dysco.protocol.paths import TwoPaths
from dysco.protocol.stamps import Stamps
from dysco.protocol.windows import Windows
from dysco.wire.messages import Change, OldDoneAck, Syn
from dysco.wire.packet import Packet
from dysco.wire.tuples import FiveTuple

if TYPE_CHECKING:
    from dysco.protocol.chain import Facing


MOST_DONE: Final = 4  # ours: changes that may end at an anchor before all know of the first one


class Phase(IntEnum):
    """How far a change has come; the numbers go over the wire."""

    REQUESTED = 0
    LOCKED = 1
    NEW_PATH_UP = 2
    TWO_PATHS = 3
    DRAINED = 4
    DONE = 5
    REFUSED = 6
    ABORTED = 7
    STUCK = 8

    @property
    def is_final(self) -> bool:
        return self in (Phase.DONE, Phase.REFUSED, Phase.ABORTED)

    @property
    def words(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class ChangeInfo:
    """A change at one of its anchors: side (`left` or `right` anchor), phase, seconds at which each phase began.

    old, new: subsessions of the two paths here; new is None before it is known. Bytes that were sent on each.
    """

    side: str
    phase: str
    since: tuple[tuple[str, float], ...]
    old: FiveTuple
    new: FiveTuple | None
    bytes_old: int
    bytes_new: int


class Dead:
    """What an anchor knows of a proxy's death.

    acked: what its end was given as acknowledged until then. since: when it was taken for dead. peer: what the other
    anchor says of acked and answered, in this one's numbers; heard: when it said so last. agreed: all has come, as this
    one has told.
    """

    __slots__ = ("acked", "agreed", "heard", "peer", "since")

    def __init__(self, acked: int, now: float) -> None:
        self.acked = acked
        self.since = now
        self.heard = now
        self.peer: tuple[int, int] | None = None
        self.agreed = False


class Anchor:
    """What both anchors keep.

    old, new: the facings of the two paths on this side of the agent; new is None before it is known. two: while there
    are two paths. isn: of the path handshake; peer_next: the number that the other anchor announced in it as its next.
    tries: of what is being repeated. peer_done: the other anchor's half of the old path is empty; told_old, told_new:
    it knows the same of this half, and so do the hosts of that path. shown: the ACK at the other anchor's cutoff has
    come on the new path, and nothing of the path handshake is behind it. joined: chains are joined between the anchors;
    then stamps translates timestamps, if the session has them, and windows lets the inner end send no more than the
    other one takes. dead: once the proxy is taken for dead (see `rescue`); broken: it has reset the session; unsure:
    this agent has begun again since, and what the proxy has acknowledged is not known. doom: why the session cannot go
    on. holding: while a frozen box's state is under way, what the new path shall get, and how many bytes that is; None:
    nothing is held. since: when each phase began (seconds). direct: name of the other anchor, if what lies between may
    be dead (see `bypass`).
    """

    __slots__ = (
        "broken",
        "change",
        "dead",
        "deadline",
        "direct",
        "doom",
        "held_bytes",
        "holding",
        "isn",
        "joined",
        "new",
        "old",
        "peer_done",
        "peer_next",
        "phase",
        "renew_at",
        "shown",
        "since",
        "stamps",
        "told_new",
        "told_old",
        "tries",
        "two",
        "unsure",
        "windows",
    )

    def __init__(self, change: Change, old: Facing, now: float) -> None:
        self.change = change
        self.old = old
        self.new: Facing | None = None
        self.two: TwoPaths | None = None
        self.joined = False
        self.dead: Dead | None = None
        self.broken = False
        self.unsure = False
        self.doom = ""
        self.stamps: Stamps | None = None
        self.windows: Windows | None = None
        self.holding: list[Packet] | None = None
        self.held_bytes = 0
        self.isn = 0
        self.peer_next: int | None = None
        self.peer_done = False
        self.shown = False
        self.told_new = False
        self.told_old = False
        self.tries = 0
        self.deadline: float | None = None
        self.direct = ""
        self.renew_at = now
        self.phase = Phase.REQUESTED
        self.since = {Phase.REQUESTED: now}

    def join(self, windows: Windows | None = None) -> None:
        """Chains are joined between the anchors."""
        self.joined = True
        self.windows = windows
        halves = self.old.forward, self.old.backward
        if self.stamps is None and all(half.flags & WITH_TIMESTAMPS for half in halves):
            self.stamps = Stamps()

    @property
    def epitaph(self) -> str:
        """Why a change is over whose session is."""
        return self.doom or "the session has ended"

    @property
    def knows_stamps(self) -> bool:
        """Whether timestamps need not be waited for."""
        return self.stamps is None or self.stamps.is_known

    @property
    def knows_peers(self) -> bool:
        """Whether the other end's timestamps can be translated: else it would get echoes of what it never sent."""
        return self.stamps is None or self.stamps.peer is not None

    def know(self, message: OldDoneAck) -> None:
        """The other anchor knows, and so do the hosts of the path along which the message came that told it."""
        if message.last:
            self.told_old = True
        else:
            self.told_new = True

    @property
    def may_complete(self) -> bool:
        """Whether the other half is empty, too, and the endpoint would get nothing of the path handshake.

        The ACK at the other's cutoff may be lost: then it is not waited for longer than until something is repeated.
        """
        return self.peer_done and (self.shown or self.tries > 0)

    @property
    def told_done(self) -> bool:
        """Whether all on both paths know that this half of the old one is empty; a dead one is not waited for."""
        return self.told_new and (self.told_old or self.change.force)


class LeftAnchor(Anchor):
    """The left anchor's part. begun_at: when requestLock first went out. reason: why it failed, and who said so.

    moved: the box's state is in its new place. unsteady: what lies between and had changed the stream, if it is known.
    warned: it was said that the new path is silent. is_taken_back: the right anchor was asked to forget the change.
    """

    __slots__ = (
        "agreed",
        "begun_at",
        "is_taken_back",
        "moved",
        "reason",
        "shaken",
        "state",
        "unsteady",
        "warned",
    )

    def __init__(self, change: Change, old: Facing, now: float) -> None:
        super().__init__(change, old, now)
        self.state = LeftState.ONE_PATH
        self.agreed = False
        self.shaken = False
        self.is_taken_back = False
        self.moved = False
        self.begun_at = now
        self.unsteady = ""
        self.warned = False
        self.reason: tuple[str, str] = ("", "")


class RightAnchor(Anchor):
    """The right anchor's part. anchor: name of the left one. sums: of what lies between, both directions.

    informed: where the left side stands is known from the left anchor alone, since this agent has begun again.
    """

    __slots__ = ("anchor", "informed", "state", "sums")

    def __init__(self, change: Change, old: Facing, anchor: str, sums: tuple[int, int], now: float) -> None:
        super().__init__(change, old, now)
        self.anchor = anchor
        self.sums = sums
        self.informed = False
        self.state = RightState.ONE_PATH


class Joined(NamedTuple):
    """What a journal has of a proxy's two chains that are being joined, as one of them has it.

    partner: key of the other chain. is_left: this one ends at the proxy. added: see `joints.Added`. ends: where this
    one stood when its host left it (see `ground.Numbers`); None: it has not, or did not know.
    """

    partner: bytes
    is_left: bool
    locked: bool
    over: bool
    added: tuple[int, int]
    ends: tuple[int, int, int, int] | None


class Inside:
    """A host between the anchors, of the old path or of a new one that has no data yet.

    new: of the new path. committed: it joins, or leaves, for good. state: how its box's state is moved. left_done,
    right_done: that anchor has said that its half of the old path is empty. Cutoffs as the anchors have told them along
    the new path. rehearsed: number behind the handshake of the new path, by port and match. joined: out of a journal,
    until the other chain is there, too. fins, parted: both FINs have passed the middlebox that is left, and the ACK of
    the last one.
    """

    __slots__ = (
        "committed",
        "fins",
        "joined",
        "last",
        "left_cutoff",
        "left_done",
        "new",
        "parted",
        "rehearsed",
        "request",
        "right_cutoff",
        "right_done",
        "state",
    )

    def __init__(self, request: int, last: int, *, new: bool, state: int = 0) -> None:
        self.state = state
        self.request = request
        self.last = last
        self.new = new
        self.committed = False
        self.left_done = False
        self.right_done = False
        self.left_cutoff: int | None = None
        self.right_cutoff: int | None = None
        self.rehearsed: dict[tuple[int, FiveTuple], int] = {}
        self.joined: Joined | None = None
        self.fins = False
        self.parted = False


class Changing:
    """The roles of one chain at this agent. early: a syn that came before the requestLock of its change."""

    __slots__ = ("early", "inside", "left", "right")

    def __init__(self) -> None:
        self.left: LeftAnchor | None = None
        self.right: RightAnchor | None = None
        self.inside: Inside | None = None
        self.early: tuple[str, Syn] | None = None

    @property
    def is_over(self) -> bool:
        return self.left is None and self.right is None and self.inside is None

    def infos(self, now: float) -> tuple[ChangeInfo, ...]:
        """The changes of which this agent is an anchor, for people; seconds since each phase began."""
        anchors: tuple[tuple[str, Anchor | None], ...] = (("left", self.left), ("right", self.right))
        return tuple(
            ChangeInfo(
                side,
                one.phase.words,
                tuple((phase.words, max(0.0, now - at)) for phase, at in one.since.items()),
                one.old.tuple,
                None if one.new is None else one.new.tuple,
                0 if one.two is None else one.two.bytes_old,
                0 if one.two is None else one.two.bytes_new,
            )
            for side, one in anchors
            if one is not None
        )
