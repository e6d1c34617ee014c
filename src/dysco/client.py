"""The asyncio API to a running agent.

    async with dysco.connect() as d:
        for session in await d.sessions():
            print(session.session, session.state)
        async for event in d.events():
            ...

What agents tell are the values of `dysco.views`. `d.session(...)` is a handle: what is done to one session.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from dysco.chains import ChainHandle, Changing, Drained, Step, Trace
from dysco.chains import splice as splicing
from dysco.errors import (
    ConfigError,
    DyscoError,
    ExitStatus,
    LocalError,
    NoAgentError,
    PermissionDeniedError,
    RemoteError,
    TimedOutError,
)
from dysco.views import Chain, Event, Explanation, Peer, ProxyState, Reload, Session, Status, chains
from dysco.wire.tuples import FiveTuple

RUN: Final = Path("/run/dysco")
SOCKET_VARIABLE: Final = "DYSCO_SOCKET"
_LINE: Final = 1 << 30


def connect(path: str | os.PathLike[str] | None = None) -> Dysco:
    """Prepare a connection to an agent; use it with `async with`.

    Without a path: $DYSCO_SOCKET, else the only socket in /run/dysco. Entering raises NoAgentError, LocalError if
    several agents run here, PermissionDeniedError.
    """
    return Dysco(None if path is None else Path(path))


async def splice(
    left: str | FiveTuple | Session | asyncio.StreamWriter,
    right: str | FiveTuple | Session | asyncio.StreamWriter,
    *,
    path: str | os.PathLike[str] | None = None,
    **terms: Any,
) -> Step:
    """Leave the session between two connections of this program, a proxy on the agent's host; gives the last step.

    left: the accepted connection; right: the one to the server; as asyncio's streams, or named as in `Dysco.splice`,
    which has the other terms. The program goes on copying what still comes until both connections end, as they soon do.
    Raises what `connect` raises, and RemoteError, LocalError or TimedOutError; then the session is as it was.
    """
    names = _ends(left, accepted=True), _ends(right, accepted=False)
    async with connect(path) as agent:
        return (await agent.splice(*names, **terms))[-1]


class Dysco:
    """A connection to one agent. Commands may be used at the same time; errors are those of `dysco.errors`."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._next = 0

    async def __aenter__(self) -> Dysco:
        path = self._path or _find()
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(str(path), limit=_LINE)
        except PermissionError as error:
            raise PermissionDeniedError(f"{path}: {error.strerror}") from error
        except OSError as error:
            raise NoAgentError(f"no agent answers at {path}: {error.strerror or error}") from error
        self._task = asyncio.get_running_loop().create_task(self._read(), name="dysco client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._writer is not None:
            self._writer.close()

    async def status(self) -> Status:
        """Name, uptime, mode, counters of the agent."""
        return Status.of(await self.command("status"))

    async def sessions(self) -> list[Session]:
        """The sessions that pass here."""
        return [Session.of(one) for one in await self.command("sessions")]

    async def chains(self) -> list[Chain]:
        """The chains that pass here, as far as this agent knows them; `views.chains` joins several agents' words."""
        return chains([((await self.status()).name, await self.sessions())])

    async def peers(self) -> list[Peer]:
        """The neighbours and how they stand."""
        return [Peer.of(one) for one in await self.command("peers")]

    async def metrics(self) -> str:
        """Counters in Prometheus' text format."""
        return str(await self.command("metrics"))

    async def explain(self, session: str) -> Explanation:
        """Which policy takes a session (`tcp 10.0.0.1:1 > 10.0.0.2:80`), by which chain, and why not the others."""
        return Explanation.of(await self.command("explain", session=session))

    async def reload(self, *, dry_run: bool = False) -> Reload:
        """Read the configuration again; `changes` says what differs. ConfigError leaves everything as it was."""
        return Reload.of(await self.command("reload", dry_run=dry_run))

    def session(self, session: str | FiveTuple | Session) -> SessionHandle:
        """Give a handle to a session, or to several at once; whether they are there shows later.

        A text is a chain id or its beginning, a five-tuple (`10.0.0.1:1 > 10.0.0.2:80`), or a match expression.
        """
        return SessionHandle(self, _text(session))

    def splice(
        self, left: str | FiveTuple | Session, right: str | FiveTuple | Session, **terms: Any
    ) -> Changing:
        """Take out an unmodified proxy of the agent's host: `left` ends at it, `right` begins there.

        Await it, or iterate over its steps. terms: added_right, added_left (bytes that the proxy has written more in
        that direction than it has read, 0), timeout (seconds, 30).
        """
        return splicing(self, _text(left), _text(right), **terms)

    def move(self, *addresses: str, **terms: Any) -> Changing:
        """Let the agent's host be reached at other addresses, one of a family; its sessions go on.

        Await it, or iterate over its steps: those of each session. terms: timeout (seconds for each session, 30), wait
        (True), dry_run (False).
        """
        return Changing(self, {"addresses": list(addresses), **terms}, "move")

    async def stop(self, *, for_good: bool = False) -> None:
        """Tell the agent to stop, as SIGTERM does; for_good: reset its sessions whatever `agent.on_stop` says."""
        await self.command("stop", for_good=for_good)

    async def events(self, *, follow: bool = True) -> AsyncIterator[Event]:
        """The last events; with `follow` all that come, until the connection ends."""
        number, queue = self._ask("events", {"follow": follow})
        try:
            while (reply := await queue.get()) is not None:
                if "item" not in reply:
                    _check(reply)
                    return
                yield Event.of(reply["item"])
        finally:
            self._answers.pop(number, None)

    async def trace(self, session: str = "") -> list[Trace]:
        """Ask all agents of each chain that is meant who they are; without a text of all chains here."""
        return [Trace.of(item) async for item in self.stream("trace", session=session)]

    def drain(self, box: str, *, to: str = "", timeout: float = 60.0) -> AsyncIterator[Drained]:
        """Free a box of this host or of a peer (`peer/box`) of its sessions, moving them `to` another one or out.

        It gets no new ones until `undrain`. Gives reports, the last with kind `end`; timeout in seconds. To stop
        listening stops nothing.
        """
        return self._drained("drain", {"box": box, "to": to, "timeout": timeout})

    async def undrain(self, box: str) -> bool:
        """Let a drained box have new sessions again; False if it was not drained."""
        return bool(await self.command("undrain", box=box))

    async def proxies(self) -> list[ProxyState]:
        """The proxies of the agent's host: which sessions each joins, which of them it may leave, and why not."""
        return [ProxyState.of(one) for one in await self.command("proxies")]

    def drain_proxy(self, proxy: str, *, timeout: float = 60.0) -> AsyncIterator[Drained]:
        """Take a proxy out of all its sessions that allow it, and out of those to come until `undrain_proxy`.

        Gives reports, the last with kind `end`; timeout in seconds. To stop listening stops nothing.
        """
        return self._drained("drain_proxy", {"proxy": proxy, "timeout": timeout})

    async def undrain_proxy(self, proxy: str) -> bool:
        """Let a drained proxy stay in the sessions to come; False if it was not drained."""
        return bool(await self.command("undrain_proxy", proxy=proxy))

    async def _drained(self, name: str, fields: dict[str, Any]) -> AsyncIterator[Drained]:
        number, queue = self._ask(name, fields)
        try:
            while (reply := await queue.get()) is not None:
                if "item" not in reply:
                    yield Drained.of({**_check(reply), "kind": "end"})
                    return
                yield Drained.of(reply["item"])
            raise NoAgentError("the agent has hung up")
        finally:
            self._answers.pop(number, None)

    async def stream(self, name: str, **fields: Any) -> AsyncIterator[Any]:
        """Send any command that answers with items, and give these as they come."""
        number, queue = self._ask(name, fields)
        try:
            while (reply := await queue.get()) is not None:
                if "item" not in reply:
                    _check(reply)
                    return
                yield reply["item"]
            raise NoAgentError("the agent has hung up")
        finally:
            self._answers.pop(number, None)

    async def command(self, name: str, **fields: Any) -> Any:
        """Send any command and return its answer."""
        number, queue = self._ask(name, fields)
        try:
            reply = await queue.get()
        finally:
            self._answers.pop(number, None)
        if reply is None:
            raise NoAgentError("the agent has hung up")
        return _check(reply)

    def _ask(self, name: str, fields: dict[str, Any]) -> tuple[int, asyncio.Queue[dict[str, Any] | None]]:
        if self._writer is None or self._task is None or self._task.done():
            raise NoAgentError("not connected to an agent")
        self._next += 1
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._answers[self._next] = queue
        self._writer.write(json.dumps({"id": self._next, "do": name, **fields}).encode() + b"\n")
        return self._next, queue

    async def _read(self) -> None:
        assert self._reader is not None
        try:
            while line := await self._reader.readline():
                reply = json.loads(line)
                queue = self._answers.get(reply.get("id"))
                if queue is not None:
                    queue.put_nowait(reply)
        except (OSError, ValueError):
            pass
        finally:
            for queue in self._answers.values():
                queue.put_nowait(None)


class SessionHandle(ChainHandle):
    """Sessions of an agent, and what may be done to them; made by `Dysco.session`."""

    def __init__(self, agent: Dysco, text: str) -> None:
        super().__init__(agent, text)
        self.agent = agent

    async def look(self) -> Session | None:
        """How the session with this five-tuple or chain id stands here; None if the agent has none (any more)."""
        wanted = str(self)
        found = await self.agent.sessions()
        return next((one for one in found if wanted in (one.session, one.chain_id)), None)

    async def choose_hops(self, hops: Sequence[str]) -> bool:
        """Choose the hops behind the box that holds the SYN of this session."""
        return bool(await self.agent.command("set_hops", session=str(self), hops=list(hops)))

    async def expect(self, session_out: str | FiveTuple) -> bool:
        """Say that the session will leave its box with another five-tuple."""
        done = await self.agent.command("expect", session_in=str(self), session_out=str(session_out))
        return bool(done)


def _text(session: str | FiveTuple | Session) -> str:
    return session.session if isinstance(session, Session) else str(session)


def _ends(
    connection: str | FiveTuple | Session | asyncio.StreamWriter, *, accepted: bool
) -> str | FiveTuple | Session:
    """The session of a connection, from who opened it to who accepted it."""
    if not isinstance(connection, asyncio.StreamWriter):
        return connection
    ends = []
    for what in ("peername", "sockname") if accepted else ("sockname", "peername"):
        name = connection.get_extra_info(what)
        if not isinstance(name, tuple):
            raise LocalError("a connection that is not open, or not of TCP, cannot be spliced")
        address = ipaddress.ip_address(name[0].partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        ends.append(((mapped or address).packed, name[1]))
    return FiveTuple.of(*ends[0], *ends[1])


def _check(reply: dict[str, Any]) -> Any:
    if "error" not in reply:
        return reply.get("answer")
    status = reply.get("status", 1)
    kinds: dict[int, type[DyscoError]] = {
        ExitStatus.USAGE: ConfigError,
        ExitStatus.REFUSED: RemoteError,
        ExitStatus.TIMED_OUT: TimedOutError,
        ExitStatus.PERMISSION: PermissionDeniedError,
    }
    error = kinds.get(status, LocalError)(reply["error"])
    if status in set(ExitStatus) - {ExitStatus.DONE}:
        error.exit_status = ExitStatus(status)
    raise error


def _find() -> Path:
    named = os.environ.get(SOCKET_VARIABLE)
    if named:
        return Path(named)
    try:
        found = sorted(RUN / name for name in os.listdir(RUN) if name.endswith(".sock"))
    except PermissionError as error:
        raise PermissionDeniedError(f"{RUN}: {error.strerror}") from error
    except OSError:
        found = []
    if not found:
        raise NoAgentError(f"no agent runs here (no socket in {RUN})")
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise LocalError(f"several agents run here: choose one with --socket ({names})")
    return found[0]
