"""Channels on real sockets: who gets through, what both sides then know, and how they come back."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dysco.errors import ConfigError, LocalError
from dysco.transport import keys
from dysco.transport.association import State
from dysco.transport.identity import Identity
from dysco.transport.settings import PeerSettings, Timing
from dysco.wire.messages import AGENT_AND_SESSIONS, Gone, SynRefused
from transport.rig import FAST, Node, both_up, free_port, pair, running
from transport.virtual import World, mesh


def numbered(count: int) -> list[SynRefused]:
    return [SynRefused(i.to_bytes(16, "big"), "because") for i in range(count)]


def refused(node: Node) -> list[SynRefused]:
    return [message for _, message in node.messages if isinstance(message, SynRefused)]


@pytest.mark.parametrize("v6", [False, True])
async def test_two_agents_find_each_other(pki: Path, v6: bool) -> None:
    a, b = pair(pki, v6=v6)
    async with running(a, b):
        await both_up(a, b)
        assert a.hellos["b"].name == "b"
        assert a.hellos["b"].boot_id == b.channel.settings.boot_id
        assert a.hellos["b"].observed_address == ipaddress.ip_address("::1" if v6 else "127.0.0.1").packed
        assert a.keys["b"][0] != a.keys["b"][1]
        await a.until(lambda: a.mtus.get("b") == 1500)
        before = a.channel.counters["datagrams_out"]
        for message in numbered(500):
            assert a.channel.send("b", message)
        await b.until(lambda: len(refused(b)) == 500)
        assert refused(b) == numbered(500)
        assert a.channel.counters["datagrams_out"] - before < 25  # packed
        (status,) = a.channel.status()
        assert (status.up, status.mtu, status.boot_id) == (True, 1500, a.hellos["b"].boot_id)
    assert b.count("down") == 0  # closed, nothing is called any more


async def test_what_a_peer_must_know_some_time_goes_with_each_keepalive(pki: Path) -> None:
    a, b = pair(pki)
    async with running(a, b):
        await both_up(a, b)
        a.says = list(numbered(1))
        await b.until(lambda: len(refused(b)) >= 3)
        assert refused(b)[:3] == 3 * numbered(1)


async def test_a_peer_that_goes_is_down_at_once_and_comes_back(pki: Path) -> None:
    a, b = pair(pki)
    async with running(a):
        async with running(b):
            await both_up(a, b)
        await a.until(lambda: "b" not in a.up)
        assert a.channel.counters["peers_gone"] == 1
        assert not a.channel.send("b", SynRefused(bytes(16)))
        again = Node(
            "b", pki, address="127.0.0.2", port=b.channel.settings.port, peers=b.channel.settings.peers
        )
        async with running(again):
            await both_up(a, again)
            assert a.hellos["b"].boot_id == again.channel.settings.boot_id


@pytest.mark.parametrize("seed", range(5))
def test_keepalives_of_all_peers_go_together_and_answer_each_other(
    pki: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    world = World(random.Random(seed))
    hosts = mesh(world, pki, monkeypatch, "abcde")
    world.run(1100.0)

    def so_far() -> tuple[int, int]:
        received = sum(host.channel.counters["datagrams_in"] for host in hosts)
        return received, sum(host.loop.wakings for host in hosts)

    received, wakings = so_far()
    periods, pairs = 100, 10
    world.run(1100.0 + periods * Timing().keepalive_s)
    assert not any(host.downs for host in hosts)
    assert all(peer.up for host in hosts for peer in host.channel.status())
    # One of a pair sends, the other answers with its own, and that is acknowledged.
    assert so_far()[0] - received <= 3.7 * pairs * periods
    assert so_far()[1] - wakings <= 2.5 * len(hosts) * periods


@pytest.mark.parametrize("with_sessions", [False, True])
async def test_a_peer_that_goes_says_whether_somebody_may_take_up_its_sessions(
    pki: Path, with_sessions: bool
) -> None:
    a, b = pair(pki)
    async with running(a, b):
        await both_up(a, b)
        await b.channel.close(with_sessions=with_sessions)
        await a.until(lambda: "b" not in a.up)
        told = [(peer, message) for peer, message in a.messages if isinstance(message, Gone)]
        assert told == ([("b", Gone(AGENT_AND_SESSIONS))] if with_sessions else [])
        assert a.channel.counters["peers_gone"] == 1


async def test_a_silent_restart_is_noticed_at_once(pki: Path) -> None:
    slow = replace(FAST, keepalive_s=30.0, dead_s=90.0)
    a, b = pair(pki, timing=slow)
    loop = asyncio.get_running_loop()
    async with running(a):
        await b.channel.start()
        await both_up(a, b)
        old = a.keys["b"]
        crash(b)
        again = Node(
            "b", pki, address="127.0.0.2", port=b.channel.settings.port, peers=b.channel.settings.peers
        )
        began = loop.time()
        async with running(again):
            await both_up(a, again)
            assert loop.time() - began < slow.keepalive_s / 3
            assert a.keys["b"] != old
            assert a.count("down") == 0  # replaced, never without one
            assert a.channel.counters["peer_restarts"] == 1
            assert len(a.channel._peers["b"].links) == 1


def reborn(node: Node, pki: Path) -> Node:
    settings = node.channel.settings
    return Node(
        node.name,
        pki,
        address=settings.addresses[0],
        port=settings.port,
        peers=settings.peers,
        timing=settings.timing,
    )


def crash(node: Node) -> None:
    """Let a channel vanish without a word, as `kill -9` does."""
    channel = node.channel
    loop = asyncio.get_running_loop()
    for peer in channel._peers.values():
        if peer.timer is not None:
            peer.timer.cancel()
        for link in [*peer.links, *([peer.call] if peer.call else [])]:
            if link.timer is not None:
                link.timer.cancel()
            if link.owns:
                loop.remove_reader(link.socket.fileno())
                link.socket.close()
    channel._board().close()
    channel._loop = channel._switchboard = None


async def test_a_peer_that_falls_silent_is_down_after_a_while(pki: Path) -> None:
    a, b = pair(pki)
    async with running(a):
        await b.channel.start()
        await both_up(a, b)
        crash(b)
        await a.until(lambda: "b" not in a.up)
        assert a.channel.counters["peers_silent"] == 1
        (status,) = a.channel.status()
        assert status.attempts > 1
        await a.until(lambda: a.channel.status()[0].attempts > status.attempts + 1)  # goes on calling


async def test_a_process_that_was_stopped_keeps_its_peers(pki: Path) -> None:
    a, b = pair(pki)
    async with running(a, b):
        await both_up(a, b)
        peer = a.channel._peers["b"]
        assert peer.timer is not None
        peer.timer.cancel()
        # As if the clock had gone on for a minute while nothing ran here.
        peer.armed_for -= 60
        for link in peer.links:
            link.heard_at -= 60
        a.channel._timer("b")
        await a.until(lambda: peer.links[0].heard_at > asyncio.get_running_loop().time() - FAST.keepalive_s)
        assert a.count("down") == 0


@pytest.mark.parametrize("_", range(20))
async def test_simultaneous_opening_leaves_exactly_one(pki: Path, _: int) -> None:
    a, b = pair(pki)
    async with running(a, b):
        await both_up(a, b)
        a.channel.rekey("b")
        b.channel.rekey("a")
        await a.until(lambda: a.channel._peers["b"].call is b.channel._peers["a"].call is None)
        await a.until(lambda: settled(a, b), "for one association")
        await both_up(a, b)
        assert a.count("down") == b.count("down") == 0
        for message in numbered(20):
            a.channel.send("b", message)
        await b.until(lambda: len(refused(b)) == 20)


def settled(a: Node, b: Node) -> bool:
    """Both use the two ends of one association."""
    ours, theirs = a.channel._peers["b"].current, b.channel._peers["a"].current
    return (
        ours is not None
        and theirs is not None
        and ours.association.send_key == theirs.association.receive_key
        and not a.channel._board().half_open
        and not b.channel._board().half_open
    )


def more_ups(node: Node, than: int) -> bool:
    return node.count("up") > than


async def test_new_keys_replace_the_old_without_a_gap(pki: Path) -> None:
    a, b = pair(pki, timing=replace(FAST, rekey_s=0.2, linger_s=0.1))
    async with running(a, b):
        await both_up(a, b)
        sent = 0
        while a.count("up") < 4:
            assert a.channel.send("b", numbered(1)[0])
            sent += 1
            ups = a.count("up")
            await a.until(functools.partial(more_ups, a, ups))
        await b.until(lambda: len(refused(b)) == sent)
        assert a.count("down") == b.count("down") == 0
        assert a.channel.counters["peer_restarts"] == 0
        await a.until(lambda: len(a.channel._peers["b"].links) <= 2)  # lingering ones go


async def test_unknown_peers_and_strange_names_get_nothing(pki: Path) -> None:
    port = free_port()
    a = Node("a", pki, port=port, peers=[])
    b = Node("b", pki, address="127.0.0.2", port=port, peers=[PeerSettings("a", ("127.0.0.1",), port)])
    async with running(a, b):
        await a.until(lambda: a.channel.counters["dropped_unknown_source"] >= 2)
        assert a.channel.counters["cookies_out"] == a.channel.counters["bytes_out"] == 0
        # Named by address, but as somebody else: no association either.
        a.channel.reconfigure([PeerSettings("c", ("127.0.0.2",), port + 1)])
        await a.until(lambda: a.channel.counters["handshakes_failed"] > 0)
        assert not a.up
        assert not b.up
        # Now it is named.
        a.channel.reconfigure([PeerSettings("b", ("127.0.0.2",), port)])
        await both_up(a, b)
        a.channel.reconfigure([])
        await a.until(lambda: "b" not in a.up)
        await b.until(lambda: "a" not in b.up)


async def test_another_authority_gets_nowhere(pki: Path, tmp_path: Path) -> None:
    keys.init(tmp_path)
    keys.issue(tmp_path, "b")
    port = free_port()
    a = Node("a", pki, port=port, peers=[PeerSettings("b", ("127.0.0.2",), port)])
    b = Node("b", tmp_path, address="127.0.0.2", port=port, peers=[PeerSettings("a", ("127.0.0.1",), port)])
    async with running(a, b):
        await a.until(
            lambda: a.channel.counters["handshakes_failed"] and b.channel.counters["handshakes_failed"]
        )
        assert not a.accepted
        assert not b.accepted
        assert "certificate" in str(b.channel.status()[0].last_failure) + str(
            a.channel.status()[0].last_failure
        )


async def test_pinned_fingerprints(pki: Path) -> None:
    port = free_port()
    prints = {name: keys.show(pki / f"{name}.pem").fingerprint for name in "ab"}
    a = Node("a", pki, port=port, peers=[PeerSettings("b", ("127.0.0.2",), port, prints["b"])], ca=False)
    b = Node(
        "b",
        pki,
        address="127.0.0.2",
        port=port,
        peers=[PeerSettings("a", ("127.0.0.1",), port, prints["a"])],
        ca=False,
    )
    async with running(a, b):
        await both_up(a, b)


async def test_another_address_leads_to_another_association(pki: Path) -> None:
    a, b = pair(pki)
    port = a.channel.settings.port
    async with running(a, b):
        await both_up(a, b)
        moved = Node("b", pki, address="127.0.0.3", port=port, peers=b.channel.settings.peers)
        async with running(moved):
            a.channel.reconfigure([PeerSettings("b", ("127.0.0.3",), port)])
            await a.until(lambda: a.channel.status()[0].address == "127.0.0.3")
            await both_up(a, moved)
            assert a.count("down") == 0


async def test_who_moves_hears_each_peer_from_where_it_is_also_if_the_old_address_stays(pki: Path) -> None:
    port = free_port()
    a = Node("a", pki, port=port, peers=[PeerSettings("b", ("127.0.0.2",), port)])
    known = ("127.0.0.1", "127.0.0.4")
    b = Node("b", pki, address="127.0.0.2", port=port, peers=[PeerSettings("a", known, port)])
    async with running(a, b):
        await both_up(a, b)
        assert a.channel.has_moved("b")
        a.channel.move(["127.0.0.4", "127.0.0.1"])
        assert not a.channel.has_moved("b")
        await a.until(lambda: a.channel.has_moved("b"), "for b to answer")
        assert a.count("up") == 2
        assert a.count("down") == 0


async def test_two_that_move_at_once_hear_each_other_from_where_they_are(pki: Path) -> None:
    """Whoever is called where it was calls again itself, and a call to where the other one was begins again."""
    port = free_port()
    a = Node("a", pki, port=port, peers=[PeerSettings("b", ("127.0.0.2",), port)], roaming=("127.0.0.0/8",))
    b = Node(
        "b",
        pki,
        address="127.0.0.2",
        port=port,
        peers=[PeerSettings("a", ("127.0.0.1",), port)],
        roaming=("127.0.0.0/8",),
    )
    async with running(a, b):
        await both_up(a, b)
        for number in (3, 5, 7):
            for node, other, address in ((a, b, f"127.0.0.{number}"), (b, a, f"127.0.0.{number + 1}")):
                node.channel.move([address])
                other.channel.admit(node.name, [address])
            for node, other in ((a, b), (b, a)):
                await node.until(partial(node.channel.has_moved, other.name), f"for {other.name} to answer")


async def test_a_call_to_where_a_peer_is_goes_on_when_that_one_has_called_where_this_host_was(
    pki: Path,
) -> None:
    a, b = pair(pki, roaming=("127.0.0.0/8",))
    async with running(a, b):
        await both_up(a, b)
        for caller, mover, number in ((a, b, 3), (b, a, 5), (a, b, 7), (b, a, 9)):
            caller.channel.move([f"127.0.0.{number}"])  # it calls where the mover was
            mover.channel.move([f"127.0.0.{number + 1}"])
            mover.channel.admit(caller.name, [f"127.0.0.{number}"])
            await mover.until(partial(mover.channel.has_moved, caller.name), f"for {caller.name} to answer")
            caller.channel.admit(mover.name, [f"127.0.0.{number + 1}"])
            await caller.until(partial(caller.channel.has_moved, mover.name), f"for {mover.name} to answer")


async def test_a_call_after_a_move_that_failed_is_made_again(pki: Path) -> None:
    a, b = pair(pki, roaming=("127.0.0.0/8",))
    async with running(a, b):
        await both_up(a, b)
        a.channel.move(["127.0.0.3"])
        call = a.channel._peers["b"].call
        assert call is not None
        a.channel._board().drop(call)
        a.channel.ended(call, State.HANDSHAKE, asyncio.get_running_loop().time())
        await a.until(partial(a.channel.has_moved, "b"), "for b to answer")


async def test_who_is_called_where_it_was_calls_from_where_it_is(pki: Path) -> None:
    a, b = pair(pki, roaming=("127.0.0.0/8",))
    async with running(a, b):
        await both_up(a, b)
        for caller, mover, address in ((a, b, "127.0.0.4"), (b, a, "127.0.0.3")):
            caller.channel.rekey(mover.name)
            mover.channel.move([address])
            await mover.until(partial(mover.channel.has_moved, caller.name), f"for {caller.name} to answer")


async def test_a_peer_that_has_moved_is_still_there_when_the_configuration_is_read_again(pki: Path) -> None:
    a, b = pair(pki)
    async with running(a, b):
        await both_up(a, b)
        for mover, other, address in ((b, a, "127.0.0.4"), (a, b, "127.0.0.3")):
            other.channel.admit(mover.name, [address])
            mover.channel.move([address])
            await mover.until(partial(mover.channel.has_moved, other.name), f"for {other.name} to answer")
            calls = other.channel.counters["calls"]
            other.channel.reconfigure(other.channel.settings.peers)
            assert other.channel.counters["calls"] == calls


async def test_the_second_address_is_tried(pki: Path) -> None:
    port = free_port()
    a = Node(
        "a", pki, port=port, peers=[PeerSettings("b", ("::1", "127.0.0.2"), port)]
    )  # no own IPv6 address
    b = Node("b", pki, address="127.0.0.2", port=port, peers=[PeerSettings("a", ("127.0.0.1",), free_port())])
    async with running(a, b):
        await both_up(a, b)


async def test_known_mtu_is_not_searched(pki: Path) -> None:
    port = free_port()
    a = Node("a", pki, port=port, peers=[PeerSettings("b", ("127.0.0.2",), port, mtu=1400)])
    b = Node("b", pki, address="127.0.0.2", port=port, peers=[PeerSettings("a", ("127.0.0.1",), port)])
    async with running(a, b):
        await both_up(a, b)
        await a.until(lambda: a.mtus.get("b") == 1400)
        assert a.channel.counters["mtu_probes"] == 0


@pytest.mark.parametrize("limit", [576, 1280, 1333, 1499])
async def test_mtu_of_a_narrow_path(pki: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a and b packets above the limit vanish without a word, as behind a tunnel that filters ICMP."""
    from dysco.transport.association import Association

    a, b = pair(pki)
    real = Association.outgoing
    # The same exactness for packets that a real device would carry: IPv4 and UDP headers are 28 bytes.
    monkeypatch.setattr(Association, "outgoing", lambda self: [d for d in real(self) if len(d) + 28 <= limit])
    async with running(a, b):
        await both_up(a, b)
        await a.until(lambda: a.mtus.get("b") == limit, f"for {limit}")
        await b.until(lambda: b.mtus.get("a") == limit)
        monkeypatch.setattr(Association, "outgoing", real)
        a.channel.probe("b")
        await a.until(lambda: a.mtus.get("b") == 1500)


