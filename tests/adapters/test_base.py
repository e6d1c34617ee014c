"""An adapter is a small class that a user can write."""

from __future__ import annotations

import pytest

from dysco.adapters import Adapter, Pair
from dysco.wire.tuples import FiveTuple

LEFT = FiveTuple.parse("[2001:db8::1]:40000 > [2001:db8::9]:80")
RIGHT = FiveTuple.parse("10.0.0.9:41000 > 10.0.0.2:80")


class Mine(Adapter):
    async def pairs(self) -> list[Pair]:
        return [Pair(LEFT, RIGHT, 47, 0, True, "it says so")]


async def test_an_adapter_needs_one_method() -> None:
    (pair,) = await Mine().pairs()
    assert (pair.left.family, pair.right.family, pair.added_right, pair.safe) == (6, 4, 47, True)


def test_it_cannot_do_without_it() -> None:
    with pytest.raises(TypeError, match="pairs"):
        Adapter()  # type: ignore[abstract]
