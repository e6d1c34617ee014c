"""Measure dysco beside plain kernel forwarding and HAProxy, in one run, on one topology.

The machine is noisy and absolute figures mean nothing elsewhere: read the ratios. Rounds are interleaved; a
figure is the median of its rounds, its ratio the median of the ratios in each round. Needs root.

    chain       forwarding, agents in the kernel, on TUN devices with offload and without, HAProxy: streams, requests,
                connect()
    three       the same through three middle hosts, without HAProxy
    packets     what the kernel programs cost a packet, chained or not
    unchained   traffic that no policy matches, between hosts with agents and without
    sessions    memory per session, CPU of idle agents and cost per packet with many established sessions
    setups      chain set-ups per second
    reconfigure how long changes of live chains take, and what a bulk transfer notices of them
    removed     goodput once a middlebox or a proxy has left, beside that without any agent
    proxy       goodput and the CPU of HAProxy while it is taken out of its sessions, one group after the other
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure, packets, proxy, reconfigure, removed
from benchmarks.report import Turns, page, plot, table
from benchmarks.testbed import (
    ADDRESSES,
    CLIENT,
    DIRECT_HTTP,
    DIRECT_IPERF,
    HTTP_PORT,
    IPERF_PORT,
    MIDDLE,
    PROXY_HTTP,
    PROXY_IPERF,
    SERVER,
    BenchError,
    Testbed,
    agents,
    counting_programs,
    haproxy,
    process_cpu_seconds,
    resident_bytes,
    servers,
)

WAYS = ("forwarding", "dysco, ebpf", "dysco, tun", "dysco, tun without offload", "HAProxy")
HOLD_PORT = 7000
IDLE_S = 15.0
SESSIONS_A_PROCESS = 10_000  # a process may have some 20,000 descriptors without raising limits
CONNECTS = 1000  # in a turn
REQUESTS_S = (
    5  # of a turn: what 16 connections cost at their beginning and end is below a part in three hundred
)
Figures = dict[str, float]
Rounds = dict[str, dict[str, list[float]]]


class Target(NamedTuple):
    """Whom the bench asks, and at which ports."""

    host: str = SERVER
    http: int = HTTP_PORT
    iperf: int = IPERF_PORT


TARGET = Target()
Way = Callable[[Testbed], AbstractContextManager[Target]]
Measure = Callable[[Testbed, Target, argparse.Namespace], Figures]


def main() -> int:
    """Run what the command line names; 0 if all of it could be measured."""
    parser = argparse.ArgumentParser(
        prog="tools/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help="one or more of the parts above (default: all)")
    parser.add_argument(
        "--way",
        action="append",
        dest="ways",
        choices=WAYS,
        metavar="WAY",
        help="of chain, sessions, reconfigure and proxy, only this one; may be repeated: "
        + ", ".join(map(repr, WAYS)),
    )
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement (default %(default)s)")
    parser.add_argument(
        "--sessions", default="1000,10000,100000", help="numbers of sessions (default %(default)s)"
    )
    parser.add_argument("--family", type=int, choices=(4, 6), default=4)
    parser.add_argument(
        "--changes", type=int, default=50, help="of reconfigure, each way (default %(default)s)"
    )
    parser.add_argument(
        "--leaving",
        default="1000",
        help="of reconfigure, numbers of sessions that leave a host at once (default %(default)s)",
    )
    parser.add_argument(
        "--group", type=int, default=2, help="of proxy, sessions in each of four groups (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument(
        "--page", type=Path, help="put the tables into this page in place of those that it has"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        help="draw the chain's table to this file (PNG or SVG), changes to NAME-reconfigure, proxy to NAME-proxy",
    )
    options = parser.parse_args()
    parts: dict[str, Callable[[Testbed, argparse.Namespace], dict[str, Figures]]] = {
        "chain": chain, "three": three, "packets": lambda bed, options: packets.run(), "unchained": unchained,
        "sessions": sessions, "setups": setups, "reconfigure": reconfigurations, "proxy": proxied, "removed": removals,
    }  # fmt: skip
    wanted = options.what or list(parts)
    for name in wanted:
        if name not in parts:
            parser.error(f"{name!r} is none of {', '.join(parts)}")
    results: dict[str, dict[str, Figures]] = {}
    about = _about()
    try:
        with tempfile.TemporaryDirectory(prefix="dysco-bench-") as directory:
            for name in wanted:
                workdir = Path(directory) / name
                workdir.mkdir()
                with Testbed(workdir, middles=3 if name == "three" else 1) as bed:
                    servers(bed)
                    results[name] = parts[name](bed, options)
                sys.stdout.write(table(name, results[name]) + "\n")
                sys.stdout.flush()
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    if options.json:
        machine = {"kernel": platform.release(), "python": platform.python_version()}
        ratios = {
            name: {row: figures.ratios for row, figures in rows.items() if isinstance(figures, Turns)}
            for name, rows in results.items()
        }
        found = {"machine": machine, "results": results, "ratios": ratios}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.page:
        page(options.page, results, about)
    if options.plot and "chain" in results:
        plot(results["chain"], options.plot)
    return 0


def _about() -> list[str]:
    """What was run and on what; the load average says what else the machine had to do."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    return [
        f"- Command: `{shlex.join(['tools/bench', *_measured(sys.argv[1:])])}`",
        f"- Machine: {os.cpu_count()} cores ({model}), Linux {platform.release()}, Python {platform.python_version()}",
        f"- Load average before: {os.getloadavg()[0]:.1f}; client, server and all agents share the cores",
    ]