async def test_mtu_of_a_device_with_large_packets(pki: Path) -> None:
    a, b = pair(pki, mtu=9001)
    async with running(a, b):
        await both_up(a, b)
        await a.until(lambda: a.mtus.get("b") == 9001)
        assert a.channel.counters["mtu_probes"] == 1


async def test_the_queue_is_bounded(pki: Path) -> None:
    a, b = pair(pki, queue_limit=10)
    async with running(a, b):
        await both_up(a, b)
        assert [a.channel.send("b", message) for message in numbered(12)] == [True] * 10 + [False] * 2
        assert a.channel.counters["not_sent_queue_full"] == 2
        await b.until(lambda: len(refused(b)) == 10)


@pytest.mark.parametrize("seed", range(4))
async def test_lossy_start(pki: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every third datagram lost, repeated or late both come up, stay up and agree."""
    from dysco.transport.association import Association

    rng = random.Random(seed)
    real = Association.outgoing

    def lossy(self: Association) -> list[bytes]:
        out = [d for d in real(self) if rng.random() > 0.2]
        out += [d for d in out if rng.random() < 0.2]
        rng.shuffle(out)
        return out

    monkeypatch.setattr(Association, "outgoing", lossy)
    a, b = pair(pki, timing=replace(FAST, dead_s=3.0, handshake_s=3.0))
    async with running(a, b):
        await both_up(a, b)
        await a.until(lambda: settled(a, b))


async def test_misuse_and_errors_are_named(pki: Path) -> None:
    a, b = pair(pki)
    with pytest.raises(LocalError, match="not started"):
        a.channel.status()
    async with running(a):
        with pytest.raises(LocalError, match="nobody"):
            a.channel.rekey("nobody")
        double = Node("a", pki, port=a.channel.settings.port, peers=[])
        with pytest.raises(ConfigError, match="Address already in use"):
            await double.channel.start()
    with pytest.raises(LocalError, match="is for 'a'"):
        type(a.channel)(
            b.channel.settings,
            Identity(pki / "a.pem", pki / "a.key", None),
            b,
            random.Random(1),
        )
    with pytest.raises(ConfigError, match="not the private key"):
        Identity(pki / "a.pem", pki / "b.key", None)
