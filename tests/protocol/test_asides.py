"""What an agent answers when a message finds nothing, comes late, or asks for what may not be.

a --1-- b (this agent, with a box) --2-- d       as in test_locks.py; where b joins a chain, as in test_joining.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.changes import CANCELLED, COMMITTED, UNHEARD
from dysco.protocol.changing import Phase
from dysco.protocol.events import ChangeMoved, SessionEstablished, SessionOpened, SessionRecord
from dysco.protocol.flow import HOST, UNDERLAY
from dysco.protocol.ground import REHEARSED_WINDOW
from dysco.protocol.joints import Added
from dysco.protocol.locks import LockState
from dysco.protocol.records import read_record
from dysco.protocol.settings import Decision, LocalBox, anything, unwatched
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckCancel,
    AckLock,
    CancelLock,
    Change,
    Gone,
    Hello,
    Hops,
    LockQuery,
    LockStatus,
    Message,
    NackLock,
    NackSyn,
    OldDone,
    OldDoneAck,
    Progress,
    RequestLock,
    RightRequest,
    Syn,
    SynAck,
    Trace,
)
from dysco.wire.packet import ACK, SYN, Packet, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import (
    KERNEL_BOX,
    MSS_1460,
    NAT_BOX,
    Rig,
    address,
    both,
    header_of,
    read,
    session,
    syn,
    to_c,
)
from protocol.test_guards import joined, said, tell
from protocol.test_joining import CHAIN, INVITATION, LABEL
from protocol.test_joining import REQUEST as JOINED
from protocol.test_locks import (
    ASKED,
    GRANTED,
    HERE,
    LEFT,
    NEW_HOP,
    NEW_PATH,
    ONE,
    OWN,
    PASSED,
    RIGHT,
    Talk,
    new_path,
    own_request,
    request,
    right_anchor,
    wait_for_ack,
)

NOBODY = b"no-such-chain-00"


def implausible(rig: Rig) -> int:
    return rig.agent.counters["message_implausible"]


# Nothing of the kind is here.


@pytest.mark.parametrize(
    ("message", "answer", "counts"),
    [
        (RequestLock(NOBODY, 9, ONE, "a"), NackLock(NOBODY, 9, ONE.request, "b", "not found"), 1),
        (CancelLock(NOBODY, 9, 5, 1), AckCancel(NOBODY, 9, 5), 1),
        (
            RightRequest(NOBODY, 9, OWN, rightward=False),
            Progress(NOBODY, 9, OWN.request, Phase.REFUSED, True, "b", "not found"),
            1,
        ),
        (LockQuery(NOBODY, 9, 5), LockStatus(NOBODY, 9, 5, UNHEARD, 0), 1),
        (OldDone(NOBODY, 9, 5, True, 3), OldDoneAck(NOBODY, 9, 5, False, 3), 0),
        (OldDoneAck(NOBODY, 9, 5, True), None, 0),
        (AckCancel(NOBODY, 9, 5), None, 0),
        (AckLock(NOBODY, 9, 5), None, 1),
        (SynAck(NOBODY, 9, 5), None, 1),
        (Ack(NOBODY, 9, 5, 1, 1), None, 1),
        (Trace(NOBODY, 9, 5, 3, ""), None, 0),
        (Trace(NOBODY, 9, 5, 2, "b"), None, 1),
    ],
)
def test_what_would_be_repeated_for_ever_is_answered(
    message: Message, answer: Message | None, counts: int
) -> None:
    rig = Rig()
    tell(rig, "a", message)
    assert rig.messages == ([] if answer is None else [("a", answer)])
    assert implausible(rig) == counts


def test_a_grant_of_what_was_cancelled_is_given_back() -> None:
    talk = Talk()
    tell(talk.rig, "a", CancelLock(NOBODY, 9, 77, 3))
    talk.rig.messages.clear()
    for late in (AckLock(NOBODY, 9, 77), SynAck(NOBODY, 8, 77)):
        tell(talk.rig, "d", late)
    given_back = [("d", CancelLock(NOBODY, hop, 77, 3)) for hop in (9, 8)]
    assert talk.rig.messages == given_back
    talk.rig.messages.clear()
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, 77))
    assert talk.rig.messages == [("d", CancelLock(CHAIN, RIGHT, 77, 3))]


def test_a_request_and_a_new_path_of_what_was_cancelled_come_too_late() -> None:
    talk = Talk()
    talk.say(
        (">>", "a", CancelLock(CHAIN, LEFT, ONE.request, RIGHT)),
        ("<<", "d", CancelLock(CHAIN, RIGHT, ONE.request, RIGHT)),
    )
    talk.say(ASKED)
    assert talk.lock() is None
    tell(talk.rig, "a", replace(INVITATION, request=ONE.request))
    assert talk.rig.messages == []


def test_commands_about_sessions_that_are_gone_do_nothing() -> None:
    talk = Talk()
    agent, now = talk.rig.agent, talk.rig.now
    assert not agent.change(NOBODY, OWN, now)
    assert not agent.trace(NOBODY, 1, now)
    assert not agent.splice(talk.key(), NOBODY, 1, now)
    assert not agent.splice(talk.key(), talk.key(), 1, now)
    assert agent.places(NOBODY) == ()
    assert agent.subsessions(NOBODY) == ()
    assert len(agent.subsessions(talk.key())) == 2
    assert agent.peer_address(address(4)) == address(4)
    assert talk.rig.take() == []


def test_two_ends_of_no_proxy_are_not_joined() -> None:
    talk = Talk()
    [chain] = talk.rig.agent._life.chains.values()
    talk.rig.agent._changes.splice(chain, chain, 55, Added(), talk.rig.now)
    [moved] = talk.rig.events(ChangeMoved)
    assert isinstance(moved, ChangeMoved)
    assert (moved.phase, moved.reason) == ("refused", "the left chain does not end at this host")
    assert chain.joint is None


# A syn.


def test_a_syn_without_hops_is_dropped() -> None:
    talk = Talk()
    tell(talk.rig, "a", replace(new_path(HERE), hops=Hops()))
    assert talk.rig.messages == []
    assert implausible(talk.rig) == 1


def test_a_new_path_to_nobody_is_refused() -> None:
    rig = Rig()
    tell(rig, "a", replace(new_path(HERE), chain_id=NOBODY))
    assert rig.messages == [("a", NackSyn(NOBODY, NEW_HOP, HERE.request, "b", "not found"))]


def test_a_new_path_under_a_drawn_label_that_is_not_known_yet_waits() -> None:
    rig = Rig()
    tell(rig, "a", replace(new_path(HERE), chain_id=NOBODY, last=70_000))
    assert rig.messages == []


def test_who_may_not_change_a_session_gets_neither_lock_nor_new_path() -> None:
    talk = Talk()
    neighbour = talk.rig.agent._neighbours.by_name["a"]
    neighbour.peer = replace(neighbour.peer, may_change=lambda _: False)
    refused = "a may not change this session"
    talk.say(ASKED, ("<<", "a", NackLock(CHAIN, LEFT, ONE.request, "b", refused)))
    tell(talk.rig, "a", new_path(HERE))
    assert talk.rig.messages == [("a", NackSyn(CHAIN, NEW_HOP, HERE.request, "b", refused))]


def test_a_second_new_path_is_refused_while_one_is_agreed() -> None:
    talk = wait_for_ack((0, 0))
    tell(talk.rig, "a", replace(new_path(HERE), request=99, hop=301))
    assert talk.rig.messages == [("a", NackSyn(CHAIN, 301, 99, "b", "busy"))]


def test_a_new_path_that_nobody_asks_a_lock_for_is_forgotten() -> None:
    talk = Talk()
    tell(talk.rig, "a", new_path(HERE))
    [chain] = talk.rig.agent._life.chains.values()
    assert chain.changing is not None
    talk.rig.wait(31.0)
    assert chain.changing is None
    tell(talk.rig, "a", request(HERE, LEFT))
    assert talk.rig.messages == [("a", AckLock(CHAIN, LEFT, HERE.request))]


# What became of a change.


def test_a_host_inside_asks_the_next_one_what_became_of_a_change() -> None:
    talk = Talk()
    query, status = LockQuery(CHAIN, RIGHT, 5), LockStatus(CHAIN, LEFT, 5, CANCELLED, 1)
    talk.say((">>", "d", query), ("<<", "a", replace(query, hop=LEFT)))
    talk.say((">>", "a", status), ("<<", "d", replace(status, hop=RIGHT)))


def test_a_left_anchor_says_what_became_of_its_change() -> None:
    talk = Talk()
    talk.ask_own()
    talk.say(own_request())
    query = LockQuery(CHAIN, RIGHT, OWN.request)
    talk.say((">>", "d", query), ("<<", "d", LockStatus(CHAIN, RIGHT, OWN.request, 2, RIGHT)))
    tell(talk.rig, "d", NackLock(CHAIN, RIGHT, OWN.request, "d", "no"))
    talk.rig.messages.clear()
    talk.say((">>", "d", query), ("<<", "d", LockStatus(CHAIN, RIGHT, OWN.request, CANCELLED, 0)))


@pytest.mark.parametrize("status", [CANCELLED, UNHEARD])
def test_a_right_anchor_gives_up_when_it_is_told_so(status: int) -> None:
    talk = wait_for_ack((0, 0))
    tell(talk.rig, "a", LockStatus(CHAIN, LEFT, HERE.request, status, LEFT))
    [chain] = talk.rig.agent._life.chains.values()
    assert chain.changing is None


def test_a_right_anchor_that_missed_the_switch_follows() -> None:
    talk = wait_for_ack((0, 0))
    tell(talk.rig, "a", LockStatus(CHAIN, LEFT, HERE.request, 2, LEFT))
    assert right_anchor(talk).two is None
    tell(talk.rig, "a", LockStatus(CHAIN, LEFT, HERE.request, COMMITTED, LEFT, 5000))
    two = right_anchor(talk).two
    assert two is not None
    assert two.peer_cutoff == 5000


def test_a_right_anchor_that_is_told_to_give_up_answers() -> None:
    talk = wait_for_ack((0, 0))
    cancel = CancelLock(CHAIN, NEW_HOP, HERE.request, LEFT)
    talk.say((">>", "a", cancel), ("<<", "a", AckCancel(CHAIN, NEW_HOP, HERE.request)))
    [chain] = talk.rig.agent._life.chains.values()
    assert chain.changing is None


# Who asks.


def asked(first: int = 9, *, rightward: bool = False) -> RightRequest:
    return RightRequest(CHAIN, RIGHT, Change(61, first, first, OWN.hops, origin="d"), rightward)


def test_a_wish_goes_along_the_chain_to_its_left_anchor() -> None:
    talk = Talk()
    wish = asked(LEFT)
    talk.say((">>", "d", wish), ("<<", "a", replace(wish, hop=LEFT)))
    progress = Progress(CHAIN, LEFT, 61, Phase.LOCKED, True, "a")
    talk.say((">>", "a", progress), ("<<", "d", replace(progress, hop=RIGHT)))


def test_a_wish_that_is_refused_is_refused_again_when_it_comes_again() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    refused = Progress(CHAIN, RIGHT, 61, Phase.REFUSED, True, "b", "busy")
    talk.say((">>", "d", asked(RIGHT)), ("<<", "d", refused))
    talk.say((">>", "d", asked(RIGHT)), ("<<", "d", refused))


def test_who_asks_again_after_the_session_has_ended_hears_how_its_change_went() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    refused = Progress(CHAIN, RIGHT, 61, Phase.REFUSED, True, "b", "busy")
    talk.say((">>", "d", asked(RIGHT)), ("<<", "d", refused))
    [chain] = talk.rig.agent._life.chains.values()
    talk.rig.agent._life.close(chain, "reset", talk.rig.now)
    talk.rig.wait(120.0)
    talk.rig.messages.clear()
    tell(talk.rig, "d", asked(RIGHT))
    assert said(talk.rig, Progress) == [refused]


def test_a_wish_for_a_chain_that_its_left_anchor_does_not_know_ends_at_once() -> None:
    talk = Talk()
    talk.rig.agent.change(talk.key(), Change(62, LEFT, LEFT, OWN.hops, origin="b"), talk.rig.now)
    tell(talk.rig, "a", Progress(CHAIN, LEFT, 62, Phase.REFUSED, True, "a", "not found"))
    moved = [event for event in talk.rig.events(ChangeMoved) if isinstance(event, ChangeMoved)]
    assert [(one.phase, one.by, one.reason) for one in moved] == [("refused", "a", "not found")]


def test_a_wish_that_is_under_way_is_told_how_far_it_is() -> None:
    talk = Talk()
    tell(talk.rig, "d", asked(RIGHT))
    talk.rig.messages.clear()
    tell(talk.rig, "d", asked(RIGHT))
    assert ("d", Progress(CHAIN, RIGHT, 61, Phase.REQUESTED, True)) in talk.rig.messages


def test_a_wish_that_nobody_answers_ends() -> None:
    talk = Talk()
    talk.rig.agent.change(talk.key(), Change(62, LEFT, LEFT, OWN.hops, origin="b"), talk.rig.now)
    talk.rig.wait(120.0)
    moved = [event for event in talk.rig.events(ChangeMoved) if isinstance(event, ChangeMoved)]
    assert [(one.phase, one.reason) for one in moved] == [("aborted", "no answer")]
    assert len(said(talk.rig, RightRequest)) > 3


def test_a_wish_ends_with_its_session() -> None:
    talk = Talk()
    talk.rig.agent.change(talk.key(), Change(62, LEFT, LEFT, OWN.hops, origin="b"), talk.rig.now)
    talk.rig.take()
    assert len(said(talk.rig, RightRequest)) == 1
    [chain] = talk.rig.agent._life.chains.values()
    talk.rig.agent._life.close(chain, "reset", talk.rig.now)
    moved = [event for event in talk.rig.events(ChangeMoved) if isinstance(event, ChangeMoved)]
    assert [(one.phase, one.reason) for one in moved] == [("aborted", "the session has ended")]
    talk.rig.messages.clear()
    talk.rig.wait(120.0)
    assert talk.rig.messages == []


def test_a_change_that_names_nobody_is_refused() -> None:
    talk = Talk()
    talk.rig.agent.change(talk.key(), replace(OWN, hops=Hops()), talk.rig.now)
    [moved] = talk.rig.events(ChangeMoved)
    assert isinstance(moved, ChangeMoved)
    assert moved.reason == "the change does not name its right anchor"


# Who joins.


@pytest.mark.parametrize(
    ("rig", "message", "reason"),
    [
        (Rig(boxes=[KERNEL_BOX]), replace(INVITATION, hops=Hops((Hop(address(3)), Hop(address(4))))),
         "this host is not the hop that the change names"),
        (Rig(boxes=[KERNEL_BOX], peers=lambda peer: replace(peer, accept=False)), INVITATION,
         "a may not send chains here"),
        (Rig(boxes=[KERNEL_BOX], peers=lambda peer: replace(peer, may_change=lambda _: False)), INVITATION,
         "a may not send chains here"),
        (Rig(boxes=[KERNEL_BOX]), replace(INVITATION, hops=Hops((INVITATION.hops[0], Hop(address(9))))),
         "the next hop is no peer of this host"),
        (Rig(boxes=[KERNEL_BOX], peers=lambda peer: replace(peer, next_hops=frozenset("c"))), INVITATION,
         "a may not go on to d"),
        (Rig(boxes=[KERNEL_BOX], up="a"), INVITATION, "no association with d"),
        (Rig(), INVITATION, "no such middlebox here"),
        (Rig(boxes=[replace(KERNEL_BOX, drained=True)]), INVITATION, "fw is drained"),
        (Rig(boxes=[replace(NAT_BOX, tag=KERNEL_BOX.tag)]), INVITATION,
         "nat changes tuples and cannot join a live session"),
    ],
)  # fmt: skip
def test_who_cannot_join_says_why(rig: Rig, message: Syn, reason: str) -> None:
    tell(rig, "a", message)
    assert rig.messages == [("a", NackSyn(CHAIN, LABEL, JOINED, "b", reason))]
    assert rig.state() == []


def test_an_invitation_that_comes_again_is_passed_on_again() -> None:
    rig = joined(rehearsed=False)
    first = said(rig, Syn)
    tell(rig, "a", INVITATION)
    assert said(rig, Syn) == first * 2
    assert len(rig.state()) == 1


def test_who_has_joined_goes_when_somebody_further_on_refuses() -> None:
    rig = joined(rehearsed=False)
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    rig.messages.clear()
    tell(rig, "d", NackSyn(CHAIN, chain.right.hop, JOINED, "d", "no"))
    assert rig.messages == [("a", NackSyn(CHAIN, LABEL, JOINED, "d", "no"))]
    assert rig.state() == []


@pytest.mark.parametrize("committed", [False, True])
def test_who_has_joined_comes_back_after_a_restart(committed: bool) -> None:
    rig = joined(rehearsed=True)
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    if committed:
        tell(rig, "a", Ack(CHAIN, LABEL, JOINED, 5001, 901, True))
        tell(rig, "d", AckAck(CHAIN, chain.right.hop, JOINED, 901, 5001))
    [(_, data)] = rig.agent.records()
    assert read_record(data, rig.settings.boxes, rig.now) is not None
    after = Rig(boxes=[KERNEL_BOX])
    assert after.agent.restore(data, after.now)
    after.wait(31.0)
    assert after.state() == (["established"] if committed else [])


def test_a_lock_that_was_not_there_is_not_granted() -> None:
    talk = Talk()
    talk.say((">>", "d", AckLock(CHAIN, RIGHT, ONE.request)))
    assert talk.lock() is None
    talk.say(ASKED, PASSED)
    assert talk.lock() == (LockState.PENDING, ONE.request)


def test_a_mandatory_box_may_be_replaced_and_not_taken_out() -> None:
    talk = Talk()
    [chain] = talk.rig.agent._life.chains.values()
    assert isinstance(chain.box, LocalBox)
    chain.box = replace(chain.box, mandatory=True)
    talk.say(ASKED, ("<<", "a", NackLock(CHAIN, LEFT, ONE.request, "b", "pair is mandatory")))
    other = replace(ONE, request=79, hops=Hops((Hop(both(3)[0]), *ONE.hops)))
    talk.say((">>", "a", request(other, LEFT)), ("<<", "d", request(other, RIGHT, (5, -7))))


# What is remembered has its bounds, what is asked for must be there.


def test_how_changes_have_ended_is_forgotten_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dysco.protocol.wishes._MOST_OUTCOMES", 2)
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    wishes = [
        replace(asked(RIGHT), change=replace(asked(RIGHT).change, request=number)) for number in (61, 62, 63)
    ]
    for wish in wishes:
        tell(talk.rig, "d", wish)
    tell(talk.rig, "a", CancelLock(CHAIN, LEFT, ONE.request, RIGHT))
    talk.rig.messages.clear()
    for wish in (wishes[2], wishes[0]):
        tell(talk.rig, "d", wish)
    refused, begun = [message for _, message in talk.rig.messages if isinstance(message, Progress)]
    assert (refused.request, refused.phase) == (63, Phase.REFUSED)
    assert (begun.request, begun.phase) == (61, Phase.REQUESTED)


def test_what_was_cancelled_is_forgotten_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dysco.protocol.ground._MOST_COMPLETED", 2)
    rig = Rig()
    for number in (5, 6, 7):
        tell(rig, "a", CancelLock(NOBODY, 9, number, 1))
    rig.messages.clear()
    for number in (5, 7):
        tell(rig, "d", AckLock(NOBODY, 9, number))
    assert rig.messages == [("d", CancelLock(NOBODY, 9, 7, 1))]


def rehearsal(number: int) -> Packet:
    tuple_ = FiveTuple.of(address(1), 61000 + number, address(2), 62000)
    return build_tcp(tuple_, 5000, 0, SYN, REHEARSED_WINDOW, MSS_1460)


def test_the_oldest_path_handshake_that_has_overtaken_its_message_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dysco.protocol.ground._MOST_OVERTAKEN", 2)
    rig = Rig()
    kept = [rehearsal(number) for number in (1, 3, 5)]
    for packet in kept:
        assert rig.feed(UNDERLAY, packet) == []
    relay = Hops((Hop(address(2)), Hop(address(4))))
    for packet, passes in zip(kept, (False, True, True), strict=True):
        five_tuple = read(packet).five_tuple
        chain_id = bytes((five_tuple.sport & 0xFF,)) * 16
        invitation = replace(INVITATION, chain_id=chain_id, subsession=five_tuple, hops=relay)
        rig.agent.receive_message("a", invitation, rig.now)
        assert bool(rig.take()) == passes


def test_who_is_inside_of_another_change_answers_a_path_handshake_that_has_come_early() -> None:
    talk = Talk()
    talk.say(ASKED, PASSED)
    tell(talk.rig, "a", request(HERE, LEFT))
    early = build_tcp(NEW_PATH, 5000, 0, SYN, REHEARSED_WINDOW, MSS_1460)
    assert talk.rig.feed(UNDERLAY, early) == []
    talk.rig.agent.receive_message("a", new_path(HERE), talk.rig.now)
    [(port, answer), _] = talk.rig.take()
    assert (port, read(answer).five_tuple, read(answer).ack) == (UNDERLAY, NEW_PATH.reversed(), 5001)


def test_a_path_handshake_that_has_overtaken_its_message_is_answered_with_it() -> None:
    talk = Talk()
    tell(talk.rig, "a", request(HERE, LEFT))
    early = build_tcp(NEW_PATH, 5000, 0, SYN, REHEARSED_WINDOW, MSS_1460)
    assert talk.rig.feed(UNDERLAY, early) == []
    talk.rig.agent.receive_message("a", new_path(HERE), talk.rig.now)
    [(_, answer), _] = talk.rig.take()
    assert (read(answer).flags, read(answer).ack) == (SYN | ACK, 5001)


@pytest.mark.parametrize(
    ("where", "changed", "reason"),
    [
        (address(9), {}, "the next hop is no peer of this host"),
        (address(4, 6), {"addresses": (address(2),)}, "no address of this family"),
        (address(3), {}, "no association with c"),
    ],
)
def test_a_change_needs_a_way_to_its_first_host(
    where: bytes, changed: dict[str, object], reason: str
) -> None:
    talk = Talk()
    talk.rig.agent.peer_down("c", talk.rig.now)
    talk.rig.agent.configure(replace(talk.rig.settings, **changed), lambda _, __: None)  # type: ignore[arg-type]
    talk.rig.agent.change(talk.key(), replace(OWN, hops=Hops((Hop(where), Hop(address(4))))), talk.rig.now)
    [moved] = talk.rig.events(ChangeMoved)
    assert isinstance(moved, ChangeMoved)
    assert (moved.phase, moved.reason) == ("refused", reason)


def test_a_change_needs_ports() -> None:
    rig = Rig(decision=Decision("web", (Hop(address(4)),)), port_range=(61000, 61001))
    rig.agent.peer_up("d", Hello(name="d", port_range=(61000, 61001)), b"D" * 32, b"d" * 32, rig.now)
    rig.establish(session(2))
    rig.one(HOST, build_tcp(session(2), 1001, 9001, ACK, 64240))
    [key] = rig.agent._life.chains
    reasons = []
    for number in range(3):
        rig.events()
        rig.agent.change(key, Change(100 + number, 1, 1, OWN.hops, origin="b"), rig.now)
        reasons += [event.reason for event in rig.events(ChangeMoved) if isinstance(event, ChangeMoved)]
        tell(rig, "d", NackLock(key[:16], 1, 100 + number, "d", "no"))
    assert reasons == ["", "no free ports", "no free ports"]


def test_a_change_that_is_being_given_up_is_told_once_more_when_its_session_ends() -> None:
    talk = Talk()
    talk.ask_own()
    talk.rig.wait(6.5)  # nobody answers, so it is being cancelled
    talk.rig.messages.clear()
    [chain] = talk.rig.agent._life.chains.values()
    talk.rig.agent._life.close(chain, "reset", talk.rig.now)
    talk.rig.take()
    assert said(talk.rig, CancelLock) == []  # what is being told goes on as it was
    talk.rig.wait(1.6)
    assert {one.hop for one in said(talk.rig, CancelLock) if isinstance(one, CancelLock)} >= {RIGHT}
    talk.rig.wait(60.0)
    assert talk.rig.agent.leftovers() == []


# Small things.


def test_a_session_that_a_peer_has_forgotten_is_counted() -> None:
    rig = Rig()
    tell(rig, "a", Gone(CHAIN, "restarted"))
    assert rig.agent.counters["gone"] == 1
    assert rig.messages == []


def test_counters_of_headers_may_come_from_elsewhere() -> None:
    rig = Rig(decision=to_c())
    rig.begin(session(2))
    assert rig.agent.draw_counters("c", lambda: 777) == 1
    _, out = rig.one(HOST, syn(session(2, port=40001)))
    assert header_of(out).counter == 777
    rig.agent.draw_counters("c", None)
    _, out = rig.one(HOST, syn(session(2, port=40002)))
    assert header_of(out).counter == 778


def test_events_come_one_by_one_or_all_together() -> None:
    rig = Rig(decision=to_c())
    rig.establish()
    first = rig.agent.next_event()
    rest = rig.agent.events()
    assert isinstance(first, SessionOpened)
    assert [type(event) for event in rest] == [SessionEstablished, SessionRecord]
    assert rig.agent.events() == []
    assert rig.agent.next_event() is None


def test_nothing_is_watched_unless_it_is_asked_for() -> None:
    assert Rig().settings.watch is unwatched
    assert not unwatched(session(), True)
    assert anything(session())
