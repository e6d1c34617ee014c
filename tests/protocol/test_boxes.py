"""SYNs that go into a middlebox and come out: by tuple, tag, fingerprint, API."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST, Flow
from dysco.protocol.flow import UNDERLAY as WIRE
from dysco.protocol.settings import LocalBox, Match
from dysco.wire.chain_header import Hop
from dysco.wire.messages import SynRefused
from dysco.wire.options import find_tag, strip_tag
from dysco.wire.packet import ACK, RST, Packet, build_tcp, verify
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple
from protocol.rig import (
    KERNEL_BOX,
    NAT_BOX,
    PAIR_BOX,
    Rig,
    address,
    header_of,
    hops,
    read,
    session,
    syn,
    syn_ack,
)

IN, OUT = FIRST_BOX, FIRST_BOX + 1
TRANSLATED = FiveTuple.of(address(2), 20000, address(4), 80)


def translated(packet: Packet, to: FiveTuple) -> Packet:
    new = packet.copy()
    apply(new, Flow(0, read(new).five_tuple, 0, to))
    return new


def nat(*match: Match) -> LocalBox:
    return replace(NAT_BOX, match=match)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("box", "write", "right", "right_write"),
    [(KERNEL_BOX, FORWARD, HOST, FORWARD), (PAIR_BOX, IN, OUT, OUT)],
    ids=["kernel", "devices"],
)
def test_a_box_that_changes_nothing(
    box: LocalBox, write: int, right: int, right_write: int, family: int
) -> None:
    rig = Rig(boxes=[box])
    first = rig.chained_syn(hops(2, 3, 4, family=family), of=session(family=family))
    port, into = rig.one(WIRE, first)
    assert (port, read(into).five_tuple, read(into).payload_len) == (write, session(family=family), 0)
    assert find_tag(into) is None
    assert rig.table.captured == ({session(family=family)} if box is KERNEL_BOX else set())
    assert rig.state() == ["at-box"]
    port, out = rig.one(right, into)
    header = header_of(out)
    assert (port, header.hops, header.hop_index) == (WIRE, hops(3, 4, family=family), 1)
    port, back = rig.one(WIRE, syn_ack(read(out).five_tuple))
    assert (port, read(back).five_tuple) == (right_write, session(family=family).reversed())
    assert rig.table.captured == set()
    port, back = rig.one(box.left_read, back)
    assert (port, read(back).five_tuple) == (WIRE, read(first).five_tuple.reversed())
    [info] = rig.agent.sessions()
    assert (info.role, info.box, info.state) == ("middle", box.name, "established")


def test_a_repeated_syn_goes_through_the_box_again() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    first = rig.chained_syn(hops(2, 3, 4))
    port, into = rig.one(WIRE, first)
    assert rig.one(WIRE, first) == (port, into)
    port, out = rig.one(OUT, into)
    assert rig.one(OUT, into) == (port, out)


def test_a_syn_that_waits_behind_the_box_is_kept_once() -> None:
    rig = Rig(boxes=[KERNEL_BOX], up="a")
    _, into = rig.one(WIRE, rig.chained_syn(hops(2, 3, 4)))
    assert rig.feed(HOST, into) == []
    assert rig.feed(HOST, into) == []
    assert rig.state() == ["waiting"]
    rig.up("c")
    assert len(rig.take()) == 1


def test_an_isn_that_the_box_changes_is_known_on_both_sides() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    first = rig.chained_syn(hops(2, 3, 4))
    rig.feed(WIRE, first)
    port, out = rig.one(OUT, syn(session(), isn=777))
    assert rig.one(OUT, syn(session(), isn=777)) == (port, out)
    sub = read(out).five_tuple
    rig.events()
    rig.feed(WIRE, syn_ack(sub, isn=5000, of=777))
    rig.feed(IN, syn_ack(session(), isn=8000))
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    assert (chain.left.forward.isn, chain.right.forward.isn) == (1000, 777)
    assert (chain.left.backward.isn, chain.right.backward.isn) == (8000, 5000)
    assert len(rig.events()) == 3
    rig.feed(IN, syn_ack(session(), isn=8000))
    assert rig.events() == []


def test_a_box_that_answers_before_its_own_syn_leaves() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    rig.feed(WIRE, rig.chained_syn(hops(2, 3, 4)))
    assert rig.one(IN, syn_ack(session(), isn=42))[0] == WIRE
    assert rig.state() == ["at-box"]
    _, out = rig.one(OUT, syn(session(), isn=777))
    rig.feed(WIRE, syn_ack(read(out).five_tuple, isn=43, of=777))
    [chain] = rig.agent._life.chains.values()
    assert chain.left.backward.isn == 42
    assert rig.state() == ["established"]


def test_nat_is_followed_by_the_tag_which_is_stripped() -> None:
    rig = Rig(boxes=[nat("tag")])
    _, into = rig.one(WIRE, rig.chained_syn(hops(2, 3, 4)))
    assert find_tag(into) is not None
    assert verify(into)
    _, again = rig.one(WIRE, rig.chained_syn(hops(2, 3, 4)))
    assert find_tag(again) == find_tag(into)
    out = rig.one(OUT, translated(into, TRANSLATED))[1]
    assert find_tag(out) is None
    assert (header_of(out).session, header_of(out).hops) == (TRANSLATED, hops(3, 4))
    _, back = rig.one(WIRE, syn_ack(read(out).five_tuple))
    assert read(back).five_tuple == TRANSLATED.reversed()
    _, back = rig.one(IN, translated(back, session().reversed()))
    assert read(back).five_tuple.dst == address(1)


def test_a_syn_without_room_for_a_tag_is_known_by_its_looks() -> None:
    rig = Rig(boxes=[nat("tag", "fingerprint")])
    full = bytes((2, 4, 5, 180)) + bytes((1,)) * 36
    _, into = rig.one(WIRE, rig.chained_syn(hops(2, 3, 4), options=full))
    assert find_tag(into) is None
    _, out = rig.one(OUT, translated(into, TRANSLATED))
    assert header_of(out).session == TRANSLATED


def test_a_fingerprint_counts_two_seconds_and_while_it_names_one() -> None:
    rig = Rig(boxes=[nat("fingerprint")])
    _, into = rig.one(WIRE, rig.chained_syn(hops(2, 3, 4)))
    rig.wait(2.0)
    assert rig.feed(OUT, translated(into, TRANSLATED)) == []
    assert rig.agent.counters["unknown_session"] == 1
    rig.feed(WIRE, rig.chained_syn(hops(2, 3, 4)))
    other = rig.chained_syn(
        hops(2, 3, 4), of=session(port=5), ports=(61001, 61004), chain_id=b"other-chain-id-1"
    )
    _, into_other = rig.one(WIRE, other)
    assert rig.feed(OUT, translated(into, TRANSLATED)) == []
    different = rig.chained_syn(
        hops(2, 3, 4), of=session(port=6), ports=(61001, 61006), chain_id=b"other-chain-id-2", isn=5
    )
    _, into_different = rig.one(WIRE, different)
    _, out = rig.one(OUT, translated(into_different, TRANSLATED))
    assert header_of(out).chain_id == b"other-chain-id-2"
    rig.wait(80.0)
    assert not rig.agent._setup.at_box._by_fingerprint
    assert into_other


def test_a_repeated_syn_renews_its_looks() -> None:
    rig = Rig(boxes=[nat("fingerprint")])
    rig.feed(WIRE, rig.chained_syn(hops(2, 3, 4)))
    rig.wait(3.0)
    _, into = rig.one(WIRE, rig.chained_syn(hops(2, 3, 4)))
    _, out = rig.one(OUT, translated(into, TRANSLATED))
    assert header_of(out).session == TRANSLATED


def test_the_api_says_what_comes_out() -> None:
    for box in (nat("api"), replace(KERNEL_BOX, changes_tuple=True, match=("api",))):
        rig = Rig(boxes=[box])
        rig.feed(WIRE, rig.chained_syn(hops(2, 3, 4)))
        assert not rig.agent.expect(session(port=1), TRANSLATED)
        assert rig.agent.expect(session(), TRANSLATED)
        assert rig.table.captured == ({TRANSLATED} if box.right_read == HOST else set())
        _, out = rig.one(box.right_read, syn(TRANSLATED, isn=4711))
        assert header_of(out).session == TRANSLATED
        rig.feed(WIRE, syn_ack(read(out).five_tuple, of=4711))
        assert rig.table.captured == set()
        assert not rig.agent.expect(session(), TRANSLATED)
    rig = Rig(boxes=[PAIR_BOX])
    rig.feed(WIRE, rig.chained_syn(hops(2, 3, 4)))
    assert not rig.agent.expect(session(), TRANSLATED)


def test_a_box_chooses_the_hops_behind_it() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    _, into = rig.one(WIRE, rig.chained_syn(hops(2, 4)))
    assert not rig.agent.set_hops(session(port=1), hops(3, 4))
    assert rig.agent.set_hops(session(), hops(3, 4))
    _, out = rig.one(OUT, into)
    assert header_of(out).hops == hops(3, 4)
    assert not rig.agent.set_hops(session(), hops(4))


def test_hops_that_no_header_can_carry_are_refused() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    _, into = rig.one(WIRE, rig.chained_syn(hops(2, 4)))
    rig.agent.set_hops(session(), hops(*(3,) * 17))
    assert rig.feed(OUT, into) == []
    assert rig.messages == [("a", SynRefused(b"chain-0123456789", "a chain header has 1 to 16 hops, not 17"))]
    assert rig.agent.sessions_via(address(3)) == 0


def test_a_box_that_changes_the_destination_changes_the_final_host() -> None:
    to_c = FiveTuple.of(address(1), 40000, address(3), 8080)
    for route, expected in ((hops(2, 4), hops(3)), (hops(2, 3, 4), hops(3, 3)), (hops(2, 3), hops(3))):
        rig = Rig(boxes=[nat("tag")])
        _, into = rig.one(WIRE, rig.chained_syn(route))
        _, out = rig.one(OUT, translated(into, to_c))
        assert header_of(out).hops == expected


def test_the_last_hop_may_be_a_box_before_the_host_s_own_server() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    inner = session(1, 2)
    _, into = rig.one(WIRE, rig.chained_syn((Hop(address(2), 0xA),), of=inner))
    assert read(into).five_tuple == inner
    port, out = rig.one(OUT, into)
    assert (port, read(out).five_tuple) == (HOST, inner)
    assert rig.one(HOST, syn_ack(inner))[0] == OUT


def test_what_comes_out_of_a_box_unannounced_goes_nowhere() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    assert rig.feed(OUT, syn(session())) == []
    assert rig.feed(OUT, build_tcp(session(), 1, 1, ACK, 1)) == []
    assert rig.agent.counters["unknown_session"] == 2
    rig.feed(WIRE, rig.chained_syn(hops(2, 3, 4)))
    assert rig.feed(IN, syn(session())) == []


def test_a_box_that_refuses_tells_the_left() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    rig.feed(WIRE, rig.chained_syn(hops(2, 3, 4)))
    port, _ = rig.one(IN, build_tcp(session().reversed(), 0, 1001, RST | ACK, 0))
    assert port == WIRE
    assert rig.state() == ["at-box"]


def test_a_first_agent_that_restarted_makes_a_chain_that_wins() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    _, into = rig.one(WIRE, rig.chained_syn(hops(2, 3, 4)))
    rig.feed(OUT, into)
    again = rig.chained_syn(hops(2, 3, 4), ports=(61001, 61004), chain_id=b"after-a-restart!")
    _, into = rig.one(WIRE, again)
    _, out = rig.one(OUT, into)
    assert header_of(out).chain_id == b"after-a-restart!"
    assert [info.chain_id for info in rig.agent.sessions()] == [b"after-a-restart!"]
    assert len(rig.table.flows) == 4


def test_a_tag_alone_never_leaves() -> None:
    rig = Rig(boxes=[nat("tag")])
    _, into = rig.one(WIRE, rig.chained_syn(hops(2, 3, 4)))
    rig.wait(80.0)
    assert rig.state() == []
    assert rig.feed(OUT, into) == []
    assert rig.agent.counters["tag_unknown"] == 1
    assert strip_tag(into)


def test_hops_that_a_kernel_box_chooses_count_also_where_the_kernel_would_go_on_by_itself() -> None:
    for box, is_captured in ((KERNEL_BOX, True), (PAIR_BOX, False)):
        rig = Rig(boxes=[box])
        rig.one(WIRE, rig.chained_syn(hops(2, 4)))
        rig.table.captured.clear()
        assert rig.agent.set_hops(session(), hops(3, 4))
        assert (session() in rig.table.captured) == is_captured
