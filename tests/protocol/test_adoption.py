"""Chains that the kernel has opened, against the same ones opened by the agent; sessions that were over at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from dysco.protocol.adoption import plain_box
from dysco.protocol.brief import YOUNG_S
from dysco.protocol.chain import announced, key_of
from dysco.protocol.events import SessionClosed, SessionEstablished, SessionOpened
from dysco.protocol.flow import HOST, UNDERLAY, FlowKey
from dysco.protocol.reports import Kind, Report
from dysco.protocol.settings import Limits, LocalBox, Peer, Timers
from dysco.wire import chain_header
from dysco.wire.packet import ACK, FIN, RST, Packet, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import (
    KERNEL_BOX,
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

HALF = announced(syn(session(2)), read(syn(session(2))))
ANSWER = announced(syn_ack(session(2)), read(syn_ack(session(2))))


def header_in(packet: Packet) -> bytes:
    payload = bytes(packet.data[read(packet).payload_offset :])
    return payload[: chain_header.length(payload)]


def began(rig: Rig, tuple_: FiveTuple | None = None) -> list[Report]:
    """What the kernel reports of a session that begins at this host, up to the answer, as an agent has opened it."""
    mine = tuple_ or session(2)
    other = Rig(decision=to_c())
    other._random = rig._random  # ports and chain ids that are not used twice
    _, out = other.one(HOST, syn(mine))
    sub = read(out).five_tuple
    return [
        Report(Kind.BEGAN, HOST, mine, HALF, header_in(out), "web"),
        Report(Kind.ANSWERED, UNDERLAY, sub.reversed(), ANSWER),
    ]


def watch_drops(rig: Rig) -> list[FlowKey]:
    """The flows that the core has taken away, and will."""
    dropped: list[FlowKey] = []
    drop = rig.table.drop

    def watched(keys: Sequence[FlowKey]) -> list[tuple[int, int]]:
        dropped.extend(keys)
        return drop(keys)

    rig.table.drop = watched  # type: ignore[method-assign]
    return dropped


def ended(reports: list[Report]) -> list[Report]:
    """The FINs of a session that has begun here."""
    return [Report(Kind.ENDED, one.port, one.match) for one in reports[:2]]


def through_box(number: int = 1) -> list[Report]:
    """A session that goes through this host's box, up to the answer."""
    other = Rig(boxes=[KERNEL_BOX])
    for _ in range(number - 1):
        other.rng(1)  # other ports for each
    arriving = other.chained_syn(hops(2, 3, 4), chain_id=bytes([number]) * 16, ports=(61000 + number, 61002))
    other.one(UNDERLAY, arriving)
    _, out = other.one(HOST, syn(session(1)))
    return [
        Report(Kind.ARRIVED, UNDERLAY, read(arriving).five_tuple, HALF, header_in(arriving)),
        Report(Kind.WENT_ON, HOST, session(1), HALF, header_in(out)),
        Report(Kind.ANSWERED, UNDERLAY, read(out).five_tuple.reversed(), ANSWER),
    ]


def test_a_session_that_begins_here_is_as_if_the_agent_had_opened_it() -> None:
    rig, kernel = Rig(decision=to_c()), Rig()
    sub = rig.establish()
    kernel.agent.take_reports(began(Rig()), kernel.now)
    assert dict(kernel.agent.records()) == dict(rig.agent.records())
    assert kernel.table.flows.keys() == rig.table.flows.keys()
    assert {key: flow.rewrite for key, flow in kernel.table.flows.items()} == {
        key: flow.rewrite for key, flow in rig.table.flows.items()
    }
    assert [type(event) for event in kernel.events()] == [type(event) for event in rig.events()]
    port, out = kernel.one(HOST, build_tcp(session(2), 1001, 9001, ACK, 100, payload=b"x"))
    assert (port, read(out).five_tuple) == (UNDERLAY, sub)


def test_a_session_through_the_box_is_as_if_the_agent_had_passed_it_on() -> None:
    rig, kernel = Rig(boxes=[KERNEL_BOX]), Rig(boxes=[KERNEL_BOX])
    arriving = rig.chained_syn(hops(2, 3, 4), chain_id=b"\1" * 16, ports=(61001, 61002))
    rig.one(UNDERLAY, arriving)
    _, out = rig.one(HOST, syn(session(1)))
    rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
    rig.one(HOST, syn_ack(session(1)))
    kernel.agent.take_reports(through_box(), kernel.now)
    assert dict(kernel.agent.records()) == dict(rig.agent.records())
    assert kernel.table.flows.keys() == rig.table.flows.keys()
    assert not kernel.table.captured


