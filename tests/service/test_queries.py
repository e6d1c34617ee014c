"""What the control socket is told of many sessions does not keep packets waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dysco.service import queries, report


async def test_other_work_goes_on_while_many_sessions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def sessions(now: float) -> Iterator[int]:
        for number in range(10 * queries._SLICE):
            told.append(number)
            yield number

    def said(number: int) -> SimpleNamespace:
        return SimpleNamespace(plain=lambda: {"number": number})

    monkeypatch.setattr(report, "session", said)
    agent = SimpleNamespace(core=SimpleNamespace(sessions=sessions), now=lambda: 0.0)
    answer = asyncio.ensure_future(queries.Queries(agent)._sessions())  # type: ignore[arg-type]
    steps = []
    while not answer.done():
        await asyncio.sleep(0)
        steps.append(len(told))
    assert [one["number"] for one in answer.result()] == told
    assert len(told) == 10 * queries._SLICE
    assert max(after - before for before, after in zip([0, *steps], steps, strict=False)) <= queries._SLICE
