"""Opening chains in the kernel against the same in Python: equal to the byte, and nothing opened that should not be.

SYNs go through the programs one by one (BPF_PROG_TEST_RUN), in a namespace with a route to the neighbours.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dysco.dataplane.fast import TO_STACK, TO_WIRE, pack
from dysco.dataplane.opening import MAX_HOPS, KernelWindow, Openings, OpenNeighbour, OpenRule
from dysco.dataplane.selftest import in_own_namespace, switch_forwarding_on
from dysco.dataplane.steer import IN, OUT, TICKETS
from dysco.policy.clauses import Clause
from dysco.protocol.chain import announced
from dysco.protocol.flow import HOST, UNDERLAY, Flow
from dysco.protocol.reports import Kind, Report
from dysco.wire import chain_header
from dysco.wire.chain_header import ChainHeader, Egress, Hop
from dysco.wire.options import clamp_mss, syn_options
from dysco.wire.packet import ACK, CWR, ECE, FIN, SYN, Packet, build_tcp, locate, set_payload, verify
from dysco.wire.rewrite import retarget
from dysco.wire.tuples import Family, FiveTuple
from netns.programs import DIVERT, OWN4, OWN6, Programs
from wire.strategies import U32, option_lists

pytestmark = pytest.mark.netns

MTU: Final = 1400
BOX: Final = 0xF00D
KEY: Final = b"k" * 32
OTHER_KEY: Final = b"o" * 32
NEIGHBOUR: Final = {4: bytes((10, 0, 0, 2)), 6: b"\xfd" + bytes(14) + b"\2"}
OWN: Final = {4: OWN4, 6: OWN6}
FAR: Final = {4: bytes((10, 9, 9, 9)), 6: b"\xfd" + bytes(14) + b"\x99"}
CHAIN: Final = bytes(range(16))
MSS: Final = b"\2\4\5\xb4"  # 1,460
PORTS: Final = (61234, 65001)
LENGTHS: Final = {4: 32, 6: 128}
_SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Kernel:
    """Programs with one neighbour, two tickets of each family, and a rule for port 80."""

    def __init__(self, hops: int = 1, *, boxes: bool = True) -> None:
        for command in (
            "ip link set lo up",
            "ip link add out0 type veth peer name out1",
            "ip link set out1 up",
            "ip addr add 10.0.0.1/24 dev out0",
            "ip addr add fd00::1/64 dev out0 nodad",
            "ip link set out0 up",
        ):
            subprocess.run(command.split(), check=True)
        switch_forwarding_on()
        self.programs = Programs()
        self.openings = Openings(self.programs.steering)
        self.window = self.openings.new_window()
        assert isinstance(self.window, KernelWindow)
        self.openings.configure(1500, BOX if boxes else None)
        self.tell()
        self.hops = {
            family: (Hop(NEIGHBOUR[family], 7), *(Hop(FAR[family], n) for n in range(1, hops)))
            for family in (4, 6)
        }
        clauses = {
            family: Clause(family, bytes(len(OWN[family])), 0, bytes(len(OWN[family])), 0, dport=(80, 80))
            for family in (4, 6)
        }
        self.openings.set_rules([OpenRule(clauses[f], 0, self.hops[f], 1, 0) for f in (4, 6)])
        self.programs.steering.set_policies(clauses.values())
        for family in (4, 6):
            self.openings.set_peer(NEIGHBOUR[family], 0)
        self.lay()
        self.openings.load(Path("/dev/null"))
        self.openings.enable()

    def tell(self, *, rate: int = 1000, send_key: bytes = KEY, until: float = 1e8) -> None:
        """What the programs know of the neighbour."""
        assert isinstance(self.window, KernelWindow)
        ways: dict[Family, tuple[bytes, bytes]] = {4: (OWN4, NEIGHBOUR[4]), 6: (OWN6, NEIGHBOUR[6])}
        keys = ((OTHER_KEY, 1e8, 200), (KEY, until, self.window.number))
        self.openings.set_neighbour(0, OpenNeighbour(ways, {4: 0, 6: 1}, MTU, rate, send_key, keys))

    def lay(self) -> None:
        """The same ticket again, whatever was taken."""
        for slot in (0, 1):
            taken = self.openings.taken(slot)
            self.openings.put_tickets(slot, taken + 1, [(CHAIN, *PORTS)])

    def forget(self) -> None:
        """Let no flow be known."""
        for match, direction in self.programs.steering.entries():
            self.programs.steering.remove(match, direction)
        for match in self.programs.steering.boxed():
            self.programs.steering.take_out(match)

    def reports(self) -> list[Report]:
        found = [Report.of(one) for one in self.openings.reports({1: "web"})]
        self.openings.done(self.openings.position)
        return found

    def values(self) -> list[bytes]:
        """What the programs know of flows."""
        return list(dict(self.programs.steering.flows.items()).values())

    def close(self) -> None:
        self.openings.disable()
        self.openings.close()
        self.programs.steering.close()


def within(body: Callable[[Kernel], None], hops: int = 1, *, boxes: bool = True) -> None:
    """Run a function with programs in a namespace of its own."""

    def run() -> None:
        kernel = Kernel(hops, boxes=boxes)
        try:
            body(kernel)
        finally:
            kernel.close()

    in_own_namespace(run)


def session(family: int, port: int = 40000) -> FiveTuple:
    return FiveTuple.of(OWN[family], port, FAR[family], 80)


def subsession(family: int) -> FiveTuple:
    return FiveTuple.of(OWN[family], PORTS[0], NEIGHBOUR[family], PORTS[1])


def syn(
    match: FiveTuple, isn: int = 1, options: bytes = b"\2\4\5\xb4", payload: bytes = b"", flags: int = SYN
) -> Packet:
    return build_tcp(match, isn, 0, flags, 64240, options, payload, 61)


def headed(
    family: int,
    *,
    hops: tuple[Hop, ...] | None = None,
    inner: FiveTuple | None = None,
    counter: int = 1,
    key: bytes = KEY,
    isn: int = 1,
    options: bytes = MSS,
    payload: bytes = b"",
    index: int = 0,
    egress: Egress = Egress.AGENT,
) -> Packet:
    """A SYN of the neighbour with a chain header for this host."""
    sub = FiveTuple.of(NEIGHBOUR[family], PORTS[1], OWN[family], PORTS[0])
    inner = inner or FiveTuple.of(FAR[family], 40000, OWN[family], 80)
    header = ChainHeader(CHAIN, index, inner, sub, hops or (Hop(OWN[family]),), counter, egress)
    return syn(sub, isn, options, chain_header.encode(header, key) + payload)


def is_plain(options: bytes) -> bool:
    """Whether the programs read these options by themselves: one MSS at an even place, nothing odd."""
    packet = build_tcp(session(4), 1, 0, SYN, 1, options)
    at = locate(packet)
    assert at is not None
    raw, position, mss = bytes(packet.data[at.tcp_offset + 20 : at.payload_offset]), 0, 0
    while position < len(raw) and raw[position]:
        if raw[position] == 1:
            position += 1
            continue
        length = raw[position + 1]
        if raw[position] == 2 and length == 4:
            if mss or position & 1:
                return False
            mss = 1
        position += length
    return True


@pytest.mark.parametrize("hops", [1, 2, MAX_HOPS - 1])
def test_a_syn_that_begins_a_chain(hops: int) -> None:
    within(begins, hops)


ACTION, NEW_TUPLE, SUMS = slice(1), slice(32, 68), slice(68, 72)  # of struct flow


def begins(kernel: Kernel) -> None:
    @_SETTINGS
    @given(st.sampled_from((4, 6)), U32, option_lists(), st.sampled_from((SYN, SYN | ECE | CWR)))
    def one(family: int, isn: int, options: bytes, flags: int) -> None:
        kernel.lay()
        packet = syn(session(family), isn, options, flags=flags)
        at = locate(packet)
        assert at is not None
        half = announced(packet, at)
        counter = kernel.openings.draw(0) + 1
        verdict, out = kernel.programs.edit("egress", packet.data)
        assert verdict == DIVERT
        reports = kernel.reports()
        if not is_plain(options):
            assert (out, reports) == (bytes(packet.data), [])
            return
        sub = subsession(family)
        route = (*kernel.hops[family], Hop(FAR[family]))
        header = chain_header.encode(ChainHeader(CHAIN, 0, session(family), sub, route, counter), KEY)
        clamp_mss(packet, MTU - (40 if family == 4 else 60), at)
        retarget(packet, sub, at)
        set_payload(packet, header, at)
        assert out == bytes(packet.data)
        assert verify(Packet(bytearray(out)))
        assert reports == [Report(Kind.BEGAN, HOST, session(family), half, header, "web")]
        there = dict(kernel.programs.steering.flows.items())
        assert len(there) == 2
        for flow, action in (
            (Flow(HOST, session(family), UNDERLAY, sub), TO_WIRE),
            (Flow(UNDERLAY, sub.reversed(), HOST, session(family).reversed()), TO_STACK),
        ):
            wanted = pack(flow, action)
            [entry] = [value for value in there.values() if value[NEW_TUPLE] == wanted[NEW_TUPLE]]
            assert (entry[ACTION], entry[SUMS]) == (wanted[ACTION], wanted[SUMS])
        kernel.forget()

    one()


def test_a_syn_that_ends_its_chain_here() -> None:
    within(ends)


def ends(kernel: Kernel) -> None:
    counters = iter(range(1, 1 << 20))

    @_SETTINGS
    @given(st.sampled_from((4, 6)), U32, option_lists())
    def one(family: int, isn: int, options: bytes) -> None:
        packet = headed(family, counter=next(counters), isn=isn, options=options)
        at = locate(packet)
        assert at is not None
        half = announced(packet, at)
        verdict, out = kernel.programs.edit("ingress", packet.data)
        reports = kernel.reports()
        if not is_plain(options):
            assert (out, reports) == (bytes(packet.data), [])
            return
        inner = FiveTuple.of(FAR[family], 40000, OWN[family], 80)
        header = bytes(packet.data[at.payload_offset :])
        set_payload(packet, b"", at)
        clamp_mss(packet, MTU - (40 if family == 4 else 60), at)
        retarget(packet, inner, at)
        assert out == bytes(packet.data)
        assert verdict == -1  # to the stack: it has come by the right device
        came = FiveTuple.of(NEIGHBOUR[family], PORTS[1], OWN[family], PORTS[0])
        assert reports == [Report(Kind.ARRIVED, UNDERLAY, came, half, header)]
        kernel.forget()

    one()


@pytest.mark.parametrize("family", [4, 6])
def test_the_answer_to_the_first_syn_of_a_service_goes_back_by_the_chain(family: int) -> None:
    def body(kernel: Kernel) -> None:
        kernel.programs.edit("ingress", headed(family).data)
        inner = FiveTuple.of(FAR[family], 40000, OWN[family], 80)
        _, out = kernel.programs.edit(
            "egress", build_tcp(inner.reversed(), 9, 2, SYN | ACK, 1000, b"\2\4\5\xb4").data
        )
        at = locate(Packet(bytearray(out)))
        assert at is not None
        assert at.five_tuple == FiveTuple.of(OWN[family], PORTS[0], NEIGHBOUR[family], PORTS[1])

    within(body)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("hops", [2, MAX_HOPS])
def test_a_syn_that_goes_through_the_box(family: int, hops: int) -> None:
    def body(kernel: Kernel) -> None:
        inner = FiveTuple.of(
            FAR[family], 40000, b"\x0a\x09\x09\x08" if family == 4 else FAR[family][:-1] + b"\x98", 80
        )
        route = (Hop(OWN[family], BOX), *(Hop(NEIGHBOUR[family], n) for n in range(1, hops)))
        packet = headed(family, hops=route, inner=inner, index=3)
        verdict, out = kernel.programs.edit("ingress", packet.data)
        assert verdict == DIVERT
        at = locate(packet)
        assert at is not None
        set_payload(packet, b"", at)
        retarget(packet, inner, at)
        assert out == bytes(packet.data)
        kernel.reports()
        counter = kernel.openings.draw(0) + 1
        verdict, out = kernel.programs.edit("egress", bytearray(out))
        assert verdict == DIVERT
        header = chain_header.encode(
            ChainHeader(CHAIN, 4, inner, subsession(family), route[1:], counter), KEY
        )
        clamp_mss(packet, MTU - (40 if family == 4 else 60), at)
        half = announced(packet, at)
        retarget(packet, subsession(family), at)
        set_payload(packet, header, at)
        assert out == bytes(packet.data)
        assert kernel.reports() == [Report(Kind.WENT_ON, HOST, inner, half, header)]
        assert kernel.programs.steering.boxed() == []
        # Answer and end: told where they come from the right, and not again on the left if nothing has changed.
        answer = build_tcp(subsession(family).reversed(), 9, 2, SYN | ACK, 1000, b"\2\4\5\xb4")
        _, inside = kernel.programs.edit("ingress", answer.data)
        _, outside = kernel.programs.edit("egress", bytearray(inside))
        assert verify(Packet(bytearray(inside)))
        assert verify(Packet(bytearray(outside)))
        answered = locate(Packet(bytearray(outside)))
        assert answered is not None
        assert syn_options(Packet(bytearray(outside)), answered).mss == MTU - (40 if family == 4 else 60)
        [report] = kernel.reports()
        assert (report.kind, report.match) == (Kind.ANSWERED, subsession(family).reversed())
        for flags in (ACK, FIN | ACK):
            _, inside = kernel.programs.edit(
                "ingress", build_tcp(subsession(family).reversed(), 10, 2, flags, 1000).data
            )
            _, outside = kernel.programs.edit("egress", bytearray(inside))
            assert verify(Packet(bytearray(inside)))
            assert verify(Packet(bytearray(outside)))
        assert kernel.reports() == [Report(Kind.ENDED, UNDERLAY, subsession(family).reversed())]

    within(body)


@pytest.mark.parametrize("family", [4, 6])
def test_every_bit_of_a_header_is_signed(family: int) -> None:
    def body(kernel: Kernel) -> None:
        packet = headed(family)
        at = locate(packet)
        assert at is not None
        for bit in range(8 * at.payload_offset, 8 * len(packet.data)):
            changed = packet.copy()
            changed.data[bit // 8] ^= 1 << bit % 8
            assert kernel.programs.edit("ingress", changed.data) == (DIVERT, bytes(changed.data))
        assert kernel.reports() == []
        assert kernel.programs.steering.entries() == []

    within(body)


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_left_to_the_agent(family: int) -> None:
    own = OWN[family]

    def body(kernel: Kernel) -> None:
        counters = iter(range(10, 1000))

        def is_left(packet: Packet, program: str = "ingress") -> bool:
            verdict, out = kernel.programs.edit(program, packet.data)
            return (verdict, out, kernel.reports()) == (DIVERT, bytes(packet.data), [])

        def arriving(**how: object) -> Packet:
            return headed(family, counter=next(counters), **how)  # type: ignore[arg-type]

        assert is_left(arriving(key=b"x" * 32))
        assert is_left(arriving(payload=b"early"))
        assert is_left(arriving(egress=Egress.NATIVE))
        assert is_left(arriving(index=64))
        assert is_left(arriving(hops=(Hop(own, BOX),)))
        assert is_left(arriving(hops=(Hop(FAR[family]),)))
        assert is_left(arriving(hops=(Hop(own, BOX + 1), Hop(NEIGHBOUR[family]))))
        assert is_left(arriving(hops=(Hop(own, BOX), Hop(FAR[family]))))  # the next one is no neighbour
        assert is_left(arriving(inner=FiveTuple.of(FAR[family], 1, FAR[family], 80)))  # it does not end here
        assert is_left(arriving(options=bytes((19, 18)) + bytes(16)))
        assert is_left(arriving(options=b"\xfd\x0c\xd1\x5c" + bytes(8)))
        kernel.tell(rate=0)
        assert is_left(arriving())
        kernel.tell(until=0.0)
        assert is_left(arriving())
        kernel.tell()
        assert not is_left(headed(family, counter=7))
        kernel.forget()
        assert is_left(headed(family, counter=7))  # seen before
        assert not is_left(headed(family, counter=6))
        assert is_left(arriving())  # its tuple is that of a session that lives
        kernel.forget()
        first = syn(session(family))
        assert is_left(syn(session(family), payload=b"early"), "egress")
        assert is_left(syn(session(family), options=bytes((30, 4, 0, 0))), "egress")
        kernel.tell(send_key=b"")
        assert is_left(first, "egress")
        kernel.tell()
        assert not is_left(first, "egress")
        assert is_left(first, "egress")  # repeated
        kernel.forget()
        assert is_left(first, "egress")  # no ticket
        kernel.lay()
        kernel.openings.set_rules([])
        assert is_left(first, "egress")

    within(body)


def test_a_neighbour_begins_no_more_chains_in_a_second_than_it_may() -> None:
    def body(kernel: Kernel) -> None:
        kernel.tell(rate=3)
        opened, began = 0, time.monotonic()
        for counter in range(1, 10):
            kernel.programs.edit("ingress", headed(4, counter=counter).data)
            opened += len(kernel.reports())
            kernel.forget()
        assert 3 <= opened <= 3 * (1 + int(time.monotonic() - began))

    within(body)


def test_a_session_that_is_over_gives_its_tuple_to_the_next_one() -> None:
    def body(kernel: Kernel) -> None:
        sub = subsession(4)
        kernel.programs.edit("egress", syn(session(4)).data)
        kernel.programs.edit("ingress", build_tcp(sub.reversed(), 9, 2, SYN | ACK, 1000).data)
        kernel.programs.edit("egress", build_tcp(session(4), 2, 10, FIN | ACK, 1000).data)
        kernel.lay()
        kernel.programs.edit("egress", syn(session(4), 5).data)
        assert [one.kind for one in kernel.reports()] == [Kind.BEGAN, Kind.ANSWERED, Kind.ENDED]
        kernel.programs.edit("ingress", build_tcp(sub.reversed(), 10, 3, FIN | ACK, 1000).data)
        kernel.openings.put_tickets(0, kernel.openings.taken(0) + 1, [(CHAIN, 62000, 62002)])
        kernel.programs.edit("egress", syn(session(4), 5).data)
        assert [one.kind for one in kernel.reports()] == [Kind.ENDED, Kind.BEGAN]
        new = FiveTuple.of(OWN4, 62000, NEIGHBOUR[4], 62002)
        assert sorted(kernel.programs.steering.entries()) == sorted([(session(4), OUT), (new.reversed(), IN)])

    within(body)


def test_addresses_with_the_same_sum_have_no_difference() -> None:
    def body(kernel: Kernel) -> None:
        same = FiveTuple.of(OWN4, 40000, bytes((0, 2, 10, 0)), 80)
        _, out = kernel.programs.edit("egress", syn(same).data)
        assert verify(Packet(bytearray(out)))
        flow = Flow(HOST, same, UNDERLAY, subsession(4))
        assert flow.address_delta == 0
        assert pack(flow, TO_WIRE)[:41] in {value[:41] for value in kernel.values()}
        answer = build_tcp(subsession(4).reversed(), 9, 2, SYN | ACK, 1000, MSS)
        _, inside = kernel.programs.edit("ingress", answer.data)
        assert verify(Packet(bytearray(inside)))

    within(body)


def test_counters_are_drawn_by_both_and_never_twice() -> None:
    def body(kernel: Kernel) -> None:
        kernel.openings.set_counter(0, (1 << 32) - 2)
        assert [kernel.openings.draw(0) for _ in range(4)] == [
            (1 << 32) - 1,
            1 << 32,
            (1 << 32) + 1,
            (1 << 32) + 2,
        ]
        window = kernel.window
        assert [window.accept(number) for number in (5, 5, 9000, 871, 872, 873, 9000, 1 << 40, 9001)] == [
            True, False, True, False, False, True, False, True, False,
        ]  # fmt: skip

    within(body)


def test_tickets_are_used_once_and_in_order() -> None:
    def body(kernel: Kernel) -> None:
        kernel.openings.clear_tickets(0)
        kernel.openings.put_tickets(0, 1, [(bytes([n % 256] * 16), 61000, 61000 + n) for n in range(TICKETS)])
        for n in range(TICKETS + 1):
            verdict, out = kernel.programs.edit("egress", syn(session(4, 1024 + n)).data)
            at = locate(Packet(bytearray(out)))
            assert at is not None
            assert verdict == DIVERT
            assert (at.five_tuple.dport == 61000 + n) == (n < TICKETS)
            kernel.reports()
        assert kernel.openings.taken(0) == TICKETS

    within(body)
