"""A host of the old path: what it refuses, what comes too late, and how it leaves.

a --1-- b (this agent, with a box) --2-- d       as in test_locks.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.chain import Chain
from dysco.protocol.events import SessionClosed
from dysco.protocol.flow import FIRST_BOX, UNDERLAY
from dysco.protocol.inside import READY_S
from dysco.protocol.locks import LEASE_S
from dysco.wire.messages import (
    Ack,
    CancelLock,
    Message,
    NackLock,
    OldDead,
    OldDone,
    OldDoneAck,
    RequestLock,
    Trace,
)
from dysco.wire.packet import ACK, FIN, build_tcp
from protocol.rig import Rig, hops, read, session, syn_ack
from protocol.test_guards import chain_of, joined, said, tell
from protocol.test_joining import LABEL
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
    PASSED,
    RIGHT,
    Talk,
    busy,
    request,
)
from protocol.test_past_dead_hosts import LEFT_OF_B, LOCK, ask, told
from protocol.test_right_anchor import two_paths

DONE = (
    (">>", "a", OldDone(CHAIN, LEFT, ONE.request, True, RIGHT)),
    ("<<", "d", OldDone(CHAIN, RIGHT, ONE.request, True, RIGHT)),
    (">>", "d", OldDone(CHAIN, RIGHT, ONE.request, False, RIGHT)),
    ("<<", "a", OldDone(CHAIN, LEFT, ONE.request, False, RIGHT)),
)


def locked() -> Talk:
    talk = Talk()
    talk.say(ASKED, PASSED, *GRANTED)
    return talk


def reasons(rig: Rig) -> list[str]:
    return [event.reason for event in rig.events(SessionClosed) if isinstance(event, SessionClosed)]


def test_a_lock_that_leads_beyond_the_last_host_is_not_found() -> None:
    rig = Rig()
    rig.one(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 2)))
    rig.one(0, syn_ack(session(1, 2)))
    assert rig.state() == ["established"]
    tell(rig, "a", RequestLock(CHAIN, LEFT, ONE, "a"))
    assert rig.messages == [("a", NackLock(CHAIN, LEFT, ONE.request, "b", "not found"))]


def test_a_lock_of_a_session_that_is_over_is_refused() -> None:
    talk = Talk()
    for port, tuple_, seq, ack in (
        (UNDERLAY, chain_of(talk).left.tuple, 1001, 8994),
        (UNDERLAY, talk.right.reversed(), 9001, 1006),
    ):
        talk.rig.feed(port, build_tcp(tuple_, seq, ack, ACK | FIN, 64240))
    refused = NackLock(CHAIN, LEFT, ONE.request, "b", "the session is not established")
    talk.say(ASKED, ("<<", "a", refused))


def test_a_host_that_a_change_has_gone_past_passes_no_lock() -> None:
    talk = told(Talk(), *LEFT_OF_B)
    ask(talk, LOCK)
    talk.rig.messages.clear()
    talk.say(ASKED, ("<<", "a", busy(ONE)))


def test_a_right_anchor_with_two_paths_passes_no_other_lock() -> None:
    talk, _ = two_paths()
    talk.rig.messages.clear()
    tell(talk.rig, "a", request(ONE, NEW_HOP))
    assert talk.rig.messages == [("a", busy(ONE))]


# A box that is not ready.


class Unready:
    """What a stream box says of itself; None: it is in the middle of something."""

    def __init__(self, talk: Talk) -> None:
        self.sums: tuple[int, int] | None = None
        self.asked = self.freed = 0
        talk.rig.agent.boxes_settle(self._settle, self._unsettle)

    def _settle(self, _: Chain) -> tuple[int, int] | None:
        self.asked += 1
        return self.sums

    def _unsettle(self, _: Chain) -> None:
        self.freed += 1


def test_a_box_that_is_ready_soon_delays_the_lock() -> None:
    talk = Talk()
    box = Unready(talk)
    talk.say(ASKED)
    talk.rig.wait(READY_S / 2)
    assert talk.lock() is None
    box.sums = (100, -200)
    talk.rig.wait(0.1)
    talk.say(("<<", "d", request(ONE, RIGHT, (115, -187))))


def test_a_box_that_is_not_ready_in_time_refuses() -> None:
    talk = Talk()
    Unready(talk)
    talk.say(ASKED)
    talk.rig.wait(READY_S + 0.1)
    refused = NackLock(
        CHAIN, LEFT, ONE.request, "b", "not ready: its middlebox is in the middle of something"
    )
    talk.say(("<<", "a", refused))


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_box_is_not_asked_any_more_for_a_change_that_is_over(cancelled: bool) -> None:
    talk = Talk()
    box = Unready(talk)
    talk.say(ASKED)
    if cancelled:
        tell(talk.rig, "a", CancelLock(CHAIN, LEFT, ONE.request, RIGHT))
    else:
        talk.rig.agent._life.close(chain_of(talk), "reset", talk.rig.now)
        talk.rig.take()
    talk.rig.messages.clear()
    before = box.asked
    box.sums = (0, 0)
    talk.rig.wait(READY_S * 2)
    assert box.asked == before
    assert talk.rig.messages == []


# When both halves are empty.


def test_a_refusal_that_comes_again_behind_the_switch_frees_nothing() -> None:
    talk = locked()
    talk.say(*DONE[:2])
    tell(talk.rig, "d", NackLock(CHAIN, RIGHT, ONE.request, "d", "no"))
    assert talk.rig.messages == []
    talk.say(*DONE[2:])
    talk.rig.wait(3.0)
    assert reasons(talk.rig) == ["moved"]


def test_what_the_box_still_sends_goes_nowhere() -> None:
    talk = locked()
    chain = chain_of(talk)
    tell(talk.rig, "a", DONE[0][2])
    tell(talk.rig, "d", DONE[2][2])
    data = build_tcp(chain.session_out, 1006, 9001, ACK, 64240, b"", b"late")
    assert talk.rig.feed(FIRST_BOX + 1, data) == []
    fin = build_tcp(chain.session_out, 1010, 9001, ACK | FIN, 64240)
    [(port, answer)] = talk.rig.feed(FIRST_BOX + 1, fin)
    at = read(answer)
    assert (port, at.five_tuple, at.flags) == (FIRST_BOX + 1, chain.session_out.reversed(), ACK | FIN)
    assert (at.seq, at.ack) == (9001, 1011)


def test_who_says_again_that_it_is_done_hears_of_no_second_end() -> None:
    talk = locked()
    for line in (DONE[0], DONE[2]):
        talk.rig.agent.receive_message(line[1], line[2], talk.rig.now)
    assert len(talk.rig.take()) == 1  # the FIN for the box
    for line in (DONE[0], DONE[2]):
        tell(talk.rig, line[1], line[2])
    assert talk.rig.take() == []


def test_a_lock_that_comes_again_when_the_host_has_left_is_refused() -> None:
    talk = locked()
    for line in (DONE[0], DONE[2]):
        tell(talk.rig, line[1], line[2])
    talk.rig.messages.clear()
    tell(talk.rig, "a", request(HERE, LEFT))
    reason = "not ready: no packets have passed since the agent began"
    assert talk.rig.messages == [("a", NackLock(CHAIN, LEFT, HERE.request, "b", reason))]


@pytest.mark.parametrize("in_time", [True, False])
def test_a_host_that_has_begun_again_learns_of_the_change_from_its_end(in_time: bool) -> None:
    talk = Talk()
    talk.say(*DONE[:2])
    talk.rig.wait(LEASE_S + (-1 if in_time else 1))
    talk.say(*DONE[2:])
    talk.rig.wait(LEASE_S + 1)
    assert reasons(talk.rig) == (["moved"] if in_time else [])


def test_what_a_host_has_learnt_of_a_change_is_not_forgotten_while_it_leaves() -> None:
    talk = Talk()
    chain = chain_of(talk)
    talk.say(*DONE[:2])
    talk.rig.wait(LEASE_S - 1)
    talk.say(*DONE[2:])
    talk.rig.wait(1.5)  # the lease is over, and what the box still sends is waited for
    assert talk.rig.state() == ["established"]
    late = build_tcp(chain.session_out, 1006, 9001, ACK, 64240, b"", b"late")
    assert talk.rig.feed(FIRST_BOX + 1, late) == []


def test_an_end_of_another_change_is_nothing_to_an_anchor() -> None:
    talk = Talk()
    talk.ask_own()
    talk.rig.messages.clear()
    tell(talk.rig, "a", OldDone(CHAIN, LEFT, OTHER.request, True, RIGHT))
    tell(talk.rig, "a", OldDoneAck(CHAIN, LEFT, OTHER.request, True, RIGHT))
    assert talk.rig.messages == []


def test_word_of_a_dead_proxy_is_passed_on() -> None:
    talk = Talk()
    dead = OldDead(CHAIN, LEFT, 5, True, 1, 2)
    talk.say((">>", "a", dead), ("<<", "d", replace(dead, hop=RIGHT)))
    back = OldDead(CHAIN, RIGHT, 5, False, 1, 2)
    talk.say((">>", "d", back), ("<<", "a", replace(back, hop=LEFT)))


# A host that was taken for dead.

GONE_BY = Trace(CHAIN, LEFT, 0, 3, "")


def test_a_host_that_a_chain_goes_around_leaves() -> None:
    talk = Talk()
    talk.rig.agent.receive_message("a", GONE_BY, talk.rig.now)
    assert [read(packet).flags for _, packet in talk.rig.take()] == [ACK | FIN]
    talk.rig.wait(3.0)
    assert reasons(talk.rig) == ["moved"]


def test_a_host_that_is_inside_of_a_change_leaves_with_it() -> None:
    talk = locked()
    tell(talk.rig, "a", GONE_BY)
    talk.rig.wait(3.0)
    assert reasons(talk.rig) == ["moved"]


def test_an_anchor_stays_until_its_change_is_over() -> None:
    talk = Talk()
    talk.ask_own()
    tell(talk.rig, "a", GONE_BY)
    talk.rig.wait(3.0)
    assert talk.rig.state() == ["established"]


def test_the_last_host_stays() -> None:
    rig = Rig()
    rig.one(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 2)))
    rig.one(0, syn_ack(session(1, 2)))
    tell(rig, "a", GONE_BY)
    rig.wait(3.0)
    assert rig.state() == ["established"]


@pytest.mark.parametrize("committed", [False, True])
def test_a_host_that_has_joined_goes_at_once(committed: bool) -> None:
    rig = joined(rehearsed=True)
    if committed:
        tell(rig, "a", Ack(CHAIN, LABEL, JOINED, 5001, 901, True))
    tell(rig, "a", replace(GONE_BY, hop=LABEL))
    assert rig.state() == []
    assert reasons(rig) == ["moved" if committed else "cancelled"]


@pytest.mark.parametrize(("peer", "hop"), [("d", LEFT), ("a", RIGHT), ("a", 9)])
def test_only_the_left_neighbour_says_that_a_chain_goes_around(peer: str, hop: int) -> None:
    talk = Talk()
    tell(talk.rig, peer, replace(GONE_BY, hop=hop))
    talk.rig.wait(3.0)
    assert talk.rig.state() == ["established"]


def test_a_relay_leaves_without_a_fin() -> None:
    rig = Rig()
    _, out = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4)))
    rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
    assert rig.state() == ["established"]
    messages: tuple[tuple[str, Message], ...] = (
        ("a", RequestLock(CHAIN, LEFT, ONE, "a")), ("a", DONE[0][2]), ("d", DONE[2][2])
    )  # fmt: skip
    for peer, message in messages:
        rig.agent.receive_message(peer, message, rig.now)
    assert rig.take() == []
    assert rig.feed(UNDERLAY, build_tcp(read(out).five_tuple.reversed(), 9001, 1001, ACK, 1)) == []
    rig.wait(3.0)
    assert reasons(rig) == ["moved"]
    assert said(rig, OldDone)
