"""An agent that stops resets its sessions: so many at a time, those that are silent again, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from dysco.service import resets


class Agent:
    """An agent whose sessions are gone when they were asked often enough, but for the silent ones."""

    def __init__(self, count: int, silent: Iterable[int] = (), deaf: int = 0) -> None:
        self.core = self
        self.sessions = {number.to_bytes(4) for number in range(count)}
        self.silent = {number.to_bytes(4) for number in silent}
        self.deaf = deaf  # how often each has to be asked beyond once
        self.asked: list[bytes] = []
        self.most = 0
        self.closed = asyncio.Event()
        self.hurried = False
        self.begun = asyncio.Event()

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def transmit(self) -> None:
        """Nothing lies in a queue here."""

    def session_keys(self) -> list[bytes]:
        return sorted(self.sessions)

    def has(self, key: bytes) -> bool:
        return key in self.sessions

    def reset(self, keys: Iterable[bytes], now: float) -> None:
        some = list(keys)
        self.asked += some
        self.begun.set()
        self.most = max(self.most, len(some))
        for key in some:
            if key not in self.silent and self.asked.count(key) > self.deaf:
                asyncio.get_running_loop().call_soon(self.answer, key)

    def abandon(self, key: bytes, peer: str, now: float) -> bool:
        if peer != "b" or key in self.silent:
            return False
        self.asked.append(key)
        return True

    def answer(self, key: bytes) -> None:
        self.sessions.discard(key)
        self.closed.set()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resets, "ANSWER_S", 0.01)


async def test_all_are_reset_so_many_at_a_time() -> None:
    agent = Agent(3 * resets.AT_ONCE)
    assert await resets.reset_all(agent) == 0  # type: ignore[arg-type]
    assert not agent.sessions
    assert agent.most == resets.AT_ONCE
    assert len(agent.asked) == 3 * resets.AT_ONCE


async def test_who_does_not_answer_is_asked_again_and_then_counted() -> None:
    agent = Agent(5, silent=[2], deaf=1)
    assert await resets.reset_all(agent) == 1  # type: ignore[arg-type]
    assert agent.session_keys() == [(2).to_bytes(4)]
    assert agent.asked.count((2).to_bytes(4)) == resets.TRIES
    assert agent.asked.count((3).to_bytes(4)) == 2


async def test_it_does_not_take_longer_than_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resets, "LONGEST_S", 0.0)
    agent = Agent(7)
    assert await resets.reset_all(agent) == 7  # type: ignore[arg-type]
    assert agent.asked == []


async def test_who_is_in_a_hurry_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resets, "ANSWER_S", 3600.0)
    monkeypatch.setattr(resets, "LONGEST_S", 3600.0)
    agent = Agent(2 * resets.AT_ONCE, silent=range(2 * resets.AT_ONCE))
    running = asyncio.ensure_future(resets.reset_all(agent))  # type: ignore[arg-type]
    await agent.begun.wait()
    agent.hurried = True
    agent.closed.set()
    assert await running == 2 * resets.AT_ONCE


@pytest.mark.parametrize("peer", ["b", "c"])
async def test_all_that_went_by_an_agent_that_has_gone_is_ended(
    monkeypatch: pytest.MonkeyPatch, peer: str
) -> None:
    monkeypatch.setattr(resets, "_PAUSE_S", 0.0)
    agent = Agent(300, silent=range(100))
    left = resets.LeftBehind(agent)  # type: ignore[arg-type]
    left.by(peer)
    await left.settle()
    assert agent.asked == (agent.session_keys()[100:] if peer == "b" else [])


async def test_an_agent_that_stops_itself_leaves_the_rest() -> None:
    agent = Agent(300)
    left = resets.LeftBehind(agent)  # type: ignore[arg-type]
    left.by("b")
    await asyncio.sleep(0)
    await left.close()
    asked = len(agent.asked)
    assert 0 < asked < 300
    left.by("b")
    await left.settle()
    assert len(agent.asked) == asked
