"""Chains of live sessions are changed on real kernels: what arrives is compared by SHA-256, wires are watched."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

import dysco
from dysco.chains import Step
from dysco.lab import Lab
from dysco.protocol.settings import Limits
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, both_modes, lab_text, log_of, nft_counter, put_file, sessions, until, url

FAMILIES = pytest.mark.parametrize("family", [4, 6])

# A connection tracker that takes nothing it has not seen begin, and no packet out of its windows.
FIREWALL = """
[[host]]
name = "NAME"
setup = [["nft", "-f", "firewall.nft"], ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=0"],
         ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0"]]
[host.config]
box = [{ name = "firewall", kind = "kernel" }]
[host.files]
"firewall.nft" = '''
table inet firewall {
    counter fresh {}
    counter passed {}
    counter invalid {}
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid counter name invalid drop
        ct state established,related counter name passed accept
        iifname "dysco0" tcp dport 80 tcp flags & (syn | ack) == syn ct state new counter name fresh accept
    }
}
'''
"""


def firewall(name: str, port: int = 80) -> str:
    """A host with a strict stateful firewall."""
    return FIREWALL.replace("NAME", name).replace("dport 80", f"dport {port}")


WATCH = """
table inet watch {
    counter resets {}
    counter passing {}
    chain forward {
        type filter hook forward priority filter;
        tcp flags & rst == rst counter name resets
        meta l4proto tcp ip daddr ADDRESS4 counter name passing
        meta l4proto tcp ip saddr ADDRESS4 counter name passing
        meta l4proto tcp ip6 daddr ADDRESS6 counter name passing
        meta l4proto tcp ip6 saddr ADDRESS6 counter name passing
    }
}
"""


def watch(lab: Lab, node: str) -> None:
    """Let the router count resets, and TCP packets from and to a host."""
    rules = WATCH.replace("ADDRESS4", lab.address(node, 4)).replace("ADDRESS6", lab.address(node, 6))
    path = lab.directory / "watch.nft"
    path.write_text(rules)
    lab.exec("router", ["nft", "-f", str(path)])


def seen(lab: Lab, counter: str) -> int:
    """Packets that the router has counted."""
    return nft_counter(lab, "router", "watch", counter)


class Download:
    """A curl whose output is read at `rate` bytes a second, later at an eighth, the last only when the test says so.

    It goes on in between, for a proxy is not out of the way before the client has read what it holds.
    """

    def __init__(self, argv: list[str], size: int, rate: int) -> None:
        self.arrived = 0
        self._size = size
        self._rate = rate
        self._hurry = threading.Event()
        self._digest = hashlib.sha256()
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as source:
            while data := os.read(source.fileno(), 65536):
                self._digest.update(data)
                self.arrived += len(data)
                self._hurry.wait(self._pause(len(data)))

    def _pause(self, read: int) -> float | None:
        if self.arrived < self._size * 3 // 4:
            return read / self._rate
        return read / self._rate * 8 if self.arrived < self._size * 15 // 16 else None

    def digest(self) -> str:
        """Let it end; returns the SHA-256 of what arrived."""
        assert self.status() == 0
        return self._digest.hexdigest()

    def status(self) -> int:
        """Let it end; returns curl's exit status."""
        self._hurry.set()
        status = self._process.wait(60)
        self._reader.join()
        return status

    def end(self) -> None:
        """Stop it wherever it is."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._hurry.set()
        self._reader.join()


@contextlib.contextmanager
def download(
    lab: Lab, family: int, rate: int = 8 * MEGABYTE, *, node: str = "d", port: int = 80
) -> Iterator[Download]:
    """Begin a download of `file` from d, or by way of another node, to a, and wait until it is under way."""
    argv = lab.command("a", ["curl", "-sS", "-f", "-N", url(lab, family, node=node, port=port)])
    running = Download(argv, (lab.directory / "d" / "www" / "file").stat().st_size, rate)
    try:
        until("nothing arrives", lambda: running.arrived > MEGABYTE)
        yield running
    finally:
        running.end()


def change(
    lab: Lab, node: str, kind: str, *args: object, session: str = "dst port 80", **terms: object
) -> list[Step]:
    """Ask the agent of a node for a change; returns the steps."""

    async def run() -> list[Step]:
        async with dysco.connect(lab.socket(node)) as agent:
            handle = agent.session(session)
            return [one async for one in getattr(handle, kind)(*args, **terms)]

    return asyncio.run(run())


PHASES = ["requested", "locked", "new path up", "two paths", "drained", "done", "done"]


def was_done(steps: list[Step]) -> None:
    """Check that a single session was changed in the order of all phases, perhaps after it had to wait."""
    phases = [one.phase for one in steps[1:]]
    while "waiting" in phases:
        phases = phases[phases.index("waiting") + 1 :]
    # A right anchor that asks may come to a phase before it hears that the left one came to an earlier one.
    assert phases == [one for one in PHASES if one in phases], steps
    assert phases[-2:] == ["done", "done"], steps


@both_modes
@FAMILIES
def test_a_firewall_is_removed_during_a_download(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("remove", firewall("b"), hops='["b"]'))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 20 * MEGABYTE)
    with download(lab, family) as running:
        steps = change(lab, "a", "remove", "b")
        assert (steps[0].before, steps[0].after) == (("a", "b/firewall", "d"), ("a", "d"))
        was_done(steps)
        until("the firewall's host has left", lambda: sessions(lab, "b") == [])
        before = seen(lab, "passing")
        assert running.digest() == wanted
    assert seen(lab, "passing") == before
    assert seen(lab, "resets") == 0


@both_modes
@FAMILIES
def test_a_strict_firewall_is_inserted_during_a_download(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("insert", firewall("b"), hops="[]"))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 20 * MEGABYTE)
    with download(lab, family) as running:
        assert seen(lab, "passing") == 0
        steps = change(lab, "a", "insert", "b")
        assert (steps[0].before, steps[0].after) == (("a", "d"), ("a", "b", "d"))
        was_done(steps)
        assert running.digest() == wanted
    assert nft_counter(lab, "b", "firewall", "fresh") >= 1  # a SYN that is repeated counts again
    assert nft_counter(lab, "b", "firewall", "passed") > 20
    assert nft_counter(lab, "b", "firewall", "invalid") == 0
    assert seen(lab, "resets") == 0


@both_modes
@FAMILIES
def test_a_firewall_is_replaced_during_a_download(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("replace", firewall("b"), firewall("c"), hops='["b"]'))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 20 * MEGABYTE)
    with download(lab, family) as running:
        was_done(change(lab, "a", "replace", "b", "c"))
        until("the old firewall's host has left", lambda: sessions(lab, "b") == [])
        before = seen(lab, "passing")
        assert running.digest() == wanted
    assert seen(lab, "passing") == before
    assert nft_counter(lab, "c", "firewall", "passed") > 20
    assert nft_counter(lab, "c", "firewall", "invalid") == 0
    assert seen(lab, "resets") == 0


# Speaks when a file says so: a line of 100 bytes there and back for each line that the file has got.
TALK = """
import pathlib, socket, sys, time
link = socket.create_connection((sys.argv[1], 7000))
said = 0
pathlib.Path("connected").touch()
while True:
    wanted = pathlib.Path("say")
    while said < (wanted.stat().st_size if wanted.exists() else 0):
        line = b"%099d\\n" % said
        link.sendall(line)
        back = b""
        while len(back) < len(line):
            back += link.recv(4096) or sys.exit("closed")
        assert back == line, back
        said += 1
        with open("heard", "ab") as heard:
            heard.write(b".")
    time.sleep(0.01)
"""

ECHO = """
import socket
listener = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    link, _ = listener.accept()
    while data := link.recv(4096):
        link.sendall(data)
"""


@both_modes
@FAMILIES
def test_an_idle_session_needs_no_packet_to_change(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(
        lab_text("idle", firewall("b", 7000), firewall("c", 7000), hops='["b"]', match="dst port 7000")
    )
    lab.up()
    (lab.directory / "d" / "echo.py").write_text(ECHO)
    (lab.directory / "a" / "talk.py").write_text(TALK)
    lab.start("d", [sys.executable, "echo.py"], name="echo")
    listens = ["ss", "-Hltn", "sport = :7000"]
    until("nobody listens", lambda: lab.exec("d", listens).stdout != "")
    lab.start("a", [sys.executable, "talk.py", lab.address("d", family)], name="talk")

    def talk() -> None:
        say, heard = lab.directory / "a" / "say", lab.directory / "a" / "heard"
        with say.open("ab") as file:
            file.write(b".")
        until(
            "no answer: " + log_of(lab, "a", "talk.log"),
            lambda: heard.exists() and heard.stat().st_size == say.stat().st_size,
        )

    talk()
    everything = "dst port 7000"
    was_done(change(lab, "a", "insert", "c", session=everything, after="b"))
    talk()
    was_done(change(lab, "a", "remove", "b", session=everything))
    was_done(change(lab, "a", "replace", "c", "b", session=everything))
    talk()
    was_done(change(lab, "a", "set_hops", ["c", "b"], session=everything))
    was_done(change(lab, "a", "set_hops", [], session=everything))
    talk()
    until("both hosts have left", lambda: sessions(lab, "b") == sessions(lab, "c") == [])


@both_modes
@pytest.mark.parametrize("who", ["b", "c", "d"])
def test_whoever_is_on_the_chain_may_ask(make_lab: MakeLab, who: str) -> None:
    lab = make_lab(lab_text("ask", firewall("b"), firewall("c"), firewall("x"), hops='["b", "c"]'))
    lab.up()
    wanted = put_file(lab, 20 * MEGABYTE)
    with download(lab, 4) as running:
        was_done(change(lab, who, "replace", "b", "x"))
        was_done(change(lab, who if who != "b" else "x", "remove", "c"))
        assert running.digest() == wanted


@both_modes
def test_a_peer_that_may_not_is_refused_by_name(make_lab: MakeLab) -> None:
    server = 'agent = true\n[[host.config.peer]]\nname = "a"\nmay_reconfigure = "dst port 22"'
    text = lab_text("refuse", firewall("b"), hops='["b"]').replace("agent = true", server)
    lab = make_lab(text)
    lab.up()
    wanted = put_file(lab, 20 * MEGABYTE)
    with download(lab, 4) as running:
        end = change(lab, "a", "remove", "b")[-1]
        assert (end.kind, end.phase, end.by) == ("end", "refused", "d"), end
        assert end.reason == "a may not change this session"
        assert running.digest() == wanted


# Opens sessions and says a line on each when told; every answer must be its own.
CROWD = """
import pathlib, resource, socket, sys, time
count, (_, most) = int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
links = [socket.create_connection((sys.argv[1], 7000)) for _ in range(count)]
rounds = 0
while True:
    for number, link in enumerate(links):
        link.sendall(b"%05d%05d" % (rounds, number))
    for number, link in enumerate(links):
        back = b""
        while len(back) < 10:
            back += link.recv(10 - len(back)) or sys.exit("closed")
        assert back == b"%05d%05d" % (rounds, number), back
    rounds += 1
    pathlib.Path("rounds").write_text(str(rounds))
    while not pathlib.Path(f"round-{rounds}").exists():
        time.sleep(0.01)
"""

CROWD_ECHO = """
import resource, selectors, socket
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
listener = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000)
look = selectors.DefaultSelector()
look.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in look.select():
        if key.fileobj is listener:
            look.register(listener.accept()[0], selectors.EVENT_READ)
        elif data := key.fileobj.recv(4096):
            key.fileobj.sendall(data)
        else:
            look.unregister(key.fileobj)
            key.fileobj.close()
