"""ICMP errors about chained sessions, both ways."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.flow import HOST, UNDERLAY
from dysco.wire.icmp import make_fragmentation_needed, parse_error
from dysco.wire.options import mss
from dysco.wire.packet import ACK, Packet, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import PAIR_BOX, Rig, address, hops, read, session, syn, syn_ack, to_c

ROUTER = 99


def too_big(about: FiveTuple, mtu: int, *, seq: int = 1001, source: int = ROUTER) -> Packet:
    quoted = build_tcp(about, seq, 0, ACK, 1, payload=bytes(1400))
    return make_fragmentation_needed(quoted, mtu, src=address(source, about.family), dst=about.src)


def unreachable(about: FiveTuple, seq: int, code: int = 1) -> Packet:
    """Host unreachable, or for IPv6 the same with ICMPv6's type."""
    packet = too_big(about, 0, seq=seq)
    offset = 20 if about.family == 4 else 40
    packet.data[offset : offset + 2] = bytes((3 if about.family == 4 else 1, code))
    return packet


@pytest.mark.parametrize("family", [4, 6])
def test_an_error_from_the_path_reaches_the_application_and_clamps_what_begins(family: int) -> None:
    rig = Rig(decision=replace(to_c(), hops=hops(3, 4, family=family)))
    mine = session(2, family=family)
    sub = rig.establish(mine)
    port, out = rig.one(UNDERLAY, too_big(sub, 1300))
    error = parse_error(out)
    assert error is not None
    assert (port, error.five_tuple, error.mtu, error.dst) == (HOST, mine, 1300, address(2, family))
    assert error.src == address(ROUTER, family)
    limit = 1300 - (40 if family == 4 else 60)
    _, next_syn = rig.one(HOST, syn(session(2, port=5, family=family)))
    assert mss(next_syn) == limit
    rig.wait(601.0)
    _, later = rig.one(HOST, syn(session(2, port=6, family=family)))
    assert mss(later) == min(1460, 1500 - (40 if family == 4 else 60))


def test_an_error_behind_this_host_is_told_to_the_previous_hop_in_its_words() -> None:
    rig = Rig()
    first = rig.chained_syn(hops(2, 3, 4))
    _, out = rig.one(UNDERLAY, first)
    rig.feed(UNDERLAY, syn_ack(read(out).five_tuple))
    port, told = rig.one(UNDERLAY, too_big(read(out).five_tuple, 1300))
    error = parse_error(told)
    assert error is not None
    assert (port, error.five_tuple) == (UNDERLAY, read(first).five_tuple)
    assert (error.src, error.dst) == (address(2), address(1))


def test_an_error_made_by_this_host_or_its_box_goes_to_the_left() -> None:
    rig = Rig()
    inner = session(1, 2)
    first = rig.chained_syn(hops(2), of=inner)
    rig.feed(UNDERLAY, first)
    rig.feed(HOST, syn_ack(inner))
    port, told = rig.one(HOST, too_big(inner, 1300, source=2))
    error = parse_error(told)
    assert error is not None
    assert (port, error.five_tuple, error.src) == (UNDERLAY, read(first).five_tuple, address(2))
    rig = Rig(boxes=[PAIR_BOX])
    first = rig.chained_syn(hops(2, 4))
    rig.feed(UNDERLAY, first)
    port, told = rig.one(PAIR_BOX.left_read, too_big(session(), 1300, source=2))
    error = parse_error(told)
    assert error is not None
    assert (port, error.five_tuple) == (UNDERLAY, read(first).five_tuple)


@pytest.mark.parametrize("family", [4, 6])
def test_what_cannot_be_is_dropped(family: int) -> None:
    rig = Rig(decision=replace(to_c(), hops=hops(3, 4, family=family)))
    sub = rig.establish(session(2, family=family))
    assert rig.feed(UNDERLAY, too_big(sub, 575 if family == 4 else 1279)) == []
    opening = rig.begin(session(2, port=5, family=family))
    assert rig.feed(UNDERLAY, too_big(opening, 1400, seq=5)) == []
    assert rig.agent.counters["icmp_implausible"] == 2
    assert len(rig.feed(UNDERLAY, too_big(opening, 1400, seq=1000))) == 1


def test_an_error_about_nothing_of_ours_passes() -> None:
    rig = Rig()
    stranger = too_big(session(), 1300)
    assert rig.feed(UNDERLAY, stranger) == [(HOST, stranger)]


@pytest.mark.parametrize("family", [4, 6])
def test_an_unreachable_hop_is_gone_round_when_open(family: int) -> None:
    decision = replace(to_c(), hops=hops(3, 4, family=family))
    rig = Rig(decision=replace(decision, on_fail_open=True))
    mine = session(2, family=family)
    first = syn(mine)
    _, out = rig.one(HOST, first)
    assert rig.one(UNDERLAY, unreachable(read(out).five_tuple, 1000)) == (HOST, first)
    assert rig.state() == []
    rig = Rig(decision=decision)
    sub = rig.begin(mine)
    port, told = rig.one(UNDERLAY, unreachable(sub, 1000))
    error = parse_error(told)
    assert error is not None
    assert (port, error.five_tuple) == (HOST, mine)
    rig.feed(UNDERLAY, syn_ack(sub))
    assert len(rig.feed(UNDERLAY, unreachable(sub, 1001))) == 1


def test_a_soft_error_changes_nothing() -> None:
    rig = Rig(decision=replace(to_c(), on_fail_open=True))
    sub = rig.begin()
    assert len(rig.feed(UNDERLAY, unreachable(sub, 1000, code=11))) == 1
    assert rig.state() == ["opening"]


def test_the_mtu_of_a_path_to_no_peer_is_nobody_s() -> None:
    rig = Rig(peers=lambda peer: replace(peer, may_use=lambda _: True))
    inner = session(1, 9)
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=inner))
    rig.feed(UNDERLAY, syn_ack(inner))
    assert len(rig.feed(UNDERLAY, too_big(inner, 1300))) == 1
