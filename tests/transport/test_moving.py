"""Hosts that move, one after the other and both at once: each is reached from its new address soon."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from transport.virtual import Host, World, pair


def connected(*hosts: Host) -> bool:
    return all(host.link(peer) is not None for host, peer in zip(hosts, "ba", strict=True))


def moved(*hosts: Host) -> bool:
    return all(host.channel.has_moved(peer) for host, peer in zip(hosts, "ba", strict=True))


def test_a_call_to_the_address_that_is_left_does_not_displace_the_one_from_the_new(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer has called before it heard of the move, and its association is the newer one."""
    world = World(random.Random(1), late=0.005)
    a, b = pair(world, pki, monkeypatch)
    world.run(world.now + 10.0, lambda: connected(a, b))
    world.run(world.now + 10.0)
    a.channel.rekey("b")
    b.move("10.77.2.2")
    world.run(world.now + 10.0, lambda: moved(a, b))
    assert moved(a, b), (a.channel.counters, b.channel.counters, b.link("a"))
