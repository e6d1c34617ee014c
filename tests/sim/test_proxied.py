"""Proxies that end TCP are taken out of live sessions, by seeds: streams stay equal, and a proxy sees ordinary ends."""

from __future__ import annotations

from collections import Counter

import pytest

from dysco.sim.proxied import run

REGRESSIONS = (
    1028, 1213, 1339, 5003, 300044, 300149, 400157, 400448, 402947, 501192, 700141, 700205, 702830, 704471, 710237,
    730175, 732457, 750642, 1795956092572, 1795957692396, 54617315145416, 183408403417544,
    126039728569488,
    78846669638360,  # a gap before what the proxy's socket had got: it never came to the FIN
)  # fmt: skip


def test_streams_are_equal_and_the_relay_sees_an_ordinary_end() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(24):
        verdict = run(seed)
        assert verdict.faults == [], f"seed {seed}"
        outcomes += verdict.outcomes
    assert outcomes["done"] >= 10, outcomes


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_failed_once(seed: int) -> None:
    assert run(seed).faults == []
