"""The catalogue of defects stays in step with the code; `tools/mutations` tries them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).parents[2] / "tools/mutants/main.py"


def test_every_mutation_fits_the_code() -> None:
    done = subprocess.run((sys.executable, MAIN, "--fit"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split()[0]) >= 40
