"""Sessions that the kernel rewrites: the agent is not needed for their packets, and knows all about them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, ask, fetch, put_file, sessions, until, url
from netns.test_life import configured, download, finished

pytestmark = pytest.mark.parametrize("mode", ["ebpf"], indirect=True)
SIZE = 20 * MEGABYTE
NODES = ("a", "b", "d")


def rewritten(lab: Lab, node: str) -> int:
    """Packets that the programs of a node have rewritten."""
    return int(ask(lab, node, "status")["steering"]["rewritten"])


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
    for node in NODES:
        status = ask(lab, node, "status")
        assert status["mode"].startswith("ebpf, ")
        assert status["why_no_ebpf"] is None
        assert captured(lab, node) < 20
        assert rewritten(lab, node) > SIZE / 65536
        (session,) = sessions(lab, node)
        assert session["state"] == "time-wait"
        passes = 2 if node == "b" else 1  # into the box and out of it
        assert passes * SIZE < session["bytes"] < passes * 1.1 * SIZE
        assert session["packets"] > passes * SIZE / 65536


@pytest.mark.parametrize("family", [4, 6])
def test_sessions_run_while_agents_are_dead_and_are_taken_over(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(configured("dead", "", ""))
    lab.up()
    wanted = put_file(lab, 24 * MEGABYTE)  # more than is under way in buffers when agents are back
    arrived = lab.directory / "a" / "arrived"
    with download(lab, family, "2M") as process:
        for node in NODES:
            os.kill(lab.agent_pid(node), signal.SIGKILL)
        for node in NODES:
            pid = lab.agent_pid(node)
            until("the agent is not gone", lambda pid=pid: not Path(f"/proc/{pid}/exe").exists())  # type: ignore[misc]
        size = arrived.stat().st_size
        until("nothing arrives", lambda: arrived.stat().st_size > size + 2 * MEGABYTE)
        for node in NODES:
            lab.start_agent(node)
        lab.wait_for_agents()
        before = {node: rewritten(lab, node) for node in NODES}
        assert finished(lab, process) == wanted
    for node in NODES:
        assert rewritten(lab, node) > before[node]
        assert len(sessions(lab, node)) == 1
    assert fetch(lab, url(lab, family)) == wanted


def test_only_what_the_kernel_does_not_see_either_is_idle(make_lab: MakeLab) -> None:
    lab = make_lab(configured("idle", "abd", "timers = { established = 0.7 }"))
    lab.up()
    wanted = put_file(lab, 12 * MEGABYTE)
    with download(lab, 4, "3M") as process:
        assert finished(lab, process) == wanted
    program = f"import socket, sys; s = socket.create_connection(('{lab.address('d')}', 80)); s.recv(1)"
    idle = lab.start("a", ["python3", "-c", program], name="idle")
    until("no session", lambda: any(one["state"] == "established" for one in sessions(lab, "b")))
    until("it stays", lambda: all(one["state"] != "established" for one in sessions(lab, "b")))
    idle.kill()
    idle.wait()


@pytest.mark.parametrize("to", ["tun", "auto"])
def test_a_session_goes_from_one_mode_to_the_other(make_lab: MakeLab, mode: str, to: str) -> None:
    """An agent that comes back in another mode takes its sessions along."""
    begins = mode if to == "tun" else "tun"
    lab = make_lab(configured("modes", "b", f'dataplane = {{ mode = "{begins}" }}'))
    lab.up()
    wanted = put_file(lab, SIZE)
    with download(lab, 4, "4M") as process:
        pid = lab.agent_pid("b")
        os.kill(pid, signal.SIGKILL)
        until("the agent is not gone", lambda: not Path(f"/proc/{pid}/exe").exists())
        path = lab.directory / "b" / "host.toml"
        path.write_text(path.read_text().replace(f'mode = "{begins}"', f'mode = "{to}"'))
        lab.start_agent("b")
        lab.wait_for_agents()
        before = rewritten(lab, "b"), captured(lab, "b")
        assert finished(lab, process) == wanted
        after = rewritten(lab, "b"), captured(lab, "b")
    fast, slow = (late - early for early, late in zip(before, after, strict=True))
    assert (fast > 10 * slow) == (to == "auto")
    assert (slow > 10 * fast) == (to == "tun")


def test_a_killed_agent_is_cleaned_up_after(make_lab: MakeLab) -> None:
    lab = make_lab(configured("clean", "", ""))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    assert fetch(lab, url(lab, 4)) == wanted
    assert "dysco_" in filters(lab)
    pid = lab.agent_pid("b")
    os.kill(pid, signal.SIGKILL)
    until("the agent is not gone", lambda: not Path(f"/proc/{pid}/exe").exists())
    assert "dysco_" in filters(lab)
    config = str(lab.directory / "b" / "host.toml")
    lab.exec("b", [sys.executable, "-m", "dysco.cli", "tun", "down", "--config", config])
    assert "dysco_" not in filters(lab)


def filters(lab: Lab) -> str:
    """The classifiers on the devices of b, and its TUN devices."""
    return lab.exec(
        "b", ["sh", "-c", "for d in /sys/class/net/*; do tc filter show dev ${d##*/} ingress; "
              "tc filter show dev ${d##*/} egress; done"], check=False,
    ).stdout  # fmt: skip
