"""What strangers throw at the control port: it costs little, changes nothing, and gets nothing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from pathlib import Path

import pytest

from dysco.transport.association import Association
from dysco.transport.identity import Identity
from dysco.transport.settings import PeerSettings, Timing
from dysco.wire.messages import SynRefused
from transport.rig import Node, both_up, free_port, pair, running


def speaker(address: str, to: tuple[str, int]) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    opened.bind((address, 0))
    opened.connect(to)
    return opened


def heard(opened: socket.socket) -> int:
    """Count the bytes that have come back."""
    total = 0
    with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
        while True:
            total += len(opened.recv(65535))
    return total


def forgeries(rng: random.Random, hello: bytes) -> bytes:
    """Give a datagram that looks more or less like DTLS."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randint(1, 300))
    if kind == 1:  # a protected record
        return b"\x17\xfe\xfd\x00\x01" + rng.randbytes(6) + b"\x00\x40" + rng.randbytes(64)
    if kind == 2:  # a handshake message
        return b"\x16\xfe\xfd\x00\x00" + rng.randbytes(6) + b"\x00\x40" + rng.randbytes(64)
    changed = bytearray(hello)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed if kind == 3 else hello)


def counted(node: Node) -> int:
    return sum(
        count for name, count in node.channel.counters.items() if name.startswith(("dropped", "cookies"))
    )


def state(node: Node) -> tuple[int, int, int]:
    channel = node.channel
    links = sum(len(peer.links) for peer in channel._peers.values())
    return links, len(channel._board().half_open), len(channel._board().served)


@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.66"])
async def test_forged_datagrams_cost_little_and_leave_nothing(pki: Path, source: str) -> None:
    """100,000 of them, from the address of a peer and from one that nobody named."""
    a, b = pair(pki, timing=Timing())
    rng = random.Random(1)
    (hello,) = Association.connect(Identity(pki / "b.pem", pki / "b.key", None), "a", 0.0).outgoing()
    forged = [forgeries(rng, hello) for _ in range(1000)]
    async with running(a, b):
        await both_up(a, b)
        before, keys = state(a), a.keys["b"]
        liar = speaker(source, ("127.0.0.1", a.channel.settings.port))
        bytes_in = bytes_out = sent = 0
        spent = 0.0
        (listening,) = a.channel._board().listening
        while sent < 100_000:
            for datagram in forged[:50]:
                liar.send(datagram)
                bytes_in += len(datagram)
            sent += 50
            forged = forged[50:] + forged[:50]
            began = time.process_time()
            a.channel._board().readable(listening)
            spent += time.process_time() - began
            bytes_out += heard(liar)
        await a.until(lambda: counted(a) >= sent * 0.99)
        assert state(a) == before
        assert a.keys["b"] == keys
        assert "b" in a.up
        assert bytes_out < bytes_in / 2
        if source == "127.0.0.66":
            assert bytes_out == 0
        # 20 us by the threat table, on a machine that does nothing else.
        assert spent / sent < 60e-6, f"{spent / sent * 1e6:.1f} us each"
        assert a.channel.send("b", SynRefused(bytes(16)))
        await b.until(lambda: any(isinstance(message, SynRefused) for _, message in b.messages))
        liar.close()


async def test_recorded_datagrams_replayed_change_nothing(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[bytes] = []
    real = Association.outgoing

    def recording(self: Association) -> list[bytes]:
        out = real(self)
        recorded.extend(out)
        return out

    monkeypatch.setattr(Association, "outgoing", recording)
    a, b = pair(pki)
    async with running(a, b):
        await both_up(a, b)
        for i in range(40):
            b.channel.send("a", SynRefused(i.to_bytes(16, "big")))
            await a.until(lambda: sum(isinstance(m, SynRefused) for _, m in a.messages) > i)  # noqa: B023
        monkeypatch.setattr(Association, "outgoing", real)
        before, keys, messages = state(a), a.keys["b"], len(a.messages)
        ups = a.count("up")
        # To both sides' own sockets, from the right address and port, which only the peer itself has.
        (link_a,), (link_b,) = a.channel._peers["b"].links, b.channel._peers["a"].links
        replayed = (recorded * (1000 // len(recorded) + 1))[:1000]
        counted_before = counted(a) + counted(b)
        for start in range(0, 1000, 50):
            for datagram in replayed[start : start + 50]:
                for link in (link_a, link_b):
                    link.socket.sendto(datagram, link.remote)
            done = counted_before + 2 * (start + 50) * 0.7
            await a.until(lambda: counted(a) + counted(b) >= done)  # noqa: B023
        assert [m for _, m in a.messages[messages:] if isinstance(m, SynRefused)] == []
        assert state(a) == before
        assert a.keys["b"] == keys
        assert (a.count("up"), a.count("down")) == (ups, 0)


async def test_proved_hellos_fill_no_table(pki: Path) -> None:
    """Whoever gets cookies, being at a peer's address, can hold a few half-open handshakes and no more."""
    port = free_port()
    peers = [PeerSettings("b", ("127.0.0.2",), port + 1)]
    a = Node("c", pki, port=port, peers=peers, half_open_source_limit=4)  # c follows b, and always listens
    identity = Identity(pki / "b.pem", pki / "b.key", pki / "ca.pem")
    async with running(a):
        speakers = []
        for _ in range(40):
            client = Association.connect(identity, "c", 0.0)
            opened = speaker("127.0.0.2", ("127.0.0.1", port))
            speakers.append(opened)
            (hello,) = client.outgoing()
            cookies = a.channel.counters["cookies_out"]
            opened.send(hello)
            await a.until(lambda: a.channel.counters["cookies_out"] > cookies)  # noqa: B023
            client.receive(opened.recv(2000), 0.0)
            (proved,) = client.outgoing()
            opened.send(proved)
        await a.until(
            lambda: (
                a.channel.counters["dropped_half_open_full"] + a.channel.counters["dropped_hello_rate"] >= 36
            )
        )
        assert len(a.channel._board().half_open) == len(a.channel._board().served) == 4
        await a.until(
            lambda: not a.channel._board().half_open and not a.channel._board().served
        )  # they time out
        for opened in speakers:
            opened.close()


async def test_icmp_errors_do_not_matter(pki: Path) -> None:
    """A call to a port where nobody listens gets port-unreachable, which anyone could forge."""
    port = free_port()
    a = Node("a", pki, port=port, peers=[PeerSettings("b", ("127.0.0.2",), port)])
    async with running(a):
        await a.until(lambda: a.channel.counters["datagrams_out"] > 1)
        assert a.channel.counters["receive_errors"] == 0
        assert a.channel.counters["handshakes_failed"] == 0
        b = Node("b", pki, address="127.0.0.2", port=port, peers=[PeerSettings("a", ("127.0.0.1",), port)])
        async with running(b):
            await both_up(a, b)


async def test_garbage_inside_an_association_is_counted(pki: Path) -> None:
    a, b = pair(pki)
    async with running(a, b):
        await both_up(a, b)
        (link,) = b.channel._peers["a"].links
        for _ in range(50):
            link.send(os.urandom(40), 0.0)
        await a.until(lambda: a.channel.counters["dropped_undecodable"] >= 40)
        assert a.count("down") == 0
