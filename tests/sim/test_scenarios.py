"""Chains set up and torn down under loss, repetition and reordering, a thousand and more seeds."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from dysco.sim.scenario import run

SEEDS = 1500
REGRESSIONS = (18, 148, 258)


@pytest.mark.slow
def test_streams_are_equal_and_everything_comes_to_rest() -> None:
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        bad = [verdict for verdict in pool.map(run, range(SEEDS), chunksize=16) if verdict.faults]
    assert not bad, [(verdict.seed, verdict.faults) for verdict in bad]


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_failed_once(seed: int) -> None:
    assert run(seed).faults == []


def test_a_seed_replays_exactly() -> None:
    assert run(7, record=True).dialogue == run(7, record=True).dialogue
