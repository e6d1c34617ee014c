"""Asks a running agent, through the client, and turns what it says into plain values.

Plain values (dictionaries, lists, text, numbers) are what `--json` prints; tables, drawings and the dashboard
are made from the same, so that nothing can be seen in one and not in the other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dysco.errors import TimedOutError

if TYPE_CHECKING:
    from dysco.client import Dysco

T = TypeVar("T")

ANSWER_S: Final = 10.0  # seconds; an agent that is alive answers in milliseconds


def ask(socket: Path | None, question: Callable[[Dysco], Awaitable[T]], timeout_s: float = ANSWER_S) -> Any:
    """Connect, put one question, and give the answer as plain values.

    Raises NoAgentError if nobody listens there, TimedOutError, and what the agent answers with.
    """

    async def run() -> T:
        from dysco.client import connect

        try:
            async with asyncio.timeout(timeout_s), connect(socket) as agent:
                return await question(agent)
        except TimeoutError:
            raise TimedOutError(f"the agent did not answer within {timeout_s:g} s") from None

    return plain(asyncio.run(run()))


def plain(value: Any) -> Any:
    """Turn records into what `json` can write: bytes in hexadecimal, enums by name, anything else as text."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str(value)
    if type(value) is bytes:
        return value.hex()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    return str(value)