def _measured(words: list[str]) -> list[str]:
    """The words of a command line without the files that it writes, each named by a word of its own."""
    files = ("--json", "--page", "--plot")
    return [word for before, word in zip(["", *words], words, strict=False) if not {before, word} & {*files}]


def reconfigurations(bed: Testbed, options: argparse.Namespace) -> dict[str, Figures]:
    """Changes of live chains, with packets moved by the kernel and by the agents."""
    leaving = [int(word) for word in options.leaving.split(",") if word]
    found = {
        mode: reconfigure.run(bed.workdir, mode, options.changes, leaving)
        for mode in ("ebpf", "tun")
        if not options.ways or f"dysco, {mode}" in options.ways
    }
    if options.plot:
        reconfigure.plot(found, options.plot.with_stem(f"{options.plot.stem}-reconfigure"))
    return {f"{mode}: {name}": row for mode, one in found.items() for name, row in one.figures.items()}


def proxied(bed: Testbed, options: argparse.Namespace) -> dict[str, Figures]:
    """A proxy that leaves its sessions."""
    found = {
        mode: proxy.run(bed.workdir, mode, options.group, options.seconds)
        for mode in ("ebpf", "tun")
        if not options.ways or f"dysco, {mode}" in options.ways
    }
    if options.plot:
        proxy.plot(found, options.plot.with_stem(f"{options.plot.stem}-proxy"))
    return {mode: one.figures for mode, one in found.items()}


def removals(bed: Testbed, options: argparse.Namespace) -> dict[str, Figures]:
    """What is left to pay once a middlebox or a proxy has left; of the default mode, which is what people have."""
    return removed.run(bed.workdir, "ebpf", options.rounds, options.seconds)


def chain(bed: Testbed, options: argparse.Namespace) -> dict[str, Figures]:
    """The ways through the middle hosts, side by side: each on a bed of its own, with all that it needs running.

    In each round one thing is measured after the other, each in turns from way to way: what else the machine does, or
    how fast it happens to be, meets all ways alike. Connections come last: what agents still know of them costs time.
    """
    ways: dict[str, Way] = {
        "forwarding": lambda at: nullcontext(TARGET),
        "dysco, ebpf": lambda at: _target(agents(at, mode="ebpf")),
        "dysco, tun": lambda at: _target(agents(at, mode="tun")),
        "dysco, tun without offload": lambda at: _target(agents(at, mode="tun", offload=False)),
        "HAProxy": lambda at: _target(haproxy(at, options.family), Target(MIDDLE, PROXY_HTTP, PROXY_IPERF)),
    }
    if options.ways:
        ways = {name: way for name, way in ways.items() if name in options.ways}
    # Many short turns of what varies most: the slowest request in 100 is one that had to wait for a processor, and by
    # how the connections fall to nginx's workers it waits 0.7 to 3.5 ms, with or without agents.
    requests = [_keepalive] * options.seconds
    measures = (_stream, _eight, *requests, _connects, _each)
    return _medians(_in_turns(bed, options, ways, 1, measures))


def three(bed: Testbed, options: argparse.Namespace) -> dict[str, Figures]:
    """As `chain`, on beds with three middle hosts; five agents."""
    parts = ("forwarding", "dysco, ebpf", "dysco, tun")
    wanted = [name for name in parts if name in (options.ways or parts)]
    return chain(bed, argparse.Namespace(**{**vars(options), "ways": wanted}))


def unchained(bed: Testbed, options: argparse.Namespace) -> dict[str, Figures]:
    """The same direct sessions without agents and beside agents whose policies do not match them."""
    direct = Target(SERVER, DIRECT_HTTP, DIRECT_IPERF)
    ways: dict[str, Way] = {
        "no agents": lambda at: nullcontext(direct),
        "agents": lambda at: _target(agents(at), direct),
    }
    return _medians(_in_turns(bed, options, ways, 4, (_stream, *[_keepalive] * options.seconds)))


@contextmanager
def _target(running: AbstractContextManager[object], target: Target = TARGET) -> Iterator[Target]:
    """Have something run while a target is asked."""
    with running:
        yield target


