"""Agents' channels on the loopback device, in one event loop, and ways to wait for what they report."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dysco.transport.channel import Channel
from dysco.transport.identity import Identity
from dysco.transport.settings import ChannelSettings, PeerSettings, Timing
from dysco.wire.messages import Hello, Message

PATIENCE_S: Final = 30.0
FAST: Final = Timing(
    keepalive_s=0.2, dead_s=0.8, handshake_s=1.0, first_pause_s=0.05, last_pause_s=0.2, linger_s=1.0
)
_seeds = itertools.count(1)


def free_port(address: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


class Node:
    """A channel and all that it has reported: (what, peer, ...)."""

    def __init__(
        self,
        name: str,
        pki: Path,
        *,
        address: str = "127.0.0.1",
        port: int,
        peers: Sequence[PeerSettings],
        timing: Timing = FAST,
        ca: bool | Path = True,
        **more: Any,
    ) -> None:
        self.name = name
        self.reports: list[tuple[Any, ...]] = []
        self.hellos: dict[str, Hello] = {}
        self.keys: dict[str, tuple[bytes, bytes]] = {}
        self.accepted: dict[str, list[bytes]] = {}
        self.up: set[str] = set()
        self.mtus: dict[str, int] = {}
        self.messages: list[tuple[str, Message]] = []
        self.says: list[Message] = []
        self._changed = asyncio.Event()
        authority = pki / "ca.pem" if ca is True else ca or None
        identity = Identity(pki / f"{name}.pem", pki / f"{name}.key", authority)
        settings = ChannelSettings(
            name=name,
            addresses=(address,),
            port=port,
            boot_id=os.urandom(16),
            port_range=(61000, 65535),
            peers=tuple(peers),
            timing=timing,
            mtu=1500,
        )
        self.channel = Channel(replace(settings, **more), identity, self, random.Random(next(_seeds)))

    def on_key(self, peer: str, receive_key: bytes) -> None:
        self.accepted.setdefault(peer, []).append(receive_key)
        self._note("key", peer)

    def on_up(self, peer: str, hello: Hello, send_key: bytes, receive_key: bytes, address: bytes) -> None:
        assert receive_key in self.accepted[peer]
        self.hellos[peer] = hello
        self.keys[peer] = (send_key, receive_key)
        self.up.add(peer)
        self._note("up", peer)

    def on_down(self, peer: str) -> None:
        self.up.discard(peer)
        self._note("down", peer)

    def on_message(self, peer: str, message: Message) -> None:
        self.messages.append((peer, message))
        self._note("message", peer, message)

    def on_mtu(self, peer: str, mtu: int) -> None:
        self.mtus[peer] = mtu
        self._note("mtu", peer, mtu)

    def digest(self, peer: str) -> bytes:
        return bytes(8)

    def standing(self, peer: str) -> list[Message]:
        return self.says

    def _note(self, *report: Any) -> None:
        self.reports.append(report)
        self._changed.set()

    def count(self, what: str) -> int:
        return sum(report[0] == what for report in self.reports)

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait until the condition holds; it is asked again after each report and every few milliseconds."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), 0.01)
        except TimeoutError:
            raise AssertionError(
                f"{self.name} waited in vain {what}; {dict(self.channel.counters)}; "
                f"{self.channel.status()}; {self.reports[-10:]}"
            ) from None


@contextlib.asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            stack.push_async_callback(node.channel.close)
            await node.channel.start()
        yield


def pair(pki: Path, *, v6: bool = False, **more: Any) -> tuple[Node, Node]:
    """Two agents a and b that name each other."""
    if v6:
        here = there = "::1"
        port_a, port_b = free_port(here), free_port(there)
    else:
        here, there = "127.0.0.1", "127.0.0.2"
        port_a = port_b = free_port(here)
    a = Node("a", pki, address=here, port=port_a, peers=[PeerSettings("b", (there,), port_b)], **more)
    b = Node("b", pki, address=there, port=port_b, peers=[PeerSettings("a", (here,), port_a)], **more)
    return a, b


async def both_up(a: Node, b: Node) -> None:
    await a.until(lambda: b.name in a.up, f"for {b.name}")
    await b.until(lambda: a.name in b.up, f"for {a.name}")
    await a.until(lambda: a.keys[b.name] == b.keys[a.name][::-1], "for equal keys")