def test_what_the_kernel_lets_a_peer_begin_is_within_the_peers_limit() -> None:
    rig = Rig(limits=Limits(setups_per_second=3))
    rig.now += 1
    name = next(iter(rig.settings.peers)).name
    rig.agent.adoption.charge(name, 5, rig.now)
    rig.agent.adoption.charge("nobody", 1, rig.now)

    def opened(number: int) -> int:
        ports = (61001, 61002 + 2 * number)
        first = rig.chained_syn(
            hops(2), of=session(1, 2, port=number), ports=ports, chain_id=b"n" * 15 + bytes([number])
        )
        return sum(port == HOST for port, _ in rig.feed(UNDERLAY, first))

    assert opened(1) == 0
    rig.now += 0.9  # two too many were begun, and almost three more may be since
    assert opened(2) == 0
    rig.now += 0.2
    assert opened(3) == 1
    assert opened(4) == 0


def test_a_session_that_ends_here_is_as_if_the_agent_had_given_it_to_the_host() -> None:
    rig, kernel = Rig(), Rig()
    inner = session(1, 2)
    arriving = rig.chained_syn(hops(2), of=inner)
    rig.one(UNDERLAY, arriving)
    rig.one(HOST, syn_ack(inner))
    reports = [
        Report(Kind.ARRIVED, UNDERLAY, read(arriving).five_tuple, HALF, header_in(arriving)),
        Report(Kind.ANSWERED, HOST, inner.reversed(), ANSWER),
    ]
    kernel.agent.take_reports(reports, kernel.now)
    assert dict(kernel.agent.records()) == dict(rig.agent.records())
    assert kernel.table.flows.keys() == rig.table.flows.keys()


def test_reports_that_are_read_again_change_nothing() -> None:
    rig = Rig(boxes=[KERNEL_BOX])
    reports = [*began(rig), *through_box()]
    rig.agent.take_reports(reports, rig.now)
    before = dict(rig.agent.records())
    rig.agent.take_reports(reports, rig.now)
    assert dict(rig.agent.records()) == before
    assert rig.agent.counters["opened"] == rig.agent.counters["established"] == 2
    assert rig.agent.counters["bug"] == 0


def test_a_session_that_is_over_at_once_needs_no_chain() -> None:
    rig = Rig()
    reports = began(rig)
    rig.agent.take_reports([*reports, *ended(reports)], rig.now, settle=False)
    assert not rig.table.flows
    assert [type(event) for event in rig.events()] == [SessionOpened, SessionEstablished]
    [info] = rig.agent.sessions(rig.now)
    assert (info.role, info.state, info.policy, info.right and info.right.peer) == (
        "first",
        "time-wait",
        "web",
        "c",
    )
    assert rig.agent.session(key_of(info), rig.now) == info
    assert len(rig.agent) == 1
    rig.wait(30)
    assert len(rig.agent) == 1
    rig.wait(31)
    assert len(rig.agent) == 0
    [closed] = rig.events()
    assert isinstance(closed, SessionClosed)
    assert (closed.reason, closed.session) == ("closed", session(2))
    assert rig.agent.counters["closed_closed"] == 1
    assert rig.agent.next_deadline() is None


def test_through_the_box_it_needs_none_either() -> None:
    rig = Rig(boxes=[KERNEL_BOX])
    reports = through_box()
    fins = [Report(Kind.ENDED, HOST, session(1)), Report(Kind.ENDED, *reports[2][1:3])]
    rig.agent.take_reports([*reports, *fins], rig.now, settle=False)
    [info] = rig.agent.sessions(rig.now)
    assert (info.role, info.box, info.hop_index, info.left.peer) == ("middle", "fw", 1, "a")
    rig.wait(61)
    assert len(rig.agent) == 0


@pytest.mark.parametrize("asks", [True, False])
def test_a_young_session_becomes_a_chain_when_somebody_asks_or_soon(asks: bool) -> None:
    rig = Rig()
    rig.agent.take_reports(began(rig), rig.now, 7, settle=False)
    assert not rig.table.flows
    assert rig.agent.adoption.briefs.mark == 7
    if not asks:
        rig.now += YOUNG_S
    rig.agent.take_reports([], rig.now, 9, settle=asks)
    assert rig.state() == ["established"]
    assert rig.agent.adoption.briefs.mark is None


