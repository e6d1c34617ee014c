"""Programs of the bench that open sessions by the thousand: `hold` keeps them, `churn` closes them again.

Run inside a namespace: `python -m benchmarks.load accept|hold|churn ...`. They print one line when they are
ready or done and end when their standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import socket
import sys
import time


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("accept", "hold", "churn"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=1000, help="sessions to hold")
    parser.add_argument("--at-once", type=int, default=64, help="sessions that `hold` opens at a time")
    parser.add_argument("--rate", type=float, default=1000.0, help="sessions per second of `churn`")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run({"accept": accept, "hold": hold, "churn": churn}[options.what](options))
    return 0


async def accept(options: argparse.Namespace) -> None:
    """Accept on `port` and answer each session's first byte with one byte."""

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(data[:1])

    loop = asyncio.get_running_loop()
    await loop.create_server(Server, options.address, options.port, backlog=8192)
    _say("ready")
    await loop.run_in_executor(None, sys.stdin.read)


async def _open(options: argparse.Namespace) -> socket.socket:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(10):
            await loop.sock_connect(sock, (options.address, options.port))
            await loop.sock_sendall(sock, b"x")
            if await loop.sock_recv(sock, 1) != b"x":
                raise ConnectionError("the server closed")
    except BaseException:
        sock.close()
        raise
    return sock


async def hold(options: argparse.Namespace) -> None:
    """Open `count` sessions, each with one byte there and back, and keep them until standard input closes."""
    held: list[socket.socket] = []
    errors: list[str] = []
    numbers = iter(range(options.count))

    async def open_some() -> None:
        for _ in numbers:
            try:
                held.append(await _open(options))
            except (OSError, TimeoutError) as error:
                errors.append(repr(error))

    async with asyncio.TaskGroup() as group:
        for _ in range(options.at_once):
            group.create_task(open_some())
    _say(f"{len(held)} {len(errors)} {errors[0] if errors else ''}")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for sock in held:
        with contextlib.suppress(OSError):
            sock.close()


async def churn(options: argparse.Namespace) -> None:
    """Open and close sessions at `rate` for `seconds`; print how many, errors, and seconds used."""
    begin = time.monotonic()
    errors: list[str] = []
    done = 0

    async def one() -> None:
        nonlocal done
        try:
            (await _open(options)).close()
            done += 1
        except (OSError, TimeoutError) as error:
            errors.append(repr(error))

    async with asyncio.TaskGroup() as group:
        for number in range(int(options.rate * options.seconds)):
            group.create_task(one())
            ahead = begin + (number + 1) / options.rate - time.monotonic()
            if ahead > 0.002:
                await asyncio.sleep(ahead)
    _say(f"{done} {len(errors)} {time.monotonic() - begin:.3f} {errors[0] if errors else ''}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
