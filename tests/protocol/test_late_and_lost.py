"""Messages that find the state of before or after, and packets beside them: each is for one such moment.

a --1-- b (this agent, with a box) --2-- d       as in test_locks.py
"""

from __future__ import annotations

from dataclasses import replace

from dysco.protocol.chain import FORWARD_FIN, Chain, Facing, Seam, Terms, facing_agent, facing_host
from dysco.protocol.changes import UNHEARD
from dysco.protocol.changing import Phase
from dysco.protocol.flow import FIRST_BOX, UNDERLAY, Translation
from dysco.protocol.right import join
from dysco.protocol.switching import BEGUN_AGAIN
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckCancel,
    AckLock,
    CancelLock,
    Change,
    Hops,
    LockQuery,
    LockStatus,
    NackSyn,
    OldDead,
    OldDone,
    Progress,
    RenewLock,
    RequestLock,
    RightRequest,
    Syn,
    SynAck,
)
from dysco.wire.packet import ACK, FIN, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import KERNEL_BOX, Rig, address, read, session, syn_ack, to_c
from protocol.test_guards import RECEIVED, SENT, chain_of, finished_right_anchor, joined, said, tell
from protocol.test_joined_anchors import again, joined_left, left_stamped, reset_old, stamp
from protocol.test_joining import INVITATION, LABEL
from protocol.test_joining import REQUEST as JOINED
from protocol.test_left_anchor import two_paths
from protocol.test_locks import CHAIN, HERE, LEFT, NEW_HOP, NEW_PATH, OWN, RIGHT, Talk, new_path, request
from protocol.test_right_anchor import UNDER_WAY, waiting
from protocol.test_right_anchor import two_paths as right_two_paths


def first() -> tuple[Rig, bytes]:
    """b as the first host of all, and its chain's id."""
    rig = Rig(decision=to_c())
    rig.establish()
    rig.messages.clear()
    [key] = rig.agent._life.chains
    return rig, key[:16]


# Nothing of it is here any more, or yet.


def test_a_cancel_of_what_was_never_asked_for_is_acknowledged() -> None:
    talk = Talk()
    talk.say((">>", "a", CancelLock(CHAIN, LEFT, 99, LEFT)), ("<<", "a", AckCancel(CHAIN, LEFT, 99)))


def test_the_first_host_of_all_is_sure_that_it_has_not_heard_of_a_change() -> None:
    rig, chain_id = first()
    tell(rig, "c", LockQuery(chain_id, 1, 5))
    assert rig.messages == [("c", LockStatus(chain_id, 1, 5, UNHEARD, 0))]


def test_a_wish_that_leads_beyond_the_first_host_is_not_found() -> None:
    rig, chain_id = first()
    change = Change(61, 99, 99, OWN.hops, origin="c")
    tell(rig, "c", RightRequest(chain_id, 1, change))
    assert rig.messages == [("c", Progress(chain_id, 1, 61, Phase.REFUSED, True, "b", "not found"))]


def test_a_lock_that_is_asked_for_again_when_its_change_is_done_is_not_answered() -> None:
    talk, _ = finished_right_anchor()
    tell(talk.rig, "a", request(HERE, LEFT))
    assert talk.rig.messages == []


def test_who_renews_a_lock_that_nobody_has_hears_that_the_old_path_is_dead() -> None:
    rig = Rig()
    tell(rig, "a", RenewLock(b"no-such-chain-00", 9, 5, 3))
    assert rig.messages == [("a", OldDead(b"no-such-chain-00", 9, 5, False, 0, 0))]


def test_a_lock_that_is_renewed_when_its_change_is_done_does_not_belong_to_a_dead_path() -> None:
    talk, _ = finished_right_anchor()
    tell(talk.rig, "a", RenewLock(CHAIN, LEFT, HERE.request, LEFT))
    assert talk.rig.messages == []


def test_a_switch_that_is_nothing_to_this_host_is_passed_on() -> None:
    talk = Talk()
    switched, answer = Ack(CHAIN, LEFT, 5, 1, 1), AckAck(CHAIN, RIGHT, 5, 1, 1)
    talk.say((">>", "a", switched), ("<<", "d", replace(switched, hop=RIGHT)))
    talk.say((">>", "d", answer), ("<<", "a", replace(answer, hop=LEFT)))


