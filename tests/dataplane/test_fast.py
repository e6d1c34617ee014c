"""What the agent makes of numbers that the kernel has counted, however long it has not looked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dataplane.devices import Steer
from dysco.dataplane.fast import KernelFlowTable
from dysco.dataplane.steer import NOTHING, Tally
from dysco.protocol.flow import HOST, UNDERLAY, Flow
from dysco.wire.tuples import FiveTuple

MATCH = FiveTuple.parse("10.0.0.2:61001 > 10.0.0.1:61002")
SESSION = FiveTuple.parse("10.9.0.1:4000 > 10.0.0.1:80")
START = 0xFFFFF000


class Kernel(Steer):
    """Programs that have counted what a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = NOTHING

    def tally(self, match: FiveTuple, direction: int) -> Tally:
        return self.counted

    def all_tallies(self) -> dict[tuple[FiveTuple, int], Tally]:
        return {(MATCH, 1): self.counted}

    def carried(
        self, entries: Sequence[tuple[bytes, int]], *, take_away: bool = False
    ) -> list[tuple[int, int]]:
        return [(0, 0) for _ in entries]

    def stop(self, match: FiveTuple, direction: int) -> Tally:
        return self.counted


def after(gone: int, packets: int = 1) -> Tally:
    """What is counted when so many bytes have passed."""
    number = (START + gone) % 2**32
    return Tally(packets, gone, number, number)


@pytest.mark.parametrize(
    "gone", [1, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 2**25, 2**32 - 1, 2**32, 2**32 + 1448]
)
@pytest.mark.parametrize("is_first", [True, False])
def test_gigabytes_may_pass_between_two_looks(gone: int, is_first: bool) -> None:
    kernel = Kernel()
    table = KernelFlowTable(kernel, (bytes((10, 0, 0, 1)),), (61000, 65535))
    flow = Flow(UNDERLAY, MATCH, HOST, SESSION)
    flow.top_seq = flow.top_ack = START
    table.insert(flow)
    if not is_first:
        kernel.counted = after(0)
        table.refresh(flow)
    kernel.counted = after(gone, 2)
    end = kernel.counted.top_seq
    slow = Flow(UNDERLAY, MATCH, HOST, SESSION, slow=True)
    slow.carry_over(
        flow
    )  # as when a change stops the kernel: what it carries over is as old as the last look
    table.insert(slow)
    assert (flow.top_seq, flow.top_ack) == (end, end)
    assert (slow.top_seq, slow.top_ack) == (end, end)


def test_what_an_anchor_has_told_is_kept_until_the_kernel_has_seen_as_much() -> None:
    kernel = Kernel()
    table = KernelFlowTable(kernel, (bytes((10, 0, 0, 1)),), (61000, 65535))
    flow = Flow(UNDERLAY, MATCH, HOST, SESSION)
    table.insert(flow)
    flow.top_seq = flow.top_ack = START + 3000
    for gone, stands in ((1448, 3000), (2896, 3000), (4344, 4344 - 2**32)):
        kernel.counted = after(gone)
        table.refresh(flow)
        assert flow.top_seq == flow.top_ack == START + stands


@pytest.mark.parametrize("passed", [0, 5])
def test_a_flow_that_a_change_has_stopped_may_rest_again(passed: int) -> None:
    kernel = Kernel()
    table = KernelFlowTable(kernel, (bytes((10, 0, 0, 1)),), (61000, 65535))
    flow = Flow(UNDERLAY, MATCH, HOST, SESSION)
    table.insert(flow)
    kernel.counted = after(1448, passed)
    slow = Flow(UNDERLAY, MATCH, HOST, SESSION, slow=True)
    table.insert(slow)
    assert slow.packets == passed
    slow.packets += 2
    slow.bytes += 3000
    slow.top_seq = slow.top_ack = (START + 3000) % 2**32
    again = Flow(UNDERLAY, MATCH, HOST, SESSION)
    again.carry_over(slow)
    table.insert(again)
    assert table.may_rest(again)
    kernel.counted = after(4344, passed + 3)  # it goes on from there
    table.refresh(again)
    assert (again.packets, again.top_seq) == (passed + 3, (START + 4344) % 2**32)
    assert table.may_rest(again)


def test_where_a_flow_stood_when_it_went_to_rest_is_known_again_though_nothing_has_passed() -> None:
    """As after a change, which counts from where the old path stood."""
    kernel = Kernel()
    table = KernelFlowTable(kernel, (bytes((10, 0, 0, 1)),), (61000, 65535))
    flow = Flow(UNDERLAY, MATCH, HOST, SESSION)
    flow.top_seq = flow.top_ack = START
    table.insert(flow)
    assert table.may_rest(flow)
    table.rest(flow)
    kernel.counted = Tally(0, 0, START, START)
    again = Flow(UNDERLAY, MATCH, HOST, SESSION)
    table.adopt(again)
    table.refresh(again)
    assert (again.top_seq, again.top_ack, again.packets) == (START, START, 0)
    assert table.may_rest(again)
