"""Hosts whose channels talk over a network that is not there, on a clock that nobody waits for.

Datagrams may be lost and late, hosts may be busy for a while; all of it comes from a seed. The handshakes are real.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from dysco.errors import ConfigError, HostError
from dysco.transport import sockets
from dysco.transport.channel import Channel
from dysco.transport.identity import Identity
from dysco.transport.settings import ChannelSettings, PeerSettings
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Hello, Hops, Message, Moved
from dysco.wire.tuples import show_address

PORT: Final = 2016
AWAKE_S: Final = 0.005  # what a host does within that time needs one waking
_ANNOUNCE_S: Final = (0.0, 0.5, 2.0, 8.0)  # as protocol/neighbours.py has it


class Timer:
    """What a loop gives for a callback; it may be cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """The clock, the network and all that is due. loss: share of datagrams that get lost; late: the longest delay."""

    def __init__(self, rng: random.Random, *, loss: float = 0.0, late: float = 0.001) -> None:
        self.rng = rng
        self.loss = loss
        self.late = late
        self.now = 1000.0
        self.bound: dict[sockets.Endpoint, Socket] = {}
        self.gone: set[str] = set()  # addresses that no host has any more
        self._due: list[tuple[float, int, Loop | None, Timer, Callable[[], object]]] = []
        self._numbers = itertools.count(1)
        self._ports = itertools.count(20_000)

    def at(self, when: float, loop: Loop | None, callback: Callable[[], object]) -> Timer:
        timer = Timer()
        heapq.heappush(self._due, (when, next(self._numbers), loop, timer, callback))
        return timer

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Do what is due, in turn, until that time or until something holds."""
        while not done() and self._due and self._due[0][0] <= until:
            when, number, loop, timer, callback = heapq.heappop(self._due)
            if loop is not None and loop.busy_until > when:
                heapq.heappush(self._due, (loop.busy_until, number, loop, timer, callback))
                continue
            self.now = max(self.now, when)
            if not timer.cancelled:
                if loop is not None and when > loop.woken + AWAKE_S:
                    loop.wakings += 1
                    loop.woken = when
                callback()
        if not done():
            self.now = until

    def carry(self, source: sockets.Endpoint, remote: sockets.Endpoint, datagram: bytes) -> None:
        if self.rng.random() >= self.loss:
            self.at(
                self.now + self.rng.uniform(0.0001, self.late),
                None,
                lambda: self._arrive(source, remote, datagram),
            )

    def _arrive(self, source: sockets.Endpoint, remote: sockets.Endpoint, datagram: bytes) -> None:
        there = self.bound.get(remote)
        if there is not None and not self.gone & {source[0], remote[0]}:
            there.waiting.append((datagram, source))
            there.wake()

    def port(self) -> int:
        return next(self._ports)

    def descriptor(self) -> int:
        return next(self._numbers)


class Socket:
    """A UDP socket of this world."""

    def __init__(self, world: World, own: sockets.Endpoint) -> None:
        if own in world.bound:
            raise ConfigError(f"{own}: taken")
        self.waiting: deque[tuple[bytes, sockets.Endpoint]] = deque()
        self.reader: tuple[Loop, Callable[[], object]] | None = None
        self._world = world
        self._own = own
        self._descriptor = world.descriptor()
        world.bound[own] = self

    def fileno(self) -> int:
        return self._descriptor

    def getsockname(self) -> sockets.Endpoint:
        return self._own

    def sendto(self, datagram: bytes, remote: sockets.Endpoint) -> None:
        self._world.carry(self._own, remote, datagram)

    def recvfrom_into(self, buffer: bytearray) -> tuple[int, sockets.Endpoint]:
        if not self.waiting:
            raise BlockingIOError
        datagram, source = self.waiting.popleft()
        buffer[: len(datagram)] = datagram
        return len(datagram), source

    def close(self) -> None:
        del self._world.bound[self._own]
        self._descriptor = -1

    def wake(self) -> None:
        if self.reader is not None and self.waiting:
            self._world.at(self._world.now, self.reader[0], self._read)

    def _read(self) -> None:
        if self.reader is not None and self.waiting:
            self.reader[1]()


class Loop:
    """One host's event loop: nothing runs there while the host is busy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.busy_until = 0.0
        self.woken = 0.0
        self.wakings = 0

    def time(self) -> float:
        return self.world.now

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        return self.world.at(when, self, lambda: callback(*args))

    def call_later(self, wait: float, callback: Callable[..., object], *args: Any) -> Timer:
        return self.call_at(self.world.now + wait, callback, *args)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Timer:
        return self.call_at(self.world.now, callback, *args)

    def add_reader(self, descriptor: int, callback: Callable[..., object], *args: Any) -> None:
        (opened,) = (one for one in self.world.bound.values() if one.fileno() == descriptor)
        opened.reader = (self, lambda: callback(*args))
        opened.wake()

    def remove_reader(self, descriptor: int) -> None:
        for opened in self.world.bound.values():
            if opened.fileno() == descriptor:
                opened.reader = None


