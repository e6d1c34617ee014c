r"""A live TCP session goes from one strict firewall to another: its state is moved, and its packets by a route.

              fw-a
             /    \
    client -+      +- server     both ways through one firewall at a time
             \    /
              fw-b

No agent takes part: what is shown is what the moved entry does in the kernel, and that nothing else would do it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from dysco.host import run_in
from dysco.host.conntrack import Conntrack
from dysco.service.state import ConntrackMover
from dysco.wire.tuples import FiveTuple
from netns.tracker import harden, refused
from netns.worlds import run

LIMIT_S = 30.0
MEGABYTE = 1_000_000
CHUNK = os.urandom(65_536)
ENDS = {"client": ("10.60.0.1", "fd60::1"), "server": ("10.60.0.2", "fd60::2")}
WALLS = ("fw-a", "fw-b")
families = pytest.mark.parametrize("family", [4, 6])


class World:
    """Two ends and two firewalls."""

    def __init__(self) -> None:
        self.names = {name: f"st-{os.getpid()}-{name}" for name in (*ENDS, *WALLS)}
        for name in self.names.values():
            run(["ip", "netns", "add", name])
            run(["ip", "-n", name, "link", "set", "lo", "up"])
        for end, addresses in ENDS.items():
            for address in addresses:
                run(["ip", "-n", self.names[end], "addr", "add", address, "dev", "lo"])
        for number, (firewall, end) in enumerate((f, e) for f in WALLS for e in ENDS):
            self._link(firewall, end, number)
        for firewall in WALLS:
            harden(self.names[firewall])

    def _link(self, firewall: str, end: str, number: int) -> None:
        here, there = self.names[firewall], self.names[end]
        run(["ip", "-n", here, "link", "add", end, "type", "veth", "peer", "name", firewall, "netns", there])
        for name, device, last in ((here, end, 1), (there, firewall, 2)):
            run(["ip", "-n", name, "link", "set", device, "up"])
            run(["ip", "-n", name, "addr", "add", f"10.61.{number}.{last}/24", "dev", device])
            run(["ip", "-n", name, "addr", "add", f"fd61:{number}::{last}/64", "dev", device, "nodad"])
        for index, gateway in enumerate((f"10.61.{number}.2", f"fd61:{number}::2")):
            run(["ip", "-n", here, "route", "add", ENDS[end][index], "via", gateway])

    def through(self, firewall: str) -> None:
        """Let both ends reach each other by this firewall from now on."""
        for number, (which, end) in enumerate((f, e) for f in WALLS for e in ENDS):
            if which != firewall:
                continue
            other = ENDS["server" if end == "client" else "client"]
            for index, gateway in enumerate((f"10.61.{number}.1", f"fd61:{number}::1")):
                target = [other[index], "via", gateway, "src", ENDS[end][index]]
                run(["ip", "-n", self.names[end], "route", "replace", *target])

    def close(self) -> None:
        for name in self.names.values():
            run(["ip", "netns", "delete", name])


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


class Transfer:
    """Both ends send as fast as they can, and what arrives is compared with what was sent."""

    def __init__(self, world: World, family: int) -> None:
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        client, server = (ENDS[end][family == 6] for end in ENDS)

        def make() -> socket.socket:
            return socket.socket(kind, socket.SOCK_STREAM)

        listener = run_in(world.names["server"], make)
        listener.bind((server, 80))
        listener.listen()
        first = run_in(world.names["client"], make)
        first.settimeout(LIMIT_S)
        first.connect((server, 80))
        second, _ = listener.accept()
        listener.close()
        self.ends = (first, second)
        for end in self.ends:
            end.setblocking(False)
        self.session = FiveTuple.of(
            socket.inet_pton(kind, client), first.getsockname()[1], socket.inet_pton(kind, server), 80
        )
        self.sent = [hashlib.sha256(), hashlib.sha256()]
        self.arrived = [hashlib.sha256(), hashlib.sha256()]
        self.bytes = [0, 0]
        self.over = [False, False]

    def pump(self, until: Callable[[], bool], *, sending: bool = True) -> None:
        """Send and receive until the condition holds."""
        end = time.monotonic() + LIMIT_S
        while not until():
            assert time.monotonic() < end, "the session does not go on"
            readable, writable, _ = select.select(self.ends, self.ends if sending else (), (), 0.05)
            for one in writable:
                try:
                    number = one.send(CHUNK)
                except BlockingIOError:
                    continue
                self.sent[self.ends.index(one)].update(CHUNK[:number])
            for one in readable:
                data = one.recv(1 << 20)
                index = self.ends.index(one)
                self.over[index] = self.over[index] or not data
                self.bytes[index] += len(data)
                self.arrived[index].update(data)

    def has_more(self) -> bool:
        """Whether something has arrived that was not received yet."""
        return bool(select.select(self.ends, (), (), 0)[0])

    def go_on(self, size: int = 4 * MEGABYTE) -> None:
        """Wait until both ends have received that much more."""
        goal = [number + size for number in self.bytes]
        self.pump(lambda: all(has >= wanted for has, wanted in zip(self.bytes, goal, strict=True)))

    def finish(self) -> None:
        """Close both directions; every byte must be there."""
        for one in self.ends:
            one.shutdown(socket.SHUT_WR)
        self.pump(lambda: all(self.over), sending=False)
        for one in self.ends:
            one.close()
        assert [one.digest() for one in self.sent] == [one.digest() for one in reversed(self.arrived)]


def move(world: World, session: FiveTuple) -> None:
    """Take the state of a session from one firewall to the other, as agents there would."""

    async def run_both() -> None:
        state = await ConntrackMover(world.names["fw-a"]).export(session, session)
        assert state is not None
        await ConntrackMover(world.names["fw-b"]).install(session, session, state)

    asyncio.run(run_both())


@families
def test_a_busy_session_goes_on_through_the_other_firewall(world: World, family: int) -> None:
    world.through("fw-a")
    transfer = Transfer(world, family)
    transfer.go_on()
    move(world, transfer.session)
    world.through("fw-b")
    transfer.go_on()
    assert refused(world.names["fw-b"]) == 0
    transfer.finish()
    with Conntrack(world.names["fw-b"]) as tracker:
        found = tracker.find(transfer.session)
        assert found is not None
        assert found.state > 3, "the tracker has seen the end"


@families
def test_without_its_state_the_session_stalls_until_the_state_comes(world: World, family: int) -> None:
    world.through("fw-a")
    transfer = Transfer(world, family)
    transfer.go_on()
    world.through("fw-b")
    transfer.pump(lambda: refused(world.names["fw-b"]) >= 2 and not transfer.has_more())
    stalled = list(transfer.bytes)
    seen = refused(world.names["fw-b"])
    transfer.pump(lambda: refused(world.names["fw-b"]) >= seen + 2)
    assert transfer.bytes == stalled, "a strict firewall must not let it pass"
    move(world, transfer.session)
    transfer.go_on()
    transfer.finish()


def test_a_session_moves_there_and_back_many_times(world: World) -> None:
    world.through("fw-a")
    transfer = Transfer(world, 4)
    names = [world.names[wall] for wall in WALLS]
    for turn in range(10):
        transfer.go_on(MEGABYTE // 2)
        with Conntrack(names[turn % 2]) as source, Conntrack(names[(turn + 1) % 2]) as target:
            state = source.export(transfer.session)
            assert state is not None
            target.install(transfer.session, state)
        world.through(WALLS[(turn + 1) % 2])
    transfer.go_on()
    transfer.finish()
    assert [refused(name) for name in names] == [0, 0]
