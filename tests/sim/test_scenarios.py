"""Chains set up, changed and torn down under loss, repetition, reordering, partitions and restarts, by seeds."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from dysco.sim import proxied
from dysco.sim.__main__ import first_of, judged, kind_of, mixed, show
from dysco.sim.scenario import Scenario, Verdict, run

REGRESSIONS = (
    18, 23, 90, 148, 258, 1134, 1615, 1739, 1795447304818, 1795447305337, 1795452150268, 1795452151574,
    1795474325107, 1795481065768, 1795481071773, 144918684111035,
)  # fmt: skip
"""From before hosts could move or die: so they mean what they have meant."""
RESTLESS = (
    6, 21, 28, 122, 292, 5245, 30757, 31068, 700477, 701410, 701998, 702274, 702355, 704180, 1795940455265,
    12099169198416, 182340532212654, 183408403419819, 32850184918390, 176957595788499, 69558881708902,
)  # fmt: skip
SEEDS = "4000:4400"


@pytest.mark.slow
def test_streams_are_equal_and_everything_comes_to_rest() -> None:
    # What fails is named by its seed, and replays; `python -m dysco.sim --fresh N` takes seeds that nobody has run.
    command = [sys.executable, "-m", "dysco.sim", "--seeds", SEEDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_failed_once(seed: int) -> None:
    assert run(seed, restless=False).faults == []


@pytest.mark.parametrize("seed", RESTLESS)
def test_a_seed_that_failed_once_with_hosts_that_move_and_die(seed: int) -> None:
    assert run(seed).faults == []


def test_hosts_move_and_die_in_some_seeds_and_the_rest_of_a_seed_is_as_without() -> None:
    calm, restless = (Scenario(7, restless=one) for one in (False, True))
    assert [host.name for host in calm.hosts] == [host.name for host in restless.hosts]
    assert [pair.upload for pair in calm.pairs] == [pair.upload for pair in restless.pairs][: len(calm.pairs)]
    seen = "\n".join(line for seed in range(12) for line in run(seed, record=True, restless=True).dialogue)
    assert " moves to " in seen
    assert " dies" in seen
    assert " comes back" in seen


def test_a_seed_replays_exactly() -> None:
    assert run(7, record=True).dialogue == run(7, record=True).dialogue


def test_a_seed_that_fails_is_shown_with_its_dialogue_and_how_to_run_it_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dialogue = [f"line {number}" for number in range(1000)]
    show(Verdict(77, ["session 0: the client lacks bytes"]), dialogue)
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


def test_of_mixed_seeds_one_in_eight_has_a_proxy_and_is_that_of_the_proxies() -> None:
    kinds = Counter(kind_of(seed) for seed in range(4000))
    assert kinds == {"": 3500, "proxy": 500}
    for seed, alone in ((7, run), (8, proxied.run)):
        assert mixed(seed, record=True).dialogue == alone(seed, record=True).dialogue
