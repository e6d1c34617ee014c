"""A load balancer that leaves each session as soon as it has chosen a server: the one with the fewest sessions.

    python3 balancer.py 8080 192.0.2.4:80 192.0.2.5:80

It needs no section in host.toml: it tells the agent of its host itself, with `dysco.splice`. What it has already read
and written stays right, for it goes on copying until both connections end, which they do as soon as all of it has
passed. Where it cannot leave (a client without an agent) it stays a balancer like any other.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter

import dysco
from dysco.errors import DyscoError


class Balancer:
    """The servers, and how many sessions each has got."""

    def __init__(self, servers: list[tuple[str, int]]) -> None:
        self._servers = servers
        self._given: Counter[tuple[str, int]] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One session."""
        server = min(self._servers, key=lambda one: self._given[one])
        self._given[server] += 1
        try:
            upstream_reader, upstream = await asyncio.open_connection(*server)
        except OSError as error:
            logging.warning("%s: %s", server, error)
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(copy(reader, upstream))
                group.create_task(copy(upstream_reader, writer))
                group.create_task(leave(writer, upstream))
        except* ConnectionError:
            pass  # one of them is gone
        finally:
            writer.close()
            upstream.close()


async def leave(writer: asyncio.StreamWriter, upstream: asyncio.StreamWriter) -> None:
    """Ask the agent to take this program out of a session; it stays if that is refused."""
    try:
        await dysco.splice(writer, upstream)
    except DyscoError as error:
        logging.warning("this program stays in a session: %s", error)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the stream ends, and then the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def main() -> None:
    """Serve as the command line says."""
    servers = [(host, int(port)) for host, _, port in (one.rpartition(":") for one in sys.argv[2:])]
    server = await asyncio.start_server(Balancer(servers).serve, None, int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