class Host:
    """An agent as the channel sees it: it says where it is now, and believes its peer."""

    def __init__(
        self, world: World, name: str, address: str, peers: Iterable[PeerSettings], pki: Path, **more: Any
    ) -> None:
        self.world = world
        self.loop = Loop(world)
        self.address = address
        self.downs = 0
        self._moves = 0
        self._heard: dict[str, tuple[int, str]] = {}
        identity = Identity(pki / f"{name}.pem", pki / f"{name}.key", pki / "ca.pem")
        settings = ChannelSettings(
            name, (address,), os.urandom(16), (61000, 65535), tuple(peers), PORT, **more
        )
        self.channel = Channel(settings, identity, self, random.Random(world.rng.random()))

    def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "get_running_loop", lambda: self.loop)
            _finish(self.channel.start())

    def move(self, *addresses: str) -> None:
        """Be at the first of these addresses, and say so."""
        self.address = addresses[0]
        self._moves += 1
        self.channel.move(addresses)
        for peer in self.channel.status():
            self._announce(peer.name)

    def link(self, peer: str) -> tuple[str, str] | None:
        """Own address and the peer's on the association in use."""
        current = self.channel._peers[peer].current
        return None if current is None else (current.socket.getsockname()[0], current.remote[0])

    def _announce(self, peer: str) -> None:
        for wait in _ANNOUNCE_S if self._moves else ():
            self.loop.call_later(wait, self._say, peer)

    def _say(self, peer: str) -> None:
        for message in self.standing(peer):
            self.channel.send(peer, message)

    def on_key(self, peer: str, receive_key: bytes) -> None:
        pass

    def on_up(self, peer: str, hello: Hello, send_key: bytes, receive_key: bytes, address: bytes) -> None:
        self._announce(peer)

    def on_down(self, peer: str) -> None:
        self.downs += 1

    def on_message(self, peer: str, message: Message) -> None:
        if isinstance(message, Moved):
            number, before = self._heard.get(peer, (0, ""))
            address = show_address(message.addresses[0].address)
            if message.number >= number:
                self._heard[peer] = (message.number, address)
                if address != before:
                    self.channel.admit(peer, (address,))

    def on_mtu(self, peer: str, mtu: int) -> None:
        pass

    def digest(self, peer: str) -> bytes:
        return bytes(8)

    def standing(self, peer: str) -> list[Message]:
        return [Moved(self._moves, Hops((Hop(packed(self.address)),)))] if self._moves else []


def packed(address: str) -> bytes:
    return sockets.packed((address, 0))[:-2]


def pair(world: World, pki: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[Host, Host]:
    """Hosts a and b, which name each other's first address."""
    a, b = mesh(world, pki, monkeypatch, "ab", **more)
    return a, b


def mesh(
    world: World,
    pki: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: str,
    *,
    roaming: Sequence[str] = ("10.77.0.0/16",),
) -> list[Host]:
    """Hosts that all name each other's first address."""

    def call(remote: sockets.Endpoint, own: Sequence[str]) -> Socket:
        if not own:
            raise HostError("no own address")
        return Socket(world, (own[0], world.port()))

    monkeypatch.setattr(sockets, "listen", lambda address, port: Socket(world, (address, port)))
    monkeypatch.setattr(sockets, "call", call)
    peers = [PeerSettings(name, (f"10.0.0.{number}",)) for number, name in enumerate(names, 1)]
    hosts = []
    for peer in peers:
        others = [other for other in peers if other is not peer]
        hosts.append(Host(world, peer.name, peer.addresses[0], others, pki, roaming=tuple(roaming)))
    for host in hosts:
        host.start(monkeypatch)
    return hosts


def _finish(coroutine: Coroutine[Any, Any, None]) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")