def test_an_end_that_comes_before_both_cutoffs_are_known() -> None:
    rig = joined(rehearsed=True)
    tell(rig, "a", Ack(CHAIN, LABEL, JOINED, 5001, 901, True))
    tell(rig, "a", OldDone(CHAIN, LABEL, JOINED, True, 0))
    rig.wait(60.0)
    assert rig.state() == ["established"]


def test_a_left_anchor_that_has_begun_again_invites_in_vain_until_the_first_invitation_is_over() -> None:
    rig = joined(rehearsed=False)
    rig.messages.clear()
    other = FiveTuple.of(address(1), 61009, address(2), 61010)
    second = replace(INVITATION, hop=LABEL + 1, subsession=other)
    tell(rig, "a", second)
    assert rig.messages == [("a", NackSyn(CHAIN, LABEL + 1, JOINED, "b", BEGUN_AGAIN))]
    rig.wait(31.0)
    rig.messages.clear()
    tell(rig, "a", second)
    assert [type(one) for to, one in rig.messages if to == "d"] == [Syn]


def test_two_hops_of_a_new_path_on_one_host_of_which_the_second_refuses() -> None:
    rig = Rig(boxes=[KERNEL_BOX])
    hops = Hops((Hop(address(2), KERNEL_BOX.tag), Hop(address(2), 9), Hop(address(4))))
    tell(rig, "a", replace(INVITATION, hops=hops))
    assert rig.messages == [("a", NackSyn(CHAIN, LABEL, JOINED, "b", "no such middlebox here"))]
    assert rig.state() == []


# An agent that has begun again.


def test_a_joined_anchor_without_timestamps_comes_back() -> None:
    talk, _ = joined_left()
    rig = again(talk)
    asked = [read(packet) for port, packet in rig.take() if port == FIRST_BOX + 1]
    assert [one.five_tuple for one in asked] == [chain_of(talk).session_out.reversed()]


def waiting_joined() -> tuple[Rig, Talk]:
    """A right anchor that waits, where chains are joined, and has begun again."""
    talk = Talk()
    asked = request(HERE, LEFT)
    assert isinstance(asked, RequestLock)
    tell(talk.rig, "a", replace(asked, joined=True))
    tell(talk.rig, "a", new_path(HERE))
    assert said(talk.rig, AckLock)
    assert said(talk.rig, SynAck)
    rig = again(talk)
    rig.take()
    return rig, talk


SWITCHED = Ack(CHAIN, NEW_HOP, HERE.request, 1001, 8994, True)


def test_the_left_anchors_word_is_taken_for_what_the_old_path_does_not_show_any_more() -> None:
    rig, talk = waiting_joined()
    rig.feed(FIRST_BOX, build_tcp(chain_of(talk).session_in.reversed(), 8994, 1001, ACK, 1000))
    tell(rig, "a", SWITCHED)
    assert said(rig, AckAck) == [AckAck(CHAIN, NEW_HOP, HERE.request, 8994, 1001)]


def test_what_the_old_path_shows_needs_no_word_but_the_ends() -> None:
    rig, talk = waiting_joined()
    rig.feed(UNDERLAY, build_tcp(chain_of(talk).left.tuple, 1001, 8994, ACK, 1000))
    rig.agent.receive_message("a", SWITCHED, rig.now)
    [(port, asked)] = rig.take()
    assert (port, read(asked).five_tuple) == (FIRST_BOX, chain_of(talk).session_in)
    assert said(rig, AckAck) == []


def test_where_no_chains_are_joined_nothing_is_presumed() -> None:
    talk, _ = waiting()
    rig = again(talk)
    rig.take()
    rig.agent.receive_message("a", SWITCHED, rig.now)
    assert rig.take() == []  # nobody could answer a number that is made up
    assert said(rig, AckAck) == []


# Packets of two paths.


def test_bare_acknowledgements_of_the_old_path_are_no_sign_of_life() -> None:
    """They may be reminders of the other anchor."""
    talk, _ = two_paths()
    [before] = talk.rig.agent.sessions()
    assert talk.rig.feed(UNDERLAY, build_tcp(talk.right.reversed(), RECEIVED, SENT, ACK, 64240)) == []
    [after] = talk.rig.agent.sessions()
    assert after.packets == before.packets
    data = build_tcp(talk.right.reversed(), RECEIVED, SENT, ACK, 64240, b"", b"x")
    assert len(talk.rig.feed(UNDERLAY, data)) == 1
    [after] = talk.rig.agent.sessions()
    assert after.packets == before.packets + 1


