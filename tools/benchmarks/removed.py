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
from benchmarks.report import Turns
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
    """Goodput without agents, with agents after a middlebox has left, and after a proxy has: medians of rounds.

    Each round has two new labs, the one without agents first or last: two that are alike differ as long as they stand.
    """
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        for name, rate in _round(workdir, mode, number, seconds).items():
            found[name]["gbit_s"].append(rate)
    return {name: Turns(rates, found["no agents"]) for name, rates in found.items()}


def _round(workdir: Path, mode: str, number: int, seconds: float) -> dict[str, float]:
    text = labs.proxied(mode, 4, {FRONT: BEHIND}, others=BOX)
    text = text.replace('name = "a"\n', f'name = "a"\n{POLICY}', 1)
    order = (False, True) if number % 2 else (True, False)
    with ExitStack() as ends:
        made = {
            agents: ends.enter_context(
                labs.up(text, workdir, f"{name}-{mode}-{number}", f"{name}{os.getpid()}", agents=agents)
            )
            for agents in order
            for name in ("left" if agents else "plain",)
        }
        ours, plain = made[True], made[False]
        for lab in (ours, plain):
            for port in (BEHIND, BOXED):
                source = [sys.executable, str(TOOLS / "benchmarks/flow.py"), "source", str(port)]
                lab.start("d", source, name=f"source-{port}")
                wait_for_port(lab, port)
        haproxy = labs.start_haproxy(ours)
        ends.callback(haproxy.wait)
        ends.callback(haproxy.terminate)
        wait_for_port(ours, FRONT, "b")
        direct = [_direct(plain, seconds)]
        boxed = asyncio.run(_box_leaves(ours, seconds))
        direct.append(_direct(plain, seconds))
        proxied = asyncio.run(_proxy_leaves(ours, seconds))
        direct.append(_direct(plain, seconds))
    return {
        "no agents": statistics.mean(direct),
        "a middlebox was removed": boxed,
        "a proxy was removed": proxied,
    }


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
