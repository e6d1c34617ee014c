"""The map between a stream and what a box has made of it: nothing is acknowledged too early or repeated too little."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dysco.service.boundary import Boundaries

PARTS = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 40)) | st.integers(1, 20).map(lambda size: (size, size)),
    min_size=1,
    max_size=8,
)


def build(parts: list[tuple[int, int]]) -> Boundaries:
    """A map that begins at 1000."""
    made = Boundaries(1000)
    for taken, given_ in parts:
        made.add(taken, given_)
    return made


@given(parts=PARTS, data=st.data())
def test_what_is_missing_is_asked_for(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    made = build(parts)
    missing = data.draw(st.integers(1000, made.out_end))
    acked = made.in_acked(missing)
    if missing == made.out_end:
        assert acked == made.in_end
        return
    assert acked < made.in_end
    # The sender repeats from what is acknowledged on, by at least one byte: the missing one is among that.
    assert made.out_from(acked) <= missing < made.out_to(acked + 1)


@given(parts=PARTS, data=st.data())
def test_a_sack_block_never_hides_a_hole(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    made = build(parts)
    start = data.draw(st.integers(1000, made.out_end))
    end = data.draw(st.integers(1000, made.out_end))
    found = made.in_sacked(start, end)
    if found is None:
        return
    low, high = found
    assert 1000 <= low < high <= made.in_end
    # What the sender still repeats, before and behind the block, covers what the block does not.
    assert made.out_to(low) >= start
    assert made.out_from(high) <= end


@given(parts=PARTS, data=st.data())
def test_forgetting_changes_no_answer(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    made, other = build(parts), build(parts)
    position = data.draw(st.integers(1000, made.out_end))
    other.forget(position)
    assert (other.in_end, other.out_end, other.delta) == (made.in_end, made.out_end, made.delta)
    for one in range(position, made.out_end + 1):
        assert other.in_acked(one) == made.in_acked(one)
    for one in range(made.in_acked(position), made.in_end + 1):
        assert other.out_to(one) == made.out_to(one)
        assert max(other.out_from(one), position) == max(made.out_from(one), position)


def test_an_unchanged_stream_needs_one_segment() -> None:
    made = Boundaries(5)
    for _ in range(1000):
        made.add(1448, 1448)
        made.forget(made.out_end - 700)
    assert len(made) == 1
    assert made.delta == 0


@given(parts=PARTS)
def test_positions_outside_are_shifted(parts: list[tuple[int, int]]) -> None:
    made = build(parts)
    assert made.out_from(990) == made.out_to(990) == made.in_acked(990) == 990
    assert made.out_from(made.in_end + 7) == made.out_end + 7
    assert made.out_to(made.in_end + 7) == made.out_end + 7
    assert made.in_sacked(990, 1000) is None
