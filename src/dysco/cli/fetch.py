"""Asks a running agent, through the client.

What it answers (see `dysco.views`) is what `--json` prints; tables, drawings and the dashboard are made from the
same, so that nothing can be seen in one and not in the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from dysco.errors import TimedOutError

if TYPE_CHECKING:
    from dysco.client import Dysco

T = TypeVar("T")

ANSWER_S: Final = 10.0  # seconds; an agent that is alive answers in milliseconds
LIST_S: Final = 120.0  # likewise for all sessions, of which there may be a million


def ask(socket: Path | None, question: Callable[[Dysco], Awaitable[T]], timeout_s: float = ANSWER_S) -> T:
    """Connect, put one question, and give the answer.

    Raises NoAgentError if nobody listens there, TimedOutError, and what the agent answers with.
    """

    async def run() -> T:
        from dysco.client import connect

        try:
            async with asyncio.timeout(timeout_s), connect(socket) as agent:
                return await question(agent)
        except TimeoutError:
            raise TimedOutError(f"the agent did not answer within {timeout_s:g} s") from None

    return asyncio.run(run())