def _in_turns(
    bed: Testbed,
    options: argparse.Namespace,
    ways: Mapping[str, Way],
    turns: int,
    measures: Sequence[Measure],
) -> Rounds:
    """Measure each way so many times in each round; turns go to and fro.

    There are as many beds as ways, and with each round all ways go on to the next bed: two beds that are alike, without
    any agent, differ by up to 7 %, as long as they stand. Before each turn the machine is at rest, so that nobody pays
    for the end of another one's sessions.
    """
    rounds: Rounds = {name: defaultdict(list) for name in ways}
    with ExitStack() as standing:
        beds = [bed]
        for number in range(1, len(ways)):
            workdir = bed.workdir / f"bed{number}"
            workdir.mkdir()
            beds.append(standing.enter_context(Testbed(workdir, f"b{number}", middles=len(bed.middles))))
            servers(beds[-1])
        for _ in range(options.rounds):
            with ExitStack() as running:
                places = [
                    (name, at, running.enter_context(way(at)))
                    for (name, way), at in zip(ways.items(), beds, strict=True)
                ]
                for taken in measures:
                    for _ in range(turns):
                        for name, at, target in places:
                            measure.wait_for_rest()
                            _note(rounds[name], taken(at, target, options))
                        places.reverse()
            beds.append(beds.pop(0))
    return rounds


def _stream(bed: Testbed, target: Target, options: argparse.Namespace) -> Figures:
    found = measure.stream(bed, target.iperf, 1, options.seconds, host=target.host, family=options.family)
    return {"stream_gbit_s": found["gbit_s"], "stream_cpu_s_per_gb": found["cpu_s_per_gb"]}


def _eight(bed: Testbed, target: Target, options: argparse.Namespace) -> Figures:
    found = measure.stream(bed, target.iperf, 8, options.seconds, host=target.host, family=options.family)
    return {"eight_streams_gbit_s": found["gbit_s"], "eight_streams_cpu_s_per_gb": found["cpu_s_per_gb"]}


def _keepalive(bed: Testbed, target: Target, options: argparse.Namespace) -> Figures:
    """Requests on established connections."""
    found = measure.requests(
        bed, target.http, REQUESTS_S, keepalive=True, host=target.host, family=options.family
    )
    return {
        "keepalive_requests_s": found["requests_s"],
        "keepalive_cpu_us": found["cpu_us"],
        "keepalive_p99_ms": found["p99_ms"],
    }


def _each(bed: Testbed, target: Target, options: argparse.Namespace) -> Figures:
    found = measure.requests(
        bed, target.http, options.seconds, keepalive=False, host=target.host, family=options.family
    )
    return {"connection_each_requests_s": found["requests_s"]}


def _connects(bed: Testbed, target: Target, options: argparse.Namespace) -> Figures:
    return measure.connects(bed, target.http, CONNECTS, host=target.host, family=options.family)


def sessions(bed: Testbed, options: argparse.Namespace) -> dict[str, Figures]:
    """Memory of each agent per established session, and what a packet of one more costs beside so many.

    A bed for each number of sessions, side by side; streams run in turns from bed to bed. On TUN devices agents move
    each packet: agents_us_a_packet is what their processes use, for each time that a packet passes a device. In the
    kernel it is kernel_ns_a_packet: how long the classifiers run, for each time that one does.
    """
    results: dict[str, Figures] = {}
    counts = sorted(int(word) for word in options.sessions.split(","))
    for mode in ("tun", "ebpf"):
        if options.ways and f"dysco, {mode}" not in options.ways:
            continue
        with counting_programs(), ExitStack() as stack:
            places = {}
            for count in counts:
                workdir = bed.workdir / f"{mode}{count}"
                workdir.mkdir()
                own = stack.enter_context(Testbed(workdir, f"{mode}{count}"))
                places[f"{mode}, {count} sessions"] = (own, *_full(own, stack, mode, count, options.family))
            idle = _idle([running for _, running, _ in places.values()])
            rounds: Rounds = {name: defaultdict(list) for name in places}
            turns = list(places.items())
            for _ in range(options.rounds):
                for name, (own, running, _) in turns:
                    _note(rounds[name], _stream_beside(own, running, options, mode))
                turns.reverse()
            for (name, (_, _, memory)), used in zip(places.items(), idle, strict=True):
                for figure, value in {"idle_cpu_percent": used, **memory}.items():
                    rounds[name][figure] = [value] * options.rounds
            results.update(_medians(rounds))
    return results


