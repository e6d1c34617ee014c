"""Guards, timers and exact numbers of a change that nothing but a wrong moment shows: each test is for one.

a --1-- b (this agent) --2-- d       as in test_locks.py; where b joins a chain, as in test_joining.py
"""

from __future__ import annotations

import pytest

from dysco.protocol.chain import Chain, Facing
from dysco.protocol.changing import LeftAnchor
from dysco.protocol.events import ChangeMoved
from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST, UNDERLAY
from dysco.protocol.ground import REHEARSED_WINDOW, Numbers
from dysco.protocol.locks import LockState
from dysco.protocol.switching import begin_two
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckLock,
    CancelLock,
    Change,
    Hops,
    Message,
    NackLock,
    OldDone,
    RequestLock,
    SynAck,
)
from dysco.wire.packet import ACK, SYN, build_tcp
from protocol.rig import KERNEL_BOX, MSS_1460, Rig, address, hops, read, session, syn_ack
from protocol.test_joining import INVITATION, LABEL, SUBSESSION
from protocol.test_joining import REQUEST as JOINED
from protocol.test_locks import (
    ASKED,
    CHAIN,
    GRANTED,
    HERE,
    LEFT,
    NEW_HOP,
    ONE,
    OTHER,
    OWN,
    PASSED,
    RIGHT,
    Talk,
    own_request,
    request,
    right_anchor,
    wait_for_ack,
)

RECEIVED = 9001  # what comes next from the right, in numbers of that side
SENT = 1106  # what is sent next to the right
PEER_ISN = RECEIVED - 1


def tell(rig: Rig, peer: str, message: Message) -> None:
    rig.agent.receive_message(peer, message, rig.now)
    rig.take()


def said(rig: Rig, kind: type[Message]) -> list[Message]:
    return [message for _, message in rig.messages if isinstance(message, kind)]


def phases(rig: Rig) -> list[str]:
    return [event.phase for event in rig.events(ChangeMoved) if isinstance(event, ChangeMoved)]


def chain_of(talk: Talk) -> Chain:
    return talk.rig.agent._life.chains[talk.key()]


def test_a_lease_is_thirty_seconds() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    talk.rig.wait(29.0)
    assert talk.lock() == (LockState.LOCKED, ONE.request)


def test_who_was_held_and_cancelled_makes_room_for_another() -> None:
    talk = Talk()
    talk.ask_own()
    talk.say(own_request(), ASKED)
    tell(talk.rig, "a", CancelLock(CHAIN, LEFT, ONE.request, RIGHT))
    talk.rig.messages.clear()
    talk.say((">>", "a", request(OTHER, LEFT)))
    tell(talk.rig, "d", NackLock(CHAIN, RIGHT, OWN.request, "d", "no"))
    asked = [message for message in said(talk.rig, RequestLock) if isinstance(message, RequestLock)]
    assert [message.change.request for message in asked] == [OTHER.request]


def test_a_path_that_was_given_up_is_told_until_somebody_knows() -> None:
    talk = Talk()
    talk.ask_own()
    tell(talk.rig, "d", NackLock(CHAIN, RIGHT, OWN.request, "d", "no"))
    talk.rig.wait(1.5)
    assert len(said(talk.rig, CancelLock)) == 4  # at once, after 0.2, 0.6 and 1.4 s


# As a left anchor.


def left_anchor() -> tuple[Talk, LeftAnchor]:
    """b as a left anchor: locked, and the new path agreed to, which has carried no packet."""
    talk = Talk()
    right_of_box = chain_of(talk).session_out
    talk.rig.feed(FIRST_BOX + 1, build_tcp(right_of_box, 1006, RECEIVED, ACK, 64240, b"", bytes(100)))
    talk.rig.feed(UNDERLAY, build_tcp(talk.right.reversed(), RECEIVED, SENT, ACK, 64240))
    talk.ask_own()
    changing = chain_of(talk).changing
    assert changing is not None
    anchor = changing.left
    assert anchor is not None
    assert anchor.new is not None
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request))
    tell(talk.rig, "d", SynAck(CHAIN, anchor.new.hop, OWN.request))
    return talk, anchor


