"""Each command's answer, each error's exit status, and JSON whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli import fakes
from dysco import errors
from dysco.errors import ExitStatus

if TYPE_CHECKING:
    from cli.conftest import FakeAgent, Run

HOST = """\
[agent]
name = "a"
[keys]
certificate = "a.pem"
key = "a.key"
ca = "ca.pem"
[[peer]]
name = "fw"
addresses = ["10.0.0.7"]
[[policy]]
name = "web"
match = "tcp dst port 80"
hops = ["fw"]
"""
ASKING = (["sessions"], ["chains"], ["peers"], ["metrics"], ["events"], ["reload"], ["top", "--once"])
WITH_JSON = ("sessions", "chains", "peers", "events", "reload")


def test_tables(agent: FakeAgent, dysco: Run) -> None:
    status, out, err = dysco("sessions")
    assert (status, err) == (0, "")
    assert fakes.SESSION in out
    status, out, _ = dysco("peers")
    assert status == 0
    assert "10.0.2.2" in out
    status, out, _ = dysco("metrics")
    assert (status, out) == (0, "dysco_sessions 1\n")


def test_json_is_what_the_agent_said(agent: FakeAgent, dysco: Run) -> None:
    assert json.loads(dysco("sessions", "--json")[1]) == [fakes.AT_A.plain()]
    assert json.loads(dysco("peers", "--json")[1]) == [peer.plain() for peer in fakes.PEERS]
    lines = dysco("events", "--json")[1].splitlines()
    assert [json.loads(line) for line in lines] == [event.plain() for event in fakes.EVENTS]


def test_chains_of_several_agents(agent: FakeAgent, dysco: Run) -> None:
    agent.by_socket = {
        "a.sock": ("A", [fakes.AT_A]),
        "b.sock": ("B", [fakes.AT_B]),
        "c.sock": ("C", [fakes.AT_C]),
        "d.sock": ("D", [fakes.AT_D]),
    }
    with_all = ("--with", "c.sock", "--with", "b.sock", "--with", "d.sock")
    status, out, _ = dysco("--socket", "a.sock", "chains", *with_all)
    assert status == 0
    assert "A ══ B (fw) ══ C (tap) ══ D" in out
    (one,) = json.loads(dysco("--socket", "a.sock", "chains", "--json", *with_all)[1])
    assert one["chain_id"] == fakes.CHAIN_ID
    assert [said["agent"] for said in one["agents"]] == ["A", "C", "B", "D"]


def test_the_socket_that_was_named_is_asked(
    agent: FakeAgent, dysco: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dysco("sessions")
    dysco("--socket", "/tmp/x.sock", "sessions")
    monkeypatch.setenv("DYSCO_SOCKET", "/tmp/y.sock")
    dysco("sessions")
    assert agent.sockets == [None, Path("/tmp/x.sock"), Path("/tmp/y.sock")]


def test_events_for_people(agent: FakeAgent, dysco: Run) -> None:
    assert dysco("events", "-f")[1].splitlines() == [
        "12:00:01.250  peer_up  peer=B",
        f"12:00:02.000  session_opened  chain_id=3f2a91c0  session={fakes.SESSION}",
    ]


def test_chains_of_one_state(agent: FakeAgent, dysco: Run) -> None:
    assert "A ══ B" in dysco("chains", "--state", "established")[1]
    assert dysco("chains", "--state", "time-wait")[1] == "no chains\n"


def test_reload_shows_the_difference(agent: FakeAgent, dysco: Run) -> None:
    assert dysco("reload")[1] == "tun.mtu: 1500 -> 1400 (needs a restart)\n"
    status, out, _ = dysco("reload", "--dry-run")
    assert status == 0
    assert out.endswith("nothing was changed (--dry-run)\n")
    assert agent.reloads == [False, True]


def test_top_prints_a_frame(agent: FakeAgent, dysco: Run) -> None:
    status, out, _ = dysco("top", "--once")
    assert status == 0
    assert out.startswith("dysco top  A  up 3m07s")
    assert "malformed" in out
    assert "session_opened" in out


@pytest.mark.parametrize("command", ASKING)
def test_without_an_agent_it_is_exit_3(agent: FakeAgent, dysco: Run, command: list[str]) -> None:
    agent.there = False
    status, out, err = dysco(*command)
    assert (status, out) == (ExitStatus.NO_AGENT, "")
    assert err == "dysco: no agent answers at /run/dysco/A.sock\n"


@pytest.mark.parametrize("command", WITH_JSON)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.DyscoError("x"), 1),
        (errors.ConfigError("x"), 2),
        (errors.NoAgentError("x"), 3),
        (errors.PermissionDeniedError("x"), 4),
        (errors.RemoteError("x"), 5),
        (errors.TimedOutError("x"), 6),
        (PermissionError(13, "Permission denied", "x"), 4),
        (ConnectionResetError(104, "Connection reset by peer"), 1),
    ],
)
def test_every_error_has_its_status_and_its_json(
    agent: FakeAgent, dysco: Run, command: str, error: Exception, status: int
) -> None:
    agent.error = error
    got, out, err = dysco(command, "--json")
    assert got == status
    assert err.startswith("dysco: ")
    assert "Traceback" not in err
    assert json.loads(out)["error"]["exit_status"] == status
    got, out, err = dysco(command)
    assert (got, out) == (status, "")


def test_a_defect_is_shown_as_one(agent: FakeAgent, dysco: Run) -> None:
    agent.error = KeyError("no such thing")
    with pytest.raises(KeyError):
        dysco("sessions")


@pytest.mark.parametrize("arguments", [["frobnicate"], ["sessions", "--frob"], ["check"], ["keys", "issue"]])
def test_wrong_usage_is_exit_2(dysco: Run, arguments: list[str]) -> None:
    status, out, err = dysco(*arguments)
    assert (status, out) == (ExitStatus.USAGE, "")
    assert "Usage: dysco" in err
    status, out, _ = dysco(*arguments, "--json")
    assert status == ExitStatus.USAGE
    assert json.loads(out)["error"]["exit_status"] == 2


def test_check(dysco: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(HOST)
    bad.write_text('[agent]\nname = "a"\n[tun]\nmtu = 99\nofload = true\n')
    status, out, err = dysco("check", str(good))
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].endswith("good.toml: good: agent a, 1 peer, 0 boxes, 1 policy")
    status, out, err = dysco("check", str(bad))
    assert (status, out) == (ExitStatus.USAGE, "")
    assert f"{bad}:4:1: tun.mtu: 99 is below 576" in err
    assert f"{bad}:5:1: tun.ofload: unknown key; did you mean 'offload'?" in err
    status, out, _ = dysco("check", str(bad), "--json")
    answer = json.loads(out)
    assert (status, answer["ok"]) == (ExitStatus.USAGE, False)
    assert [(one["line"], one["key"]) for one in answer["findings"]] == [(4, "tun.mtu"), (5, "tun.ofload")]
    assert json.loads(dysco("check", str(good), "--json")[1])["ok"] is True


def test_explain_by_a_file(dysco: Run, tmp_path: Path) -> None:
    host = tmp_path / "host.toml"
    host.write_text(HOST)
    status, out, _ = dysco("explain", "tcp 10.0.0.1:1234 > 10.0.0.9:80", "-c", str(host))
    assert status == 0
    assert "policy   web" in out
    assert "10.0.0.7" in out
    answer = json.loads(dysco("explain", "10.0.0.1:1 > 10.0.0.9:81", "-c", str(host), "--json")[1])
    assert answer["policy"] is None
    status, _, err = dysco("explain", "10.0.0.1 > 10.0.0.9:81", "-c", str(host))
    assert status == ExitStatus.USAGE
    assert "ADDRESS:PORT" in err


def test_explain_by_the_agent(agent: FakeAgent, dysco: Run) -> None:
    assert dysco("explain", "[2001:db8::1]:1 > [2001:db8::2]:80")[1] == (
        "session  tcp [2001:db8::1]:1 > [2001:db8::2]:80\n"
    )


def test_version(dysco: Run) -> None:
    assert dysco("version")[1].startswith("dysco ")
    assert set(json.loads(dysco("version", "--json")[1])) == {"dysco", "python", "kernel"}


def test_help_names_every_command_and_the_exit_status(dysco: Run) -> None:
    status, out, _ = dysco("--help")
    assert status == 0
    commands = "tun check explain reload sessions chains peers events metrics top keys lab version"
    for name in commands.split():
        assert f"  {name} " in out
    assert "3 no agent" in out


def test_help_loads_nothing_heavy() -> None:
    """What takes long to import is imported by the command that needs it."""
    heavy = {"rich", "pydantic", "lark", "cryptography", "OpenSSL", "pyroute2", "uvloop", "dpkt"}
    program = "import sys\nfrom dysco.cli.app import run\nrun(['--help'])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.splitlines()[-1].split()) == set()
