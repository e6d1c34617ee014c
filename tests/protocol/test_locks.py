"""Locks at an agent in the middle, as conversations; the tables of locks and of both anchors, pair by pair.

a --1-- b (this agent) --2-- d       messages come from a and d; b is inside, or a left anchor itself
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.protocol import anchors, locks
from dysco.protocol.anchors import LeftState, RightState
from dysco.protocol.changing import RightAnchor
from dysco.protocol.flow import FIRST_BOX, UNDERLAY
from dysco.protocol.locks import LEASE_S, LockAction, LockInput, LockState
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckCancel,
    AckLock,
    CancelLock,
    Change,
    Handshake,
    Hops,
    LockQuery,
    Message,
    NackLock,
    NackSyn,
    RenewLock,
    RequestLock,
    Syn,
    SynAck,
)
from dysco.wire.packet import ACK, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import PAIR_BOX, Rig, address, hops, read, session, syn_ack

CHAIN = b"chain-0123456789"
LEFT, RIGHT = 1, 2
TO_D = Hops((Hop(address(4)),))
ONE = Change(71, LEFT, RIGHT, TO_D, origin="a")
OTHER = Change(72, LEFT, RIGHT, TO_D, origin="a")
OWN = Change(73, RIGHT, RIGHT, TO_D, origin="b")


class Talk:
    """b in the middle of an established session, with a box that adds 5 forward and takes away 7 backward.

    acknowledged: whether the client's ACK of the SYN-ACK has passed.
    """

    def __init__(self, *, acknowledged: bool = True) -> None:
        self.rig = rig = Rig(boxes=[PAIR_BOX])
        _, inner = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4)))
        inner_tuple = read(inner).five_tuple
        grown = build_tcp(inner_tuple, 1005, 0, 2, 64240, b"\x02\x04\x05\xb4")
        _, out = rig.one(FIRST_BOX + 1, grown)
        self.right = read(out).five_tuple
        _, back = rig.one(UNDERLAY, syn_ack(self.right, isn=9000, of=1005))
        shrunk = build_tcp(read(back).five_tuple, 8993, 1001, 18, 64240, b"\x02\x04\x05\xb4")
        _, left = rig.one(FIRST_BOX, shrunk)
        if acknowledged:
            rig.one(UNDERLAY, build_tcp(read(left).five_tuple.reversed(), 1001, 8994, ACK, 64240))
            rig.one(FIRST_BOX + 1, build_tcp(inner_tuple, 1006, 9001, ACK, 64240))
        assert rig.state() == ["established"]
        rig.messages.clear()
        rig.events()

    def say(self, *script: tuple[str, str, Message]) -> None:
        """Play a conversation: ">>" comes from a peer, "<<" goes to one; syn of new paths is left out."""
        rig, heard = self.rig, []
        for direction, peer, message in script:
            if direction == ">>":
                rig.agent.receive_message(peer, message, rig.now)
                rig.take()
            heard.append((direction, peer, message) if direction == ">>" else None)
        said = [("<<", peer, message) for peer, message in rig.messages if not isinstance(message, Syn)]
        rig.messages.clear()
        assert said == [line for line in script if line[0] == "<<"]

    def key(self) -> bytes:
        return next(iter(self.rig.agent._life.chains))

    def lock(self) -> tuple[LockState, int] | None:
        right = self.rig.agent._life.chains[self.key()].right
        assert right is not None
        return None if right.lock is None else (right.lock.state, right.lock.request)

    def ask_own(self) -> None:
        assert self.rig.agent.change(self.key(), OWN, self.rig.now)
        self.rig.take()


def request(change: Change, hop: int, sums: tuple[int, int] = (0, 0), anchor: str = "a") -> RequestLock:
    return RequestLock(CHAIN, hop, change, anchor, sums[0] & 0xFFFFFFFF, sums[1] & 0xFFFFFFFF)


def busy(change: Change) -> NackLock:
    return NackLock(CHAIN, LEFT, change.request, "b", "busy")


ASKED = (">>", "a", request(ONE, LEFT, (10, 20)))
PASSED = ("<<", "d", request(ONE, RIGHT, (15, 13)))
GRANTED = (">>", "d", AckLock(CHAIN, RIGHT, ONE.request)), ("<<", "a", AckLock(CHAIN, LEFT, ONE.request))


def test_a_lock_is_asked_for_granted_and_freed() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED)
    assert talk.lock() == (LockState.PENDING, ONE.request)
    talk.say(*GRANTED)
    assert talk.lock() == (LockState.LOCKED, ONE.request)
    cancel = CancelLock(CHAIN, LEFT, ONE.request, RIGHT)
    talk.say((">>", "a", cancel), ("<<", "d", CancelLock(CHAIN, RIGHT, ONE.request, RIGHT)))
    assert talk.lock() is None
    talk.say(
        (">>", "d", AckCancel(CHAIN, RIGHT, ONE.request)), ("<<", "a", AckCancel(CHAIN, LEFT, ONE.request))
    )


def test_a_repetition_is_passed_on_and_changes_nothing() -> None:
    talk = Talk()
    talk.say(ASKED, ASKED, PASSED, PASSED)
    talk.say(*GRANTED, *GRANTED)
    assert talk.lock() == (LockState.LOCKED, ONE.request)
    talk.say(ASKED, PASSED)
    assert talk.lock() == (LockState.LOCKED, ONE.request)


@pytest.mark.parametrize("granted", [False, True])
def test_another_request_is_refused(granted: bool) -> None:
    talk = Talk()
    talk.say(ASKED, PASSED)
    if granted:
        talk.say(*GRANTED)
    talk.say((">>", "a", request(OTHER, LEFT)), ("<<", "a", busy(OTHER)))
    assert talk.lock() == (LockState.LOCKED if granted else LockState.PENDING, ONE.request)


def test_a_refusal_frees() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED)
    refused = NackLock(CHAIN, RIGHT, ONE.request, "d", "no")
    talk.say((">>", "d", refused), ("<<", "a", NackLock(CHAIN, LEFT, ONE.request, "d", "no")))
    assert talk.lock() is None
    talk.say((">>", "a", request(OTHER, LEFT)), ("<<", "d", request(OTHER, RIGHT, (5, -7))))


@pytest.mark.parametrize("what", [NackLock(CHAIN, RIGHT, 99, "d", "no"), AckLock(CHAIN, RIGHT, 99)])
def test_answers_to_others_do_not_touch_it(what: Message) -> None:
    talk = Talk()
    talk.say(ASKED, PASSED)
    talk.rig.agent.receive_message("d", what, talk.rig.now)
    assert talk.lock() == (LockState.PENDING, ONE.request)


def test_a_cancel_of_another_change_does_not_free() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    talk.rig.agent.receive_message("a", CancelLock(CHAIN, LEFT, OTHER.request, RIGHT), talk.rig.now)
    assert talk.lock() == (LockState.LOCKED, ONE.request)


def test_a_message_from_who_is_not_the_neighbour_is_dropped() -> None:
    talk = Talk()
    talk.rig.agent.receive_message("c", request(ONE, LEFT), talk.rig.now)
    assert talk.lock() is None
    assert talk.rig.agent.counters["message_implausible"] == 1


def test_a_lease_ends_and_is_renewed() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    talk.rig.wait(LEASE_S - 1)
    assert talk.lock() == (LockState.LOCKED, ONE.request)
    renew = RenewLock(CHAIN, LEFT, ONE.request, RIGHT)
    talk.say((">>", "a", renew), ("<<", "d", RenewLock(CHAIN, RIGHT, ONE.request, RIGHT)))
    talk.rig.wait(LEASE_S - 1)
    assert talk.lock() == (LockState.LOCKED, ONE.request)
    talk.rig.wait(2)
    assert talk.lock() is None


def test_a_renewal_of_another_change_renews_nothing() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    talk.rig.wait(LEASE_S - 1)
    talk.rig.agent.receive_message("a", RenewLock(CHAIN, LEFT, OTHER.request, RIGHT), talk.rig.now)
    talk.rig.wait(2)
    assert talk.lock() is None


def test_a_request_that_nobody_answers_holds_nothing_for_ever() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED)
    talk.rig.wait(LEASE_S + 1)
    talk.say((">>", "a", request(OTHER, LEFT)), ("<<", "d", request(OTHER, RIGHT, (5, -7))))


def test_a_request_that_was_lost_leaves_no_part_in_a_change() -> None:
    """Else a host would wait for what nobody says any more, where the left anchor has begun again."""
    talk = Talk()
    talk.say(ASKED, PASSED)
    [chain] = talk.rig.agent._life.chains.values()
    assert chain.changing is not None
    talk.rig.wait(LEASE_S + 1)
    assert chain.changing is None


def own_request() -> tuple[str, str, Message]:
    return "<<", "d", request(OWN, RIGHT, anchor="b")


def test_while_its_own_request_is_open_one_other_is_held_a_second_is_refused() -> None:
    talk = Talk()
    talk.ask_own()
    talk.say(own_request(), ASKED, ASKED)
    assert talk.lock() == (LockState.OWN, OWN.request)
    talk.say((">>", "a", request(OTHER, LEFT)), ("<<", "a", busy(OTHER)))


def test_own_granted_held_refused() -> None:
    talk = Talk()
    talk.ask_own()
    talk.say(own_request(), ASKED)
    talk.say((">>", "d", AckLock(CHAIN, RIGHT, OWN.request)), ("<<", "a", busy(ONE)))
    assert talk.lock() == (LockState.LOCKED, OWN.request)


def test_own_refused_held_passed_on() -> None:
    talk = Talk()
    talk.ask_own()
    talk.say(own_request(), ASKED)
    talk.rig.agent.receive_message("d", NackLock(CHAIN, RIGHT, OWN.request, "d", "no"), talk.rig.now)
    talk.rig.take()
    said = [message for _, message in talk.rig.messages if isinstance(message, RequestLock)]
    assert said == [request(ONE, RIGHT, (15, 13))]
    assert talk.lock() == (LockState.PENDING, ONE.request)


def test_a_refused_left_anchor_leaves_the_new_path_and_may_ask_again() -> None:
    talk = Talk()
    talk.ask_own()
    talk.say(own_request())
    talk.rig.agent.receive_message("d", NackLock(CHAIN, RIGHT, OWN.request, "d", "no"), talk.rig.now)
    talk.rig.take()
    cancelled = [message for _, message in talk.rig.messages if isinstance(message, CancelLock)]
    assert [(one.request, one.hop != RIGHT) for one in cancelled] == [(OWN.request, True)]
    assert talk.lock() is None
    talk.rig.messages.clear()
    again = replace(OWN, request=74)
    assert talk.rig.agent.change(talk.key(), again, talk.rig.now)
    talk.rig.take()
    talk.say(("<<", "d", request(again, RIGHT, anchor="b")))


def test_what_is_not_answered_is_asked_again() -> None:
    talk = Talk()
    talk.ask_own()
    talk.rig.wait(0.3)
    kinds = [type(message) for _, message in talk.rig.messages]
    assert kinds == [RequestLock, Syn, RequestLock, Syn]


def test_what_is_held_may_be_cancelled() -> None:
    talk = Talk()
    talk.ask_own()
    talk.say(own_request(), ASKED)
    talk.rig.messages.clear()
    talk.rig.agent.receive_message("a", CancelLock(CHAIN, LEFT, ONE.request, RIGHT), talk.rig.now)
    assert talk.lock() == (LockState.OWN, OWN.request)
    talk.rig.agent.receive_message("d", NackLock(CHAIN, RIGHT, OWN.request, "d", "no"), talk.rig.now)
    talk.rig.take()
    assert not any(isinstance(message, RequestLock) for _, message in talk.rig.messages)
    assert talk.lock() is None


def test_own_while_locked_is_refused() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    talk.ask_own()
    assert [event.reason for event in talk.rig.events() if hasattr(event, "reason")] == ["busy"]
    assert talk.lock() == (LockState.LOCKED, ONE.request)


def test_a_cancelled_left_anchor_does_not_free_what_another_change_has_taken_since() -> None:
    talk = Talk()
    talk.ask_own()
    talk.say(own_request())
    changing = talk.rig.agent._life.chains[talk.key()].changing
    assert changing is not None
    assert changing.left is not None
    assert changing.left.new is not None
    nack = NackSyn(CHAIN, changing.left.new.hop, OWN.request, "d", "no")
    talk.rig.agent.receive_message("d", nack, talk.rig.now)
    talk.rig.take()
    talk.rig.messages.clear()
    talk.say(ASKED, PASSED, *GRANTED)
    talk.rig.agent.receive_message("d", AckCancel(CHAIN, RIGHT, OWN.request), talk.rig.now)
    talk.rig.take()
    assert talk.lock() == (LockState.LOCKED, ONE.request)
    talk.rig.messages.clear()
    talk.rig.agent.change(talk.key(), replace(OWN, request=74), talk.rig.now)
    talk.rig.take()
    assert [message for _, message in talk.rig.messages if isinstance(message, RequestLock)] == []


# As a right anchor.

HERE = Change(81, LEFT, LEFT, Hops((Hop(address(2)),)), origin="a")
NEW_HOP = 300
NEW_PATH = FiveTuple.of(address(1), 62000, address(2), 62001)


def new_path(change: Change) -> Syn:
    return Syn(
        CHAIN, NEW_HOP, change.request, LEFT, session(), NEW_PATH, change.hops, Handshake(bytes(16)), "a"
    )


def test_a_right_anchor_grants_one_request_at_a_time() -> None:
    talk = Talk()
    talk.say((">>", "a", request(HERE, LEFT)), ("<<", "a", AckLock(CHAIN, LEFT, HERE.request)))
    other = replace(HERE, request=82)
    talk.say((">>", "a", request(other, LEFT)), ("<<", "a", busy(other)))


def test_a_right_anchor_that_hears_nothing_asks_along_both_paths_what_became_of_the_change() -> None:
    talk = Talk()
    talk.say((">>", "a", request(HERE, LEFT)), ("<<", "a", AckLock(CHAIN, LEFT, HERE.request)))
    talk.rig.agent.receive_message("a", new_path(HERE), talk.rig.now)
    talk.rig.take()
    assert talk.rig.messages == [("a", SynAck(CHAIN, NEW_HOP, HERE.request))]
    talk.rig.messages.clear()
    talk.rig.wait(10.5)
    assert talk.rig.messages == [
        ("a", LockQuery(CHAIN, LEFT, HERE.request)),
        ("a", LockQuery(CHAIN, NEW_HOP, HERE.request)),
    ]


def right_anchor(talk: Talk) -> RightAnchor:
    changing = talk.rig.agent._life.chains[talk.key()].changing
    assert changing is not None
    assert changing.right is not None
    return changing.right


def wait_for_ack(sums: tuple[int, int]) -> Talk:
    """b as a right anchor that has agreed to the new path."""
    talk = Talk()
    talk.rig.agent.receive_message("a", request(HERE, LEFT, sums), talk.rig.now)
    talk.rig.agent.receive_message("a", new_path(HERE), talk.rig.now)
    talk.rig.take()
    talk.rig.messages.clear()
    return talk


def test_a_right_anchor_takes_data_on_the_new_path_for_an_ack() -> None:
    talk = wait_for_ack((0, 0))
    talk.rig.feed(UNDERLAY, build_tcp(NEW_PATH, 1001, 8994, 24, 64240, b"", b"data"))
    two = right_anchor(talk).two
    assert two is not None
    assert talk.rig.messages == [("a", AckAck(CHAIN, NEW_HOP, HERE.request, two.cutoff, 1001))]


def test_cutoffs_travel_in_the_left_anchors_numbers() -> None:
    talk = wait_for_ack((10, 20))
    talk.rig.agent.receive_message("a", Ack(CHAIN, NEW_HOP, HERE.request, 5000, 0, False), talk.rig.now)
    talk.rig.take()
    two = right_anchor(talk).two
    assert two is not None
    assert two.peer_cutoff == 5010
    assert talk.rig.messages[-1] == ("a", AckAck(CHAIN, NEW_HOP, HERE.request, two.cutoff + 20, 991))


def test_a_right_anchor_that_was_one_before_adds_the_sums() -> None:
    talk = Talk()
    talk.rig.agent._life.chains[talk.key()].left.sums = (3, 4)
    talk.rig.agent.receive_message("a", request(HERE, LEFT, (10, 20)), talk.rig.now)
    assert right_anchor(talk).sums == (13, 24)


def test_a_syn_that_overtakes_its_request_is_kept() -> None:
    talk = Talk()
    talk.rig.agent.receive_message("a", new_path(HERE), talk.rig.now)
    talk.rig.take()
    assert talk.rig.messages == []
    talk.rig.agent.receive_message("a", request(HERE, LEFT), talk.rig.now)
    talk.rig.take()
    assert talk.rig.messages == [
        ("a", AckLock(CHAIN, LEFT, HERE.request)),
        ("a", SynAck(CHAIN, NEW_HOP, HERE.request)),
    ]


# The tables.

Table = Mapping[tuple[Any, Any], tuple[Any, Any]]
TABLES: dict[str, tuple[Table, type[Enum], type[Enum]]] = {
    "locks": (locks.TABLE, LockState, LockInput),
    "left": (anchors.LEFT, LeftState, anchors.LeftInput),
    "right": (anchors.RIGHT, RightState, anchors.RightInput),
}
STEPS = {"locks": locks.step, "left": anchors.left, "right": anchors.right}


def dot(name: str) -> str:
    """A drawing of a table, as Graphviz reads it."""
    table = TABLES[name][0]
    lines = (
        f'  {old.name} -> {new.name} [label="{what.name}: {action.name}"]'
        for (old, what), (action, new) in table.items()
    )
    return "\n".join(("digraph {", *sorted(lines), "}"))


@given(st.sampled_from(sorted(TABLES)), st.data())
def test_every_pair_is_in_the_table_or_changes_nothing(name: str, data: st.DataObject) -> None:
    table, states, inputs = TABLES[name]
    state, what = data.draw(st.sampled_from(list(states))), data.draw(st.sampled_from(list(inputs)))
    found = STEPS[name](state, what)  # type: ignore[operator]
    assert found == table.get((state, what))
    assert found is None or isinstance(found[1], states)


@pytest.mark.parametrize("name", TABLES)
def test_every_state_is_reached_and_left_and_every_input_used(name: str) -> None:
    table, states, inputs = TABLES[name]
    start = next(iter(states))
    reached = {start}
    for _ in states:
        reached |= {new for (old, _), (_, new) in table.items() if old in reached}
    assert reached == set(states)
    home = {start}
    for _ in states:
        home |= {old for (old, _), (_, new) in table.items() if new in home}
    assert home == set(states)
    assert {what for _, what in table} == set(inputs)


@given(st.lists(st.sampled_from(list(LockInput)), max_size=30))
def test_a_lock_is_granted_only_to_who_has_asked(inputs: list[LockInput]) -> None:
    state = LockState.FREE
    for what in inputs:
        found = locks.step(state, what)
        if found is not None:
            if found[1] is LockState.LOCKED:
                assert state in (LockState.PENDING, LockState.OWN, LockState.LOCKED)
            if what is LockInput.OTHER_REQUEST:
                assert found[1] is state
                assert found[0] in (LockAction.HOLD, LockAction.NACK_BUSY)
            state = found[1]


def test_the_point_of_no_return_is_none_too_early() -> None:
    for (old, _), (action, new) in anchors.LEFT.items():
        assert (new is LeftState.TWO_PATHS) == (action is anchors.LeftAction.COMMIT)
        if old is LeftState.TWO_PATHS:
            back = (anchors.LeftAction.CANCEL, LeftState.CANCELLING)  # the right anchor has said that it may
            assert (action, new) in ((anchors.LeftAction.COMPLETE, LeftState.ONE_PATH), back)
    for (before, what), (act, _) in anchors.RIGHT.items():
        assert (act is anchors.RightAction.DROP) <= (before in (RightState.REQUESTED, RightState.WAITING))
        assert not (before is RightState.WAITING and what is anchors.RightInput.LEASE)


@pytest.mark.parametrize(
    ("name", "digest"), [("locks", "e82fa16be9a7"), ("left", "8e066568e4fd"), ("right", "7c489641a5d0")]
)
def test_the_drawing_changes_only_on_purpose(name: str, digest: str) -> None:
    """Look at `dot(name)` before and after, then put the new digest here."""
    assert dot(name).count("->") == len(TABLES[name][0])
    assert hashlib.sha256(dot(name).encode()).hexdigest()[:12] == digest
