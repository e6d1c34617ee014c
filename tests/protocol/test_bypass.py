"""Hosts that are dead, agent and all, are bypassed by their neighbours, which were told who is on the chain."""

from __future__ import annotations

import pytest

from dysco.protocol.paths import TwoPaths
from dysco.protocol.right import QUERY_S
from dysco.sim.box import Firewall, Renumber, Side
from dysco.sim.endpoint import State
from dysco.sim.host import Host
from dysco.sim.link import Fault
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Ack, Change, Hops, Message, RequestLock
from dysco.wire.numbers import distance, later
from dysco.wire.packet import ACK, Packet
from dysco.wire.tuples import FiveTuple
from protocol.living import Living
from protocol.rig import read

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@FAMILIES
def test_all_on_a_chain_are_told_who_is_on_it(family: int) -> None:
    live = Living(family=family)
    assert [live.chain(name) for name in "abcd"] == ["abcd"] * 4
    live.change("b", "b", "d", "e")
    live.wait(5.0)
    assert [live.chain(name) for name in "abed"] == ["abed"] * 4
    live.hosts["b"].restart()
    assert live.chain("b") == "abed"


@FAMILIES
@pytest.mark.parametrize("asker", ["a", "c", "d"])
@pytest.mark.parametrize("new", ["", "e"])
def test_a_dead_box_is_bypassed_whoever_asks(family: int, asker: str, new: str) -> None:
    live = Living(family=family)
    live.talk()
    live.kill("b")
    request = live.change(asker, "a", "c", *new, force=True)
    live.talk()
    assert live.outcome(asker, request)[0] == "done"
    assert live.chain() == f"a{new}cd"
    live.talk(wait=3.0)


@pytest.mark.parametrize("noticed", [True, False])
def test_bytes_that_were_under_way_in_a_dead_box_are_sent_again(noticed: bool) -> None:
    live = Living(loss=0.05)
    live.say(bytes(100_000))
    live.wait(0.05)
    live.kill("c")
    live.wait(5.0)
    if noticed:
        live.notice("c")
    request = live.change("a", "b", "d", force=True)
    live.wait(120.0)
    assert live.outcome("a", request)[0] == "done"
    live.talk(wait=60.0)


def test_two_dead_neighbours_are_bypassed_together() -> None:
    live = Living()
    live.kill("b", "c")
    live.notice("b", "c")
    request = live.change("a", "a", "c", force=True)
    assert live.outcome("a", request)[::2] == ("refused", "no association with c")
    live.change("a", "a", "d", force=True)
    live.talk()
    assert live.chain() == "ad"


def test_a_box_that_gives_other_numbers_is_bypassed() -> None:
    live = Living(boxes={"b": Renumber(0x1005, -7)})
    live.talk()
    live.kill("b")
    live.change("a", "a", "c", force=True)
    live.talk()
    assert live.chain() == "acd"


def test_a_dead_host_that_comes_back_leaves_a_chain_that_goes_around_it() -> None:
    live = Living()
    live.talk()
    live.kill("b")
    live.change("a", "a", "c", force=True)
    live.talk()
    live.revive("b")
    assert len(live.agent("b")) == 1
    live.wait(10.0)
    assert len(live.agent("b")) == 0
    assert live.closed("b") == ["moved"]
    live.talk()
    assert live.chain() == "acd"


def test_a_host_that_comes_back_stays_on_a_chain_that_has_waited_for_it() -> None:
    live = Living()
    live.kill("b")
    live.wait(3.0)
    live.revive("b")
    live.talk()
    assert live.chain("b") == "abcd"


def test_without_force_a_dead_box_stays() -> None:
    live = Living()
    live.kill("b")
    request = live.change("a", "a", "c")
    live.wait(30.0)
    assert live.outcome("a", request)[::2] == ("refused", "the lock was not answered")


