"""A right anchor, step by step: what comes late, twice or wrong, and what is said again until it is answered.

a --1-- b (this agent) --2-- d       a asks b for its left subsession; as in test_locks.py and test_guards.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.events import ChangeMoved
from dysco.protocol.flow import FIRST_BOX, UNDERLAY
from dysco.protocol.ground import REHEARSED_WINDOW, Numbers
from dysco.protocol.locks import LEASE_S
from dysco.protocol.switching import BEGUN_AGAIN, FROZEN_BYTES, FROZEN_S, at_cutoff, is_at_cutoff
from dysco.protocol.transfers import ARRIVED, FAILED, FREEZE, INSTALLED
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckLock,
    CancelLock,
    Change,
    LockQuery,
    NackLock,
    NackSyn,
    OldDone,
    OldDoneAck,
    StateTransferred,
    SynAck,
)
from dysco.wire.packet import ACK, FIN, PSH, RST, SYN, Packet, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import Rig, address, hops, read, session
from protocol.test_guards import chain_of, said, tell
from protocol.test_locks import (
    CHAIN,
    HERE,
    LEFT,
    NEW_HOP,
    NEW_PATH,
    ONE,
    RIGHT,
    Talk,
    new_path,
    request,
    right_anchor,
)

GRANT = AckLock(CHAIN, LEFT, HERE.request)
AGREED = SynAck(CHAIN, NEW_HOP, HERE.request)


def moves(talk: Talk) -> list[tuple[str, str]]:
    return [(one.phase, one.reason) for one in talk.rig.events(ChangeMoved) if isinstance(one, ChangeMoved)]


def waiting(change: Change = HERE) -> tuple[Talk, Numbers]:
    """b has agreed to the new path; gives where it stands, too."""
    talk = Talk()
    tell(talk.rig, "a", request(change, LEFT))
    tell(talk.rig, "a", new_path(change))
    assert talk.rig.messages == [("a", replace(GRANT)), ("a", AGREED)]
    talk.rig.messages.clear()
    numbers = talk.rig.agent._changes._ground.numbers(chain_of(talk), "left")
    assert numbers is not None
    return talk, numbers


UNDER_WAY = 100  # bytes below the cutoff of the left anchor that have not come yet


def two_paths(state: int = 0) -> tuple[Talk, Numbers]:
    talk, numbers = waiting(replace(HERE, state=state))
    cutoff = numbers.received + UNDER_WAY
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, cutoff, numbers.sent, False))
    assert moves(talk)[-1] == ("two paths", "")
    return talk, numbers


def on_new(
    talk: Talk, seq: int, ack: int, flags: int = ACK, size: int = 0, window: int = 64240
) -> list[Packet]:
    packet = build_tcp(NEW_PATH, seq, ack, flags, window, b"", bytes(size))
    return [out for _, out in talk.rig.feed(UNDERLAY, packet)]


def from_inside(talk: Talk, seq: int, ack: int, size: int = 0) -> list[Packet]:
    """What the server sends comes out of the box."""
    packet = build_tcp(chain_of(talk).session_in.reversed(), seq, ack, ACK, 64240, b"", bytes(size))
    return [out for _, out in talk.rig.feed(FIRST_BOX, packet)]


# Before the switch.


def test_a_session_that_is_over_is_not_changed() -> None:
    talk = Talk()
    session = chain_of(talk).session_in
    talk.rig.feed(UNDERLAY, build_tcp(chain_of(talk).left.tuple, 1001, 8994, ACK | FIN, 64240))
    talk.rig.feed(UNDERLAY, build_tcp(talk.right.reversed(), 9001, 1006, ACK | FIN, 64240))
    assert talk.rig.state() == ["time-wait"]
    assert session.family == 4
    refused = NackLock(CHAIN, LEFT, HERE.request, "b", "the session is not established")
    talk.say((">>", "a", request(HERE, LEFT)), ("<<", "a", refused))


@pytest.mark.parametrize("force", [False, True])
def test_after_a_restart_packets_must_show_where_the_session_stands(force: bool) -> None:
    talk = Talk()
    [(_, record)] = talk.rig.agent.records()
    rig = Rig(boxes=talk.rig.settings.boxes)
    assert rig.agent.restore(record, rig.now)
    rig.agent.receive_message("a", request(replace(HERE, force=force), LEFT), rig.now)
    asked = rig.take()
    refused = NackLock(
        CHAIN, LEFT, HERE.request, "b", "not ready: no packets have passed since the agent began"
    )
    assert rig.messages == [("a", refused)]
    assert len(asked) == force


def test_what_is_asked_again_is_answered_again_and_moves_nothing() -> None:
    talk, _ = waiting()
    assert moves(talk) == [("locked", "")]
    talk.say((">>", "a", request(HERE, LEFT)), ("<<", "a", GRANT))
    talk.say((">>", "a", new_path(HERE)), ("<<", "a", AGREED))
    assert moves(talk) == []


def test_without_a_syn_the_lock_ends_with_its_lease() -> None:
    talk = Talk()
    tell(talk.rig, "a", request(HERE, LEFT))
    talk.rig.wait(LEASE_S - 1)
    assert chain_of(talk).changing is not None
    talk.rig.wait(2)
    assert moves(talk) == [("locked", ""), ("aborted", "cancelled by the left anchor")]
    other = replace(HERE, request=82)
    talk.rig.messages.clear()
    talk.say((">>", "a", request(other, LEFT)), ("<<", "a", replace(GRANT, request=82)))


def test_with_a_syn_the_lease_ends_nothing() -> None:
    talk, _ = waiting()
    talk.rig.wait(LEASE_S * 3)
    assert len(said(talk.rig, LockQuery)) >= 2 * 8
    assert moves(talk) == [("locked", "")]


def test_a_left_anchor_that_has_begun_again_is_told_so() -> None:
    talk, _ = waiting()
    again = replace(new_path(HERE), subsession=FiveTuple.of(address(1), 62002, address(2), 62003))
    talk.say((">>", "a", again), ("<<", "a", NackSyn(CHAIN, NEW_HOP, HERE.request, "b", BEGUN_AGAIN)))
    assert moves(talk) == [("locked", "")]


def test_the_left_half_cannot_be_told_empty_before_the_switch() -> None:
    talk, numbers = waiting()
    done = OldDone(CHAIN, LEFT, HERE.request, True, LEFT)
    talk.say((">>", "a", done), ("<<", "a", OldDoneAck(CHAIN, LEFT, HERE.request, False, LEFT)))
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, numbers.received, numbers.sent, False))
    talk.rig.wait(5.0)
    assert ("done", "") not in moves(talk)


def test_the_path_handshake_is_answered_in_the_left_anchors_numbers() -> None:
    talk, numbers = waiting()
    for _ in range(2):
        [answer, update] = on_new(talk, 5000, 0, SYN, window=REHEARSED_WINDOW)
        at = read(answer)
        assert (at.five_tuple, at.flags) == (NEW_PATH.reversed(), SYN | ACK)
        assert (at.seq, at.ack, at.window) == (numbers.sent - 1, 5001, REHEARSED_WINDOW)
        at = read(update)
        assert (at.flags, at.seq, at.ack, at.window) == (ACK, numbers.sent, 5001, REHEARSED_WINDOW)
    [update] = on_new(talk, 5001, numbers.sent)
    at = read(update)
    assert (at.flags, at.seq, at.ack, at.payload_len) == (ACK, numbers.sent, 5001, 0)


def test_a_lock_that_the_left_anchor_has_forgotten_does_not_keep_packets_from_the_new_path() -> None:
    # It has begun again. What is written to a new path as it came would come back here, and go round for ever.
    talk = Talk()
    for peer, message in (("a", request(ONE, LEFT)), ("d", AckLock(CHAIN, RIGHT, ONE.request))):
        tell(talk.rig, peer, message)
    tell(talk.rig, "a", request(HERE, LEFT))
    tell(talk.rig, "a", new_path(HERE))
    [answer, _] = on_new(talk, 1000, 0, SYN, window=REHEARSED_WINDOW)
    assert (read(answer).five_tuple, read(answer).flags) == (NEW_PATH.reversed(), SYN | ACK)
    [update] = on_new(talk, 1001, 8994, window=REHEARSED_WINDOW)
    assert read(update).five_tuple == NEW_PATH.reversed()
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, 1001, 8994, True))
    [(port, _)] = talk.rig.feed(UNDERLAY, build_tcp(NEW_PATH, 1001, 8994, ACK, 64240, b"", bytes(10)))
    assert port == FIRST_BOX


def test_what_is_no_part_of_the_path_handshake_is_not_answered() -> None:
    talk, numbers = waiting()
    assert on_new(talk, 5000, numbers.sent) == []  # no SYN has come yet
    assert on_new(talk, 5000, numbers.sent, SYN | ACK) == []
    on_new(talk, 5000, 0, SYN, window=REHEARSED_WINDOW)
    assert on_new(talk, 5001, numbers.sent, RST) == []
    assert on_new(talk, 5001, 0, 0, size=5) == []  # data that acknowledge nothing
    assert moves(talk) == [("locked", "")]


def test_the_measure_of_the_left_anchor_goes_no_further() -> None:
    talk, numbers = waiting()
    packet = at_cutoff(NEW_PATH, numbers.received, numbers.sent)
    assert talk.rig.feed(UNDERLAY, packet) == []
    assert moves(talk) == [("locked", "")]


# Two paths.


def test_what_is_cancelled_behind_the_switch_comes_too_late() -> None:
    talk, _ = two_paths()
    tell(talk.rig, "a", CancelLock(CHAIN, LEFT, HERE.request, LEFT))
    assert moves(talk) == []
    assert right_anchor(talk).two is not None


def test_a_switch_that_data_have_told_is_answered_until_the_cutoff_is_known() -> None:
    talk, numbers = waiting()
    on_new(talk, numbers.received, numbers.sent, ACK | PSH, size=4)
    talk.rig.wait(3.0)
    answer = AckAck(CHAIN, NEW_HOP, HERE.request, numbers.sent, numbers.received)
    assert said(talk.rig, AckAck) == [answer] * len(said(talk.rig, AckAck))
    assert len(said(talk.rig, AckAck)) > 2
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, numbers.received, numbers.sent, False))
    talk.rig.messages.clear()
    talk.rig.wait(3.0)
    assert said(talk.rig, AckAck) == []


def test_a_path_handshake_of_another_new_path_is_not_answered_behind_the_switch() -> None:
    talk, _ = two_paths()
    other = FiveTuple.of(address(1), NEW_PATH.sport + 2, address(2), NEW_PATH.dport)
    assert talk.rig.feed(UNDERLAY, build_tcp(other, 5000, 0, SYN, REHEARSED_WINDOW)) == []
    tell(talk.rig, "a", replace(new_path(HERE), subsession=other))
    assert talk.rig.take() == []


def test_the_path_handshake_is_over_behind_the_switch() -> None:
    talk, numbers = waiting()
    on_new(talk, numbers.received - 1, 0, SYN, window=REHEARSED_WINDOW)
    cutoff = numbers.received + UNDER_WAY
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, cutoff, numbers.sent, False))
    assert on_new(talk, numbers.received, numbers.sent, window=REHEARSED_WINDOW) == []
    [inner] = on_new(talk, cutoff, numbers.sent, size=3)
    assert read(inner).payload_len == 3


def test_the_last_acknowledgement_is_repeated_for_the_old_path() -> None:
    talk, numbers = two_paths()
    old = chain_of(talk).left.tuple.reversed()
    from_inside(talk, numbers.sent, numbers.received)
    reminders = [read(packet) for _, packet in talk.rig.wait(1.0) if not is_at_cutoff(read(packet))]
    assert reminders
    assert {(one.five_tuple, one.seq, one.ack) for one in reminders} == {
        (old, numbers.sent, numbers.received)
    }


def test_an_old_path_that_does_not_get_empty_is_told_once_and_kept() -> None:
    talk, numbers = two_paths()
    tell(talk.rig, "a", request(HERE, LEFT))
    talk.rig.wait(59.0)
    stuck = ("stuck", "the old path does not get empty")
    assert stuck not in moves(talk)
    talk.rig.wait(60.0)
    assert moves(talk) == [stuck]
    from_inside(talk, numbers.sent, numbers.received)
    talk.rig.agent.peer_down("a", talk.rig.now)
    assert talk.rig.wait(60.0) == []
    assert moves(talk) == []
    old = chain_of(talk).left.tuple
    talk.rig.feed(UNDERLAY, build_tcp(old, numbers.received, numbers.sent, ACK, 64240, b"", bytes(UNDER_WAY)))
    from_inside(talk, numbers.sent, numbers.received + UNDER_WAY)
    tell(talk.rig, "a", OldDone(CHAIN, LEFT, HERE.request, True, LEFT))
    assert moves(talk) == [("drained", ""), ("done", "")]


# A box whose state moves behind the switch.


@pytest.mark.parametrize("status", [INSTALLED, FAILED])
def test_new_data_wait_until_the_state_is_there_or_cannot_be(status: int) -> None:
    talk, numbers = two_paths(FREEZE)
    assert from_inside(talk, numbers.sent, numbers.received, 10) == []
    arrived = StateTransferred(CHAIN, NEW_HOP, HERE.request, ARRIVED, 1, True)
    talk.rig.agent.receive_message("a", arrived, talk.rig.now)
    assert talk.rig.take() == []
    talk.rig.agent.receive_message("a", replace(arrived, status=status), talk.rig.now)
    [held] = [read(packet) for _, packet in talk.rig.take()]
    assert (held.five_tuple, held.seq, held.payload_len) == (NEW_PATH.reversed(), numbers.sent, 10)


def test_new_data_wait_no_longer_than_half_a_second() -> None:
    talk, numbers = two_paths(FREEZE)
    from_inside(talk, numbers.sent, numbers.received, 10)
    assert [one for _, one in talk.rig.wait(FROZEN_S - 0.05) if read(one).payload_len] == []
    held = [read(packet) for _, packet in talk.rig.wait(0.1)]
    assert [one.seq for one in held if one.payload_len] == [numbers.sent]


def test_no_more_than_a_quarter_of_a_megabyte_waits() -> None:
    talk, numbers = two_paths(FREEZE)
    size = 32_000
    for number in range(FROZEN_BYTES // size + 2):
        from_inside(talk, numbers.sent + number * size, numbers.received, size)
    assert talk.rig.agent.counters["frozen_dropped"] == 2


def test_what_waits_is_not_sent_for_a_session_that_has_ended() -> None:
    talk, numbers = two_paths(FREEZE)
    from_inside(talk, numbers.sent, numbers.received, 10)
    talk.rig.agent._life.close(chain_of(talk), "reset", talk.rig.now)
    talk.rig.take()
    assert talk.rig.wait(5.0) == []


# A new path that is not the left anchor's to give.

OTHERS = FiveTuple.of(address(3), 61005, address(2), 61006)


@pytest.mark.parametrize(
    "subsession",
    [
        OTHERS,
        FiveTuple.of(address(1), 61001, address(2), 61002),  # its own session's, the old path
        FiveTuple.of(address(3), 61007, address(4), 80),  # what only passes here
        FiveTuple.of(address(3), 61007, address(2), 22),  # what this host serves
    ],
)
def test_a_new_path_takes_no_packets_that_are_not_its_own(subsession: FiveTuple) -> None:
    talk = Talk()
    theirs = talk.rig.chained_syn(
        hops(2, 4), peer="c", number=3, of=session(3), ports=(61005, 61006), chain_id=b"another-01234567"
    )
    talk.rig.one(UNDERLAY, theirs)
    before = {key: (flow.owner, flow.rewrite) for key, flow in talk.rig.table.flows.items()}
    tell(talk.rig, "a", request(HERE, LEFT))
    talk.rig.messages.clear()
    syn = replace(new_path(HERE), subsession=subsession)
    refused = NackSyn(CHAIN, NEW_HOP, HERE.request, "b", "its subsession is not free here")
    talk.say((">>", "a", syn), ("<<", "a", refused))
    assert {key: (flow.owner, flow.rewrite) for key, flow in talk.rig.table.flows.items()} == before
    talk.say((">>", "a", new_path(HERE)), ("<<", "a", AGREED))


def test_what_came_and_was_not_counted_does_not_keep_an_old_path() -> None:
    """A kernel was in the middle of a packet; the other anchor has the acknowledgement, by the new path."""
    talk, numbers = two_paths()
    came = numbers.received + UNDER_WAY
    on_new(talk, came, numbers.sent)
    inner = chain_of(talk).session_in.reversed()
    sent = talk.rig.feed(FIRST_BOX, build_tcp(inner, numbers.sent, came, ACK, 64240))
    tell(talk.rig, "a", OldDone(CHAIN, LEFT, HERE.request, True, LEFT))
    sent += talk.rig.wait(1.0)
    old = chain_of(talk).left.tuple.reversed()
    assert (old, came) in {(read(one).five_tuple, read(one).ack) for _, one in sent}
    assert moves(talk)[-1] == ("done", "")
