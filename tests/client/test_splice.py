"""`dysco.splice`: a proxy written with asyncio names its two connections, and hears what has become of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import dysco
from dysco.errors import LocalError, RemoteError
from dysco.service.changes import Tell
from dysco.service.control import ControlServer, Events

OUTCOMES: dict[int, tuple[str, type[Exception] | None]] = {0: ("done", None), 1: ("refused", RemoteError)}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("added", OUTCOMES)
async def test_a_proxy_names_its_connections_from_client_to_server(
    tmp_path: Path, address: str, added: int
) -> None:
    outcome, error = OUTCOMES[added]
    asked: list[dict[str, Any]] = []

    async def splice(tell: Tell, **fields: Any) -> dict[str, int]:
        asked.append(fields)
        about = {"chain_id": "00" * 16, "session": fields["left"], "after_s": 0.1}
        await tell({"kind": "end", **about, "phase": outcome, "by": "b", "reason": "so"})
        return {outcome: 1}

    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    control = ControlServer(tmp_path / "sock", {}, Events(), {"splice": splice})
    await control.start()
    server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), address)
    port = server.sockets[0].getsockname()[1]
    _, client = await asyncio.open_connection(address, port)
    left = await accepted.get()
    _, right = await asyncio.open_connection(address, port)
    try:
        if error is None:
            last = await dysco.splice(left, right, path=tmp_path / "sock", added_right=added)
            assert last.phase == "done"
        else:
            with pytest.raises(error, match="so"):
                await dysco.splice(left, right, path=tmp_path / "sock", added_right=added)
    finally:
        for writer in (client, left, right, await accepted.get()):
            writer.close()
        server.close()
        await control.close()
    host = f"[{address}]" if ":" in address else address
    [fields] = asked
    assert fields["added_right"] == added
    own, out = (client.get_extra_info("sockname")[1], right.get_extra_info("sockname")[1])
    assert fields["left"] == f"{host}:{own} > {host}:{port}"
    assert fields["right"] == f"{host}:{out} > {host}:{port}"


async def test_a_connection_without_addresses_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "unix")
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
    _, writer = await asyncio.open_unix_connection(path)
    with pytest.raises(LocalError, match="not of TCP"):
        await dysco.splice(writer, writer)
    writer.close()
    server.close()
