"""Hosts get another address in the middle of a session, as client, server or middlebox; the old one is gone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.events import PeerMoved
from dysco.protocol.flow import HOST, UNDERLAY
from dysco.protocol.settings import Peer
from dysco.sim.endpoint import State
from dysco.sim.link import Fault
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Hello, Hops, Moved
from dysco.wire.packet import Packet
from protocol.living import Living
from protocol.rig import Rig, address, header_of, hops, read, session, syn, syn_ack, to_c

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@FAMILIES
@pytest.mark.parametrize("mover", ["a", "b", "d"])
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_session_goes_on_from_another_address(family: int, mover: str, loss: float) -> None:
    live = Living(family=family, loss=loss)
    live.say(bytes(50_000))
    live.wait(0.01)
    requests = live.move(mover, 50)
    live.talk(wait=60.0)
    assert [live.outcome(mover, one)[0] for one in requests] == ["done"] * (2 if mover == "b" else 1)
    new, old = address(50, family), address(1 + "abcd".index(mover), family)
    ends = [
        (one.src, one.dst) for name in "abcd" for _, one, _ in live.agent(name).subsessions(live.key(name))
    ]
    assert any(new in one for one in ends)
    assert not any(old in one for one in ends)
    assert live.chain() == "abcd"


@pytest.mark.parametrize("mover", ["a", "b", "d"])
def test_a_change_that_waits_for_the_old_path_waits_until_a_host_on_it_has_followed(mover: str) -> None:
    live = Living()
    live.readdress(mover, 50)
    live.say(bytes(9000))
    request = live.change("a", "a", "d")
    live.wait(1.0)
    why = "busy: this host has moved, and its subsession has not followed yet"
    assert live.outcome("a", request) == ("refused", mover, why)
    live.follow(mover, 50)
    live.talk()
    request = live.change("a", "a", "d")
    live.talk()
    assert live.outcome("a", request)[0] == "done"
    assert live.chain() == "ad"


def test_a_host_that_moves_while_its_lock_is_asked_for_does_not_refuse_what_it_has_passed_on() -> None:
    live = Living()
    answers = live.network.link("control", "d", "c")
    answers.up = False
    request = live.change("a", "a", "d")
    live.wait(0.05)
    live.settings["b"] = replace(live.settings["b"], left=frozenset(live.settings["b"].addresses))
    live.agent("b").configure(live.settings["b"], lambda _, __: None)
    answers.up = True
    live.talk()
    assert live.outcome("a", request)[0] == "done"


def test_neighbours_move_one_after_the_other() -> None:
    live = Living()
    for mover, number in (("a", 50), ("b", 51), ("a", 52)):
        live.move(mover, number)
        live.talk(wait=30.0)


def test_a_subsession_leads_to_where_its_peer_has_come_back_to_although_it_names_where_that_was() -> None:
    """As when a session has ended at the peer, which does not move it any more, and not yet here."""
    live = Living()
    live.move("b", 51)
    live.talk()
    live.readdress("b", 2)
    [request] = live.move("a", 50)
    live.wait(5.0)
    assert live.outcome("a", request)[0] == "done"
    [(_, subsession, _)] = live.agent("a").subsessions(live.key("a"))
    assert (subsession.src, subsession.dst) == (address(50), address(2))
    live.follow("b", 2)
    live.talk()


def test_a_neighbour_that_may_not_change_the_session_refuses() -> None:
    def peers(name: str, peer: Peer) -> Peer:
        if (name, peer.name) != ("b", "a"):
            return peer
        return Peer(peer.name, peer.addresses, may_change=lambda _: False)

    live = Living(peers=peers)
    [request] = live.move("a", 50)
    live.wait(10.0)
    assert live.outcome("a", request) == ("refused", "b", "a may not change this session")


def test_a_peer_is_reached_where_it_says_that_it_is_but_not_at_the_address_of_another() -> None:
    rig = Rig()
    rig.agent.receive_message("c", Moved(33, Hops((Hop(address(33)),))), rig.now)
    assert rig.agent.peer_address(address(3)) == address(33)
    rig.agent.receive_message("a", Moved(4, Hops((Hop(address(4)), Hop(address(33))))), rig.now)
    assert rig.agent.peer_address(address(1)) == address(1)
    assert rig.agent.peer_address(address(4)) == address(4)
    rig.agent.receive_message("c", Moved(34, Hops((Hop(address(3)),))), rig.now)
    assert rig.agent.peer_address(address(3)) == address(3)
    moved = [event for event in rig.events() if isinstance(event, PeerMoved)]
    assert moved == [PeerMoved("c", ("10.0.0.33",)), PeerMoved("c", ("10.0.0.3",))]


def test_a_session_moves_whose_ends_have_both_closed_while_the_last_bytes_are_on_their_way() -> None:
    live = Living()
    assert live.server is not None
    live.server.close(live.clock.now)
    live.wait(1.0)
    live.client.write(bytes(20_000), live.clock.now)
    live.client.close(live.clock.now)
    live.hosts["a"].arm(live.client)
    [request] = live.move("a", 50)
    live.wait(30.0)
    assert live.outcome("a", request)[0] == "done"
    assert len(live.server.received) == 20_000
    assert live.client.state is live.server.state is State.DONE


@pytest.mark.parametrize("mover", ["a", "d"])
def test_an_end_moves_whose_agent_has_begun_again_and_seen_no_packet_since(mover: str) -> None:
    """Nothing can come to its old address, so what its application answers when it is asked must be enough."""
    live = Living()
    live.talk()
    live.hosts[mover].restart()
    live.move(mover, 50)
    live.wait(10.0)
    live.follow(mover, 50)
    live.talk(wait=60.0)
    assert live.chain() == "abcd"


def test_a_right_anchor_that_begins_again_while_it_waits_asks_its_end_where_it_stands() -> None:
    live = Living()
    live.talk()
    live.network.link("control", "c", "d").fault = Fault(delay_s=0.02)
    [request] = live.move("d", 50)
    live.hosts["d"].restart()
    live.wait(20.0)
    live.follow("d", 50)
    live.talk(wait=60.0)
    assert request


def test_a_peer_that_moves_on_is_known_by_the_addresses_that_it_has_left_until_another_comes_there() -> None:
    rig = Rig()
    for number in (33, 44):
        rig.agent.receive_message("c", Moved(number, Hops((Hop(address(number)),))), rig.now)
    rig.agent.configure(rig.settings, lambda _, __: None)
    assert rig.agent.peer_address(address(33)) == address(44)
    rig.agent.receive_message("a", Moved(33, Hops((Hop(address(33)),))), rig.now)
    assert rig.agent.peer_address(address(1)) == address(33)
    assert rig.agent.peer_address(address(3)) == address(44)
    for number in range(50, 90):
        rig.agent.receive_message("c", Moved(number, Hops((Hop(address(number)),))), rig.now)
    rig.agent.configure(rig.settings, lambda _, __: None)
    assert rig.agent.peer_address(address(88)) == address(89)
    assert rig.agent.peer_address(address(50)) == address(50)


def test_what_a_peer_has_said_before_it_moved_on_is_not_believed_when_it_comes_late() -> None:
    rig = Rig()
    boots = [bytes([number]) * 16 for number in (1, 2)]
    rig.agent.peer_up("c", Hello(name="c", boot_id=boots[0]), b"k" * 32, b"K" * 32, rig.now)
    for number, where, known in ((2, 33, 33), (1, 44, 33), (2, 33, 33), (3, 44, 44)):
        rig.agent.receive_message("c", Moved(number, Hops((Hop(address(where)),))), rig.now)
        assert rig.agent.peer_address(address(3)) == address(known)
    rig.agent.peer_up("c", Hello(name="c", boot_id=boots[1]), b"n" * 32, b"N" * 32, rig.now)
    rig.agent.receive_message("c", Moved(1, Hops((Hop(address(33)),))), rig.now)
    assert rig.agent.peer_address(address(3)) == address(33)


@pytest.mark.parametrize(("answers", "known"), [(3, 3), (33, 33), (99, 3)])
def test_a_peer_that_begins_again_is_where_it_answers_or_where_the_configuration_says(
    answers: int, known: int
) -> None:
    rig = Rig(decision=to_c())
    boots = [bytes([number]) * 16 for number in (1, 2)]
    rig.agent.peer_up("c", Hello(name="c", boot_id=boots[0]), b"k" * 32, b"K" * 32, rig.now)
    rig.agent.receive_message("c", Moved(1, Hops((Hop(address(33)),))), rig.now)
    _, first = begun(rig, 33)
    again = Hello(name="c", boot_id=boots[1])
    rig.agent.peer_up("c", again, b"n" * 32, b"N" * 32, rig.now, address=address(answers))
    assert rig.agent.peer_address(address(3)) == address(known)
    assert rig.agent.peer_address(address(33)) == address(known)
    assert (begun(rig, known)[1] == first) == (known == 33)
    rig.agent.receive_message("c", Moved(1, Hops((Hop(address(34)),))), rig.now)
    begun(rig, 34)


def begun(rig: Rig, peer: int) -> tuple[Packet, bytes]:
    """A SYN of the host goes to a peer; gives what went out, and the id of its chain."""
    port, out = rig.one(HOST, syn(session(2)))
    assert (port, read(out).five_tuple.dst) == (UNDERLAY, address(peer))
    return out, header_of(out).chain_id


def moved(rig: Rig, number: int) -> None:
    """This host has another address; applications still have the old one."""
    settings = replace(rig.settings, addresses=(address(number), address(2, 6), address(2)))
    rig.agent.configure(settings, lambda _, __: rig.decision)
    rig.agent.begin_anew(rig.now)


def test_what_is_being_opened_begins_anew_from_where_this_host_is() -> None:
    rig = Rig(decision=to_c())
    out, before = begun(rig, 3)
    moved(rig, 22)
    assert not rig.table.flows
    assert rig.agent.ports_held() == 0
    assert rig.feed(UNDERLAY, syn_ack(read(out).five_tuple)) == []
    again, after = begun(rig, 3)
    assert read(again).five_tuple.src == address(22)
    assert after != before
    _, answer = rig.one(UNDERLAY, syn_ack(read(again).five_tuple))
    assert read(answer).five_tuple == session(2).reversed()
    moved(rig, 23)
    assert rig.state() == ["established"]


def test_what_is_being_opened_through_a_peer_begins_anew_where_it_is() -> None:
    rig = Rig(decision=to_c())
    _, before = begun(rig, 3)
    rig.agent.receive_message("a", Moved(1, Hops((Hop(address(11)),))), rig.now)
    assert begun(rig, 3)[1] == before
    rig.agent.receive_message("d", Moved(1, Hops((Hop(address(44)),))), rig.now)
    assert begun(rig, 3)[1] != before
    for _ in range(2):
        rig.agent.receive_message("c", Moved(1, Hops((Hop(address(33)),))), rig.now)
        out, after = begun(rig, 33)
        assert after != before
        assert header_of(out).hops == (Hop(address(33)), *hops(4))  # it may not know itself by another
    assert begun(rig, 33)[1] == after


def test_what_is_being_opened_by_others_or_not_sent_yet_is_left_alone() -> None:
    rig = Rig(decision=to_c(), up="ad")
    assert rig.feed(HOST, syn(session(2))) == []
    rig.one(UNDERLAY, rig.chained_syn(hops(2, 4)))
    moved(rig, 22)
    assert rig.state() == ["waiting", "opening"]
    rig.up("c")
    [(_, out)] = rig.take()
    assert read(out).five_tuple.src == address(22)
