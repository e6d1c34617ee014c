"""How sessions go on and end."""

from __future__ import annotations

import pytest

from dysco.protocol.chain import key_of
from dysco.protocol.events import PeerDown, PeerUp, SessionClosed, SessionForgotten, SessionRecord
from dysco.protocol.flow import HOST, UNDERLAY, Flow
from dysco.protocol.life import RESET_S
from dysco.protocol.settings import Timers
from dysco.protocol.states import Input
from dysco.wire.messages import Hello
from dysco.wire.numbers import FAR, MASK32
from dysco.wire.packet import ACK, FIN, RST, Packet, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import PAIR_BOX, Rig, address, hops, read, session, syn, syn_ack, to_c

ME = session(2)


def fin(tuple_: FiveTuple) -> Packet:
    return build_tcp(tuple_, 1001, 9001, FIN | ACK, 1)


def rst(tuple_: FiveTuple) -> Packet:
    return build_tcp(tuple_, 1001, 9001, RST | ACK, 0)


def reasons(rig: Rig) -> list[str]:
    return [event.reason for event in rig.events(SessionClosed) if isinstance(event, SessionClosed)]


def test_fins_of_both_directions_close_after_a_minute() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    rig.events()
    [info] = rig.agent.sessions(rig.now)
    info_key = key_of(info)
    assert rig.agent.session(info_key, rig.now) == info
    assert rig.one(HOST, fin(ME))[0] == UNDERLAY
    assert rig.state() == ["half-closed"]
    assert len(rig.events(SessionRecord)) == 1
    rig.feed(HOST, fin(ME))
    assert rig.one(UNDERLAY, fin(sub.reversed()))[0] == HOST
    assert rig.state() == ["time-wait"]
    rig.feed(UNDERLAY, fin(sub.reversed()))
    rig.wait(30.0)
    rig.table.flows[HOST, ME].packets += 1
    rig.wait(31.0)
    assert rig.state() == ["time-wait"]
    rig.wait(60.0)
    assert rig.state() == []
    assert rig.agent.session(info_key, rig.now) is None
    closed, forgotten = rig.events()
    assert isinstance(closed, SessionClosed)
    assert (closed.reason, closed.packets) == ("closed", 6)
    assert isinstance(forgotten, SessionForgotten)
    assert not rig.table.flows
    assert rig.agent.next_deadline() is None


