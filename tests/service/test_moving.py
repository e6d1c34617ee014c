"""What a host that has moved tells its peers, where none can move to, and when it gives up to move a session."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from dysco.errors import ConfigError
from dysco.protocol.chain import FacingInfo, SessionInfo
from dysco.protocol.changing import ChangeInfo
from dysco.service.changes import Outcome, Run, Terms
from dysco.service.moving import Moving
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Change, Hops, Moved
from dysco.wire.tuples import FiveTuple


def test_where_a_host_is_goes_with_each_keepalive_once_it_has_moved() -> None:
    moving = Moving(cast(Any, None))
    assert moving.standing() == []
    moving.addresses = {4: bytes((10, 77, 1, 2)), 16: bytes(15) + b"\1"}
    assert moving.standing() == [Moved(0, Hops((Hop(bytes((10, 77, 1, 2))), Hop(bytes(15) + b"\1"))))]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1", "::ffff:10.77.1.2"]
)
def test_no_host_moves_to_where_others_cannot_reach_it(address: str) -> None:
    async def tell(_: dict[str, Any]) -> None:
        """There is nothing to be told."""

    with pytest.raises(ConfigError, match="cannot reach"):
        asyncio.run(Moving(cast(Any, None)).move(tell, [address], Terms()))


SESSION = FiveTuple.parse("tcp 10.0.0.1:1234 > 10.0.0.9:80")
CHANGE = ChangeInfo("right", "two paths", (), SESSION, None, 0, 0)


class Owner:
    """An agent with one session, whose left end it moves, and whose left neighbour answers as told.

    reached: how often it is looked in vain whether the neighbour is reached. answers: the neighbour's, and whether a
    change goes on here then.
    """

    def __init__(self, reached: int, *answers: tuple[Outcome | None, bool]) -> None:
        facing = FacingInfo("a", SESSION, 9, b"")
        self.info = SessionInfo(
            bytes(16), 1, "last", "established", SESSION, SESSION, "p", None, facing, None, 0.0, 0, 0
        )
        self.answers = list(answers)
        self.reached = reached
        self.reasons: list[str] = []
        self.seconds = 0.0  # that each request takes
        self.time = 0.0
        self.name = "b"
        self.config: Any = self
        self.agent = self.core = self.channel = self.changes = self.config

    def now(self) -> float:
        return self.time

    def session(self, key: bytes, now: float) -> SessionInfo:
        return self.info

    def subsessions(self, key: bytes) -> tuple[tuple[bool, FiveTuple, int], ...]:
        return ((False, SESSION, 9),) if self.answers else ()

    def has_moved(self, peer: str) -> bool:
        self.reached -= 1
        return self.reached < 0

    def send(self, peer: str, message: Any) -> bool:
        return False

    def has_closed(self, info: SessionInfo) -> bool:
        return False

    async def request(self, run: Run, change: Change, *, rightward: bool, wait: bool) -> Outcome:
        self.reasons.append(run.reason)
        self.time += self.seconds
        ended, changing = self.answers.pop(0)
        self.info = replace(self.info, changes=(CHANGE,) if changing else ())
        return ended or Outcome("done")


async def moved(owner: Owner) -> Outcome:
    moving = Moving(cast(Any, owner))
    moving.left = frozenset((SESSION.dst,))

    async def tell(said: dict[str, Any]) -> None:
        """Nobody listens."""

    run = Run(owner.info, tell, owner.now, 0.0)
    return await moving._session(run, Terms(), moving.left)


async def test_why_it_had_to_wait_for_an_association_is_not_why_the_change_takes_long() -> None:
    owner = Owner(2, (None, False))
    assert (await moved(owner)).outcome == "done"
    assert owner.reasons == [""]


UNKNOWN = Outcome("refused", "a", "not found")


@pytest.mark.parametrize(
    ("answers", "outcome", "left"),
    [
        (((UNKNOWN, False), (UNKNOWN, False), (None, False)), "over", 1),
        (((UNKNOWN, True), (UNKNOWN, True), (UNKNOWN, False), (None, False)), "done", 0),
        (((Outcome("refused", "a", "busy"), False), (UNKNOWN, False), (None, False)), "done", 0),
    ],
)
async def test_a_session_that_its_neighbour_does_not_know_is_over_unless_a_change_goes_on_here(
    answers: tuple[tuple[Outcome | None, bool], ...], outcome: str, left: int
) -> None:
    owner = Owner(0, *answers)
    assert (await moved(owner)).outcome == outcome
    assert len(owner.answers) == left


async def test_a_session_that_its_client_never_answered_is_over_after_ten_seconds() -> None:
    why = "not ready: the SYN-ACK has not been acknowledged yet"
    owner = Owner(0, *[(Outcome("refused", "a", why), False)] * 5)
    owner.seconds = 4.0
    assert await moved(owner) == Outcome("over", "a", why)
    assert len(owner.answers) == 2
