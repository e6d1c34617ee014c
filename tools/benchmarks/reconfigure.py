"""Changes of live chains: how long they take, what a bulk transfer notices, how fast many sessions leave a host.

    a ── router ── m1 .. m4 (kernel boxes) ── router ── d       no delay but the machine's own

For chains of 1 to 4 hops the first box of an idle session is taken out and put back. A change is done when its left
anchor says so. Beside it stands the round trip between the anchors (ping), what a change takes beyond two of them, and
when each phase began. Others on the machine make everything slower: the load average stands beside each figure, and
CPU time of the agents beside the times.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dysco
from benchmarks.testbed import BenchError
from dysco.chains import Step
from dysco.client import Dysco
from dysco.lab import Lab
from proofs import labs

TOOLS = Path(__file__).resolve().parents[1]
PORT = 7100
HOLD_PORT = 7000
BOXES = 4
WINDOW_S = 0.2
LINGER_S = 3.0  # a host that a session has left remembers it for two
Figures = dict[str, float]
Curve = list[tuple[float, float]]
Phases = defaultdict[str, list[float]]


@dataclass
class Found:
    """What was measured.

    figures: by what they are of. curve: goodput over time (seconds, Gbit/s), with the moments of changes (seconds).
    took_ms: times of changes by hops of the chain.
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    curve: Curve = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    took_ms: dict[int, list[float]] = field(default_factory=dict)


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


def text(mode: str) -> str:
    """The file of the lab."""
    boxes = "".join(BOX.format(number=number) for number in range(1, BOXES + 1))
    return LAB.format(mode=mode) + boxes + SERVER


def run(workdir: Path, mode: str, changes: int, sessions: Sequence[int]) -> Found:
    """Measure all of it."""
    found = Found()
    with labs.up(text(mode), workdir, f"change-{mode}", f"change{os.getpid()}") as made:
        made.start(
            "d", [sys.executable, str(TOOLS / "benchmarks/flow.py"), "source", str(PORT)], name="source"
        )
        wait_for_port(made, PORT)
        asyncio.run(_times(made, changes, found))
        asyncio.run(_bulk(made, found))
        for count in sessions:
            found.figures[f"{count:,} sessions leave"] = asyncio.run(_leave(made, count))
    return found


async def _times(made: Lab, changes: int, found: Found) -> None:
    target = f"('{made.address('d')}', {PORT + 50})"
    idle = ["-c", f"import socket, sys; link = socket.create_connection({target}); sys.stdin.read()"]
    hold = [
        "-c",
        f"import socket; one = socket.create_server(('', {PORT + 50})); [one.accept() for _ in range(99)]",
    ]
    made.start("d", [sys.executable, *hold], name="hold")
    wait_for_port(made, PORT + 50)
    process = started(made.command("a", [sys.executable, *idle]))
    session = f"dst port {PORT + 50}"
    try:
        async with dysco.connect(made.socket("a")) as agent:
            handle = agent.session(session)
            await _established(agent, PORT + 50)
            for length in range(1, BOXES + 1):
                names = [f"m{number}" for number in range(1, length + 1)]
                await _done(handle.set_hops(names))
                took: list[float] = []
                phases: Phases = defaultdict(list)
                used = _cpu_s(made)
                for _ in range(changes):
                    took.append(await _done(handle.remove("m1"), phases))
                    took.append(await _done(handle.insert("m1"), phases))
                used = _cpu_s(made) - used
                right = names[1] if length > 1 else "d"
                rtt = _round_trip(made, "a", right)
                median = statistics.median(took) * 1000
                found.took_ms[length] = [one * 1000 for one in took]
                found.figures[f"idle, {length} {'hops' if length > 1 else 'hop'}"] = {
                    "change_ms_p50": median,
                    "change_ms_p90": statistics.quantiles(took, n=10)[-1] * 1000,
                    "rtt_ms": rtt,
                    "beyond_two_rtt_ms": median - 2 * rtt,
                    **{f"to_{name}_ms": statistics.median(at) * 1000 for name, at in phases.items()},
                    "cpu_ms": used * 1000 / len(took),
                    "load": os.getloadavg()[0],
                }
            await _done(handle.set_hops(["m1"]))
    finally:
        process.kill()
        process.wait()


async def _bulk(made: Lab, found: Found) -> None:
    """Goodput of one transfer in the 200 ms around each change, as a ratio to the 200 ms before.

    Beside it the same ratio half a second earlier, when nothing is changed: what the machine does by itself.
    """
    samples = made.directory / "samples"
    argv = [sys.executable, "-m", "benchmarks.flow", "sink", made.address("d"), str(PORT), "8", str(samples)]
    timeouts = _timeouts(made)
    process = started(made.command("a", argv))
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
    ratios = [_ratio(points, at) for at in moments]
    quiet = [_ratio(points, at - 0.5) for at in moments]
    began = points[0][0]
    found.moments = [at - began for at in moments]
    found.curve = [
        (at - began, (total - before) / (at - earlier) * 8e-9)
        for (earlier, before), (at, total) in zip(points[:-4:4], points[4::4], strict=False)
    ]
    found.figures["bulk transfer"] = {
        "goodput_ratio_p50": statistics.median(ratios),
        "goodput_ratio_least": min(ratios),
        "without_change_p50": statistics.median(quiet),
        "without_change_least": min(quiet),
        "gbit_s": rate(points, points[0][0], points[-1][0]) * 8e-9,
        "timeouts": _timeouts(made) - timeouts,
        "load": os.getloadavg()[0],
    }


