"""Hosts that move, one after the other and both at once: each is reached from its new address soon."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest

from dysco.transport.settings import PeerSettings
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


def test_a_call_to_where_the_peer_was_is_given_up_when_it_says_where_it_is(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(random.Random(1))
    a, b = pair(world, pki, monkeypatch)
    world.run(world.now + 10.0, lambda: connected(a, b))
    a.channel.rekey("b")
    a.channel.admit("b", ["2001:db8::2"])
    assert called(a) == "10.0.0.2"
    a.channel.admit("b", ["10.77.2.2"])
    assert called(a) == "10.77.2.2"
    a.channel.admit("b", ["10.77.2.2"])
    assert a.channel.counters["calls"] == 3


@pytest.mark.parametrize("mtu", [None, 1400])
def test_another_configuration_does_not_forget_where_a_peer_says_that_it_is(
    pki: Path, monkeypatch: pytest.MonkeyPatch, mtu: int | None
) -> None:
    world = World(random.Random(1))
    a, b = pair(world, pki, monkeypatch, roaming=())
    world.run(world.now + 10.0, lambda: connected(a, b))
    b.move("10.77.2.2")
    world.run(world.now + 10.0, lambda: moved(a, b))
    world.run(world.now + 1.0)
    a.channel.reconfigure([PeerSettings("b", ("10.0.0.2",), mtu=mtu)])
    assert called(a) is None
    a.channel.rekey("b")
    assert called(a) == "10.77.2.2"
    a.channel.reconfigure([PeerSettings("b", ("10.0.0.3",), mtu=mtu)])
    assert called(a) == "10.0.0.3"


def called(host: Host) -> str | None:
    """The address that is being called."""
    (peer,) = host.channel._peers.values()
    return None if peer.call is None else peer.call.remote[0]


@pytest.mark.parametrize("seed", range(60))
def test_whoever_moves_is_soon_reached_from_there(
    pki: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Both move again and again, on a lossy network, while their loops lag by up to a second."""
    rng = random.Random(seed)
    world = World(rng, loss=rng.choice((0.0, 0.1)), late=rng.choice((0.001, 0.1)))
    hosts = a, b = pair(world, pki, monkeypatch)
    world.run(world.now + 10.0, lambda: connected(a, b))
    lag = rng.choice((0.0, 0.2, 1.0))
    for number in range(2, 6):
        for net, host, peer in ((1, a, "b"), (2, b, "a")):
            for one in hosts:
                one.loop.busy_until = world.now + rng.uniform(0.0, lag)
            host.move(f"10.77.{net}.{number}")
            if rng.random() < 0.7:
                has_moved = functools.partial(host.channel.has_moved, peer)
                world.run(world.now + 10.0, has_moved)
                assert has_moved(), (number, net, host.link(peer), host.channel.counters)
            world.run(world.now + rng.choice((0.0, 0.1, 1.0, 5.0)) * rng.random())
    world.run(world.now + 10.0, lambda: moved(a, b) and agreed(a, b))
    assert moved(a, b), (a.link("b"), b.link("a"), a.channel.counters, b.channel.counters)
    assert agreed(a, b)
    assert a.downs == b.downs == 0


def test_two_that_have_moved_at_once_come_to_rest(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(random.Random(1), late=0.01)
    a, b = pair(world, pki, monkeypatch)
    world.run(world.now + 10.0, lambda: connected(a, b))
    for number in range(2, 10):
        a.move(f"10.77.1.{number}")
        b.move(f"10.77.2.{number}")
        world.run(world.now + 5.0)
        assert moved(a, b)
        assert agreed(a, b)
        calls = a.channel.counters["calls"], b.channel.counters["calls"]
        world.run(world.now + 20.0)
        assert (a.channel.counters["calls"], b.channel.counters["calls"]) == calls


def agreed(a: Host, b: Host) -> bool:
    """Both use the two ends of one association."""
    ours, theirs = a.channel._peers["b"].current, b.channel._peers["a"].current
    if ours is None or theirs is None:
        return False
    return ours.association.send_key == theirs.association.receive_key
