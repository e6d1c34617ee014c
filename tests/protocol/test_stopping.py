"""An anchor asks where a session stands while a kernel goes on moving its packets."""

from __future__ import annotations

import pytest

from dysco.protocol.flow import Flow
from dysco.protocol.ground import Side
from dysco.sim.table import SimFlowTable
from protocol.rig import PAIR_BOX, Rig, to_c
from protocol.test_locks import Talk

PASSED = 777


class Busy(SimFlowTable):
    """A kernel that has moved some more bytes whenever one of its flows is taken from it."""

    def insert(self, flow: Flow) -> None:
        old = self.get(flow.port, flow.match)
        if old is not None and not old.slow:
            flow.top_seq += PASSED
            flow.top_ack += PASSED
        super().insert(flow)


def busy(rig: Rig) -> None:
    """Let the kernel under an agent be such a one from now on."""
    rig.table.__class__ = Busy
    for flow in rig.table.flows.values():
        flow.top_seq = flow.top_ack = 1000


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_passes_meanwhile_is_below_the_cutoffs(side: Side) -> None:
    talk = Talk()
    busy(talk.rig)
    ground = talk.rig.agent._ground
    [chain] = talk.rig.agent._life.chains.values()
    before = ground.numbers(chain, side)
    assert before is not None
    after = ground.stop(chain, side)
    assert after == tuple(number + PASSED for number in before)
    assert ground.stop(chain, side) == after
    slow = [flow for flow in talk.rig.table.flows.values() if flow.slow]
    assert {(flow.port, flow.match) for flow in slow} == set(ground._keys(chain, side))
    assert all(flow.owner is chain for flow in slow)


def test_without_packets_the_handshake_says_where_it_stands() -> None:
    rig = Rig(decision=to_c(), boxes=[PAIR_BOX])
    rig.establish()
    [chain] = rig.agent._life.chains.values()
    ground = rig.agent._ground
    assert ground.stop(chain, "right") == ground.numbers(chain, "right") is not None
