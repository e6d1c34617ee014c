"""Chains set up, changed and torn down under loss, repetition, reordering, partitions and restarts, by seeds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dysco.sim.__main__ import first_of, judged, show
from dysco.sim.scenario import Verdict, run

REGRESSIONS = (
    18, 23, 90, 148, 258, 1134, 1615, 1739, 1795447304818, 1795447305337, 1795452150268, 1795452151574,
    1795474325107, 1795481065768, 1795481071773, 144918684111035,
)  # fmt: skip
SEEDS = "4000:6000"


@pytest.mark.slow
def test_streams_are_equal_and_everything_comes_to_rest() -> None:
    # What fails is named by its seed, and replays; `python -m dysco.sim --fresh N` takes seeds that nobody has run.
    command = [sys.executable, "-m", "dysco.sim", "--seeds", SEEDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_failed_once(seed: int) -> None:
    assert run(seed).faults == []


def test_a_seed_replays_exactly() -> None:
    assert run(7, record=True).dialogue == run(7, record=True).dialogue


def test_a_seed_that_fails_is_shown_with_its_dialogue_and_how_to_run_it_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dialogue = [f"line {number}" for number in range(1000)]
    show(Verdict(77, ["session 0: the client lacks bytes"]), dialogue, proxy=False)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [
        "seed 77: session 0: the client lacks bytes",
        "  again: python -m dysco.sim --seeds 77 --dialogue",
    ]
    assert shown[-1] == "  line 999"
    assert len(shown) < 500


def test_a_text_has_seeds_of_its_own() -> None:
    assert first_of("one tree") == first_of("one tree")
    assert abs(first_of("one tree") - first_of("another")) > 20_000


def test_a_defect_that_ends_a_seed_is_a_fault_of_that_seed() -> None:
    def broken(seed: int, *, record: bool) -> Verdict:
        raise KeyError(seed)

    verdict = judged(broken, 7)
    assert verdict.seed == 7
    assert "KeyError: 7" in verdict.faults[0]
