"""Metrics: text that Prometheus reads, over HTTP that survives whoever asks."""

from __future__ import annotations

import asyncio
import re
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from dysco.errors import HostError
from dysco.service import metrics

SAMPLE = re.compile(r"([a-z_]+)(?:\{([a-z]+=\"[^\"\\\n]*\"(?:,[a-z]+=\"[^\"\\\n]*\")*)\})? (-?[0-9.e+-]+)")


def agent(sessions: int = 3) -> Any:
    """As much of an agent as is counted."""
    return SimpleNamespace(
        core=SimpleSized(sessions, counters={"opened": 7, "malformed": 0}, ports_held=lambda: 7, at_rest=2),
        channel=SimpleNamespace(counters={"received": 5}, status=lambda: [up(True), up(False), up(True)]),
        forwarder=SimpleNamespace(counters={}),
        kernel=SimpleNamespace(steering=SimpleNamespace(counters=lambda: {"diverted": 2})),
        table=[None] * 6,
        devices=SimpleNamespace(
            by_name={
                "tap": SimpleNamespace(counters={"packets": 1}),
                "ids": SimpleNamespace(counters={"packets": 4, "dropped": 1}),
            }
        ),
        faults=1,
        opening=SimpleNamespace(laid=3),
        lag_s=0.0015,
    )


class SimpleSized(SimpleNamespace):
    def __init__(self, size: int, **more: Any) -> None:
        super().__init__(**more)
        self.size = size

    def __len__(self) -> int:
        return self.size


def up(there: bool) -> SimpleNamespace:
    return SimpleNamespace(up=there)


def read(text: str) -> dict[str, float]:
    """The samples of a text, each checked against the exposition format."""
    assert text.endswith("\n")
    samples: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            found = SAMPLE.fullmatch(line)
            assert found is not None, line
            assert found[1] in kinds, "a sample before its type"
            assert (kinds[found[1]] == "counter") == found[1].endswith("_total")
            key = line.rsplit(" ", 1)[0]
            assert key not in samples
            samples[key] = float(found[3])
    return samples


def test_everything_counted_is_there() -> None:
    samples = read(metrics.text(agent()))
    assert samples == {
        'dysco_core_total{what="malformed"}': 0,
        'dysco_core_total{what="opened"}': 7,
        'dysco_channel_total{what="received"}': 5,
        'dysco_steering_total{what="diverted"}': 2,
        'dysco_agent_total{what="internal_errors"}': 1,
        'dysco_box_total{box="tap",what="packets"}': 1,
        'dysco_box_total{box="ids",what="dropped"}': 1,
        'dysco_box_total{box="ids",what="packets"}': 4,
        "dysco_sessions": 3,
        "dysco_sessions_at_rest": 2,
        "dysco_flows": 6,
        "dysco_ports": 4,
        "dysco_peers_up": 2,
        "dysco_loop_lag_seconds": 0.0015,
    }


def test_large_numbers_are_exact() -> None:
    assert read(metrics.text(agent(1_234_567)))["dysco_sessions"] == 1_234_567


def free(family: socket.AddressFamily, host: str) -> int:
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


async def ask(host: str, port: int, request: bytes, *, end: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    if end:
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("family", "host", "shown"),
    [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")],
)
async def test_over_http(family: socket.AddressFamily, host: str, shown: str) -> None:
    port = free(family, host)
    stop = await metrics.listen(f"{shown}:{port}", lambda: "dysco_sessions 1\n")
    try:
        for path in (b"/metrics", b"/"):
            head, _, body = (await ask(host, port, b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)).partition(
                b"\r\n\r\n"
            )
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"Content-Length: 17" in head
            assert body == b"dysco_sessions 1\n"
        assert (await ask(host, port, b"GET /else HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        with pytest.raises(HostError, match=r"agent\.metrics"):
            await metrics.listen(f"{shown}:{port}", str)
    finally:
        await stop()
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection(host, port)


@pytest.mark.parametrize(
    "request_", [b"", b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET", b"\xff" * 1000, b"x" * 200_000]
)
async def test_rude_readers_are_hung_up_on_and_the_next_one_is_served(request_: bytes) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    port = free(socket.AF_INET, "127.0.0.1")
    stop = await metrics.listen(f"127.0.0.1:{port}", lambda: "ok 1\n")
    try:
        try:
            answer = await ask("127.0.0.1", port, request_, end=True)
        except ConnectionError:
            answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 404 ")
        assert b"ok 1" in await ask("127.0.0.1", port, b"GET /metrics HTTP/1.1\r\n\r\n")
    finally:
        await stop()
    assert failures == []


async def test_one_that_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_REQUEST_S", 0.01)
    port = free(socket.AF_INET, "127.0.0.1")
    stop = await metrics.listen(f"127.0.0.1:{port}", str)
    try:
        assert await ask("127.0.0.1", port, b"") == b""
    finally:
        await stop()
