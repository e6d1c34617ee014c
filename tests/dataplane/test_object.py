"""The compiled programs in the tree are what the source gives."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dysco.dataplane.steer import LAYOUT, OBJECT

BUILD = Path(__file__).parents[2] / "tools" / "build-bpf"


def test_the_object_in_the_tree_is_that_of_the_source() -> None:
    if shutil.which("clang") is None:
        pytest.fail("clang is missing: apt-get install clang", pytrace=False)
    argv = [sys.executable, str(BUILD), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_maps_carry_the_layout_of_their_structs() -> None:
    """An agent that took over maps of another layout would read them wrongly."""
    sources = (path.read_text(encoding="utf-8") for path in sorted(OBJECT.parent.glob("*.bpf.[ch]")))
    found = hashlib.sha256()
    structs = 0
    for source in sources:
        plain = re.sub(r"//.*", "", source)
        for struct in re.finditer(
            r"^(?:struct|enum|#define)\b(?:[^{\n]*\{.*?^\}|[^\n]*)", plain, re.M | re.S
        ):
            found.update(" ".join(struct[0].split()).encode())
            structs += 1
    assert structs > 30
    assert found.hexdigest().startswith(LAYOUT), f"LAYOUT of steer.py must be {found.hexdigest()[:4]!r}"
