"""`dysco tun` where no kernel is asked: what it refuses, what it stops, what it cleans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli import fakes
from dysco.cli import tun
from dysco.errors import ExitStatus

if TYPE_CHECKING:
    from cli.conftest import FakeAgent, Run


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Give a host.toml whose run directory and socket are in tmp_path."""
    file = tmp_path / "host.toml"
    keys = '[keys]\nca = "ca.pem"\ncertificate = "a.pem"\nkey = "a.key"\n'
    places = f'run_directory = "{tmp_path}/run"\nsocket = "{tmp_path}/a.sock"\n'
    file.write_text(f'[agent]\nname = "a"\n{places}{keys}')
    return file


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--detach"]])
def test_a_wrong_configuration_starts_nothing(dysco: Run, tmp_path: Path, more: list[str]) -> None:
    file = tmp_path / "host.toml"
    file.write_text('[agent]\nname = "a"\n[tun]\nmtu = 99\n')
    status, out, err = dysco("tun", "up", "--config", str(file), *more)
    assert (status, out) == (ExitStatus.USAGE, "")
    assert "tun.mtu: 99 is below 576" in err
    status, _, err = dysco("tun", "up", "--config", str(tmp_path / "no.toml"), *more)
    assert status == ExitStatus.USAGE
    assert "cannot be read" in err


def test_status(agent: FakeAgent, dysco: Run) -> None:
    assert "tun with offload" in dysco("tun", "status")[1]
    assert json.loads(dysco("tun", "status", "--json")[1])["pid"] == fakes.PID
    agent.there = False
    assert dysco("tun", "status")[0] == ExitStatus.NO_AGENT


def test_down_stops_the_agent_that_the_file_names(agent: FakeAgent, dysco: Run, host: Path) -> None:
    status, out, _ = dysco("tun", "down", "--config", str(host))
    assert (status, out) == (0, "1 agent down\n")
    assert agent.stops == 1
    assert set(agent.sockets) == {host.parent / "a.sock"}


def test_down_without_an_agent_cleans_all_the_same(agent: FakeAgent, dysco: Run, host: Path) -> None:
    agent.there = False
    journal = host.parent / "run" / "sessions.journal"
    journal.parent.mkdir()
    journal.write_bytes(b"what an agent that was killed has left")
    status, out, _ = dysco("tun", "down", "--config", str(host), "--json")
    assert (status, json.loads(out)["left"]) == (0, [])
    assert not journal.exists()
    assert agent.stops == 0


def test_down_takes_every_agent_that_left_a_journal(
    agent: FakeAgent, dysco: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tun, "RUN", tmp_path)
    assert dysco("tun", "down")[1] == "0 agents down\n"


def test_an_agent_that_does_not_stop_is_a_time_out(
    agent: FakeAgent, dysco: Run, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(*, for_good: bool) -> None:
        """Say yes and go on."""

    monkeypatch.setattr(agent, "stop", deaf)
    monkeypatch.setattr(tun, "STOP_S", 0.0)
    status, _, err = dysco("tun", "down", "--config", str(host))
    assert status == ExitStatus.TIMED_OUT
    assert "did not stop" in err
