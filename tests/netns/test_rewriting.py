"""Rewriting in the kernel against rewriting in Python, against dpkt: equal to the byte.

Packets with complete checksums go through the programs one by one (BPF_PROG_TEST_RUN). Partial checksums and offload
packets cannot be given to them so; these go through real devices in a namespace of their own.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import dpkt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dysco.dataplane.fast import TO_STACK, TO_WIRE, KernelFlowTable, pack
from dysco.dataplane.selftest import in_own_namespace
from dysco.dataplane.steer import IN, OUT, SteeringConfig
from dysco.dataplane.trial import Range, fault_since_boot, flows, rewriting_fault, steering_fault
from dysco.protocol.flow import FORWARD, HOST, UNDERLAY, Flow, Translation
from dysco.wire.options import walk
from dysco.wire.packet import ACK, FIN, PSH, RST, SYN, URG, Packet, build_tcp, fix_checksums, locate
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple
from netns.programs import DIVERT, OWN4, OWN6, PASS, Programs
from wire.strategies import U32, option_lists, packets, tuples

LOOPBACK, NEXT_HOP = 1, bytes((2, 3, 4, 5, 6, 7))
TOO_MANY_OPTIONS = 10  # the search in the kernel gives up
_NUMBERS = st.none() | st.builds(Translation, U32, U32, U32, U32)
_SETTINGS = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def programs() -> Iterator[Programs]:
    made = Programs()
    yield made
    made.steering.close()


def edited(programs: Programs, packet: Packet, flow: Flow, *, summed: bool = False) -> tuple[int, bytes]:
    """What ingress makes of a packet that goes up the stack if the flow is followed."""
    programs.steering.add(flow.match, IN, pack(flow, TO_STACK))
    try:
        return programs.edit("ingress", packet.data, summed=summed)
    finally:
        programs.steering.remove(flow.match, IN)


def epoch() -> int:
    """What the programs call it: sixteen ticks of the kernel's clock."""
    found = re.search(r"^jiffies: (\d+)$", Path("/proc/timer_list").read_text(encoding="ascii"), re.M)
    assert found is not None
    return int(found[1]) >> 4 & 0xFFFF


def edited_on_its_way_out(programs: Programs, packet: Packet, flow: Flow) -> tuple[int, bytes]:
    """What egress makes of a packet, with its Ethernet header, when the next hop is known already."""
    entry = bytearray(pack(flow, TO_WIRE))
    kind = b"\x08\x00" if packet.data[0] >> 4 == 4 else b"\x86\xdd"
    while True:
        now = epoch()
        struct.pack_into("=I6sH", entry, 4, LOOPBACK, NEXT_HOP, now)
        programs.steering.add(flow.match, OUT, bytes(entry))
        try:
            found = programs.frame("egress", bytes(12) + kind + packet.data)
        finally:
            programs.steering.remove(flow.match, OUT)
        if epoch() == now:
            return found


def is_for_the_agent(packet: Packet, flow: Flow) -> bool:
    """What the programs leave to the agent of what they could rewrite."""
    at = locate(packet)
    assert at is not None
    if at.flags & (SYN | FIN | RST):
        return True
    if flow.translation is None:
        return False
    data, position, seen = packet.data, at.tcp_offset + 20, []
    for _ in range(TOO_MANY_OPTIONS):
        if position >= at.payload_offset or data[position] == 0:
            return False
        if data[position] == 1:
            position += 1
            continue
        left = at.payload_offset - position
        if left < 2 or not 2 <= data[position + 1] <= left:
            return False
        kind, length = data[position], data[position + 1]
        if kind == 5 or (kind == 8 and length == 10):
            if kind in seen:
                return True
            seen.append(kind)
        position += length
    return position < at.payload_offset