@pytest.mark.parametrize("over", [True, False])
def test_a_packet_of_a_session_without_a_chain_brings_it_back(over: bool) -> None:
    rig = Rig()
    reports = began(rig)
    rig.agent.take_reports([*reports, *(ended(reports) if over else [])], rig.now, settle=False)
    assert not rig.table.flows
    port, out = rig.one(*_reset(reports))
    assert port == HOST
    assert read(out).five_tuple == session(2).reversed()
    assert rig.state() == ["time-wait" if over else "reset"]
    assert rig.agent.counters["opened"] == rig.agent.counters["established"] == 1
    rig.wait(200)
    assert len(rig.agent) == 0
    assert not rig.table.flows


def _reset(reports: list[Report]) -> tuple[int, Packet]:
    return UNDERLAY, build_tcp(reports[1].match, 9001, 0, RST, 0)


def test_what_still_moves_after_half_of_the_time_is_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(timers=Timers(time_wait=10.0))
    reports = began(rig)
    rig.agent.take_reports([*reports, *ended(reports)], rig.now, settle=False)
    moving = iter(range(1000))
    monkeypatch.setattr(rig.table, "carried", lambda keys: [(next(moving), 0) for _ in keys])
    rig.wait(10.2)
    assert rig.state() == ["time-wait"]
    assert rig.table.flows


def test_a_session_that_is_young_is_not_listed_as_one_that_is_over() -> None:
    rig = Rig()
    over, young = began(rig), began(rig, session(9))
    rig.agent.take_reports([*over, *ended(over), young[0]], rig.now, settle=False)
    assert rig.state() == ["time-wait"]
    rig.agent.take_reports([], rig.now)
    assert sorted(rig.state()) == ["opening", "time-wait"]


def test_a_new_session_takes_the_place_of_one_that_is_over() -> None:
    rig = Rig()
    for chain in (False, True):
        reports = began(rig)
        rig.agent.take_reports([*reports, *ended(reports)], rig.now, settle=False)
        if chain:
            assert rig.one(*_reset(reports))
    rig.events()
    last = began(rig)
    rig.agent.take_reports(last, rig.now)
    assert rig.state() == ["established"]
    assert rig.agent.counters["closed_replaced"] == 2
    assert rig.table.flows.keys() == {(one.port, one.match) for one in last}
    assert {flow.owner for flow in rig.table.flows.values()} == {next(iter(rig.table.flows.values())).owner}


def test_a_new_session_through_the_box_keeps_what_the_kernel_has_let_in_for_it() -> None:
    rig = Rig(boxes=[KERNEL_BOX])
    dropped = watch_drops(rig)
    old, new = through_box(1), through_box(2)
    fins = [Report(Kind.ENDED, HOST, session(1)), Report(Kind.ENDED, *old[2][1:3])]
    rig.agent.take_reports([*old, *fins, *new], rig.now, settle=False)
    assert sorted(dropped) == sorted([(UNDERLAY, old[0].match), (UNDERLAY, old[2].match)])
    assert rig.agent.counters["closed_replaced"] == 1


def test_a_later_session_with_the_same_tuple_keeps_what_it_has_when_the_first_is_asked_for() -> None:
    """The second one came by the agent, which saw its SYN leave the box; then the first is brought back by that SYN."""
    rig = Rig(boxes=[KERNEL_BOX])
    reports = through_box()
    fins = [Report(Kind.ENDED, HOST, session(1)), Report(Kind.ENDED, *reports[2][1:3])]
    rig.agent.take_reports([*reports, *fins], rig.now, settle=False)
    arriving = rig.chained_syn(hops(2, 3, 4), chain_id=b"\2" * 16, ports=(61009, 61002), isn=5000)
    rig.one(UNDERLAY, arriving)
    port, out = rig.one(HOST, syn(session(1), 5000))
    assert port == UNDERLAY
    assert header_of(out).chain_id == b"\2" * 16
    rig.one(UNDERLAY, syn_ack(read(out).five_tuple, of=5000))
    assert "established" in rig.state()
    rig.wait(100)
    assert rig.state() == ["established"]
    assert (HOST, session(1)) in rig.table.flows


