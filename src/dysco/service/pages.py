"""Large pages for what the agent walks through with every SYN.

A SYN comes to a processor that has done other things since the last one, and what its handling costs is then mostly
memory that has to be found again: functions, dictionaries, sessions, spread over some thirty megabytes. In pages of
2 MiB the processor knows where nearly all of it lies. Measured with caches that held other things: a tenth less time
for a SYN and for a SYN-ACK in the core. The kernel does as it is asked or refuses; nothing depends on it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

HUGE: Final = 2 << 20
"""Bytes of a large page on x86-64, and on arm64 with small pages of 4 KiB."""
_MAPS: Final = Path("/proc/self/maps")
_COLLAPSE: Final = 25  # MADV_COLLAPSE, linux/mman.h since 6.1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def gather(advise: Callable[[int, int], bool] | None = None) -> int:
    """Have the data of this process put into large pages where they fill them; how many bytes were."""
    if mmap.PAGESIZE != 4096:
        return 0
    advise = advise or _collapse
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return 0
    return sum(HUGE for start in candidates(lines) if advise(start, HUGE))


def candidates(lines: list[str]) -> Iterator[int]:
    """Where large pages lie wholly inside data that belongs to no file."""
    for line in lines:
        span, rights, *_, path = (*line.split(maxsplit=5), "")[:6]
        if rights == "rw-p" and path in ("", "[heap]"):
            low, high = (int(end, 16) for end in span.split("-"))
            yield from range(-(-low // HUGE) * HUGE, high // HUGE * HUGE, HUGE)


def _collapse(start: int, size: int) -> bool:
    return bool(_LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _COLLAPSE) == 0)
