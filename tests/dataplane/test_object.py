"""The compiled programs in the tree are what the source gives."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "tools" / "build-bpf"


def test_the_object_in_the_tree_is_that_of_the_source() -> None:
    if shutil.which("clang") is None:
        pytest.fail("clang is missing: apt-get install clang", pytrace=False)
    argv = [sys.executable, str(BUILD), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