def dpkt_rewrite(packet: Packet, flow: Flow) -> bytes:
    """The same by dpkt, which takes the packet apart and makes a new one. Options must be well-formed."""
    new, numbers = flow.rewrite, flow.translation or Translation()
    four = packet.data[0] >> 4 == 4
    ip = (dpkt.ip.IP if four else dpkt.ip6.IP6)(bytes(packet.data))
    tcp = ip.data
    ip.src, ip.dst, tcp.sport, tcp.dport = new.src, new.dst, new.sport, new.dport
    has_ack = tcp.flags & ACK
    tcp.seq = (tcp.seq + numbers.seq_delta) % 2**32
    tcp.ack = (tcp.ack + (numbers.ack_delta if has_ack else 0)) % 2**32
    at = locate(packet)
    assert at is not None
    options = bytearray(tcp.opts)
    for kind, position, length in walk(packet, at):
        start = position - at.tcp_offset - 20
        deltas = []
        if kind == 5:
            deltas = [numbers.ack_delta] * ((length - 2) // 4)
        elif kind == 8 and length == 10:
            deltas = [numbers.tsval_delta, numbers.tsecr_delta if has_ack else 0]
        for place, delta in enumerate(deltas):
            where = start + 2 + 4 * place
            (old,) = struct.unpack_from("!I", options, where)
            struct.pack_into("!I", options, where, (old + delta) % 2**32)
    tcp.opts = bytes(options)
    tcp.sum = 0
    if four:
        ip.sum = 0
    return bytes(ip)


@_SETTINGS
@given(st.data())
def test_one_packet(programs: Programs, data: st.DataObject) -> None:
    flags = st.sampled_from((0, ACK, ACK | PSH, ACK | URG, 0xC0 | ACK)) | st.integers(0, 255)
    packet = data.draw(packets(flags=flags, partial=False))
    at = locate(packet)
    assert at is not None
    numbers = data.draw(_NUMBERS)
    new = data.draw(tuples(at.family))
    if data.draw(st.booleans()):  # the difference of the addresses alone is zero
        new = FiveTuple.of(at.five_tuple.src, new.sport, at.five_tuple.dst, new.dport)
    flow = Flow(UNDERLAY, at.five_tuple, HOST, new, translation=numbers)
    expected = packet.copy()
    apply(expected, flow)
    assert dpkt_rewrite(packet, flow) == bytes(expected.data)
    verdict, got = edited(programs, packet, flow)
    if is_for_the_agent(packet, flow):
        assert (verdict, got) == (DIVERT, bytes(packet.data))
    else:
        assert (verdict, got) == (PASS, bytes(expected.data))


@_SETTINGS
@given(st.data())
def test_one_packet_that_leaves(programs: Programs, data: st.DataObject) -> None:
    packet = data.draw(packets(flags=st.sampled_from((0, ACK, ACK | PSH, ACK | URG)), partial=False))
    at = locate(packet)
    assert at is not None
    flow = Flow(HOST, at.five_tuple, UNDERLAY, data.draw(tuples(at.family)), translation=data.draw(_NUMBERS))
    expected = packet.copy()
    apply(expected, flow)
    verdict, got = edited_on_its_way_out(programs, packet, flow)
    if is_for_the_agent(packet, flow):
        assert (verdict, got[:12], got[14:]) == (DIVERT, bytes(12), bytes(packet.data))
    else:
        assert (verdict, got[:12], got[14:]) == (PASS, NEXT_HOP + bytes(6), bytes(expected.data))


@_SETTINGS
@given(st.data())
def test_the_sum_that_a_device_has_taken_stays_right(programs: Programs, data: st.DataObject) -> None:
    """CHECKSUM_COMPLETE: the kernel compares it with the packet after the program has run."""
    packet = data.draw(packets(flags=st.just(ACK), partial=False))
    at = locate(packet)
    assert at is not None
    flow = Flow(UNDERLAY, at.five_tuple, HOST, data.draw(tuples(at.family)), translation=data.draw(_NUMBERS))
    expected = packet.copy()
    apply(expected, flow)
    if not is_for_the_agent(packet, flow):
        assert edited(programs, packet, flow, summed=True) == (PASS, bytes(expected.data))


@_SETTINGS
@given(match=tuples(), options=st.binary(max_size=40), numbers=_NUMBERS, payload=st.binary(max_size=3))
@example(FiveTuple(bytes(12)), b"\1" * 40, Translation(1, 2, 3, 4), b"")
@example(FiveTuple(bytes(12)), b"\5\x22" + bytes(32), Translation(1, 2, 3, 4), b"")  # four blocks
@example(
    FiveTuple(bytes(36)), b"\1\5\x0a" + bytes(8) + b"\x08\x0a" + b"\xff" * 8, Translation(1, 2, 3, 4), b"x"
)
@example(FiveTuple(bytes(36)), b"\5\x27" + bytes(37), Translation(0, 2**32 - 1), b"")
@example(FiveTuple(bytes(12)), b"\x08\x0a" + bytes(8) + b"\x08\x0a" + bytes(8), Translation(1), b"")
def test_options_that_no_system_sends(
    programs: Programs, match: FiveTuple, options: bytes, numbers: Translation | None, payload: bytes
) -> None:
    packet = build_tcp(match, 2**32 - 1, 7, ACK, 9, options, payload)
    flow = Flow(UNDERLAY, match, HOST, match.reversed(), translation=numbers)
    expected = packet.copy()
    apply(expected, flow)
    verdict, got = edited(programs, packet, flow)
    if is_for_the_agent(packet, flow):
        assert (verdict, got) == (DIVERT, bytes(packet.data))
    else:
        assert (verdict, got) == (PASS, bytes(expected.data))


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_not_understood_goes_to_the_agent_as_it_is(programs: Programs, family: int) -> None:
    size = 12 if family == 4 else 36
    match = FiveTuple(bytes(range(1, size + 1)))
    flow = Flow(UNDERLAY, match, HOST, match.reversed())
    plain = build_tcp(match, 1, 1, ACK, 1, b"", b"payload")
    hostile = []
    for at, value in ((32 if family == 4 else 52, 0x40), (32 if family == 4 else 52, 0xF0)):
        packet = plain.copy()
        packet.data[at] = value  # a data offset below the least, and one beyond the end
        hostile.append(packet)
    short = plain.copy()
    del short.data[-3:]
    longer = plain.copy()
    struct.pack_into("!H", longer.data, 2 if family == 4 else 4, 2000)
    for packet in (*hostile, short, longer):
        assert edited(programs, packet, flow) == (DIVERT, bytes(packet.data))
    if family == 4:
        optioned = Packet(bytearray(b"\x46" + plain.data[1:20] + b"\1\1\1\0" + plain.data[20:]))
        struct.pack_into("!H", optioned.data, 2, len(optioned.data))
        at4 = locate(optioned)
        assert at4 is not None
        fix_checksums(optioned, at4)
    else:
        optioned = Packet(
            plain.data[:6] + b"\0" + plain.data[7:40] + bytes((6, 0, 1, 4, 0, 0, 0, 0)) + plain.data[40:]
        )
        struct.pack_into("!H", optioned.data, 4, len(optioned.data) - 40)
    assert edited(programs, optioned, flow) == (DIVERT, bytes(optioned.data))
    padded = plain.copy()
    expected = plain.copy()
    apply(expected, flow)
    padded.data += bytes(20)  # Ethernet's padding is none of IP's
    assert edited(programs, padded, flow) == (PASS, bytes(expected.data) + bytes(20))


@pytest.mark.parametrize(
    "tags", [b"\x81\x00\x00\x07", b"\x88\xa8\x00\x09\x81\x00\x00\x07"], ids=["one", "two"]
)
@pytest.mark.parametrize("family", [4, 6])
def test_what_stands_behind_tags_is_another_networks(programs: Programs, family: int, tags: bytes) -> None:
    """Tags in the packet itself, as a device without VLAN offload sends them; both directions, flow or not."""
    match = FiveTuple.of((OWN4, OWN6)[family == 6], 61001, bytes(4 if family == 4 else 16), 61002)
    for direction, name, one in ((OUT, "egress", match), (IN, "ingress", match.reversed())):
        packet = build_tcp(one, 1, 1, ACK, 1, b"", b"payload").data
        kind = b"\x08\x00" if family == 4 else b"\x86\xdd"
        frame = bytes(12) + tags + kind + packet
        assert programs.frame(name, frame) == (PASS, frame)
        programs.steering.add(one, direction, pack(Flow(UNDERLAY, one, HOST, one.reversed()), TO_STACK))
        assert programs.frame(name, frame) == (PASS, frame)
        assert programs.frame(name, bytes(12) + kind + packet) != (PASS, bytes(12) + kind + packet)


def test_what_arrives_by_another_underlay_device_comes_up_by_the_first(programs: Programs) -> None:
    """Filters and routes of the host see one device, whichever way a packet took; the agent takes a tunnel's."""
    match = FiveTuple.parse("10.0.0.2:61001 > 10.0.0.1:61002")
    flow = Flow(UNDERLAY, match, HOST, match.reversed())
    programs.steering.add(match, IN, pack(flow, TO_STACK))
    packet = build_tcp(match, 1, 1, ACK, 1)
    expected = packet.copy()
    apply(expected, flow)
    mac = bytes((2, 0, 0, 0, 0, 9))
    own = (OWN4, OWN6)
    programs.steering.configure(SteeringConfig(1, 1, 7, mac, (61000, 65535), own))
    verdict, frame = programs.frame("ingress", bytes(12) + b"\x08\x00" + packet.data)
    assert (verdict, frame) == (DIVERT, mac + bytes(6) + b"\x08\x00" + bytes(expected.data))
    programs.steering.configure(SteeringConfig(1, 1, 7, None, (61000, 65535), own))
    assert programs.edit("ingress", packet.data) == (DIVERT, bytes(packet.data))


def test_partial_checksums_and_offload_packets_through_devices() -> None:
    def body() -> None:
        with contextlib.ExitStack() as undo:
            through_devices(Range(undo))

    in_own_namespace(body)


def through_devices(place: Range) -> None:
    @settings(max_examples=150, deadline=None, database=None)
    @given(
        family=st.sampled_from((4, 6)),
        seq=U32,
        flags=st.sampled_from((ACK, ACK | PSH, ACK | URG | PSH, 0xC0 | ACK)),
        options=option_lists(),
        size=st.sampled_from((0, 1, 1399, 1400, 1401, 20_001, 64_000)),
        partial=st.booleans(),
        tos=st.integers(0, 255),
        numbers=_NUMBERS,
        moves=st.booleans(),
    )
    def one(
        family: int, seq: int, flags: int, options: bytes, size: int, partial: bool, tos: int,
        numbers: Translation | None, moves: bool,
    ) -> None:  # fmt: skip
        first, second = flows(family, numbers)
        if not moves:  # the ports alone
            old = second.match
            new = FiveTuple.of(old.src, 61003, old.dst, 61004)
            second = Flow(HOST, old, UNDERLAY, new, translation=numbers)
        packet = build_tcp(first.match, seq, 5, flags, 1000, options, bytes(n % 251 for n in range(size)))
        packet.partial = partial or size > 1400
        if size > 1400:
            packet.gso_size, packet.ecn = 1400, bool(flags & 0x80)
        if family == 4:
            packet.data[1] = tos
        else:
            packet.data[0] |= tos >> 4
            packet.data[1] |= (tos & 15) << 4
        at = locate(packet)
        assert at is not None
        fix_checksums(packet, at)
        if is_for_the_agent(packet, first):
            return
        got, expected = place.through(packet, first, second)
        assert got == expected

    one()


def test_the_trial_of_this_kernel_succeeds_and_finds_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rewriting_fault() is None
    monkeypatch.setattr("dysco.dataplane.fast._sum", lambda delta: (delta + 1) & 0xFFFF)
    fault = rewriting_fault()
    assert fault is not None
    assert fault == "a packet of 52 bytes for IPv4 does not arrive"  # its IP checksum is wrong


def test_a_kernel_that_takes_no_programs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tcx they stand in tc; where neither is, no mode works."""
    assert steering_fault() is None
    monkeypatch.setattr("dysco.dataplane.trial.tcx.is_here", lambda: False)
    assert steering_fault() is None
    monkeypatch.setattr("dysco.dataplane.trial._PARENT", {"ingress": 0xFFFF0007})  # there is no such place
    assert str(steering_fault()).startswith("neither tcx nor cls_bpf takes a program: ")
    monkeypatch.setattr(
        "dysco.dataplane.bpf._SCHED_CLS", 0
    )  # as where the kernel knows no classifiers in eBPF
    assert "cannot be loaded" in str(steering_fault())


def test_what_a_kernel_has_shown_once_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers: list[str | None] = ["does not work", None, "is not asked"]
    monkeypatch.setattr("dysco.dataplane.trial.rewriting_fault", lambda: answers.pop(0))
    memory = tmp_path / "run" / "trial"
    assert [fault_since_boot(memory) for _ in range(4)] == ["does not work", None, None, None]
    memory.write_text("another boot, or other programs")
    assert fault_since_boot(memory) == "is not asked"


def test_counters_and_numbers_come_back_and_a_flow_is_stopped_for_the_next_packet(programs: Programs) -> None:
    table = KernelFlowTable(programs.steering, (OWN4, OWN6), (61000, 65535))
    match = FiveTuple.parse("10.0.0.2:61001 > 10.0.0.1:61002")
    session = FiveTuple.parse("10.9.0.1:4000 > 10.0.0.1:80")
    flow = Flow(UNDERLAY, match, HOST, session)
    flow.top_seq = 2**32 - 10
    table.insert(flow)
    for seq, ack in ((2**32 - 5, 100), (2**32 - 5, 90), (2, 110), (2**31 + 9, 120)):
        assert programs.run("ingress", build_tcp(match, seq, ack, ACK, 1, b"", b"seven b").data) == PASS
    assert table.refresh(flow) == 4
    assert (flow.bytes, flow.top_seq, flow.top_ack) == (4 * 47, 9, 120)
    with table.refresh_all():
        assert table.refresh(flow) == 4
    assert programs.run("ingress", build_tcp(match, 9, 130, ACK, 1).data) == PASS
    slow = Flow(UNDERLAY, match, HOST, session, slow=True)
    slow.carry_over(flow)
    table.insert(slow)
    assert (slow.top_seq, slow.top_ack) == (9, 130)
    assert flow.packets == slow.packets == 5
    packet = build_tcp(match, 9, 140, ACK, 1)
    assert programs.edit("ingress", packet.data) == (DIVERT, bytes(packet.data))
    again = Flow(UNDERLAY, match, FORWARD, session)
    again.carry_over(slow)
    table.insert(again)
    assert programs.edit("ingress", packet.data)[1] != bytes(packet.data)
    with table.refresh_all():
        assert table.refresh(again) == 6
    table.delete(UNDERLAY, match)
    assert programs.steering.entries() == []


def test_a_capture_and_a_flow_with_one_tuple_do_not_spoil_each_other(programs: Programs) -> None:
    table = KernelFlowTable(programs.steering, (OWN4, OWN6), (61000, 65535))
    session = FiveTuple.parse("10.0.0.1:4000 > 10.9.0.1:80")
    flow = Flow(HOST, session, UNDERLAY, FiveTuple.parse("10.0.0.1:61001 > 10.0.0.2:61002"))
    table.insert(flow)
    kept = programs.steering.flows.get(next(iter(programs.steering.flows.keys())))
    table.capture(session)
    assert programs.steering.flows.get(next(iter(programs.steering.flows.keys()))) == kept
    table.delete(HOST, session)
    assert programs.steering.entries() == [(session, OUT)]
    packet = build_tcp(session, 9, 140, ACK, 1)
    assert programs.edit("egress", packet.data) == (DIVERT, bytes(packet.data))
    table.release(session)
    assert programs.steering.entries() == []


def test_entries_are_read_in_batches(programs: Programs) -> None:
    wanted = {}
    for number in range(10_000):
        match = FiveTuple.of(bytes((10, 1, *number.to_bytes(2, "big"))), 1, OWN4, 2)
        programs.steering.add(match, IN)
        wanted[match] = IN
    found = dict(programs.steering.flows.items())
    assert len(found) == len(wanted)
    assert dict(programs.steering.entries()) == wanted
