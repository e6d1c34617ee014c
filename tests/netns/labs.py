"""Pieces of labs that several tests share: a web server, a client with a policy, and how bytes are compared."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dysco.lab import Lab

MEGABYTE = 1_000_000
both_modes = pytest.mark.parametrize("mode", ["tun", "ebpf"], indirect=True)
WAIT_S = 20.0

CLIENT = """
[[host]]
name = "a"
[[host.config.policy]]
name = "web"
match = "{match}"
hops = {hops}
{more}
"""

SERVER = """
[[host]]
name = "d"
agent = {agent}
[[host.program]]
name = "nginx"
argv = ["nginx", "-e", "nginx.error.log", "-c", "${{dir}}/nginx.conf"]
listen = [80]
[host.files]
"www/index.html" = "Hello from d.\\n"
"nginx.conf" = '''
daemon off;
user root;
worker_processes 1;
pid ${{dir}}/nginx.pid;
error_log ${{dir}}/nginx.error.log;
events {{}}
http {{
    access_log ${{dir}}/access.log;
    server {{
        listen 80;
        listen [::]:80;
        root ${{dir}}/www;
    }}
}}
'''
"""


def lab_text(
    name: str, *parts: str, hops: str, match: str = "dst port 80", more: str = "", agent: bool = True
) -> str:
    """A lab with client a, server d and what stands between them."""
    head = f'[lab]\nname = "{name}"\n'
    client = CLIENT.format(match=match, hops=hops, more=more)
    return head + client + "".join(parts) + SERVER.format(agent=str(agent).lower())


def put_file(lab: Lab, size: int, name: str = "file", node: str = "d") -> str:
    """Write random bytes for the web server of a node; returns their SHA-256."""
    data = os.urandom(size)
    (lab.directory / node / "www" / name).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def url(lab: Lab, family: int, path: str = "file", node: str = "d", port: int = 80) -> str:
    """Where the web server of a node is."""
    address = lab.address(node, family)
    return f"http://[{address}]:{port}/{path}" if family == 6 else f"http://{address}:{port}/{path}"


def fetch(lab: Lab, target: str, *more: str, node: str = "a", timeout_s: float = 30.0) -> str:
    """Download with curl; returns the SHA-256 of what arrived."""
    arrived = lab.directory / node / "arrived"
    lab.exec(node, ["curl", "-sS", "-f", "-o", str(arrived), *more, target], timeout_s=timeout_s)
    return hashlib.sha256(arrived.read_bytes()).hexdigest()


def ask(lab: Lab, node: str, what: str) -> Any:
    """What the agent of a node answers to a command of the client API."""
    import asyncio

    import dysco

    async def run() -> Any:
        async with dysco.connect(lab.socket(node)) as agent:
            return await agent.command(what)

    return asyncio.run(run())


def sessions(lab: Lab, node: str) -> list[dict[str, Any]]:
    """The sessions of an agent."""
    return list(ask(lab, node, "sessions"))


def counters(lab: Lab, node: str) -> dict[str, int]:
    """The core's counters of an agent."""
    return dict(ask(lab, node, "status")["counters"])


def until(what: str, condition: Callable[[], bool], limit_s: float = WAIT_S) -> None:
    """Return when the condition holds; fails with `what` after limit_s seconds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def log_of(lab: Lab, node: str, name: str) -> str:
    """A file in the directory of a node."""
    return (lab.directory / node / name).read_text()


def until_said(lab: Lab, node: str, name: str, *words: str) -> None:
    """Return when a file in the directory of a node has all these words: who writes it may come later than its news."""
    path = lab.directory / node / name

    def said() -> bool:
        return path.exists() and all(word in path.read_text() for word in words)

    until(f"{name} of {node} does not say {' and '.join(words)}", said)


def kill(lab: Lab, *nodes: str) -> None:
    """End agents so that they can undo nothing, and wait until they are gone."""
    pids = [lab.agent_pid(node) for node in nodes]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until("an agent is not gone", lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


def nft_counter(lab: Lab, node: str, table: str, name: str, netns: str | None = None) -> int:
    """Packets that a named nftables counter has seen."""
    argv = ["nft", "-j", "list", "counter", "inet", table, name]
    if netns is not None:
        argv = ["nsenter", f"--net={Path('/run/netns') / lab.netns(node, netns)}", "--", *argv]
    found = json.loads(lab.exec(node, argv).stdout)
    return int(next(part["counter"]["packets"] for part in found["nftables"] if "counter" in part))


_PROXY = """
[[host]]
name = "b"
[[host.config.policy]]
name = "behind"
match = "dst port 80"
hops = HOPS
SECTION
[[host.program]]
name = "haproxy"
argv = ["haproxy", "-db", "-f", "haproxy.cfg"]
listen = [8080]
[host.files]
"haproxy.cfg" = '''
global
  maxconn 100
  GLOBAL
defaults
  mode tcp
  DEFAULTS
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen web
  bind :::8080 v4v6
  server d TARGET:80
'''
"""


def haproxy_host(
    family: int, hops: str = "[]", section: str = "", for_all: str = "", defaults: str = ""
) -> str:
    """The host b with HAProxy on port 8080 before d; `section` goes into its host.toml, the rest to haproxy.cfg."""
    target = "${d.ipv4}" if family == 4 else "[${d.ipv6}]"
    text = _PROXY.replace("HOPS", hops).replace("SECTION", section).replace("TARGET", target)
    return text.replace("GLOBAL", for_all).replace("DEFAULTS", defaults)


_SLOW = """
import hashlib, http.client, pathlib, sys, time
host, port, here = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
connection = http.client.HTTPConnection(host, port)
connection.request("GET", "/file")
answer = connection.getresponse()
digest, size = hashlib.sha256(), 0
while data := answer.read(65536):
    digest.update(data)
    size += len(data)
    if size == 1 << 20:
        (here / "begun").touch()
    while not (here / "hurry").exists():
        time.sleep(0.01 if answer.length > 1 << 23 else 0.1)
        if answer.length > 1 << 18:
            break  # the last of it waits
(here / "digest").write_text(digest.hexdigest())
"""


class SlowClient:
    """Downloads `file` with pauses; it does not end before it is told to hurry."""

    def __init__(self, lab: Lab, family: int, *, node: str = "d", port: int = 80) -> None:
        self._here = lab.directory / "a"
        for name in ("begun", "hurry", "digest"):
            (self._here / name).unlink(missing_ok=True)
        argv = [sys.executable, "-c", _SLOW, lab.address(node, family), str(port), str(self._here)]
        self._process = subprocess.Popen(lab.command("a", argv))

    def __enter__(self) -> SlowClient:
        until("nothing arrives", (self._here / "begun").exists)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def digest(self) -> str:
        """Hurry, and give the SHA-256 of what arrived."""
        (self._here / "hurry").touch()
        assert self._process.wait(60) == 0
        return (self._here / "digest").read_text()


def of_host(name: str, setting: str, text: str) -> str:
    """Put a setting into the host.toml of one host."""
    return text.replace(f'name = "{name}"\n', f'name = "{name}"\n{setting}\n', 1)
