"""The replay window against a set that remembers everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dysco.protocol.replay import WINDOW, ReplayWindow


@given(
    st.lists(st.one_of(st.integers(0, 200), st.integers(8000, 8400), st.integers(0, 1 << 64)), max_size=200)
)
def test_each_counter_of_the_window_counts_once(counters: list[int]) -> None:
    window = ReplayWindow()
    seen: set[int] = set()
    top = -1
    for counter in counters:
        expected = counter not in seen and counter > top - WINDOW
        assert window.accept(counter) is expected
        if expected:
            seen.add(counter)
            top = max(top, counter)


def test_the_edges_of_the_window() -> None:
    window = ReplayWindow()
    assert window.accept(WINDOW)
    assert not window.accept(0)
    assert window.accept(1)
    assert not window.accept(1)
    assert window.accept(5 * WINDOW)
    assert not window.accept(4 * WINDOW)
    assert window.accept(4 * WINDOW + 1)