def shake(talk: Talk, anchor: LeftAnchor) -> None:
    """Let the right anchor answer the path handshake."""
    assert anchor.new is not None
    back, isn = anchor.new.tuple.reversed(), anchor.isn
    answer = build_tcp(back, PEER_ISN, isn + 1, SYN | ACK, REHEARSED_WINDOW, MSS_1460)
    talk.rig.feed(UNDERLAY, answer)
    talk.rig.feed(UNDERLAY, build_tcp(back, PEER_ISN + 1, isn + 1, ACK, REHEARSED_WINDOW))


def switch(talk: Talk, anchor: LeftAnchor) -> None:
    """Let the right anchor switch; nothing is under way on the old path."""
    assert anchor.new is not None
    assert anchor.two is not None
    tell(talk.rig, "d", AckAck(CHAIN, anchor.new.hop, OWN.request, RECEIVED, anchor.two.cutoff))


def test_a_left_anchor_commits_when_the_new_path_has_carried_packets() -> None:
    talk, anchor = left_anchor()
    assert said(talk.rig, Ack) == []
    shake(talk, anchor)
    assert len(said(talk.rig, Ack)) == 1


def test_a_left_anchor_repeats_ack_until_the_right_one_has_switched() -> None:
    talk, anchor = left_anchor()
    shake(talk, anchor)
    talk.rig.wait(1.5)
    assert len(said(talk.rig, Ack)) >= 3


def finished_left_anchor() -> Talk:
    talk, anchor = left_anchor()
    shake(talk, anchor)
    switch(talk, anchor)
    talk.rig.wait(1.0)  # now the ACK at the cutoff is not waited for any more
    assert phases(talk.rig)[-1] == "drained"
    tell(talk.rig, "d", OldDone(CHAIN, RIGHT, OWN.request, False, RIGHT))
    talk.rig.wait(2.0)
    assert phases(talk.rig) == ["done"]
    return talk


def test_a_left_anchor_waits_for_the_right_half_of_the_old_path() -> None:
    finished_left_anchor()


def test_a_left_anchor_that_is_done_tells_so_until_it_is_known() -> None:
    talk = finished_left_anchor()
    talk.rig.messages.clear()
    talk.rig.wait(4.0)
    assert len(said(talk.rig, OldDone)) >= 2


def test_a_left_anchor_that_is_done_knows_where_the_new_path_stands() -> None:
    """No packet has passed there; a forced change would switch at what was acknowledged, on the old path."""
    talk = finished_left_anchor()
    numbers = talk.rig.agent._changes._ground.numbers(chain_of(talk), "right")
    assert numbers == Numbers(SENT, RECEIVED, SENT, RECEIVED)


# As a right anchor.


def finished_right_anchor() -> tuple[Talk, AckAck]:
    talk = wait_for_ack((10, 20))
    two_at = talk.rig.agent._changes._ground.numbers(chain_of(talk), "left")
    assert two_at is not None
    inner = chain_of(talk).session_in
    talk.rig.feed(FIRST_BOX, build_tcp(inner.reversed(), two_at.sent, two_at.received, ACK, 64240))
    cutoff, answered = two_at.received - 10, two_at.sent + 20
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, cutoff, answered, False))
    two = right_anchor(talk).two
    assert two is not None
    two.acked, two.answered, two.told_old = two.cutoff, two_at.received, two_at.received
    talk.rig.wait(1.0)
    assert phases(talk.rig)[-1] == "drained"
    [answer, *_] = said(talk.rig, AckAck)
    assert isinstance(answer, AckAck)
    tell(talk.rig, "a", OldDone(CHAIN, LEFT, HERE.request, True, LEFT))
    talk.rig.wait(2.0)
    assert phases(talk.rig) == ["done"]
    talk.rig.messages.clear()
    return talk, answer


def test_a_right_anchor_waits_for_the_left_half_of_the_old_path() -> None:
    finished_right_anchor()


def test_a_right_anchor_that_is_done_goes_on_adding_its_sums() -> None:
    talk, _ = finished_right_anchor()
    assert chain_of(talk).left.sums == (10, 20)


