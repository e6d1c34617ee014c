"""What `tools/prove` proves, on a smaller scale: real programs whose sessions are changed under them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = Path(__file__).parents[2] / "tools/proofs/main.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "family", "acts"),
    [
        ("ebpf", "4", "download one-way deltas renumbered mandatory"),
        ("tun", "6", "crowd idle"),
        ("ebpf", "6", "thousand"),
    ],
)
def test_nobody_notices(mode: str, family: str, acts: str) -> None:
    which = ("--mode", mode, "--family", family, "--prefix", f"tp{os.getpid()}")
    argv = (sys.executable, str(MAIN), "--quick", *which, *acts.split())
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(acts.split())
