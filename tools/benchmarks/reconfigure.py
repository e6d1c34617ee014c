"""Changes of live chains: how long they take, what a bulk transfer notices, how fast many sessions leave a host.

    a ── router ── m1 .. m4 (kernel boxes) ── router ── d       no delay but the machine's own

For chains of 1 to 4 hops the first box of an idle session is taken out and put back. A change is done when its left
anchor says so. Beside it stands the round trip between the anchors (ping), and what a change takes beyond two of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dysco
from benchmarks.testbed import BenchError
from dysco.chains import Step
from dysco.client import Dysco
from dysco.lab import Lab, load

TOOLS = Path(__file__).resolve().parents[1]
PORT = 7100
HOLD_PORT = 7000
BOXES = 4
WINDOW_S = 0.2
Figures = dict[str, float]
Curve = list[tuple[float, float]]

LAB = """
[lab]
name = "change"
mode = "{mode}"

[[host]]
name = "a"
[[host.config.policy]]
name = "through"
match = "dst portrange 7000-7199"
hops = ["m1"]
"""
BOX = """
[[host]]
name = "m{number}"
[host.config]
box = [{{ name = "box{number}", kind = "kernel" }}]
"""
SERVER = """
[[host]]
name = "d"
"""


@contextmanager
def lab(workdir: Path, mode: str) -> Iterator[Lab]:
    """A lab with agents, taken down at the end."""
    path = workdir / f"change-{mode}.toml"
    boxes = "".join(BOX.format(number=number) for number in range(1, BOXES + 1))
    path.write_text(LAB.format(mode=mode) + boxes + SERVER)
    made = load(path, prefix=f"change{os.getpid()}", root=workdir / mode)
    try:
        made.up()
        yield made
    finally:
        made.down()


def run(workdir: Path, mode: str, changes: int, sessions: int) -> tuple[dict[str, Figures], Curve]:
    """Measure; figures by what was measured, and goodput over time (seconds, Gbit/s) of the bulk transfer."""
    results: dict[str, Figures] = {}
    with lab(workdir, mode) as made:
        made.start(
            "d", [sys.executable, str(TOOLS / "benchmarks/flow.py"), "source", str(PORT)], name="source"
        )
        _wait_for_port(made, PORT)
        results.update(asyncio.run(_times(made, changes)))
        found, curve = asyncio.run(_bulk(made))
        results["bulk transfer"] = found
        results[f"{sessions} sessions leave"] = asyncio.run(_leave(made, sessions))
    return results, curve


async def _times(made: Lab, changes: int) -> dict[str, Figures]:
    results: dict[str, Figures] = {}
    target = f"('{made.address('d')}', {PORT + 50})"
    idle = ["-c", f"import socket, sys; link = socket.create_connection({target}); sys.stdin.read()"]
    hold = [
        "-c",
        f"import socket; one = socket.create_server(('', {PORT + 50})); [one.accept() for _ in range(99)]",
    ]
    made.start("d", [sys.executable, *hold], name="hold")
    _wait_for_port(made, PORT + 50)
    process = _started(made.command("a", [sys.executable, *idle]))
    session = f"dst port {PORT + 50}"
    try:
        async with dysco.connect(made.socket("a")) as agent:
            handle = agent.session(session)
            await _established(agent, PORT + 50)
            for length in range(1, BOXES + 1):
                names = [f"m{number}" for number in range(1, length + 1)]
                await _done(handle.set_hops(names))
                took: list[float] = []
                for _ in range(changes):
                    took.append(await _done(handle.remove("m1")))
                    took.append(await _done(handle.insert("m1")))
                right = names[1] if length > 1 else "d"
                rtt = _round_trip(made, "a", right)
                median = statistics.median(took) * 1000
                results[f"idle, {length} hops"] = {
                    "change_ms_p50": median,
                    "change_ms_p90": statistics.quantiles(took, n=10)[-1] * 1000,
                    "rtt_ms": rtt,
                    "beyond_two_rtt_ms": median - 2 * rtt,
                }
            await _done(handle.set_hops(["m1"]))
    finally:
        process.kill()
        process.wait()
    return results


async def _bulk(made: Lab) -> tuple[Figures, Curve]:
    """Goodput of one transfer in the 200 ms around each change, as a ratio to the 200 ms before."""
    samples = made.directory / "samples"
    argv = [sys.executable, "-m", "benchmarks.flow", "sink", made.address("d"), str(PORT), "8", str(samples)]
    timeouts = _timeouts(made)
    process = _started(made.command("a", argv))
    moments: list[float] = []
    async with dysco.connect(made.socket("a")) as agent:
        handle = agent.session(f"dst port {PORT}")
        await _established(agent, PORT)
        await _done(handle.insert("m2", after="m1"))
        for step in (
            (handle.remove, "m1"),
            (handle.insert, "m1"),
            (handle.remove, "m2"),
            (handle.insert, "m2"),
        ):
            await asyncio.sleep(1.0)
            moments.append(time.monotonic())
            await _done(step[0](step[1]))
        await asyncio.to_thread(process.wait, 30)
    points = [tuple(map(float, line.split())) for line in samples.read_text().splitlines()]
    ratios = [
        _rate(points, at - WINDOW_S / 2, at + WINDOW_S / 2)
        / _rate(points, at - 1.5 * WINDOW_S, at - WINDOW_S / 2)
        for at in moments
    ]
    began = points[0][0]
    curve = [
        (at - began, (total - before) / (at - earlier) * 8e-9)
        for (earlier, before), (at, total) in zip(points[:-4:4], points[4::4], strict=False)
    ]
    figures = {
        "goodput_ratio_p50": statistics.median(ratios),
        "goodput_ratio_least": min(ratios),
        "gbit_s": _rate(points, points[0][0], points[-1][0]) * 8e-9,
        "timeouts": _timeouts(made) - timeouts,
    }
    return figures, curve


async def _leave(made: Lab, sessions: int) -> Figures:
    """Seconds until so many live sessions have left a host, every one of them changed by itself."""
    load_argv = [sys.executable, "-m", "benchmarks.load"]
    accepting = made.command("d", [*load_argv, "accept", made.address("d"), str(HOLD_PORT)])
    holding = made.command(
        "a", [*load_argv, "hold", made.address("d"), str(HOLD_PORT), "--count", str(sessions)]
    )
    with (
        _started(accepting) as server,
        _started(holding) as client,
    ):
        try:
            assert server.stdout is not None
            assert client.stdout is not None
            await asyncio.to_thread(server.stdout.readline)
            _wait_for_port(made, HOLD_PORT)
            await asyncio.to_thread(client.stdout.readline)
            began, ends = time.monotonic(), dict[str, int]()
            async with dysco.connect(made.socket("a")) as agent:
                async for step in agent.session(f"dst port {HOLD_PORT}").remove("m1", timeout=120.0):
                    if step.kind == "end":
                        ends[step.phase] = ends.get(step.phase, 0) + 1
            took = time.monotonic() - began
        finally:
            for process in (client, server):
                process.kill()
    return {"seconds": took, "done": ends.get("done", 0), "failed": sum(ends.values()) - ends.get("done", 0)}


def _started(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, cwd=TOOLS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def _done(steps: object) -> float:
    """Run a change; seconds from its first request to its end."""
    requested: float | None = None
    last: Step | None = None
    async for step in steps:  # type: ignore[attr-defined]
        if step.phase == "requested" or requested is None:
            requested = step.after_s
        last = step
    if last is None or last.is_failure or requested is None:
        raise BenchError(f"a change was not made: {last}")
    return last.after_s - requested


async def _established(agent: Dysco, port: int) -> None:
    """Wait for a session to a port."""
    end = time.monotonic() + 10
    while not any(
        one.state == "established" and one.session.endswith(f":{port}") for one in await agent.sessions()
    ):
        if time.monotonic() > end:
            raise BenchError(f"no session to port {port}")
        await asyncio.sleep(0.02)


def _rate(points: list[tuple[float, ...]], start: float, end: float) -> float:
    """Bytes a second between two moments."""
    inside = [one for one in points if start <= one[0] <= end]
    if len(inside) < 2:
        raise BenchError("too few samples of the transfer")
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def _round_trip(made: Lab, node: str, other: str) -> float:
    """Median round trip in milliseconds."""
    found = made.exec(node, ["ping", "-q", "-c", "20", "-i", "0.01", made.address(other)]).stdout
    numbers = re.search(r"= [\d.]+/([\d.]+)/", found)
    if numbers is None:
        raise BenchError(f"ping says nothing of a round trip: {found}")
    return float(numbers[1])


def _timeouts(made: Lab) -> float:
    """Retransmission time-outs that the server's TCP has had."""
    found = made.exec("d", ["nstat", "-asz", "TcpExtTCPTimeouts"]).stdout
    return float(found.split()[-2])


def _wait_for_port(made: Lab, port: int) -> None:
    end = time.monotonic() + 10
    while not made.exec("d", ["ss", "-Hltn", f"sport = :{port}"]).stdout:
        if time.monotonic() > end:
            raise BenchError(f"nobody listens on port {port}")
        time.sleep(0.05)


def plot(curves: dict[str, Curve], rows: dict[str, Figures], path: Path) -> None:
    """Draw goodput over time, and the times of changes by the length of the chain; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), constrained_layout=True)
    for mode, curve in curves.items():
        left.plot([at for at, _ in curve], [rate for _, rate in curve], label=mode, linewidth=1)
    left.set_xlabel("seconds")
    left.set_ylabel("Gbit/s")
    left.set_title("One transfer while its chain is changed four times", loc="left")
    left.set_ylim(bottom=0)
    left.legend()
    idle = {name: row for name, row in rows.items() if "idle" in name}
    right.barh(list(idle), [row["change_ms_p90"] for row in idle.values()], color="#d0d7de", label="p90")
    right.barh(list(idle), [row["change_ms_p50"] for row in idle.values()], color="#0969da", label="p50")
    right.set_xlabel("milliseconds")
    right.set_title("Time of a change", loc="left")
    right.legend()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
