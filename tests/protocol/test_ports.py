"""Pairs of ports: random, never twice, never the same from both sides, at rest before they come again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.protocol.ports import PortPool

LOW, HIGH = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"
RANGE = (61000, 65535)


def pool(
    local: bytes = LOW,
    remote: bytes = HIGH,
    *,
    ranges: tuple[tuple[int, int], tuple[int, int]] = (RANGE, RANGE),
    quarantine: float = 60.0,
    seed: int = 1,
) -> PortPool:
    return PortPool(local, remote, *ranges, quarantine, random.Random(seed).randbytes)


def test_a_hundred_thousand_live_pairs_to_one_neighbour_without_collision() -> None:
    one = pool()
    pairs = [one.allocate(0.0) for _ in range(100_000)]
    assert None not in pairs
    assert len(set(pairs)) == len(pairs) == len(one)


def test_two_agents_that_call_each_other_never_choose_the_same_tuple() -> None:
    left, right = pool(LOW, HIGH), pool(HIGH, LOW, seed=2)
    for _ in range(3000):
        mine, theirs = left.allocate(0.0), right.allocate(0.0)
        assert mine is not None
        assert theirs is not None
        assert mine[0] % 2 == 0
        assert theirs[1] % 2 == 1


def test_a_pair_rests_before_it_comes_again() -> None:
    one = pool(ranges=((61000, 61001), (61000, 61000)))
    assert one.allocate(0.0) == (61000, 61000)
    assert one.allocate(0.0) is None
    one.release(61000, 61000, 0.0)
    assert one.allocate(59.9) is None
    assert one.allocate(60.0) == (61000, 61000)


def test_a_pair_from_the_journal_is_not_given_out_and_a_range_may_move() -> None:
    one = pool(ranges=((61000, 61001), (61000, 61000)))
    one.claim(61000, 61000)
    assert one.allocate(0.0) is None
    one.aim((62000, 62000))
    assert one.allocate(0.0) == (61000, 62000)


def test_an_agent_that_is_its_own_neighbour_has_no_parity() -> None:
    one = pool(LOW, LOW)
    assert {pair[0] % 2 for pair in (one.allocate(0.0) for _ in range(64)) if pair} == {0, 1}


@given(
    st.integers(1024, 65530), st.integers(1, 5), st.integers(1024, 65530), st.integers(1, 5), st.booleans()
)
def test_ports_are_of_the_ranges(low: int, size: int, far: int, far_size: int, lower: bool) -> None:
    one = pool(*((LOW, HIGH) if lower else (HIGH, LOW)), ranges=((low, low + size), (far, far + far_size)))
    for _ in range(8):
        pair = one.allocate(0.0)
        if pair is not None:
            assert low <= pair[0] <= low + size
            assert far <= pair[1] <= far + far_size


@pytest.mark.parametrize("live", [0, 1000])
def test_opens_and_closes_never_collide_and_leave_nothing(live: int) -> None:
    one = pool(quarantine=1.0)
    kept = {one.allocate(0.0) for _ in range(live)}
    for step in range(20_000):
        pair = one.allocate(step * 0.001)
        assert pair is not None
        assert pair not in kept
        one.release(*pair, step * 0.001)
    one.expire(1e9)
    assert len(one) == live
