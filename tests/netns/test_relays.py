"""The generic adapter with real relays on loopback: socat, nginx's stream module, squid's CONNECT."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import itertools
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from dysco.adapters import Pair
from dysco.adapters.preambles import Heads
from dysco.adapters.relay import Relay
from dysco.errors import HostError
from dysco.wire.tuples import FiveTuple
from netns.proxies import (
    LIMIT_S,
    Client,
    config,
    free_port,
    of,
    pairs_when,
    program,
    running,
    serving,
)

NGINX = """\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
events {{ worker_connections 512; }}
stream {{
  server {{ listen 127.0.0.1:{plain}; proxy_pass 127.0.0.1:{server}; }}
  server {{ listen 127.0.0.1:{line}; proxy_pass 127.0.0.1:{server}; proxy_protocol on; }}
}}
"""
SQUID = """\
http_port 127.0.0.1:{port}
acl all_ports port 1-65535
http_access allow all
cache deny all
access_log none
cache_log {directory}/cache.log
pid_filename {directory}/squid.pid
coredump_dir {directory}
cache_effective_user {user}
netdb_filename none
pinger_enable off
shutdown_lifetime 0 seconds
"""


@pytest.fixture
async def server() -> AsyncIterator[int]:
    async with serving() as port:
        yield port


@contextlib.contextmanager
def closing(*clients: Client) -> Iterator[None]:
    yield
    for client in clients:
        client.close()


def all_safe(number: int) -> Any:
    return lambda found: len(found) == number and all(one.safe for one in found)


async def test_a_client_without_a_server_is_told_of() -> None:
    port = free_port()
    with running(program("socat"), f"TCP4-LISTEN:{port},bind=127.0.0.1,fork", "SYSTEM:cat"):
        client = await Client.to(port)
        with closing(client):
            await client.ask(b"bytes")
            relay = Relay(port=port)
            assert await pairs_when(relay, lambda _: bool(relay.unplaced)) == []
            assert [one.sport for one in relay.unplaced] == [client.end[1]]


async def test_socat(server: int) -> None:
    port = free_port()
    listen = f"TCP4-LISTEN:{port},bind=127.0.0.1,fork"
    with running(program("socat"), listen, f"TCP4:127.0.0.1:{server}"):
        clients = [await Client.to(port) for _ in range(4)]
        with closing(*clients):
            for number, client in enumerate(clients[:3]):
                await client.ask(b"x" * 1000 * (number + 1))
            relay = Relay(port=port)
            found = await pairs_when(
                relay, lambda found: len(found) == 4 and sum(one.safe for one in found) == 3
            )
            assert {(one.added_right, one.added_left) for one in found} == {(0, 0)}
            assert "the only two of process" in of(clients[0], found).why
            assert of(clients[3], found).why.endswith("no data have passed yet")
            await clients[3].ask(b"y")
            await pairs_when(relay, all_safe(4))


async def test_socat_in_a_transfer_that_never_rests(server: int) -> None:
    port = free_port()
    listen = f"TCP6-LISTEN:{port},bind=[::1]"
    with running(program("socat"), listen, f"TCP4:127.0.0.1:{server}") as process:
        client = await Client.to(port, "::1")

        async def pump() -> None:
            while True:
                client.writer.write(b"b" * 65536)
                await client.writer.drain()
                await client.reader.read(1 << 20)

        with closing(client):
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(pump())
                (pair,) = await pairs_when(Relay(pid=process.pid), all_safe(1))
                task.cancel()
            assert (pair.left.family, pair.right.family) == (6, 4)
            assert (pair.added_right, pair.added_left) == (0, 0)


@contextlib.contextmanager
def nginx(directory: Path, server: int) -> Iterator[dict[str, int]]:
    ports = {"plain": free_port(), "line": free_port()}
    file = config(directory / "nginx.conf", NGINX.format(directory=directory, server=server, **ports))
    with running(program("nginx"), "-p", str(directory), "-c", str(file), "-e", str(directory / "error.log")):
        yield ports


async def test_nginx(tmp_path: Path, server: int) -> None:
    """All sessions are in one process: they are told apart by what went through them."""
    with nginx(tmp_path, server) as ports:
        plain = [await Client.to(ports["plain"]) for _ in range(4)]
        with closing(*plain):
            relay = Relay(port=ports["plain"])
            for number, client in enumerate(plain[:2], 1):
                await client.ask(b"x" * 100 * number)
            found = await pairs_when(relay, all_safe(2))
            assert {one.left.sport for one in found} == {one.end[1] for one in plain[:2]}
            # The other two have carried nothing, and look alike; one byte more and they do not.
            await plain[2].ask(b"z")
            found = await pairs_when(relay, lambda found: sum(one.safe for one in found) == 3)
            assert {(one.added_right, one.added_left) for one in found} == {(0, 0)}


async def test_sessions_that_look_alike(tmp_path: Path, server: int) -> None:
    with nginx(tmp_path, server) as ports:
        alike = [await Client.to(ports["plain"]) for _ in range(3)]
        with closing(*alike):
            for client in alike:
                await client.ask(b"the same")
            relay = Relay(port=ports["plain"])
            for _ in range(3):
                assert await relay.pairs() == []
            # As soon as one has carried something else, it is known.
            await alike[0].ask(b"different")
            found = await pairs_when(Relay(port=ports["plain"]), lambda found: len(found) == 1)
            assert of(alike[0], found).safe


async def test_nginx_with_a_line(tmp_path: Path, server: int) -> None:
    with nginx(tmp_path, server) as ports:
        client = await Client.to(ports["line"])
        line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {client.end[1]} {ports['line']}\r\n"
        with closing(client):
            await client.ask(b"hello", len(line) + 5)
            (pair,) = await pairs_when(Relay(port=ports["line"]), all_safe(1))
            assert (pair.added_right, pair.added_left) == (len(line), 0)


@contextlib.contextmanager
def squid(directory: Path) -> Iterator[int]:
    port = free_port()
    user = "proxy" if os.geteuid() == 0 else getpass.getuser()
    directory.chmod(0o777)
    file = config(directory / "squid.conf", SQUID.format(directory=directory, port=port, user=user))
    with running(program("squid"), "-N", "-f", str(file), "-n", f"t{os.getpid()}"):
        yield port


async def test_squid_connect(tmp_path: Path, server: int) -> None:
    """It took the request from the client and answered it itself: fewer bytes to the right, more to the left."""
    with squid(tmp_path) as port:
        client = await Client.to(port)
        request = f"CONNECT 127.0.0.1:{server} HTTP/1.1\r\nHost: 127.0.0.1:{server}\r\n\r\n".encode()
        client.writer.write(request)
        answer = await client.reader.readuntil(b"\r\n\r\n")
        with closing(client):
            relay = Relay(port=port)
            await client.ask(b"a" * 50)
            (pair,) = await pairs_when(relay, lambda found: len(found) == 1)
            assert not pair.safe
            # What it took off is known when it was the same at two moments of rest with data between; a look may meet
            # an acknowledgement that is still delayed, so more data are sent until it is known.
            for size in range(70, 1000):
                await client.ask(b"b" * size)
                (pair,) = await relay.pairs()
                if pair.safe:
                    break
            assert pair.safe, pair
            assert (pair.added_right, pair.added_left) == (-len(request), len(answer))
            # With the first bytes it is known at once, and why.
            heads = {
                pair.left: Heads(request + b"a" * 50, answer + b"a" * 50),
                pair.right: Heads(b"a" * 50, b"a" * 50),
            }
            (told,) = await pairs_when(Relay(port=port, heads=heads), all_safe(1))
            assert told[:5] == pair[:5]
            assert told.why.endswith("CONNECT exchange taken off")


async def test_squid_with_several_sessions(tmp_path: Path, server: int) -> None:
    """All in one process, and what was taken off is not known: they are told apart by how they grow."""
    with squid(tmp_path) as port:
        request = f"CONNECT 127.0.0.1:{server} HTTP/1.1\r\n\r\n".encode()
        clients = [await Client.to(port) for _ in range(3)]
        with closing(*clients):
            for client in clients:
                client.writer.write(request)
                answer = await client.reader.readuntil(b"\r\n\r\n")
            relay = Relay(port=port)
            await relay.pairs()

            async def all_known() -> list[Pair]:
                async with asyncio.timeout(60.0):
                    for size in itertools.count(1):
                        for number, client in enumerate(clients, 1):
                            await client.ask(b"x" * size * number)
                        found = await relay.pairs()
                        if all_safe(3)(found):
                            return found
                raise AssertionError

            found = await all_known()
            assert len({one.right for one in found}) == 3
            added = {(one.added_right, one.added_left) for one in found}
            assert added == {(-len(request), len(answer))}


async def test_first_bytes_that_differ(server: int) -> None:
    """Records of TLS may be as long on both sides; the streams are not the same."""
    port = free_port()
    with running(
        program("socat"), f"TCP4-LISTEN:{port},bind=127.0.0.1", f"TCP4:127.0.0.1:{server}"
    ) as process:
        client = await Client.to(port)
        with closing(client):
            await client.ask(b"x" * 100)
            (pair,) = await pairs_when(Relay(pid=process.pid), all_safe(1))
            heads = {pair.left: Heads(b"\x16\3\1one", b""), pair.right: Heads(b"\x16\3\1two", b"")}
            (doubt,) = await Relay(pid=process.pid, heads=heads).pairs()
            assert not doubt.safe
            assert "their first bytes differ" in doubt.why


CHANGER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
client, _ = listener.accept()
server = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
while data := client.recv(4096):
    server.sendall(b"+" + data)
    client.sendall(server.recv(len(data) + 1, socket.MSG_WAITALL))
"""


