"""The link emulator's decisions: repeatable by seed, independent of time, and as often as was asked."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dysco.lab.emulator import Impairment, Shaper, netem

BAD = Impairment(delay_s=0.01, jitter_s=0.004, loss=0.1, duplicate=0.05, reorder=0.05)


def fates(seed: int, times: list[float], it: Impairment = BAD, direction: int = 0) -> list[int]:
    shaper = Shaper(it, seed, direction)
    return [len(shaper.push(100, at)) for at in times]


@given(st.integers(), st.lists(st.floats(0, 1000), min_size=1, max_size=60))
def test_what_happens_to_a_packet_depends_on_its_number_alone(seed: int, times: list[float]) -> None:
    assert fates(seed, sorted(times)) == fates(seed, [float(n) for n in range(len(times))])


def test_directions_and_seeds_differ() -> None:
    times = [float(n) for n in range(300)]
    assert fates(1, times) != fates(2, times)
    assert fates(1, times) != fates(1, times, direction=1)


def test_shares() -> None:
    shaper = Shaper(BAD, 7, 0)
    for number in range(10_000):
        shaper.push(100, float(number))
    counts = shaper.counts
    assert 900 < counts["lost"] < 1100
    assert 380 < counts["duplicated"] < 520
    assert 380 < counts["reordered"] < 520
    assert counts["passed"] + counts["lost"] == 10_000


@given(st.integers(), st.lists(st.floats(0, 0.01), min_size=2, max_size=50))
def test_jitter_alone_does_not_reorder(seed: int, gaps: list[float]) -> None:
    shaper = Shaper(Impairment(delay_s=0.01, jitter_s=0.01), seed, 0)
    now, arrivals = 0.0, []
    for gap in gaps:
        now += gap
        (at,) = shaper.push(100, now)
        assert at >= now
        arrivals.append(at)
    assert arrivals == sorted(arrivals)


def test_a_reordered_packet_is_passed_by_later_ones() -> None:
    shaper = Shaper(Impairment(reorder=0.3), 3, 0)
    arrivals = [shaper.push(100, n / 1e4)[0] for n in range(200)]
    assert arrivals != sorted(arrivals)


def test_the_rate_and_the_queue_are_bounds() -> None:
    shaper = Shaper(Impairment(rate=8000.0, queue=3), 1, 0)  # 1000 bytes a second
    assert [shaper.push(500, 0.0) for _ in range(4)] == [[0.5], [1.0], [1.5], []]
    assert shaper.counts["overflow"] == 1
    assert shaper.push(500, 0.6) == [2.0]


def test_the_kernel_is_asked_for_the_same() -> None:
    assert " ".join(netem(replace(BAD, rate=1e6), "eth0")) == (
        "tc qdisc replace dev eth0 root netem limit 1000 delay 10000us 4000us loss 10% duplicate 5% reorder 5% "
        "rate 1000000bit"
    )
    assert "delay" not in netem(Impairment(loss=0.5), "eth0")
