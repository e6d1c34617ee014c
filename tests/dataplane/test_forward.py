"""The hot loop against `wire.rewrite` and dpkt, and what it hands over, loses and counts."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.devices import FakeTun, Steer
from dysco.dataplane.forward import BUDGET, PATIENCE, Forwarder
from dysco.dataplane.table import PythonFlowTable
from dysco.errors import LocalError
from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST, LOOP, UNDERLAY, Flow, Translation
from dysco.wire.packet import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    Packet,
    build_tcp,
    complete,
    fix_checksums,
    locate,
    verify,
)
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple
from wire.strategies import U32, packets, tuples

OLD = FiveTuple.parse("10.0.0.1:40000 > 10.0.0.9:80")
NEW = FiveTuple.parse("10.0.0.1:61000 > 10.0.0.2:61001")
TIMESTAMPS = b"\1\1\x08\x0a" + bytes(range(8))


@dataclass
class Rig:
    """A forwarder between two fake devices, and what it gave to the core."""

    host: FakeTun
    underlay: FakeTun
    box: FakeTun
    steer: Steer = field(default_factory=Steer)
    slow: list[tuple[int, Packet]] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = PythonFlowTable(self.steer, (OLD.src,), (61000, 65535))
        self.forwarder = Forwarder(
            {self.host: HOST, self.underlay: UNDERLAY, self.box: FIRST_BOX + 1},
            {
                HOST: self.underlay, UNDERLAY: self.underlay, FORWARD: self.host, FIRST_BOX: self.box,
                FIRST_BOX + 1: self.box, FIRST_BOX + 2: lambda packet: self.software.append(packet),
            },
            self.table,
            lambda port, packet, at: self.slow.append((port, packet)),
            self.gone.append,
        )  # fmt: skip
        self.software: list[Packet] = []

    def run(self, packet: Packet) -> list[Packet]:
        """Let HOST have a packet; give what comes out at UNDERLAY."""
        self.host.feed(packet)
        self.forwarder.readable(self.host.fd)
        return self.underlay.taken()


@contextmanager
def rig(*, offload: bool = True) -> Iterator[Rig]:
    host, underlay, box = (FakeTun(offload=offload) for _ in range(3))
    try:
        yield Rig(host, underlay, box)
    finally:
        for device in (host, underlay, box):
            device.close()


@pytest.fixture(name="rig")
def _rig() -> Iterator[Rig]:
    with rig() as made:
        yield made


def translations() -> st.SearchStrategy[Translation | None]:
    return st.one_of(st.none(), st.builds(Translation, U32, U32, U32, U32))


DATA = st.sampled_from((0, ACK, ACK | PSH, PSH, ACK | 0xE0))


@settings(max_examples=400, deadline=None)
@given(packet=packets(flags=DATA), data=st.data(), translation=translations())
def test_the_loop_does_what_the_reference_does(
    packet: Packet, data: st.DataObject, translation: Translation | None
) -> None:
    """Byte for byte, both families, both forms of checksum, any options, odd lengths."""
    at = locate(packet)
    assert at is not None
    new = data.draw(tuples(at.family))
    gso = data.draw(st.sampled_from((0, 536, 1448))) if packet.partial else 0
    packet.gso_size, packet.ecn = gso, bool(gso) and data.draw(st.booleans())
    flow = Flow(HOST, at.five_tuple, UNDERLAY, new, translation=translation)
    expected = packet.copy()
    apply(expected, flow)
    with rig() as made:
        made.table.insert(flow)
        assert made.run(packet) == [expected]
        assert verify(expected)
        assert made.slow == []
        assert (flow.packets, flow.bytes) == (1, len(packet.data))
        assert made.table.refresh(flow) == 1


@settings(max_examples=200, deadline=None)
@given(packet=packets(flags=st.just(ACK)), data=st.data(), seq_delta=U32, ack_delta=U32)
def test_the_loop_does_what_dpkt_does(
    packet: Packet, data: st.DataObject, seq_delta: int, ack_delta: int
) -> None:
    """An independent parser and checksum agree, once the checksum is complete."""
    at = locate(packet)
    assert at is not None
    new = data.draw(tuples(at.family))
    before = (dpkt.ip.IP if at.family == 4 else dpkt.ip6.IP6)(bytes(packet.data))
    with rig() as made:
        # Without SACK blocks, which `test_the_loop_does_what_the_reference_does` draws as well.
        options = dpkt.tcp.parse_opts(before.data.opts)
        delta = Translation(seq_delta, 0 if any(kind == 5 for kind, _ in options) else ack_delta)
        made.table.insert(Flow(HOST, at.five_tuple, UNDERLAY, new, translation=delta))
        (got,) = made.run(packet)
    complete(got)
    after = type(before)(bytes(got.data))
    tcp = before.data
    tcp.sport, tcp.dport = new.sport, new.dport
    tcp.seq, tcp.ack = (tcp.seq + delta.seq_delta) % 2**32, (tcp.ack + delta.ack_delta) % 2**32
    tcp.sum = before.sum = 0
    before.src, before.dst = new.src, new.dst
    assert bytes(before) == bytes(after)


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK])
def test_what_changes_state_goes_to_the_core(rig: Rig, flags: int) -> None:
    rig.table.insert(Flow(HOST, OLD, UNDERLAY, NEW))
    packet = build_tcp(OLD, 1, 2, flags, 100)
    assert rig.run(packet) == []
    assert rig.slow == [(HOST, packet)]


def test_what_the_table_does_not_know_goes_to_the_core_and_is_a_copy(rig: Rig) -> None:
    first, second = (build_tcp(OLD, seq, 2, ACK, 100, payload=b"x" * seq) for seq in (30, 1))
    rig.host.feed(first)
    rig.host.feed(second)
    rig.forwarder.readable(rig.host.fd)
    assert rig.slow == [(HOST, first), (HOST, second)]


def test_slow_flows_go_to_the_core(rig: Rig) -> None:
    rig.table.insert(Flow(HOST, OLD, UNDERLAY, NEW, slow=True))
    packet = build_tcp(OLD, 1, 2, ACK, 100)
    assert rig.run(packet) == []
    assert rig.slow == [(HOST, packet)]
    rig.table.insert(Flow(HOST, OLD, UNDERLAY, NEW))
    assert len(rig.run(packet)) == 1


@pytest.mark.parametrize("family", [4, 6])
def test_no_packet_is_too_short_or_too_strange(rig: Rig, family: int) -> None:
    """Every prefix of a packet, a fragment, and a header of no version: handed over, never an error."""
    old = OLD if family == 4 else FiveTuple(bytes(36))
    rig.table.insert(Flow(HOST, old, UNDERLAY, NEW if family == 4 else FiveTuple(bytes(35) + b"\1")))
    whole = bytes(build_tcp(old, 1, 2, ACK, 100).data)
    for length in range(1, len(whole)):
        rig.host.feed_bytes(bytes(10) + whole[:length])
        rig.forwarder.readable(rig.host.fd)
    assert rig.underlay.taken() == []
    assert len(rig.slow) == len(whole) - 1
    for odd in (b"\0" * 60, b"\xff" * 60, bytes(range(256))):
        rig.host.feed_bytes(bytes(10) + odd)
        rig.forwarder.readable(rig.host.fd)
    if family == 4:
        for fragment in (0x2000, 0x0001):
            rig.host.feed_bytes(bytes(10) + whole[:6] + struct.pack("!H", fragment) + whole[8:])
            rig.forwarder.readable(rig.host.fd)
    assert rig.underlay.taken() == []
    assert rig.forwarder.counters["read_errors"] == 0


def test_frames_without_a_whole_virtio_header_are_counted(rig: Rig) -> None:
    rig.host.feed_bytes(b"\0\0\0")
    rig.forwarder.readable(rig.host.fd)
    assert rig.slow == []
    assert rig.forwarder.counters["malformed"] == 1


def test_options_of_ip_take_the_long_way(rig: Rig) -> None:
    packet = build_tcp(OLD, 1, 2, ACK, 100, payload=b"abc")
    packet.data[0] = 0x46
    packet.data[20:20] = b"\1\1\1\0"
    packet.data[3] += 4
    at = locate(packet)
    assert at is not None
    fix_checksums(packet, at)
    flow = Flow(HOST, OLD, UNDERLAY, NEW)
    rig.table.insert(flow)
    (got,) = rig.run(packet)
    assert verify(got)
    assert locate(got).five_tuple == NEW  # type: ignore[union-attr]
    assert flow.packets == 1


def test_plain_devices_have_complete_checksums() -> None:
    """Without offload no virtio header is read or written, and what the core sends is completed."""
    with rig(offload=False) as made:
        made.table.insert(Flow(HOST, OLD, UNDERLAY, NEW))
        packet = build_tcp(OLD, 1, 2, ACK, 100, TIMESTAMPS, b"odd")
        (got,) = made.run(packet)
        assert verify(got)
        assert locate(got).five_tuple == NEW  # type: ignore[union-attr]
        made.run(build_tcp(OLD, 1, 2, SYN, 100))
        assert [port for port, _ in made.slow] == [HOST]
        made.forwarder.send(UNDERLAY, made.slow[0][1])
        (syn,) = made.underlay.taken()
        assert verify(syn)


def test_a_loop_is_looked_up_as_if_it_had_arrived(rig: Rig) -> None:
    final = FiveTuple.parse("10.0.0.1:61000 > 10.0.0.3:61005")
    first, second = Flow(HOST, OLD, LOOP, NEW), Flow(UNDERLAY, NEW, UNDERLAY, final)
    rig.table.insert(first)
    rig.table.insert(second)
    (got,) = rig.run(build_tcp(OLD, 1, 2, ACK, 100, payload=b"x"))
    assert locate(got).five_tuple == final  # type: ignore[union-attr]
    assert verify(got)
    assert first.packets == second.packets == 1


def test_software_devices_get_packets_and_give_them_back(rig: Rig) -> None:
    box = FIRST_BOX + 2
    rig.table.insert(Flow(HOST, OLD, box, NEW))
    rig.table.insert(Flow(box + 1, NEW, UNDERLAY, OLD))
    assert rig.run(build_tcp(OLD, 1, 2, ACK, 100)) == []
    (inside,) = rig.software
    rig.forwarder.receive(box + 1, inside)
    (got,) = rig.underlay.taken()
    assert locate(got).five_tuple == OLD  # type: ignore[union-attr]
    rig.forwarder.receive(box + 1, build_tcp(OLD, 1, 2, SYN, 100))
    assert [port for port, _ in rig.slow] == [box + 1]


def test_what_passed_a_box_is_read_at_once(rig: Rig) -> None:
    """A packet that waits behind a kernel box is read in the same turn as the one that was written into it."""
    rig.table.insert(Flow(UNDERLAY, OLD, FIRST_BOX, NEW))
    rig.table.insert(Flow(FIRST_BOX + 1, NEW, UNDERLAY, OLD))
    rig.box.feed(build_tcp(NEW, 1, 2, ACK, 100))
    rig.underlay.feed(build_tcp(OLD, 1, 2, ACK, 100))
    rig.forwarder.readable(rig.underlay.fd)
    assert len(rig.box.taken()) == 1
    assert len(rig.underlay.taken()) == 1


def test_a_turn_has_a_budget(rig: Rig) -> None:
    rig.table.insert(Flow(HOST, OLD, UNDERLAY, NEW))
    for _ in range(BUDGET + 3):
        rig.host.feed(build_tcp(OLD, 1, 2, ACK, 100))
    rig.forwarder.readable(rig.host.fd)
    assert len(rig.underlay.taken()) == BUDGET
    rig.forwarder.readable(rig.host.fd)
    assert len(rig.underlay.taken()) == 3


def test_a_full_device_loses_packets_and_counts_them(rig: Rig) -> None:
    flow = Flow(HOST, OLD, UNDERLAY, NEW)
    rig.table.insert(flow)
    packet = build_tcp(OLD, 1, 2, ACK, 100, payload=bytes(60000))
    while not rig.forwarder.counters["write_eagain"]:
        rig.host.feed(packet)
        rig.forwarder.readable(rig.host.fd)
    lost = rig.forwarder.counters["write_eagain"]
    rig.forwarder.send(UNDERLAY, packet)
    assert rig.forwarder.counters["write_eagain"] == lost + 1


def test_errors_of_devices(rig: Rig) -> None:
    rig.forwarder.send(99, build_tcp(OLD, 1, 2, ACK, 100))
    assert rig.forwarder.counters["no_device"] == 1
    with pytest.raises(LocalError, match="mixed"), rig_of_two() as (one, two):
        Forwarder({one: HOST}, {UNDERLAY: two}, rig.table, lambda port, packet, at: None)


@contextmanager
def rig_of_two() -> Iterator[tuple[FakeTun, FakeTun]]:
    one, two = FakeTun(offload=True), FakeTun(offload=False)
    try:
        yield one, two
    finally:
        one.close()
        two.close()


def test_who_is_behind_drops_what_would_begin_and_nothing_else(rig: Rig) -> None:
    """More SYNs than can be served: sessions that have begun go on, and so do SYNs that are half through a chain."""
    known, inside = FiveTuple.parse("10.0.0.1:7 > 10.0.0.2:8"), FiveTuple.parse("10.0.0.1:9 > 10.0.0.2:8")
    rig.table.insert(Flow(HOST, known, UNDERLAY, NEW))
    rig.table.capture(inside)

    def offer(five_tuple: FiveTuple, flags: int) -> bool:
        rig.slow.clear()
        rig.host.feed(build_tcp(five_tuple, 1, 2, flags, 100))
        rig.forwarder.readable(rig.host.fd)
        return bool(rig.slow)

    for turn in range(1, PATIENCE + 1):
        for number in range(BUDGET):
            rig.host.feed(build_tcp(FiveTuple.of(OLD.src, number, OLD.dst, turn), 1, 0, SYN, 100))
        rig.forwarder.readable(rig.host.fd)
        assert len(rig.slow) == turn * BUDGET
    for number in range(BUDGET):
        rig.host.feed(build_tcp(FiveTuple.of(OLD.src, number, OLD.dst, 9), 1, 0, SYN, 100))
    rig.forwarder.readable(rig.host.fd)
    assert (len(rig.slow), rig.forwarder.counters["syn_shed"]) == (PATIENCE * BUDGET, BUDGET)
    assert offer(inside, SYN)  # the device is read empty with this one
    assert offer(OLD, SYN)
    assert rig.forwarder.counters["syn_shed"] == BUDGET


def test_a_session_goes_on_while_new_ones_are_dropped(rig: Rig) -> None:
    known = FiveTuple.parse("10.0.0.1:7 > 10.0.0.2:8")
    rig.table.insert(Flow(HOST, known, UNDERLAY, NEW))
    for _ in range(PATIENCE * BUDGET):
        rig.host.feed(build_tcp(known, 1, 2, ACK, 100))
    for flags, five_tuple in ((SYN, OLD), (SYN, known), (SYN | ACK, OLD), (FIN | ACK, known), (RST, OLD)):
        rig.host.feed(build_tcp(five_tuple, 1, 2, flags, 100))
    for _ in range(PATIENCE + 1):
        rig.forwarder.readable(rig.host.fd)
    assert len(rig.slow) == 4
    assert rig.forwarder.counters["syn_shed"] == 1
