"""Both anchors where chains are joined between them: a proxy that dies, and timestamps that nobody has shown.

a --1-- b (this agent) --2-- d       as in test_left_anchor.py and test_right_anchor.py; a proxy lies on the old path
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.changing import LeftAnchor
from dysco.protocol.events import ChangeMoved, SessionClosed
from dysco.protocol.flow import FIRST_BOX, HOST, UNDERLAY
from dysco.protocol.ground import Numbers
from dysco.protocol.life import ASK_S, RESET_S
from dysco.protocol.rescue import AGREED, GRACE_S, OPEN, OVER, SAVED, SILENT_S
from dysco.protocol.stamps import AHEAD
from dysco.protocol.switching import ALARM_S
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckCancel,
    AckLock,
    CancelLock,
    LockQuery,
    OldDead,
    OldDone,
    RequestLock,
    SynAck,
    SynRefused,
)
from dysco.wire.numbers import FAR
from dysco.wire.packet import ACK, FIN, PSH, RST, SYN, build_tcp
from protocol.rig import PAIR_BOX, Rig, hops, read, session, syn_ack
from protocol.test_guards import RECEIVED, SENT, chain_of, finished_right_anchor, said, shake, tell
from protocol.test_left_anchor import from_inside, label, start
from protocol.test_left_anchor import moves as left_moves
from protocol.test_left_anchor import two_paths as left_two_paths
from protocol.test_locks import (
    CHAIN,
    HERE,
    LEFT,
    NEW_HOP,
    NEW_PATH,
    OWN,
    RIGHT,
    Talk,
    new_path,
    request,
    wait_for_ack,
)
from protocol.test_right_anchor import UNDER_WAY

DEAD = "the proxy is dead; "


def joined_left() -> tuple[Talk, LeftAnchor]:
    """b as a left anchor with two paths, and a proxy on the old one."""
    talk, anchor = start()
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request, True))
    tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request))
    shake(talk, anchor)
    assert left_moves(talk)[-1] == ("two paths", "")
    return talk, anchor


def reset_old(talk: Talk) -> None:
    """The proxy resets the session on the old path."""
    assert talk.rig.feed(UNDERLAY, build_tcp(talk.right.reversed(), RECEIVED, 0, RST, 0)) == []


def dead(anchor: LeftAnchor, acked: int, answered: int, verdict: int = OPEN) -> OldDead:
    """What the right anchor says of the proxy."""
    return OldDead(CHAIN, label(anchor), OWN.request, False, acked, answered, verdict)


def closed(rig: Rig) -> list[str]:
    return [one.reason for one in rig.events(SessionClosed) if isinstance(one, SessionClosed)]


def test_a_reset_of_the_proxy_is_not_that_of_the_session_and_the_other_anchor_is_told() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    assert talk.rig.state() == ["established"]
    assert said(talk.rig, OldDead) == [OldDead(CHAIN, label(anchor), OWN.request, True, SENT, RECEIVED)]
    talk.rig.wait(1.0)
    assert len(said(talk.rig, OldDead)) > 2
    assert talk.rig.agent.counters["proxy_dead"] == 1


def test_a_fin_of_the_proxy_before_all_has_passed_it_is_not_that_of_the_session_either() -> None:
    talk, anchor = joined_left()
    tell(talk.rig, "d", AckAck(CHAIN, label(anchor), OWN.request, RECEIVED + 100, SENT))
    fin = build_tcp(talk.right.reversed(), RECEIVED, SENT, ACK | FIN, 64240)
    assert talk.rig.feed(UNDERLAY, fin) == []
    assert talk.rig.state() == ["established"]
    assert said(talk.rig, OldDead) == [OldDead(CHAIN, label(anchor), OWN.request, True, SENT, RECEIVED)]
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT, AGREED))
    assert left_moves(talk)[-1] == ("done", "")


def test_a_right_anchor_knows_such_a_fin_by_its_own_numbers() -> None:
    talk, numbers = joined_right()
    old = chain_of(talk).left.tuple
    far = Ack(CHAIN, NEW_HOP, HERE.request, numbers.received + 100, numbers.sent, False)
    tell(talk.rig, "a", far)
    assert talk.rig.feed(UNDERLAY, build_tcp(old, numbers.received, numbers.sent, ACK | FIN, 64240)) == []
    assert talk.rig.state() == ["established"]
    assert len(said(talk.rig, OldDead)) == 1


def test_a_fin_of_the_end_that_comes_by_way_of_the_proxy_is_that_of_the_session() -> None:
    talk, anchor = joined_left()
    tell(talk.rig, "d", AckAck(CHAIN, label(anchor), OWN.request, RECEIVED + 1, SENT))
    fin = build_tcp(talk.right.reversed(), RECEIVED, SENT, ACK | FIN, 64240)
    [(_, inner)] = talk.rig.feed(UNDERLAY, fin)
    assert read(inner).flags & FIN
    assert talk.rig.state() == ["half-closed"]
    assert said(talk.rig, OldDead) == []


def test_a_fin_of_the_application_is_that_of_the_session() -> None:
    talk, _ = joined_left()
    fin = build_tcp(chain_of(talk).left.tuple, 1001, 9001, ACK | FIN, 64240)
    assert len(talk.rig.feed(UNDERLAY, fin)) == 1
    assert talk.rig.state() == ["half-closed"]


def test_an_anchor_whose_half_is_empty_has_told_the_proxys_host_already() -> None:
    talk, anchor = joined_left()
    tell(talk.rig, "d", AckAck(CHAIN, label(anchor), OWN.request, RECEIVED, SENT))
    assert left_moves(talk)[-1] == ("drained", "")
    told = len(said(talk.rig, OldDone))
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT, SAVED))
    assert left_moves(talk)[-1] == ("done", "")
    assert len(said(talk.rig, OldDone)) == told


def test_if_all_has_come_that_was_acknowledged_the_session_goes_on() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    for _ in range(2):
        tell(talk.rig, "d", dead(anchor, RECEIVED, SENT))
    # It says at once that it agrees; who has not heard that may still give up.
    assert [one.verdict for one in said(talk.rig, OldDead) if isinstance(one, OldDead)] == [OPEN, AGREED]
    assert left_moves(talk) == []
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT, AGREED))
    assert left_moves(talk)[-1] == ("done", "")
    assert talk.rig.agent.counters["proxy_survived"] == 1
    [(_, out)] = from_inside(talk, SENT, 5)
    assert anchor.new is not None
    assert read(out).five_tuple == anchor.new.tuple


def test_if_the_other_anchor_has_gone_on_so_does_this_one() -> None:
    talk, anchor = joined_left()
    tell(talk.rig, "d", dead(anchor, RECEIVED + 50, SENT - 50, SAVED))
    assert left_moves(talk)[-1] == ("done", "")


def test_if_the_other_anchor_cannot_go_on_neither_does_this_one() -> None:
    talk, anchor = joined_left()
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT, OVER))
    assert left_moves(talk)[-1] == ("aborted", DEAD + "the other side cannot go on without it")
    talk.rig.wait(6.0)
    assert closed(talk.rig) == ["bypassed"]


def test_what_was_acknowledged_and_has_not_come_is_lost_after_a_while() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    for _ in range(6):
        tell(talk.rig, "d", dead(anchor, RECEIVED + 70, SENT))
        talk.rig.wait(GRACE_S / 4)
    what = "70 bytes that it was to pass on have not come to this side"
    assert [one for one in left_moves(talk) if one[0] == "aborted"] == [("aborted", DEAD + what)]
    talk.rig.wait(6.0)
    assert closed(talk.rig) == ["bypassed"]


def test_what_is_lost_at_the_other_side_is_said_here_too_and_there_that_it_is_over() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    for _ in range(6):
        tell(talk.rig, "d", dead(anchor, RECEIVED, SENT - 30))
        talk.rig.wait(GRACE_S / 4)
    what = "30 bytes that it was to pass on have not come to the other side"
    assert [one for one in left_moves(talk) if one[0] == "aborted"] == [("aborted", DEAD + what)]
    last = said(talk.rig, OldDead)[-1]
    assert isinstance(last, OldDead)
    assert last.verdict == OVER


def test_what_is_missing_may_still_be_acknowledged() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT - 10))
    assert left_moves(talk) == []
    talk.rig.wait(GRACE_S / 2)
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT))
    last = said(talk.rig, OldDead)[-1]
    assert isinstance(last, OldDead)
    assert last.verdict == AGREED


def test_an_anchor_that_agrees_gives_up_when_the_other_one_does() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT))
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT, OVER))
    assert left_moves(talk)[-1] == ("aborted", DEAD + "the other side cannot go on without it")


def test_an_anchor_that_agrees_does_not_wait_for_ever() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT))
    talk.rig.wait(ALARM_S - 2.0)
    assert talk.rig.state() == ["established"]
    talk.rig.wait(4.0)
    assert left_moves(talk)[-1] == ("aborted", DEAD + "the other side does not go on")


def test_an_anchor_that_says_nothing_does_not_have_the_session_any_more() -> None:
    talk, _ = joined_left()
    reset_old(talk)
    talk.rig.wait(SILENT_S - 1)
    assert talk.rig.state() == ["established"]
    talk.rig.wait(4.0)
    moved = left_moves(talk)
    assert moved[-1] == ("aborted", DEAD + "the other side does not tell what has come")


def test_an_anchor_that_has_said_that_its_half_is_empty_may_have_gone_on_and_is_asked_longer() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    tell(talk.rig, "d", OldDone(CHAIN, label(anchor), OWN.request, False, 0, waiting=True))
    talk.rig.wait(SILENT_S + 4.0)
    assert [phase for phase, _ in left_moves(talk)] == ["stuck"]  # and not aborted
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT, SAVED))
    assert left_moves(talk)[-1] == ("done", "")


def test_an_anchor_that_has_said_that_its_half_is_empty_is_not_asked_for_ever() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    tell(talk.rig, "d", OldDone(CHAIN, label(anchor), OWN.request, False, 0))
    talk.rig.wait(ALARM_S + 4.0)
    assert left_moves(talk)[-1] == ("aborted", DEAD + "the other side does not tell what has come")


def test_before_the_switch_nobody_hears_of_a_dead_proxy() -> None:
    talk, anchor = start()
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request, True))
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT, OVER))
    assert talk.rig.state() == ["established"]
    assert left_moves(talk) == [("requested", ""), ("locked", "")]


def test_a_left_anchor_that_has_passed_a_reset_on_does_not_switch() -> None:
    talk, anchor = start()
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request, True))
    tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request))
    reset = build_tcp(talk.right.reversed(), RECEIVED, 0, RST, 0)
    assert [read(packet).flags for _, packet in talk.rig.feed(UNDERLAY, reset)] == [RST]
    shake(talk, anchor)
    assert said(talk.rig, Ack) == []
    assert len(said(talk.rig, CancelLock)) == 2  # along both paths
    tell(talk.rig, "d", AckCancel(CHAIN, RIGHT, OWN.request))
    assert left_moves(talk)[-1] == ("aborted", "the session was reset")


def test_where_no_proxy_is_none_is_dead() -> None:
    talk, anchor = left_two_paths()
    for verdict in (OPEN, SAVED, OVER):
        tell(talk.rig, "d", dead(anchor, RECEIVED, SENT, verdict))
    assert left_moves(talk) == []
    assert said(talk.rig, OldDead) == []


def test_who_is_done_says_so_of_a_proxy_that_died_since() -> None:
    talk, _ = finished_right_anchor()
    tell(talk.rig, "a", OldDead(CHAIN, NEW_HOP, HERE.request, True, 1, 2))
    assert said(talk.rig, OldDead) == [OldDead(CHAIN, NEW_HOP, HERE.request, False, 1, 2, SAVED)]
    # That is such an answer itself: were it answered, two that are done would go on for ever.
    tell(talk.rig, "a", OldDead(CHAIN, NEW_HOP, HERE.request, True, 1, 2, SAVED))
    assert len(said(talk.rig, OldDead)) == 1


def test_an_old_path_that_is_stuck_and_whose_host_is_gone_has_a_dead_proxy() -> None:
    talk, _ = joined_left()
    talk.rig.wait(70.0)
    assert said(talk.rig, OldDead) == []
    talk.rig.agent.peer_down("d", talk.rig.now)
    talk.rig.wait(15.0)
    assert said(talk.rig, OldDead) != []


def test_a_host_of_the_old_path_that_knows_nothing_any_more_has_a_dead_proxy() -> None:
    talk, _ = joined_left()
    tell(talk.rig, "d", OldDead(CHAIN, RIGHT, OWN.request, False, 0, 0))
    assert said(talk.rig, OldDead) != []
    assert talk.rig.agent.counters["proxy_dead"] == 1


def test_an_end_that_is_to_be_reset_is_asked_until_it_answers() -> None:
    talk, anchor = joined_left()
    reset_old(talk)
    tell(talk.rig, "d", dead(anchor, RECEIVED, SENT, OVER))
    chain = chain_of(talk)
    assert chain.right is not None
    ends = [chain.left.tuple.reversed(), chain.right.tuple]
    assert [read(packet).five_tuple for _, packet in talk.rig.wait(2.5 * ASK_S)] == 2 * ends
    answer = build_tcp(ends[0].reversed(), 1001, 9001, ACK, 64240)
    talk.rig.feed(UNDERLAY, answer)
    assert [read(packet).five_tuple for _, packet in talk.rig.wait(ASK_S)] == ends[1:]
    talk.rig.wait(RESET_S)
    assert closed(talk.rig) == ["bypassed"]


# As a right anchor.


def waiting_right() -> tuple[Talk, Numbers]:
    """b as a right anchor that has agreed and has not heard of the switch, and a proxy on the old path."""
    talk = Talk()
    asked = request(HERE, LEFT)
    assert isinstance(asked, RequestLock)
    tell(talk.rig, "a", replace(asked, joined=True))
    tell(talk.rig, "a", new_path(HERE))
    assert said(talk.rig, AckLock) == [AckLock(CHAIN, LEFT, HERE.request, True)]
    numbers = talk.rig.agent._changes._ground.numbers(chain_of(talk), "left")
    assert numbers is not None
    return talk, numbers


def joined_right() -> tuple[Talk, Numbers]:
    talk, numbers = waiting_right()
    cutoff = numbers.received + UNDER_WAY
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, cutoff, numbers.sent, False))
    talk.rig.events()
    return talk, numbers


@pytest.mark.parametrize(
    ("verdict", "acked", "phase", "reason"),
    [
        (SAVED, UNDER_WAY, "done", ""),
        (OVER, 0, "aborted", DEAD + "the other side cannot go on without it"),
        (AGREED, 0, "done", ""),
    ],
)
def test_a_right_anchor_decides_by_the_same_rules(verdict: int, acked: int, phase: str, reason: str) -> None:
    talk, numbers = joined_right()
    old = chain_of(talk).left.tuple
    assert talk.rig.feed(UNDERLAY, build_tcp(old, numbers.received, 0, RST, 0)) == []
    told = [OldDead(CHAIN, NEW_HOP, HERE.request, False, numbers.sent, numbers.received)]
    assert said(talk.rig, OldDead) == told
    heard = OldDead(CHAIN, NEW_HOP, HERE.request, True, numbers.received + acked, numbers.sent, verdict)
    tell(talk.rig, "a", heard)
    [moved] = talk.rig.events(ChangeMoved)
    assert isinstance(moved, ChangeMoved)
    assert (moved.phase, moved.reason) == (phase, reason)


@pytest.mark.parametrize("by", ["ack", "data"])
def test_a_right_anchor_that_has_passed_a_reset_on_before_the_switch_says_that_it_is_over(by: str) -> None:
    talk, numbers = waiting_right()
    chain = chain_of(talk)
    talk.rig.events()
    reset = build_tcp(chain.left.tuple, numbers.received, 0, RST, 0)
    assert [read(packet).flags for _, packet in talk.rig.feed(UNDERLAY, reset)] == [RST]
    if by == "ack":
        tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, numbers.received, numbers.sent, True))
    else:
        data = build_tcp(NEW_PATH, numbers.received, numbers.sent, ACK | PSH, 64240, b"", b"x")
        # The data go nowhere; both ends are asked what they expect.
        assert [read(packet).payload_len for _, packet in talk.rig.feed(UNDERLAY, data)] == [0, 0]
    assert said(talk.rig, OldDead) == [OldDead(CHAIN, NEW_HOP, HERE.request, False, 0, 0, OVER)]
    assert said(talk.rig, AckAck) == []
    why = "it had reset the session before this agent heard of the switch"
    moved = [one for one in talk.rig.events(ChangeMoved) if isinstance(one, ChangeMoved)]
    assert [(one.phase, one.reason) for one in moved] == [("aborted", DEAD + why)]
    assert talk.rig.agent.counters["proxy_dead"] == 1
    talk.rig.wait(RESET_S + 1)
    assert closed(talk.rig) == ["bypassed"]


def test_a_reset_before_a_switch_without_a_proxy_is_that_of_an_end() -> None:
    talk = wait_for_ack((0, 0))
    numbers = talk.rig.agent._changes._ground.numbers(chain_of(talk), "left")
    assert numbers is not None
    talk.rig.feed(UNDERLAY, build_tcp(chain_of(talk).left.tuple, numbers.received, 0, RST, 0))
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, numbers.received, numbers.sent, True))
    assert said(talk.rig, OldDead) == []
    assert len(said(talk.rig, AckAck)) == 1


# Timestamps.

WITH_STAMPS = b"\x02\x04\x05\xb4\x01\x01\x08\x0a" + bytes(3) + b"\x05" + bytes(4)


class Stamped(Talk):
    """As `Talk`, with timestamps and without what the box adds to numbers."""

    def __init__(self) -> None:
        self.rig = rig = Rig(boxes=[PAIR_BOX])
        _, inner = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4), options=WITH_STAMPS))
        _, out = rig.one(FIRST_BOX + 1, inner)
        self.right = read(out).five_tuple
        answer = build_tcp(self.right.reversed(), 9000, 1001, SYN | ACK, 64240, WITH_STAMPS)
        _, back = rig.one(UNDERLAY, answer)
        rig.one(FIRST_BOX, back)
        rig.one(FIRST_BOX + 1, build_tcp(read(inner).five_tuple, 1001, 9001, ACK, 64240))
        assert rig.state() == ["established"]
        rig.messages.clear()
        rig.events()


def stamp(value: int, echo: int) -> bytes:
    return b"\x01\x01\x08\x0a" + value.to_bytes(4, "big") + echo.to_bytes(4, "big")


def test_an_end_that_shows_no_timestamps_is_asked_and_then_the_change_is_given_up() -> None:
    talk = Stamped()
    assert talk.rig.agent.change(talk.key(), OWN, talk.rig.now)
    talk.rig.take()
    changing = chain_of(talk).changing
    assert changing is not None
    assert changing.left is not None
    anchor = changing.left
    talk.rig.agent.receive_message("d", AckLock(CHAIN, RIGHT, OWN.request, True), talk.rig.now)
    asked = [read(packet) for port, packet in talk.rig.take() if port == FIRST_BOX + 1]
    [one] = asked
    assert (one.five_tuple, one.flags) == (chain_of(talk).session_out.reversed(), ACK)
    assert (9001 - one.seq) % (1 << 32) == FAR
    tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request))
    assert anchor.new is not None
    for seq, flags in ((9000, SYN | ACK), (9001, ACK)):
        back = build_tcp(anchor.new.tuple.reversed(), seq, anchor.isn + 1, flags, 0xFFFF)
        talk.rig.feed(UNDERLAY, back)
    assert said(talk.rig, Ack) == []
    talk.rig.wait(4.0)
    tell(talk.rig, "d", AckCancel(CHAIN, RIGHT, OWN.request))
    assert left_moves(talk)[-1] == ("aborted", "not ready: the end of the session shows no timestamps")


def test_a_left_anchor_whose_end_has_shown_its_timestamps_switches_and_tells_them() -> None:
    talk = Stamped()
    assert talk.rig.agent.change(talk.key(), OWN, talk.rig.now)
    talk.rig.take()
    changing = chain_of(talk).changing
    assert changing is not None
    assert changing.left is not None
    anchor = changing.left
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request, True))
    tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request, 700))
    shake(talk, anchor)
    assert said(talk.rig, Ack) == []
    shown = build_tcp(chain_of(talk).session_out, 1001, 9001, ACK, 64240, stamp(77, 5))
    talk.rig.feed(FIRST_BOX + 1, shown)
    [switched] = said(talk.rig, Ack)
    assert isinstance(switched, Ack)
    assert switched.stamp == 77
    # From the new path on the other end's clock, 700, is ahead of what its end was given last, 5.
    packet = build_tcp(
        anchor.new.tuple.reversed() if anchor.new else talk.right,
        9001,
        1001,
        ACK | PSH,
        1,
        stamp(703, 77),
        b"x",
    )
    [(_, inner)] = talk.rig.feed(UNDERLAY, packet)
    assert stamp(AHEAD + 8, 77) in inner.data


def waiting_stamped() -> Stamped:
    talk = Stamped()
    asked = request(HERE, LEFT)
    assert isinstance(asked, RequestLock)
    tell(talk.rig, "a", replace(asked, joined=True))
    tell(talk.rig, "a", new_path(HERE))
    assert said(talk.rig, SynAck) == []  # nothing is known of its end's timestamps yet
    shown = build_tcp(chain_of(talk).session_in.reversed(), 9001, 1001, ACK, 64240, stamp(88, 5))
    talk.rig.feed(FIRST_BOX, shown)
    tell(talk.rig, "a", new_path(HERE))
    assert said(talk.rig, SynAck) == [SynAck(CHAIN, NEW_HOP, HERE.request, 88)]
    return talk


def test_a_right_anchor_agrees_when_its_end_has_shown_its_timestamps() -> None:
    talk = waiting_stamped()
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, 1001, 9001, True, 60))
    assert len(said(talk.rig, AckAck)) == 1


def test_a_right_anchor_that_does_not_know_the_other_ends_clock_waits_for_it() -> None:
    talk = waiting_stamped()
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, 1001, 9001, True))
    assert said(talk.rig, AckAck) == []
    talk.rig.feed(UNDERLAY, build_tcp(NEW_PATH, 1001, 9001, ACK | PSH, 1, stamp(60, 88), b"x"))
    assert len(said(talk.rig, AckAck)) == 1


def test_a_right_anchor_that_has_begun_again_waits_until_its_end_shows_its_timestamps() -> None:
    talk = waiting_stamped()
    [(_, record)] = talk.rig.agent.records()
    old, inner = chain_of(talk).left.tuple, chain_of(talk).session_in.reversed()
    rig = Rig(boxes=[PAIR_BOX])
    assert rig.agent.restore(record, rig.now)
    rig.take()
    rig.feed(UNDERLAY, build_tcp(old, 1001, 9001, ACK, 64240))
    rig.feed(FIRST_BOX, build_tcp(inner, 9001, 1001, ACK, 64240))  # shows where it stands, and no clock
    rig.messages.clear()
    switched = Ack(CHAIN, NEW_HOP, HERE.request, 1001, 9001, True, 60)
    rig.agent.receive_message("a", switched, rig.now)
    [(port, asked)] = rig.take()
    assert (port, read(asked).five_tuple) == (FIRST_BOX, inner.reversed())
    assert [one for _, one in rig.messages if not isinstance(one, LockQuery)] == []
    rig.feed(FIRST_BOX, build_tcp(inner, 9001, 1001, ACK, 64240, stamp(90, 60)))
    tell(rig, "a", switched)
    assert len(said(rig, AckAck)) == 1


def left_stamped() -> tuple[Stamped, LeftAnchor]:
    """b as a left anchor with two paths: its end's clock is at 77 and was given 5, the other end's is at 700."""
    talk = Stamped()
    assert talk.rig.agent.change(talk.key(), OWN, talk.rig.now)
    talk.rig.take()
    changing = chain_of(talk).changing
    assert changing is not None
    assert changing.left is not None
    anchor = changing.left
    tell(talk.rig, "d", AckLock(CHAIN, RIGHT, OWN.request, True))
    shown = build_tcp(chain_of(talk).session_out, 1001, 9001, ACK, 64240, stamp(77, 5))
    talk.rig.feed(FIRST_BOX + 1, shown)
    tell(talk.rig, "d", SynAck(CHAIN, label(anchor), OWN.request, 700))
    shake(talk, anchor)
    assert left_moves(talk)[-1] == ("two paths", "")
    talk.rig.take()
    return talk, anchor


def right_stamped(drained: bool = False) -> Stamped:
    """b as a right anchor with two paths: its end's clock is at 88 and was given 5, the other end's is at 60."""
    talk = waiting_stamped()
    cutoff = 1001 if drained else 1001 + UNDER_WAY
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, cutoff, 9001, drained, 60))
    talk.rig.events()
    return talk


def test_a_window_of_the_old_path_reaches_no_further_than_the_other_end_takes() -> None:
    talk, anchor = left_stamped()

    def shown(size: int) -> int:
        data = build_tcp(talk.right.reversed(), 9001, 1001, ACK | PSH, 64240, stamp(5, 77), bytes(size))
        [(_, inner)] = talk.rig.feed(UNDERLAY, data)
        return read(inner).window

    assert shown(1) == 0  # the cutoff is what comes next
    tell(talk.rig, "d", AckAck(CHAIN, label(anchor), OWN.request, 9101, 1001, 1001 + 5000))
    assert shown(1) == 5000
    assert shown(2) == 5000


def test_a_window_of_the_old_path_reaches_no_further_for_the_right_end_either() -> None:
    talk = waiting_stamped()
    old = chain_of(talk).left.tuple
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, 1001 + UNDER_WAY, 9001, False, 60, 9001 + 300))
    data = build_tcp(old, 1001, 9001, ACK | PSH, 64240, stamp(5, 88), b"x")
    [(_, inner)] = talk.rig.feed(UNDERLAY, data)
    assert read(inner).window == 300


def test_reminders_and_data_carry_timestamps_that_each_path_knows() -> None:
    talk, anchor = left_stamped()
    assert anchor.new is not None
    # The other end's clock of the new path, at 703, is ahead inside; the proxy's is still at 5.
    fresh = build_tcp(anchor.new.tuple.reversed(), 9001, 1001, ACK | PSH, 1, stamp(703, 77), b"x")
    assert talk.rig.feed(UNDERLAY, fresh) != []
    own = build_tcp(chain_of(talk).session_out, 1001, 9002, ACK | PSH, 64240, stamp(79, AHEAD + 8), b"yy")
    out = [packet for _, packet in talk.rig.feed(FIRST_BOX + 1, own)]
    [data] = [packet for packet in out if read(packet).five_tuple == anchor.new.tuple]
    assert stamp(79, 703) in data.data
    reminders = [packet for _, packet in talk.rig.wait(1.0) if read(packet).five_tuple == talk.right]
    assert reminders
    assert all(stamp(79, 5) in packet.data for packet in reminders)


def test_reminders_of_a_right_anchor_carry_timestamps_that_each_path_knows() -> None:
    talk = right_stamped()
    old = chain_of(talk).left.tuple.reversed()
    fresh = build_tcp(NEW_PATH, 1001 + UNDER_WAY, 9001, ACK | PSH, 1, stamp(63, 88), b"x")
    assert talk.rig.feed(UNDERLAY, fresh) != []
    inner = chain_of(talk).session_in.reversed()
    own = build_tcp(inner, 9001, 1001, ACK | PSH, 64240, stamp(90, AHEAD + 8), b"yy")
    by_path = {read(out).five_tuple: bytes(out.data) for _, out in talk.rig.feed(FIRST_BOX, own)}
    assert stamp(90, 63) in by_path[NEW_PATH.reversed()]
    talk.rig.feed(FIRST_BOX, build_tcp(inner, 9003, 1001, ACK, 64240, stamp(91, AHEAD + 8)))
    reminders = [packet for _, packet in talk.rig.wait(1.0) if read(packet).five_tuple == old]
    assert reminders
    assert all(stamp(91, 5) in packet.data for packet in reminders)


def test_when_the_proxy_is_out_of_it_the_other_ends_clock_counts() -> None:
    talk, anchor = left_stamped()
    assert anchor.new is not None
    new = anchor.new.tuple.reversed()
    tell(talk.rig, "d", AckAck(CHAIN, label(anchor), OWN.request, 9001, 1001))
    tell(talk.rig, "d", OldDone(CHAIN, RIGHT, OWN.request, False, RIGHT))
    talk.rig.wait(1.0)
    assert left_moves(talk)[-1] == ("done", "")
    packet = build_tcp(new, 9001, 1001, ACK | PSH, 1, stamp(710, 77), b"x")
    [(_, inner)] = talk.rig.feed(UNDERLAY, packet)
    assert stamp(AHEAD + 15, 77) in inner.data


def test_at_the_right_anchor_too() -> None:
    talk = right_stamped(drained=True)
    tell(talk.rig, "a", OldDone(CHAIN, LEFT, HERE.request, True, LEFT))
    talk.rig.wait(1.0)
    moved = [one.phase for one in talk.rig.events(ChangeMoved) if isinstance(one, ChangeMoved)]
    assert moved[-1] == "done"
    [(_, inner)] = talk.rig.feed(UNDERLAY, build_tcp(NEW_PATH, 1001, 9001, ACK | PSH, 1, stamp(70, 88), b"x"))
    assert stamp(AHEAD + 15, 88) in inner.data


def test_what_was_on_its_way_before_an_anchor_looked_is_older_than_what_the_new_path_brings() -> None:
    talk, anchor = left_stamped()
    assert anchor.new is not None
    tell(talk.rig, "d", AckAck(CHAIN, label(anchor), OWN.request, 9001, 1001))
    tell(talk.rig, "d", OldDone(CHAIN, RIGHT, OWN.request, False, RIGHT))
    talk.rig.wait(1.0)
    assert left_moves(talk)[-1] == ("done", "")
    # A packet of the proxy at 35 had passed before the end showed 5, and was late.
    own = build_tcp(chain_of(talk).session_out, 1001, 9001, ACK | PSH, 64240, stamp(80, 35), b"x")
    [(_, out)] = talk.rig.feed(FIRST_BOX + 1, own)
    assert stamp(80, (700 + 30 - AHEAD) % (1 << 32)) in out.data
    fresh = build_tcp(anchor.new.tuple.reversed(), 9001, 1002, ACK | PSH, 1, stamp(701, 80), b"x")
    [(_, inner)] = talk.rig.feed(UNDERLAY, fresh)
    assert stamp(AHEAD + 6, 80) in inner.data


@pytest.mark.parametrize("shown", [5, 35])
def test_an_echo_of_the_old_path_stands_on_the_new_one_for_what_that_had_sent_before(shown: int) -> None:
    talk, anchor = left_stamped()
    assert anchor.new is not None
    own = build_tcp(chain_of(talk).session_out, 1001, 9001, ACK | PSH, 64240, stamp(79, shown), b"x")
    [data] = [
        packet
        for _, packet in talk.rig.feed(FIRST_BOX + 1, own)
        if read(packet).five_tuple == anchor.new.tuple
    ]
    assert stamp(79, 700) in data.data


def test_a_grant_that_is_taken_back_lets_packets_pass_unseen_again() -> None:
    talk = waiting_stamped()
    flow = talk.rig.table.get(UNDERLAY, chain_of(talk).left.tuple)
    assert flow is not None
    assert flow.slow
    tell(talk.rig, "a", CancelLock(CHAIN, LEFT, HERE.request, LEFT))
    flow = talk.rig.table.get(UNDERLAY, chain_of(talk).left.tuple)
    assert flow is not None
    assert not flow.slow


def again(talk: Talk) -> Rig:
    """The agent begins again with what its journal has."""
    [(_, record)] = talk.rig.agent.records()
    rig = Rig(boxes=[PAIR_BOX])
    assert rig.agent.restore(record, rig.now)
    return rig


def test_a_left_anchor_that_begins_again_asks_its_end_and_gives_the_session_up_with_a_dead_proxy() -> None:
    talk, anchor = left_stamped()
    inner = chain_of(talk).session_out.reversed()
    rig = again(talk)
    asked = [read(packet).five_tuple for port, packet in rig.take() if port == FIRST_BOX + 1]
    assert asked == [inner]
    rig.events()
    rig.agent.receive_message("d", dead(anchor, 9001, 1001), rig.now)
    rig.take()
    [moved] = rig.events(ChangeMoved)
    assert isinstance(moved, ChangeMoved)
    why = "this agent has begun again, and does not know what it held"
    assert (moved.phase, moved.reason) == ("aborted", DEAD + why)
    over = OldDead(CHAIN, label(anchor), OWN.request, True, 1001, 9001, OVER)
    assert said(rig, OldDead) == [over, over]  # the second one is the last word


def test_a_left_anchor_that_begins_again_learns_what_was_acknowledged_from_the_other_one() -> None:
    talk, anchor = left_stamped()
    data = build_tcp(chain_of(talk).session_out, 1001, 9001, ACK | PSH, 64240, stamp(78, 5), bytes(10))
    talk.rig.feed(FIRST_BOX + 1, data)
    rig = again(talk)
    rig.take()
    tell(rig, "d", AckAck(CHAIN, label(anchor), OWN.request, 9001, 1011))
    tell(rig, "d", OldDone(CHAIN, RIGHT, OWN.request, False, RIGHT))
    rig.wait(1.0)
    [chain] = rig.agent._life.chains.values()
    assert rig.agent.subsessions(chain.key)[-1][2] in (RIGHT, label(anchor))


def test_a_right_anchor_that_begins_again_asks_its_end() -> None:
    talk = right_stamped()
    inner = chain_of(talk).session_in
    rig = again(talk)
    asked = [read(packet).five_tuple for port, packet in rig.take() if port == FIRST_BOX]
    assert asked == [inner]
    assert len(said(rig, AckAck)) == 1


@pytest.mark.parametrize("joined", [True, False])
def test_a_port_that_a_proxy_believes_to_be_free_is_not_free_while_its_session_lives(joined: bool) -> None:
    """b is the server's host; the proxy that opened the session there is out of it."""
    rig, inner = Rig(), session(1, 2)
    rig.one(UNDERLAY, rig.chained_syn(hops(2), of=inner))
    rig.one(HOST, syn_ack(inner))
    asked = request(HERE, LEFT)
    assert isinstance(asked, RequestLock)
    for message in (
        replace(asked, joined=joined),
        new_path(HERE),
        Ack(CHAIN, NEW_HOP, HERE.request, 1001, 9001, True),
        OldDone(CHAIN, LEFT, HERE.request, True, LEFT),
    ):
        tell(rig, "a", message)
    rig.wait(1.0)
    moved = [one.phase for one in rig.events(ChangeMoved) if isinstance(one, ChangeMoved)]
    assert moved[-1] == "done"
    rig.messages.clear()
    again = rig.chained_syn(hops(2), of=inner, isn=77, ports=(61009, 61010), chain_id=b"another-01234567")
    delivered = rig.feed(UNDERLAY, again)
    refused = [one.reason for _, one in rig.messages if isinstance(one, SynRefused)]
    if joined:
        assert delivered == []
        assert refused == ["its tuple is that of a session that a proxy has left and that still lives"]
        assert rig.state() == ["established"]
    else:
        assert [read(packet).five_tuple for _, packet in delivered] == [inner]
        assert refused == []
