"""An HTTP proxy for CONNECT (RFC 9110 section 9.3.6) that leaves each session once it has connected.

    python3 connect.py 3128

The request was for the proxy, and the server does not get it; the answer is the proxy's own. So both streams differ by
so many bytes between client and server, which only this program knows, and tells the agent.
"""

from __future__ import annotations

import asyncio
import logging
import sys

import dysco
from dysco.errors import DyscoError

CONNECTED = b"HTTP/1.1 200 Connected\r\n\r\n"
REFUSED = b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One session."""
    try:
        request = await reader.readuntil(b"\r\n\r\n")
        try:
            method, where, _ = request.split(b" ", 2)
            host, _, port = where.decode().rpartition(":")
            if method != b"CONNECT":
                raise ValueError("no CONNECT")
            server_reader, server = await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, ValueError) as error:
            logging.warning("%s", error)
            writer.write(REFUSED)
        else:
            writer.write(CONNECTED)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(copy(reader, server))
                    group.create_task(copy(server_reader, writer))
                    group.create_task(leave(writer, server, -len(request), len(CONNECTED)))
            finally:
                server.close()
    except* (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # one of them is gone, or has said nothing that is a request
    finally:
        writer.close()


async def leave(client: asyncio.StreamWriter, server: asyncio.StreamWriter, right: int, left: int) -> None:
    """Ask the agent to take this program out of a session; it stays if that is refused."""
    try:
        await dysco.splice(client, server, added_right=right, added_left=left)
    except DyscoError as error:
        logging.warning("this program stays in a session: %s", error)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the stream ends, and then the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def main() -> None:
    """Serve on the port that the command line names."""
    server = await asyncio.start_server(serve, None, int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
