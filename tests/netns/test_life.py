"""Agents that are killed, stopped and started again under live sessions; what is left when sessions are over."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dysco.dataplane.steer import LEAST_ENTRIES, Steering, entries_for
from dysco.host import run_in
from dysco.lab import Lab
from dysco.wire.tuples import FiveTuple
from netns.conftest import MakeLab
from netns.labs import (
    ask,
    both_modes,
    counters,
    fetch,
    kill,
    lab_text,
    of_host,
    put_file,
    sessions,
    until,
    until_said,
    url,
)

FIREWALL = """
[[host]]
name = "b"
setup = [["nft", "add table inet fw; add chain inet fw f { type filter hook forward priority 0; policy drop; };\
 add rule inet fw f ct state established,related accept; add rule inet fw f tcp dport 80 ct state new accept"]]
[host.config]
box = [{ name = "firewall", kind = "kernel" }]
MORE
"""
SIZE = 12_000_000
MORE_THAN_BUFFERS = (
    60_000_000  # of both kernels, so that a download has not ended when curl has only begun to read
)


def configured(name: str, nodes: str, setting: str) -> str:
    """The text of a lab a, b, d with a setting in the host.toml of some of them."""
    text = lab_text(name, FIREWALL.replace("MORE", setting if "b" in nodes else ""), hops='["b"]')
    for node in set(nodes) - {"b"}:
        text = text.replace(f'name = "{node}"\n', f'name = "{node}"\nconfig.{setting}\n', 1)
    return text


def chain(make_lab: MakeLab) -> Lab:
    """A lab a, b (nftables firewall), d that is up."""
    lab = make_lab(configured("life", "", ""))
    lab.up()
    return lab


@contextmanager
def download(lab: Lab, family: int, rate: str = "6M") -> Iterator[subprocess.Popen[bytes]]:
    """A download that takes a while; the block begins when bytes flow."""
    arrived = lab.directory / "a" / "arrived"
    argv = ["curl", "-sS", "-f", "--limit-rate", rate, "-o", str(arrived), url(lab, family)]
    process = subprocess.Popen(lab.command("a", argv), stderr=subprocess.PIPE)
    until("no bytes arrive", lambda: arrived.exists() and arrived.stat().st_size > 0)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finished(lab: Lab, process: subprocess.Popen[bytes]) -> str:
    """Wait for a download; returns the SHA-256 of what arrived."""
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors
    return hashlib.sha256((lab.directory / "a" / "arrived").read_bytes()).hexdigest()


@both_modes
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("node", ["a", "b", "d"])
def test_sessions_survive_a_killed_agent(make_lab: MakeLab, family: int, node: str) -> None:
    lab = chain(make_lab)
    wanted = put_file(lab, SIZE)
    with download(lab, family) as process:
        kill(lab, node)
        lab.start_agent(node)
        lab.wait_for_agents()
        assert finished(lab, process) == wanted
    until_said(lab, node, "agent.log", "sessions_restored")
    assert fetch(lab, url(lab, family)) == wanted


def stop(lab: Lab, node: str) -> None:
    """SIGTERM, and wait for the end."""
    pid = lab.agent_pid(node)
    os.kill(pid, signal.SIGTERM)
    until("the agent does not end", lambda: not Path(f"/proc/{pid}/exe").exists())


@both_modes
@pytest.mark.parametrize("node", ["a", "b", "d"])
def test_a_stopped_agent_resets_its_sessions(make_lab: MakeLab, node: str) -> None:
    lab = chain(make_lab)
    put_file(lab, MORE_THAN_BUFFERS)
    with download(lab, 4) as process:
        stop(lab, node)
        _, errors = process.communicate(timeout=40)
        assert process.returncode == 56, errors  # curl: failure in receiving network data
        assert b"reset by peer" in errors


HOLD = """
import socket, sys, time
address, count, held = sys.argv[1], int(sys.argv[2]), []
for _ in range(count):
    held.append(socket.create_connection((address, 8000), 10))
    held[-1].sendall(b"x")
    assert held[-1].recv(1) == b"x"
print("open", flush=True)
sys.stdin.readline()
def is_reset(s, how, what):
    s.setblocking(False)
    try:
        how(s, what)
    except (ConnectionResetError, BrokenPipeError):
        return True
    except BlockingIOError:
        pass
    return False
left = [s for s in held if not is_reset(s, socket.socket.recv, 1)]
late = len(left)
while left:
    left = [s for s in left if not is_reset(s, socket.socket.send, b"y")]
    time.sleep(0.1)
print(count - late, late, flush=True)
"""
ECHO = """
import resource, socket
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
listening, held = socket.create_server(("", 8000), family=socket.AF_INET6, dualstack_ipv6=True), []
while True:
    held.append(listening.accept()[0])
    held[-1].sendall(held[-1].recv(1))
