"""Where a chain stands at one agent, and what moves it, as a table.

    (none) --HELD--> WAITING --SENT--> OPENING                     HELD: no association with the next hop yet
    (none) --SENT--> OPENING                                       the SYN has gone to the next hop, or out
    (none) --DELIVERED--> AT_BOX --SENT or HELD--> ...             the SYN came with a chain header
    OPENING --SYN_ACK--> ESTABLISHED --FIN_ONE--> HALF_CLOSED --FIN_BOTH--> TIME_WAIT
    OPENING --RST--> DENIED                                        so a new incarnation may begin at once
    ESTABLISHED, HALF_CLOSED --RST--> RESET --TIMER--> PROBED --ACTIVE--> ESTABLISHED
    all --FORGET or time--> CLOSED

What time brings depends on what the flow table counted: a chain that is open gets ACTIVE if packets have passed
since it was last asked, IDLE if not; one that is being opened gets TIMER.

A RST is passed on and judged by the endpoint, for only the endpoint knows its window (RFC 5961 section 3.2).
Whether it believed the RST is seen afterwards: GRACE_S later, when what was in flight has arrived, the agents
beside the endpoints ask them with an ACK out of window, which a live endpoint answers with an ACK and a dead
one with a RST (RFC 9293 section 3.10.7.4). RSTs never count as activity. So a forged RST ends no session,
idle or not, and a true one always does.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

GRACE_S: Final = 2.0  # ours: longer than packets stay under way once one end is closed


class State(Enum):
    """Where a chain stands at this agent; the module's drawing has the transitions."""

    __hash__ = (
        object.__hash__
    )  # members are looked up with every packet that comes here, and Enum's is Python code

    NEW = "new"
    WAITING = "waiting"
    AT_BOX = "at-box"
    OPENING = "opening"
    DENIED = "denied"
    ESTABLISHED = "established"
    HALF_CLOSED = "half-closed"
    TIME_WAIT = "time-wait"
    RESET = "reset"
    PROBED = "probed"
    CLOSED = "closed"


class Input(Enum):
    """What can happen to a chain at this agent."""

    __hash__ = object.__hash__

    HELD = "next hop has no association"
    DELIVERED = "syn given to the box"
    SENT = "syn sent on"
    SYN_ACK = "syn-ack"
    FIN_ONE = "fin of one direction"
    FIN_BOTH = "fin of both directions"
    RST = "rst"
    ACTIVE = "timer, packets passed"
    IDLE = "timer, no packets"
    TIMER = "timer of an opening"
    FORGET = "refused, replaced, evicted, stopped"


class Action(Enum):
    """What `Life` does on the way; setting the timer of the new state goes without saying."""

    NOTHING = "nothing"
    ESTABLISH = "drop what only an opening needs, tell the journal"
    RECORD = "tell the journal"
    MARK = "remember what the flow table has counted"
    PROBE = "ask the endpoints beside this agent"
    FAIL = "tell the left that no association came"
    CLOSE = "give everything back"


class Default(Enum):
    """What is not in the table is one of these."""

    IGNORE = "a repetition"
    REFUSE = "answer nack"
    BUG = "cannot happen; counted"


_EMBRYONIC: Final = (State.NEW, State.WAITING, State.AT_BOX, State.OPENING, State.DENIED)
_OPEN: Final = (State.ESTABLISHED, State.HALF_CLOSED, State.TIME_WAIT, State.RESET, State.PROBED)
DYING: Final = frozenset((State.TIME_WAIT, State.DENIED, State.RESET, State.PROBED))
"""A SYN with another ISN replaces a chain in one of these."""
BROKEN: Final = frozenset((State.RESET, State.PROBED))
"""A reset has gone on to an end: for that one the session is over."""
UNSETTLED: Final = BROKEN | {State.ESTABLISHED, State.HALF_CLOSED}
"""An end may believe that the session goes on."""

