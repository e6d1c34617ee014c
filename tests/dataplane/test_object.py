"""The compiled programs in the tree are what the source gives."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "tools" / "build-bpf"


def test_the_object_in_the_tree_is_that_of_the_source() -> None:
    for tool in ("clang", "llvm-objcopy"):
        if shutil.which(tool) is None:
            pytest.fail(f"{tool} is missing: apt-get install clang llvm libbpf-dev", pytrace=False)
    done = subprocess.run([BUILD, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
