"""The state of a box on its way, message by message (DESIGN section 9): parts, repetitions, and what cannot be moved.

a --1-- b (this agent, with a box) --2-- d       b's box is the old one, or the new one of a host that has joined
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from dysco.protocol.events import StateArrived, StateWanted
from dysco.protocol.flow import UNDERLAY
from dysco.protocol.transfers import ARRIVED, FAILED, INSTALLED, MOST_BYTES, PART_LEN
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    Ack,
    CopyState,
    Hops,
    Message,
    OldDone,
    Part,
    PutState,
    RequestLock,
    StateTransferred,
)
from dysco.wire.packet import FIN
from protocol.rig import Rig, address, hops, read, syn_ack
from protocol.test_guards import joined, tell
from protocol.test_joining import CHAIN, INVITATION, LABEL
from protocol.test_joining import REQUEST as JOINED
from protocol.test_locks import ASKED, GRANTED, LEFT, ONE, PASSED, RIGHT, Talk

REQUEST = ONE.request
WANTED = (">>", "a", CopyState(CHAIN, LEFT, REQUEST, RIGHT))


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:8]


def told(rig: Rig, kind: type[Message]) -> list[Message]:
    found = [message for _, message in rig.messages if isinstance(message, kind)]
    rig.messages.clear()
    return found


# The old host.


def locked() -> Talk:
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    return talk


def export(talk: Talk, data: bytes | None, reason: str = "") -> None:
    talk.rig.agent.state_exported(talk.key(), REQUEST, data, talk.rig.now, reason)
    talk.rig.take()


def test_the_driver_is_asked_once() -> None:
    talk = locked()
    talk.say(WANTED, WANTED)
    [wanted] = talk.rig.events(StateWanted)
    assert isinstance(wanted, StateWanted)
    assert (wanted.key, wanted.request, wanted.box) == (talk.key(), REQUEST, "pair")


def test_parts_go_by_a_window_and_again_until_they_are_confirmed() -> None:
    talk = locked()
    talk.say(WANTED)
    data = bytes(range(250)) * 40  # twelve parts
    export(talk, data)
    sent = told(talk.rig, PutState)
    assert [one.index for one in sent if isinstance(one, PutState)] == list(range(8))
    assert sent[0] == PutState(CHAIN, LEFT, REQUEST, 0, 12, digest(data), Part(data[:PART_LEN]))
    talk.rig.wait(0.25)
    assert told(talk.rig, PutState) == sent
    some = StateTransferred(CHAIN, RIGHT, REQUEST, ARRIVED, 8, True)
    talk.rig.agent.receive_message("a", replace(some, hop=LEFT), talk.rig.now)
    talk.rig.take()
    assert [one.index for one in told(talk.rig, PutState) if isinstance(one, PutState)] == [8, 9, 10, 11]
    talk.rig.agent.receive_message("a", replace(some, hop=LEFT), talk.rig.now)  # a repetition
    talk.rig.take()
    assert told(talk.rig, PutState) == []
    done = replace(some, hop=LEFT, status=INSTALLED, index=12)
    talk.rig.agent.receive_message("a", done, talk.rig.now)
    talk.rig.wait(5.0)
    assert told(talk.rig, PutState) == []
    assert talk.rig.agent._changes.transfers.leftovers()["sending"] == {}


def test_a_state_that_nobody_confirms_is_given_up() -> None:
    talk = locked()
    talk.say(WANTED)
    export(talk, b"")
    talk.rig.agent.receive_message("a", ASKED[2], talk.rig.now)
    for _ in range(30):
        talk.rig.wait(0.25)
    assert len(told(talk.rig, PutState)) == 21
    assert talk.rig.agent._changes.transfers.leftovers()["sending"] == {}


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (None, "it has none", "it has none"),
        (bytes(MOST_BYTES + 1), "", "its state has 262145 bytes, more than 262144"),
    ],
)
def test_what_cannot_be_moved_is_said_with_its_reason(data: bytes | None, reason: str, said: str) -> None:
    talk = locked()
    talk.say(WANTED)
    export(talk, data, reason)
    failed = StateTransferred(CHAIN, LEFT, REQUEST, FAILED, 0, False, "b", said)
    assert told(talk.rig, StateTransferred) == [failed]


def test_an_answer_about_a_session_that_is_gone_is_for_nobody() -> None:
    talk = locked()
    talk.rig.agent.state_exported(b"no such key", REQUEST, None, talk.rig.now)
    talk.rig.agent.state_installed(b"no such key", REQUEST, False, talk.rig.now)
    assert talk.rig.take() == []
    assert talk.rig.messages == []


def test_a_host_whose_state_moves_after_the_switch_leaves_only_when_it_is_there() -> None:
    talk = Talk()
    frozen = replace(ONE, state=2)
    for peer, message in (
        ("a", RequestLock(CHAIN, LEFT, frozen, "a")),
        ("a", OldDone(CHAIN, LEFT, REQUEST, True, RIGHT)),
        ("d", OldDone(CHAIN, RIGHT, REQUEST, False, RIGHT)),
    ):
        talk.rig.agent.receive_message(peer, message, talk.rig.now)
        assert talk.rig.take() == []
    moved = StateTransferred(CHAIN, LEFT, REQUEST, INSTALLED, 1, True)
    talk.rig.agent.receive_message("a", moved, talk.rig.now)
    [(_, fin)] = talk.rig.take()
    assert read(fin).flags & FIN
    assert talk.rig.wait(1.0) == []  # nor does it leave again when it would have been waited for no longer


# The new host.


def put(rig: Rig, *indices: int, data: bytes, wrong: bool = False) -> None:
    parts = [Part(data[at : at + PART_LEN]) for at in range(0, len(data), PART_LEN)]
    name = bytes(8) if wrong else digest(data)
    for index in indices:
        message = PutState(CHAIN, LABEL, JOINED, index, len(parts), name, parts[index], True)
        rig.agent.receive_message("a", message, rig.now)
        rig.take()


def test_a_state_arrives_whole_and_in_order_whatever_the_order_of_its_parts() -> None:
    rig = joined(rehearsed=True)
    rig.messages.clear()
    data = bytes(range(200)) * 10
    put(rig, 1, 0, 2, 0, data=data)
    progress = [StateTransferred(CHAIN, LABEL, JOINED, ARRIVED, index) for index in (0, 1, 1, 1)]
    assert told(rig, StateTransferred) == progress
    put(rig, 1, 2, data=data)
    [arrived] = rig.events(StateArrived)
    assert isinstance(arrived, StateArrived)
    assert (arrived.data, arrived.box, arrived.request) == (data, "fw", JOINED)
    rig.messages.clear()
    rig.agent.state_installed(arrived.key, JOINED, True, rig.now)
    rig.take()
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    answer = StateTransferred(CHAIN, LABEL, JOINED, INSTALLED, 3, False, "b")
    answers = [answer, replace(answer, rightward=True, hop=chain.right.hop)]
    assert told(rig, StateTransferred) == answers
    put(rig, 2, data=data)  # the answer was lost
    assert told(rig, StateTransferred) == answers
    assert rig.events(StateArrived) == []


def test_a_state_with_another_hash_is_refused() -> None:
    rig = joined(rehearsed=True)
    rig.messages.clear()
    put(rig, 0, data=b"state", wrong=True)
    failed = told(rig, StateTransferred)[0]
    assert isinstance(failed, StateTransferred)
    assert (failed.status, failed.reason) == (FAILED, "its hash is wrong")
    assert rig.events(StateArrived) == []


def test_a_state_that_is_too_large_is_not_begun() -> None:
    rig = joined(rehearsed=True)
    rig.messages.clear()
    message = PutState(CHAIN, LABEL, JOINED, 0, MOST_BYTES // PART_LEN + 2, bytes(8), Part(b"x"), True)
    rig.agent.receive_message("a", message, rig.now)
    rig.take()
    assert rig.messages == []
    assert rig.agent._changes.transfers.leftovers()["arriving"] == {}


def test_what_has_arrived_is_forgotten_after_half_a_minute_and_with_its_session() -> None:
    rig = joined(rehearsed=True)
    arriving = rig.agent._changes.transfers.leftovers()["arriving"]
    put(rig, 0, data=bytes(2 * PART_LEN))
    assert len(arriving) == 1
    [key] = rig.agent._life.chains
    rig.agent._life.close(rig.agent._life.chains[key], "moved", rig.now)
    assert len(arriving) == 0
    rig.agent.state_installed(key, JOINED, True, rig.now)
    assert rig.take() == []


def test_a_driver_that_answers_too_late_says_it_to_nobody() -> None:
    rig = joined(rehearsed=True)
    [key] = rig.agent._life.chains
    rig.messages.clear()
    rig.agent.state_installed(key, JOINED, True, rig.now)
    rig.take()
    assert rig.messages == []


def test_what_has_arrived_in_part_is_forgotten_if_the_rest_does_not_come() -> None:
    rig = joined(rehearsed=True)
    tell(rig, "a", Ack(CHAIN, LABEL, JOINED, 5001, 901, True))
    put(rig, 0, data=bytes(2 * PART_LEN))
    rig.wait(31.0)
    rig.messages.clear()
    put(rig, 1, data=bytes(2 * PART_LEN))
    assert told(rig, StateTransferred) == [StateTransferred(CHAIN, LABEL, JOINED, ARRIVED, 0)]
    assert rig.events(StateArrived) == []


# Hosts in between.


def test_a_relay_of_the_old_path_asks_the_next_host_and_passes_what_it_answers() -> None:
    rig = Rig()
    _, out = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4)))
    rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
    tell(rig, "a", RequestLock(CHAIN, LEFT, ONE, "a"))
    rig.messages.clear()
    part = PutState(CHAIN, RIGHT, REQUEST, 0, 1, bytes(8), Part(b"state"))
    for peer, message, to, hop in (("a", WANTED[2], "d", RIGHT), ("d", part, "a", LEFT)):
        rig.messages.clear()
        tell(rig, peer, message)
        assert rig.messages == [(to, replace(message, hop=hop))]
    assert rig.events(StateWanted) == []


def test_a_relay_of_the_new_path_passes_parts_and_answers() -> None:
    rig = Rig()
    tell(rig, "a", replace(INVITATION, hops=Hops((Hop(address(2)), Hop(address(4))))))
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    right = chain.right.hop
    part = PutState(CHAIN, LABEL, JOINED, 0, 1, bytes(8), Part(b"state"), True)
    answer = StateTransferred(CHAIN, right, JOINED, INSTALLED, 1)
    for peer, message, to, hop in (
        ("a", part, "d", right),
        ("d", answer, "a", LABEL),
        ("a", replace(answer, hop=LABEL, rightward=True), "d", right),
    ):
        rig.messages.clear()
        tell(rig, peer, message)
        assert rig.messages == [(to, replace(message, hop=hop))]
    assert rig.events(StateArrived) == []


def test_a_state_that_nobody_waits_for_goes_nowhere() -> None:
    talk = Talk()
    talk.rig.messages.clear()
    for peer, message in (
        ("d", PutState(CHAIN, RIGHT, 5, 0, 1, bytes(8), Part(b"state"))),
        ("a", PutState(CHAIN, LEFT, 5, 0, 1, bytes(8), Part(b"state"), True)),
        ("d", StateTransferred(CHAIN, RIGHT, 5, INSTALLED, 1)),
        ("a", StateTransferred(CHAIN, LEFT, 5, INSTALLED, 1, True)),
        ("a", CopyState(CHAIN, LEFT, 5, RIGHT)),
    ):
        tell(talk.rig, peer, message)
    assert talk.rig.messages == []
    assert talk.rig.events() == []
