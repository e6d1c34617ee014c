"""HAProxy by its runtime API: which two connections each of its streams has, and what it still does to the data.

Knows `show info` and `show sess` (management.txt, section 9.3) of HAProxy 2.2 and newer, and the kernel's counts of the
sockets. A stream is safe to leave when HAProxy says itself that it will pass on everything from now on (`tofwd=-1`, no
analysers), both connections are plain TCP, and it is known what went before the data.

That is found by counting. At the moment of the answer HAProxy has taken `total` bytes into a direction's channel, of
which some wait in its buffer. The kernel is asked before and after: if the program has read (written) nothing between,
the difference of the kernel's count and HAProxy's is what HAProxy has taken off (put before) the stream, for ever.
Of a stream in which data move all the time the same server's other streams tell it, and the counts must not contradict.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from dysco.adapters.base import Adapter, Pair
from dysco.adapters.preambles import v1_length, v2_length
from dysco.adapters.sockets import Socket, Sockets, inodes
from dysco.errors import HostError, WireError
from dysco.wire.tuples import FiveTuple

TIMEOUT_S: Final = 5.0
_LONGEST_ANSWER: Final = 256 << 20
_CONTRADICTION: Final = "HAProxy's counts and the kernel's contradict each other"
_ROUNDS: Final = 12  # ours: how often streams in motion are looked at again
_AGAIN: Final = 32  # ours: at most so many of them at a time
_FOR_EVER: Final = ("-1", "4294967295")  # CHN_INFINITE_FORWARD, signed since 2.0
_STREAM: Final = re.compile(r"^0x[0-9a-f]+: ", re.MULTILINE)
_PROXY: Final = re.compile(
    r"^  (frontend|backend|server)=(\S+) \(id=(-?\d+)(?: mode=(\S+?))?\)", re.MULTILINE
)
_SOURCE: Final = re.compile(r" source=(\S+)")
_ADDRESS: Final = re.compile(r" addr=(\S+)")
_STATE: Final = re.compile(r"^  (?:sc|si\[)([fb01])\]?=0x[0-9a-f]+ .*?\bstate=(\w+)", re.MULTILINE)
_CONNECTION: Final = re.compile(
    r"^      co([01])=0x[0-9a-f]+ ctrl=(\S+) xprt=(\S+) mux=(\S+).*\n.*?\bfd=(-?\d+)", re.MULTILINE
)
_CHANNEL: Final = re.compile(
    r"^  (req|res)=0x[0-9a-f]+ \(f=\S+ an=(0x[0-9a-f]+)(?: pipe=(\d+))? tofwd=(-?\d+) total=(\d+)\)"
    r"(?:.*\n){1,3}?.*?\bo=(\d+) p=\d+ i=(\d+)",
    re.MULTILINE,
)


class Connection(NamedTuple):
    """One side of a stream."""

    control: str
    transport: str
    mux: str
    descriptor: int


class Channel(NamedTuple):
    """One direction of a stream. total: bytes that came in; waiting: of these, not yet sent on."""

    analysers: int
    for_ever: bool
    total: int
    waiting: int

    @property
    def passed(self) -> int:
        """Bytes that HAProxy has handed to the other side's socket."""
        return self.total - self.waiting


class Stream(NamedTuple):
    """One entry of `show sess all`; a part that it does not have is None or empty."""

    pointer: str
    source: str
    modes: tuple[str, ...]
    frontend: str
    server: str
    addresses: tuple[str, str, str]
    states: dict[str, str]
    front: Connection | None
    back: Connection | None
    request: Channel | None
    response: Channel | None


def parse(text: str) -> Iterator[Stream]:
    """Read the answer to `show sess all`."""
    starts = [match.start() for match in _STREAM.finditer(text)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=False):
        yield _stream(text[start:end])


def _stream(text: str) -> Stream:
    head, _, body = text.partition("\n")
    proxies = {kind: (name, mode) for kind, name, _, mode in _PROXY.findall(body)}
    lines = {line.split("=", 1)[0].strip(): line for line in body.splitlines()[:6]}
    addresses = [_ADDRESS.search(lines.get(kind, "")) for kind in ("frontend", "backend", "server")]
    states = {{"f": "f", "0": "f", "b": "b", "1": "b"}[side]: state for side, state in _STATE.findall(body)}
    connections = {
        side: Connection(control, transport, mux, int(descriptor))
        for side, control, transport, mux, descriptor in _CONNECTION.findall(body)
    }
    channels = {
        name: Channel(int(an, 16), tofwd in _FOR_EVER, int(total), int(out) + int(held) + int(pipe or 0))
        for name, an, pipe, tofwd, total, out, held in _CHANNEL.findall(body)
    }
    source = _SOURCE.search(head)
    return Stream(
        head.split(":", 1)[0],
        source[1] if source else "",
        tuple(proxies[kind][1] for kind in ("frontend", "backend") if kind in proxies),
        proxies.get("frontend", ("", ""))[0],
        "/".join(proxies[kind][0] for kind in ("backend", "server") if kind in proxies),
        (*(match[1] if match else "" for match in addresses),),  # type: ignore[arg-type]
        states,
        connections.get("0"),
        connections.get("1"),
        channels.get("req"),
        channels.get("res"),
    )