"""


class Crowd:
    """Many sessions from a to d, each of which says something once a round."""

    def __init__(self, lab: Lab, count: int, family: int = 4) -> None:
        self.directory = lab.directory / "a"
        (lab.directory / "d" / "echo.py").write_text(CROWD_ECHO)
        (self.directory / "crowd.py").write_text(CROWD)
        lab.start("d", [sys.executable, "echo.py"], name="echo")
        listens = ["ss", "-Hltn", "sport = :7000"]
        until("nobody listens", lambda: lab.exec("d", listens).stdout != "")
        argv = [sys.executable, "crowd.py", lab.address("d", family), str(count)]
        self.process = lab.start("a", argv, name="crowd")
        self.rounds = 1
        self._wait()

    def talk(self) -> None:
        """Let all say something, and wait until all have got it back."""
        (self.directory / f"round-{self.rounds}").touch()
        self.rounds += 1
        self._wait()

    def _wait(self) -> None:
        file = self.directory / "rounds"

        def answered() -> bool:
            assert self.process.poll() is None
            return file.exists() and file.read_text() == str(self.rounds)

        until(f"round {self.rounds} does not end", answered, 90)


def command_line(lab: Lab, node: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `dysco` against the agent of a node."""
    argv = [sys.executable, "-m", "dysco.cli", "--socket", str(lab.socket(node)), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=90)


