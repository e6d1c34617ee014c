"""The search for the path's MTU, against every limit, with losses, on a clock of its own."""

from __future__ import annotations

import random

import pytest

from dysco.transport.mtu import Search


def run(
    search: Search, limit: int, rng: random.Random | None = None, delay_s: float = 0.05
) -> tuple[int, float]:
    """Answer the probes as a path of that limit does; gives the probes sent and the time taken."""
    now, sent, delay_s = 0.0, 0, 0.05
    answers: list[tuple[float, int]] = []
    while not search.done:
        for size in search.sizes(now):
            sent += 1
            if size <= limit and (rng is None or rng.random() > 0.2):
                answers.append((now + delay_s, size))
        deadline = search.next_deadline()
        assert deadline is not None or search.done
        answers.sort(reverse=True)
        if answers and deadline is not None and answers[-1][0] <= deadline:
            now, size = answers.pop()
            search.passed(size)
        elif deadline is not None:
            now = max(now, deadline)
        assert now < 60
    return sent, now


@pytest.mark.parametrize("most", [576, 577, 1500, 9000, 16449])
def test_every_limit_is_found_exactly(most: int) -> None:
    limits = {576, most, *random.Random(most).choices(range(576, most + 1), k=60)}
    for limit in limits:
        search = Search(576, most)
        sent, took = run(search, limit)
        assert search.found == limit
        assert sent < 150
        assert took < 5


def test_the_device_s_own_size_takes_one_probe() -> None:
    search = Search(576, 1500)
    assert run(search, 1500) == (1, 0.05)


def test_losses_cost_time_and_rarely_bytes() -> None:
    wrong = 0
    for seed in range(200):
        search = Search(1280, 9000)
        run(search, 1420, random.Random(seed))
        assert search.found is not None
        assert search.found <= 1420
        wrong += search.found < 1400
    assert wrong < 10


def test_a_path_that_carries_nothing_gives_nothing() -> None:
    search = Search(1280, 1500)
    run(search, 0)
    assert search.found is None


def test_the_own_kernel_s_refusal_shortens_the_search() -> None:
    search = Search(576, 9000)
    now = 0.0
    while not search.done:
        sizes = search.sizes(now)
        for size in sizes:
            if size > 1500:
                search.refused(size)
            else:
                search.passed(size)
    assert search.found == 1500


def test_answers_that_make_no_sense_are_ignored() -> None:
    search = Search(576, 1500)
    search.sizes(0.0)
    for size in (0, 575, 1501, 65535):
        search.passed(size)
    assert not search.answered
    assert not search.done
