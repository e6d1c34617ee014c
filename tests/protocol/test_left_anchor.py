"""A left anchor, step by step: what comes late, twice or wrong, and what is said again until it is answered.

a --1-- b (this agent) --2-- d       b asks for a change of its right subsession; as in test_locks.py and test_guards.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.changing import LeftAnchor
from dysco.protocol.events import ChangeMoved
from dysco.protocol.flow import FIRST_BOX, UNDERLAY
from dysco.protocol.ground import REHEARSED_WINDOW
from dysco.protocol.locks import COMMIT_S, RENEW_S
from dysco.protocol.settings import Decision
from dysco.protocol.switching import FROZEN_BYTES, FROZEN_S, is_at_cutoff
from dysco.protocol.transfers import ARRIVED, COPY, FAILED, FREEZE, INSTALLED
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckCancel,
    AckLock,
    CancelLock,
    CopyState,
    Hops,
    Moved,
    NackLock,
    OldDone,
    OldDoneAck,
    Part,
    PutState,
    RenewLock,
    RequestLock,
    RightRequest,
    StateTransferred,
    Syn,
    SynAck,
)
from dysco.wire.packet import ACK, RST, SYN, Packet, build_tcp
from protocol.rig import Rig, address, hops, read
from protocol.test_guards import PEER_ISN, RECEIVED, SENT, chain_of, left_anchor, said, shake, switch, tell
from protocol.test_locks import ASKED, CHAIN, ONE, OWN, RIGHT, Talk, busy


def moves(talk: Talk) -> list[tuple[str, str]]:
    return [(one.phase, one.reason) for one in talk.rig.events(ChangeMoved) if isinstance(one, ChangeMoved)]


def start(state: int = 0) -> tuple[Talk, LeftAnchor]:
    """As `left_anchor`, with nothing answered yet."""
    talk = Talk()
    session_out = chain_of(talk).session_out
    talk.rig.feed(FIRST_BOX + 1, build_tcp(session_out, 1006, RECEIVED, ACK, 64240, b"", bytes(100)))
    talk.rig.feed(UNDERLAY, build_tcp(talk.right.reversed(), RECEIVED, SENT, ACK, 64240))
    assert talk.rig.agent.change(talk.key(), replace(OWN, state=state), talk.rig.now)
    talk.rig.take()
    changing = chain_of(talk).changing
    assert changing is not None
    assert changing.left is not None
    assert changing.left.new is not None
    return talk, changing.left


def label(anchor: LeftAnchor) -> int:
    assert anchor.new is not None
    return anchor.new.hop


def from_new(
    talk: Talk, anchor: LeftAnchor, seq: int, ack: int, flags: int = ACK, size: int = 0
) -> list[tuple[int, Packet]]:
    """A packet of the right anchor on the new path."""
    assert anchor.new is not None
    packet = build_tcp(anchor.new.tuple.reversed(), seq, ack, flags, 64240, b"", bytes(size))
    return talk.rig.feed(UNDERLAY, packet)


def from_inside(talk: Talk, seq: int, size: int, flags: int = ACK) -> list[tuple[int, Packet]]:
    """What the client sends comes out of the box."""
    packet = build_tcp(chain_of(talk).session_out, seq, RECEIVED, flags, 64240, b"", bytes(size))
    return talk.rig.feed(FIRST_BOX + 1, packet)


def two_paths(state: int = 0) -> tuple[Talk, LeftAnchor]:
    talk, anchor = start(state)
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request))
    tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request))
    shake(talk, anchor)
    assert moves(talk)[-1] == ("two paths", "")
    return talk, anchor


# Beginning.


def test_a_change_does_not_begin_before_the_syn_ack_has_been_acknowledged() -> None:
    # What the left anchor shows trackers acknowledges it; late, that would open the session at the server alone.
    talk = Talk(acknowledged=False)
    assert talk.rig.agent.change(talk.key(), OWN, talk.rig.now)
    [(port, asked)] = talk.rig.take()
    assert moves(talk) == [("refused", "not ready: the SYN-ACK has not been acknowledged yet")]
    assert (port, read(asked).five_tuple) == (FIRST_BOX + 1, chain_of(talk).session_out.reversed())
    talk.rig.one(FIRST_BOX + 1, build_tcp(chain_of(talk).session_out, 1006, 9001, ACK, 64240))
    assert talk.rig.agent.change(talk.key(), replace(OWN, request=OWN.request + 1), talk.rig.now)
    assert moves(talk)[-1] == ("requested", "")


def test_a_session_that_is_being_opened_is_not_changed() -> None:
    rig = Rig(decision=Decision("web", hops(3, 4)))
    rig.begin()
    [key] = rig.agent._life.chains
    assert rig.agent.change(key, replace(OWN, first=1, last=1), rig.now)
    [moved] = rig.events(ChangeMoved)
    assert isinstance(moved, ChangeMoved)
    assert (moved.phase, moved.reason) == ("refused", "the session is not established")


def test_who_may_not_change_a_session_is_refused_by_the_left_anchor() -> None:
    talk = Talk()
    neighbour = talk.rig.agent._neighbours.by_name["d"]
    neighbour.peer = replace(neighbour.peer, may_change=lambda _: False)
    tell(talk.rig, "d", RightRequest(CHAIN, RIGHT, replace(OWN, origin="d")))
    assert moves(talk) == []
    [(to, answer)] = talk.rig.messages
    assert (to, getattr(answer, "reason", "")) == ("d", "d may not change this session")


@pytest.mark.parametrize("force", [False, True])
def test_after_a_restart_packets_must_show_where_the_session_stands(force: bool) -> None:
    talk = Talk()
    [(_, record)] = talk.rig.agent.records()
    rig = Rig(boxes=talk.rig.settings.boxes)
    assert rig.agent.restore(record, rig.now)
    rig.events()
    change = replace(OWN, force=force)
    assert rig.agent.change(talk.key(), change, rig.now)
    asked = rig.take()
    [moved] = rig.events(ChangeMoved)
    assert isinstance(moved, ChangeMoved)
    assert (moved.phase, moved.reason) == (
        "refused",
        "not ready: no packets have passed since the agent began",
    )
    assert len(asked) == force  # whose old path is dead, so that nothing will come but what is asked for


# Requesting and setting up.


def test_a_grant_that_comes_twice_grants_once() -> None:
    talk, _ = start()
    for _ in range(2):
        tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request))
    assert moves(talk) == [("requested", ""), ("locked", "")]
    assert said(talk.rig, Ack) == []


def test_a_refusal_that_comes_behind_the_grant_changes_nothing() -> None:
    talk, anchor = left_anchor()
    moves(talk)
    tell(talk.rig, "d", NackLock(CHAIN, RIGHT, OWN.request, "d", "no"))
    assert moves(talk) == []
    shake(talk, anchor)
    assert moves(talk)[-1] == ("two paths", "")


def test_the_hops_may_agree_behind_the_path_handshake() -> None:
    talk, anchor = start()
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request))
    shake(talk, anchor)
    assert said(talk.rig, Ack) == []
    tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request))
    assert len(said(talk.rig, Ack)) == 1


def test_an_answer_of_another_path_handshake_is_none() -> None:
    talk, anchor = left_anchor()
    assert anchor.new is not None
    back = anchor.new.tuple.reversed()
    assert talk.rig.feed(UNDERLAY, build_tcp(back, PEER_ISN, anchor.isn, SYN | ACK, REHEARSED_WINDOW)) == []
    assert talk.rig.feed(UNDERLAY, build_tcp(back, PEER_ISN, 0, SYN, REHEARSED_WINDOW)) == []
    assert said(talk.rig, Ack) == []


def test_an_answer_that_comes_twice_is_acknowledged_twice_and_commits_once() -> None:
    talk, anchor = start()
    shake(talk, anchor)
    assert anchor.new is not None
    again = build_tcp(anchor.new.tuple.reversed(), PEER_ISN, anchor.isn + 1, SYN | ACK, REHEARSED_WINDOW)
    acks = [read(packet) for _, packet in talk.rig.feed(UNDERLAY, again)]
    assert [(one.flags, one.seq, one.ack) for one in acks] == [(ACK, anchor.isn + 1, RECEIVED)] * 2
    assert said(talk.rig, Ack) == []


def test_behind_the_switch_an_answer_is_not_acknowledged_any_more() -> None:
    talk, anchor = two_paths()
    assert anchor.new is not None
    again = build_tcp(anchor.new.tuple.reversed(), PEER_ISN, anchor.isn + 1, SYN | ACK, REHEARSED_WINDOW)
    assert talk.rig.feed(UNDERLAY, again) == []


def test_what_comes_on_the_new_path_before_the_switch_goes_nowhere() -> None:
    talk, anchor = left_anchor()
    assert from_new(talk, anchor, RECEIVED, SENT) == []
    assert from_new(talk, anchor, RECEIVED, SENT, size=10) == []
    assert said(talk.rig, Ack) == []


def test_a_reset_before_the_new_path_has_agreed_says_nothing() -> None:
    """A SYN that overtakes the messages that tell of it meets a host that knows nothing of the change."""
    talk, anchor = left_anchor()
    moves(talk)
    anchor.agreed = False
    assert from_new(talk, anchor, RECEIVED, 0, RST) == []
    assert moves(talk) == []
    assert anchor.reason == ("", "")


def test_a_reset_on_the_new_path_before_the_switch_ends_the_change_and_not_the_session() -> None:
    talk, anchor = left_anchor()
    moves(talk)
    assert from_new(talk, anchor, RECEIVED, 0, RST) == []
    assert talk.rig.state() == ["established"]
    tell(talk.rig, "d", AckCancel(CHAIN, RIGHT, OWN.request))
    assert moves(talk) == [("aborted", "the new path was reset")]


@pytest.mark.parametrize(
    ("agreed", "reason"),
    [(False, "the new path was not answered"), (True, "the new path does not carry packets")],
)
def test_a_new_path_that_is_silent_is_given_up(agreed: bool, reason: str) -> None:
    talk, anchor = start()
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request))
    if agreed:
        tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request))
    talk.rig.messages.clear()
    rehearsed = [read(packet) for _, packet in talk.rig.wait(4.0)]
    assert [one.flags for one in rehearsed] == [SYN] * 3
    assert len({(one.seq, one.five_tuple) for one in rehearsed}) == 1
    assert len(said(talk.rig, Syn)) == (0 if agreed else 3)
    assert said(talk.rig, RequestLock) == []
    tell(talk.rig, "d", AckCancel(CHAIN, RIGHT, OWN.request))
    assert moves(talk)[-1] == ("aborted", reason)


def test_a_path_that_carries_packets_and_waits_for_the_hops_is_not_rehearsed_again() -> None:
    talk, anchor = start()
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request))
    shake(talk, anchor)
    talk.rig.messages.clear()
    assert talk.rig.wait(1.0) == []
    assert len(said(talk.rig, Syn)) >= 1


def test_a_cancelled_change_is_over_although_nobody_answers() -> None:
    talk, _ = start()
    talk.rig.wait(30.0)
    assert moves(talk) == [("requested", ""), ("refused", "the lock was not answered")]
    assert talk.lock() is None
    assert chain_of(talk).changing is None


@pytest.mark.parametrize("switched", [False, True])
def test_a_change_ends_with_its_session(switched: bool) -> None:
    talk, anchor = two_paths() if switched else start()
    moves(talk)
    talk.rig.messages.clear()
    chain = chain_of(talk)
    talk.rig.agent._life.close(chain, "reset", talk.rig.now)
    talk.rig.take()
    assert moves(talk) == [("aborted" if switched else "refused", "the session has ended")]
    told = {(to, one.hop) for to, one in talk.rig.messages if isinstance(one, CancelLock)}
    assert told == (set() if switched else {("d", RIGHT), ("d", label(anchor))})
    assert talk.rig.agent.ports_held() == 0


# Two paths.


def test_the_left_half_cannot_be_told_empty_before_the_switch() -> None:
    talk, anchor = left_anchor()
    tell(talk.rig, "d", OldDone(CHAIN, RIGHT, OWN.request, False, RIGHT))
    assert said(talk.rig, OldDoneAck) == [OldDoneAck(CHAIN, RIGHT, OWN.request, True, RIGHT)]
    shake(talk, anchor)
    switch(talk, anchor)
    talk.rig.wait(1.0)
    assert moves(talk)[-1] == ("drained", "")


def test_a_lock_is_renewed_and_kept_as_long_as_there_are_two_paths() -> None:
    talk, _ = two_paths()
    talk.rig.messages.clear()
    talk.rig.wait(RENEW_S * 4 + 2)
    renewals = said(talk.rig, RenewLock)
    assert renewals == [RenewLock(CHAIN, RIGHT, OWN.request, RIGHT)] * 3
    talk.rig.messages.clear()
    tell(talk.rig, "a", ASKED[2])
    assert talk.rig.messages == [("a", busy(ONE))]


def test_a_lock_is_kept_by_an_agent_that_was_stopped_for_longer_than_its_lease() -> None:
    talk, _ = two_paths()
    talk.rig.now += 40.0
    talk.rig.messages.clear()
    tell(talk.rig, "a", ASKED[2])
    assert talk.rig.messages == [("a", busy(ONE))]


def test_the_last_acknowledgement_is_repeated_for_the_old_path() -> None:
    talk, _ = two_paths()
    from_inside(talk, SENT, 0)
    reminders = [read(packet) for _, packet in talk.rig.wait(1.0) if not is_at_cutoff(read(packet))]
    assert {(one.five_tuple, one.seq, one.ack, one.flags) for one in reminders} == {
        (talk.right, SENT, RECEIVED, ACK)
    }


@pytest.mark.parametrize("first", [True, False])
def test_what_came_and_was_not_counted_does_not_keep_an_old_path(first: bool) -> None:
    """A kernel was in the middle of a packet; the other anchor has the acknowledgement, by the new path."""
    talk, anchor = two_paths()
    assert anchor.two is not None
    came = RECEIVED + 100
    switched = AckAck(CHAIN, label(anchor), OWN.request, came, anchor.two.cutoff)
    acked = build_tcp(chain_of(talk).session_out, SENT, came, ACK, 64240)
    sent = [packet for _, packet in talk.rig.feed(FIRST_BOX + 1, acked.copy())] if first else []
    tell(talk.rig, "d", switched)
    sent += [packet for _, packet in talk.rig.feed(FIRST_BOX + 1, acked)] if not first else []
    tell(talk.rig, "d", OldDone(CHAIN, RIGHT, OWN.request, False, RIGHT))
    sent += [packet for _, packet in talk.rig.wait(1.0)]
    assert (talk.right, came) in {(read(one).five_tuple, read(one).ack) for one in sent}
    assert moves(talk)[-1] == ("done", "")


def test_an_old_path_that_both_halves_have_left_is_not_reminded() -> None:
    """The other anchor may have forgotten it: its host would answer with a reset."""
    talk, anchor = two_paths()
    from_inside(talk, SENT, 0)
    switch(talk, anchor)
    tell(talk.rig, "d", OldDone(CHAIN, RIGHT, OWN.request, False, RIGHT))
    assert not anchor.shown
    sent = [read(packet).five_tuple for _, packet in talk.rig.wait(1.0)]
    assert sent
    assert talk.right not in sent
    assert moves(talk)[-1] == ("done", "")


def test_an_old_path_that_does_not_get_empty_is_told_once_and_kept() -> None:
    talk, anchor = two_paths()
    from_inside(talk, SENT, 0)
    talk.rig.wait(59.0)
    stuck = [("stuck", "the old path does not get empty")]
    assert [one for one in moves(talk) if one in stuck] == []
    talk.rig.wait(60.0)
    assert [one for one in moves(talk) if one in stuck] == stuck
    assert talk.rig.wait(60.0) == []  # nothing is repeated there any more
    talk.rig.agent.peer_down("d", talk.rig.now)
    talk.rig.wait(60.0)
    assert talk.rig.state() == ["established"]
    switch(talk, anchor)
    tell(talk.rig, "d", OldDone(CHAIN, RIGHT, OWN.request, False, RIGHT))
    assert moves(talk) == [("drained", ""), ("done", "")]


# State that moves.


def test_a_state_is_copied_before_the_switch_and_asked_for_until_it_is_there() -> None:
    talk, anchor = start(COPY)
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request))
    tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request))
    shake(talk, anchor)
    assert moves(talk)[-1] == ("new path up", "")
    talk.rig.wait(1.0)
    assert said(talk.rig, CopyState) == [CopyState(CHAIN, RIGHT, OWN.request, RIGHT)] * len(
        said(talk.rig, CopyState)
    )
    assert len(said(talk.rig, CopyState)) > 1
    part = PutState(CHAIN, RIGHT, OWN.request, 0, 1, bytes(8), Part(b"state"))
    talk.rig.messages.clear()
    tell(talk.rig, "d", part)
    assert talk.rig.messages == [("d", replace(part, hop=label(anchor), rightward=True))]
    talk.rig.messages.clear()
    arrived = StateTransferred(CHAIN, label(anchor), OWN.request, ARRIVED, 1)
    tell(talk.rig, "d", arrived)
    assert talk.rig.messages == [("d", replace(arrived, hop=RIGHT, rightward=True))]
    assert said(talk.rig, Ack) == []
    tell(talk.rig, "d", replace(arrived, status=INSTALLED))
    assert len(said(talk.rig, Ack)) == 1
    assert moves(talk) == [("two paths", "")]


def test_without_its_state_a_box_is_not_replaced() -> None:
    talk, anchor = start(COPY)
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request))
    tell(
        talk.rig,
        "d",
        StateTransferred(CHAIN, label(anchor), OWN.request, FAILED, 0, False, "d", "it has none"),
    )
    tell(talk.rig, "d", AckCancel(CHAIN, RIGHT, OWN.request))
    assert moves(talk)[-1] == ("aborted", "it has none")


@pytest.mark.parametrize("comes", [False, True])
def test_a_state_that_takes_longer_than_the_lock_may_last_ends_the_change(comes: bool) -> None:
    talk, anchor = start(COPY)
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request))
    tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request))
    shake(talk, anchor)
    if comes:
        talk.rig.now += COMMIT_S + 0.1  # nothing has come up meanwhile
        tell(talk.rig, "d", StateTransferred(CHAIN, label(anchor), OWN.request, INSTALLED, 1))
    else:
        talk.rig.wait(COMMIT_S + 2.0)
    assert said(talk.rig, Ack) == []
    tell(talk.rig, "d", AckCancel(CHAIN, RIGHT, OWN.request))
    assert moves(talk)[-1] == ("aborted", "the lock would not last")


def drained(talk: Talk, anchor: LeftAnchor) -> None:
    """Both halves of the old path are empty."""
    switch(talk, anchor)
    tell(talk.rig, "d", OldDone(CHAIN, RIGHT, OWN.request, False, RIGHT))


@pytest.mark.parametrize("status", [INSTALLED, FAILED])
def test_new_data_wait_for_the_state_of_a_frozen_box(status: int) -> None:
    talk, anchor = two_paths(FREEZE)
    assert anchor.new is not None
    from_inside(talk, SENT, 0)
    drained(talk, anchor)
    assert said(talk.rig, CopyState)
    assert [one for one in from_inside(talk, SENT, 10) if read(one[1]).five_tuple == anchor.new.tuple] == []
    answer = StateTransferred(CHAIN, label(anchor), OWN.request, status, 1, False, "d", "no")
    talk.rig.agent.receive_message("d", answer, talk.rig.now)
    held = [read(packet) for _, packet in talk.rig.take()]
    assert [(one.five_tuple, one.seq, one.payload_len) for one in held if one.payload_len] == [
        (anchor.new.tuple, SENT, 10)
    ]


def test_new_data_wait_no_longer_than_half_a_second() -> None:
    talk, _ = two_paths(FREEZE)
    from_inside(talk, SENT, 10)
    assert [one for one in talk.rig.wait(FROZEN_S - 0.05) if read(one[1]).payload_len] == []
    held = [read(packet) for _, packet in talk.rig.wait(0.1)]
    assert [one.seq for one in held if one.payload_len] == [SENT]
    assert [
        read(packet).seq for _, packet in from_inside(talk, SENT + 10, 10) if read(packet).payload_len
    ] == [SENT + 10]


def test_no_more_than_a_quarter_of_a_megabyte_waits() -> None:
    talk, _ = two_paths(FREEZE)
    size = 32_000
    for number in range(FROZEN_BYTES // size + 2):
        from_inside(talk, SENT + number * size, size)
    held = [read(packet) for _, packet in talk.rig.wait(FROZEN_S + 0.1) if read(packet).payload_len]
    assert [one.seq for one in held] == [SENT + number * size for number in range(FROZEN_BYTES // size)]
    assert talk.rig.agent.counters["frozen_dropped"] == 2


def test_what_waits_is_not_sent_for_a_session_that_has_ended() -> None:
    talk, _ = two_paths(FREEZE)
    from_inside(talk, SENT, 10)
    talk.rig.agent._life.close(chain_of(talk), "reset", talk.rig.now)
    talk.rig.take()
    assert talk.rig.wait(5.0) == []


def test_who_has_moved_is_invited_by_the_address_where_it_is() -> None:
    talk = Talk()
    tell(talk.rig, "d", Moved(1, Hops((Hop(address(44)),))))
    session_out = chain_of(talk).session_out
    talk.rig.feed(FIRST_BOX + 1, build_tcp(session_out, 1006, RECEIVED, ACK, 64240, b"", bytes(100)))
    assert talk.rig.agent.change(talk.key(), OWN, talk.rig.now)
    talk.rig.take()
    [invited] = said(talk.rig, Syn)
    assert isinstance(invited, Syn)
    assert invited.hops == (Hop(address(44)),)
