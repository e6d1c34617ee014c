"""Sessions that the kernel rewrites: the agent is not needed for their packets, and knows all about them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dysco.host import run_in
from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import (
    MEGABYTE,
    ask,
    counters,
    fetch,
    kill,
    lab_text,
    nft_counter,
    put_file,
    sessions,
    until,
    url,
)
from netns.test_life import configured
from netns.test_middleboxes import NAMESPACE
from netns.worlds import attached

pytestmark = pytest.mark.parametrize("mode", ["ebpf"], indirect=True)
SIZE = 20 * MEGABYTE
NODES = ("a", "b", "d")


def rewritten(lab: Lab, node: str) -> int:
    """Packets that the programs of a node have rewritten."""
    return int(ask(lab, node, "status")["steering"]["rewritten"])


def states(lab: Lab, node: str) -> list[str]:
    """Where the sessions of a node stand."""
    return [str(one["state"]) for one in sessions(lab, node)]


def captured(lab: Lab, node: str) -> int:
    """Packets that went to the agent of a node."""
    steering = ask(lab, node, "status")["steering"]
    return int(steering["captured_out"] + steering["captured_in"] + steering["syn_captured"])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("transmit", [True, False], ids=["offload", "complete-checksums"])
def test_the_agents_see_beginning_and_end_and_know_the_rest(
    make_lab: MakeLab, family: int, transmit: bool
) -> None:
    lab = make_lab(configured("fast", "", ""))
    lab.up()
    if not transmit:
        for node in NODES:
            for device in Path(f"/proc/{lab.agent_pid(node)}/net/dev").read_text().splitlines()[2:]:
                name = device.split(":")[0].strip()
                if name != "lo" and not name.startswith("dysco"):
                    lab.exec(node, ["ethtool", "-K", name, "tx", "off", "tso", "off", "gso", "off"])
    wanted = put_file(lab, SIZE)
    assert fetch(lab, url(lab, family)) == wanted
    until("the session does not end", lambda: all(states(lab, node) == ["time-wait"] for node in NODES))
    for node in NODES:
        status = ask(lab, node, "status")
        assert status["mode"].startswith("ebpf, ")
        assert status["why_no_ebpf"] is None
        assert captured(lab, node) < 40
        assert rewritten(lab, node) > SIZE / 65536
        (session,) = sessions(lab, node)
        passes = 2 if node == "b" else 1  # into the box and out of it
        # Of a packet of 1500 bytes 72 are headers, and each may be answered by an acknowledgement of 72.
        assert passes * SIZE < session["bytes"] < passes * 1.3 * SIZE
        assert session["packets"] > passes * SIZE / 65536


@pytest.mark.parametrize(
    ("family", "transmit"), [(4, False), (6, True)], ids=["complete-checksums", "offload"]
)
def test_a_box_in_a_namespace_is_passed_without_the_agent(
    make_lab: MakeLab, family: int, transmit: bool
) -> None:
    """Its firewall sees its own devices; the agent sees the ends, and its successor takes the way over."""
    lab = make_lab(lab_text("passage", NAMESPACE, hops='["b"]'))
    lab.up()
    if not transmit:
        for node in NODES:
            lab.exec(node, ["ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off"])
    wanted = put_file(lab, SIZE // 4)
    assert fetch(lab, url(lab, family)) == wanted
    until("the session does not end", lambda: states(lab, "b") == ["time-wait"])
    assert nft_counter(lab, "b", "firewall", "web", netns="box") >= 1  # a SYN that is repeated counts again
    assert captured(lab, "b") < 20
    assert rewritten(lab, "b") > 2 * SIZE / 4 / 65536
    (session,) = sessions(lab, "b")
    assert 2 * SIZE / 4 < session["bytes"] < 2.6 * SIZE / 4
    with Client(lab, family) as client:
        assert client.fetch() == wanted
        kill(lab, "b")
        assert client.fetch() == wanted
        lab.start_agent("b")
        lab.wait_for_agents()
        before = rewritten(lab, "b")
        assert client.fetch() == wanted
        assert rewritten(lab, "b") > before + 2 * SIZE / 4 / 65536


class Client:
    """One HTTP session of host a that asks for the file again and again when it is told to."""

    PROGRAM = """
import hashlib, http.client, sys, time
link = http.client.HTTPConnection(sys.argv[1], 80, timeout=20)
for line in sys.stdin:
    end = time.monotonic() + float(line)
    while True:
        link.request("GET", "/file")
        told = hashlib.sha256(link.getresponse().read()).hexdigest()
        if time.monotonic() > end:
            break
        time.sleep(0.01)  # nginx ends a session after 1000 requests
    print(told, flush=True)
