"""The journal's records: what is written comes back, what is damaged gives nothing, and sessions go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.protocol.changing import MOST_DONE
from dysco.protocol.events import SessionRecord
from dysco.protocol.flow import FIRST_BOX, HOST, UNDERLAY, Flow, FlowKey
from dysco.protocol.ground import REHEARSED_WINDOW
from dysco.protocol.output import MessageOut
from dysco.protocol.records import read_record, write_record
from dysco.wire.messages import LockQuery, OldDone
from dysco.wire.packet import ACK, FIN, SYN, build_tcp
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple
from protocol.living import Living
from protocol.rig import NAT_BOX, PAIR_BOX, Rig, address, both, hops, read, session, syn_ack, to_c
from protocol.test_left_anchor import two_paths as left_two_paths
from protocol.test_locks import LEFT, NEW_HOP, NEW_PATH
from protocol.test_right_anchor import waiting
from protocol.test_splicing import Proxy


def flows(rig: Rig) -> dict[FlowKey, tuple[int, FiveTuple]]:
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


def test_an_anchor_that_has_begun_again_still_says_that_its_change_is_done() -> None:
    living = Living()
    chain_id = living.key("a")[:16]
    labels = {place.agent: (place.left, place.right) for place in living.agent("a").places(living.key("a"))}
    request = living.change("a", "a", "d")
    living.wait(5.0)
    assert living.outcome("a", request)[0] == "done"
    living.hosts["a"].restart()
    asked = OldDone(
        chain_id, labels["a"][1], request, rightward=False, last=labels["d"][0], waiting=True
    )  # as the host of a proxy asks that has heard nothing
    living.agent("a").receive_message("b", asked, living.clock.now)
    said = [one.message for one in living.agent("a").outgoing() if isinstance(one, MessageOut)]
    assert [(one.rightward, one.waiting) for one in said if isinstance(one, OldDone)] == [(True, False)]


def test_a_record_knows_no_more_changes_than_an_anchor_keeps() -> None:
    living = Living()
    for _ in range(3):
        living.wait(3.0)
        living.change("a", "a", "d")
        living.wait(3.0)
        living.change("a", "a", "d", "b", "c")
    living.wait(5.0)
    chain = living.agent("a")._life.chains[living.key("a")]
    assert len(chain.done) == MOST_DONE
    data = write_record(chain)
    again = read_record(data, (), 0.0)
    assert again is not None
    assert again.done == chain.done
    chain.done = (*chain.done, (1, 2))
    assert read_record(write_record(chain), (), 0.0) is None


# Records that are whole and say what cannot be.


def fields_of(record: bytes) -> tuple[bytes, list[bytes]]:
    """A record's fixed part and its fields, as `records` draws them."""
    fixed, position, found = record[:36], 36, []
    while position < len(record):
        size = int.from_bytes(record[position : position + 2], "big")
        found.append(record[position + 2 : position + 2 + size])
        position += 2 + size
    return fixed, found


def with_field(record: bytes, number: int, change: Callable[[bytes], bytes]) -> bytes:
    fixed, found = fields_of(record)
    found[number] = change(found[number])
    return fixed + b"".join(len(one).to_bytes(2, "big") + one for one in found)


def locked_proxy() -> bytes:
    proxy = Proxy().locked()
    return dict(proxy.rig.agent.records())[proxy.keys[0]]


def with_two_paths() -> bytes:
    talk, _ = left_two_paths()
    [(_, record)] = talk.rig.agent.records()
    return record


def waiting_right() -> bytes:
    talk, _ = waiting()
    [(_, record)] = talk.rig.agent.records()
    return record


TUPLE, RIGHT_HANDSHAKE, SUMS, LEFT_ANCHOR, RIGHT_ANCHOR, INSIDE, PLACES, SEAM, JOINT, DONE = (
    0,
    5,
    10,
    11,
    12,
    13,
    14,
    15,
    17,
    18,
)


@pytest.mark.parametrize(
    ("make", "number", "change"),
    [
        (last, TUPLE, lambda old: old[:-1]),
        (last, TUPLE, lambda _: b""),
        (last, 6, lambda _: b"\xff"),
        (last, RIGHT_HANDSHAKE, lambda _: bytes(15)),
        (last, SUMS, lambda _: bytes(7)),
        (last, SUMS, lambda _: bytes(9)),
        (last, DONE, lambda _: bytes(11)),
        (last, INSIDE, lambda _: bytes(12)),
        (last, PLACES, lambda _: b"\x01"),
        (last, SEAM, lambda _: bytes(22) + b"\x04"),
        (last, SEAM, lambda _: bytes(20) + b"\x0f\x00\x00"),
        (with_two_paths, LEFT_ANCHOR, lambda old: old + b"\0"),
        (with_two_paths, LEFT_ANCHOR, lambda old: old[:-1]),
        (with_two_paths, LEFT_ANCHOR, lambda old: bytes((old[0] & ~32,)) + old[1:]),  # without a path handshake
        (with_two_paths, LEFT_ANCHOR, lambda old: bytes((old[0] | 16,)) + old[1:]),  # waiting, as no left one does
        (waiting_right, RIGHT_ANCHOR, lambda old: old[:20]),
        (locked_proxy, JOINT, lambda old: bytes((old[0] | 128,)) + old[1:]),
        (locked_proxy, JOINT, lambda old: old + b"\0"),
    ],
)  # fmt: skip
def test_a_record_that_says_what_cannot_be_gives_nothing(
    make: Callable[[], Rig | bytes], number: int, change: Callable[[bytes], bytes]
) -> None:
    made = make()
    if isinstance(made, Rig):
        [(_, record)] = made.agent.records()
    else:
        record = made
    boxes = [PAIR_BOX, NAT_BOX]
    assert read_record(with_field(record, number, lambda old: old), boxes, 0.0) is not None
    assert read_record(with_field(record, number, change), boxes, 0.0) is None


@pytest.mark.parametrize("make", [with_two_paths, waiting_right, locked_proxy])
def test_what_is_being_changed_is_written_as_it_was_read(make: Callable[[], bytes]) -> None:
    record = make()
    found = read_record(record, [PAIR_BOX], 0.0)
    assert found is not None
    if make is not locked_proxy:  # whose joint is there only with its other chain
        assert write_record(found) == record


def test_an_anchor_that_waits_goes_on_waiting_after_a_restart() -> None:
    rig = Rig(boxes=[PAIR_BOX])
    assert rig.agent.restore(waiting_right(), rig.now)
    rig.take()
    # Where it stands is not known yet, so a number that hosts of the new path would believe is not made up.
    syn = build_tcp(NEW_PATH, 5000, 0, SYN, REHEARSED_WINDOW)
    assert rig.feed(UNDERLAY, syn) == []
    rig.wait(1.0)
    asked = [message for _, message in rig.messages if isinstance(message, LockQuery)]
    assert {one.hop for one in asked} == {LEFT, NEW_HOP}
