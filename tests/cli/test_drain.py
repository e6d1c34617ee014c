"""`dysco drain` and `dysco undrain`: what is asked for, what is said at the end, and the status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.conftest import FakeAgent, Run
from dysco.errors import ExitStatus


def report(moved: int, failed: int, left: int, **more: Any) -> dict[str, Any]:
    return {"kind": "progress", "box": "b/firewall", "moved": moved, "failed": failed, "left": left, **more}


EMPTY = [report(0, 0, 3), report(3, 0, 0, kind="end", after_s=0.25, empty=True)]


def test_an_empty_box_is_said_to_be_empty(agent: FakeAgent, dysco: Run) -> None:
    agent.items = EMPTY
    status, out, err = dysco("drain", "firewall", "--to", "c", "--timeout", "2m")
    assert (status, err) == (ExitStatus.DONE, "")
    assert out.endswith("b/firewall is empty: 3 sessions have left it in 0.25 s\n")
    assert agent.asked == [("drain", {"box": "firewall", "to": "c", "timeout": 120.0})]


def test_json_is_a_report_a_line(agent: FakeAgent, dysco: Run) -> None:
    agent.items = EMPTY
    lines = [json.loads(line) for line in dysco("drain", "firewall", "--json")[1].splitlines()]
    assert [(line["kind"], line["left"], line["empty"]) for line in lines] == [
        ("progress", 3, False),
        ("end", 0, True),
    ]


def test_sessions_that_stay_are_counted_with_their_reason(agent: FakeAgent, dysco: Run) -> None:
    agent.items = [report(1, 2, 0, kind="end", reasons={"d: a may not change this session": 2})]
    status, out, err = dysco("drain", "firewall")
    assert status == ExitStatus.REFUSED
    assert "2 stay: d: a may not change this session" in out
    assert err == "dysco: b/firewall: 2 sessions could not leave\n"


def test_a_box_that_is_not_empty_in_time(agent: FakeAgent, dysco: Run) -> None:
    agent.items = [report(1, 0, 4, kind="end")]
    status, _, err = dysco("drain", "firewall", "--timeout", "5")
    assert (status, err) == (ExitStatus.TIMED_OUT, "dysco: b/firewall: 4 sessions are still there after 5\n")


@pytest.mark.parametrize("time", ["soon", "0", "-1s", "2h"])
def test_a_time_that_is_none(agent: FakeAgent, dysco: Run, time: str) -> None:
    assert dysco("drain", "firewall", "--timeout", time)[0] == ExitStatus.USAGE
    assert agent.asked == []


def test_undrain(agent: FakeAgent, dysco: Run) -> None:
    assert dysco("undrain", "firewall")[1] == "firewall gets new sessions again\n"
    assert dysco("undrain", "other")[1] == "other was not drained\n"
    assert json.loads(dysco("undrain", "firewall", "--json")[1]) == {"box": "firewall", "was_drained": True}
