"""Answers the core when it asks for the state of a box, or has one for it.

    core --StateWanted--> mover.export --> core.state_exported
    core --StateArrived--> mover.install --> core.state_installed

Every question is answered, with a reason if there is nothing to give. A box that is not ready is asked again for a
while. What ends with the session or with the agent is given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, Final, Protocol

from dysco.errors import DyscoError
from dysco.protocol.agent import Agent
from dysco.protocol.events import StateArrived, StateWanted
from dysco.service.logs import log
from dysco.service.state import NotReadyError, StateMover

_PATIENCE_S: Final = 2.0  # DESIGN section 7: a box in the middle of something delays up to 2 s
_AGAIN_S: Final = 0.05
_AT_ONCE: Final = 16  # ours: commands and threads that run at the same time


class Owner(Protocol):
    """The agent, as far as it is needed here."""

    core: Agent

    def now(self) -> float: ...

    def transmit(self) -> None: ...


class StateDriver:
    """The questions that are being answered. movers: by the box's name."""

    def __init__(self, owner: Owner, movers: Mapping[str, StateMover]) -> None:
        self._owner = owner
        self._movers = movers
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def hear(self, event: StateWanted | StateArrived) -> None:
        """Begin to answer an event of the core."""
        work = self._export(event) if isinstance(event, StateWanted) else self._install(event)
        self._spawn(work)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _export(self, event: StateWanted) -> None:
        state, reason = None, "there is no state to move"
        try:
            state = await self._ask(event)
        except DyscoError as error:
            reason = _reason(error)
        except Exception as error:  # a defect of ours must not leave the anchor without an answer
            logging.getLogger("dysco").exception("state_failed")
            reason = f"internal error: {type(error).__name__}"
        _tell("state_exported", event, "" if state is not None else reason, len(state or b""))
        owner = self._owner
        owner.core.state_exported(
            event.key, event.request, state, owner.now(), "" if state is not None else reason
        )
        owner.transmit()

    async def _ask(self, event: StateWanted) -> bytes | None:
        mover = self._mover(event.box)
        until = self._owner.now() + _PATIENCE_S
        while True:
            try:
                async with self._turn:
                    return await mover.export(event.session, event.right)
            except NotReadyError:
                if self._owner.now() >= until:
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def _install(self, event: StateArrived) -> None:
        reason = ""
        try:
            async with self._turn:
                await self._mover(event.box).install(event.session, event.right, event.data)
        except DyscoError as error:
            reason = _reason(error)
        except Exception as error:  # as above
            logging.getLogger("dysco").exception("state_failed")
            reason = f"internal error: {type(error).__name__}"
        _tell("state_installed", event, reason, len(event.data))
        owner = self._owner
        owner.core.state_installed(event.key, event.request, not reason, owner.now(), reason)
        owner.transmit()

    def _mover(self, box: str) -> StateMover:
        mover = self._movers.get(box)
        if mover is None:
            raise DyscoError(f'box {box} has state = "none"')
        return mover


def _reason(error: DyscoError) -> str:
    return str(error) or type(error).__name__


def _tell(name: str, event: StateWanted | StateArrived, reason: str, size: int) -> None:
    level = logging.WARNING if reason else logging.INFO
    more = {"reason": reason} if reason else {"bytes": size}
    log(name, level, box=event.box, session=str(event.session), **more)
