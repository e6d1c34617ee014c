"""What goes past dead hosts, message by message: who is believed, and what both anchors answer.

c --5000-- a --1-- b (this agent) --2-- d                a is dead: c, the left anchor, asks b for the lock
           a --1-- b (this agent) --2-- d --6000-- c     d is dead: b, the left anchor, asks c for it
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.bypass import UNSTEADY
from dysco.protocol.changing import Phase
from dysco.protocol.events import ChangeMoved
from dysco.protocol.ground import alias
from dysco.protocol.locks import LockState
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    Ack,
    AckCancel,
    AckLock,
    CancelLock,
    Change,
    Hops,
    Message,
    NackLock,
    Place,
    Places,
    Progress,
    RequestLock,
    RightRequest,
    Syn,
    Trace,
)
from protocol.living import Living
from protocol.rig import address
from protocol.test_guards import joined, tell
from protocol.test_joining import LABEL
from protocol.test_joining import REQUEST as JOINED
from protocol.test_locks import (
    ASKED,
    CHAIN,
    HERE,
    LEFT,
    ONE,
    RIGHT,
    Talk,
    new_path,
    request,
    wait_for_ack,
)

NEAR, FAR = alias(CHAIN, LEFT), alias(CHAIN, RIGHT)  # b's subsessions, as all on the chain know them
BEFORE, BEHIND = 5000, 6000
FORCED = Change(91, BEFORE, NEAR, Hops((Hop(address(2)),)), force=True, origin="c")
LOCK = RequestLock(CHAIN, NEAR, FORCED, "c", 10, 20)
OWN = Change(92, FAR, BEHIND, Hops((Hop(address(3)),)), force=True, origin="b")


def place(agent: str, left: int, right: int, *, steady: bool = True, sums: tuple[int, int] = (0, 0)) -> Place:
    return Place(agent, f"box-{agent}", address("abcd".index(agent) + 1), left, right, False, steady, *sums)


LEFT_OF_B = (
    place("c", 0, BEFORE),
    place("a", BEFORE, NEAR, sums=(3, 4)),
    place("b", NEAR, FAR),
    place("d", FAR, 0),
)
RIGHT_OF_B = (
    place("a", 0, NEAR),
    place("b", NEAR, FAR),
    place("d", FAR, BEHIND, sums=(3, 4)),
    place("c", BEHIND, 0),
)


def told(talk: Talk, *places: Place) -> Talk:
    """b has been told who is on the chain."""
    tell(talk.rig, "d", Trace(CHAIN, RIGHT, 0, 2, "", Places(places)))
    talk.rig.messages.clear()
    talk.rig.events()
    assert talk.rig.agent.places(talk.key()) == places
    return talk


def ask(talk: Talk, message: Message, peer: str = "c") -> list[tuple[str, Message]]:
    """Give a message, take what is answered; syn of new paths is left out."""
    talk.rig.messages.clear()
    tell(talk.rig, peer, message)
    return [(to, one) for to, one in talk.rig.messages if not isinstance(one, Syn)]


def refused(reason: str, change: Change = FORCED) -> list[tuple[str, Message]]:
    return [("c", NackLock(CHAIN, change.first, change.request, "b", reason))]


GRANTED = [("a", AckLock(CHAIN, LEFT, FORCED.request)), ("c", AckLock(CHAIN, BEFORE, FORCED.request))]


def moves(talk: Talk) -> list[tuple[int, str, str]]:
    return [
        (one.request, one.phase, one.reason)
        for one in talk.rig.events(ChangeMoved)
        if isinstance(one, ChangeMoved)
    ]


# As a right anchor.


def test_the_lock_is_granted_past_a_dead_host_and_again_to_who_asks_again() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    assert ask(talk, LOCK) == GRANTED
    assert ask(talk, LOCK) == GRANTED
    assert moves(talk) == [(FORCED.request, "locked", "")]


@pytest.mark.parametrize(
    "changed",
    [
        {"change": replace(FORCED, force=False)},
        {"anchor": "a"},
        {"change": replace(FORCED, last=FAR)},
        {"change": replace(FORCED, first=NEAR)},
    ],
)
def test_who_asks_must_be_the_anchor_that_stands_behind_the_dead_hosts(changed: dict[str, object]) -> None:
    talk = told(Talk(), *LEFT_OF_B)
    before = talk.rig.agent.counters["message_implausible"]
    lock = replace(LOCK, **changed)  # type: ignore[arg-type]
    assert ask(talk, lock) == [("c", NackLock(CHAIN, NEAR, FORCED.request, "b", "not found"))]
    assert talk.rig.agent.counters["message_implausible"] == before + 1
    assert moves(talk) == []


def test_only_who_holds_the_lock_may_cancel_it() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    ask(talk, LOCK)
    assert ask(talk, LOCK, "d") == [("d", NackLock(CHAIN, NEAR, FORCED.request, "b", "not found"))]
    ask(talk, CancelLock(CHAIN, NEAR, FORCED.request, NEAR), "d")
    ask(talk, CancelLock(CHAIN, NEAR, 7, NEAR))
    assert moves(talk) == [(FORCED.request, "locked", "")]
    cancelled = ask(talk, CancelLock(CHAIN, NEAR, FORCED.request, NEAR))
    assert cancelled == [("c", AckCancel(CHAIN, BEFORE, FORCED.request))]
    assert moves(talk) == [(FORCED.request, "aborted", "cancelled by the left anchor")]
    again = replace(LOCK, change=replace(FORCED, request=93))
    assert ask(talk, again)[-1] == ("c", AckLock(CHAIN, BEFORE, 93))


def test_answers_past_dead_hosts_that_nobody_waits_for_are_not_believed() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    before = talk.rig.agent.counters["message_implausible"]
    for message in (
        CancelLock(CHAIN, NEAR, 5, NEAR),
        AckLock(CHAIN, FAR, 5),
        NackLock(CHAIN, FAR, 5, "c", "no"),
    ):
        ask(talk, message)
    assert talk.rig.agent.counters["message_implausible"] == before + 3
    assert moves(talk) == []


def test_who_may_not_change_the_session_is_refused_past_dead_hosts() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    neighbour = talk.rig.agent._neighbours.by_name["c"]
    neighbour.peer = replace(neighbour.peer, may_change=lambda _: False)
    assert ask(talk, LOCK) == refused("c may not change this session")


def test_a_host_that_another_change_goes_past_is_busy() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    talk.say(ASKED, ("<<", "d", request(ONE, RIGHT, (15, 13))))
    assert ask(talk, LOCK) == refused("busy")
    assert talk.lock() == (LockState.PENDING, ONE.request)


@pytest.mark.parametrize("committed", [False, True])
def test_a_host_that_has_joined_is_an_anchor_only_behind_the_switch(committed: bool) -> None:
    rig = joined(rehearsed=True)
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    right = chain.right.hop
    if committed:
        tell(rig, "a", Ack(CHAIN, LABEL, JOINED, 5001, 901, True))
    places = (
        place("c", 0, BEFORE),
        place("a", BEFORE, LABEL),
        place("b", LABEL, right),
        place("d", right, 0),
    )
    tell(rig, "d", Trace(CHAIN, right, 0, 2, "", Places(places)))
    rig.messages.clear()
    tell(rig, "c", replace(LOCK, hop=LABEL, change=replace(FORCED, last=LABEL)))
    [answer] = [one for to, one in rig.messages if to == "c"]
    assert isinstance(answer, AckLock if committed else NackLock)


def test_a_change_of_a_dead_anchor_is_given_up_for_one_that_goes_past_it() -> None:
    talk = told(wait_for_ack((0, 0)), *LEFT_OF_B)
    assert ask(talk, LOCK) == GRANTED
    assert moves(talk) == [
        (HERE.request, "aborted", "its left anchor is dead"),
        (FORCED.request, "locked", ""),
    ]


def test_a_change_of_a_dead_anchor_that_has_switched_goes_on() -> None:
    talk = told(wait_for_ack((0, 0)), *LEFT_OF_B)
    tell(talk.rig, "a", Ack(CHAIN, 300, HERE.request, 5000, 0, False))
    reason = "busy: a change of a, which is dead, has passed the point of no return"
    assert ask(talk, LOCK) == refused(reason)
    assert moves(talk) == [(HERE.request, "two paths", "")]


def test_a_change_of_another_anchor_that_lives_goes_on() -> None:
    talk = Talk()
    tell(talk.rig, "a", request(HERE, LEFT, anchor="d"))
    told(talk, *LEFT_OF_B)
    assert ask(talk, LOCK) == refused("busy")
    tell(talk.rig, "a", new_path(HERE))
    assert moves(talk) == []


def test_a_left_anchor_is_the_right_one_of_a_change_past_dead_hosts_at_the_same_time() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    talk.ask_own()
    assert ask(talk, LOCK) == GRANTED


# As a left anchor.


def left_anchor(*places: Place, change: Change = OWN) -> Talk:
    """b asks past d, of which there is no association."""
    talk = told(Talk(), *places)
    talk.rig.agent.peer_down("d", talk.rig.now)
    assert talk.rig.agent.change(talk.key(), change, talk.rig.now)
    talk.rig.take()
    return talk


def test_the_lock_is_asked_for_past_the_dead_hosts_with_what_they_add() -> None:
    talk = left_anchor(*RIGHT_OF_B)
    asked = [(to, one) for to, one in talk.rig.messages if isinstance(one, RequestLock)]
    assert asked == [
        ("d", RequestLock(CHAIN, RIGHT, OWN, "b")),
        ("c", RequestLock(CHAIN, BEHIND, OWN, "b", 3, 4)),
    ]


def test_without_anybody_between_nothing_goes_past() -> None:
    talk = left_anchor(*RIGHT_OF_B, change=replace(OWN, last=NEAR))
    talk.rig.wait(2.0)
    assert {to for to, one in talk.rig.messages if isinstance(one, RequestLock)} == {"d"}


def test_a_grant_counts_only_from_who_was_asked() -> None:
    talk = left_anchor(*RIGHT_OF_B)
    ask(talk, AckLock(CHAIN, FAR, OWN.request), "a")
    ask(talk, AckLock(CHAIN, FAR, 7), "c")
    assert moves(talk) == [(OWN.request, "requested", "")]
    ask(talk, AckLock(CHAIN, FAR, OWN.request), "c")
    assert moves(talk) == [(OWN.request, "locked", "")]


def test_a_cancelled_change_is_over_when_the_other_anchor_knows_past_the_dead_hosts() -> None:
    talk = left_anchor(*RIGHT_OF_B)
    ask(talk, AckLock(CHAIN, FAR, OWN.request))
    talk.rig.wait(3.5)  # nobody answers on the new path
    cancelled = [one for to, one in talk.rig.messages if to == "c" and isinstance(one, CancelLock)]
    assert CancelLock(CHAIN, BEHIND, OWN.request, BEHIND) in cancelled
    assert moves(talk)[-1] == (OWN.request, "locked", "")
    ask(talk, AckCancel(CHAIN, FAR, OWN.request))
    assert moves(talk) == [(OWN.request, "aborted", "the new path was not answered")]


@pytest.mark.parametrize(
    ("steady", "reason", "state"),
    [
        (False, f"d/box-d is dead, and {UNSTEADY}", "resetting"),
        (False, "busy", "established"),
        (True, f"d/box-d is dead, and {UNSTEADY}", "established"),  # that is not so, as b was told
    ],
)
def test_a_refusal_resets_the_session_only_if_a_dead_host_held_bytes(
    steady: bool, reason: str, state: str
) -> None:
    talk = left_anchor(*RIGHT_OF_B[:2], replace(RIGHT_OF_B[2], steady=steady), RIGHT_OF_B[3])
    ask(talk, NackLock(CHAIN, FAR, OWN.request, "c", reason))
    assert moves(talk) == [(OWN.request, "requested", ""), (OWN.request, "refused", reason)]
    talk.rig.wait(6.0)
    assert bool(talk.rig.state()) == (state == "established")


# Who asks.


def test_who_does_not_know_the_left_anchor_asks_along_the_chain_alone() -> None:
    talk = told(Talk(), *RIGHT_OF_B)
    talk.rig.agent.peer_down("a", talk.rig.now)
    assert talk.rig.agent.change(talk.key(), replace(OWN, first=77), talk.rig.now)
    talk.rig.wait(2.0)
    assert {to for to, one in talk.rig.messages if isinstance(one, RightRequest)} == {"a"}


def test_a_host_that_has_forgotten_the_chain_does_not_speak_for_the_left_anchor() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    change = replace(OWN, request=95, first=BEFORE)
    assert talk.rig.agent.change(talk.key(), change, talk.rig.now)
    for by, phases in (("a", []), ("c", ["refused"])):
        ask(talk, Progress(CHAIN, NEAR, 95, Phase.REFUSED, True, by, "not found"), "a")
        assert [phase for _, phase, _ in moves(talk)] == phases


def wish(**changed: object) -> RightRequest:
    change = Change(94, FAR, FAR, Hops((Hop(address(4)),)), force=True, origin="c")
    return RightRequest(CHAIN, FAR, replace(change, **changed))  # type: ignore[arg-type]


def test_who_asks_past_a_dead_host_hears_how_it_goes() -> None:
    """c is the first host of all, left of b, or the last one, right of it."""
    for places, back in ((LEFT_OF_B, (BEFORE, False)), (RIGHT_OF_B, (BEHIND, True))):
        talk = told(Talk(), *places)
        hop, rightward = back
        heard = [one for to, one in ask(talk, wish()) if to == "c"]
        assert heard == [Progress(CHAIN, hop, 94, Phase.REQUESTED, rightward)]
        refusal = [one for to, one in ask(talk, NackLock(CHAIN, RIGHT, 94, "d", "no"), "d") if to == "c"]
        assert refusal == [Progress(CHAIN, hop, 94, Phase.REFUSED, rightward, "d", "no")]


def test_who_is_not_on_the_chain_any_more_does_not_hear_how_it_goes() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    ask(talk, wish())
    told(talk, *LEFT_OF_B[1:])
    answers = ask(talk, NackLock(CHAIN, RIGHT, 94, "d", "no"), "d")
    assert [one for one in answers if isinstance(one[1], Progress)] == []
    assert moves(talk)[-1] == (94, "refused", "no")


@pytest.mark.parametrize("changed", [{"force": False}, {"origin": "d"}, {"first": NEAR}])
def test_a_wish_past_dead_hosts_is_believed_of_who_is_on_the_chain_and_says_so(
    changed: dict[str, object],
) -> None:
    talk = told(Talk(), *LEFT_OF_B)
    assert ask(talk, wish(**changed)) == []
    assert talk.rig.agent.counters["message_implausible"] == 1
    assert moves(talk) == []


def test_a_wish_past_dead_hosts_of_a_stranger_is_dropped() -> None:
    talk = told(Talk(), *LEFT_OF_B[1:])
    assert ask(talk, wish()) == []
    assert moves(talk) == []


def test_progress_past_dead_hosts_is_believed_of_the_left_anchor_alone() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    change = replace(FORCED, origin="b")
    assert talk.rig.agent.change(talk.key(), change, talk.rig.now)
    done = Progress(CHAIN, NEAR, change.request, Phase.DONE, True, "c")
    ask(talk, done, "d")
    ask(talk, replace(done, request=95))
    assert moves(talk) == []
    ask(talk, done)
    assert moves(talk) == [(change.request, "done", "")]


@pytest.mark.parametrize("asker", ["a", "d"])
def test_who_asks_past_a_dead_host_for_what_lies_behind_it_hears_the_end(asker: str) -> None:
    live = Living()
    live.talk()
    live.kill("b" if asker == "a" else "c")
    left, right = ("c", "d") if asker == "a" else ("a", "b")
    number = live.change(asker, left, right, "e", force=True)
    live.wait(20.0)
    assert live.outcome(asker, number)[0] == "done"


@pytest.mark.parametrize("asker", ["a", "d"])
def test_a_host_that_dies_right_after_it_has_come_can_be_taken_out(asker: str) -> None:
    living = Living()
    living.talk(3000)
    request = living.change("a", "a", "c", "e")
    while living.outcome("a", request)[0] != "done":
        living.wait(0.001)
    living.wait(0.04)
    living.kill("e")
    living.say(b"while it is silent" * 100)
    living.notice("e")
    forced = living.change(asker, "a", "c", force=True)
    living.wait(10.0)
    assert living.outcome(asker, forced)[0] == "done"
    living.talk(3000)
    assert living.chain(asker) == "acd"