"""
HELD = 800  # a process may have 1,024 descriptors without asking


def many(make_lab: MakeLab, keeping: str = "") -> Lab:
    """A lab a, b (nftables firewall), d that is up, for sessions with port 8000; an agent may keep its sessions."""
    keeps = 'agent = { on_stop = "keep" }'
    firewall = FIREWALL.replace("MORE", keeps if keeping == "b" else "").replace("dport 80 ", "dport 8000 ")
    text = lab_text("many", firewall, hops='["b"]', match="dst port 8000")
    if keeping not in ("", "b"):
        text = of_host(keeping, f"config.{keeps}", text)
    lab = make_lab(text)
    lab.up()
    return lab


@contextmanager
def holding(lab: Lab, family: int, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """So many clients with HELD idle sessions each; told "now", they print how many were reset and how many later."""
    echo = subprocess.Popen(lab.command("d", ["python3", "-c", ECHO]))
    argv = ["python3", "-c", HOLD, lab.address("d", family), str(HELD)]
    clients: list[subprocess.Popen[str]] = []
    try:
        until("nobody listens", lambda: ":8000" in lab.exec("d", ["ss", "-Hltn"]).stdout)
        clients = [
            subprocess.Popen(lab.command("a", argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "open\n"
        yield clients
    finally:
        echo.kill()
        for client in clients:
            client.kill()
            client.wait()
        echo.wait()


@pytest.mark.parametrize(
    ("mode", "family", "node"), [("ebpf", 4, "b"), ("ebpf", 6, "a"), ("tun", 4, "d")], indirect=["mode"]
)
def test_a_stopped_agent_resets_all_sessions_however_many(make_lab: MakeLab, family: int, node: str) -> None:
    lab = many(make_lab)
    with holding(lab, family, 2) as clients:
        assert len(sessions(lab, node)) == 2 * HELD
        stop(lab, node)
        for client in clients:
            reset, late = map(int, client.communicate("now\n", timeout=60)[0].split())
            # A reset may be lost where agents have too little of a processor: such a session ends with its next packet.
            assert reset > HELD / 2
            assert reset + late == HELD
        until("the server has most left", lambda: lab.exec("d", ["ss", "-Htn"]).stdout.count(":8000") < HELD)


@pytest.mark.parametrize(
    ("mode", "family", "node"),
    [("ebpf", 4, "a"), ("ebpf", 6, "b"), ("ebpf", 4, "d"), ("tun", 6, "a"), ("tun", 4, "d")],
    indirect=["mode"],
)
def test_sessions_that_an_agent_in_a_hurry_leaves_out_end_with_their_next_packet(
    make_lab: MakeLab, family: int, node: str
) -> None:
    lab = many(make_lab)
    with holding(lab, family, 1) as (client,):
        pid = lab.agent_pid(node)
        for one in (signal.SIGTERM, signal.SIGINT):  # two of a kind might come as one
            os.kill(pid, one)
        until("the agent does not end", lambda: not Path(f"/proc/{pid}/exe").exists())
        reset, late = map(int, client.communicate("now\n", timeout=30)[0].split())
        assert late
        assert reset + late == HELD


@both_modes
@pytest.mark.parametrize("node", ["a", "b", "d"])
def test_a_stopped_agent_keeps_its_sessions_if_told_so(make_lab: MakeLab, node: str) -> None:
    lab = make_lab(configured("life", node, 'agent = { on_stop = "keep" }'))
    lab.up()
    wanted = put_file(lab, SIZE)
    with download(lab, 4) as process:
        stop(lab, node)
        lab.start_agent(node)
        lab.wait_for_agents()
        assert finished(lab, process) == wanted


@both_modes
@pytest.mark.parametrize("node", ["a", "b", "d"])
def test_an_agent_that_is_taken_down_resets_also_what_it_would_keep(make_lab: MakeLab, node: str) -> None:
    lab = many(make_lab, keeping=node)
    with holding(lab, 4, 1) as (client,):
        config = str(lab.directory / node / "host.toml")
        lab.exec(node, [sys.executable, "-m", "dysco.cli", "tun", "down", "--config", config])
        reset, late = map(int, client.communicate("now\n", timeout=60)[0].split())
        assert reset > HELD / 2  # although they were idle
        assert reset + late == HELD


CHURN = """
import socket, sys
for _ in range(int(sys.argv[2])):
    with socket.create_connection((sys.argv[1], 80), 10) as s:
        s.sendall(b"GET /file HTTP/1.0\\r\\n\\r\\n")
        while s.recv(4096): pass
