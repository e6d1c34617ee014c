"""The hosts of the proofs, and what is watched while a session is changed.

    a ── router ── d       a: curl, ssh and others; d: web server, sshd
           ├── b, c        strict firewalls: default drop, only a SYN begins a session, nothing outside of its windows
           ├── s, t        boxes in Python that make a stream longer or shorter
           ├── r           a box in Python that renumbers sessions
           └── m           a firewall that is mandatory

Every packet between hosts passes the router: tcpdump looks for resets there, and for packets of a host that should not
get any.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dysco
from dysco.chains import Step
from dysco.lab import Lab
from proofs import labs

HERE = Path(__file__).resolve().parent
LIMIT_S = 60.0
WEB, SERVE, ONE_WAY, SSH, GROW, SHRINK, NUMBERS, MUST = 80, 7000, 7001, 7022, 7002, 7003, 7004, 7005

CLIENT = """
[lab]
name = "prove"
mode = "{mode}"
[[host]]
name = "a"
[host.config]
agent = {{ roaming = ["10.77.0.0/16", "fd77::/32"] }}
"""
POLICY = """
[[host.config.policy]]
name = "{hop}-{first}"
match = "dst portrange {first}-{last}"
hops = ["{hop}"]
"""
FIREWALL = """
[[host]]
name = "{name}"
setup = [["nft", "-f", "firewall.nft"], ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=0"],
         ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0"]]
[host.config]
agent = {{ roaming = ["10.77.0.0/16", "fd77::/32"] }}
box = [{{ name = "firewall", kind = "kernel", mandatory = {mandatory} }}]
[host.files]
"firewall.nft" = '''
table inet firewall {{
    counter invalid {{}}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state invalid counter name invalid drop
        ct state established,related accept
        iifname "dysco0" tcp flags & (syn | ack) == syn ct state new accept
    }}
}}
'''
"""
BOX = """
[[host]]
name = "{name}"
copy = ["{here}/boxes.py"]
[host.config]
agent = {{ roaming = ["10.77.0.0/16", "fd77::/32"] }}
box = [{{ name = "box", kind = "{kind}", python = "boxes.py:{what}" }}]
"""
SERVER = """
[[host]]
name = "d"
[host.config]
agent = {{ roaming = ["10.77.0.0/16", "fd77::/32"] }}
[[host.program]]
name = "nginx"
argv = ["nginx", "-e", "nginx.error.log", "-c", "${{dir}}/nginx.conf"]
listen = [80]
[host.files]
"www/empty" = ""
"nginx.conf" = '''
daemon off;
user root;
worker_processes 1;
pid ${{dir}}/nginx.pid;
error_log ${{dir}}/nginx.error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    server {{
        listen 80;
        listen [::]:80;
        root ${{dir}}/www;
        location /short {{ limit_rate 50k; }}
        location /slowly/ {{ alias ${{dir}}/www/; limit_rate 10k; }}
    }}
}}
'''
"""
LOSSY = """
[[link]]
between = ["{node}", "router"]
delay_ms = 1
loss = 0.01
seed = {seed}
"""


class Disproved(Exception):
    """Something is not as the issue says; the message tells what."""


def text(mode: str, *, lossy: bool = False) -> str:
    """The lab's file."""
    if lossy:
        hosts = [
            CLIENT.format(mode=mode),
            POLICY.format(hop="b", first=ONE_WAY, last=ONE_WAY),
        ]
        hosts += [FIREWALL.format(name=name, mandatory="false") for name in "bc"]
        links = [LOSSY.format(node=node, seed=seed) for seed, node in enumerate("abcd")]
        return "".join((*hosts, SERVER.format(), *links))
    return "".join(
        (
            CLIENT.format(mode=mode),
            POLICY.format(hop="b", first=WEB, last=WEB),
            POLICY.format(hop="b", first=SERVE, last=ONE_WAY),
            POLICY.format(hop="b", first=SSH, last=SSH),
            POLICY.format(hop="s", first=GROW, last=GROW),
            POLICY.format(hop="t", first=SHRINK, last=SHRINK),
            POLICY.format(hop="r", first=NUMBERS, last=NUMBERS),
            POLICY.format(hop="m", first=MUST, last=MUST),
            *(FIREWALL.format(name=name, mandatory=str(name == "m").lower()) for name in "bcm"),
            BOX.format(name="s", here=HERE, kind="stream", what="Words"),
            BOX.format(name="t", here=HERE, kind="stream", what="Sdrow"),
            BOX.format(name="r", here=HERE, kind="packet", what="Renumber"),
            SERVER.format(),
        )
    )


@contextmanager
def world(directory: Path, mode: str, prefix: str, *, lossy: bool = False) -> Iterator[World]:
    """Bring the lab up, and take it down at the end."""
    name = f"{mode}{'-lossy' if lossy else ''}"
    with labs.up(text(mode, lossy=lossy), directory, name, prefix) as lab:
        yield World(lab, mode)


class World:
    """The lab, and what the acts do with it.

    times: seconds that each change took. failed: changes with another end. moved: how often a host has moved.
    has_second: whether hosts that move have a second device.
    """

    def __init__(self, lab: Lab, mode: str) -> None:
        self.lab = lab
        self.mode = mode
        self.family = 4
        self.times: list[float] = []
        self.failed: list[Step] = []
        self.moved: dict[str, int] = {}
        self.has_second = False

    def change(self, session: str, kind: str, *args: Any, **terms: Any) -> list[Step]:
        """Ask a for a change of all sessions that match; give the steps."""

        async def run() -> list[Step]:
            async with dysco.connect(self.lab.socket("a")) as agent:
                return [one async for one in getattr(agent.session(session), kind)(*args, **terms)]

        steps = asyncio.run(run())
        self.note(steps)
        return steps

    def note(self, steps: list[Step]) -> None:
        """Keep how long each change took."""
        asked = {one.session: one.after_s for one in reversed(steps) if one.phase == "requested"}
        for one in steps:
            if one.kind == "end" and one.phase == "done":
                self.times.append(one.after_s - asked.get(one.session, one.after_s))
            elif one.is_failure:
                self.failed.append(one)

    def must(self, port: int, kind: str, *args: str, **terms: Any) -> None:
        """Change the one session to a port; Disproved unless that is done."""
        steps = self.change(f"dst port {port}", kind, *args, **terms)
        if steps[-1].phase != "done":
            raise Disproved(
                f"{kind} {' '.join(args)}: {steps[-1].phase} by {steps[-1].by}: {steps[-1].reason}"
            )

    def script(self, node: str, name: str, *args: object) -> Program:
        """Start talk.py on a node, in a directory of its own."""
        directory = self.lab.directory / node / name
        directory.mkdir(exist_ok=True)
        (directory / "stop").unlink(missing_ok=True)
        argv = self.lab.command(node, [sys.executable, str(HERE / "talk.py"), *map(str, args)])
        return Program(argv, directory)

    def listening(self, node: str, port: int) -> None:
        """Wait until somebody listens on a port."""
        listening(self.lab, node, port)

    def address(self, node: str) -> str:
        return self.lab.address(node, self.family)

    def url(self, port: int, path: str) -> str:
        address = self.address("d")
        return f"http://[{address}]:{port}/{path}" if self.family == 6 else f"http://{address}:{port}/{path}"

    def established(self, port: int, count: int = 1) -> None:
        """Wait until a has sessions to a port."""
        until(f"no session to port {port}", lambda: self.sessions(port) >= count)

    def sessions(self, port: int) -> int:
        """How many sessions a has to a port."""

        async def look() -> int:
            async with dysco.connect(self.lab.socket("a")) as agent:
                found = [one for one in await agent.sessions() if one.state == "established"]
                return sum(one.session.endswith(f":{port}") for one in found)

        return asyncio.run(look())

    @contextmanager
    def silence(self, node: str) -> Iterator[None]:
        """Nothing that is TCP comes from a host, or one address of it, or goes there."""
        address = node if "." in node or ":" in node else self.address(node)
        with self._captured(
            f"host {address} and ({TCP})", f"{node} is on the path no more, and still has"
        ) as seen:
            yield
        self._none(seen)

    @contextmanager
    def no_resets(self) -> Iterator[None]:
        """No reset is on any wire, unless both ends have closed: then it is TCP's answer to a copy that came late."""
        with self._captured(ENDS, "there are resets") as seen:
            yield
        seen.packets = [*early_resets(seen.packets)]
        self._none(seen)

    @staticmethod
    def _none(seen: Seen) -> None:
        if seen.packets:
            raise Disproved(f"{seen.what}: {len(seen.packets)} packets, the first: {seen.packets[0]}")

    @contextmanager
    def _captured(self, what: str, name: str) -> Iterator[Seen]:
        argv = self.lab.command("router", ["tcpdump", "-i", "any", "-nn", "-l", "-s", "128", what])
        seen = Seen(name)
        # Into a file: a pipe that nobody reads would stop it.
        with (
            tempfile.TemporaryFile("w+") as out,
            subprocess.Popen(argv, stdout=out, stderr=subprocess.PIPE, text=True) as process,
        ):
            assert process.stderr is not None
            for line in process.stderr:
                if "listening on" in line:
                    break
            try:
                yield seen
            finally:
                process.send_signal(signal.SIGINT)
                err = process.communicate(timeout=LIMIT_S)[1]
                out.seek(0)
                seen.packets = [line.rstrip() for line in out if line.strip()]
        # A capture that has seen nothing because it did not run would prove nothing.
        if re.search(r"\d+ packets? captured", err) is None:
            raise Disproved(f"tcpdump has failed: {err}")


TCP = "tcp or ip6 proto 6"
ENDS = "(tcp[tcpflags] & (tcp-rst | tcp-fin) != 0) or (ip6[6] == 6 and ip6[53] & 5 != 0)"
_ENDS = re.compile(r" IP6? (\S+) > (\S+): Flags \[([^]]*)\]")


def early_resets(lines: Iterable[str]) -> Iterator[str]:
    """Of tcpdump's lines about FIN and RST, the resets on a subsession that not both ends have closed."""
    closed: set[tuple[str, str]] = set()
    for line in lines:
        found = _ENDS.search(line)
        if found is None:
            yield line  # not understood: better too much
            continue
        source, target, flags = found.groups()
        if "F" in flags:
            closed.add((source, target))
        if "R" in flags and not {(source, target), (target, source)} <= closed:
            yield line


class Seen:
    """What a capture has seen."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.packets: list[str] = []


class Program:
    """A program whose last line of output is JSON."""

    def __init__(self, argv: list[str], directory: Path) -> None:
        self.directory = directory
        self._name = " ".join(argv[-6:])
        self._process = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )

    def stop(self) -> None:
        """Tell it to come to an end."""
        (self.directory / "stop").touch()

    def line(self) -> dict[str, Any]:
        """Wait for its next line."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise Disproved(f"{self._name} has ended with {self._process.wait()}")
        return dict(json.loads(said))

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


class Download:
    """curl, whose output is hashed as it comes."""

    def __init__(self, world: World, url: str) -> None:
        self.total = 0
        self._digest = hashlib.sha256()
        argv = ["curl", "-sS", "-f", "--no-buffer", url]
        self._process = subprocess.Popen(world.lab.command("a", argv), stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while block := self._process.stdout.read1(1 << 20):  # type: ignore[attr-defined]
            self._digest.update(block)
            self.total += len(block)

    def sha256(self) -> str:
        """Wait for the end."""
        self._reader.join(10 * LIMIT_S)
        if self._process.wait(LIMIT_S):
            raise Disproved(f"curl has ended with {self._process.returncode}")
        return self._digest.hexdigest()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


def until(what: str, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Return when the condition holds; Disproved after limit_s seconds."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise Disproved(what)
        time.sleep(0.02)


def listening(lab: Lab, node: str, port: int) -> None:
    """Wait until somebody listens on a port of a node."""
    argv = ["ss", "-Hltn", f"sport = :{port}"]
    until(f"nobody listens on port {port}", lambda: bool(lab.exec(node, argv).stdout))
