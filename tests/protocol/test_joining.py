"""A host that a change brings into the chain of a live session, and that is told to go again.

a --7000-- b (this agent, a kernel box) --drawn-- d
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.flow import FORWARD, HOST, UNDERLAY
from dysco.protocol.ground import REHEARSED_WINDOW
from dysco.protocol.settings import Limits
from dysco.sim.endpoint import State as End
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    Ack,
    CancelLock,
    Change,
    Handshake,
    Hops,
    Moved,
    NackSyn,
    OldDone,
    RequestLock,
    Syn,
)
from dysco.wire.packet import ACK, FIN, SYN
from dysco.wire.packet import build_tcp as built
from dysco.wire.tuples import FiveTuple
from protocol.living import PROFILE, Living
from protocol.rig import KERNEL_BOX, MSS_1460, Rig, address, hops, read, session, syn, syn_ack

CHAIN = b"chain-0123456789"
LABEL, REQUEST = 7000, 71
SUBSESSION = FiveTuple.of(address(1), 61007, address(2), 61008)
INVITATION = Syn(
    CHAIN, LABEL, REQUEST, 1, session(), SUBSESSION, Hops((Hop(address(2), KERNEL_BOX.tag), Hop(address(4)))),
    Handshake(bytes(16)), "a",
)  # fmt: skip


@pytest.fixture
def rig() -> Rig:
    return Rig(boxes=[KERNEL_BOX])


def say(rig: Rig, peer: str, message: object) -> None:
    rig.agent.receive_message(peer, message, rig.now)  # type: ignore[arg-type]
    rig.take()


def test_a_rehearsed_syn_that_leaves_the_box_too_late_goes_nowhere(rig: Rig) -> None:
    say(rig, "a", INVITATION)
    port, inner = rig.one(UNDERLAY, built(SUBSESSION, 5000, 0, SYN, REHEARSED_WINDOW, MSS_1460))
    assert (port, read(inner).five_tuple) == (FORWARD, session())
    port, outer = rig.one(HOST, inner)
    assert port == UNDERLAY
    back = built(read(outer).five_tuple.reversed(), 900, 5001, SYN | ACK, REHEARSED_WINDOW, MSS_1460)
    [(_, answer), (port, window)] = rig.feed(UNDERLAY, back)
    # Behind the SYN-ACK the box sees a window that is scaled, whatever has come first.
    shown = built(session().reversed(), 901, 5001, ACK, REHEARSED_WINDOW)
    assert (port, window.data) == (FORWARD, shown.data)
    say(rig, "a", CancelLock(CHAIN, LABEL, REQUEST, 1))
    assert rig.state() == []
    assert rig.feed(HOST, inner) == []
    assert rig.feed(HOST, answer) == []
    assert rig.agent.counters["rehearsal_late"] == 2
    other = syn(session(), 6000)
    assert rig.one(HOST, other)[0] == HOST  # a session of its own, which no policy wants


def test_who_comes_back_before_it_has_left_is_told_to_wait(rig: Rig) -> None:
    _, inner = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4, box=KERNEL_BOX.tag)))
    _, outer = rig.one(HOST, inner)
    _, back = rig.one(UNDERLAY, syn_ack(read(outer).five_tuple))
    rig.one(HOST, back)
    assert rig.state() == ["established"]
    rig.messages.clear()
    say(rig, "a", INVITATION)
    [(_, refused)] = rig.messages
    assert isinstance(refused, NackSyn)
    assert refused.reason.startswith("the session passes the same devices")
    rig.messages.clear()
    say(rig, "a", RequestLock(CHAIN, 1, Change(70, 1, 2, Hops((Hop(address(4)),)), origin="a"), "a"))
    rig.messages.clear()
    say(rig, "a", INVITATION)
    [(_, refused)] = rig.messages
    assert isinstance(refused, NackSyn)
    assert refused.reason.startswith("busy")


def test_who_has_left_comes_back_when_its_middlebox_has_seen_the_end(rig: Rig) -> None:
    _, inner = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4, box=KERNEL_BOX.tag)))
    _, outer = rig.one(HOST, inner)
    _, back = rig.one(UNDERLAY, syn_ack(read(outer).five_tuple))
    rig.one(HOST, back)
    say(rig, "a", RequestLock(CHAIN, 1, Change(70, 1, 2, Hops((Hop(address(4)),)), origin="a"), "a"))
    for peer, rightward in (("a", True), ("d", False)):
        label = 1 if rightward else 2
        rig.agent.receive_message(peer, OldDone(CHAIN, label, 70, rightward, 2), rig.now)
    [(_, fin)] = rig.take()
    assert read(fin).flags & FIN
    for _ in range(3):  # out of the box come the FIN, the answer to it, and the last ACK
        rig.messages.clear()
        say(rig, "a", INVITATION)
        [(_, refused)] = rig.messages
        assert isinstance(refused, NackSyn)
        assert refused.reason.startswith("busy")
        answered = rig.feed(HOST, fin)
        fin = answered[0][1] if answered else fin
    rig.messages.clear()
    say(rig, "a", INVITATION)
    [(peer, passed)] = rig.messages
    assert (peer, type(passed)) == ("d", Syn)


def test_who_has_moved_is_invited_by_the_address_where_it_is(rig: Rig) -> None:
    """It may have moved again since, and not know itself any more by the one that others have in their policies."""
    say(rig, "d", Moved(1, Hops((Hop(address(44)),))))
    say(rig, "a", INVITATION)
    [(peer, passed)] = rig.messages
    assert isinstance(passed, Syn)
    assert (peer, passed.hops, passed.subsession.dst) == ("d", (Hop(address(44)),), address(44))


@pytest.mark.parametrize("timestamps", [True, False])
@pytest.mark.parametrize("lost", ["ab", "bc", "cd"])
def test_a_server_whose_first_answer_was_lost_asks_again_over_the_new_path(
    lost: str, timestamps: bool
) -> None:
    """Nobody has sent data, so its SYN-ACK has the number of the path handshake, and is no copy of that."""
    profile = replace(PROFILE, timestamps=timestamps, buffer=64240)
    live = Living(profile=profile, lost=(lost[0], lost[1]))
    assert live.server is not None
    states = [live.server.state]
    request = live.change("a", "a", "d", "e")
    live.wait(0.5)
    assert live.outcome("a", request)[0] == "done"
    states.append(live.server.state)
    assert states == [End.SYN_RECEIVED] * 2
    live.wait(10.0)
    assert live.server.state is End.OPEN
    live.talk()


# What an invitation may not ask for, and how long one is good.


def reasons(rig: Rig) -> list[str]:
    return [message.reason for _, message in rig.messages if isinstance(message, NackSyn)]


@pytest.mark.parametrize("where", [FiveTuple.of(address(1), 61007, address(2), 22), SUBSESSION.reversed()])
def test_nobody_joins_by_a_subsession_that_takes_other_packets(rig: Rig, where: FiveTuple) -> None:
    say(rig, "a", replace(INVITATION, subsession=where))
    assert reasons(rig) == ["its subsession is not free here"]
    assert rig.state() == []
    assert not rig.table.flows


def test_a_neighbour_may_invite_so_often() -> None:
    rig = Rig(boxes=[KERNEL_BOX], limits=Limits(setups_per_second=1))
    say(rig, "a", INVITATION)
    say(rig, "a", replace(INVITATION, chain_id=b"another-01234567"))
    assert reasons(rig) == ["too many sessions a second"]
    rig.wait(1.0)
    rig.messages.clear()
    other = FiveTuple.of(address(1), 61009, address(2), 61010)
    say(rig, "a", replace(INVITATION, chain_id=b"another-01234567", session=session(3), subsession=other))
    assert reasons(rig) == []


def test_a_table_that_is_full_takes_nobody() -> None:
    rig = Rig(boxes=[KERNEL_BOX], limits=Limits(sessions=1))
    say(rig, "a", INVITATION)
    other = FiveTuple.of(address(1), 61009, address(2), 61010)
    say(rig, "a", replace(INVITATION, chain_id=b"another-01234567", session=session(3), subsession=other))
    assert reasons(rig) == ["the session table is full"]
    assert len(rig.state()) == 1


def test_a_relay_joins_without_a_box() -> None:
    rig = Rig()
    say(rig, "a", replace(INVITATION, hops=Hops((Hop(address(2)), Hop(address(4))))))
    port, out = rig.one(UNDERLAY, built(SUBSESSION, 5000, 0, SYN, REHEARSED_WINDOW, MSS_1460))
    assert port == UNDERLAY
    back = read(out).five_tuple.reversed()
    assert back.src == address(4)
    port, answer = rig.one(UNDERLAY, built(back, 900, 5001, SYN | ACK, REHEARSED_WINDOW, MSS_1460))
    assert (port, read(answer).five_tuple) == (UNDERLAY, SUBSESSION.reversed())


def test_an_ack_that_was_lost_is_made_up_for_by_what_passes(rig: Rig) -> None:
    say(rig, "a", INVITATION)
    _, inner = rig.one(UNDERLAY, built(SUBSESSION, 5000, 0, SYN, REHEARSED_WINDOW, MSS_1460))
    rig.one(HOST, inner)
    rig.one(UNDERLAY, built(SUBSESSION, 5001, 900, ACK, 1000, b"", b"data"))
    rig.wait(31.0)
    assert rig.state() == ["established"]


def test_a_refusal_behind_the_switch_is_passed_on_and_ends_nothing(rig: Rig) -> None:
    say(rig, "a", INVITATION)
    say(rig, "a", Ack(CHAIN, LABEL, REQUEST, 5001, 901, True))
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    rig.messages.clear()
    say(rig, "d", NackSyn(CHAIN, chain.right.hop, REQUEST, "d", "no"))
    assert rig.messages == [("a", NackSyn(CHAIN, LABEL, REQUEST, "d", "no"))]
    assert rig.state() == ["established"]
