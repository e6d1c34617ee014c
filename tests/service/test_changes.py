"""How a change of one session ends that was given up: whether there was still something to be changed."""

from __future__ import annotations

from typing import Any

import pytest

from dysco.protocol.chain import FacingInfo, SessionInfo, key_of
from dysco.service.changes import ChainChanges, Outcome, Run, Terms
from dysco.wire.tuples import FiveTuple

SESSION = FiveTuple.parse("tcp 10.0.0.1:1234 > 10.0.0.9:80")


def info(state: str, number: int = 0) -> SessionInfo:
    facing = FacingInfo(None, SESSION, 0, b"")
    return SessionInfo(
        bytes(16), number, "first", state, SESSION, SESSION, "p", None, facing, None, 0.0, 0, 0
    )


class Owner:
    """An agent with some sessions; it is its own core."""

    name = "a"

    def __init__(self, *infos: SessionInfo) -> None:
        self.infos = infos
        self.core: Any = self

    def session(self, key: bytes, now: float) -> SessionInfo | None:
        return next((one for one in self.infos if key_of(one) == key), None)

    def now(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("infos", "outcome"),
    [
        ((info("time-wait"),), "over"),
        ((info("time-wait", 1), info("half-closed")), "aborted"),
        ((info("reset"),), "aborted"),
        ((), "aborted"),
    ],
)
async def test_a_change_that_fails_is_over_only_if_both_ends_have_closed(
    infos: tuple[SessionInfo, ...], outcome: str
) -> None:
    said: list[dict[str, Any]] = []

    async def tell(one: dict[str, Any]) -> None:
        said.append(one)

    async def fail(run: Run) -> Outcome:
        return Outcome("aborted", "b", "the new path does not carry packets")

    owner: Any = Owner(*infos)
    ended = await ChainChanges(owner).run(info("established"), tell, Terms(), fail)
    assert (ended.outcome, ended.is_good) == (outcome, outcome == "over")
    assert (said[-1]["kind"], said[-1]["phase"]) == ("end", outcome)
