"""Every cell of the failure matrix in docs/failures.md ends as the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco.protocol.events import ChangeMoved
from dysco.protocol.switching import BEGUN_AGAIN
from dysco.sim.link import Fault
from protocol.living import Living
from sim.failures import EVENTS, STEPS, Cell

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
AGAIN = "PYTHONPATH=tests python -m sim.failures prints the tables anew"


def written() -> dict[tuple[str, str], str]:
    """What the page says, by step and event."""
    found, events = {}, list[str]()
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            events = []
        elif not events:
            events = cells[1:] if cells[0] == "step" else []
        elif cells[0] in STEPS:
            found.update({(cells[0], event): said for event, said in zip(events, cells[1:], strict=True)})
    return found


@pytest.mark.parametrize("event", EVENTS)
def test_each_step_ends_as_the_page_says(event: str) -> None:
    said = written()
    for step in STEPS:
        cell = Cell(step, event)
        assert cell.faults() == [], f"{event} at {step}"
        assert cell.outcome_of() == said[step, event], f"{event} at {step}; {AGAIN}"


def test_the_page_has_no_other_cells() -> None:
    assert set(written()) == {(step, event) for step in STEPS for event in EVENTS}


def test_who_has_asked_hears_that_the_new_path_is_silent() -> None:
    cell = Cell("ack", "death of the new box")
    assert cell.happened
    said = [
        (event.phase, event.by)
        for event in cell.network.hosts["d"].events
        if isinstance(event, ChangeMoved) and "the new path is silent" in event.reason
    ]
    assert said == [("stuck", "a"), ("aborted", "a")]


@pytest.mark.parametrize("step", ["requestLock", "syn at the right anchor", "path handshake, SYN-ACK"])
def test_who_has_asked_hears_that_the_left_anchor_has_begun_again(step: str) -> None:
    cell = Cell(step, "restart of the left anchor")
    assert cell.happened
    assert cell.outcome("d", cell.request) == ("refused", "e", BEGUN_AGAIN)


def test_a_right_anchor_says_that_the_left_one_has_begun_again() -> None:
    live = Living()
    live.talk()
    live.network.link("control", "c", "a").fault = Fault(delay_s=0.05)
    request = live.change("d", "a", "c")
    live.wait(0.02)
    live.hosts["a"].restart()
    live.talk()
    assert live.outcome("d", request) == ("aborted", "c", BEGUN_AGAIN)
    live.change("d", "a", "c")
    live.talk()
    assert live.chain() == "acd"
