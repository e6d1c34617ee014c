"""Who is on a chain: questions, answers, and what is told unasked.

a --1-- b (this agent, with a box) --2-- d       as in test_locks.py
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dysco.protocol.events import Traced
from dysco.protocol.ground import alias
from dysco.protocol.settings import Timers
from dysco.protocol.traces import MOST_PLACES, REPEAT_S, SO_FAR, SOON_S, TRIES
from dysco.wire.messages import Place, Places, Trace
from protocol.rig import Rig, address, session, to_c
from protocol.test_guards import chain_of, said, tell
from protocol.test_locks import CHAIN, LEFT, RIGHT, Talk

B = Place("b", "box", address(2), alias(CHAIN, LEFT), alias(CHAIN, RIGHT), False, True, 5, 7)
D = Place("d", "", address(4), alias(CHAIN, RIGHT), 0, False, True, 0, 0)
A = Place("a", "", address(1), 0, alias(CHAIN, LEFT), False, True, 0, 0)
NEW_A = replace(A, left=99)
AS_COLLECTED = replace(B, box="pair", backward_sum=2**32 - 7)


def answers(rig: Rig) -> list[tuple[int, tuple[str, ...]]]:
    return [
        (one.number, tuple(place.agent for place in one.places))
        for one in rig.events(Traced)
        if isinstance(one, Traced)
    ]


def test_a_question_goes_to_the_left_end_and_its_answer_is_an_event() -> None:
    talk = Talk()
    assert talk.rig.agent.trace(talk.key(), 9, talk.rig.now)
    talk.rig.take()
    talk.say(("<<", "a", Trace(CHAIN, LEFT, 9, 0, "b")))
    tell(talk.rig, "d", Trace(CHAIN, RIGHT, 9, 2, "b", Places((B, D))))
    assert answers(talk.rig) == [(9, ("b", "d"))]
    talk.rig.messages.clear()
    talk.rig.wait(60.0)
    assert [one for one in said(talk.rig, Trace) if isinstance(one, Trace) and one.number] == []


def test_a_question_that_nobody_answers_is_asked_again_and_then_answered_with_nothing() -> None:
    talk = Talk()
    talk.rig.agent.trace(talk.key(), 9, talk.rig.now)
    talk.rig.wait(REPEAT_S * (TRIES + 1))
    asked = [one for one in said(talk.rig, Trace) if isinstance(one, Trace) and one.number == 9]
    assert asked == [Trace(CHAIN, LEFT, 9, 0, "b")] * TRIES
    assert answers(talk.rig) == [(9, ())]


def test_the_answer_of_somebody_elses_question_is_passed_back() -> None:
    talk = Talk()
    talk.rig.agent.trace(talk.key(), 9, talk.rig.now)
    talk.rig.take()
    talk.rig.messages.clear()
    answer = Trace(CHAIN, RIGHT, 9, 2, "a", Places((B, D)))
    talk.say((">>", "d", answer), ("<<", "a", replace(answer, hop=LEFT)))
    assert answers(talk.rig) == []


def test_what_was_collected_while_the_chain_was_changed_here_is_not_kept() -> None:
    talk = Talk()
    tell(talk.rig, "d", Trace(CHAIN, RIGHT, 0, 2, "", Places((replace(B, right=5), D))))
    assert talk.rig.agent.places(talk.key()) == ()
    tell(talk.rig, "d", Trace(CHAIN, RIGHT, 0, 2, "", Places((B, D))))
    assert talk.rig.agent.places(talk.key()) == (B, D)


def test_no_more_places_are_collected_than_a_datagram_holds() -> None:
    talk = Talk()
    full = Places(replace(D, agent=str(number)) for number in range(MOST_PLACES))
    talk.say((">>", "a", Trace(CHAIN, LEFT, 9, 1, "a", full)))
    one_less = Places(full[1:])
    tell(talk.rig, "a", Trace(CHAIN, LEFT, 9, 1, "a", one_less))
    [passed] = said(talk.rig, Trace)
    assert isinstance(passed, Trace)
    assert [place.agent for place in passed.places][-1] == "b"


@pytest.mark.parametrize("known", ["all", "nothing", "too many", "another subsession"])
@pytest.mark.parametrize("up", [True, False])
def test_what_stands_to_the_left_is_learnt_on_the_way_to_a_host_that_may_be_dead(
    up: bool, known: str
) -> None:
    talk = Talk()
    rest = Places((D,) * (MOST_PLACES - 2 if known == "too many" else 1))
    before = Places((A, B, *rest))
    if known == "another subsession":
        before = Places((A, replace(B, right=5), D))
    chain = chain_of(talk)
    chain.places = Places() if known == "nothing" else before
    if not up:
        talk.rig.agent.peer_down("d", talk.rig.now)
    talk.rig.take()
    talk.rig.messages.clear()
    left = Places((NEW_A, NEW_A) if known == "too many" else (NEW_A,))
    question = Trace(CHAIN, LEFT, 0, 1, "", left)
    tell(talk.rig, "a", question)
    onward = ("d", Trace(CHAIN, RIGHT, 0, 1, "", Places((*left, AS_COLLECTED))))
    back = ("a", Trace(CHAIN, LEFT, 0, SO_FAR, "", Places((*left, AS_COLLECTED, *rest))))
    sent = [one for one in talk.rig.messages if isinstance(one[1], Trace)]
    assert sent == ([onward, back] if known == "all" and not up else [onward])
    assert chain.places == (
        Places((NEW_A, AS_COLLECTED, D)) if known == "all" else Places() if known == "nothing" else before
    )


def test_an_answer_as_far_as_a_dead_host_is_learnt_and_the_question_goes_on() -> None:
    talk = Talk()
    talk.rig.agent.trace(talk.key(), 9, talk.rig.now)
    talk.rig.agent._changes.traces.tell_soon(chain_of(talk), talk.rig.now)
    tell(talk.rig, "d", Trace(CHAIN, RIGHT, 9, SO_FAR, "b", Places((B, D))))
    assert answers(talk.rig) == []
    assert talk.rig.agent.places(talk.key()) == (B, D)
    talk.rig.messages.clear()
    talk.rig.wait(REPEAT_S)
    assert {one.number for one in said(talk.rig, Trace) if isinstance(one, Trace)} == {0, 9}


@pytest.mark.parametrize("learn", [1.0, math.inf])
def test_a_chain_that_is_open_tells_all_unless_it_is_never_to(learn: float) -> None:
    rig = Rig(decision=to_c(), timers=Timers(learn=learn))
    rig.establish()
    rig.wait(30.0)
    assert len(said(rig, Trace)) == (0 if learn == math.inf else TRIES)


def test_many_chains_tell_in_parts() -> None:
    """After a restart all of a busy host have to; others shall have their turn meanwhile."""
    rig = Rig(decision=to_c())
    for number in range(300):
        rig.establish(session(2, port=10_000 + number))
    rig.agent.handle_deadline(rig.now + 1.0)
    rig.now += 1.0
    rig.take()
    assert len(said(rig, Trace)) == 256
    rig.wait(0.1)
    assert len(said(rig, Trace)) == 300


def test_a_session_that_has_ended_tells_nothing() -> None:
    rig = Rig(decision=to_c())
    rig.establish()
    [chain] = rig.agent._life.chains.values()
    rig.agent._life.close(chain, "reset", rig.now)
    rig.wait(30.0)
    assert said(rig, Trace) == []


@pytest.mark.parametrize("meanwhile", ["nothing", "it is told", "it ends"])
def test_what_has_been_changed_is_told_soon_unless_that_is_of_no_use_any_more(meanwhile: str) -> None:
    talk = Talk()
    talk.rig.wait(10.0)
    talk.rig.messages.clear()
    talk.rig.agent._changes.traces.tell_soon(chain_of(talk), talk.rig.now)
    if meanwhile == "it is told":
        tell(talk.rig, "d", Trace(CHAIN, RIGHT, 0, 2, "", Places((B, D))))
        talk.rig.messages.clear()
    elif meanwhile == "it ends":
        talk.rig.agent._life.close(chain_of(talk), "over", talk.rig.now)
    talk.rig.wait(SOON_S)
    asked = [("a", Trace(CHAIN, LEFT, 0, 0, ""))] if meanwhile == "nothing" else []
    assert [one for one in talk.rig.messages if isinstance(one[1], Trace)] == asked


def test_many_are_not_told_soon_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dysco.protocol.traces._FEW", 0)
    talk = Talk()
    talk.rig.wait(10.0)
    talk.rig.messages.clear()
    talk.rig.agent._changes.traces.tell_soon(chain_of(talk), talk.rig.now)
    talk.rig.wait(SOON_S)
    assert said(talk.rig, Trace) == []
    talk.rig.wait(1.0)
    assert said(talk.rig, Trace) != []
