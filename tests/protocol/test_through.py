"""Both halves of an old path are empty, but the anchors cannot tell each other: packets need not wait for that."""

from __future__ import annotations

import pytest

from dysco.protocol.chain import Chain
from dysco.protocol.changing import Anchor
from dysco.protocol.flow import HOST, Flow
from dysco.sim.box import Box, Renumber
from protocol.living import Living


def anchors(living: Living) -> tuple[Anchor, Anchor]:
    left, right = (chain_of(living, name).changing for name in "ad")
    assert left is not None
    assert right is not None
    assert left.left is not None
    assert right.right is not None
    return left.left, right.right


def chain_of(living: Living, name: str) -> Chain:
    """The session as an agent knows it."""
    [chain] = living.agent(name)._life.chains.values()
    return chain


def both_have_switched(living: Living) -> bool:
    """Whether each anchor knows the other's cutoff."""
    roles = chain_of(living, "a").changing
    two = None if roles is None or roles.left is None else roles.left.two
    return two is not None and two.peer_cutoff is not None


def own_flow(living: Living, name: str) -> Flow:
    """What becomes of the packets that the end on this host sends."""
    session = living.session if name == "a" else living.session.reversed()
    flow = living.hosts[name].table.get(HOST, session)
    assert flow is not None
    return flow


def control(living: Living, *, up: bool) -> None:
    """Let messages pass between agents, or none."""
    for one in living.hosts:
        for other in living.hosts:
            if one != other:
                living.network.link("control", one, other).up = up


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("grown", [0, 70_000])
def test_packets_pass_unseen_before_the_anchors_know_that_the_change_is_done(family: int, grown: int) -> None:
    boxes: dict[str, Box] = {"b": Renumber(grown, -grown)} if grown else {}
    living = Living(family=family, steady=not grown, boxes=boxes)
    living.talk(3000)
    living.say(living.rng.randbytes(400_000))
    request = living.change("a", "a", "d", "e")
    while not both_have_switched(living):
        living.wait(0.0005)
    left, right = anchors(living)
    assert left.two is not None
    assert right.two is not None
    control(living, up=False)
    assert own_flow(living, "a").slow
    living.talk(0, wait=3.0)
    assert left.is_through
    assert right.is_through
    assert not own_flow(living, "a").slow
    assert not own_flow(living, "d").slow
    seen = left.two.bytes_new, right.two.bytes_new
    living.talk(50_000, wait=3.0)
    assert (left.two.bytes_new, right.two.bytes_new) == seen
    assert living.outcome("a", request)[0] == "drained"
    control(living, up=True)
    living.talk(50_000)
    assert living.outcome("a", request)[0] == "done"
    assert living.chain() == "aed"
    # where both stand is known without another packet: the next change begins at once
    again = living.change("d", "a", "d")
    living.talk(50_000)
    assert living.outcome("d", again)[0] == "done"
