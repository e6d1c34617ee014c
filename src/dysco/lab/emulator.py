"""What a bad link does to packets: delay, jitter, loss, repetition, reordering, a rate and a bounded queue.

`Shaper` is pure: sizes and times in, delivery times out. Every packet takes the same number of draws from
the link's generator, so that what happens to packet n depends on the seed and on n alone, not on when it
came. wire.py moves the packets.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Final

_LEAST_GAP_S: Final = 0.001  # by how much at least a reordered packet is late


@dataclass(frozen=True)
class Impairment:
    """What a link does; times in seconds, rate in bits per second (0: without limit), shares from 0 to 1."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    rate: float = 0.0
    queue: int = 1000


class Shaper:
    """One direction of a link."""

    def __init__(self, impairment: Impairment, seed: int, direction: int) -> None:
        self.impairment = impairment
        self.counts = {"passed": 0, "lost": 0, "duplicated": 0, "reordered": 0, "overflow": 0}
        self._random = random.Random(f"{seed}/{direction}")
        self._free_at = 0.0
        self._last_at = 0.0
        self._leaving: deque[float] = deque()  # when the packets that wait for their turn will have left

    def push(self, size: int, now: float) -> list[float]:
        """Take a packet of `size` bytes at `now`; give the times at which it arrives: none, one or two."""
        it = self.impairment
        lost, doubled, late = (self._random.random() for _ in range(3))
        jitter = (2.0 * self._random.random() - 1.0) * it.jitter_s
        if lost < it.loss:
            self.counts["lost"] += 1
            return []
        while self._leaving and self._leaving[0] <= now:
            self._leaving.popleft()
        if len(self._leaving) >= it.queue:
            self.counts["overflow"] += 1
            return []
        self._free_at = max(now, self._free_at) + (8.0 * size / it.rate if it.rate else 0.0)
        at = self._free_at + max(0.0, it.delay_s + jitter)
        self._leaving.append(max(at, self._last_at))
        self.counts["passed"] += 1
        if late < it.reorder:
            # Later ones pass it; it does not hold them up.
            self.counts["reordered"] += 1
            at = max(at, self._last_at) + max(_LEAST_GAP_S, it.delay_s / 2 + it.jitter_s)
        else:
            at = self._last_at = max(at, self._last_at)
        if doubled < it.duplicate:
            self.counts["duplicated"] += 1
            return [at, at]
        return [at]


def netem(impairment: Impairment, device: str) -> list[str]:
    """Give the tc command that makes the kernel's netem do the same (without the repeatability)."""
    it = impairment
    argv = ["tc", "qdisc", "replace", "dev", device, "root", "netem", "limit", str(it.queue)]
    if it.delay_s or it.jitter_s:
        argv += ["delay", f"{it.delay_s * 1e6:.0f}us"]
        if it.jitter_s:
            argv += [f"{it.jitter_s * 1e6:.0f}us"]
    for word, share in (("loss", it.loss), ("duplicate", it.duplicate), ("reorder", it.reorder)):
        if share:
            argv += [word, f"{100 * share:g}%"]
    if it.rate:
        argv += ["rate", f"{it.rate:.0f}bit"]
    return argv
