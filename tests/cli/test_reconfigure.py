"""`dysco chain`: what is asked for, what is shown while it goes on, and the status that it ends with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli import fakes
from cli.conftest import FakeAgent, Run
from dysco.errors import ExitStatus

TERMS = {"session": "3f2a", "timeout": 30.0, "wait": True, "dry_run": False}


def said(kind: str, after_s: float, **fields: Any) -> dict[str, Any]:
    about = {"kind": kind, "chain_id": fakes.CHAIN_ID, "session": fakes.SESSION, "after_s": after_s}
    return {**about, **fields}


PLAN = said("plan", 0.001, before=["A", "B/fw", "D"], after=["A", "D"])
GOOD = [
    PLAN,
    said("phase", 0.002, phase="requested"),
    said("phase", 0.0105, phase="two paths"),
    said("end", 0.02, phase="done"),
]


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("insert 3f2a x", {"kind": "insert", "hops": ["x"], "after": ""}),
        ("insert 3f2a x --after B", {"kind": "insert", "hops": ["x"], "after": "B"}),
        ("remove 3f2a B", {"kind": "remove", "box": "B", "force": False}),
        ("remove 3f2a B --force", {"kind": "remove", "box": "B", "force": True}),
        ("replace 3f2a B x", {"kind": "replace", "box": "B", "hops": ["x"], "force": False, "state": "none"}),
        (
            "replace 3f2a B x --state freeze",
            {"kind": "replace", "box": "B", "hops": ["x"], "force": False, "state": "freeze"},
        ),
        ("set 3f2a B,x/ids", {"kind": "set", "hops": ["B", "x/ids"], "force": False}),
    ],
)
def test_what_is_asked_for(agent: FakeAgent, dysco: Run, words: str, fields: dict[str, Any]) -> None:
    agent.items = GOOD
    assert dysco("chain", *words.split())[0] == ExitStatus.DONE
    assert agent.asked == [("change", TERMS | fields)]


def test_no_hops_at_all_are_an_empty_word(agent: FakeAgent, dysco: Run) -> None:
    dysco("chain", "set", "dst port 80", "", "--timeout", "5", "--no-wait", "--dry-run")
    fields = {"session": "dst port 80", "kind": "set", "hops": [], "force": False}
    assert agent.asked == [("change", fields | {"timeout": 5.0, "wait": False, "dry_run": True})]


def test_phases_are_shown_with_their_times(agent: FakeAgent, dysco: Run) -> None:
    agent.items = GOOD
    status, out, err = dysco("chain", "remove", "3f2a", "B")
    assert (status, err) == (ExitStatus.DONE, "")
    assert out.splitlines() == [
        f"chain 3f2a91c0  tcp {fakes.SESSION}",
        "  now   A ══ B/fw ══ D",
        "  then  A ══ D",
        "  3f2a91c0       2.0 ms  requested",
        "  3f2a91c0      10.5 ms  two paths",
        "  3f2a91c0      20.0 ms  done.",
    ]


def test_json_is_an_object_a_line(agent: FakeAgent, dysco: Run) -> None:
    agent.items = GOOD
    lines = [json.loads(line) for line in dysco("chain", "remove", "3f2a", "B", "--json")[1].splitlines()]
    assert [line["kind"] for line in lines] == ["plan", "phase", "phase", "end"]
    assert lines[0]["before"] == ["A", "B/fw", "D"]
    assert lines[-1]["phase"] == "done"


@pytest.mark.parametrize(
    ("phase", "by", "reason", "status", "words"),
    [
        ("refused", "D", "A may not change this session", ExitStatus.REFUSED, "refused by D: A may not"),
        ("aborted", "B", "the new path was reset", ExitStatus.REFUSED, "aborted by B: the new path"),
        ("timed out", "D", "busy", ExitStatus.TIMED_OUT, "timed out by D: busy"),
        ("impossible", "A", "x is not on this chain", ExitStatus.FAILED, "impossible: x is not"),
    ],
)
def test_who_refused_and_why(
    agent: FakeAgent, dysco: Run, phase: str, by: str, reason: str, status: ExitStatus, words: str
) -> None:
    agent.items = [PLAN, said("end", 0.02, phase=phase, by=by, reason=reason)]
    found, out, err = dysco("chain", "remove", "3f2a", "B")
    assert found == status
    assert words in err
    assert f"{phase}.  by {by}: {reason}" in out


def test_several_sessions_are_counted(agent: FakeAgent, dysco: Run) -> None:
    refused = said("end", 0.03, phase="refused", by="D", reason="no")
    agent.items = [*GOOD, PLAN | {"chain_id": "aa" * 16}, refused | {"chain_id": "aa" * 16}, GOOD[-1]]
    status, out, _ = dysco("chain", "remove", "dst port 80", "B")
    assert status == ExitStatus.REFUSED
    assert out.splitlines()[-1] == "3 sessions: 2 done, 1 refused"


def test_reasons_of_other_hosts_do_not_write_on_terminals(agent: FakeAgent, dysco: Run) -> None:
    agent.items = [PLAN, said("end", 0.02, phase="refused", by="D", reason="\x1b[2Jgone")]
    assert "\x1b" not in dysco("chain", "remove", "3f2a", "B")[1]