TABLE: Final[dict[tuple[State, Input], tuple[Action, State]]] = {
    (State.NEW, Input.HELD): (Action.NOTHING, State.WAITING),
    (State.NEW, Input.DELIVERED): (Action.NOTHING, State.AT_BOX),
    (State.NEW, Input.SENT): (Action.NOTHING, State.OPENING),
    (State.WAITING, Input.SENT): (Action.NOTHING, State.OPENING),
    (State.WAITING, Input.HELD): (Action.NOTHING, State.WAITING),
    (State.WAITING, Input.TIMER): (Action.FAIL, State.WAITING),
    (State.AT_BOX, Input.HELD): (Action.NOTHING, State.WAITING),
    (State.AT_BOX, Input.SENT): (Action.NOTHING, State.OPENING),
    (State.OPENING, Input.SYN_ACK): (Action.ESTABLISH, State.ESTABLISHED),
    (State.OPENING, Input.FIN_BOTH): (Action.ESTABLISH, State.TIME_WAIT),
    (State.OPENING, Input.RST): (Action.NOTHING, State.DENIED),
    (State.DENIED, Input.SYN_ACK): (Action.ESTABLISH, State.ESTABLISHED),
    (State.ESTABLISHED, Input.FIN_ONE): (Action.RECORD, State.HALF_CLOSED),
    (State.ESTABLISHED, Input.FIN_BOTH): (Action.MARK, State.TIME_WAIT),
    (State.HALF_CLOSED, Input.FIN_BOTH): (Action.MARK, State.TIME_WAIT),
    (State.ESTABLISHED, Input.RST): (Action.NOTHING, State.RESET),
    (State.HALF_CLOSED, Input.RST): (Action.NOTHING, State.RESET),
    (State.RESET, Input.ACTIVE): (Action.PROBE, State.PROBED),
    (State.RESET, Input.IDLE): (Action.PROBE, State.PROBED),
    (State.RESET, Input.FIN_BOTH): (Action.MARK, State.TIME_WAIT),
    (State.PROBED, Input.FIN_BOTH): (Action.MARK, State.TIME_WAIT),
    **{
        (state, Input.ACTIVE): (Action.MARK, state)
        for state in (State.ESTABLISHED, State.HALF_CLOSED, State.TIME_WAIT)
    },
    (State.PROBED, Input.ACTIVE): (Action.MARK, State.ESTABLISHED),
    **{
        (state, Input.IDLE): (Action.CLOSE, State.CLOSED)
        for state in (State.ESTABLISHED, State.HALF_CLOSED, State.TIME_WAIT, State.PROBED)
    },
    **{
        (state, Input.TIMER): (Action.CLOSE, State.CLOSED)
        for state in (State.NEW, State.AT_BOX, State.OPENING, State.DENIED)
    },
    **{(state, Input.FORGET): (Action.CLOSE, State.CLOSED) for state in (*_EMBRYONIC, *_OPEN)},
}

IGNORED: Final[frozenset[tuple[State, Input]]] = frozenset(
    {
        *((state, Input.SYN_ACK) for state in (*_OPEN, State.AT_BOX, State.WAITING)),
        *((state, Input.RST) for state in (State.TIME_WAIT, State.RESET, State.PROBED, State.DENIED)),
        *((state, Input.RST) for state in (State.AT_BOX, State.WAITING)),
        *((state, Input.FIN_ONE) for state in (*_EMBRYONIC[1:], *_OPEN[1:])),
        *((state, Input.FIN_BOTH) for state in (State.TIME_WAIT, State.DENIED, State.AT_BOX, State.WAITING)),
    }
)
"""Repetitions, and what a box that answers by itself may send before its own SYN has left."""


def step(state: State, what: Input) -> tuple[Action, State] | Default:
    """What an input does to a chain in a state."""
    found = TABLE.get((state, what))
    if found is not None:
        return found
    return Default.IGNORE if (state, what) in IGNORED else Default.BUG


def dot() -> str:
    """The table as a graph for `dot`, one line an edge, in a fixed order."""
    edges = sorted(
        f'  "{old.value}" -> "{new.value}" [label="{what.name}"];' for (old, what), (_, new) in TABLE.items()
    )
    return "\n".join(("digraph chain {", *edges, "}")) + "\n"
