"""A command in the background: it answers, or it has said why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dysco.cli import detach
from dysco.errors import ExitStatus, TimedOutError


def test_its_last_words_and_its_status_come_back(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "agent.log"
    missing = tmp_path / "no.toml"
    with pytest.raises(detach.DetachedError, match="cannot be read") as caught:
        detach.start(["check", str(missing)], log, lambda: False)
    assert caught.value.exit_status == ExitStatus.USAGE
    assert str(missing) in log.read_text()


def test_one_that_ends_without_an_error_was_never_up(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.write_text("words of an earlier run\n")
    with pytest.raises(detach.DetachedError, match=r"^dysco ") as caught:
        detach.start(["version"], log, lambda: False)
    assert caught.value.exit_status == ExitStatus.FAILED
    assert log.read_text().startswith("words of an earlier run\n")


def test_it_returns_when_the_agent_answers(tmp_path: Path) -> None:
    pid = detach.start(["version"], tmp_path / "agent.log", lambda: True)
    assert os.waitpid(pid, 0)[0] == pid


def test_one_that_never_answers_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detach, "START_S", 0.0)
    with pytest.raises(TimedOutError, match="did not answer"):
        detach.start(["version"], tmp_path / "agent.log", lambda: False)