async def test_a_program_that_changes_data(server: int) -> None:
    """A relay that puts a byte before each message is found out by counting."""
    port = free_port()
    with running(sys.executable, "-c", CHANGER, str(port), str(server)) as process:
        client = await Client.to(port)
        with closing(client):
            relay = Relay(pid=process.pid)
            asked, why = 0, ""
            async with asyncio.timeout(LIMIT_S):
                while asked < 30 or not why.endswith("the program changes the data"):
                    await client.ask(b"m" * 10, 11)
                    asked += 1
                    for one in await relay.pairs():
                        assert not one.safe
                        why = one.why


async def test_a_client_is_not_its_own_server() -> None:
    """Both ends of a session in one process have carried as many bytes, and are no pair."""
    async with serving() as port:
        clients = [await Client.to(port) for _ in range(2)]
        with closing(*clients):
            for number, client in enumerate(clients, 1):
                await client.ask(b"x" * number)
            relay = Relay(port=port, pid=os.getpid())
            for _ in range(3):
                assert not any(one.safe for one in await relay.pairs())


async def test_nobody_listens() -> None:
    with pytest.raises(HostError, match="nobody listens on port"):
        await Relay(port=free_port()).pairs()
    with pytest.raises(ValueError, match="port or its process"):
        Relay()


def test_a_dictionary_is_fingerprints() -> None:
    one = FiveTuple.of(socket.inet_aton("10.0.0.1"), 1, socket.inet_aton("10.0.0.2"), 2)
    seen: dict[FiveTuple, Heads] = {one: Heads(b"a", b"b")}
    assert Relay(pid=1, heads=seen) is not None
