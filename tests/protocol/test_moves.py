"""Hosts get another address in the middle of a session, as client, server or middlebox; the old one is gone."""

from __future__ import annotations

import pytest

from dysco.protocol.events import PeerMoved
from dysco.protocol.settings import Peer
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Hops, Moved
from protocol.living import Living
from protocol.rig import Rig, address

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


def test_neighbours_move_one_after_the_other() -> None:
    live = Living()
    for mover, number in (("a", 50), ("b", 51), ("a", 52)):
        live.move(mover, number)
        live.talk(wait=30.0)


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
    rig.agent.receive_message("c", Moved(Hops((Hop(address(33)),))), rig.now)
    assert rig.agent.peer_address(address(3)) == address(33)
    rig.agent.receive_message("a", Moved(Hops((Hop(address(4)), Hop(address(33))))), rig.now)
    assert rig.agent.peer_address(address(1)) == address(1)
    assert rig.agent.peer_address(address(4)) == address(4)
    rig.agent.receive_message("c", Moved(Hops((Hop(address(3)),))), rig.now)
    assert rig.agent.peer_address(address(3)) == address(3)
    moved = [event for event in rig.events() if isinstance(event, PeerMoved)]
    assert moved == [PeerMoved("c", ("10.0.0.33",)), PeerMoved("c", ("10.0.0.3",))]