def stays(stream: Stream) -> str | None:
    """Say why HAProxy must stay in a stream, by what it says itself; None if it only passes data on."""
    front, back = stream.front, stream.back
    if front is None or back is None or stream.request is None or stream.response is None:
        return "HAProxy does not say enough of it (is this an unknown version?)"
    if any(mode != "tcp" for mode in stream.modes):
        return "mode http: the next request may have to go to another server"
    if stream.states.get("f") != "EST" or stream.states.get("b") != "EST":
        return "its server is not connected yet, or one side is closed"
    for side, one in (("client", front), ("server", back)):
        if one.transport != "RAW":
            ends = "TLS ends here" if one.transport == "SSL" else f"a handshake ({one.transport}) goes on"
            return f"{ends} on the {side}'s side"
        if one.mux != "PASS":
            return f"HAProxy speaks {one.mux} with the {side}"
    for name, channel in (("requests", stream.request), ("responses", stream.response)):
        if not channel.for_ever or channel.analysers:
            return f"a rule or filter still looks at the {name} (analysers {channel.analysers:#x})"
    return None


@dataclass(slots=True)
class _Known:
    """What is known of a stream's constants, in bytes; None: not yet."""

    put_right: int | None = None
    put_left: int | None = None
    taken_left: int | None = None
    taken_right: int | None = None

    @property
    def complete(self) -> bool:
        return None not in (self.put_right, self.put_left, self.taken_left, self.taken_right)


class _Seen(NamedTuple):
    """A stream with its two sockets before HAProxy was asked and after."""

    stream: Stream
    left: tuple[Socket, Socket]
    right: tuple[Socket, Socket]


class HAProxy(Adapter):
    """Ask an HAProxy that runs on this host, in this network namespace, through its runtime API."""

    def __init__(self, path: Path | str, *, line: str = "auto", timeout: float = TIMEOUT_S) -> None:
        """line: what HAProxy puts before the data to each server: `none`, `v1`, `v2`; `auto`: find out."""
        super().__init__()
        self._path = str(path)
        self._line_is = line
        self._timeout = timeout
        self._pid = 0
        self._known: dict[tuple[int, int], _Known] = {}
        self._lines: dict[str, str] = {}  # what was seen before the data to a server: none, v1, v2 or varies

    async def pairs(self) -> list[Pair]:
        """Give the pairs of all streams that have two TCP connections; raises HostError."""
        pid = await self._process()
        if pid != self._pid:
            self._pid = pid
            self._known.clear()
            self._lines.clear()
        before = await asyncio.to_thread(_sockets)
        streams = parse(await self.ask("show sess all"))
        after = await asyncio.to_thread(_sockets)
        held = await asyncio.to_thread(inodes, pid)
        seen = [one for stream in streams if (one := _seen(stream, before, after, held)) is not None]
        self._known = {_key(one): self._known.get(_key(one), _Known()) for one in seen}
        self.unplaced = _unplaced(seen, after, held)
        for one in seen:
            self._learn(one)
        await self._look_again([one for one in seen if stays(one.stream) is None])
        return [self._pair(one) for one in seen]

    async def ask(self, command: str) -> str:
        """Send one command to the runtime API and give the answer; raises HostError."""
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    writer.write(command.encode() + b"\n")
                    answer = bytearray()
                    while chunk := await reader.read(1 << 18):
                        answer += chunk
                        if len(answer) > _LONGEST_ANSWER:
                            raise HostError(f"{self._path}: the answer to {command!r} does not end")
                finally:
                    writer.close()
        except TimeoutError:
            raise HostError(f"{self._path}: no answer to {command!r} within {self._timeout:g} s") from None
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror or error}: is HAProxy running?") from None
        text = answer.decode(errors="replace")
        if text.startswith(("Permission denied", "Unknown command")):
            raise HostError(f"{self._path}: {command!r}: {text.splitlines()[0]}")
        return text

    async def _process(self) -> int:
        match = re.search(r"^Pid: (\d+)$", await self.ask("show info"), re.MULTILINE)
        if match is None:
            raise HostError(f"{self._path}: this is not the runtime API of an HAProxy")
        return int(match[1])

    async def _look_again(self, seen: Iterable[_Seen]) -> None:
        """Look again, closely, at streams that moved while all were listed, until a moment of rest is found."""
        waiting = [one for one in seen if not self._known[_key(one)].complete][:_AGAIN]
        for _ in range(_ROUNDS if waiting else 0):
            for one in list(waiting):
                stream, left, right = one.stream, one.left[1], one.right[1]
                before = _again(left, right)
                found = next(parse(await self.ask(f"show sess {stream.pointer}")), None)
                after = _again(left, right)
                if found is None or before is None or after is None or found.source != stream.source:
                    waiting.remove(one)
                    continue
                self._learn(_Seen(found, (before[0], after[0]), (before[1], after[1])), _key(one))
                if self._known[_key(one)].complete:
                    waiting.remove(one)
            if not waiting:
                return

    def _learn(self, seen: _Seen, key: tuple[int, int] | None = None) -> None:
        known = self._known[key or _key(seen)]
        request, response = seen.stream.request, seen.stream.response
        if request is None or response is None:
            return
        (left, left_after), (right, right_after) = seen.left, seen.right
        if left.read == left_after.read:
            known.taken_left = left.read - request.total
        if right.read == right_after.read:
            known.taken_right = right.read - response.total
        if left.sure and left_after.sure and left.written == left_after.written:
            known.put_left = left.written - response.passed
        if right.sure and right_after.sure and right.written == right_after.written:
            known.put_right = right.written - request.passed
            self._lines[seen.stream.server] = self._line(seen.stream, known.put_right)

    def _line(self, stream: Stream, put: int) -> str:
        told = _told(stream)
        lengths = {} if told is None else {v1_length(told): "v1", v2_length(told): "v2"}
        return "none" if put == 0 else lengths.get(put, "varies")

    def _expected(self, stream: Stream) -> int | None:
        """How many bytes go before the data to this stream's server, by its other streams or by what we were told."""
        told = _told(stream)
        match self._lines.get(stream.server, self._line_is):
            case "none":
                return 0
            case "v1" if told is not None:
                return v1_length(told)
            case "v2" if told is not None:
                return v2_length(told)
        return None

    def _pair(self, seen: _Seen) -> Pair:
        stream, known = seen.stream, self._known[_key(seen)]
        left, right = seen.left[1].session, seen.right[1].session
        reason = stays(stream)
        if reason is not None:
            return Pair(left, right, 0, 0, False, reason)
        put_right, taken_left = known.put_right, known.taken_left
        learned = put_right is None
        if put_right is None:
            put_right = self._expected(stream)
            if put_right is not None and not _possible(seen, put_right):
                return Pair(left, right, 0, 0, False, _CONTRADICTION)
        if put_right is None:
            why = (
                "data move all the time, and whether a PROXY protocol line went before them is not known yet"
            )
            return Pair(left, right, 0, 0, False, why)
        if taken_left is None and _told(stream) != left:
            why = "data move all the time, and how long the client's PROXY protocol line was is not known yet"
            return Pair(left, right, 0, 0, False, why)
        taken = taken_left or 0
        if (known.put_left or 0, known.taken_right or 0) != (0, 0) or put_right < 0 or taken < 0:
            return Pair(left, right, 0, 0, False, _CONTRADICTION)
        why = "HAProxy only passes data on"
        if put_right:
            line = self._line(stream, put_right)
            version = {"v1": " of version 1", "v2": " of version 2"}.get(line, "")
            as_others = ", as its other streams have" if learned else ""
            why += f", after a PROXY protocol line{version} ({put_right} bytes{as_others})"
        if taken:
            why += f"; it took a PROXY protocol line of {taken} bytes from the client"
        return Pair(left, right, put_right - taken, 0, True, why)


