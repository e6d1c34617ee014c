"""The real HAProxy on loopback: pairs, PROXY protocol lines, and streams that must stay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dysco.adapters.haproxy import HAProxy
from dysco.wire.tuples import show_address
from netns.proxies import Client, config, free_port, is_safe, of, pairs_when, program, running, serving

CONFIG = """\
global
  stats socket {socket} mode 600 level admin
  maxconn 500
defaults
  mode tcp
  timeout connect 60s
  timeout client 1h
  timeout server 1h
frontend plain
  bind 127.0.0.1:{plain}
  bind [::1]:{plain}
  default_backend plain
backend plain
  server s 127.0.0.1:{server}
listen v1
  bind 127.0.0.1:{v1}
  bind [::1]:{v1}
  server s 127.0.0.1:{server} send-proxy
listen v2
  bind 127.0.0.1:{v2}
  bind [::1]:{v2}
  server s 127.0.0.1:{server} send-proxy-v2
frontend takes
  bind 127.0.0.1:{takes} accept-proxy
  default_backend plain
frontend http
  mode http
  bind 127.0.0.1:{http}
  default_backend http
backend http
  mode http
  server s 127.0.0.1:{server}
frontend filtered
  filter trace name t quiet
  bind 127.0.0.1:{filtered}
  default_backend plain
frontend looks
  tcp-request inspect-delay 60s
  tcp-request content accept if {{ req.len gt 3 }}
  bind 127.0.0.1:{looks}
  default_backend plain
