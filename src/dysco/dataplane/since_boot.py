"""What this kernel has shown once is believed until it boots again.

Knows a file with a line for each test that was passed, which names the boot and what was tried. A test that failed is
made again the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def mark(object_file: Path) -> str:
    """Name what is in an object file; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(object_file.read_bytes()).hexdigest()
    return ""


def believed(memory: Path, what: str, test: Callable[[], str | None]) -> str | None:
    """Say what a test finds wrong; None if it finds nothing, or has found nothing since this kernel booted.

    what: the test and what it depends on besides the kernel, in one line. memory: a file; if it cannot be read or
    written, nothing is remembered.
    """
    known: list[str] = []
    boot = ""
    with contextlib.suppress(OSError):
        boot = _BOOT_ID.read_text().strip()
        known = memory.read_text().splitlines()
    passed = f"{boot} {what}"
    if boot and passed in known:
        return None
    fault = test()
    if fault is None and boot:
        lines = [*(line for line in known if line.startswith(f"{boot} ")), passed]
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.write_text("".join(f"{line}\n" for line in lines))
    return fault
