"""The lock at the left end of every subsession, as a table (DESIGN section 7).

    FREE --REQUEST--> PENDING --ACK_LOCK--> LOCKED --CANCEL_LOCK, NACK_LOCK, LEASE, DONE--> FREE
    FREE --OWN_REQUEST--> OWN --ACK_LOCK--> LOCKED                         this agent is the left anchor itself
                          OWN --OTHER_REQUEST--> OWN, which holds it       until the own answer is there

A request waits only for one whose left anchor lies further right, never the other way round, so nothing can
deadlock; of two that overlap the inner one is answered first, and contention never refuses both: the held one is
refused if the own one was granted, and passed on if it was refused. Locks are leases: an agent between the anchors
that hears nothing for LEASE_S frees its own.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from dysco.wire.messages import RequestLock

LEASE_S: Final = 30.0  # DESIGN section 7: at interior agents, from the moment ackLock passed
COMMIT_S: Final = 10.0  # DESIGN section 7: a left anchor commits within this of its requestLock, or cancels
RENEW_S: Final = 10.0  # DESIGN section 7: how often anchors renew after `ack`


class LockState(Enum):
    """Where the lock of one subsession stands at its left end."""

    FREE = "free"
    PENDING = "pending"
    OWN = "pending, own request"
    LOCKED = "locked"


class LockInput(Enum):
    """What can happen to a lock."""

    REQUEST = "requestLock"
    SAME_REQUEST = "requestLock, repeated"
    OTHER_REQUEST = "requestLock of another change"
    OWN_REQUEST = "this agent becomes left anchor"
    ACK_LOCK = "ackLock"
    NACK_LOCK = "nackLock"
    CANCEL_LOCK = "cancelLock"
    RENEW_LOCK = "renewLock"
    LEASE = "the lease has ended"
    DONE = "the change is done"


class LockAction(Enum):
    """What the agent does."""

    NOTHING = "nothing"
    PASS_ON = "pass the message on in its direction"
    HOLD = "keep the request until the own one is answered; refuse a second"
    NACK_BUSY = "answer nackLock busy"
    NACK_HELD = "answer nackLock busy to the held request"
    PASS_HELD = "pass the held request on"


TABLE: Final[dict[tuple[LockState, LockInput], tuple[LockAction, LockState]]] = {
    (LockState.FREE, LockInput.REQUEST): (LockAction.PASS_ON, LockState.PENDING),
    (LockState.FREE, LockInput.OWN_REQUEST): (LockAction.PASS_ON, LockState.OWN),
    (LockState.FREE, LockInput.NACK_LOCK): (LockAction.PASS_ON, LockState.FREE),
    (LockState.FREE, LockInput.CANCEL_LOCK): (LockAction.PASS_ON, LockState.FREE),
    (LockState.PENDING, LockInput.SAME_REQUEST): (LockAction.PASS_ON, LockState.PENDING),
    (LockState.PENDING, LockInput.OTHER_REQUEST): (LockAction.NACK_BUSY, LockState.PENDING),
    (LockState.PENDING, LockInput.ACK_LOCK): (LockAction.PASS_ON, LockState.LOCKED),
    (LockState.PENDING, LockInput.NACK_LOCK): (LockAction.PASS_ON, LockState.FREE),
    (LockState.PENDING, LockInput.CANCEL_LOCK): (LockAction.PASS_ON, LockState.FREE),
    (LockState.PENDING, LockInput.LEASE): (LockAction.NOTHING, LockState.FREE),
    (LockState.OWN, LockInput.OTHER_REQUEST): (LockAction.HOLD, LockState.OWN),
    (LockState.OWN, LockInput.ACK_LOCK): (LockAction.NACK_HELD, LockState.LOCKED),
    (LockState.OWN, LockInput.NACK_LOCK): (LockAction.PASS_HELD, LockState.FREE),
    (LockState.OWN, LockInput.CANCEL_LOCK): (LockAction.PASS_HELD, LockState.FREE),
    (LockState.LOCKED, LockInput.SAME_REQUEST): (LockAction.PASS_ON, LockState.LOCKED),
    (LockState.LOCKED, LockInput.OTHER_REQUEST): (LockAction.NACK_BUSY, LockState.LOCKED),
    (LockState.LOCKED, LockInput.ACK_LOCK): (LockAction.PASS_ON, LockState.LOCKED),
    (LockState.LOCKED, LockInput.NACK_LOCK): (LockAction.PASS_ON, LockState.FREE),
    (LockState.LOCKED, LockInput.CANCEL_LOCK): (LockAction.PASS_ON, LockState.FREE),
    (LockState.LOCKED, LockInput.RENEW_LOCK): (LockAction.PASS_ON, LockState.LOCKED),
    (LockState.LOCKED, LockInput.LEASE): (LockAction.NOTHING, LockState.FREE),
    (LockState.LOCKED, LockInput.DONE): (LockAction.NOTHING, LockState.FREE),
}
"""What is not here is a repetition or comes too late, and changes nothing."""


class Lock:
    """The lock of a subsession that is not free; a facing without one is free.

    held: a request that waits for the own answer, and by whom (peer) it came. until: end of the lease.
    """

    __slots__ = ("held", "request", "state", "until")

    def __init__(self, state: LockState, request: int, until: float) -> None:
        self.state = state
        self.request = request
        self.until = until
        self.held: RequestLock | None = None


def step(state: LockState, what: LockInput) -> tuple[LockAction, LockState] | None:
    """What an input does to a lock; None: nothing."""
    return TABLE.get((state, what))