async def _leave(made: Lab, sessions: int) -> Figures:
    """Let so many live sessions leave a host, all asked for at once and each changed by itself, and come back.

    seconds: until all have left. failed: in both directions. grown_mb: what an agent has more in memory at the end.
    """
    load_argv = [sys.executable, "-m", "benchmarks.load"]
    accepting = made.command("d", [*load_argv, "accept", made.address("d"), str(HOLD_PORT)])
    holding = made.command(
        "a", [*load_argv, "hold", made.address("d"), str(HOLD_PORT), "--count", str(sessions)]
    )
    with started(accepting) as server:
        try:
            assert server.stdout is not None
            await asyncio.to_thread(server.stdout.readline)
            wait_for_port(made, HOLD_PORT)
            with started(holding) as client:
                try:
                    assert client.stdout is not None
                    _, errors, *first = (await asyncio.to_thread(client.stdout.readline)).split(maxsplit=2)
                    if int(errors):
                        raise BenchError(f"{errors} of {sessions} sessions failed: {first}")
                    memory, cpu = _memory(made), _cpu_s(made)
                    took, failed = await _all(made, "remove", "m1")
                    cpu = _cpu_s(made) - cpu
                    failed += (await _all(made, "insert", "m1"))[1]
                    await asyncio.sleep(LINGER_S)
                    grown = max(now - before for now, before in zip(_memory(made), memory, strict=True))
                finally:
                    client.kill()
        finally:
            server.kill()
    return {
        "seconds": took,
        "failed": failed,
        "cpu_ms_a_change": cpu * 1000 / sessions,
        "grown_mb": grown / 1e6,
        "load": os.getloadavg()[0],
    }


async def _all(made: Lab, kind: str, box: str) -> tuple[float, int]:
    """Change all sessions that are held; seconds, and how many changes were not made."""
    began, failed = time.monotonic(), 0
    async with dysco.connect(made.socket("a")) as agent:
        steps = getattr(agent.session(f"dst port {HOLD_PORT}"), kind)(box, timeout=120.0)
        async for step in steps:
            failed += step.is_failure
    return time.monotonic() - began, failed


def _agents(made: Lab) -> list[int]:
    return [made.agent_pid(node) for node in ("a", "m1", "d")]


def _cpu_s(made: Lab) -> float:
    """CPU seconds that the agents at both ends and of the first box have used."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in _agents(made)) / 1e9


def _memory(made: Lab) -> list[int]:
    """Their resident memory in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    return [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in _agents(made)]


def started(argv: list[str]) -> subprocess.Popen[str]:
    """Start a program of the bench, with pipes to talk to it."""
    return subprocess.Popen(argv, cwd=TOOLS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def _done(steps: object, phases: Phases | None = None) -> float:
    """Run a change; seconds from its first request to its end. phases: seconds until each began are noted there."""
    requested: float | None = None
    last: Step | None = None
    async for step in steps:  # type: ignore[attr-defined]
        if step.phase == "requested" or requested is None:
            requested = step.after_s
        elif phases is not None and step.kind != "end" and step.phase != "waiting":
            phases[step.phase.replace(" ", "_")].append(step.after_s - requested)
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


def _ratio(points: list[tuple[float, ...]], at: float) -> float:
    """What arrives in the window around a moment, by what arrived in the window before."""
    around = rate(points, at - WINDOW_S / 2, at + WINDOW_S / 2)
    return around / rate(points, at - 1.5 * WINDOW_S, at - WINDOW_S / 2)


def rate(points: list[tuple[float, ...]], start: float, end: float) -> float:
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


def wait_for_port(made: Lab, port: int, node: str = "d") -> None:
    """Wait until somebody listens there."""
    end = time.monotonic() + 10
    while not made.exec(node, ["ss", "-Hltn", f"sport = :{port}"]).stdout:
        if time.monotonic() > end:
            raise BenchError(f"nobody listens on port {port}")
        time.sleep(0.05)


def plot(found: dict[str, Found], path: Path) -> None:
    """Draw goodput over time, and how times of changes are distributed by the length of the chain; needs matplotlib.

    found: by mode.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"ebpf": "#0b4fb3", "tun": "#3f8cf0"}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), constrained_layout=True)
    for mode, one in found.items():
        left.plot(
            [at for at, _ in one.curve],
            [speed for _, speed in one.curve],
            label=mode,
            linewidth=1,
            color=colours.get(mode),
        )
        for at in one.moments:
            left.axvline(at, color=colours.get(mode), linewidth=0.8, linestyle=":")
    left.set_xlabel("seconds; dotted: a change is asked for")
    left.set_ylabel("Gbit/s")
    left.set_title("Goodput of one transfer while its chain is changed four times", loc="left", fontsize=11)
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    for offset, (mode, one) in zip((-0.19, 0.19), found.items(), strict=False):
        boxes = right.boxplot(
            list(one.took_ms.values()),
            positions=[length + offset for length in one.took_ms],
            widths=0.32,
            whis=(1, 99),
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "white"},
        )
        for box in boxes["boxes"]:
            box.set_color(colours.get(mode))
        right.plot([], [], color=colours.get(mode), linewidth=6, label=mode)
    lengths = list(next(iter(found.values())).took_ms)
    right.set_xticks(lengths, [str(length) for length in lengths])
    right.set_xlabel("hops of the chain")
    right.set_ylabel("milliseconds")
    right.set_ylim(bottom=0)
    right.set_title(
        "Time of a change of an idle session (quartiles; whiskers: 1 % and 99 %)", loc="left", fontsize=11
    )
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
