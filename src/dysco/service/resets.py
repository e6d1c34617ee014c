"""An agent that stops resets its sessions: all of them, however many there are.

Each end is asked what it expects, and its answer is answered with the reset (`protocol.life`). So many answers at once
as a device's queue has room for; the rest of the sessions go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dysco.service.agent import AgentService

AT_ONCE: Final = 256  # sessions that are asked at a time: half of a device's queue
ANSWER_S: Final = 1.0  # ours: what the ends of a session have time for, each time that they are asked
TRIES: Final = 3
LONGEST_S: Final = 60.0  # ours: for all; service managers kill after 90
TURNS: Final = 2  # neighbours may begin new sessions all the time


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