def _full(
    own: Testbed, stack: ExitStack, mode: str, count: int, family: int
) -> tuple[dict[str, subprocess.Popen[bytes]], Figures]:
    """Agents with so many established sessions, and the bytes that each takes at each agent."""
    policy = f'[[policy]]\nname = "hold"\nmatch = "dst portrange {HOLD_PORT}-{HOLD_PORT + 99}"\nhops = ["middle"]\n'
    running = stack.enter_context(agents(own, mode=mode, policies=policy))
    servers(own)
    measure.stream(own, IPERF_PORT, 1, 1, family=family)
    empty = {host: resident_bytes(process) for host, process in running.items()}
    held = 0
    for port in itertools.count(HOLD_PORT):
        share = min(SESSIONS_A_PROCESS, count - held)
        _hold(own, stack, port, share, family)
        held += share
        if held == count:
            break
    memory = {host: resident_bytes(process) - empty[host] for host, process in running.items()}
    _say(f"{mode}, {count} sessions are open")
    return running, {f"bytes_a_session_{host}": grown / count for host, grown in memory.items()}


def _idle(beds: Sequence[Mapping[str, subprocess.Popen[bytes]]]) -> list[float]:
    """CPU of the agent of each bed that uses most while nothing happens, in percent of one core."""
    time.sleep(IDLE_S / 3)  # what the set-ups have left to do
    before = [[process_cpu_seconds(process) for process in running.values()] for running in beds]
    time.sleep(IDLE_S)
    after = [[process_cpu_seconds(process) for process in running.values()] for running in beds]
    return [
        max(100 * (now - then) / IDLE_S for now, then in zip(*both, strict=True))
        for both in zip(after, before, strict=True)
    ]


def _say(text: str) -> None:
    """Tell how far a long measurement has come."""
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()


def _hold(bed: Testbed, talkers: ExitStack, port: int, count: int, family: int) -> None:
    """Open sessions to a port of the server and keep them until the talkers end."""
    target = measure.address(SERVER, family)
    _expect(talkers.enter_context(_talker(bed, SERVER, "accept", target, str(port))))
    holding = talkers.enter_context(_talker(bed, CLIENT, "hold", target, str(port), "--count", str(count)))
    _, errors, *first = _expect(holding).split(maxsplit=2)
    if int(errors):
        raise BenchError(f"{errors} of {count} sessions failed: {first}")


def _stream_beside(
    bed: Testbed, running: Mapping[str, subprocess.Popen[bytes]], options: argparse.Namespace, mode: str
) -> Figures:
    """One stream, and what the agents or their programs have to do for a packet of it."""

    def so_far() -> tuple[float, int]:
        if mode == "ebpf":
            return bed.programs_ran(running)
        packets = sum(bed.packets(host, device) for host in running for device in ("dysco0", "dysco1"))
        return sum(map(process_cpu_seconds, running.values())), packets

    before, packets_before = so_far()
    found = measure.stream(bed, IPERF_PORT, 1, options.seconds, family=options.family)
    after, packets_after = so_far()
    cost = (after - before) / max(1, packets_after - packets_before)
    each = {"kernel_ns_a_packet": cost * 1e9} if mode == "ebpf" else {"agents_us_a_packet": cost * 1e6}
    return {"stream_gbit_s": found["gbit_s"], **each}


def setups(bed: Testbed, options: argparse.Namespace) -> dict[str, Figures]:
    """1,000 sessions opened and closed per second through three agents for 30 s."""
    target = ADDRESSES[SERVER][0 if options.family == 4 else 1]
    policy = f'[[policy]]\nname = "churn"\nmatch = "dst port {HOLD_PORT}"\nhops = ["middle"]\n'
    arguments = (target, str(HOLD_PORT), "--rate", "1000", "--seconds", "30")
    with agents(bed, policies=policy), _talker(bed, SERVER, "accept", target, str(HOLD_PORT)) as accepting:
        _expect(accepting)
        with _talker(bed, CLIENT, "churn", *arguments) as churning:
            done, errors, seconds, *first = _expect(churning).split(maxsplit=3)
    if int(errors):
        sys.stderr.write(f"bench: setups: {errors} errors, the first: {first}\n")
    return {
        "three agents": {
            "sessions": float(done),
            "errors": float(errors),
            "sessions_s": float(done) / float(seconds),
        }
    }


@contextmanager
def _talker(bed: Testbed, host: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run benchmarks.load in a host until the block ends."""
    path = f"PYTHONPATH={Path(__file__).resolve().parents[1]}"
    argv = bed.inside(host, "env", path, sys.executable, "-m", "benchmarks.load", *arguments)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(120)


def _expect(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError("a load program ended before it was ready")
    return line.strip()


def _note(into: dict[str, list[float]], figures: Figures) -> None:
    for name, value in figures.items():
        into[name].append(value)


def _medians(rounds: Rounds) -> dict[str, Figures]:
    first = next(iter(rounds.values()))
    return {way: Turns(found, first) for way, found in rounds.items()}


if __name__ == "__main__":
    sys.exit(main())
