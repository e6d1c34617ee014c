"""Anchors after a restart: what a journal has of a change that was under way, and what of it is not believed.

a --1-- b (this agent, with a box) --2-- d       as in test_locks.py
"""

from __future__ import annotations

import pytest

from dysco.protocol.anchors import LeftState, RightState
from dysco.protocol.chain import SEEN, Chain, Facing, Seam, Terms
from dysco.protocol.changing import Anchor
from dysco.protocol.flow import UNDERLAY
from dysco.protocol.ground import Side
from dysco.protocol.records import read_record
from dysco.protocol.stamps import Stamps
from dysco.protocol.windows import Windows, windows
from dysco.wire.messages import Ack, AckAck, LockQuery
from dysco.wire.packet import ACK, RST, Packet, build_tcp
from protocol.living import Living
from protocol.rig import PAIR_BOX, Rig, read, session
from protocol.test_guards import left_anchor, said, shake, switch, tell
from protocol.test_joints import SUBSESSION, handshake
from protocol.test_locks import CHAIN, HERE, NEW_HOP, Talk, right_anchor, wait_for_ack


def restarted(talk: Talk) -> tuple[Rig, Chain]:
    """b with what its journal has, and its peers up again."""
    [(_, data)] = talk.rig.agent.records()
    after = Rig(boxes=[PAIR_BOX])
    assert after.agent.restore(data, after.now)
    assert list(after.agent.records()) == [(talk.key(), data)]
    after.take()
    [chain] = after.agent._life.chains.values()
    assert chain.changing is not None
    return after, chain


def same(one: Anchor | None, other: Anchor | None) -> bool:
    assert one is not None
    assert other is not None
    assert one.new is not None
    assert other.new is not None
    ways = one.two, other.two
    if ways[0] is not None and ways[1] is not None:
        assert (ways[0].cutoff, ways[0].peer_cutoff) == (ways[1].cutoff, ways[1].peer_cutoff)
    return (one.change.request, one.new.tuple, one.new.hop, ways[0] is None) == (
        other.change.request,
        other.new.tuple,
        other.new.hop,
        ways[1] is None,
    )


def test_a_right_anchor_that_has_agreed_asks_what_became_of_the_change() -> None:
    talk = wait_for_ack((10, 20))
    rig, chain = restarted(talk)
    assert chain.changing is not None
    right = chain.changing.right
    assert same(right_anchor(talk), right)
    assert right is not None
    assert (right.state, right.sums) == (RightState.WAITING, (10, 20))
    rig.messages.clear()
    rig.wait(10.5)
    asked = [one.hop for one in said(rig, LockQuery) if isinstance(one, LockQuery)]
    assert set(asked) == {1, NEW_HOP}


def test_a_right_anchor_that_has_switched_goes_on_with_both_paths() -> None:
    talk = wait_for_ack((10, 20))
    tell(talk.rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, 5000, 0, False))
    rig, chain = restarted(talk)
    assert chain.changing is not None
    right = chain.changing.right
    assert same(right_anchor(talk), right)
    assert right is not None
    assert right.state is RightState.TWO_PATHS
    rig.messages.clear()
    tell(rig, "a", Ack(CHAIN, NEW_HOP, HERE.request, 5000, 0, False))
    assert len(said(rig, AckAck)) == 1


@pytest.mark.parametrize("switched", [False, True])
def test_a_left_anchor_that_has_switched_says_so_again(switched: bool) -> None:
    talk, anchor = left_anchor()
    shake(talk, anchor)
    if switched:
        switch(talk, anchor)
    rig, chain = restarted(talk)
    assert chain.changing is not None
    left = chain.changing.left
    assert same(anchor, left)
    assert left is not None
    assert left.state is LeftState.TWO_PATHS
    assert anchor.two is not None
    cutoffs = {one.cutoff for one in said(rig, Ack) if isinstance(one, Ack)}
    assert cutoffs == {anchor.two.cutoff}


def test_a_record_of_an_anchor_that_is_cut_off_is_not_believed() -> None:
    talk = wait_for_ack((10, 20))
    [(_, data)] = talk.rig.agent.records()
    found = [read_record(data[:length], (PAIR_BOX,), 0.0) for length in range(len(data))]
    assert found == [None] * len(data)


def test_a_seam_is_in_the_journal_and_a_wrong_one_is_not_believed() -> None:
    talk = Talk()
    [chain] = talk.rig.agent._life.chains.values()
    chain.left.seam = seam = Seam(b"R" * 16, 77, Terms(-3, 2, True, False))
    [(_, data)] = talk.rig.agent.records()
    read_again = read_record(data, (PAIR_BOX,), 0.0)
    assert read_again is not None
    assert read_again.left.seam is not None
    assert (read_again.left.seam.chain_id, read_again.left.seam.stamp) == (seam.chain_id, seam.stamp)
    assert read_again.left.seam.terms == seam.terms
    chain.left.seam.terms = Terms(15, 0, False, False)  # RFC 7323: at most 14
    [(_, data)] = talk.rig.agent.records()
    assert read_record(data, (PAIR_BOX,), 0.0) is None


