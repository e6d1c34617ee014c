"""Going on without hosts that are dead, agent and all: both anchors talk to each other past them.

    left anchor ==X== dead box ==X== right anchor
         |                                ^
         +--- requestLock, cancelLock ----+      direct, by the names that everybody on the chain was told

What would go along the old path goes between the anchors themselves, labelled as the receiver's own subsession. All
else (syn, ack, oldDone) goes along the new path anyway. Only with `force`: who asks says that what lies between is
dead; an agent that does answer gets the same messages along the old path, and leaves in order.

Who is believed: an association's peer which, as this agent was told while the chain was whole, is on this chain where
it says it is, and which may change this session here. It needs the chain id and a label, too, which only the chain
knows.

What the dead boxes add to numbers must be known and final, so they must not have changed the length of the stream. If
one did, bytes may be lost for good that it had acknowledged: then the session is reset at both anchors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from dysco.protocol.anchors import RightState
from dysco.protocol.chain import Chain, Facing
from dysco.protocol.changing import Anchor, LeftAnchor
from dysco.protocol.ground import Ground, Side, id_of, means
from dysco.protocol.left import Left
from dysco.protocol.right import Right
from dysco.wire.messages import (
    AckCancel,
    AckLock,
    CancelLock,
    Change,
    Message,
    NackLock,
    Place,
    Progress,
    RequestLock,
    RightRequest,
)
from dysco.wire.numbers import MASK32

UNSTEADY: Final = "it had changed the stream, so what it held is lost: the session is reset"


class Bypass:
    """Sends and takes what goes past dead hosts."""

    def __init__(self, ground: Ground, left: Left, right: Right) -> None:
        self._ground = ground
        self._left = left
        self._right = right
        left.past = self.request

    # The left anchor.

    def request(self, chain: Chain, anchor: LeftAnchor) -> None:
        """Ask the right anchor for the lock, past what lies between."""
        change, me = anchor.change, self._ground.settings.name
        between = _between(chain, me, change.first, change.last)
        if not between:
            return
        anchor.direct = _right_of(chain, change.last)
        anchor.unsteady = next((_label(place) for place in between if not place.steady), "")
        forward = sum(one.forward_sum for one in between) & MASK32
        backward = sum(one.backward_sum for one in between) & MASK32
        request = RequestLock(id_of(chain, anchor.old), change.last, change, me, forward, backward)
        self._ground.tell(anchor.direct, request)

    def ask(self, chain: Chain, change: Change) -> None:
        """Ask the left anchor for a change, past what lies between."""
        name = self.left_anchor(chain, change)
        if name:
            self._ground.tell(name, RightRequest(id_of(chain, chain.left), change.first, change))

    @staticmethod
    def left_anchor(chain: Chain, change: Change) -> str:
        """The agent at the left end of a segment; "" if it is not known."""
        return next((place.agent for place in chain.places if place.right == change.first), "")

    def answer(self, chain: Chain, message: Progress, asker: str) -> None:
        """Tell who has asked past dead hosts how its change goes."""
        place = next((one for one in chain.places if one.agent == asker), None)
        if place is not None:
            hop = place.left or place.right  # the first host of all has no left one
            self._ground.tell(asker, replace(message, hop=hop, rightward=bool(place.left)))

    # What comes past dead hosts.

    def receive(
        self, chain: Chain, facing: Facing, side: Side, peer: str, message: Message, now: float
    ) -> bool:
        """Take a message about a subsession whose other end is another agent than `peer`; False: not to be believed."""
        roles = chain.changing
        peer = peer or self._ground.settings.name
        match message:
            case RequestLock() if side == "left" and facing is chain.left:
                return self._request_lock(chain, peer, message, now)
            case CancelLock() if roles is not None and roles.right is not None:
                if not _is_with(roles.right, peer, message.request):
                    return False
                answer = AckCancel(id_of(chain, chain.left), roles.right.change.first, message.request)
                self._right.cancel(chain, roles.right, now)
                self._ground.tell(peer, answer)
            case AckLock() | NackLock() | AckCancel() if roles is not None and roles.left is not None:
                if not _is_with(roles.left, peer, message.request):
                    return False
                self._answered(chain, roles.left, message, now)
            case _:
                return False
        return True

    def asks(self, chain: Chain, peer: str, message: RightRequest) -> bool:
        """Whether a change is asked for past dead hosts by somebody who may."""
        change, me = message.change, self._ground.settings.name
        right = chain.right
        return (
            change.force
            and change.origin == peer
            and right is not None
            and means(chain, right, change.first)
            and any(place.agent == peer for place in chain.places)
            and any(place.agent == me for place in chain.places)
        )

    def _answered(
        self, chain: Chain, anchor: LeftAnchor, message: AckLock | NackLock | AckCancel, now: float
    ) -> None:
        match message:
            case AckLock():
                self._left.ack_lock(chain, anchor, message, now)
            case NackLock():
                unsteady = anchor.unsteady
                self._left.nack_lock(chain, anchor, message, now)
                if unsteady and message.reason.endswith(UNSTEADY):
                    self._ground.life.reset(chain, "bypassed", now)
            case _:
                self._left.ack_cancel(chain, anchor, now)

    def _request_lock(self, chain: Chain, peer: str, message: RequestLock, now: float) -> bool:
        """The right anchor is asked for the lock."""
        change = message.change
        between = _between(chain, peer, change.first, change.last)
        if not (
            change.force and peer == message.anchor and means(chain, chain.left, change.last) and between
        ):
            return False
        refusal = self._refusal(chain, peer, message, between, now)
        unsteady = next((_label(place) for place in between if not place.steady), "")
        if refusal is None and unsteady:
            refusal = f"{unsteady} is dead, and {UNSTEADY}"
        elif refusal is None:
            refusal = self._right.request(chain, message, now, direct=peer)
        if refusal is not None:
            self._ground.counters["change_nacked"] += 1
            me = self._ground.settings.name
            nack = NackLock(id_of(chain, chain.left), change.first, change.request, me, refusal)
            self._ground.tell(peer, nack)
            if refusal.endswith(UNSTEADY):
                self._ground.life.reset(chain, "bypassed", now)
        return True

    def _refusal(
        self, chain: Chain, peer: str, message: RequestLock, between: tuple[Place, ...], now: float
    ) -> str | None:
        """Why not, if so. The lock of the dead host's subsession is gone with it; what it guarded is looked at here."""
        roles = chain.changing
        if not self._ground.allowed(chain, peer, message.change.origin):
            return f"{peer} may not change this session"
        if roles is None:
            return None
        if roles.inside is not None and not (roles.inside.new and roles.inside.committed):
            return "busy"
        right = roles.right
        if right is None or right.change.request == message.change.request:
            return None
        if right.anchor not in {place.agent for place in between}:
            return "busy"
        if right.state is RightState.TWO_PATHS:
            return f"busy: a change of {right.anchor}, which is dead, has passed the point of no return"
        self._right.drop(chain, right, now, "its left anchor is dead")
        return None


def _is_with(anchor: Anchor, peer: str, request: int) -> bool:
    return anchor.direct == peer and anchor.change.request == request


def _between(chain: Chain, left: str, first: int, last: int) -> tuple[Place, ...]:
    """The hosts between the agent `left`, whose right subsession is `first`, and whose left subsession is `last`."""
    places = chain.places
    begin = next(
        (i for i, place in enumerate(places) if (place.agent, place.right) == (left, first)), len(places)
    )
    end = next((i for i, place in enumerate(places) if place.left == last and last), 0)
    return tuple(places[begin + 1 : end])


def _right_of(chain: Chain, last: int) -> str:
    return next((place.agent for place in chain.places if place.left == last), "")


def _label(place: Place) -> str:
    return f"{place.agent}/{place.box}" if place.box else place.agent
