"""The `dysco` command on a host of its own: dry run, up in the background, every question, kill -9, down."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dysco.errors import ExitStatus
from dysco.host.pins import fault
from netns.labs import until
from netns.worlds import Space, dump


class Host:
    """A namespace with a host.toml in a directory."""

    def __init__(self, space: Space, directory: Path) -> None:
        self.space = space
        self.config = directory / "host.toml"
        self.config.write_text(
            f'[agent]\nname = "solo"\naddresses = ["10.1.1.1"]\nunderlay = ["eth0"]\n'
            f'run_directory = "{directory}/run"\nsocket = "{directory}/solo.sock"\n'
            '[keys]\nca = "keys/ca.pem"\ncertificate = "keys/solo.pem"\nkey = "keys/solo.key"\n'
        )
        self.socket = directory / "solo.sock"
        self.good("keys", "init", "--directory", str(directory / "keys"))
        self.good("keys", "issue", "solo", "--directory", str(directory / "keys"))

    def dysco(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command with this host's network."""
        argv = ["nsenter", f"--net=/run/netns/{self.space.name}", "--"]
        argv += [sys.executable, "-m", "dysco.cli", "--socket", str(self.socket), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    def good(self, *arguments: str) -> str:
        done = self.dysco(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout


@pytest.fixture
def host(spaces: list[Space], tmp_path: Path) -> Host:
    return Host(spaces[0], tmp_path)


def up(host: Host) -> int:
    """Start the agent in the background; gives its process id."""
    return int(json.loads(host.good("tun", "up", "-c", str(host.config), "--detach", "--json"))["pid"])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def without_counters(lines: Sequence[str]) -> list[str]:
    """Drop what the kernel counts up by itself."""
    return [line for line in lines if "/proc/sys/net/netfilter/nf_conntrack_count" not in line]


def test_from_the_dry_run_to_down(host: Host) -> None:
    before = dump(host.space)
    planned = host.good("tun", "up", "-c", str(host.config), "--dry-run").splitlines()
    commands = {shlex.split(line)[0] for line in planned if not line.startswith("#")}
    assert {"ip", "sysctl"} <= commands
    assert ("mount" in commands) == (fault(host.config.parent / "bpf") is None)
    assert commands & {"bpftool", "tc"}  # by the kernel: programs on devices themselves, or on a qdisc
    assert dump(host.space) == before

    pid = up(host)
    try:
        assert json.loads(host.good("tun", "status", "--json"))["pid"] == pid
        assert json.loads(host.good("sessions", "--json")) == []
        assert json.loads(host.good("chains", "--json")) == []
        assert json.loads(host.good("peers", "--json")) == []
        assert "dysco_sessions 0" in host.good("metrics")
        assert host.good("top", "--once").startswith("dysco top  solo  up ")
        assert "not chained" in host.good("explain", "10.1.1.1:1 > 10.1.1.2:80")
        assert json.loads(host.good("reload", "--dry-run", "--json"))["changes"] == []
        host.good("events", "--json")
        host.good("reload")

        good = host.config.read_text()
        host.config.write_text(good + "[tun]\nmtu = 99\n")
        refused = host.dysco("reload")
        assert refused.returncode == ExitStatus.USAGE
        assert "tun.mtu: 99 is below 576" in refused.stderr
        host.config.write_text(good)
    finally:
        host.good("tun", "down", "-c", str(host.config))
    assert not alive(pid)
    assert without_counters(dump(host.space)) == without_counters(before)
    assert host.dysco("sessions").returncode == ExitStatus.NO_AGENT


def test_down_cleans_what_a_killed_agent_left(host: Host) -> None:
    before = dump(host.space)
    pid = up(host)
    os.kill(pid, signal.SIGKILL)
    until("the agent is gone", lambda: not alive(pid))
    assert dump(host.space) != before
    host.good("tun", "down", "-c", str(host.config))
    assert without_counters(dump(host.space)) == without_counters(before)


def test_a_second_agent_is_refused(host: Host) -> None:
    pid = up(host)
    try:
        second = host.dysco("tun", "up", "-c", str(host.config))
        assert second.returncode == ExitStatus.FAILED
        assert second.stderr.startswith("dysco: ")
        assert "Traceback" not in second.stderr
        assert json.loads(host.good("tun", "status", "--json"))["pid"] == pid
    finally:
        host.good("tun", "down", "-c", str(host.config))