def test_the_end_of_a_proxy_and_what_it_says_when_it_is_dead_go_nowhere() -> None:
    talk, _ = joined_left()
    old = talk.right.reversed()
    assert talk.rig.feed(UNDERLAY, build_tcp(old, RECEIVED, SENT, ACK | FIN, 64240)) == []
    assert talk.rig.state() == ["established"]
    [(_, inner)] = talk.rig.feed(UNDERLAY, build_tcp(old, RECEIVED, SENT, ACK, 64240, b"", b"x"))
    assert read(inner).payload_len == 1
    reset_old(talk)
    assert talk.rig.feed(UNDERLAY, build_tcp(old, RECEIVED + 1, SENT, ACK, 64240, b"", b"x")) == []


def test_what_is_repeated_for_the_old_path_has_its_timestamps() -> None:
    talk, anchor = left_stamped()
    assert anchor.new is not None
    fresh = build_tcp(anchor.new.tuple.reversed(), 9001, 1001, ACK, 1, stamp(703, 77), b"x")
    talk.rig.feed(UNDERLAY, fresh)
    probe = build_tcp(chain_of(talk).session_out, 1000, 9002, ACK, 64240, stamp(79, 8))
    out = {read(one).five_tuple: bytes(one.data) for _, one in talk.rig.feed(FIRST_BOX + 1, probe)}
    assert stamp(79, 5) in out[talk.right]


def test_an_end_that_comes_on_the_new_path_is_the_sessions() -> None:
    talk, numbers = right_two_paths()
    fin = build_tcp(NEW_PATH, numbers.received + UNDER_WAY, numbers.sent, ACK | FIN, 1)
    assert len(talk.rig.feed(UNDERLAY, fin)) == 1
    assert talk.rig.state() == ["half-closed"]
    [chain] = talk.rig.agent._life.chains.values()
    assert chain.fins == FORWARD_FIN


# Numbers and terms.


def test_translations_of_both_sides_are_one_where_no_box_is_between() -> None:
    left = facing_agent(FiveTuple.of(address(1), 61001, address(2), 61002), "a", 1, opened=False)
    left.sums = (3, 5)
    right = facing_agent(FiveTuple.of(address(2), 61003, address(4), 61004), "d", 2, opened=True)
    right.seam = Seam(b"", 7, Terms(2, -2, True, False))
    chain = Chain(bytes(17), left, session(), "", None, 0.0)
    chain.right = right
    forward, backward = (flow.translation for flow in chain.right_flows())
    assert forward is not None
    assert backward is not None

    def all_of(one: Translation) -> tuple[int | bool, ...]:
        return (
            one.seq_delta,
            one.ack_delta,
            one.tsval_delta,
            one.tsecr_delta,
            one.window_shift,
            one.strip_sack,
        )

    assert all_of(forward) == (3, -5, 0, -7, -2, False)
    assert all_of(backward) == (5, -3, 7, 0, 2, True)
    assert not forward.is_plain
    assert not backward.is_plain
    assert Translation(1, 2, 3, 4).is_plain


def test_a_right_facing_keeps_the_name_that_an_earlier_splice_gave_it() -> None:
    old = facing_agent(FiveTuple.of(address(1), 61001, address(2), 61002), "b", 1, opened=False)
    new = facing_agent(FiveTuple.of(address(1), 61005, address(2), 61006), "a", 300, opened=False)
    onward = facing_agent(FiveTuple.of(address(2), 61003, address(4), 61004), "d", 2, opened=True)
    message = replace(INVITATION, chain_id=b"L" * 16)
    for before, after in ((None, b"R" * 16), (Seam(b""), b"R" * 16), (Seam(b"E" * 16), b"E" * 16)):
        chain = Chain(b"R" * 16 + b"\1", old, session(), "", None, 0.0)
        chain.right, onward.seam = onward, before
        join(chain, new, old, message)
        assert onward.seam is not None
        assert onward.seam.chain_id == after
    end: Facing = facing_host(session())
    chain.right = end
    join(chain, new, old, message)
    assert end.seam is None


def test_a_syn_ack_that_comes_again_says_nothing_of_numbers_that_are_translated() -> None:
    rig = Rig(decision=to_c())
    sub = rig.begin()
    rig.one(UNDERLAY, syn_ack(sub))
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    chain.right.seam = Seam(b"", 5)
    before = chain.right.handshake
    rig.feed(UNDERLAY, syn_ack(sub, isn=77))
    assert chain.right.handshake == before
    assert rig.state() == ["established"]