def test_a_right_anchor_that_is_done_answers_an_ack_that_comes_again() -> None:
    talk, answer = finished_right_anchor()
    again = Ack(CHAIN, NEW_HOP, HERE.request, 991, answer.cutoff, True)
    tell(talk.rig, "a", again)
    [message] = said(talk.rig, AckAck)
    assert isinstance(message, AckAck)
    assert (message.request, message.cutoff) == (HERE.request, answer.cutoff)


# As a hop.


def joined(*, rehearsed: bool) -> Rig:
    """b as a new hop with a box."""
    rig = Rig(boxes=[KERNEL_BOX])
    tell(rig, "a", INVITATION)
    if rehearsed:
        _, inner = rig.one(UNDERLAY, build_tcp(SUBSESSION, 5000, 0, SYN, REHEARSED_WINDOW, MSS_1460))
        _, outer = rig.one(HOST, inner)
        back = build_tcp(read(outer).five_tuple.reversed(), 900, 5001, SYN | ACK, REHEARSED_WINDOW, MSS_1460)
        for port, answer in rig.feed(
            UNDERLAY, back
        ):  # the second one is what its box must see behind the first
            assert port == FORWARD
            rig.one(HOST, answer)
    return rig


@pytest.mark.parametrize("rehearsed", [False, True])
def test_a_new_hop_that_only_a_handshake_has_passed_goes_after_a_lease(rehearsed: bool) -> None:
    rig = joined(rehearsed=rehearsed)
    rig.wait(29.0)
    assert len(rig.state()) == 1
    rig.wait(2.0)
    assert rig.state() == []


def test_a_new_hop_does_not_leave_when_it_hears_again_that_the_old_path_is_empty() -> None:
    rig = joined(rehearsed=True)
    tell(rig, "a", Ack(CHAIN, LABEL, JOINED, 5001, 901, True))
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    right = chain.right.hop
    tell(rig, "d", AckAck(CHAIN, right, JOINED, 901, 5001))
    for last in (0, 1):  # along the new path; as if it were the old one
        for peer, label, rightward in (("a", LABEL, True), ("d", right, False)):
            rig.agent.receive_message(peer, OldDone(CHAIN, label, JOINED, rightward, last), rig.now)
            assert rig.take() == []
    rig.wait(60.0)
    assert rig.state() == ["established"]


def test_a_host_leaves_when_both_halves_of_the_old_path_are_empty() -> None:
    rig = Rig(boxes=[KERNEL_BOX])
    _, inner = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4, box=KERNEL_BOX.tag)))
    _, outer = rig.one(HOST, inner)
    _, back = rig.one(UNDERLAY, syn_ack(read(outer).five_tuple))
    rig.one(HOST, back)
    change = Change(70, 1, 2, Hops((Hop(address(4)),)), origin="a")
    tell(rig, "a", RequestLock(CHAIN, 1, change, "a"))
    rig.agent.receive_message("a", OldDone(CHAIN, 1, 70, True, 2), rig.now)
    assert rig.take() == []
    rig.agent.receive_message("d", OldDone(CHAIN, 2, 70, False, 2), rig.now)
    assert len(rig.take()) == 1  # the FIN for the box


# Numbers.


def test_what_a_change_has_left_is_added_one_way_and_taken_away_the_other() -> None:
    facing = Facing(UNDERLAY, UNDERLAY, session(), "a")
    assert facing.translations() == (None, None)
    facing.sums = (3, 5)
    inward, outward = facing.translations()
    assert inward is not None
    assert outward is not None
    assert (inward.seq_delta, inward.ack_delta) == (3, -5)
    assert (outward.seq_delta, outward.ack_delta) == (5, -3)


@pytest.mark.parametrize(("forced", "cutoff", "received"), [(False, 10, 20), (True, 5, 7)])
def test_a_cutoff_is_what_is_sent_next(forced: bool, cutoff: int, received: int) -> None:
    two = begin_two(Numbers(sent=10, received=20, acked=5, answered=7), forced=forced)
    assert (two.cutoff, two.rcvd, two.top) == (cutoff, received, 10)
