"""What `tools/prove` proves, on a smaller scale: real programs whose sessions are changed under them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proofs.world import early_resets

MAIN = Path(__file__).parents[2] / "tools/proofs/main.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "family", "rows"),
    [
        ("ebpf", "6", "curl slow iperf3 rsync nginx squid crowd"),
        ("tun", "4", "wrk ssh psql socat lossy"),
    ],
)
def test_programs_do_not_notice_that_their_proxy_leaves(mode: str, family: str, rows: str) -> None:
    which = ("--mode", mode, "--family", family, "--prefix", f"tx{os.getpid()}")
    argv = (sys.executable, str(MAIN.with_name("proxies.py")), "--quick", *which, *rows.split())
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "family", "acts"),
    [
        ("ebpf", "4", "download one-way deltas renumbered mandatory"),
        ("tun", "6", "crowd idle move"),
        ("ebpf", "4", "move"),
        ("ebpf", "6", "thousand"),
    ],
)
def test_nobody_notices(mode: str, family: str, acts: str) -> None:
    which = ("--mode", mode, "--family", family, "--prefix", f"tp{os.getpid()}")
    argv = (sys.executable, str(MAIN), "--quick", *which, *acts.split())
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(acts.split())


def test_a_reset_counts_until_both_ends_have_closed() -> None:
    there, back = "IP 10.0.1.1.62836 > 10.0.2.2.64264:", "IP 10.0.2.2.64264 > 10.0.1.1.62836:"
    lines = [
        f"1 a In  {back} Flags [F.], seq 1, ack 1, length 0",
        f"2 a In  {there} Flags [R], seq 1, win 0, length 0",
        f"3 a In  {there} Flags [F.], seq 1, ack 2, length 0",
        f"4 a In  {there} Flags [R], seq 2, win 0, length 0",
        "5 a In  IP6 fd00::1.1 > fd00::2.2: Flags [R.], seq 2, win 0, length 0",
        "6 something else",
    ]
    assert [line[0] for line in early_resets(lines)] == ["2", "5", "6"]
