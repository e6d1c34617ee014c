"""Real proxies on the loopback device, with a server that answers what it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from dysco.adapters import Adapter, Pair
from dysco.errors import HostError

LIMIT_S: Final = 60.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def program(name: str) -> str:
    """Give the path of a program; a test that needs it fails without it, and is never skipped."""
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        pytest.fail(f"{name} is needed (tools/setup installs it)", pytrace=False)
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """Give a port on which nobody listens, and which the kernel gives to nobody who connects."""
    while True:
        port = random.randrange(10_000, 32_768)
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe,
        ):
            probe.bind((host, port))
            return port


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in the foreground, and end it with its children."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, until its end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def serving(handler: Handler = echo, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve in the test's own loop; gives the port."""
    server = await asyncio.start_server(handler, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Client:
    """A session through a proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, port: int, host: str = "127.0.0.1") -> Client:
        """Connect, as soon as somebody listens."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                with contextlib.suppress(OSError):
                    return cls(*await asyncio.open_connection(host, port))
                await asyncio.sleep(0.02)

    @property
    def end(self) -> tuple[str, int]:
        """Own address and port."""
        name = self.writer.get_extra_info("sockname")
        return name[0], name[1]

    async def ask(self, data: bytes, answer: int | None = None) -> bytes:
        """Send, and wait for so many bytes (as many as were sent)."""
        self.writer.write(data)
        await self.writer.drain()
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.readexactly(len(data) if answer is None else answer)

    def close(self) -> None:
        """End the session."""
        self.writer.close()


async def pairs_when(adapter: Adapter, true: Callable[[list[Pair]], bool]) -> list[Pair]:
    """Ask an adapter until its answer is as it should be; the last answer is shown if it never is."""
    found: list[Pair] = []
    try:
        async with asyncio.timeout(LIMIT_S):
            while True:
                with contextlib.suppress(HostError):  # the proxy is starting
                    found = await adapter.pairs()
                    if true(found):
                        return found
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not so: {found}") from None


def of(client: Client, pairs: list[Pair]) -> Pair:
    """The pair of a client's session."""
    (found,) = _all_of(client, pairs)
    return found


def is_safe(client: Client, pairs: list[Pair]) -> bool:
    """Whether the pair of a client's session is there, and may be taken for true."""
    return [one.safe for one in _all_of(client, pairs)] == [True]


def _all_of(client: Client, pairs: list[Pair]) -> list[Pair]:
    host, port = client.end
    return [one for one in pairs if one.left.sport == port and host in str(one.left)]


def config(path: Path, text: str) -> Path:
    """Write a file and give its path."""
    path.write_text(text)
    return path
