"""An agent that stops resets its sessions: all of them, however many there are.

Each end is asked what it expects, and its answer is answered with the reset (`protocol.life`). So many answers at once
as a device's queue has room for; the rest of the sessions go on meanwhile.

An agent in a hurry leaves sessions out, and a reset may be lost. So it tells its neighbours that nobody will take up
what is left, and each resets its part of it: nobody else would, for packets of an end beside the agent that has gone
come past the chain, and a middlebox that has not seen them drops their answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dysco.service.agent import AgentService

AT_ONCE: Final = 256  # sessions that are asked at a time: half of a device's queue
ANSWER_S: Final = 1.0  # ours: what the ends of a session have time for, each time that they are asked
TRIES: Final = 3
LONGEST_S: Final = 60.0  # ours: for all; service managers kill after 90
TURNS: Final = 2  # neighbours may begin new sessions all the time
_SLICE: Final = 64
_PAUSE_S: Final = 0.03  # ours, between two slices: some two thousand resets a second


async def reset_all(agent: AgentService) -> int:
    """Reset the sessions of an agent, and those that begin meanwhile; how many had an end that has not answered."""
    seen, silent, until = set[bytes](), 0, agent.now() + LONGEST_S
    for _ in range(TURNS):
        some = [key for key in agent.core.session_keys() if key not in seen]
        seen.update(some)
        silent += await _reset(agent, deque(some), until)
    return silent


async def _reset(agent: AgentService, waiting: deque[bytes], until: float) -> int:
    core, silent = agent.core, 0
    asked: dict[bytes, tuple[float, int]] = {}  # until when they may answer, and how often they were asked
    while (waiting or asked) and not agent.hurried and (now := agent.now()) < until:
        again = []
        for key, (due, tries) in list(asked.items()):
            if not core.has(key):
                del asked[key]
            elif now >= due:
                del asked[key]
                if tries < TRIES:
                    again.append((key, tries))
                else:
                    silent += 1
        room = min(len(waiting), AT_ONCE - len(asked) - len(again))
        some = [*again, *((waiting.popleft(), 0) for _ in range(room))]
        core.reset((key for key, _ in some), now)
        agent.transmit()
        asked.update((key, (now + ANSWER_S, tries + 1)) for key, tries in some if core.has(key))
        agent.closed.clear()
        if asked:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(until, next(iter(asked.values()))[0])):
                    await agent.closed.wait()
    return silent + len(waiting) + len(asked)


class LeftBehind:
    """Ends what agents that have gone for good have left of their sessions."""

    def __init__(self, agent: AgentService) -> None:
        self._agent = agent
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def by(self, peer: str) -> None:
        """Begin to end the sessions that went by this peer."""
        if self._closed:
            return
        task = asyncio.get_running_loop().create_task(self._end(peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, peer: str) -> None:
        agent = self._agent
        keys = iter(agent.core.session_keys())
        while some := list(itertools.islice(keys, _SLICE)):
            ended = sum(agent.core.abandon(key, peer, agent.now()) for key in some)
            agent.transmit()
            await asyncio.sleep(_PAUSE_S if ended else 0)

    async def settle(self) -> None:
        """Wait until all have been asked."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Leave the rest as it is, and what is told from now on: this agent stops itself."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await self.settle()