"""
PORTS = ("plain", "v1", "v2", "takes", "http", "filtered", "looks")


class Proxy(NamedTuple):
    adapter: HAProxy
    ports: dict[str, int]


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with serving() as server:
        ports = {name: free_port() for name in PORTS}
        socket = tmp_path / "h.sock"
        file = config(tmp_path / "h.cfg", CONFIG.format(socket=socket, server=server, **ports))
        with running(program("haproxy"), "-db", "-f", str(file)):
            yield Proxy(HAProxy(socket), ports)


@contextlib.contextmanager
def closing(*clients: Client) -> Iterator[None]:
    yield
    for client in clients:
        client.close()


async def test_what_it_adds(proxy: Proxy) -> None:
    plain = await Client.to(proxy.ports["plain"])
    six = await Client.to(proxy.ports["plain"], "::1")
    with closing(plain, six):
        await plain.ask(b"x" * 1000)
        await six.ask(b"y" * 2000)
        # A client that has sent nothing yet: its server is connected, and the line has gone.
        quiet = await Client.to(proxy.ports["v1"])
        v1 = await Client.to(proxy.ports["v1"], "::1")
        v2 = await Client.to(proxy.ports["v2"])
        v2six = await Client.to(proxy.ports["v2"], "::1")
        told = f"PROXY TCP6 ::1 ::1 {v1.end[1]} {proxy.ports['v1']}\r\n".encode()
        assert (await v1.ask(b"z" * 10, len(told) + 10)).startswith(told)
        with closing(quiet, v1, v2, v2six):
            found = await pairs_when(
                proxy.adapter, lambda found: len(found) == 6 and all(one.safe for one in found)
            )
            added = [of(one, found).added_right for one in (plain, six, quiet, v1, v2, v2six)]
            line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {quiet.end[1]} {proxy.ports['v1']}\r\n"
            assert added == [0, 0, len(line), len(told), 28, 52]
            assert {one.added_left for one in found} == {0}
            assert [of(one, found).left.family for one in (plain, six)] == [4, 6]
            assert {show_address(one.right.dst) for one in found} == {"127.0.0.1"}
            assert "version 1" in of(v1, found).why


async def test_a_line_that_it_took(proxy: Proxy) -> None:
    client = await Client.to(proxy.ports["takes"])
    line = b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 80\r\n"
    with closing(client):
        await client.ask(line + b"hello", 5)
        (pair,) = await pairs_when(proxy.adapter, lambda found: [one.safe for one in found] == [True])
        assert (pair.added_right, pair.added_left) == (-len(line), 0)
        assert pair.left.sport == client.end[1]


async def test_where_it_must_stay(proxy: Proxy) -> None:
    http = await Client.to(proxy.ports["http"])
    filtered = await Client.to(proxy.ports["filtered"])
    looks = await Client.to(proxy.ports["looks"])
    with closing(http, filtered, looks):
        http.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")  # the rest is on its way
        await filtered.ask(b"some bytes")
        await looks.ask(b"enough bytes")
        found = await pairs_when(proxy.adapter, lambda found: len(found) >= 2 and is_safe(looks, found))
        assert not of(filtered, found).safe
        assert "still looks at" in of(filtered, found).why
        # An echo is no answer of HTTP, so the stream may be over by now; while it is there, it has to stay.
        assert not any(one.safe for one in found if one.left.sport == http.end[1])


async def test_a_client_whose_server_is_not_known_is_told_of(proxy: Proxy) -> None:
    chosen, waiting = await Client.to(proxy.ports["plain"]), await Client.to(proxy.ports["looks"])
    with closing(chosen, waiting):
        await chosen.ask(b"bytes")
        await pairs_when(
            proxy.adapter,
            lambda found: [one.safe for one in found] == [True] and bool(proxy.adapter.unplaced),
        )
        assert [one.sport for one in proxy.adapter.unplaced] == [waiting.end[1]]
        await waiting.ask(b"enough bytes")
        await pairs_when(proxy.adapter, lambda found: len(found) == 2 and not proxy.adapter.unplaced)


async def test_half_closed(tmp_path: Path) -> None:
    """The client has said all, the server has not: still a pair, and its FIN is no byte."""

    async def answers_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(b"begin")
        await go_on.wait()
        writer.close()

    go_on = asyncio.Event()
    port, socket = free_port(), tmp_path / "h.sock"
    async with serving(answers_late) as server:
        ports = dict.fromkeys(PORTS, 0) | {name: free_port() for name in PORTS} | {"plain": port}
        file = config(tmp_path / "h.cfg", CONFIG.format(socket=socket, server=server, **ports))
        with running(program("haproxy"), "-db", "-f", str(file)):
            client = await Client.to(port)
            client.writer.write(b"q" * 5000)
            client.writer.write_eof()
            assert await client.reader.readexactly(5) == b"begin"
            adapter = HAProxy(socket)
            (pair,) = await pairs_when(adapter, lambda found: [one.safe for one in found] == [True])
            assert (pair.safe, pair.added_right, pair.added_left) == (True, 0, 0)
            go_on.set()
            assert await client.reader.read() == b""
            await pairs_when(adapter, lambda found: not found)
            client.close()


async def test_a_transfer_that_never_rests(proxy: Proxy) -> None:
    """Data move all the time; the numbers are still exact, by a moment of rest or by the server's other streams."""
    quiet = await Client.to(proxy.ports["v1"])
    busy = await Client.to(proxy.ports["v1"])

    async def pump() -> None:
        while True:
            busy.writer.write(b"b" * 65536)
            await busy.writer.drain()
            await busy.reader.read(1 << 20)

    with closing(quiet, busy):
        await pairs_when(proxy.adapter, lambda found: is_safe(quiet, found))
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(pump())
            found = await pairs_when(proxy.adapter, lambda found: len(found) == 2 and is_safe(busy, found))
            task.cancel()
        line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {busy.end[1]} {proxy.ports['v1']}\r\n"
        assert of(busy, found).added_right == len(line)


async def test_many(proxy: Proxy) -> None:
    clients = await asyncio.gather(*(Client.to(proxy.ports["plain"]) for _ in range(100)))
    with closing(*clients):
        await asyncio.gather(*(one.ask(b"same bytes") for one in clients))
        found = await pairs_when(
            proxy.adapter, lambda found: len(found) == 100 and all(one.safe for one in found)
        )
        assert len({one.left for one in found}) == len({one.right for one in found}) == 100
