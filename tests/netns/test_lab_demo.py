"""The demonstration's lab with real agents: the chain works, and an agent leaves its host as it was."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

import dysco
from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import both_modes, log_of, until
from netns.worlds import Space, dump

DEMO = Path(__file__).parents[2] / "configs" / "lab-demo.toml"


def dumps(lab: Lab) -> dict[str, list[str]]:
    """Give what the kernel of each host holds."""
    return {node: dump(Space(lab.netns(node))) for node in ("a", "b", "c", "d", "e")}


@both_modes
async def test_curl_through_the_firewall_and_the_python_box(make_lab: MakeLab) -> None:
    async with make_lab(DEMO) as lab:
        for address, shown in (("10.0.4.4", "10.0.4.4"), ("fd00:4::4", "[fd00:4::4]")):
            assert lab.address("d", 6 if ":" in address else 4) == address
            assert lab.exec("a", ["curl", "-sS", "-m", "10", f"http://{shown}/"]).stdout == "Hello from d.\n"
        async with dysco.connect(lab.socket("b")) as agent:
            boxes = {session.box for session in await agent.sessions()}
        assert boxes == {"firewall"}
        counters = lab.exec("b", ["nft", "list", "counters"]).stdout
        packets = dict(re.findall(r"counter (\w+) {\s+packets (\d+)", counters))
        assert packets.keys() == {"web", "refused"}
        assert int(packets["web"]) >= 2  # a SYN that is repeated counts again
        assert packets["refused"] == "0"
        seen = (lab.directory / "c" / "counter.txt").read_text()
        assert "> 10.0.4.4:80: begins" in seen
        assert "> [fd00:4::4]:80: begins" in seen
        # The server sees the client's own addresses.
        until(
            "the server does not tell of both", lambda: len(log_of(lab, "d", "access.log").splitlines()) == 2
        )
        access = log_of(lab, "d", "access.log")
        assert [line.split()[0] for line in access.splitlines()] == ["10.0.1.1", "fd00:1::1"]


@both_modes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_agent_leaves_its_host_as_it_was(make_lab: MakeLab, number: signal.Signals) -> None:
    lab = make_lab(DEMO)
    lab.up(agents=False)
    before = dumps(lab)
    agents = {node: lab.start_agent(node) for node in before}
    lab.wait_for_agents()
    assert lab.exec("a", ["curl", "-sS", "-m", "10", "http://10.0.4.4/"]).stdout == "Hello from d.\n"
    assert all(now != before[node] for node, now in dumps(lab).items())
    for node, agent in agents.items():
        os.kill(lab.agent_pid(node), number)
        agent.wait(20)
        if number == signal.SIGKILL:
            config = str(lab.directory / node / "host.toml")
            lab.exec(node, [sys.executable, "-m", "dysco.cli", "tun", "down", "--config", config])
    now, then = without_counters(dumps(lab)), without_counters(before)
    for node in before:
        assert now[node] == then[node]


def without_counters(dumps: dict[str, list[str]]) -> dict[str, list[str]]:
    """Leave out what the firewall and its connection tracking counted."""
    counter = re.compile(r"\s+packets \d+ bytes|.*/nf_conntrack_count =")
    return {node: [line for line in lines if not counter.match(line)] for node, lines in dumps.items()}
