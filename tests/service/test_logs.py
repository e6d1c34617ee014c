"""Logs: a constant name and fields, whole lines whatever is in them, and never a wait for a slow reader."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from dysco.service import logs
from dysco.service.logs import log

Written = Callable[..., list[str]]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """Log what a function logs, in a style and at a level; give the lines."""
    before = (logs.LOGGER.handlers[:], logs.LOGGER.level, logs.LOGGER.propagate)

    def lines(style: str, say: Callable[[], None], level: str = "info") -> list[str]:
        listener = logs.start(style, level)
        say()
        listener.stop()
        return capsys.readouterr().err.splitlines()

    yield lines
    logs.LOGGER.handlers[:], logs.LOGGER.propagate = before[0], before[2]
    logs.LOGGER.setLevel(before[1])


def test_a_line_for_people(written: Written) -> None:
    [line] = written("text", lambda: log("peer_up", peer="b", mtu=1500, note="it is up"))
    when, rest = line.split(" ", 1)
    assert datetime.fromisoformat(when).utcoffset() is not None
    assert rest == 'info peer_up peer=b mtu=1500 note="it is up"'
    [line] = written("text", lambda: log("agent_stopped", logging.WARNING))
    assert line.endswith(" warning agent_stopped")


def test_an_object_for_programs(written: Written) -> None:
    [line] = written("json", lambda: log("peer_up", peer="ü", mtu=1500, of=[1, None], what={1}))
    record = json.loads(line)
    assert list(record)[:3] == ["time", "level", "event"]
    assert (record["level"], record["event"]) == ("info", "peer_up")
    assert (record["peer"], record["mtu"], record["of"], record["what"]) == ("ü", 1500, [1, None], "{1}")
    assert "ü" in line


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(
    "evil", ["a\nb error forged=1", "a\x1b[2J", 'a" forged="1', "a\rb", "\u2028x", "\x9b2J", "\ud800"]
)
def test_what_strangers_write_stays_in_its_field(written: Written, style: str, evil: str) -> None:
    lines = written(style, lambda: log("syn_refused", reason=evil))
    assert len(lines) == 1
    assert lines[0].isprintable()
    if style == "json":
        assert json.loads(lines[0])["reason"] == evil
    else:
        _, _, shown = lines[0].partition(" reason=")
        assert json.loads(shown) == evil


@pytest.mark.parametrize("style", ["text", "json"])
def test_only_what_is_loud_enough(written: Written, style: str) -> None:
    def say() -> None:
        log("quiet", logging.DEBUG)
        log("loud", logging.WARNING)

    assert len(written(style, say, "warning")) == 1
    assert len(written(style, say, "debug")) == 2


def boom() -> None:
    try:
        raise KeyError("gone")
    except KeyError:
        logs.LOGGER.exception("internal_error", extra={"fields": {"while_handling": "packet"}})


def test_a_defect_comes_with_its_traceback_and_its_constant_name(written: Written) -> None:
    [line] = written("json", boom)
    record = json.loads(line)
    assert (record["event"], record["level"], record["while_handling"]) == (
        "internal_error",
        "error",
        "packet",
    )
    assert record["exception"].startswith("Traceback")
    assert record["exception"].endswith("KeyError: 'gone'")
    first, *more = written("text", boom)
    assert first.endswith(" error internal_error while_handling=packet")
    assert more[0].startswith("Traceback")
    assert more[-1] == "KeyError: 'gone'"


def test_a_reader_that_is_too_slow_loses_lines_and_holds_nobody_up(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_LIMIT", 10)
    gate, reading = threading.Event(), threading.Event()
    real = logs._Text.format

    def slow(self: Any, record: logging.LogRecord) -> str:
        reading.set()
        gate.wait(10)
        return real(self, record)

    monkeypatch.setattr(logs._Text, "format", slow)

    def say() -> None:
        log("first")
        assert reading.wait(10)
        for _ in range(100):
            log("more")
        threading.Timer(0.01, gate.set).start()  # while the listener is being stopped

    assert 1 < len(written("text", say)) <= 12