def test_a_syn_that_the_kernel_gave_to_the_box_goes_on_by_the_agent() -> None:
    rig = Rig(boxes=[KERNEL_BOX])
    rig.agent.take_reports(through_box()[:1], rig.now)
    assert rig.state() == ["at-box"]
    assert session(1) in rig.table.captured
    port, out = rig.one(HOST, syn(session(1)))
    assert port == UNDERLAY
    assert header_of(out).hops == hops(3, 4)
    rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
    assert rig.state() == ["established"]
    assert session(1) not in rig.table.captured


def test_what_the_kernel_may_do_of_itself() -> None:
    rig = Rig(peers=lambda peer: replace(peer, next_hops=frozenset("c")) if peer.name == "d" else peer)
    of = {one.name: one for one in rig.agent.adoption.associations(rig.now)}
    rate = Limits().setups_per_second
    assert {name: one.rate for name, one in of.items()} == {"a": rate, "c": rate, "d": 0}
    assert of["a"].send_key == b"A" * 32
    assert [entry.key for entry in of["a"].accepted] == [b"a" * 32]
    assert [len(own) for own, _ in of["a"].ways] == [4, 16]
    rig.agent.peer_down("a", rig.now)
    assert {one.name: one.send_key for one in rig.agent.adoption.associations(rig.now)}["a"] == b""


def test_where_tables_are_nearly_full_it_is_the_agent_that_makes_room() -> None:
    rig = Rig(limits=Limits(sessions=10))
    for port in range(9):
        reports = began(rig, session(2, port=40000 + port))
        rig.agent.take_reports([*reports, *ended(reports)], rig.now, settle=False)
    assert {one.rate for one in rig.agent.adoption.associations(rig.now)} == {0}


def test_a_fin_of_a_known_session_is_told() -> None:
    rig = Rig(decision=to_c())
    sub = rig.establish()
    rig.agent.take_reports([Report(Kind.ENDED, HOST, session(2))], rig.now)
    assert rig.state() == ["half-closed"]
    rig.one(UNDERLAY, build_tcp(sub.reversed(), 9001, 1002, FIN | ACK, 100))
    assert rig.state() == ["time-wait"]


# Reports that come twice, too late, or when there is no room.


def arrived(number: int = 1) -> list[Report]:
    """A session that ends at this host's stack, up to the answer."""
    other, inner = Rig(), session(1, 2)
    ports, chain_id = (61000 + number, 61002), bytes([number]) * 16
    arriving = other.chained_syn(hops(2), of=inner, chain_id=chain_id, ports=ports)
    return [
        Report(Kind.ARRIVED, UNDERLAY, read(arriving).five_tuple, HALF, header_in(arriving)),
        Report(Kind.ANSWERED, HOST, inner.reversed(), ANSWER),
    ]


@pytest.mark.parametrize("make", [lambda: began(Rig()), through_box, arrived])
def test_reports_that_come_twice_at_once_make_one_chain(make: Callable[[], list[Report]]) -> None:
    rig = Rig(boxes=[KERNEL_BOX])
    reports = make()
    rig.agent.take_reports([*reports, *reports], rig.now)
    assert rig.state() == ["established"]
    assert len(rig.agent) == 1
    assert rig.agent.counters["opened"] == rig.agent.counters["established"] == 1
    assert not rig.agent.adoption.briefs.has_young


@pytest.mark.parametrize(
    "make",
    [lambda rig: began(rig, session(2, port=40009)), lambda _: through_box(), lambda _: arrived()],
)
def test_where_no_room_is_the_kernels_session_is_not_taken_up(make: Callable[[Rig], list[Report]]) -> None:
    rig = Rig(boxes=[KERNEL_BOX], limits=Limits(sessions=1))
    rig.agent.take_reports(began(rig), rig.now)
    held, flows = rig.agent.ports_held(), set(rig.table.flows)
    reports = make(rig)
    rig.agent.take_reports(reports, rig.now)
    rig.agent.take_reports(ended(reports), rig.now)
    assert rig.agent.counters["table_full"] == 1
    assert rig.state() == ["established"]
    assert set(rig.table.flows) == flows
    assert rig.agent.ports_held() <= held


def test_ports_of_a_session_for_which_there_is_no_room_come_back() -> None:
    rig = Rig(limits=Limits(sessions=1))
    rig.agent.take_reports(began(rig), rig.now)
    reports = began(rig, session(2, port=40009))
    header = chain_header.peek(reports[0].header)
    assert header is not None
    assert len(rig.agent.adoption.allocate(address(2), address(3), 1, rig.now)) == 1
    held = rig.agent.ports_held()
    pool = rig.agent._neighbours._pools[address(2) + address(3)]
    pool.claim(header.subsession.sport, header.subsession.dport)
    assert rig.agent.ports_held() == held + 1
    rig.agent.take_reports(reports, rig.now)
    assert rig.agent.ports_held() == held