@both_modes
@pytest.mark.parametrize(("who", "box", "to"), [("b", "firewall", ""), ("a", "b", "c"), ("b", "b", "c")])
def test_a_box_is_drained_of_200_sessions(make_lab: MakeLab, who: str, box: str, to: str) -> None:
    text = lab_text("drain", firewall("b", 7000), firewall("c", 7000), hops='["b"]', match="dst port 7000")
    lab = make_lab(text)
    lab.up()
    watch(lab, "b")
    crowd = Crowd(lab, 200)
    assert len(sessions(lab, "b")) == 200
    done = command_line(lab, who, "drain", box, *(["--to", to] if to else []))
    assert (done.returncode, done.stderr) == (0, "")
    assert "is empty: 200 sessions have left it" in done.stdout
    until("its host has not left", lambda: sessions(lab, "b") == [])
    before = seen(lab, "passing")
    crowd.talk()
    assert seen(lab, "passing") == before
    assert seen(lab, "resets") == 0
    assert len(sessions(lab, "c")) == (200 if to else 0)
    refused = change(lab, "a", "insert", "b", session="dst port 7000", timeout=10.0)
    if who == "b":
        assert {one.reason for one in refused if one.kind == "end"} == {"firewall is drained"}
    assert command_line(lab, who, "undrain", box).stdout == f"{box} gets new sessions again\n"


