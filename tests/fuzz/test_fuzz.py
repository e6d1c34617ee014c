"""The corpus and a bounded number of mutations of it, in each run; `tools/fuzz` does it for as long as one likes."""

from __future__ import annotations

import random

import pytest

from fuzz.corpus import found, seeds
from fuzz.mutate import mutate
from fuzz.targets import TARGETS

ROUNDS = 3000


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_was_found(name: str) -> None:
    for data in (*seeds(name), *found(name), b"", b"\0", b"\xff" * 100):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    rng = random.Random(name)
    pool = [*seeds(name), *found(name)]
    for number in range(ROUNDS):
        data = mutate(rng, pool)
        try:
            TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"round {number} of {name}: {data.hex()}") from error
