"""How chains begin: packets in, packets out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.events import SentNatively, SessionOpened, SetupRefused
from dysco.protocol.flow import FORWARD, HOST, LOOP, UNDERLAY
from dysco.protocol.settings import Decision, Limits, Timers
from dysco.wire import chain_header
from dysco.wire.chain_header import Egress, Hop
from dysco.wire.messages import Gone, Hello, SynRefused
from dysco.wire.options import find_tag, insert_tag, mss
from dysco.wire.packet import ACK, FIN, RST, SYN, build_tcp, verify
from dysco.wire.tuples import FiveTuple
from protocol.rig import (
    KERNEL_BOX,
    MSS_1460,
    PAIR_BOX,
    Rig,
    address,
    header_of,
    hops,
    read,
    session,
    syn,
    syn_ack,
    to_c,
)

OPEN = replace(to_c(), on_fail_open=True)


@pytest.mark.parametrize("family", [4, 6])
def test_the_first_agent_chains_and_the_answer_comes_back(family: int) -> None:
    route = hops(3, 4, family=family)
    rig = Rig(decision=Decision("web", route))
    mine = session(2, family=family)
    port, out = rig.one(HOST, syn(mine, payload=b"early"))
    header = header_of(out)
    at = read(out)
    assert port == UNDERLAY
    assert verify(out)
    assert (at.five_tuple.src, at.five_tuple.dst) == (address(2, family), address(3, family))
    assert (header.session, header.subsession, header.hops) == (mine, at.five_tuple, route)
    assert chain_header.verify(out.data[at.payload_offset :], b"C" * 32)
    assert out.data.endswith(b"early")
    assert rig.state() == ["opening"]
    port, back = rig.one(UNDERLAY, syn_ack(at.five_tuple))
    assert (port, read(back).five_tuple) == (HOST, mine.reversed())
    assert verify(back)
    assert rig.state() == ["established"]
    port, data = rig.one(HOST, build_tcp(mine, 1001, 9001, ACK, 100, payload=b"x"))
    assert (port, read(data).five_tuple) == (UNDERLAY, at.five_tuple)


def test_a_session_that_no_policy_wants_passes() -> None:
    rig = Rig()
    first = syn(session(2))
    assert rig.one(HOST, first) == (HOST, first)
    assert rig.agent.counters["no_policy"] == 1
    assert not rig.table.flows


@pytest.mark.parametrize(
    ("options", "counter"),
    [
        (bytes((19, 18)) + bytes(16), "tcp_signed"),
        (bytes((29, 4, 0, 0)), "tcp_signed"),
        (bytes((30, 4, 0, 0)), "mptcp"),
    ],
)
def test_what_tcp_forbids_to_touch_passes(options: bytes, counter: str) -> None:
    rig = Rig(decision=to_c())
    first = syn(session(2), options=options)
    assert rig.one(HOST, first) == (HOST, first)
    assert rig.agent.counters[counter] == 1


def test_a_repeated_syn_repeats_ports_chain_id_and_header() -> None:
    rig = Rig(decision=to_c(), mtu=1280)
    _, first = rig.one(HOST, syn(session(2)))
    _, second = rig.one(HOST, syn(session(2)))
    assert first == second
    assert mss(second) == 1240
    assert len(rig.agent) == 1
    assert rig.agent.counters["syn_again"] == 1


def test_a_repeated_syn_is_signed_with_the_key_of_the_day() -> None:
    rig = Rig(decision=to_c())
    _, first = rig.one(HOST, syn(session(2)))
    rig.up("c", b"n" * 32)
    _, second = rig.one(HOST, syn(session(2)))
    old, new = header_of(first), header_of(second)
    assert old._replace(counter=0) == new._replace(counter=0)
    assert new.counter > old.counter
    assert chain_header.verify(second.data[read(second).payload_offset :], b"N" * 32)


def test_a_repeated_syn_of_a_chain_whose_peer_is_gone_from_the_configuration() -> None:
    rig = Rig(decision=to_c())
    _, first = rig.one(HOST, syn(session(2)))
    rig.agent.configure(replace(rig.settings, peers=()), lambda _, __: None)
    assert rig.one(HOST, syn(session(2)))[1] == first


def test_a_syn_with_another_isn_on_a_live_session_is_the_endpoint_s_affair() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    port, out = rig.one(HOST, syn(session(2), isn=5))
    assert (port, read(out).five_tuple, read(out).payload_len) == (UNDERLAY, sub, 0)
    assert rig.state() == ["established"]


@pytest.mark.parametrize("forward", [True, False])
def test_a_syn_that_comes_behind_what_followed_it_goes_no_further(forward: bool) -> None:
    """A kernel carries the session while the agent has the copy in its hands; a strict firewall would lose track."""
    rig = Rig(decision=to_c())
    sub = rig.establish()
    mine, back = session(2), sub.reversed()
    port, again = (HOST, syn(mine)) if forward else (UNDERLAY, syn_ack(sub))
    rig.one(port, again)  # nobody knows yet whether the other has heard it
    rig.one(HOST, build_tcp(mine, 1001, 9001, ACK, 100, payload=b"x"))
    if not forward:
        rig.one(UNDERLAY, syn_ack(sub))  # the server may not have heard that
        rig.one(UNDERLAY, build_tcp(back, 9001, 1001, ACK, 100))  # nor does that tell
        rig.one(UNDERLAY, syn_ack(sub))
        rig.one(UNDERLAY, build_tcp(back, 9001, 1002, ACK, 100))
    port, again = (HOST, syn(mine)) if forward else (UNDERLAY, syn_ack(sub))
    assert rig.feed(port, again) == []
    assert rig.agent.counters["syn_late"] == 1
    port, again = (HOST, syn(mine, isn=5)) if forward else (UNDERLAY, syn_ack(sub, isn=5))
    rig.one(port, again)  # that is an endpoint's affair


def test_a_syn_ack_that_comes_behind_data_goes_no_further() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    rig.one(UNDERLAY, build_tcp(sub.reversed(), 9001, 1001, ACK, 100, payload=b"x"))
    rig.one(UNDERLAY, syn_ack(sub))  # Fast Open: the client may still wait for it
    rig.one(HOST, build_tcp(session(2), 1001, 9001, ACK, 100))
    assert rig.feed(UNDERLAY, syn_ack(sub)) == []


def test_another_isn_before_the_answer_begins_a_new_chain() -> None:
    rig = Rig(decision=to_c())
    sub = rig.begin()
    assert rig.begin(isn=5) != sub
    assert rig.state() == ["opening"]


def test_a_session_in_time_wait_is_replaced() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    rig.feed(HOST, build_tcp(session(2), 1001, 9001, FIN | ACK, 1))
    rig.feed(UNDERLAY, build_tcp(sub.reversed(), 9001, 1002, FIN | ACK, 1))
    assert rig.state() == ["time-wait"]
    assert rig.begin(isn=77) != sub
    assert rig.agent.counters["closed_replaced"] == 1


def test_a_neighbour_s_syn_without_a_header_begins_nothing_in_the_place_of_a_session_that_is_over() -> None:
    # As a copy out of a path handshake that comes after the agent has begun again: the box would let it out.
    rig = Rig(boxes=[KERNEL_BOX])
    _, inner = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4)))
    _, out = rig.one(HOST, inner)
    left, right = FiveTuple.of(address(1), 61001, address(2), 61002), read(out).five_tuple
    rig.one(HOST, rig.one(UNDERLAY, syn_ack(right))[1])
    late = syn(left, 1001)
    assert rig.one(UNDERLAY, late)[0] == FORWARD  # as long as the session lives, it is the endpoint's affair
    rig.one(UNDERLAY, build_tcp(left, 1001, 9001, FIN | ACK, 1))
    rig.one(UNDERLAY, build_tcp(right.reversed(), 9001, 1002, FIN | ACK, 1))
    assert rig.state() == ["time-wait"]
    assert rig.feed(UNDERLAY, late) == []
    assert rig.agent.counters["syn_stray"] == 1
    assert rig.one(UNDERLAY, rig.chained_syn(hops(2, 4), isn=7000, chain_id=bytes(16)))[0] == FORWARD
    assert rig.agent.counters["closed_replaced"] == 1


def test_a_syn_against_the_direction_is_a_simultaneous_open_and_passes() -> None:
    rig = Rig(decision=to_c())
    sub = rig.begin()
    port, out = rig.one(UNDERLAY, syn(sub.reversed(), isn=3))
    assert (port, read(out).five_tuple) == (HOST, session(2).reversed())
    assert rig.agent.counters["simultaneous_open"] == 1


def test_a_syn_waits_for_an_association_and_its_repetition_makes_no_second_chain() -> None:
    rig = Rig(decision=to_c(), up="")
    assert rig.feed(HOST, syn(session(2))) == []
    assert rig.feed(HOST, syn(session(2))) == []
    assert rig.state() == ["waiting"]
    rig.up("d")
    assert rig.take() == []
    rig.up("c")
    [(port, out)] = rig.take()
    assert (port, header_of(out).session) == (UNDERLAY, session(2))
    rig.up("c")
    assert rig.take() == []
    assert rig.wait(1.5) == []
    assert rig.state() == ["opening"]


def test_a_syn_waits_until_its_next_hop_knows_where_this_host_is() -> None:
    rig = Rig(decision=to_c(), up="acd")
    rig.agent.moved()
    assert rig.feed(HOST, syn(session(2))) == []
    rig.up("c")
    assert rig.take() == []
    assert rig.wait(5.0) == []
    assert rig.state() == ["waiting"]
    for _ in range(2):
        rig.agent.peer_aware("d", rig.now)
        rig.agent.peer_aware("nobody", rig.now)
        assert rig.take() == []
    rig.agent.peer_aware("c", rig.now)
    [(port, out)] = rig.take()
    assert (port, header_of(out).session) == (UNDERLAY, session(2))


def test_another_syn_while_waiting_takes_the_place_of_the_first() -> None:
    rig = Rig(decision=to_c(), up="")
    rig.feed(HOST, syn(session(2)))
    rig.feed(HOST, syn(session(2), isn=5))
    rig.up("c")
    [(_, out)] = rig.take()
    assert read(out).seq == 5


def test_no_association_within_a_second_is_a_reset_when_closed() -> None:
    rig = Rig(decision=to_c(), up="")
    rig.feed(HOST, syn(session(2)))
    [(port, reset)] = rig.wait(1.0)
    at = read(reset)
    assert (port, at.five_tuple) == (HOST, session(2).reversed())
    assert (at.flags, at.ack) == (RST | ACK, 1001)
    assert rig.agent.counters["no_association"] == 1
    assert rig.state() == []


def test_no_association_sends_natively_when_open_and_the_hop_is_avoided() -> None:
    rig = Rig(decision=OPEN, up="")
    first = syn(session(2))
    assert rig.feed(HOST, first) == []
    assert rig.wait(1.0) == [(HOST, first)]
    other = syn(session(2, port=5))
    assert rig.one(HOST, other) == (HOST, other)
    assert len(rig.events(SentNatively)) == 2
    rig.wait(60.0)
    assert rig.feed(HOST, other) == []


def test_a_decision_that_failed_does_what_the_policy_says() -> None:
    rig = Rig(decision=replace(to_c(), hops=(), failure="no member is well"))
    [(port, reset)] = rig.feed(HOST, syn(session(2)))
    assert (port, read(reset).flags) == (HOST, RST | ACK)
    rig.decision = replace(OPEN, hops=(), failure="no member is well")
    first = syn(session(2))
    assert rig.one(HOST, first) == (HOST, first)


def test_a_hop_that_is_no_peer_fails_at_once() -> None:
    rig = Rig(decision=Decision("x", hops(9, 4), on_fail_open=True))
    first = syn(session(2))
    assert rig.one(HOST, first) == (HOST, first)
    [refused] = rig.events(SetupRefused)
    assert isinstance(refused, SetupRefused)
    assert "no peer" in refused.reason


def test_a_refusal_from_beyond_avoids_the_route_and_not_the_next_hop() -> None:
    rig = Rig(decision=OPEN)
    first = syn(session(2))
    _, out = rig.one(HOST, first)
    rig.agent.receive_message("d", SynRefused(header_of(out).chain_id, "not from c"), rig.now)
    assert rig.take() == []
    rig.agent.receive_message("c", SynRefused(header_of(out).chain_id, "d is down"), rig.now)
    assert rig.take() == [(HOST, first)]
    rig.agent.receive_message("c", SynRefused(header_of(out).chain_id, "d is down"), rig.now)
    assert rig.take() == []
    assert rig.one(HOST, syn(session(2, port=5)))[0] == HOST
    rig.decision = Decision("x", hops(3), on_fail_open=True)
    assert rig.one(HOST, syn(session(2, port=6)))[0] == UNDERLAY


def test_a_repeated_syn_that_crosses_the_refusal_is_refused_too() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    _, into = rig.one(UNDERLAY, rig.chained_syn(hops(2, 3, 4)))
    _, out = rig.one(PAIR_BOX.right_read, into)
    rig.agent.receive_message("c", SynRefused(header_of(out).chain_id, "c is full"), rig.now)
    assert rig.take() == []
    rig.now += 1.0
    assert rig.feed(UNDERLAY, rig.chained_syn(hops(2, 3, 4))) == []
    assert rig.messages == [("a", SynRefused(header_of(out).chain_id, "c is full"))] * 2
    assert rig.state() == []
    assert rig.agent.counters["opened"] == 1


def test_avoided_routes_are_bounded() -> None:
    rig = Rig(timers=Timers(avoid=5.0))
    for number in range(1300):
        rig.decision = Decision("x", (Hop(address(3), number), *hops(4)), on_fail_open=True)
        _, out = rig.one(HOST, syn(session(2, port=1 + number)))
        rig.agent.receive_message("c", SynRefused(header_of(out).chain_id, "no"), rig.now)
        rig.take()
        rig.now += 0.01
    assert len(rig.agent._setup._avoided.routes) <= 1024


def test_when_too_many_routes_are_avoided_the_next_one_is_tried_again() -> None:
    rig = Rig(timers=Timers(avoid=1000.0))

    def ends_up(number: int) -> int:
        rig.decision = Decision("x", (Hop(address(3), number), *hops(4)), on_fail_open=True)
        port, out = rig.one(HOST, syn(session(2, port=1 + number)))
        if port == UNDERLAY:
            rig.agent.receive_message("c", SynRefused(header_of(out).chain_id, "no"), rig.now)
            rig.take()
        return port

    for number in range(1030):
        assert ends_up(number) == UNDERLAY
        rig.now += 0.01
    rig.wait(60.0)  # the sessions that went natively are forgotten, the routes are not
    assert ends_up(0) == HOST
    assert ends_up(1029) == UNDERLAY


def test_an_answer_that_acknowledges_the_header_shows_that_there_is_no_agent() -> None:
    rig = Rig(decision=to_c())
    _, out = rig.one(HOST, syn(session(2), payload=b"early"))
    at = read(out)
    reset = build_tcp(at.five_tuple.reversed(), 0, at.next_seq, RST | ACK, 0)
    port, told = rig.one(UNDERLAY, reset)
    assert (port, read(told).ack) == (HOST, 1001)
    assert rig.agent.counters["no_agent"] == 1
    rig.decision = OPEN
    first = syn(session(2))
    _, out = rig.one(HOST, first)
    at = read(out)
    answer = build_tcp(at.five_tuple.reversed(), 9, at.next_seq, SYN | ACK, 100, MSS_1460)
    assert rig.one(UNDERLAY, answer) == (HOST, first)


def test_a_server_that_refuses_is_no_host_without_agent() -> None:
    rig = Rig(decision=to_c())
    sub = rig.begin()
    port, out = rig.one(UNDERLAY, build_tcp(sub.reversed(), 0, 1001, RST | ACK, 0))
    assert (port, read(out).five_tuple) == (HOST, session(2).reversed())
    assert rig.state() == ["denied"]
    assert rig.begin(isn=5) != sub


def test_addresses_of_two_families_are_refused_and_give_the_ports_back() -> None:
    rig = Rig(decision=Decision("x", hops(3)))
    port, out = rig.one(HOST, syn(session(2, family=6)))
    assert (port, read(out).flags) == (HOST, RST | ACK)
    assert rig.agent.sessions_via(address(3)) == 0


def test_a_family_that_this_host_lacks_and_ports_that_are_used_up() -> None:
    rig = Rig(decision=to_c(), port_range=(61000, 61001))
    rig.agent.peer_up("c", Hello(port_range=(61000, 61001)), bytes(32), bytes(32), rig.now)
    assert [rig.one(HOST, syn(session(2, port=port)))[0] for port in (1, 2, 3)] == [UNDERLAY, UNDERLAY, HOST]
    rig = Rig(decision=Decision("x", hops(3, family=6)))
    rig.agent.configure(replace(rig.settings, addresses=(address(2),)), lambda _, __: rig.decision)
    rig.feed(HOST, syn(session(2, family=6)))
    [refused] = rig.events(SetupRefused)
    assert isinstance(refused, SetupRefused)
    assert refused.reason == "no address of this family"


@pytest.mark.parametrize("family", [4, 6])
def test_the_last_agent_delivers_and_its_server_answers(family: int) -> None:
    rig = Rig()
    inner = session(1, 2, family=family)
    first = rig.chained_syn(hops(2, family=family), of=inner, payload=b"early")
    port, out = rig.one(UNDERLAY, first)
    assert (port, read(out).five_tuple, bytes(out.data[-5:])) == (HOST, inner, b"early")
    assert read(out).payload_len == 5
    assert verify(out)
    [opened] = rig.events(SessionOpened)
    assert isinstance(opened, SessionOpened)
    assert opened.hop_index == 1
    port, back = rig.one(HOST, syn_ack(inner))
    assert (port, read(back).five_tuple) == (UNDERLAY, read(first).five_tuple.reversed())
    assert [info.role for info in rig.agent.sessions()] == ["last"]


def test_a_repeated_syn_is_stripped_again() -> None:
    rig = Rig()
    first = rig.chained_syn(hops(2), of=session(1, 2), payload=b"early")
    assert rig.one(UNDERLAY, first) == rig.one(UNDERLAY, first)
    assert len(rig.agent) == 1


def test_a_relay_without_a_box_goes_straight_on() -> None:
    rig = Rig()
    port, out = rig.one(UNDERLAY, rig.chained_syn(hops(2, 3, 4)))
    header = header_of(out)
    assert (port, header.hops, header.hop_index) == (UNDERLAY, hops(3, 4), 1)
    assert header.chain_id == b"chain-0123456789"
    assert [info.role for info in rig.agent.sessions()] == ["relay"]


def test_a_peer_that_forgot_a_chain_may_use_its_ports_again() -> None:
    rig = Rig()
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 2)))
    other = rig.chained_syn(hops(2), of=session(1, 2, port=5), chain_id=b"another-chain-id")
    port, out = rig.one(UNDERLAY, other)
    assert (port, read(out).five_tuple) == (HOST, session(1, 2, port=5))
    assert len(rig.agent) == 1
    forged = rig.chained_syn(hops(2), of=session(1, 2), chain_id=b"a-third-chain-id", key=b"x" * 32)
    port, _ = rig.one(UNDERLAY, forged)
    assert [info.chain_id for info in rig.agent.sessions()] == [b"another-chain-id"]


def test_a_session_that_comes_again_by_another_subsession_takes_the_place_of_the_first() -> None:
    rig = Rig()
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 2)))
    rig.feed(HOST, syn_ack(session(1, 2)))
    assert rig.state() == ["established"]
    again = rig.chained_syn(hops(2), of=session(1, 2), chain_id=b"another-chain-id", ports=(61003, 61004))
    assert rig.one(UNDERLAY, again)[0] == HOST
    assert [info.chain_id for info in rig.agent.sessions()] == [b"another-chain-id"]
    assert rig.agent.counters["closed_replaced"] == 1
    _, back = rig.one(HOST, syn_ack(session(1, 2)))
    assert read(back).five_tuple == read(again).five_tuple.reversed()


def test_ordinary_tcp_to_a_reserved_port_passes_without_state() -> None:
    rig = Rig()
    to_us = FiveTuple.of(address(1), 40000, address(2), 61000)
    for payload in (b"", b"GET /", b"DYSC", b"DYSC" + bytes(200)):
        first = syn(to_us, payload=payload)
        assert rig.one(UNDERLAY, first) == (HOST, first)
    assert rig.agent.counters["syn_without_header"] == 4
    stranger = rig.chained_syn(hops(2), number=77)
    assert rig.one(UNDERLAY, stranger) == (HOST, stranger)
    wrong = rig.chained_syn(hops(2), key=b"w" * 32)
    assert rig.one(UNDERLAY, wrong) == (HOST, wrong)
    assert rig.agent.counters["header_not_authentic"] == 2
    assert not rig.table.flows


def test_a_header_of_a_peer_whose_association_is_gone_waits_for_the_repetition() -> None:
    rig = Rig(up="")
    assert rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 2))) == []
    assert rig.agent.counters["header_without_association"] == 1
    rig.up("a")
    assert rig.one(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 2)))[0] == HOST


def test_a_peer_behind_nat_is_known_by_what_its_header_says() -> None:
    rig = Rig()
    first = rig.chained_syn(hops(2), of=session(1, 2))
    moved = FiveTuple.of(address(200), 7777, address(2), 61002)
    seen = syn(moved, payload=bytes(first.data[read(first).payload_offset :]))
    assert rig.one(UNDERLAY, seen)[0] == HOST
    _, back = rig.one(HOST, syn_ack(session(1, 2)))
    assert read(back).five_tuple == moved.reversed()


def test_a_replayed_header_is_dropped_and_a_lost_refusal_repeated() -> None:
    rig = Rig()
    again = rig.chained_syn(hops(2), of=session(1, 2), counter=7, ports=(61001, 61004))
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 2), counter=7))
    assert rig.feed(UNDERLAY, again) == []
    assert rig.agent.counters["header_replayed"] == 1
    assert rig.messages == []
    refused = rig.chained_syn(hops(2, box=99), of=session(1, 2), chain_id=b"refused-chain-id", counter=8)
    for _ in range(2):
        assert rig.feed(UNDERLAY, refused) == []
    assert rig.messages == [("a", SynRefused(b"refused-chain-id", "no such middlebox here"))] * 2


def test_a_failure_further_on_is_told_to_the_left() -> None:
    rig = Rig(up="ad")
    rig.feed(UNDERLAY, rig.chained_syn(hops(2, 3, 4)))
    assert rig.feed(UNDERLAY, rig.chained_syn(hops(2, 3, 4), counter=1)) == []
    assert rig.state() == ["waiting"]
    rig.wait(1.0)
    assert rig.messages == [("a", SynRefused(b"chain-0123456789", "no association with the next hop"))]
    assert rig.state() == []


def test_the_table_is_bounded_and_what_is_open_stays() -> None:
    rig = Rig(decision=to_c(), limits=Limits(sessions=3))
    rig.establish(session(2, port=1))
    rig.establish(session(2, port=2))
    rig.begin(session(2, port=3))
    rig.begin(session(2, port=4))
    assert rig.agent.counters["embryonic_evicted"] == 1
    assert sorted(rig.state()) == ["established", "established", "opening"]
    sub = next(info.right for info in rig.agent.sessions() if info.state == "opening")
    assert sub is not None
    rig.feed(UNDERLAY, syn_ack(sub.tuple))
    assert rig.feed(HOST, syn(session(2, port=5))) == []
    assert rig.agent.counters["table_full"] == 1
    assert rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 2))) == []
    assert rig.messages == [("a", SynRefused(b"chain-0123456789", "the session table is full"))]


def test_what_is_being_opened_is_bounded_and_leaves_nothing_behind() -> None:
    rig = Rig(boxes=[PAIR_BOX], limits=Limits(embryonic=4))
    for number in range(50):
        rig.feed(
            UNDERLAY,
            rig.chained_syn(
                hops(2, 4),
                of=session(port=5000 + number),
                ports=(61001, 61002 + 2 * number),
                chain_id=number.to_bytes(16, "big"),
            ),
        )
    assert len(rig.agent) == 4
    assert len(rig.table.flows) == 8
    rig.wait(80.0)
    assert not rig.table.flows
    assert not rig.agent._setup.at_box._by_tuple
    assert not rig.agent._setup.at_box._by_session


def test_waiting_sessions_that_make_room_are_not_sent_later() -> None:
    rig = Rig(decision=to_c(), up="", limits=Limits(embryonic=1))
    rig.feed(HOST, syn(session(2, port=1)))
    rig.feed(HOST, syn(session(2, port=2)))
    rig.up("c")
    [(_, out)] = rig.take()
    assert header_of(out).session == session(2, port=2)


def test_fast_open_data_that_do_not_fit_are_left_out() -> None:
    rig = Rig(decision=to_c())
    _, out = rig.one(HOST, syn(session(2), payload=bytes(1400)))
    assert read(out).payload_len == len(chain_header.encode(header_of(out), b"C" * 32))
    assert rig.agent.counters["fast_open_dropped"] == 1
    assert verify(out)


@pytest.mark.parametrize(
    ("mtu", "probed", "wanted"), [(1280, None, 1240), (9000, 1400, 1360), (1500, 9000, 1460)]
)
def test_the_mss_is_clamped_to_what_is_known_both_ways(mtu: int, probed: int | None, wanted: int) -> None:
    rig = Rig(decision=to_c(), mtu=mtu)
    if probed is not None:
        rig.agent.peer_mtu("c", probed)
        rig.agent.peer_mtu("nobody", probed)
    _, out = rig.one(HOST, syn(session(2)))
    assert mss(out) == wanted
    _, back = rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
    assert mss(back) == wanted
    assert verify(back)


def test_the_same_host_twice_goes_round_by_loop_and_answers_come_back() -> None:
    second = replace(PAIR_BOX, name="two", tag=2, left_read=6, left_write=6, right_read=7, right_write=7)
    rig = Rig(boxes=[PAIR_BOX, second])
    route = (Hop(address(2), 0xA), Hop(address(2), 2), *hops(4))
    _, into = rig.one(UNDERLAY, rig.chained_syn(route))
    port, loop = rig.one(PAIR_BOX.right_read, into)
    assert (port, header_of(loop).hops) == (LOOP, route[1:])
    port, into = rig.one(UNDERLAY, loop)
    assert (port, read(into).five_tuple) == (6, session())
    port, out = rig.one(7, into)
    assert (port, header_of(out).hop_index) == (UNDERLAY, 2)
    answer = syn_ack(read(out).five_tuple)
    for expected in (7, LOOP, 5, UNDERLAY):
        read_at = {7: UNDERLAY, LOOP: 6, 5: UNDERLAY, UNDERLAY: 4}[expected]
        port, answer = rig.one(read_at, answer)
        assert port == expected
    assert rig.state() == ["established", "established"]


def test_a_refusal_behind_the_loop_reaches_the_left() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    route = (Hop(address(2), 0xA), Hop(address(2), 0xDEAD), *hops(4))
    _, into = rig.one(UNDERLAY, rig.chained_syn(route))
    _, loop = rig.one(PAIR_BOX.right_read, into)
    assert rig.feed(UNDERLAY, loop) == []
    assert rig.messages == [("a", SynRefused(b"chain-0123456789", "no such middlebox here"))]
    assert rig.state() == []
    assert not rig.table.flows


def test_the_same_box_twice_is_refused() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    _, into = rig.one(UNDERLAY, rig.chained_syn((Hop(address(2), 0xA), Hop(address(2), 0xA), *hops(4))))
    _, loop = rig.one(PAIR_BOX.right_read, into)
    assert rig.feed(UNDERLAY, loop) == []
    assert "twice" in rig.messages[0][1].reason  # type: ignore[union-attr]
    assert not rig.table.flows


def test_a_kernel_that_would_see_the_same_packets_twice_refuses() -> None:
    rig = Rig(boxes=[KERNEL_BOX])
    first = rig.chained_syn((Hop(address(2), 0xF), *hops(2)), of=session(1, 2))
    port, into = rig.one(UNDERLAY, first)
    _, loop = rig.one(HOST, into)
    assert rig.feed(UNDERLAY, loop) == []
    assert "twice" in rig.messages[0][1].reason  # type: ignore[union-attr]
    assert not rig.table.flows
    rig = Rig(boxes=[KERNEL_BOX], decision=Decision("x", (Hop(address(2), 0xF), *hops(4))))
    _, loop = rig.one(HOST, syn(session(2)))
    port, reset = rig.one(UNDERLAY, loop)
    assert (port, read(reset).flags) == (HOST, RST | ACK)


@pytest.mark.parametrize("egress", [Egress.NATIVE, Egress.NAT])
def test_the_last_agent_sends_plain_packets_on(egress: Egress) -> None:
    rig = Rig(peers=lambda peer: replace(peer, may_use=lambda _: True))
    inner = session(1, 9)
    port, out = rig.one(UNDERLAY, rig.chained_syn(hops(2), of=inner, egress=egress))
    sent = read(out).five_tuple
    assert port == HOST
    if egress is Egress.NATIVE:
        assert sent == inner
    else:
        assert (sent.src, sent.dst, sent.dport) == (address(2), inner.dst, inner.dport)
        assert 61000 <= sent.sport <= 65535
    port, back = rig.one(UNDERLAY, syn_ack(sent))
    assert (port, read(back).five_tuple) == (UNDERLAY, FiveTuple.of(address(2), 61002, address(1), 61001))


def test_nat_without_a_free_port_or_address_is_refused() -> None:
    rig = Rig(peers=lambda peer: replace(peer, may_use=lambda _: True), port_range=(61002, 61002))
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 9), egress=Egress.NAT))
    other = rig.chained_syn(
        hops(2), of=session(1, 9, port=5), egress=Egress.NAT, ports=(61003, 61002), chain_id=b"b" * 16
    )
    assert rig.feed(UNDERLAY, other) == []
    assert rig.messages == [("a", SynRefused(b"b" * 16, "no free port for NAT"))]


def test_what_lies_behind_the_last_agent_answers_through_it() -> None:
    rig = Rig(peers=lambda peer: replace(peer, may_use=lambda _: True))
    port, out = rig.one(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 9)))
    assert (port, read(out).five_tuple) == (HOST, session(1, 9))
    assert rig.one(UNDERLAY, syn_ack(session(1, 9)))[0] == UNDERLAY


def test_messages_that_mean_nothing_to_a_chain() -> None:
    rig = Rig()
    rig.agent.receive_message("stranger", Gone(bytes(16)), rig.now)
    rig.agent.receive_message("", Gone(bytes(16)), rig.now)
    rig.agent.receive_message("a", Gone(bytes(16)), rig.now)
    rig.agent.receive_message("a", Hello(), rig.now)
    assert rig.agent.counters["message_of_unknown_peer"] == 2
    assert rig.agent.counters["gone"] == 1


def test_a_syn_with_our_tag_that_left_its_box_too_late_goes_nowhere() -> None:
    rig = Rig(decision=to_c())
    late = syn(session(2))
    insert_tag(late, b"12345678")
    assert rig.feed(HOST, late) == []
    assert rig.agent.counters["tag_unknown"] == 1


def test_a_tag_from_the_wire_goes_no_further() -> None:
    rig = Rig()
    first = rig.chained_syn(hops(2), of=session(1, 2))
    insert_tag(first, b"12345678")
    _, out = rig.one(UNDERLAY, first)
    assert find_tag(out) is None


def test_handshakes_are_recorded_and_shared() -> None:
    rig = Rig(decision=to_c())
    rig.establish()
    [chain] = rig.agent._life.chains.values()
    assert chain.right is not None
    assert chain.left.forward[:3] == (1000, 1460, 255)
    assert chain.left.backward[:3] == (9000, 1460, 255)
    assert chain.left.handshake is chain.right.handshake
