"""`dysco lab` as far as it needs no namespaces; the rest is in tests/netns."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dysco.errors import ExitStatus

if TYPE_CHECKING:
    from cli.conftest import Run

DEMO = str(Path(__file__).parents[2] / "configs" / "lab-demo.toml")


def test_graph(dysco: Run) -> None:
    status, out, _ = dysco("lab", "graph", DEMO)
    assert status == 0
    assert "a ══ b/firewall ══ c/counter" in out
    assert json.loads(dysco("lab", "graph", DEMO, "--json")[1])["name"] == "demo"


def test_a_wrong_file(dysco: Run, tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('[lab]\nname = "x"\nabuot = "y"\n')
    status, out, err = dysco("lab", "up", str(file))
    assert (status, out) == (ExitStatus.USAGE, "")
    assert "abuot" in err
    assert dysco("lab", "status", str(tmp_path / "no.toml"))[0] == ExitStatus.USAGE


def test_what_another_command_is_told_is_not_ours(dysco: Run) -> None:
    status, out, err = dysco("lab", "exec", "no.toml", "a", "ip", "--json")
    assert status == ExitStatus.USAGE
    assert out == ""
    assert err


def test_two_dashes_before_a_command_are_not_the_command(dysco: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(argv)
        return subprocess.CompletedProcess(argv, 4)

    monkeypatch.setattr(subprocess, "run", run)
    assert dysco("lab", "exec", DEMO, "a", "--", "ip", "-br", "link")[0] == 4
    assert dysco("lab", "exec", DEMO, "a", "ip", "-br", "link")[0] == 4
    assert ran[0] == ran[1]
    assert ran[0][-3:] == ["ip", "-br", "link"]
    assert dysco("lab", "exec", DEMO, "a", "--")[::2] == (ExitStatus.USAGE, "dysco: no command for a\n")