"""


FLOOD = """
import json, selectors, socket, sys, time
address, count, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
began, chosen, opened, accepted = time.monotonic(), selectors.DefaultSelector(), 0, 0
while opened < count or chosen.get_map():
    while opened < min(count, rate * (time.monotonic() - began)):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex((address, 80))
        chosen.register(s, selectors.EVENT_WRITE)
        opened, last = opened + 1, time.monotonic()
    for key, _ in chosen.select(0.01):
        accepted += not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        chosen.unregister(key.fileobj)
        key.fileobj.close()
print(json.dumps([accepted, last - began]))
"""
RATE = 200


@both_modes
def test_a_peer_that_begins_too_many_sessions_is_refused(make_lab: MakeLab) -> None:
    """Whoever lets them begin, kernel or agent: both together allow what the limit says."""
    lab = make_lab(configured("flood", "d", f"limits = {{ setups_per_second = {RATE} }}"))
    lab.up()
    put_file(lab, 100)
    offered = 9 * RATE
    argv = ["python3", "-c", FLOOD, lab.address("d", 4), str(offered), str(3 * RATE)]
    done = subprocess.run(lab.command("a", argv), capture_output=True, check=True, timeout=60)
    accepted, seconds = json.loads(done.stdout)
    assert RATE <= accepted <= RATE * (2 + seconds)
    assert counters(lab, "d")["refused"] >= offered - accepted


def diverted() -> list[tuple[FiveTuple, int]]:
    """What the programs in this namespace know of sessions; of an agent in the mode `tun` that is what it diverts."""
    steering = Steering.open("dysco1")
    try:
        assert steering.taken_over
        return steering.entries()
    finally:
        steering.close()


@both_modes
def test_the_kernels_table_has_room_for_as_many_sessions_as_may_be(make_lab: MakeLab) -> None:
    def room() -> int:
        steering = Steering.open("dysco1")
        try:
            assert steering.taken_over
            return steering.room
        finally:
            steering.close()

    lab = make_lab(configured("room", "d", "limits = { sessions = 300_000 }"))
    lab.up()
    # Five tuples each, in a power of two; what is not said is 200,000.
    assert [run_in(lab.netns(node), room) for node in "ad"] == [1 << 20, 1 << 21]
    assert entries_for(1) == LEAST_ENTRIES


SETTLED = 300_000  # bytes that three batches in a row may add to an agent: 50 a session


@both_modes
def test_ten_thousand_sessions_leave_nothing(make_lab: MakeLab) -> None:
    lab = make_lab(configured("churn", "abd", "timers = { time_wait = 0.5, quarantine = 0.5 }"))
    lab.up()
    put_file(lab, 100)

    def churn(each: int) -> None:
        """Open and close that many sessions in each of four processes, two on each family."""
        clients = [
            subprocess.Popen(lab.command("a", ["python3", "-c", CHURN, lab.address("d", family), str(each)]))
            for family in (4, 6, 4, 6)
        ]
        try:
            for client in clients:
                assert client.wait(timeout=110) == 0
        finally:
            for client in clients:
                client.kill()
        for node in "abd":
            until(f"{node} keeps sessions", lambda node=node: not sessions(lab, node))  # type: ignore[misc]

    def held(node: str) -> tuple[int, int]:
        """Descriptors and resident bytes of an agent."""
        pid = lab.agent_pid(node)
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return len(list(Path(f"/proc/{pid}/fd").iterdir())), int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    churn(500)
    before = {node: held(node) for node in "abd"}
    grown = {node: [0] for node in "abd"}
    # what a busy moment took stays with the process and is used again; a leak takes more with each batch
    batches = 0
    while batches < 5 or any(sum(grown[node][-3:]) > SETTLED for node in "abd"):
        assert batches < 15, f"memory grows with every 2,000 sessions, by (bytes) {grown}"
        churn(500)
        batches += 1
        for node in "abd":
            grown[node] = [*grown[node], held(node)[1] - before[node][1] - sum(grown[node])]
    for node in "abd":
        until(f"{node} keeps flows", lambda node=node: ask(lab, node, "status")["flows"] == 0)  # type: ignore[misc]
        assert counters(lab, node)["opened"] == 2000 * (batches + 1)
        # A ticket that a program has taken in vain is missed at the agent's next look only.
        until(f"{node} keeps ports", lambda node=node: "\ndysco_ports 0\n" in ask(lab, node, "metrics"))  # type: ignore[misc]
        # The agent may not have seen yet that who has asked has gone.
        until(f"{node} keeps descriptors", lambda node=node: held(node)[0] <= before[node][0] + 1)  # type: ignore[misc]
        assert sum(grown[node]) < 10_000_000
        assert run_in(lab.netns(node), diverted) == []
