"""Both anchors of a change, as tables (DESIGN section 8).

Left anchor, which decides:

    ONE_PATH --START--> REQUESTING --ACK_LOCK--> SETTING_UP --READY--> TWO_PATHS --DONE--> ONE_PATH
                        REQUESTING --NACK_LOCK--> ONE_PATH
                        REQUESTING, SETTING_UP --FAIL--> CANCELLING --ACK_CANCEL, TIMER--> ONE_PATH
                        TWO_PATHS --ACK_CANCEL--> CANCELLING

Right anchor, which follows:

    ONE_PATH --REQUEST_LOCK--> REQUESTED --SYN--> WAITING --ACK, NEW_DATA--> TWO_PATHS --DONE--> ONE_PATH
               REQUESTED, WAITING --CANCEL_LOCK--> ONE_PATH

READY: the lock is granted, all new hops have agreed, and the path handshake has gone through their boxes and back.
With it the left anchor freezes its cutoff: the point of no return. The new path is prepared while the lock is asked
for, so that a change takes two round trips: nothing is sent on it before READY, and a refused lock costs the new
hops a state that they drop.

One way leads back: if the new path is silent after READY, the left anchor asks the right one along the old path to take
the change for cancelled. A right anchor that has not switched drops the new path and says ackCancel; from there on it
cannot switch any more, and nothing that was sent on the new path has been taken. So the left one goes back to the old
path, where TCP sends the rest again. A right anchor that has switched does not answer.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class LeftState(Enum):
    """Where the left anchor of a change stands."""

    ONE_PATH = "one path"
    REQUESTING = "requesting"
    SETTING_UP = "setting up"
    TWO_PATHS = "two paths"
    CANCELLING = "cancelling"


class LeftInput(Enum):
    """What can happen to a left anchor."""

    START = "a change is wished"
    ACK_LOCK = "ackLock"
    NACK_LOCK = "nackLock"
    READY = "lock, agreement and path handshake are there"
    FAIL = "nackSyn, tries or time used up, session reset"
    ACK_CANCEL = "ackCancel"
    TIMER = "no ackCancel came"
    DONE = "both halves of the old path are empty"


class LeftAction(Enum):
    """What the left anchor does."""

    REQUEST = "send requestLock and syn, open the new path on the wire"
    WAIT = "go on setting up"
    DROP = "drop the new path"
    COMMIT = "freeze the cutoff, send ack, use both paths"
    CANCEL = "send cancelLock along both paths"
    COMPLETE = "use the new path alone"


class RightState(Enum):
    """Where the right anchor of a change stands."""

    ONE_PATH = "one path"
    REQUESTED = "requested"
    WAITING = "waiting"
    TWO_PATHS = "two paths"


class RightInput(Enum):
    """What can happen to a right anchor."""

    REQUEST_LOCK = "requestLock"
    SYN = "syn"
    ACK = "ack"
    NEW_DATA = "data on the new path"
    CANCEL_LOCK = "cancelLock"
    DONE = "both halves of the old path are empty"
    LEASE = "no syn came"


class RightAction(Enum):
    """What the right anchor does."""

    GRANT = "send ackLock"
    AGREE = "make the new facing, send synAck"
    COMMIT = "freeze the cutoff, send ackAck, use both paths"
    DROP = "drop the new path"
    COMPLETE = "use the new path alone"
    REPEAT = "answer again"


LEFT: Final[dict[tuple[LeftState, LeftInput], tuple[LeftAction, LeftState]]] = {
    (LeftState.ONE_PATH, LeftInput.START): (LeftAction.REQUEST, LeftState.REQUESTING),
    (LeftState.REQUESTING, LeftInput.ACK_LOCK): (LeftAction.WAIT, LeftState.SETTING_UP),
    (LeftState.REQUESTING, LeftInput.NACK_LOCK): (LeftAction.DROP, LeftState.ONE_PATH),
    (LeftState.REQUESTING, LeftInput.FAIL): (LeftAction.CANCEL, LeftState.CANCELLING),
    (LeftState.SETTING_UP, LeftInput.READY): (LeftAction.COMMIT, LeftState.TWO_PATHS),
    (LeftState.SETTING_UP, LeftInput.FAIL): (LeftAction.CANCEL, LeftState.CANCELLING),
    (LeftState.TWO_PATHS, LeftInput.ACK_CANCEL): (LeftAction.CANCEL, LeftState.CANCELLING),
    (LeftState.TWO_PATHS, LeftInput.DONE): (LeftAction.COMPLETE, LeftState.ONE_PATH),
    (LeftState.CANCELLING, LeftInput.ACK_CANCEL): (LeftAction.DROP, LeftState.ONE_PATH),
    (LeftState.CANCELLING, LeftInput.TIMER): (LeftAction.DROP, LeftState.ONE_PATH),
}

RIGHT: Final[dict[tuple[RightState, RightInput], tuple[RightAction, RightState]]] = {
    (RightState.ONE_PATH, RightInput.REQUEST_LOCK): (RightAction.GRANT, RightState.REQUESTED),
    (RightState.REQUESTED, RightInput.REQUEST_LOCK): (RightAction.REPEAT, RightState.REQUESTED),
    (RightState.REQUESTED, RightInput.SYN): (RightAction.AGREE, RightState.WAITING),
    (RightState.REQUESTED, RightInput.CANCEL_LOCK): (RightAction.DROP, RightState.ONE_PATH),
    (RightState.REQUESTED, RightInput.LEASE): (RightAction.DROP, RightState.ONE_PATH),
    (RightState.WAITING, RightInput.REQUEST_LOCK): (RightAction.REPEAT, RightState.WAITING),
    (RightState.WAITING, RightInput.SYN): (RightAction.REPEAT, RightState.WAITING),
    (RightState.WAITING, RightInput.CANCEL_LOCK): (RightAction.DROP, RightState.ONE_PATH),
    (RightState.WAITING, RightInput.ACK): (RightAction.COMMIT, RightState.TWO_PATHS),
    (RightState.WAITING, RightInput.NEW_DATA): (RightAction.COMMIT, RightState.TWO_PATHS),
    (RightState.TWO_PATHS, RightInput.ACK): (RightAction.REPEAT, RightState.TWO_PATHS),
    (RightState.TWO_PATHS, RightInput.DONE): (RightAction.COMPLETE, RightState.ONE_PATH),
}


def left(state: LeftState, what: LeftInput) -> tuple[LeftAction, LeftState] | None:
    """What an input does to a left anchor; None: a repetition, or too late."""
    return LEFT.get((state, what))


def right(state: RightState, what: RightInput) -> tuple[RightAction, RightState] | None:
    """What an input does to a right anchor; None: a repetition, or too late."""
    return RIGHT.get((state, what))
