"""`dysco proxy`: what is shown of proxies, what is asked of the agent, and the status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli import fakes
from cli.conftest import FakeAgent, Run
from dysco.errors import ExitStatus


def report(moved: int, failed: int, left: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": "end",
        "box": "balancer",
        "moved": moved,
        "failed": failed,
        "left": left,
        "after_s": 0.25,
        **more,
    }


def test_proxies_are_listed_with_their_pairs(agent: FakeAgent, dysco: Run) -> None:
    status, out, _ = dysco("proxy", "list")
    lines = [line.rstrip() for line in out.splitlines()]
    assert status == ExitStatus.DONE
    assert lines[0] == "balancer (haproxy), remove = chosen, drained: 2 pairs, 1 may leave it; it has left 7"
    assert lines[1].split() == ["client", "server", "added", "may", "leave", "why"]
    cells = [fakes.SESSION, fakes.B_C, "+47 -3", "yes", "HAProxy only passes data on"]
    assert " ".join(cells) in [" ".join(line.split()) for line in lines]
    assert "\x1b" not in out
    assert lines[-2:] == [
        "other (generic), remove = never: 0 pairs, 0 may leave it; it has left 0",
        "  cannot be asked: nobody listens on port 9000",
    ]


def test_json_is_what_the_agent_says(agent: FakeAgent, dysco: Run) -> None:
    shown = json.loads(dysco("proxy", "list", "--json")[1])
    assert shown == [one.plain() for one in fakes.PROXIES]


def test_no_proxies(agent: FakeAgent, dysco: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "PROXIES", [])
    assert dysco("proxy", "list")[1] == "there is no [[proxy]] in this agent's configuration\n"


def test_an_empty_proxy(agent: FakeAgent, dysco: Run) -> None:
    agent.items = [report(3, 0, 0, empty=True)]
    status, out, err = dysco("proxy", "drain", "balancer", "--timeout", "2m")
    assert (status, err) == (ExitStatus.DONE, "")
    assert out.endswith("balancer is empty: 3 sessions have left it in 0.25 s\n")
    assert agent.asked == [("drain_proxy", {"proxy": "balancer", "timeout": 120.0})]


def test_sessions_that_stay(agent: FakeAgent, dysco: Run) -> None:
    agent.items = [report(1, 0, 2, reasons={"TLS ends here": 2})]
    status, out, err = dysco("proxy", "drain", "balancer")
    assert (status, err) == (
        ExitStatus.TIMED_OUT,
        "dysco: balancer: 2 sessions are still with it after 0.2 s\n",
    )
    assert "2 stay: TLS ends here" in out
    agent.items = [report(1, 1, 0, reasons={"d: no timestamps": 1})]
    status, out, err = dysco("proxy", "drain", "balancer")
    assert (status, err) == (ExitStatus.REFUSED, "dysco: balancer: 1 sessions could not leave it\n")
    assert "1 stays: d: no timestamps" in out


def test_undrain(agent: FakeAgent, dysco: Run) -> None:
    assert dysco("proxy", "undrain", "balancer")[1] == "balancer stays in its sessions again\n"
    assert dysco("proxy", "undrain", "other")[1] == "other was not drained\n"
    said = json.loads(dysco("proxy", "undrain", "balancer", "--json")[1])
    assert said == {"proxy": "balancer", "was_drained": True}