@pytest.mark.parametrize("mode", ["ebpf"], indirect=True)
def test_sessions_at_rest_are_changed_again_and_again(make_lab: MakeLab) -> None:
    """Of more sessions than an agent keeps as objects, some are at rest from one change to the next."""
    text = lab_text("rest", firewall("b", 7000), hops='["b"]', match="dst port 7000")
    lab = make_lab(text)
    lab.up()
    watch(lab, "b")
    many = Limits().awake + 400
    crowd = Crowd(lab, many)
    for kind in ("remove", "insert", "remove"):
        until("none goes to rest", lambda: at_rest(lab, "a") > 0 < at_rest(lab, "d"))
        ends = [one for one in change(lab, "a", kind, "b", session="dst port 7000") if one.kind == "end"]
        assert (len(ends), {one.phase for one in ends}) == (many, {"done"})
    crowd.talk()
    assert seen(lab, "resets") == 0


def at_rest(lab: Lab, node: str) -> int:
    """Of how many sessions an agent has a record only."""
    lines = command_line(lab, node, "metrics").stdout.splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("dysco_sessions_at_rest "))


LEAVES = """
[[host]]
name = "b"
[host.config]
box = [{ name = "leaver", kind = "KIND", python = "leaver.py:Leaver" }]
[host.files]
"leaver.py" = '''
import asyncio
import dysco

class Leaver(dysco.BASE):
    seen = 0

    def METHOD(self, session, direction, what):
        self.seen += 1
        if self.seen == 20:
            self.task = asyncio.get_running_loop().create_task(self.go(session))
        return what

    def may_leave(self, session):
        return True

    async def go(self, session):
        try:
            await self.CALL
            told = "left"
        except dysco.DyscoError as error:
            told = str(error)
        with open("left", "w") as file:
            file.write(told)
'''
"""


@both_modes
@FAMILIES
@pytest.mark.parametrize("kind", ["packet", "stream"])
@pytest.mark.parametrize("call", ["remove_me(session)", "replace_me(session, 'c')"])
def test_a_box_in_python_leaves_by_itself(make_lab: MakeLab, family: int, kind: str, call: str) -> None:
    base, method = ("Middlebox", "packet") if kind == "packet" else ("StreamMiddlebox", "data")
    box = LEAVES.replace("KIND", kind).replace("BASE", base).replace("METHOD", method).replace("CALL", call)
    lab = make_lab(lab_text("leaves", box, firewall("c"), hops='["b"]'))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 16 * MEGABYTE)
    with download(lab, family, 2 * MEGABYTE) as running:
        told = lab.directory / "b" / "left"
        until("nothing has come of it", lambda: told.exists() and told.stat().st_size > 0, 40)
        assert log_of(lab, "b", "left") == "left"
        until("its host has not left", lambda: sessions(lab, "b") == [])
        before = seen(lab, "passing")
        assert running.digest() == wanted
    assert seen(lab, "passing") == before
    assert seen(lab, "resets") == 0
    assert (nft_counter(lab, "c", "firewall", "passed") > 20) == ("replace" in call)
