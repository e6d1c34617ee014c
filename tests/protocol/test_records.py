"""The journal's records: what is written comes back, what is damaged gives nothing, and sessions go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.protocol.events import SessionRecord
from dysco.protocol.flow import FIRST_BOX, HOST, UNDERLAY, Flow
from dysco.protocol.records import read_record, write_record
from dysco.wire.packet import ACK, FIN, build_tcp
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple
from protocol.rig import NAT_BOX, PAIR_BOX, Rig, address, both, hops, read, session, syn_ack, to_c


def flows(rig: Rig) -> dict[tuple[int, FiveTuple], tuple[int, FiveTuple]]:
    return {key: (flow.out, flow.rewrite) for key, flow in rig.table.flows.items()}


def first() -> Rig:
    rig = Rig(decision=to_c())
    rig.establish()
    return rig


def last() -> Rig:
    rig = Rig()
    rig.feed(UNDERLAY, rig.chained_syn(hops(2, family=6), of=session(1, 2, family=6)))
    rig.feed(HOST, syn_ack(session(1, 2, family=6)))
    return rig


def nat() -> Rig:
    rig = Rig(boxes=[NAT_BOX])
    _, into = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4)))
    apply(into, Flow(0, session(), 0, FiveTuple.of(address(2), 20000, address(4), 80)))
    _, out = rig.one(FIRST_BOX + 1, into)
    rig.feed(UNDERLAY, syn_ack(read(out).five_tuple))
    rig.feed(FIRST_BOX, syn_ack(session(), isn=77))
    return rig


@pytest.mark.parametrize("make", [first, last, nat])
def test_a_session_goes_on_after_a_restart(make: object) -> None:
    assert callable(make)
    rig = make()
    [(key, data)] = rig.agent.records()
    records = [event for event in rig.events(SessionRecord) if isinstance(event, SessionRecord)]
    assert (records[-1].key, records[-1].data) == (key, data)
    after = Rig(boxes=rig.settings.boxes, up="")
    assert after.agent.restore(data, after.now)
    assert not after.agent.restore(data, after.now)
    assert flows(after) == flows(rig)
    assert list(after.agent.records()) == [(key, data)]
    [old], [new] = rig.agent.sessions(), after.agent.sessions()
    assert replace(old, age_s=0, packets=0, bytes=0) == replace(new, packets=0, bytes=0)
    right = old.right
    assert right is not None
    if right.peer is not None:
        assert after.agent.sessions_via(right.tuple.dst) == 1
    after.wait(8101.0)
    assert after.state() == []
    assert not after.table.flows
    assert after.agent.sessions_via(right.tuple.dst) == 0


def test_a_half_closed_session_comes_back_half_closed() -> None:
    rig = first()
    rig.feed(HOST, build_tcp(session(2), 1001, 9001, FIN | ACK, 1))
    [(_, data)] = rig.agent.records()
    after = Rig()
    assert after.agent.restore(data, after.now)
    assert after.state() == ["half-closed"]
    [info] = after.agent.sessions()
    assert info.right is not None
    after.feed(UNDERLAY, build_tcp(info.right.tuple.reversed(), 9001, 1002, FIN | ACK, 1))
    assert after.state() == ["time-wait"]


def test_ports_of_the_journal_are_not_chosen_again() -> None:
    rig = first()
    [(_, data)] = rig.agent.records()
    after = Rig(decision=to_c(), up="c")
    after.agent.restore(data, after.now)
    pool = after.agent._neighbours._pools[address(2) + address(3)]
    assert len(pool) == after.agent.ports_held() == 1
    after.wait(8101.0)
    assert after.agent.ports_held() == 0
    assert len(pool) == 1  # at rest


def test_a_session_goes_on_whose_peer_is_configured_no_more() -> None:
    rig = first()
    [(_, data)] = rig.agent.records()
    after = Rig(
        peers=lambda peer: replace(peer, name="e", addresses=both(5)) if peer.name == "c" else peer, up=""
    )
    assert after.agent.restore(data, after.now)
    assert flows(after) == flows(rig)
    assert after.agent.sessions_via(address(3)) == 1
    after.wait(8101.0)
    assert after.state() == []
    assert after.agent.sessions_via(address(3)) == 0


def test_what_is_being_opened_is_not_in_the_journal() -> None:
    rig = Rig(decision=to_c())
    rig.begin()
    assert list(rig.agent.records()) == []
    assert rig.events(SessionRecord) == []


def test_a_session_whose_box_is_gone_is_not_taken_up() -> None:
    [(_, data)] = nat().agent.records()
    assert not Rig().agent.restore(data, 0.0)
    assert not Rig(boxes=[PAIR_BOX]).agent.restore(data, 0.0)


RECORDS = [next(iter(make().agent.records()))[1] for make in (first, last, nat)]


@given(st.sampled_from(RECORDS), st.data())
def test_a_damaged_record_gives_nothing_or_a_session_that_writes_as_it_was_read(
    record: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(record)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    found = read_record(bytes(damaged), [NAT_BOX], 0.0)
    if found is not None:
        again = read_record(write_record(found), [NAT_BOX], 0.0)
        assert again is not None
        assert write_record(again) == write_record(found)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_session_or_nothing(data: bytes) -> None:
    read_record(data, [], 0.0)
    read_record(b"\x02" + data, [], 0.0)


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_cut_at_any_place_gives_nothing(record: bytes) -> None:
    assert read_record(record, [NAT_BOX], 0.0) is not None
    assert read_record(record + b"\0", [NAT_BOX], 0.0) is None
    for end in range(len(record)):
        assert read_record(record[:end], [NAT_BOX], 0.0) is None