@pytest.mark.parametrize("gone", [1000, 3 * 2**30])
def test_a_fin_is_counted_behind_what_a_kernel_has_carried(
    gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(decision=to_c())
    rig.establish()
    flow = rig.table.flows[HOST, ME]
    flow.top_seq = 1001
    end = (1001 + gone) % 2**32

    def carried(flow: Flow) -> int:
        if flow.top_seq == 1001:
            flow.top_seq = end
        return flow.packets

    monkeypatch.setattr(rig.table, "refresh", carried)
    rig.feed(HOST, build_tcp(ME, end, 9001, FIN | ACK, 1))
    assert flow.top_seq == end + 1


def test_a_half_closed_session_has_an_hour_and_an_idle_one_more() -> None:
    rig = Rig(decision=to_c(), timers=Timers(established=100.0, half_closed=50.0))
    rig.establish()
    rig.wait(90.0)
    rig.table.flows[HOST, ME].packets += 1
    rig.wait(90.0)
    assert rig.state() == ["established"]
    rig.feed(HOST, fin(ME))
    rig.wait(49.0)
    assert rig.state() == ["half-closed"]
    rig.wait(2.0)
    assert reasons(rig) == ["idle"]


def test_an_unanswered_syn_is_forgotten_and_its_ports_rest() -> None:
    rig = Rig(decision=to_c())
    sub = rig.begin()
    assert rig.agent.sessions_via(address(3)) == 1
    rig.wait(75.0)
    assert reasons(rig) == ["embryonic"]
    assert rig.agent.sessions_via(address(3)) == 0
    pool = rig.agent._neighbours._pools[address(2) + address(3)]
    assert len(pool) == 1
    rig.now += 60.0
    assert rig.begin() != sub
    assert len(pool) == 1


def test_a_reset_that_the_endpoints_believed_ends_the_session() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    assert rig.one(HOST, rst(ME))[0] == UNDERLAY
    assert rig.state() == ["reset"]
    rig.table.flows[UNDERLAY, sub.reversed()].packets += 3
    [(port, probe)] = rig.wait(2.0)
    at = read(probe)
    assert (port, at.five_tuple, at.flags, at.payload_len) == (HOST, ME.reversed(), ACK, 0)
    assert rig.state() == ["probed"]
    rig.feed(HOST, build_tcp(ME, 0, 0, RST, 0))
    rig.wait(60.0)
    assert reasons(rig) == ["reset"]
    assert rig.agent.counters["bug"] == 0


def test_a_forged_reset_does_not_end_an_idle_session() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    rig.feed(UNDERLAY, rst(sub.reversed()))
    rig.wait(2.0)
    rig.table.flows[HOST, ME].packets += 1
    rig.wait(60.0)
    assert rig.state() == ["established"]
    rig.wait(8000.0)
    assert rig.state() == ["established"]


def test_the_last_agent_asks_its_server_and_a_relay_asks_nobody() -> None:
    rig = Rig()
    inner = session(1, 2)
    first = rig.chained_syn(hops(2), of=inner)
    rig.feed(UNDERLAY, first)
    rig.feed(HOST, syn_ack(inner))
    rig.feed(UNDERLAY, rst(read(first).five_tuple))
    [(port, probe)] = rig.wait(2.0)
    assert (port, read(probe).five_tuple) == (HOST, inner)
    rig = Rig()
    first = rig.chained_syn(hops(2, 3))
    _, out = rig.one(UNDERLAY, first)
    rig.feed(UNDERLAY, syn_ack(read(out).five_tuple))
    rig.feed(UNDERLAY, rst(read(first).five_tuple))
    assert rig.wait(2.0) == []
    assert rig.state() == ["probed"]


def test_a_reset_before_the_answer_and_an_answer_all_the_same() -> None:
    rig = Rig(decision=to_c())
    sub = rig.begin()
    rig.feed(UNDERLAY, rst(sub.reversed()))
    assert rig.state() == ["denied"]
    rig.feed(UNDERLAY, syn_ack(sub))
    assert rig.state() == ["established"]
    rig = Rig(decision=to_c())
    rig.feed(UNDERLAY, rst(rig.begin().reversed()))
    rig.wait(60.0)
    assert reasons(rig) == ["denied"]


def test_fins_before_the_answer() -> None:
    rig = Rig(decision=to_c())
    sub = rig.begin()
    rig.feed(HOST, fin(ME))
    assert rig.state() == ["opening"]
    rig.feed(UNDERLAY, fin(sub.reversed()))
    assert rig.state() == ["time-wait"]
    assert rig.agent.counters["bug"] == 0


def test_fins_after_a_reset_that_was_forged() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    rig.feed(HOST, fin(ME))
    rig.feed(UNDERLAY, rst(sub.reversed()))
    rig.feed(UNDERLAY, fin(sub.reversed()))
    assert rig.state() == ["time-wait"]
    rig.feed(HOST, rst(ME))
    assert rig.state() == ["time-wait"]


@pytest.mark.parametrize("first", [True, False])
def test_a_reset_behind_fins_that_both_ends_have_acknowledged_goes_no_further(first: bool) -> None:
    """A closed socket answers so what comes late; on another path than the FINs it would look like a session's end."""
    rig = Rig(decision=to_c())
    if first:
        sub = rig.establish()
        here, there = ME, sub.reversed()
    else:
        here, there = ends_at_b(rig)
    own, other = (1001, 9001) if first else (9001, 1001)
    rig.one(HOST, build_tcp(here, own, other, FIN | ACK, 100))
    rig.one(UNDERLAY, build_tcp(there, other, own + 1, FIN | ACK, 100))
    assert rig.state() == ["time-wait"]
    rig.one(
        HOST, build_tcp(here, own + 1, 0, RST, 0)
    )  # the other end may still wait for what it acknowledges
    rig.one(HOST, build_tcp(here, own + 1, other + 1, ACK, 100))
    assert rig.feed(HOST, build_tcp(here, own + 1, 0, RST, 0)) == []
    assert rig.agent.counters["reset_late"] == 1
    rig.one(UNDERLAY, build_tcp(there, other + 1, 0, RST, 0))  # no socket here has sent that


def ends_at_b(rig: Rig) -> tuple[FiveTuple, FiveTuple]:
    """A session from a that ends at this host: as its stack answers, and as packets come in."""
    _, inner = rig.one(UNDERLAY, rig.chained_syn(hops(2), of=session(1, 2)))
    here = read(inner).five_tuple.reversed()
    rig.one(HOST, syn_ack(here.reversed()))
    return here, FiveTuple.of(address(1), 61001, address(2), 61002)


def test_a_reset_of_an_end_whose_session_is_over_goes_past_the_chain_too() -> None:
    """The other end may have no agent any more, and its packets come without the chain."""
    rig = Rig()
    here, there = ends_at_b(rig)
    assert rig.one(HOST, rst(here))[0] == UNDERLAY  # of a session that lives: along the chain only
    assert rig.state() == ["reset"]
    past, along = rig.feed(HOST, rst(here))
    assert (past[0], read(past[1]).five_tuple) == (UNDERLAY, here)
    assert (along[0], read(along[1]).five_tuple) == (UNDERLAY, there.reversed())
    assert read(past[1]).seq == read(along[1]).seq == 1001
    assert rig.agent.counters["reset_past_chain"] == 1
    assert rig.one(UNDERLAY, rst(there))[0] == HOST  # what comes by the chain does not go out again


def test_a_session_of_an_agent_that_has_gone_for_good_is_reset_until_its_ends_are_quiet() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    [info] = rig.agent.sessions(rig.now)
    key = key_of(info)
    assert not rig.agent.abandon(key, "a", rig.now)
    assert not rig.agent.abandon(bytes(18), "c", rig.now)
    assert rig.agent.abandon(key, "c", rig.now)
    assert not rig.agent.abandon(key, "c", rig.now)
    asked = rig.take()
    assert [(port, read(packet).flags) for port, packet in asked] == [(HOST, ACK), (UNDERLAY, ACK)]
    own, other = rig.feed(HOST, build_tcp(ME, 1001, 9001, ACK, 100))
    assert (own[0], read(own[1]).seq, read(own[1]).flags) == (HOST, 9001, RST | ACK)
    assert (other[0], read(other[1]).seq) == (UNDERLAY, 1001)
    rig.feed(UNDERLAY, build_tcp(sub.reversed(), 9001, 1001, ACK, 100))
    # It has heard more meanwhile, past the chain, and that reset was not exact.
    [(port, packet)] = rig.feed(UNDERLAY, build_tcp(sub.reversed(), 9001, 1005, ACK, 100))
    assert (port, read(packet).seq, read(packet).flags) == (UNDERLAY, 1005, RST | ACK)
    rig.wait(RESET_S)
    assert rig.state() == []
    assert reasons(rig) == ["abandoned"]


def test_an_agent_that_stops_itself_does_not_stay_for_what_another_has_left() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    [info] = rig.agent.sessions(rig.now)
    key = key_of(info)
    assert rig.agent.abandon(key, "c", rig.now)
    rig.agent.reset([key], rig.now)
    rig.take()
    rig.feed(HOST, build_tcp(ME, 1001, 9001, ACK, 100))
    rig.feed(UNDERLAY, build_tcp(sub.reversed(), 9001, 1001, ACK, 100))
    assert not rig.agent.has(key)
    assert reasons(rig) == ["stopped"]


def test_timers_of_closed_sessions_are_not_kept_for_hours() -> None:
    rig = Rig(decision=to_c())
    rig.establish(session(2, port=1))
    for number in range(3000):
        mine = session(2, port=2 + number)
        sub = rig.establish(mine)
        rig.feed(HOST, fin(mine))
        rig.feed(UNDERLAY, fin(sub.reversed()))
        rig.wait(0.5)
        rig.events()
    rig.wait(130.0)
    assert rig.state() == ["established"]
    assert len(rig.agent._life._heap) < 1100
    assert len(rig.table.flows) == 2


def test_stopping_resets_both_ends_with_the_numbers_that_they_say() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    rig.table.flows[HOST, ME].packets += 5
    rig.begin(session(2, port=5))
    rig.agent.reset(rig.agent.session_keys(), rig.now)
    probes = rig.take()
    assert [(port, read(packet).flags) for port, packet in probes] == [(HOST, ACK), (UNDERLAY, ACK)]
    assert rig.state() == ["established"]
    exact, near = (read(packet) for _, packet in rig.feed(HOST, build_tcp(ME, 1234, 5678, ACK, 1)))
    assert (exact.five_tuple, exact.seq, exact.ack, exact.flags) == (ME.reversed(), 5678, 1234, RST | ACK)
    assert (near.five_tuple, near.seq, near.ack, near.flags) == (sub, 1234, 5678, RST | ACK)
    assert rig.feed(UNDERLAY, build_tcp(sub.reversed(), 5678, 0, RST, 0)) == []
    assert rig.state() == []
    stopped = [event for event in rig.events(SessionClosed) if isinstance(event, SessionClosed)]
    assert [event.reason for event in stopped] == ["stopped", "stopped"]
    assert stopped[1].packets == 6


def test_an_end_that_has_had_its_reset_gets_no_other_one_that_is_only_near() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    rig.agent.reset(rig.agent.session_keys(), rig.now)
    rig.take()
    rig.feed(HOST, build_tcp(ME, 1234, 5678, ACK, 1))
    [key] = rig.agent.session_keys()
    assert rig.agent.has(key)
    [(port, packet)] = rig.feed(UNDERLAY, build_tcp(sub.reversed(), 5678, 1234, ACK, 1))
    assert (port, read(packet).five_tuple) == (UNDERLAY, sub)
    assert rig.state() == []
    assert not rig.agent.has(key)
    rig.agent.reset([key], rig.now)
    assert rig.take() == []


@pytest.mark.parametrize(
    ("size", "client", "server"), [(0, (9000, 1001), (1000, 9001)), (10, (9011, 1011), (1011, 9001))]
)
def test_ends_are_asked_far_behind_their_window_with_numbers_of_the_session(
    size: int, client: tuple[int, int], server: tuple[int, int]
) -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    if size:
        rig.feed(HOST, build_tcp(ME, 1001, 9001, ACK, 1, b"", bytes(size)))
        rig.feed(UNDERLAY, build_tcp(sub.reversed(), 9001, 1001 + size, ACK, 1, b"", bytes(size)))
    rig.agent.reset(rig.agent.session_keys(), rig.now)
    asked = [read(packet) for _, packet in rig.take()]
    assert [(one.five_tuple, (one.seq + FAR) & MASK32, one.ack) for one in asked] == [
        (ME.reversed(), *client),
        (sub, *server),
    ]


def test_stopping_a_session_of_which_a_flow_is_lost() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    rig.events()
    del rig.table.flows[HOST, ME]
    rig.agent.reset(rig.agent.session_keys(), rig.now)
    rig.take()
    rig.feed(HOST, build_tcp(ME, 1234, 5678, ACK, 1))
    rig.feed(UNDERLAY, build_tcp(sub.reversed(), 5678, 0, RST, 0))
    assert rig.state() == []
    assert reasons(rig) == ["stopped"]


def test_stopping_a_session_with_a_box_ends_both_sides() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    first = rig.chained_syn(hops(2, 3))
    _, into = rig.one(UNDERLAY, first)
    _, out = rig.one(PAIR_BOX.right_read, into)
    rig.feed(UNDERLAY, syn_ack(read(out).five_tuple))
    rig.agent.reset(rig.agent.session_keys(), rig.now)
    rig.take()
    assert rig.feed(PAIR_BOX.right_read, build_tcp(session(), 1, 1, ACK, 1)) == []
    rig.feed(UNDERLAY, build_tcp(read(out).five_tuple.reversed(), 1, 1, ACK, 1))
    rig.feed(UNDERLAY, build_tcp(read(first).five_tuple, 1, 1, ACK, 1))
    assert rig.state() == []


def test_ports_are_given_back_although_the_peer_is_gone_from_the_configuration() -> None:
    rig = Rig(decision=to_c())
    rig.begin()
    rig.agent.configure(
        rig.settings.__class__(name="b", addresses=rig.settings.addresses), lambda _, __: None
    )
    rig.wait(80.0)
    pool = rig.agent._neighbours._pools[address(2) + address(3)]
    pool.expire(rig.now + 60)
    assert len(pool) == 0


def test_peers_come_and_go() -> None:
    rig = Rig(up="")
    rig.up("a")
    rig.up("a")
    rig.agent.peer_up("stranger", Hello(), bytes(32), bytes(32), rig.now)
    rig.agent.accept_key("stranger", bytes(32), rig.now)
    rig.agent.accept_key("a", bytes(32), rig.now)
    assert rig.agent.peer_is_up("a")
    assert not rig.agent.peer_is_up("stranger")
    rig.agent.peer_down("a", rig.now)
    rig.agent.peer_down("a", rig.now)
    rig.agent.peer_down("stranger", rig.now)
    assert rig.events() == [PeerUp("a"), PeerDown("a")]


@pytest.mark.parametrize("port", [HOST, UNDERLAY, 4])
def test_packets_that_are_not_of_ours(port: int) -> None:
    rig = Rig()
    plain = build_tcp(session(), 1, 1, ACK, 1)
    out = rig.feed(port, plain)
    assert out == ([(HOST, plain)] if port == HOST else [])
    assert rig.feed(port, Packet(bytearray(b"nonsense"))) == []
    assert rig.agent.counters["malformed"] == 1
    udp = plain.copy()
    udp.data[9] = 17
    assert rig.feed(port, udp) == ([(HOST, udp)] if port in (HOST, UNDERLAY) else [])
    piece = plain.copy()
    piece.data[6] = 0x20
    assert rig.feed(port, piece) == ([(HOST, piece)] if port in (HOST, UNDERLAY) else [])
    assert (rig.agent.counters["not_tcp"], rig.agent.counters["fragment"]) == (1, 1)


def test_what_dpkt_refuses_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AttributeError

    rig = Rig(decision=to_c())
    monkeypatch.setattr("dpkt.tcp.TCP", refuse)
    assert rig.feed(HOST, syn(ME)) == []
    assert (rig.agent.counters["malformed"], rig.agent.counters["syn"]) == (1, 0)


def test_what_no_machine_has_an_answer_to_is_counted_and_changes_nothing() -> None:
    rig = Rig(decision=to_c())
    rig.establish()
    [chain] = rig.agent._life.chains.values()
    assert not rig.agent._life.advance(chain, Input.HELD, rig.now)
    assert rig.agent.counters["bug"] == 1
    rig.agent._life.close(chain, "stopped", rig.now)
    rig.agent._life.close(chain, "stopped", rig.now)
    assert rig.agent.counters["closed_stopped"] == 1


def test_an_agent_counts_its_sessions() -> None:
    rig = Rig(decision=to_c())
    rig.establish()
    assert len(rig.agent) == 1
    rig.now += 5
    [info] = rig.agent.sessions(rig.now)
    assert (info.age_s, info.role, info.policy, info.packets) == (5.0, "first", "web", 1)
    assert info.bytes > 40
