"""`dysco top`: asks the agent once a second, reads keys, and shows the dashboard's frames.

A process of its own: it speaks to the control socket like any other program, so that it costs the agent a few
answers a second, and outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dysco.cli import fetch, output
from dysco.cli.options import socket_of
from dysco.errors import DyscoError, NoAgentError

if TYPE_CHECKING:
    from dysco.cli.dashboard import Dashboard, Snapshot
    from dysco.client import Dysco

LOOK_S: Final = 1.0  # seconds between two snapshots
REST: Final = (
    9.0  # and as many times as long as one takes: a tenth of an agent's time, however many sessions it has
)
_KEYS: Final = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down", "k": "up", "j": "down"}


def top(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Watch sessions, rates, drops and events live."""
    socket = socket_of(context)
    if once:
        asyncio.run(_once(socket))
    else:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_live(socket))


async def _once(socket: Path | None) -> None:
    from dysco.cli.dashboard import Dashboard
    from dysco.client import connect

    board = Dashboard()
    async with asyncio.timeout(fetch.LIST_S), connect(socket) as agent:
        board.see(await snapshot(agent))
        async for event in agent.events(follow=False):
            board.add_event(event)
        await asyncio.sleep(LOOK_S / 4)  # rates need two looks
        board.see(await snapshot(agent))
    console = output.console(screen=True)
    console.print(board.frame(console.width, console.height), height=console.height)


async def snapshot(agent: Dysco) -> Snapshot:
    """Ask an agent for all that a frame shows but the events."""
    from dysco.cli.dashboard import Snapshot

    async with asyncio.timeout(fetch.ANSWER_S):
        status, peers = await agent.status(), await agent.peers()
    return Snapshot(time.monotonic(), status, await agent.sessions(), peers)


async def _live(socket: Path | None) -> None:
    from rich.live import Live

    from dysco.cli.dashboard import Dashboard

    board = Dashboard()
    changed = asyncio.Event()
    console = output.console(screen=True)
    with _keyboard() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(_watch(socket, board, changed))
            reader = group.create_task(_read_keys(keys, board, changed))
            while not reader.done():
                live.update(board.frame(console.width, console.height), refresh=True)
                # Once a second also without news: the window may have another size.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LOOK_S)
                changed.clear()
            watcher.cancel()


async def _watch(socket: Path | None, board: Dashboard, changed: asyncio.Event) -> None:
    """Keep the board up to date; an agent that goes away is waited for."""
    from dysco.client import connect

    while True:
        try:
            async with connect(socket) as agent, asyncio.TaskGroup() as group:
                group.create_task(_follow(agent, board, changed))
                while True:
                    began = time.monotonic()
                    async with asyncio.timeout(fetch.LIST_S):
                        board.see(await snapshot(agent))
                    changed.set()
                    await asyncio.sleep(max(LOOK_S, REST * (time.monotonic() - began)))
        except* (DyscoError, OSError, EOFError) as errors:
            first: BaseException = errors
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            board.lose("" if isinstance(first, (NoAgentError, EOFError)) else str(first))
        changed.set()
        await asyncio.sleep(LOOK_S)


async def _follow(agent: Dysco, board: Dashboard, changed: asyncio.Event) -> None:
    async for event in agent.events(follow=True):
        board.add_event(event)
        changed.set()
    raise EOFError


async def _read_keys(keys: AsyncIterator[str], board: Dashboard, changed: asyncio.Event) -> None:
    async for key in keys:
        if not board.press(key):
            break
        changed.set()
    changed.set()


@contextlib.contextmanager
def _keyboard() -> Iterator[AsyncIterator[str]]:
    """Read single keys while this lasts; without a terminal no key ever comes."""
    if not sys.stdin.isatty():
        yield _no_keys()
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield _keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _no_keys() -> AsyncIterator[str]:
    await asyncio.Event().wait()
    yield ""


async def _keys(descriptor: int) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    loop.add_reader(descriptor, lambda: arrived.put_nowait(os.read(descriptor, 64)))
    try:
        while data := await arrived.get():
            for key in split_keys(data.decode(errors="replace")):
                yield key
    finally:
        loop.remove_reader(descriptor)


def split_keys(text: str) -> Iterator[str]:
    """Name the keys in what a terminal sent: `up`, `down`, or the character itself."""
    while text:
        size = 3 if text[:3] in _KEYS else 1
        yield _KEYS.get(text[:size], text[:size])
        text = text[size:]
