"""What the bench measures, each by a real program: iperf3, wrk, and a loop around connect()."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.testbed import ADDRESSES, CLIENT, SERVER, BenchError, Testbed

_REST_S: Final = 5.0
_AT_REST: Final = (
    0.1  # share of the processors that agents on ten hosts and kernels use who have nothing to do
)
_CONNECT = """
import socket, sys, time
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
times = []
for _ in range(count):
    s = socket.socket(family, socket.SOCK_STREAM)
    begin = time.perf_counter()
    s.connect((address, port))
    times.append(time.perf_counter() - begin)
    s.close()
times.sort()
print(times[len(times) // 2], times[len(times) * 99 // 100])
"""


def address(host: str, family: int) -> str:
    """The address of a host in family 4 or 6."""
    return ADDRESSES[host][0 if family == 4 else 1]


def wait_for_rest() -> None:
    """Wait until little runs on this machine, or for `_REST_S` at most."""
    deadline = time.monotonic() + _REST_S
    busy = 1.0
    while busy > _AT_REST and time.monotonic() < deadline:
        before = _processor_times()
        time.sleep(0.1)
        used, idle = (now - then for now, then in zip(_processor_times(), before, strict=True))
        busy = used / max(1, used + idle)


def _processor_times() -> tuple[int, int]:
    """Ticks that all processors have been in use, and idle (proc_stat(5))."""
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]]
    return sum(fields) - fields[3] - fields[4], fields[3] + fields[4]


def stream(
    bed: Testbed, port: int, streams: int, seconds: int, *, host: str = SERVER, family: int = 4
) -> dict[str, float]:
    """Run iperf3; return `gbit_s` as received and `cpu_s_per_gb`, CPU seconds of all that takes part a gigabyte."""
    before = bed.cpu_seconds()
    text = bed.sh(
        CLIENT, "iperf3", "-J", "-c", address(host, family), "-p", str(port), "-t", str(seconds),
        "-P", str(streams), "--connect-timeout", "5000", limit_s=seconds + 30,
    )  # fmt: skip
    used = bed.cpu_seconds() - before
    end = json.loads(text)["end"]
    received = end["sum_received"]
    if not received["bytes"]:
        raise BenchError(f"iperf3 to port {port} moved nothing")
    return {"gbit_s": received["bits_per_second"] / 1e9, "cpu_s_per_gb": used / (received["bytes"] / 1e9)}


def requests(
    bed: Testbed, port: int, seconds: int, *, keepalive: bool, host: str = SERVER, family: int = 4
) -> dict[str, float]:
    """Run wrk with 16 connections; return `requests_s`, `cpu_us`, `p50_ms`, `p99_ms`; errors end the bench.

    cpu_us: of all that takes part, for one request.
    """
    before = bed.cpu_seconds()
    target = address(host, family)
    url = f"http://[{target}]:{port}/" if family == 6 else f"http://{target}:{port}/"
    headers = [] if keepalive else ["-H", "Connection: close"]
    text = bed.sh(
        CLIENT, "wrk", "-t2", "-c16", f"-d{seconds}", "--latency", *headers, url, limit_s=seconds + 30
    )
    used = bed.cpu_seconds() - before
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    if errors and any(int(count) for count in (errors[1], errors[3], errors[4])):
        raise BenchError(f"wrk to port {port}: {errors[0]}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if rate is None:
        raise BenchError(f"wrk to port {port} printed {text!r}")
    count = re.search(r"(\d+) requests in", text)
    return {
        "requests_s": float(rate[1]),
        "cpu_us": used / max(1, int(count[1]) if count is not None else 1) * 1e6,
        "p50_ms": _latency(text, "50"),
        "p99_ms": _latency(text, "99"),
    }


def connects(bed: Testbed, port: int, count: int, *, host: str = SERVER, family: int = 4) -> dict[str, float]:
    """Connect and close one after the other; return `connect_p50_us` and `connect_p99_us`."""
    text = bed.sh(
        CLIENT, sys.executable, "-c", _CONNECT, address(host, family), str(port), str(count), limit_s=120
    )
    p50, p99 = (float(word) * 1e6 for word in text.split())
    return {"connect_p50_us": p50, "connect_p99_us": p99}


def _latency(text: str, percentile: str) -> float:
    found = re.search(rf"\s{percentile}%\s+([\d.]+)(us|ms|s)", text)
    if found is None:
        raise BenchError(f"wrk printed no {percentile} % latency")
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]
