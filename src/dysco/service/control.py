"""The control socket: newline-delimited JSON over a Unix socket, requests with ids, answers and streams.

    {"id": 1, "do": "sessions"}                         -> {"id": 1, "answer": [...]}
    {"id": 2, "do": "events", "follow": true}           -> {"id": 2, "item": {...}} ... {"id": 2, "answer": null}
    {"id": 3, "do": "change", "kind": "remove", ...}    -> {"id": 3, "item": {...}} ... {"id": 3, "answer": {...}}
    {"id": 4, "do": "nonsense"}                         -> {"id": 4, "error": "...", "status": 2}

A reader that is too slow loses events, and is told how many; it never holds the agent up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from dysco.errors import DyscoError, ExitStatus, HostError, LocalError
from dysco.protocol.events import Event
from dysco.service import report

Do = Callable[..., Awaitable[Any]]
_LINE: Final = 1 << 20
_EVENTS_KEPT: Final = 1000
_EVENTS_AHEAD: Final = 10_000
_CLIENTS: Final = 64
_REQUESTS_AT_ONCE: Final = 64
_AHEAD: Final = 1 << 16  # bytes of lines that may wait for the end of a turn of the loop


class Events:
    """The last events, and who follows them. Most are never read, so they are rendered when they are."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, Event]] = deque(maxlen=_EVENTS_KEPT)
        self._followers: set[asyncio.Queue[dict[str, Any]]] = set()
        self._lost: dict[asyncio.Queue[dict[str, Any]], int] = {}

    @property
    def last(self) -> list[dict[str, Any]]:
        """The last events, oldest first."""
        return [report.event(event, at).plain() for at, event in self._kept]

    def add(self, happened: Event) -> None:
        """Tell everybody."""
        at = report.wall_clock()
        self._kept.append((at, happened))
        if not self._followers:
            return
        event = report.event(happened, at).plain()
        for queue in self._followers:
            if queue.full():
                self._lost[queue] = self._lost.get(queue, 0) + 1
                continue
            lost = self._lost.pop(queue, 0)
            if lost:
                queue.put_nowait({"event": "events_lost", "count": lost})
            queue.put_nowait(event)

    @contextlib.contextmanager
    def follow(self) -> Any:
        """Give a queue that gets every event from now on."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_EVENTS_AHEAD)
        self._followers.add(queue)
        try:
            yield queue
        finally:
            self._followers.discard(queue)
            self._lost.pop(queue, None)


class ControlServer:
    """Serves the commands of a table; `events` is built in. Those of `streams` get a function that sends an item."""

    def __init__(
        self,
        path: Path,
        commands: dict[str, Do],
        events: Events,
        streams: dict[str, Do] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """`before` is called before each command."""
        self.path = path
        self._commands = commands
        self._streams = streams or {}
        self._events = events
        self._before = before
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._ahead: dict[asyncio.StreamWriter, bytearray] = {}
        self._following: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; raises HostError if another agent does already."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            try:
                _, writer = await asyncio.open_unix_connection(str(self.path))
            except OSError:
                self.path.unlink(missing_ok=True)
            else:
                writer.close()
                raise HostError(f"{self.path}: another agent listens here")
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self.path), limit=_LINE)
        except OSError as error:
            raise HostError(f"{self.path}: {error.strerror}") from error
        finally:
            os.umask(before)

    async def close(self) -> None:
        """Stop listening and hang up."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._clients):
                self._flush(writer)
                writer.close()
            self._server = None
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _CLIENTS:
            writer.close()
            return
        self._clients.add(writer)
        try:
            async with asyncio.TaskGroup() as group:
                streams: set[asyncio.Task[None]] = set()
                ended = asyncio.Event()
                at_once = asyncio.Semaphore(_REQUESTS_AT_ONCE)
                while line := await self._line(reader):
                    await at_once.acquire()
                    task = group.create_task(self._one(line, writer, ended))
                    streams.add(task)
                    task.add_done_callback(streams.discard)
                    task.add_done_callback(lambda _: at_once.release())
                # Nobody asks any more, but answers may still be read; events would never end.
                ended.set()
                for task in streams & self._following:
                    task.cancel()
        except asyncio.CancelledError:
            pass
        finally:
            self._clients.discard(writer)
            self._flush(writer)
            writer.close()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        """The next request; empty if no more will come, or one that is too long."""
        try:
            return await reader.readline()
        except (OSError, ValueError):
            return b""

    async def _one(self, line: bytes, writer: asyncio.StreamWriter, ended: asyncio.Event) -> None:
        number: Any = None
        try:
            request = json.loads(line)
            number = request.pop("id", None)
            name = request.pop("do")
            self._before()
            if name == "events":
                await self._follow(number, bool(request.get("follow")), writer, ended)
                answer: Any = None
            elif name in self._commands:
                answer = await self._commands[name](**request)
            elif name in self._streams:

                async def tell(item: dict[str, Any]) -> None:
                    await self._say(writer, {"id": number, "item": item})

                answer = await self._streams[name](tell, **request)
            else:
                there_are = ", ".join(sorted({*self._commands, *self._streams, "events"}))
                raise LocalError(f"unknown command {name!r}; there are {there_are}")
            await self._say(writer, {"id": number, "answer": answer})
        except DyscoError as error:
            await self._say(writer, {"id": number, "error": str(error), "status": int(error.exit_status)})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            status = int(ExitStatus.USAGE)
            await self._say(writer, {"id": number, "error": f"bad request: {error}", "status": status})

    async def _follow(
        self, number: Any, follow: bool, writer: asyncio.StreamWriter, ended: asyncio.Event
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        with self._events.follow() as queue:
            for event in self._events.last:
                await self._say(writer, {"id": number, "item": event})
            while follow and not ended.is_set():
                await self._say(writer, {"id": number, "item": await queue.get()})

    async def _say(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """Say a line, together with what else is said in this turn of the loop: changes by the thousand tell much."""
        line = json.dumps(body, default=str).encode() + b"\n"
        ahead = self._ahead.get(writer)
        if ahead is None:
            self._ahead[writer] = bytearray(line)
            asyncio.get_running_loop().call_soon(self._flush, writer)
        else:
            ahead += line
            if len(ahead) > _AHEAD:
                self._flush(writer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    def _flush(self, writer: asyncio.StreamWriter) -> None:
        lines = self._ahead.pop(writer, None)
        if lines and not writer.is_closing():
            writer.write(bytes(lines))