# Timestamps and windows of a new path.


def bare(flags: int = ACK, window: int = 10, ack: int = 100) -> Packet:
    return build_tcp(session(), 1, ack, flags, window)


def stamped(value: int, echo: int) -> Packet:
    options = b"\1\1\x08\x0a" + value.to_bytes(4, "big") + echo.to_bytes(4, "big")
    return build_tcp(session(), 1, 2, ACK, 3, options)


def test_packets_without_timestamps_are_left_as_they_are() -> None:
    stamps, facing = Stamps(), Facing(UNDERLAY, UNDERLAY, SUBSESSION, "a")
    packet = bare()
    before, at = bytes(packet.data), read(packet)
    stamps.from_inside(packet, at)
    stamps.from_old(packet, at)
    stamps.from_new(packet, at, facing)
    stamps.to_old(packet, at)
    stamps.to_new(packet, at)
    stamps.settle(facing)
    stamps.finish(facing)
    assert bytes(packet.data) == before
    assert not stamps.is_known
    assert facing.seam is None


@pytest.mark.parametrize("settled", [False, True])
def test_timestamps_after_a_restart_go_on_where_they_were(settled: bool) -> None:
    stamps = Stamps()
    stamps.resume(50, 40, 30, settled=settled)
    assert stamps.latest == ((50, 40, 30) if settled else (50, 50, 50))
    packet = stamped(1, 60)
    stamps.to_old(packet, read(packet))
    assert packet.data[-4:] == (40 if settled else 60).to_bytes(4, "big")


def test_a_partial_checksum_does_not_cover_timestamps() -> None:
    stamps, facing = Stamps(), Facing(UNDERLAY, UNDERLAY, SUBSESSION, "a")
    stamps.given = 500
    packet = stamped(400, 1)
    packet.partial = True
    at = read(packet)
    field = slice(at.tcp_offset + 16, at.tcp_offset + 18)
    before = bytes(packet.data[field])
    stamps.from_new(packet, at, facing)
    assert packet.data[-8:-4] == (500).to_bytes(4, "big")
    assert bytes(packet.data[field]) == before


def test_a_window_reaches_no_further_than_the_cutoff_or_the_other_ends_own() -> None:
    one = Windows(inner=1, outer=2)
    for packet in (bare(RST | ACK, 9), bare(0, 9)):
        one.from_inside(read(packet))
        one.from_new(read(packet))
        assert not one.clamp(packet, read(packet), 100)
    assert (one.own, one.limit) == (None, None)
    one.from_inside(read(bare(window=10, ack=100)))
    one.from_inside(read(bare(window=1, ack=100)))
    assert one.own == 120
    packet = bare(window=50, ack=100)
    assert not one.clamp(packet, read(packet), 300)
    assert one.clamp(packet, read(packet), 180)
    assert read(packet).window == 20
    one.from_new(read(bare(window=5, ack=100)))
    one.learn(110)
    assert one.limit == 120
    assert one.clamp(packet, read(packet), 80)
    assert read(packet).window == 5
    assert one.clamp(bare(window=5, ack=130), read(bare(window=5, ack=130)), 80)


def test_windows_are_not_touched_where_scales_are_not_known() -> None:
    whole = (1460, 3, SEEN), (1460, 7, SEEN)
    talk = Talk()
    [chain] = talk.rig.agent._life.chains.values()
    chain.left.handshake = handshake(*whole)
    found = windows(chain, inner_left=True)
    assert found is not None
    assert (found.inner, found.outer) == (3, 7)
    chain.left.handshake = handshake(whole[0], (1460, 7, 0))
    assert windows(chain, inner_left=True) is None
    chain.left.handshake = handshake(*whole)
    chain.left.seam = Seam(terms=Terms(1))
    assert windows(chain, inner_left=True) is None
    chain.right = None
    assert windows(chain, inner_left=False) is None


@pytest.mark.parametrize(("side", "asker", "other"), [("left", "c", "d"), ("right", "b", "a")])
def test_questions_that_nobody_answers_do_not_keep_a_session_alive(
    side: Side, asker: str, other: str
) -> None:
    """They pass the box, and are counted behind it."""
    live = Living()
    live.talk()
    live.network.link("data", asker, other).up = False
    agent = live.agent(asker)
    [chain] = agent._life.chains.values()
    packets, active = agent._life.traffic(chain)[0], chain.active
    for _ in range(5):
        agent._ground.ask_inside(chain, side)
        live.hosts[asker].drain()
        live.wait(1.0)
    assert agent._life.traffic(chain)[0] == packets + 5
    assert chain.active == active + 5
