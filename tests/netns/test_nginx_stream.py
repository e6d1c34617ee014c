"""nginx's stream module on loopback, all of whose sessions look alike: its error log tells them apart."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dysco.adapters.nginx import NginxStream
from netns.proxies import Client, config, free_port, of, pairs_when, program, running, serving

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