"""

    def __init__(self, lab: Lab, family: int) -> None:
        argv = [sys.executable, "-c", self.PROGRAM, lab.address("d", family)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(lab.command("a", argv), stdin=pipe, stdout=pipe, text=True)

    def fetch(self, busy_s: float = 0.0) -> str:
        """Fetch the file, for at least so many seconds; returns the SHA-256 of the last one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{busy_s}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("", timeout=20)


@pytest.mark.parametrize("family", [4, 6])
def test_sessions_run_while_agents_are_dead_and_are_taken_over(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(configured("dead", "", ""))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    with Client(lab, family) as client:
        assert client.fetch() == wanted
        kill(lab, *NODES)
        assert client.fetch() == wanted
        for node in NODES:
            lab.start_agent(node)
        lab.wait_for_agents()
        before = {node: rewritten(lab, node) for node in NODES}
        assert client.fetch() == wanted
        for node in NODES:
            assert rewritten(lab, node) > before[node]
            (session,) = sessions(lab, node)
            # A box's host sees all twice. What was carried before the end of the agents counts if the journal did not
            # know of the session yet (`protocol.brief`).
            seen = session["bytes"] / (2 if node == "b" else 1)
            assert MEGABYTE < seen < 3.2 * MEGABYTE
    for node in NODES:
        assert captured(lab, node) < 30
    assert fetch(lab, url(lab, family)) == wanted


def test_only_what_the_kernel_does_not_see_either_is_idle(make_lab: MakeLab) -> None:
    lab = make_lab(configured("idle", "abd", "timers = { established = 1.5 }"))
    lab.up()
    wanted = put_file(lab, 1000)
    with Client(lab, 4) as client:
        assert client.fetch(5.0) == wanted
        assert sessions(lab, "b")[0]["age_s"] > 4.5
        until("it stays", lambda: not any(sessions(lab, node) for node in NODES))
        assert counters(lab, "b")["closed_idle"] == 1


@pytest.mark.parametrize("to", ["tun", "auto"])
def test_a_session_goes_from_one_mode_to_the_other(make_lab: MakeLab, mode: str, to: str) -> None:
    """An agent that comes back in another mode takes its sessions along."""
    begins = mode if to == "tun" else "tun"
    lab = make_lab(configured("modes", "b", f'dataplane = {{ mode = "{begins}" }}'))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    with Client(lab, 4) as client:
        assert client.fetch() == wanted
        kill(lab, "b")
        path = lab.directory / "b" / "host.toml"
        path.write_text(path.read_text().replace(f'mode = "{begins}"', f'mode = "{to}"'))
        lab.start_agent("b")
        lab.wait_for_agents()
        before = rewritten(lab, "b"), captured(lab, "b")
        assert client.fetch() == wanted
        after = rewritten(lab, "b"), captured(lab, "b")
    fast, slow = (late - early for early, late in zip(before, after, strict=True))
    assert (fast, slow == 0) == (0, False) if to == "tun" else (fast > 20 and slow == 0)


@pytest.mark.parametrize("opening", ["kernel", "agent"])
def test_who_opens_chains(make_lab: MakeLab, opening: str) -> None:
    lab = make_lab(configured("opens", "abd", f'dataplane = {{ opening = "{opening}" }}'))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    for family in (4, 6):
        assert fetch(lab, url(lab, family)) == wanted
    for node in NODES:
        status = ask(lab, node, "status")
        assert status["opening"] == opening
        assert (status["steering"]["syn_opened"] > 0) == (opening == "kernel")
        assert counters(lab, node)["established"] == 2
        until("both are over", lambda node=node: states(lab, node) == ["time-wait"] * 2)  # type: ignore[misc]


def test_a_killed_agent_is_cleaned_up_after(make_lab: MakeLab) -> None:
    lab = make_lab(configured("clean", "", ""))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    assert fetch(lab, url(lab, 4)) == wanted
    assert "dysco_" in filters(lab)
    kill(lab, "b")
    assert "dysco_" in filters(lab)
    config = str(lab.directory / "b" / "host.toml")
    lab.exec("b", [sys.executable, "-m", "dysco.cli", "tun", "down", "--config", config])
    assert "dysco_" not in filters(lab)


def filters(lab: Lab) -> str:
    """The classifiers on the devices of b."""
    return " ".join(run_in(lab.netns("b"), attached))
