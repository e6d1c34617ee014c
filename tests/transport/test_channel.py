"""Channels on real sockets: who gets through, what both sides then know, and how they come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco.wire.messages import SynRefused
from transport.rig import both_up, pair, running


@pytest.mark.parametrize("v6", [False, True])
async def test_two_agents_find_each_other(pki: Path, v6: bool) -> None:
    a, b = pair(pki, v6=v6)
    async with running(a, b):
        await both_up(a, b)
        assert a.hellos["b"].name == "b"
        assert a.hellos["b"].boot_id == b.channel.settings.boot_id
        assert a.keys["b"][0] != a.keys["b"][1]
        sent = [SynRefused(i.to_bytes(16, "big"), "because") for i in range(500)]
        before = a.channel.counters["datagrams_out"]
        for message in sent:
            assert a.channel.send("b", message)
        await b.until(lambda: sum(isinstance(m, SynRefused) for _, m in b.messages) == 500)
        assert [m for _, m in b.messages if isinstance(m, SynRefused)] == sent
        assert a.channel.counters["datagrams_out"] - before < 25  # packed
        await a.until(lambda: a.mtus.get("b") == 1500)
    assert b.count("down") == 0  # closed, nothing is called any more


async def test_a_peer_that_goes_is_down_at_once(pki: Path) -> None:
    a, b = pair(pki)
    async with running(a):
        async with running(b):
            await both_up(a, b)
        await a.until(lambda: "b" not in a.up)
        assert a.channel.counters["peers_gone"] == 1
