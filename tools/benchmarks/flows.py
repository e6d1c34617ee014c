"""Downloads in a lab and what they have got when; and proxies that leave them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.reconfigure import rate, started
from benchmarks.testbed import BenchError
from dysco.client import Dysco
from dysco.lab import Lab
from dysco.views import ProxiedPair

SETTLED_S: Final = 0.5  # after sessions have begun or changed, before goodput is taken
SAMPLE_S: Final = 0.1
START_S: Final = 20.0
Curve = list[tuple[float, float]]


async def pairs(agent: Dysco, wanted: int) -> list[ProxiedPair]:
    """Wait until the agent knows all pairs."""
    end = time.monotonic() + START_S
    while True:
        found = [one for proxy in await agent.proxies() for one in proxy.pairs]
        if len(found) == wanted and all(one.safe for one in found):
            return found
        if time.monotonic() > end:
            raise BenchError(f"{len(found)} of {wanted} pairs: {[one.why for one in found if not one.safe]}")
        await asyncio.sleep(SAMPLE_S)


async def leave(agent: Dysco, known: Sequence[ProxiedPair], port: int) -> list[float]:
    """Take the proxy out of all sessions to a port at once; seconds that each took."""

    async def one(pair: ProxiedPair) -> float:
        began = time.monotonic()
        await agent.splice(pair.left, pair.right, added_right=pair.added_right, added_left=pair.added_left)
        return time.monotonic() - began

    group = [pair for pair in known if pair.left.endswith(f":{port}")]
    return await asyncio.gather(*map(one, group))


class Sinks:
    """Downloads, and how much had come when."""

    def __init__(self, made: Lab, targets: Sequence[tuple[str, int]], limit_s: float) -> None:
        self._files = [made.directory / f"sink-{port}-{number}" for number, (_, port) in enumerate(targets)]
        self._processes = []
        for file, (address, port) in zip(self._files, targets, strict=True):
            file.unlink(missing_ok=True)
            argv = [
                sys.executable,
                "-m",
                "benchmarks.flow",
                "sink",
                address,
                str(port),
                str(limit_s),
                str(file),
            ]
            self._processes.append(started(made.command("a", argv)))
        self._points: list[list[tuple[float, ...]]] = []

    def wait(self) -> None:
        """Wait until all have begun."""
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()

    def stop(self) -> None:
        """End them, and read what they have seen."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(START_S)
        self._points = [
            [tuple(map(float, line.split())) for line in file.read_text().splitlines()]
            for file in self._files
        ]

    def goodput(self, start: float, end: float) -> float:
        """Gbit/s of all together between two moments."""
        return sum(rate(points, start, end) for points in self._points) * 8e-9

    def curve(self, start: float, end: float) -> Curve:
        """Moments, and Gbit/s around them."""
        steps = int((end - start) / SAMPLE_S)
        edges = [start + SAMPLE_S * step for step in range(steps)]
        totals = [sum(_total(points, at) for points in self._points) for at in edges]
        return [
            (at, (after - before) / SAMPLE_S * 8e-9)
            for at, before, after in zip(edges[1:], totals, totals[1:], strict=False)
        ]


def _total(points: list[tuple[float, ...]], at: float) -> float:
    """Bytes that had come at a moment, between two samples as though at one speed."""
    low, high = 0, len(points) - 1
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if points[middle][0] <= at else (low, middle)
    (before, had), (after, has) = points[low], points[high]
    return had + (has - had) * min(1.0, max(0.0, (at - before) / ((after - before) or 1.0)))