def _unplaced(seen: list[_Seen], after: dict[int, Socket], held: dict[int, int]) -> list[FiveTuple]:
    """Give clients' sessions that HAProxy holds and that are in no stream with two known sockets."""
    placed = {one.left[1].inode for one in seen}
    clients = (after[inode] for inode in set(held.values()) - placed if inode in after)
    return [one.session for one in clients if one.opened is False]


def _sockets() -> dict[int, Socket]:
    with Sockets() as kernel:
        return kernel.connected()


def _again(left: Socket, right: Socket) -> tuple[Socket, Socket] | None:
    with Sockets() as kernel:
        one, other = kernel.again(left), kernel.again(right)
    return None if one is None or other is None else (one, other)


def _possible(seen: _Seen, put: int) -> bool:
    """Whether so many bytes before the data agree with counts that were taken while data moved."""
    before, after = seen.right
    if seen.stream.request is None or not (before.sure and after.sure):
        return True
    return before.written <= seen.stream.request.passed + put <= after.written


def _key(seen: _Seen) -> tuple[int, int]:
    return seen.left[0].inode, seen.right[0].inode


def _told(stream: Stream) -> FiveTuple | None:
    """The client's session as HAProxy would tell it to a server."""
    try:
        return FiveTuple.parse(f"{_bracketed(stream.source)} > {_bracketed(stream.addresses[0])}")
    except WireError:
        return None


def _bracketed(text: str) -> str:
    address, _, port = text.rpartition(":")
    return f"[{address}]:{port}" if ":" in address else text


def _seen(
    stream: Stream, before: dict[int, Socket], after: dict[int, Socket], held: dict[int, int]
) -> _Seen | None:
    """Find a stream's two sockets; None if it has not both, or one came or went meanwhile."""
    found = []
    for side in (stream.front, stream.back):
        if side is None or not side.control.startswith("tcp"):
            return None
        inode = held.get(side.descriptor, 0)
        if inode not in before or inode not in after:
            return None
        found.append((before[inode], after[inode]))
    left, right = found
    return None if left[1].opened or not right[1].opened else _Seen(stream, left, right)