def test_ports_are_taken_toward_neighbours_only() -> None:
    rig = Rig()
    pairs = rig.agent.adoption.allocate(address(2), address(3), 7, rig.now)
    assert len(set(pairs)) == 7
    assert all(61000 <= port <= 65535 for pair in pairs for port in pair)
    assert rig.agent.ports_held() == 7
    assert rig.agent.adoption.allocate(address(2), address(9), 7, rig.now) == []


@pytest.mark.parametrize(
    "boxes",
    [
        (),
        (replace(KERNEL_BOX, drained=True),),
        (replace(KERNEL_BOX, match=("tuple", "tag")),),
        (PAIR_BOX, KERNEL_BOX),
    ],
)
def test_what_the_kernel_gave_to_a_box_that_is_none_of_its_own_is_not_taken_up(
    boxes: tuple[LocalBox, ...],
) -> None:
    rig = Rig(boxes=boxes)
    assert plain_box(rig.settings) is None
    rig.agent.take_reports(through_box(), rig.now)
    assert rig.state() == []
    assert not rig.table.flows
    assert plain_box(Rig(boxes=[KERNEL_BOX]).settings) == KERNEL_BOX


def test_a_neighbour_is_reached_in_the_families_that_both_have() -> None:
    def plain(peer: Peer) -> Peer:
        return replace(peer, addresses=peer.addresses[:1]) if peer.name == "c" else peer

    rig = Rig(peers=plain)
    ways = {one.name: [len(own) for own, _ in one.ways] for one in rig.agent.adoption.associations(rig.now)}
    assert ways == {"a": [4, 16], "c": [4], "d": [4, 16]}
    rig.agent.configure(replace(rig.settings, addresses=(address(2, 6),)), lambda _, __: None)
    ways = {one.name: [len(own) for own, _ in one.ways] for one in rig.agent.adoption.associations(rig.now)}
    assert ways == {"a": [16], "c": [], "d": [16]}


def test_where_first_bytes_are_wanted_the_kernel_opens_nothing() -> None:
    rig = Rig()
    rig.agent.configure(replace(rig.settings, watch=lambda *_: True), lambda _, __: None)
    assert {(one.rate, one.send_key) for one in rig.agent.adoption.associations(rig.now)} == {(0, b"")}


def test_an_end_that_is_told_again_changes_nothing() -> None:
    rig = Rig()
    reports = began(rig)
    rig.agent.take_reports([*reports, *ended(reports)], rig.now, settle=False)
    rig.events()
    rig.agent.take_reports(ended(reports), rig.now, settle=False)
    assert rig.events() == []
    assert len(rig.agent) == 1


def test_a_session_that_is_asked_for_when_it_has_rested_is_closed_once() -> None:
    rig = Rig()
    reports = began(rig)
    rig.agent.take_reports([*reports, *ended(reports)], rig.now, settle=False)
    rig.wait(40.0)
    assert rig.one(*_reset(reports))
    rig.events()
    rig.wait(21.0)
    assert rig.state() == ["time-wait"]
    rig.wait(200.0)
    assert [type(event) for event in rig.events(SessionClosed)] == [SessionClosed]
    assert len(rig.agent) == 0


def test_a_session_that_came_by_the_agent_keeps_its_flows_when_one_of_the_same_tuple_is_closed() -> None:
    rig = Rig()
    dropped = watch_drops(rig)
    reports, inner = arrived(), session(1, 2)
    fins = [Report(Kind.ENDED, one.port, one.match) for one in reports]
    rig.agent.take_reports([*reports, *fins], rig.now, settle=False)
    rig.one(UNDERLAY, rig.chained_syn(hops(2), of=inner, ports=(61009, 61002), isn=77, chain_id=b"\7" * 16))
    rig.one(HOST, syn_ack(inner, of=77))
    rig.wait(61.0)
    assert dropped == [(UNDERLAY, reports[0].match)]
    assert rig.state() == ["established"]
    port, _ = rig.one(HOST, build_tcp(inner.reversed(), 9001, 78, ACK, 100, payload=b"x"))
    assert port == UNDERLAY
