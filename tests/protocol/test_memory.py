"""What a session costs where it costs most: at a middlebox host, with four flows."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from dysco.dataplane.table import PythonFlowTable
from dysco.protocol.agent import Agent
from dysco.protocol.flow import UNDERLAY
from dysco.protocol.settings import Limits
from dysco.wire.tuples import FiveTuple
from protocol.rig import PAIR_BOX, Rig, hops, read, session, syn_ack

SESSIONS = 10_000
BOUND = 2048


class NoKernel:
    """What the kernel's maps keep is not this process's memory."""

    def add(self, match: FiveTuple, direction: int, entry: bytes = b"") -> None:
        pass

    def remove(self, match: FiveTuple, direction: int) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("family", [4, 6])
def test_an_established_session_takes_two_kilobytes_at_most(family: int) -> None:
    rig = Rig(boxes=[PAIR_BOX], limits=Limits(setups_per_second=1_000_000), up="")
    table = PythonFlowTable(NoKernel(), rig.settings.addresses, rig.settings.port_range)
    rig.agent = Agent(rig.settings, table, lambda _, __: None, rig.rng)
    for name in "acd":
        rig.up(name)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(SESSIONS):
        rig.now += 0.001
        first = rig.chained_syn(
            hops(2, 4, family=family),
            of=session(port=1024 + number, family=family),
            ports=(61001, 61002 + number % 4000) if number < 4000 else (61001 + number // 4000, 61002 + number % 4000),
            chain_id=number.to_bytes(16, "big"),
        )  # fmt: skip
        _, into = rig.one(UNDERLAY, first)
        _, out = rig.one(PAIR_BOX.right_read, into)
        _, back = rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
        rig.one(PAIR_BOX.left_read, back)
        rig.events()
    gc.collect()
    each = (tracemalloc.get_traced_memory()[0] - before) / SESSIONS
    tracemalloc.stop()
    assert len(rig.agent) == SESSIONS
    assert len(table) == 4 * SESSIONS
    assert each <= BOUND, f"{each:.0f} bytes for a session"
