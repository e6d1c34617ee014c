"""Many sessions of several kinds at once, run inside namespaces by path; knows nothing of dysco.

    serve PORT                               answer until the process is ended
    open ADDRESS PORT NUMBER                 NUMBER sessions; prints `{"open": N}` as soon as each has had an answer

Kinds, by turns: download, upload, idle, keepalive (a request, an answer, and so on), half (the client has closed its
direction, and the server goes on). Each goes on until a file `stop` is in the current directory; then it ends in the
ordinary way, and the client compares SHA-256 of both directions with what the server says it has received and sent.
The client's last line of output tells how many were equal, of each kind, and what went wrong with others.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

KINDS = (b"download", b"upload", b"idle", b"keepalive", b"half")
PIECE = 4096
PAUSE_S = 1.0  # between two pieces of one session, more or less
STOP = Path("stop")
NAME = 16  # bytes in which the client names the kind of its session
DIGESTS = 64  # bytes in which the server tells, at its end, what it has received and what it has sent before
LIMIT_S = 120.0
stopping = asyncio.Event()


class Way:
    """A session and what went through it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.got = hashlib.sha256()
        self.sent = hashlib.sha256()
        self.tail = b""

    async def send(self, data: bytes) -> None:
        self.sent.update(data)
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, number: int) -> bytes:
        data = await self.reader.readexactly(number)
        self.got.update(data)
        return data

    async def rest(self) -> None:
        """Read until the other's end."""
        while data := await self.reader.read(1 << 16):
            self.got.update(data)

    async def rest_and_digests(self) -> None:
        """Read until the server's end; its last bytes are no part of what it has hashed."""
        while data := await self.reader.read(1 << 16):
            self.tail += data
            self.got.update(self.tail[:-DIGESTS])
            self.tail = self.tail[-DIGESTS:]

    async def flow(self) -> None:
        """Send a piece now and then until all shall stop."""
        while not stopping.is_set():
            await self.send(os.urandom(PIECE))
            await pause()


async def pause() -> None:
    """Wait for a while that is different each time, or until all shall stop."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PAUSE_S * random.uniform(0.5, 1.5)):
            await stopping.wait()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one session; each begins with an answer, so that its client knows that it stands."""
    way = Way(reader, writer)
    with suppress(OSError, asyncio.IncompleteReadError):
        kind = (await way.receive(NAME)).strip()
        await way.send(b"welcome\n")
        if kind == b"keepalive":
            while (await way.receive(1)) == b"?":
                await way.send(os.urandom(PIECE))
        elif kind in (b"download", b"half"):
            if kind == b"half":
                await way.rest()
            await way.flow()
        await way.rest()
        writer.write(way.got.digest() + way.sent.digest())
    writer.close()


async def ask(address: str, port: int, kind: bytes, ready: asyncio.Semaphore, opened: list[bytes]) -> None:
    """Have one session; ConnectionError or AssertionError if it is not as it should be."""
    async with ready:
        way = Way(*await asyncio.open_connection(address, port))
        await way.send(kind.ljust(NAME))
        await way.receive(8)
    opened.append(kind)
    if kind == b"upload":
        await way.flow()
    elif kind == b"keepalive":
        while not stopping.is_set():
            await way.send(b"?")
            await way.receive(PIECE)
            await pause()
        await way.send(b".")
    elif kind == b"half":
        await way.send(b"all that I have to say")
    elif kind == b"idle":
        await stopping.wait()
        await way.send(b"still here")
    elif kind == b"download":
        reading = asyncio.ensure_future(way.rest_and_digests())
        await stopping.wait()
        way.writer.write_eof()
        await reading
    if kind != b"download":
        way.writer.write_eof()
        await way.rest_and_digests()
    way.writer.close()
    assert way.tail == way.sent.digest() + way.got.digest(), f"{len(way.tail)} bytes of digests, or others"


async def watch() -> None:
    """Notice that all shall stop."""
    while not STOP.exists():  # noqa: ASYNC110, ASYNC240 - who wants it to stop is another process
        await asyncio.sleep(0.05)
    stopping.set()


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.start_server(answer, None, port, backlog=4096)
    async with server:
        await asyncio.gather(server.serve_forever(), watch())


async def have(address: str, port: int, number: int) -> None:
    """Have so many sessions at once and tell of them."""
    opened: list[bytes] = []
    ready, watching = asyncio.Semaphore(20), asyncio.ensure_future(watch())
    kinds = [KINDS[index % len(KINDS)] for index in range(number)]
    tasks = [asyncio.ensure_future(ask(address, port, kind, ready, opened)) for kind in kinds]
    while len(opened) < number and not any(task.done() for task in tasks):  # noqa: ASYNC110 - simple is enough
        await asyncio.sleep(0.05)
    say({"open": len(opened)})
    await watching
    async with asyncio.timeout(LIMIT_S):
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    equal = Counter(kind.decode() for kind, end in zip(kinds, ends, strict=True) if end is None)
    wrong = Counter(f"{kind.decode()}: {end!r}" for kind, end in zip(kinds, ends, strict=True) if end)
    say({"equal": equal, "wrong": wrong})


def say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "serve":
        asyncio.run(serve(int(words[0])))
    else:
        asyncio.run(have(words[0], int(words[1]), int(words[2])))
