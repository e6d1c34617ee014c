"""A SOCKS5 proxy (RFC 1928) that knows nothing of dysco: it connects, and then copies bytes.

    python3 socks.py 1080

Its agent takes it out of each session as soon as it only copies, by

    [[proxy]]
    name = "socks"
    adapter = "generic"
    port = 1080
    remove = "chosen"

The agent has seen the first bytes of both sides, so it knows how many of them were for the proxy.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys

REFUSED = b"\5\1\0\1" + bytes(6)
CONNECTED = b"\5\0\0\1" + bytes(6)


async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
    """Where the client wants to go; raises ValueError if it speaks another language."""
    version, methods = await reader.readexactly(2)
    if version != 5 or 0 not in await reader.readexactly(methods):
        raise ValueError("no SOCKS5 without authentication")
    writer.write(b"\5\0")
    version, command, _, kind = await reader.readexactly(4)
    if (version, command) != (5, 1) or kind not in (1, 3, 4):
        raise ValueError("no CONNECT")
    size = (await reader.readexactly(1))[0] if kind == 3 else 4 * kind
    address = await reader.readexactly(size)
    host = address.decode("idna") if kind == 3 else str(ipaddress.ip_address(address))
    return host, int.from_bytes(await reader.readexactly(2), "big")


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the stream ends, and then the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One session."""
    try:
        try:
            server_reader, server = await asyncio.open_connection(*await target(reader, writer))
        except (OSError, ValueError, asyncio.IncompleteReadError):
            writer.write(REFUSED)
            return
        writer.write(CONNECTED)
        try:
            await asyncio.gather(copy(reader, server), copy(server_reader, writer))
        finally:
            server.close()
    except ConnectionError:
        pass  # one of them is gone
    finally:
        writer.close()


async def main() -> None:
    """Serve on the port that the command line names."""
    server = await asyncio.start_server(serve, None, int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
