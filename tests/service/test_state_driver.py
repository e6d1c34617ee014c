"""Every question for state is answered, whatever a box does, and nothing is left when the agent stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dysco.errors import LocalError
from dysco.protocol.events import StateArrived, StateWanted
from dysco.service import state_driver
from dysco.service.state import NotReadyError
from dysco.service.state_driver import StateDriver
from dysco.wire.tuples import FiveTuple

V4 = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")
RIGHT = FiveTuple.parse("192.0.2.1:99 > 10.0.0.9:80")
WANTED = StateWanted(b"key", 5, "box", V4, RIGHT)
ARRIVED = StateArrived(b"key", 5, "box", V4, RIGHT, b"state")


class Owner:
    """Stands for the agent and its core; a look at its clock makes a second pass."""

    def __init__(self) -> None:
        self.core: Any = self
        self.answers: list[tuple[object, ...]] = []
        self.answered = asyncio.Event()
        self.clock = 0.0

    def now(self) -> float:
        self.clock += 1.0
        return self.clock

    def transmit(self) -> None:
        self.answered.set()

    def state_exported(self, key: bytes, request: int, data: bytes | None, now: float, reason: str) -> None:
        self.answers.append(("exported", key, request, data, reason))

    def state_installed(self, key: bytes, request: int, done: bool, now: float, reason: str) -> None:
        self.answers.append(("installed", key, request, done, reason))


class Mover:
    """Does what the test says, once for each call."""

    def __init__(self, *steps: Callable[[], bytes | None]) -> None:
        self.steps = list(steps)
        self.calls: list[tuple[object, ...]] = []

    async def export(self, session: FiveTuple, right: FiveTuple) -> bytes | None:
        self.calls.append((session, right))
        return (self.steps.pop(0) if len(self.steps) > 1 else self.steps[0])()

    async def install(self, session: FiveTuple, right: FiveTuple, state: bytes) -> None:
        self.calls.append((session, right, state))
        self.steps[0]()


def fails(error: Exception) -> Callable[[], bytes | None]:
    def step() -> bytes | None:
        raise error

    return step


async def answer(mover: Mover | None, event: StateWanted | StateArrived) -> tuple[object, ...]:
    owner = Owner()
    driver = StateDriver(owner, {} if mover is None else {"box": mover})
    driver.hear(event)
    await asyncio.wait_for(owner.answered.wait(), 10)
    await driver.close()
    assert len(owner.answers) == 1
    assert owner.answers[0][1:3] == (b"key", 5)
    return (owner.answers[0][0], *owner.answers[0][3:])


async def test_state_is_given_and_put_in_with_both_tuples() -> None:
    mover = Mover(lambda: b"state")
    assert await answer(mover, WANTED) == ("exported", b"state", "")
    assert await answer(mover, ARRIVED) == ("installed", True, "")
    assert mover.calls == [(V4, RIGHT), (V4, RIGHT, b"state")]


async def test_what_cannot_be_has_a_reason() -> None:
    nothing, broken = Mover(lambda: None), Mover(fails(LocalError("broken")))
    assert await answer(nothing, WANTED) == ("exported", None, "there is no state to move")
    assert await answer(broken, WANTED) == ("exported", None, "broken")
    assert await answer(broken, ARRIVED) == ("installed", False, "broken")
    assert await answer(None, WANTED) == ("exported", None, 'box box has state = "none"')
    assert await answer(None, ARRIVED) == ("installed", False, 'box box has state = "none"')
    defect = Mover(fails(KeyError("ours")))
    assert await answer(defect, WANTED) == ("exported", None, "internal error: KeyError")
    assert await answer(defect, ARRIVED) == ("installed", False, "internal error: KeyError")


async def test_a_box_that_is_not_ready_is_asked_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_driver, "_AGAIN_S", 0)
    busy = fails(NotReadyError("busy"))
    later = Mover(busy, lambda: b"now")
    assert await answer(later, WANTED) == ("exported", b"now", "")
    assert len(later.calls) == 2
    never = Mover(busy)
    assert await answer(never, WANTED) == ("exported", None, "busy")
    assert len(never.calls) == 2


async def test_what_is_under_way_ends_with_the_agent() -> None:
    owner, begun = Owner(), asyncio.Event()

    class Hanging(Mover):
        async def export(self, session: FiveTuple, right: FiveTuple) -> bytes | None:
            begun.set()
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    driver = StateDriver(owner, {"box": Hanging()})
    driver.hear(WANTED)
    await asyncio.wait_for(begun.wait(), 10)
    await driver.close()
    assert owner.answers == []
    assert len(asyncio.all_tasks()) == 1
