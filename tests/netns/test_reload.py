"""HAProxy is drained, restarted and undrained under live sessions of five kinds; `tools/prove reload` has more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROOF = Path(__file__).parents[2] / "tools/proofs/reload.py"


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "family", "number"), [("ebpf", "4", "500"), ("tun", "6", "25")])
def test_no_session_is_lost(mode: str, family: str, number: str) -> None:
    which = ("--mode", mode, "--family", family, "--prefix", f"tr{os.getpid()}")
    argv = (sys.executable, str(PROOF), "--sessions", number, *which)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
