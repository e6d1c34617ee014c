"""The table of states: every pair has an answer, and its drawing is looked at when it changes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.protocol.states import DYING, IGNORED, TABLE, Action, Default, Input, State, dot, step

OPENED = {State.ESTABLISHED, State.HALF_CLOSED, State.TIME_WAIT, State.RESET, State.PROBED}
BEING_OPENED = set(State) - OPENED - {State.CLOSED}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("what", Input)
def test_every_pair_has_one_answer(state: State, what: Input) -> None:
    found = step(state, what)
    assert ((state, what) in TABLE) + ((state, what) in IGNORED) <= 1
    if isinstance(found, Default):
        assert found is not Default.REFUSE
        assert (found is Default.IGNORE) == ((state, what) in IGNORED)
    else:
        assert found == TABLE[state, what]


def test_what_must_hold_of_the_table() -> None:
    for (old, what), (action, new) in TABLE.items():
        assert old is not State.CLOSED
        assert (action is Action.CLOSE) == (new is State.CLOSED)
        assert (action is Action.ESTABLISH) == (old in BEING_OPENED and new in OPENED)
        if old in OPENED:
            assert new in OPENED | {State.CLOSED}
            assert what is not Input.TIMER
        else:
            assert what not in (Input.ACTIVE, Input.IDLE)
    for state in set(State) - {State.CLOSED}:
        assert step(state, Input.FORGET) == (Action.CLOSE, State.CLOSED)
    assert {state for state in State if (state, Input.SYN_ACK) in TABLE} == {State.OPENING, State.DENIED}
    assert State.CLOSED not in DYING


@given(
    st.lists(st.sampled_from([one for one in Input if one not in (Input.FORGET, Input.HELD)]), max_size=40)
)
def test_nothing_lives_for_ever_and_nothing_opens_twice(inputs: list[Input]) -> None:
    """After any inputs, timers that find nothing end a chain in at most three steps."""
    state, established = State.NEW, 0
    for what in inputs:
        found = step(state, what)
        if not isinstance(found, Default):
            action, state = found
            established += action is Action.ESTABLISH
    assert established <= 1
    for _ in range(3):
        if state is State.CLOSED:
            break
        found = step(state, Input.IDLE if state in OPENED else Input.TIMER)
        assert not isinstance(found, Default)
        state = found[1]
    assert state is State.CLOSED


def test_the_drawing_changes_only_on_purpose() -> None:
    """Look at `dot()` before and after, then put the new digest here."""
    drawing = dot()
    assert drawing.count("->") == len(TABLE)
    assert hashlib.sha256(drawing.encode()).hexdigest()[:16] == "8d8b2793eb34e9f3"
