"""nginx's stream module: what its error log says, recorded and real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.programs import Client, config, free_port, of, pairs_when, program, running, serving
from dysco.adapters.nginx import Log, NginxStream
from dysco.errors import HostError
from dysco.wire.tuples import FiveTuple

LINES = """\
2026/11/23 17:24:28 [notice] 30686#30686: using the "epoll" event method
2026/11/23 17:24:28 [info] 30686#30686: *1 client 192.0.2.1:41006 connected to 192.0.2.9:7201
2026/11/23 17:24:28 [info] 30686#30686: *3 client [2001:db8::1]:44006 connected to [2001:db8::9]:7201
2026/11/23 17:24:28 [info] 30686#30686: *1 proxy 10.0.0.9:43078 connected to 10.0.0.2:80
2026/11/23 17:24:28 [info] 30686#30686: *5 client 192.0.2.1:39012 connected to 0.0.0.0:7202
2026/11/23 17:24:28 [info] 30686#30686: *3 proxy 10.0.0.9:43092 connected to 10.0.0.2:80
2026/11/23 17:24:28 [info] 30686#30686: *7 client unix: connected to unix:/run/x.sock
2026/11/23 17:24:29 [info] 30686#30686: *7 proxy 10.0.0.9:43093 connected to 10.0.0.2:80
2026/11/23 17:24:29 [error] 30686#30686: *5 connect() failed while connecting to upstream
"""
ENDS = """\
2026/11/23 17:24:29 [info] 30686#30686: *1 client disconnected, bytes from/to client:100/143, bytes from/to \
upstream:143/143
"""
FOUR = FiveTuple.parse("192.0.2.1:41006 > 192.0.2.9:7201")
SIX = FiveTuple.parse("[2001:db8::1]:44006 > [2001:db8::9]:7201")

CONFIG = """\
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes 2;
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
events {{ worker_connections 512; }}
stream {{
  server {{ listen {plain}; listen [::1]:{plain}; proxy_pass 127.0.0.1:{server}; }}
  server {{ listen 127.0.0.1:{line}; listen [::1]:{line}; proxy_pass 127.0.0.1:{server}; proxy_protocol on; }}
}}
"""


def test_lines(tmp_path: Path) -> None:
    path = config(tmp_path / "error.log", LINES)
    log = Log(path)
    log.read()
    assert log.right_of(FOUR) == FiveTuple.parse("10.0.0.9:43078 > 10.0.0.2:80")
    assert log.right_of(SIX) == FiveTuple.parse("10.0.0.9:43092 > 10.0.0.2:80")
    assert log.right_of(FiveTuple.parse("192.0.2.1:39012 > 192.0.2.9:7202")) is None
    with path.open("a") as file:
        file.write(ENDS[:50])
        file.flush()
        log.read()
        assert log.right_of(FOUR) is not None
        file.write(ENDS[50:])
    log.read()
    assert log.right_of(FOUR) is None
    assert len(log) == 2
    log.close()


def test_a_rotated_log(tmp_path: Path) -> None:
    path = config(tmp_path / "error.log", "")
    log = Log(path)
    log.read()
    first, second = LINES.splitlines(keepends=True)[1], LINES.splitlines(keepends=True)[3]
    with path.open("a") as file:
        file.write(first)
    path.rename(tmp_path / "error.log.1")
    config(path, second)
    log.read()
    assert log.right_of(FOUR) is not None
    log.close()


async def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        await NginxStream(tmp_path / "none.log", port=1).pairs()


async def test_real_sessions_that_all_look_alike(tmp_path: Path) -> None:
    async with serving() as server:
        ports = {"plain": free_port(), "line": free_port()}
        file = config(tmp_path / "nginx.conf", CONFIG.format(directory=tmp_path, server=server, **ports))
        log = tmp_path / "error.log"
        with running(program("nginx"), "-p", str(tmp_path), "-c", str(file), "-e", str(log)):
            hosts = ["127.0.0.1", "::1"] * 10
            clients = [await Client.to(ports["plain"], host) for host in hosts]
            lines = [await Client.to(ports["line"], host) for host in hosts[:2]]
            try:
                await asyncio.gather(*(client.ask(b"the same") for client in clients))
                plain = await pairs_when(
                    NginxStream(log, port=ports["plain"]),
                    lambda found: len(found) == 20 and all(one.safe for one in found),
                )
                assert len({one.right for one in plain}) == 20
                assert {(one.added_right, one.added_left) for one in plain} == {(0, 0)}
                assert [of(client, plain).left.family for client in clients[:2]] == [4, 6]
                with_line = await pairs_when(
                    NginxStream(log, port=ports["line"]),
                    lambda found: len(found) == 2 and all(one.safe for one in found),
                )
                for client, family in zip(lines, (4, 6), strict=True):
                    host, port = client.end
                    line = f"PROXY TCP{family} {host} {host} {port} {ports['line']}\r\n"
                    assert of(client, with_line).added_right == len(line)
            finally:
                for client in (*clients, *lines):
                    client.close()
