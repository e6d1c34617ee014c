"""`dysco doctor` at the command line: what the agent that runs here tells of itself and its peers, and the status."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest

from cli import fakes
from cli.conftest import FakeAgent, Run
from dysco.errors import ExitStatus, TimedOutError
from dysco.host import doctor
from dysco.host.doctor import Finding

WELL = Finding("kernel", "good", "Linux 6.12.1")
UP = fakes.PEERS[0]
OLDER = dataclasses.replace(fakes.PEERS[1], last_failure="it speaks version 1, we speak 2")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    found = [WELL]

    def look() -> Iterator[Finding]:
        yield from found

    monkeypatch.setattr(doctor, "machine", look)
    monkeypatch.setattr(doctor, "pinning", lambda run: Finding("bpffs", "good", f"{run} will do"))
    return found


def test_all_is_well(agent: FakeAgent, dysco: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "PEERS", [UP])
    status, out, _ = dysco("doctor")
    assert status == ExitStatus.DONE
    assert "ok    kernel: Linux 6.12.1\n" in out
    assert "ok    bpffs: /run/dysco will do\n" in out
    assert "ok    peer B: associated, and speaks our version\n" in out


@pytest.mark.parametrize(
    ("peer", "level", "remedy"),
    [
        (fakes.PEERS[1], "bad", "see that its agent runs"),
        (dataclasses.replace(fakes.PEERS[1], last_failure=None), "bad", "see that its agent runs"),
        (OLDER, "bad", "install one version of dysco on both hosts"),
        (dataclasses.replace(UP, mtu=1400), "note", "a larger MTU on the way is faster"),
    ],
)
def test_peers(
    agent: FakeAgent, dysco: Run, monkeypatch: pytest.MonkeyPatch, peer: object, level: str, remedy: str
) -> None:
    monkeypatch.setattr(fakes, "PEERS", [peer])
    status, out, _ = dysco("doctor", "--json")
    found = json.loads(out)
    last = found["findings"][-1]
    assert last["level"] == level
    assert remedy in last["remedy"]
    assert found["ok"] == (level != "bad")
    assert status == (ExitStatus.FAILED if level == "bad" else ExitStatus.DONE)


def test_no_agent_is_no_fault(agent: FakeAgent, dysco: Run) -> None:
    agent.there = False
    status, out, _ = dysco("doctor")
    assert status == ExitStatus.DONE
    assert "note  agent: none runs here\n      -> dysco tun up --config HOST.TOML\n" in out


def test_an_agent_that_does_not_answer(agent: FakeAgent, dysco: Run) -> None:
    agent.error = TimedOutError("the agent did not answer within 5 s")
    status, out, _ = dysco("doctor")
    assert status == ExitStatus.FAILED
    assert "look into its log" in out


def test_what_keeps_an_agent_from_working(agent: FakeAgent, dysco: Run, machine: list[Finding]) -> None:
    agent.there = False
    machine.append(Finding("tun", "bad", "/dev/net/tun: no such file", "modprobe tun"))
    status, out, _ = dysco("doctor")
    assert status == ExitStatus.FAILED
    assert "BAD   tun: /dev/net/tun: no such file\n      -> modprobe tun\n" in out