def test_what_a_dead_stream_box_held_is_lost_and_the_session_is_reset_at_both_ends() -> None:
    live = Living(steady=False)
    live.talk()
    live.kill("b")
    request = live.change("a", "a", "c", force=True)
    live.say(b"anything that shows where the ends stand")
    live.wait(10.0)
    assert live.outcome("a", request) == (
        "refused",
        "c",
        "b/box-b is dead, and it had changed the stream, so what it held is lost: the session is reset",
    )
    assert live.closed("a") == live.closed("c") == ["bypassed"]
    assert live.server is not None
    assert live.client.state is live.server.state is State.FAILED


def test_only_an_agent_that_may_change_the_session_and_is_on_its_chain_is_believed() -> None:
    live = Living()
    live.kill("b")
    live.replace_peer("c", "a", may_change=lambda _: False)
    request = live.change("a", "a", "c", force=True)
    live.wait(10.0)
    assert live.outcome("a", request) == ("refused", "c", "a may not change this session")
    before = live.agent("c").counters["message_implausible"]
    [place] = [one for one in live.agent("a").places(live.key("a")) if one.agent == "c"]
    forged = Change(99, 1, place.left, Hops((Hop(place.address),)), force=True, origin="e")
    message = RequestLock(live.key("a")[:16], place.left, forged, "e")
    live.agent("c").receive_message("e", message, live.clock.now)
    assert live.agent("c").counters["message_implausible"] == before + 1
    live.hosts["c"].drain()
    assert not any(name == "c" and "locked" in str(event) for name, event in live.heard)


class Tracker(Firewall):
    """Drops what acknowledges more than it has seen, too, as the kernel's connection tracking does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[FiveTuple, int] = {}

    def forward(self, packet: Packet, side: Side) -> list[Packet]:
        at = read(packet)
        top = self.seen.get(at.five_tuple.reversed())
        if top is not None and at.flags & ACK and distance(at.ack, top) > 0:
            self.dropped += 1
            return []
        before = self.seen.get(at.five_tuple, at.next_seq)
        self.seen[at.five_tuple] = later(before, at.next_seq)
        return super().forward(packet, side)


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("sender", ["a", "d"])
def test_a_tracker_learns_what_a_dead_path_has_carried(sender: str, loss: float) -> None:
    tracker = Tracker()
    live = Living(boxes={"e": tracker})
    assert live.server is not None
    end, other = (live.client, live.server) if sender == "a" else (live.server, live.client)
    end.write(bytes(200_000), live.clock.now)
    live.hosts[sender].arm(end)
    # Data come through, and the acknowledgements of them do not.
    towards_b = "c" if sender == "a" else "a"
    live.network.link("data", towards_b, "b").up = False
    live.wait(0.1)
    assert len(other.received) > 50_000
    live.kill("b")
    for one in (("a", "e"), ("e", "c"), ("c", "e"), ("e", "a")):
        live.network.link("data", *one).fault = Fault(delay_s=0.001, loss=loss)
    request = live.change("a", "a", "c", "e", force=True)
    live.wait(0.5)
    [seen] = [top for of, top in tracker.seen.items() if of.src == live.hosts[sender].addresses[0]]
    assert loss or (seen - end.isn - 1) % 2**32 >= len(other.received)
    live.wait(120.0)
    assert live.outcome("a", request)[0] == "done"
    assert len(other.received) == 200_000
    assert loss or tracker.dropped == 0


def test_a_cutoff_alone_says_nothing_of_what_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The right anchor that asks learns where the left one has switched, and not what its end has acknowledged."""
    live = Living()
    live.talk()
    live.kill("b")
    deliver, lost, told = live.network.message, [], []

    def lossy(source: Host, peer: str, message: Message) -> None:
        if isinstance(message, Ack):
            lost.append(message)
        else:
            deliver(source, peer, message)

    monkeypatch.setattr(live.network, "message", lossy)
    monkeypatch.setattr(TwoPaths, "has_come", lambda two, answered: told.append(answered))
    request = live.change("a", "a", "c", force=True)
    live.wait(QUERY_S + 5.0)
    assert lost
    assert len(told) == 1  # to the left anchor, by `ackAck`
    assert live.outcome("a", request)[0] == "done"
    live.talk()
