"""A proxy that is taken out of its sessions, one group after the other: goodput, and what the proxy has to do.

    a: sinks ── router ── b: HAProxy, mode tcp ── router ── d: source

Four groups of downloads at full speed go through one HAProxy. One group after the other it is taken out of, session by
session, while the others go on; at the end nothing passes it. Before and after that the same number of downloads runs
between the same agents without any proxy, which is what all the others are compared with.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import dysco
from benchmarks.flows import SAMPLE_S, SETTLED_S, START_S, Curve, Sinks, leave, pairs
from benchmarks.reconfigure import TOOLS, rate, wait_for_port
from benchmarks.testbed import BenchError
from dysco.lab import Lab
from proofs import labs

GROUPS: Final = 4
FRONT: Final = 8081  # of the first group at the proxy
BACK: Final = 7001  # of the first group at the server
PLAIN: Final = 7100  # at the server, without a proxy
Figures = dict[str, float]


@dataclass
class Found:
    """What was measured.

    figures: of the whole. curve: goodput of all sessions over time (seconds, Gbit/s); busy: CPU of the proxy (seconds,
    percent of a core). moments: when each group was to leave it (seconds).
    """

    figures: Figures = field(default_factory=dict)
    curve: Curve = field(default_factory=list)
    busy: Curve = field(default_factory=list)
    moments: list[float] = field(default_factory=list)


def run(workdir: Path, mode: str, sessions: int, seconds: float) -> Found:
    """Measure it with so many sessions in each group, and so many seconds between two removals."""
    found = Found()
    text = labs.proxied(mode, 4, {FRONT + group: BACK + group for group in range(GROUPS)})
    with labs.up(text, workdir, f"proxied-{mode}", f"proxied{os.getpid()}") as made, ExitStack() as ends:
        for port in (*range(BACK, BACK + GROUPS), PLAIN):
            source = [sys.executable, str(TOOLS / "benchmarks/flow.py"), "source", str(port)]
            made.start("d", source, name=f"source-{port}")
            wait_for_port(made, port)
        haproxy = labs.start_haproxy(made)
        ends.callback(haproxy.wait)
        ends.callback(haproxy.terminate)
        wait_for_port(made, FRONT + GROUPS - 1, "b")
        count = GROUPS * sessions
        plain = [_plain(made, count, seconds)]
        asyncio.run(_leave(made, haproxy.pid, sessions, seconds, found))
        plain.append(_plain(made, count, seconds))
    found.figures["goodput_without_proxy_gbit_s"] = statistics.mean(plain)
    found.figures["ratio_removed"] = found.figures["goodput_removed_gbit_s"] / statistics.mean(plain)
    found.figures["load"] = os.getloadavg()[0]
    return found


async def _leave(made: Lab, pid: int, sessions: int, seconds: float, found: Found) -> None:
    """Let the proxy leave one group after the other."""
    last = GROUPS * seconds + seconds
    targets = [(made.address("b"), FRONT + group) for group in range(GROUPS) for _ in range(sessions)]
    with _Cpu(pid) as cpu:
        sinks = Sinks(made, targets, last + START_S)
        try:
            took: list[float] = []
            async with dysco.connect(made.socket("b")) as agent:
                known = await pairs(agent, len(targets))
                began = time.monotonic()
                await asyncio.sleep(seconds)
                for group in range(GROUPS):
                    found.moments.append(time.monotonic() - began)
                    took += await leave(agent, known, FRONT + group)
                    await asyncio.sleep(seconds)
                if left := [one for proxy in await agent.proxies() for one in proxy.pairs]:
                    raise BenchError(f"the proxy is still in {len(left)} sessions")
            end = time.monotonic()
        finally:
            sinks.stop()
    first, moments = began, [began + at for at in found.moments]
    found.curve = [(at - began, speed) for at, speed in sinks.curve(began, end)]
    found.busy = [(at - began, percent) for at, percent in cpu.percents(began, end)]
    proxied, removed = (first + SETTLED_S, moments[0]), (moments[-1] + SETTLED_S, end)
    found.figures = {
        "goodput_proxied_gbit_s": sinks.goodput(*proxied),
        "goodput_removed_gbit_s": sinks.goodput(*removed),
        "removal_ms_p50": statistics.median(took) * 1000,
        "removal_ms_most": max(took) * 1000,
        "proxy_cpu_percent": cpu.percent(*proxied),
        "proxy_cpu_percent_removed": cpu.percent(*removed),
    }


def _plain(made: Lab, count: int, seconds: float) -> float:
    """Goodput of as many sessions between the same agents without a proxy, in Gbit/s."""
    sinks = Sinks(made, [(made.address("d"), PLAIN)] * count, START_S)
    try:
        sinks.wait()
        began = time.monotonic()
        time.sleep(seconds + SETTLED_S)
        end = time.monotonic()
    finally:
        sinks.stop()
    return sinks.goodput(began + SETTLED_S, end)


class _Cpu:
    """CPU time of a process and its threads over time."""

    def __init__(self, pid: int) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self._points: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Cpu:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        ticks = os.sysconf("SC_CLK_TCK")
        while not self._over.wait(2 * SAMPLE_S):
            user, system = self._stat.read_text().rpartition(")")[2].split()[11:13]
            self._points.append((time.monotonic(), (int(user) + int(system)) / ticks))

    def percent(self, start: float, end: float) -> float:
        """Of one core, between two moments."""
        return rate(list(self._points), start, end) * 100

    def percents(self, start: float, end: float) -> Curve:
        """Moments, and percent of one core before each."""
        inside = [one for one in self._points if start <= one[0] <= end]
        return [
            (at, (used - before) / (at - earlier) * 100)
            for (earlier, before), (at, used) in itertools.pairwise(inside)
        ]


def plot(found: dict[str, Found], path: Path) -> None:
    """Draw goodput and the proxy's CPU over time, one picture for each mode; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(found), figsize=(6 * len(found), 4), constrained_layout=True, squeeze=False
    )
    for axis, (mode, one) in zip(axes.flat, found.items(), strict=True):
        plain = one.figures["goodput_without_proxy_gbit_s"]
        axis.plot(
            *zip(*one.curve, strict=True), color="#0b4fb3", linewidth=1, label="goodput of all sessions"
        )
        axis.axhline(plain, color="#7a8a99", linewidth=1, linestyle="--", label="without any proxy")
        for at in one.moments:
            axis.axvline(at, color="#57606a", linewidth=0.8, linestyle=":")
        axis.set_title(f"{mode}: the proxy leaves four groups (dotted)", loc="left", fontsize=11)
        axis.set_xlabel("seconds")
        axis.set_ylabel("Gbit/s")
        axis.set_ylim(0, 1.3 * max(plain, *(speed for _, speed in one.curve)))
        other = axis.twinx()
        other.plot(*zip(*one.busy, strict=True), color="#d9822b", linewidth=1, label="CPU of the proxy")
        other.set_ylabel("CPU of the proxy, percent of a core")
        other.set_ylim(0, 130)
        for each in (axis, other):
            each.spines["top"].set_visible(False)
    lines = [axes.flat[0].lines[0], axes.flat[0].lines[1], other.lines[0]]
    figure.legend(handles=lines, loc="outside lower center", frameon=False, ncols=3)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
