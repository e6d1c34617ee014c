"""What is left to pay once a middlebox has been removed, or a proxy: beside the same session without agents.

    a: sinks ── router ── b: a kernel box, HAProxy ── router ── d: source

Two labs of this kind stand side by side, one without agents, and take turns. With agents each download goes through b
first; it is measured from the moment on when b has left it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import dysco
from benchmarks.flows import SETTLED_S, START_S, Sinks, leave, pairs
from benchmarks.reconfigure import TOOLS, wait_for_port
from benchmarks.testbed import BenchError
from dysco.lab import Lab
from proofs import labs

SESSIONS: Final = 2
FRONT: Final = 8081  # of the proxy
BEHIND: Final = 7001  # of the source, for the proxy
BOXED: Final = 9000  # of the source, through the box
BOX: Final = """
[[host.config.box]]
name = "box"
kind = "kernel"
"""
POLICY: Final = """
[[host.config.policy]]
name = "boxed"
match = "dst port 9000"
hops = ["b"]
"""
Figures = dict[str, float]


def run(workdir: Path, mode: str, rounds: int, seconds: float) -> dict[str, Figures]:
    """Goodput without agents, with agents after a middlebox has left, and after a proxy has: medians, interleaved."""
    text = labs.proxied(mode, 4, {FRONT: BEHIND}, others=BOX)
    text = text.replace('name = "a"\n', f'name = "a"\n{POLICY}', 1)
    found: defaultdict[str, list[float]] = defaultdict(list)
    with ExitStack() as ends:
        ours = ends.enter_context(labs.up(text, workdir, f"left-{mode}", f"left{os.getpid()}"))
        plain = ends.enter_context(
            labs.up(text, workdir, f"plain-{mode}", f"plain{os.getpid()}", agents=False)
        )
        for lab in (ours, plain):
            for port in (BEHIND, BOXED):
                source = [sys.executable, str(TOOLS / "benchmarks/flow.py"), "source", str(port)]
                lab.start("d", source, name=f"source-{port}")
                wait_for_port(lab, port)
        haproxy = labs.start_haproxy(ours)
        ends.callback(haproxy.wait)
        ends.callback(haproxy.terminate)
        wait_for_port(ours, FRONT, "b")
        for _ in range(rounds):
            found["no agents"].append(_direct(plain, seconds))
            found["a middlebox was removed"].append(asyncio.run(_box_leaves(ours, seconds)))
            found["no agents"].append(_direct(plain, seconds))
            found["a proxy was removed"].append(asyncio.run(_proxy_leaves(ours, seconds)))
    return {name: {"gbit_s": statistics.median(rates)} for name, rates in found.items()}


def _direct(lab: Lab, seconds: float) -> float:
    sinks = Sinks(lab, [(lab.address("d"), BOXED)] * SESSIONS, START_S)
    try:
        sinks.wait()
        began, end = _time(seconds)
    finally:
        sinks.stop()
    return sinks.goodput(began, end)


async def _box_leaves(lab: Lab, seconds: float) -> float:
    sinks = Sinks(lab, [(lab.address("d"), BOXED)] * SESSIONS, START_S)
    try:
        sinks.wait()
        async with dysco.connect(lab.socket("a")) as agent:
            last = [
                step async for step in agent.session(f"dst port {BOXED}").remove("b") if step.kind == "end"
            ]
            if [step.phase for step in last] != ["done"] * SESSIONS:
                raise BenchError(f"the middlebox has not left: {last}")
        began, end = await asyncio.to_thread(_time, seconds)
    finally:
        sinks.stop()
    return sinks.goodput(began, end)


async def _proxy_leaves(lab: Lab, seconds: float) -> float:
    targets: Sequence[tuple[str, int]] = [(lab.address("b"), FRONT)] * SESSIONS
    sinks = Sinks(lab, targets, START_S)
    try:
        async with dysco.connect(lab.socket("b")) as agent:
            await leave(agent, await pairs(agent, SESSIONS), FRONT)
        began, end = await asyncio.to_thread(_time, seconds)
    finally:
        sinks.stop()
    return sinks.goodput(began, end)


def _time(seconds: float) -> tuple[float, float]:
    """Let so many seconds pass after a moment for everything to settle; when they began and ended."""
    time.sleep(SETTLED_S)
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()
