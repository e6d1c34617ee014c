"""A chain is drawn as far as it is known, in the order of its hops."""

from __future__ import annotations

import itertools

import pytest

from cli import fakes
from dysco.cli import chain
from dysco.views import Facing

STOPS = [
    chain.stop_of(name, said)
    for name, said in zip("ABCD", (fakes.AT_A, fakes.AT_B, fakes.AT_C, fakes.AT_D), strict=True)
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_any_order_of_answers_gives_the_same_chain(order: tuple[int, ...]) -> None:
    assert chain.in_order([STOPS[i] for i in order]) == STOPS


def test_one_agent_knows_its_neighbours() -> None:
    assert chain.line([STOPS[1]]) == "A ══ B (fw) ══ C"
    assert chain.drawing([STOPS[1]]) == ["A", f"│    {fakes.A_B}", "B (fw)", f"│    {fakes.B_C}", "C"]
    assert chain.line([]) == ""


def test_the_same_agent_twice() -> None:
    back = fakes.session(
        Facing("left", "C", "10.0.3.3:61007 > 10.0.2.2:61006"),
        Facing("right", "D", "10.0.2.2:61009 > 10.0.4.4:61008"),
        box="ids",
    )
    over = fakes.session(
        Facing("left", "B", fakes.B_C), Facing("right", "B", "10.0.3.3:61007 > 10.0.2.2:61006")
    )
    stops = [chain.stop_of("B", back), chain.stop_of("C", over), chain.stop_of("B", fakes.AT_B)]
    assert [stop.label for stop in chain.in_order(stops)] == ["B (fw)", "C", "B (ids)"]


def test_a_gap_is_drawn_as_one() -> None:
    shown = chain.drawing([STOPS[0], STOPS[3]])
    assert shown == ["A", f"│    {fakes.A_B}", f"│    {fakes.C_D}", "D"]


def test_a_subsession_with_itself_does_not_hang() -> None:
    loop = chain.Stop("X", left="1 > 2", right="1 > 2")
    assert chain.in_order([loop, loop]) == [loop, loop]
