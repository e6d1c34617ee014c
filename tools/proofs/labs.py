"""Labs of proofs and benches, and the hosts of those that are about proxies.

    a: clients ── router ── b: HAProxy, perhaps others ── router ── d: servers

Each session has two chains of no hop: from the client to its proxy, and from there to the server.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dysco.lab import Lab, Nursery, load

_NURSERY: Final = Nursery()  # of all labs of this process; it ends with it
SERVERS: Final = '[[host]]\nname = "d"\n'
_HOSTS: Final = """
[lab]
name = "proxied"
mode = "{mode}"
[[host]]
name = "a"
[[host.config.policy]]
name = "proxied"
match = "dst portrange 8000-8999"
hops = []
[[host.config.policy]]
name = "direct"
match = "dst portrange 7000-7999"
hops = []
[[host]]
name = "b"
[[host.config.policy]]
name = "behind"
match = "dst portrange 7000-7999"
hops = []
[[host.config.proxy]]
name = "haproxy"
adapter = "haproxy"
socket = "haproxy.sock"
{others}
[host.files]
"haproxy.cfg" = '''
global
  maxconn 8000
  stats socket unix@haproxy.sock mode 600 level admin
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
{listens}
'''
{files}
"""
_LISTEN: Final = "listen p{front}\n  bind :::{front} v4v6\n  server d {target}:{back}\n"


@contextmanager
def up(text: str, directory: Path, name: str, prefix: str, *, agents: bool = True) -> Iterator[Lab]:
    """Bring a lab up that has this file, and take it down at the end. prefix: of the names of its namespaces."""
    path = directory / f"{name}.toml"
    path.write_text(text)
    lab = load(path, prefix=prefix, root=directory / name, nursery=_NURSERY)
    try:
        lab.up(agents=agents)
        yield lab
    finally:
        lab.down()


def target(family: int) -> str:
    """The server's address, as a configuration on b has it."""
    return "${d.ipv4}" if family == 4 else "[${d.ipv6}]"


def proxied(
    mode: str,
    family: int,
    ports: Mapping[int, int],
    *,
    others: str = "",
    files: str = "",
    servers: str = SERVERS,
) -> str:
    """The file of a lab with HAProxy.

    ports: by HAProxy's own, 8000 to 8999, that of the server behind it, 7000 to 7999. others, files: sections of b's
    host.toml, and files of b. servers: the host d.
    """
    listens = "".join(
        _LISTEN.format(front=front, back=back, target=target(family)) for front, back in ports.items()
    )
    return _HOSTS.format(mode=mode, listens=listens, others=others, files=files) + servers


def start_haproxy(lab: Lab) -> subprocess.Popen[bytes]:
    """Start it in the foreground on b; whoever does waits until it listens, and ends it."""
    argv = lab.command("b", ["haproxy", "-db", "-f", "haproxy.cfg"])
    return subprocess.Popen(argv, cwd=lab.directory / "b", stderr=subprocess.DEVNULL)
