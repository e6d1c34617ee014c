"""What a session costs where it costs most: at a middlebox host, with four flows."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from itertools import islice

import pytest

from dysco.dataplane.fast import KernelFlowTable
from dysco.dataplane.steer import NOTHING, Tally
from dysco.dataplane.table import PythonFlowTable
from dysco.protocol.agent import Agent
from dysco.protocol.flow import HOST, UNDERLAY, UNKNOWN
from dysco.protocol.settings import Limits
from dysco.wire.tuples import FiveTuple
from protocol.rig import KERNEL_BOX, Rig, hops, read, session, syn_ack

SESSIONS = 2_000


class NoKernel:
    """What the kernel's maps keep is not this process's memory."""

    def add(self, match: FiveTuple, direction: int, entry: bytes = b"") -> None:
        pass

    def remove(self, match: FiveTuple, direction: int) -> None:
        pass

    def take_out(self, match: FiveTuple) -> None:
        pass

    def tally(self, match: FiveTuple, direction: int) -> Tally:
        return NOTHING

    def carried(
        self, entries: Sequence[tuple[bytes, int]], *, take_away: bool = False
    ) -> list[tuple[int, int]]:
        return [(0, 0) for _ in entries]

    def stop(self, match: FiveTuple, direction: int) -> Tally:
        return NOTHING

    def all_tallies(self) -> dict[tuple[FiveTuple, int], Tally]:
        return {}


@pytest.mark.slow
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("kernel", "bound"), [(False, 2048), (True, 1024)], ids=["agent", "kernel"])
def test_an_established_session_takes_little_memory(kernel: bool, bound: int, family: int) -> None:
    """One that the agent carries stays as it is; one that the kernel carries goes to rest."""
    rig = Rig(boxes=[KERNEL_BOX], limits=Limits(setups_per_second=1_000_000, awake=SESSIONS // 10), up="")
    make = KernelFlowTable if kernel else PythonFlowTable
    table = make(NoKernel(), rig.settings.addresses, rig.settings.port_range)
    rig.agent = Agent(rig.settings, table, lambda _, __: None, rig.rng)
    for name in "acd":
        rig.up(name)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(SESSIONS):
        first = rig.chained_syn(
            hops(2, 4, family=family),
            of=session(port=1024 + number, family=family),
            ports=(61001, 61002 + number % 4000) if number < 4000 else (61001 + number // 4000, 61002 + number % 4000),
            chain_id=number.to_bytes(16, "big"),
        )  # fmt: skip
        _, into = rig.one(UNDERLAY, first)
        _, out = rig.one(HOST, into)
        _, back = rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
        rig.one(HOST, back)
        # In the kernel nobody but it counts a SYN-ACK.
        for port in (HOST, UNDERLAY) if kernel else ():
            for flow in islice(reversed(table.ports[port].values()), 2):
                flow.packets = flow.bytes = 0
                flow.top_seq = flow.top_ack = UNKNOWN
        rig.wait(0.005)
        rig.events()
    rig.wait(200)
    rig.events()
    gc.collect()
    each = (tracemalloc.get_traced_memory()[0] - before) / SESSIONS
    tracemalloc.stop()
    assert len(rig.agent) == SESSIONS
    assert len(table) == (SESSIONS // 10 if kernel else SESSIONS) * 4
    assert each <= bound, f"{each:.0f} bytes for a session"
