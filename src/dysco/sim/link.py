"""A network that delays, loses, repeats and reorders by a seed.

Knows nothing of what it carries. `Fault` probabilities apply to each item on its own; `mask` overrides them
for the n-th item, so that a test can say "lose the second one" as a literal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from dysco.sim.clock import Clock

T = TypeVar("T")
Fate = Literal["pass", "lose", "repeat", "late"]


@dataclass(frozen=True)
class Fault:
    """What a link does to items. delay_s and jitter_s in seconds; the others are probabilities (0 to 1).

    An item that is late waits `late_s` more, which reorders it behind what follows.
    """

    delay_s: float = 0.005
    jitter_s: float = 0.0
    loss: float = 0.0
    repeat: float = 0.0
    late: float = 0.0
    late_s: float = 0.05


@dataclass
class Link:
    """One direction of a path. Counts what it did in `fates`."""

    clock: Clock
    rng: random.Random
    fault: Fault = field(default_factory=Fault)
    mask: Mapping[int, Fate] = field(default_factory=dict)
    sent: int = 0
    up: bool = True
    fates: dict[Fate, int] = field(default_factory=dict)

    def send(self, item: T, deliver: Callable[[T], None]) -> None:
        """Carry one item; `deliver` is called with it later, once, twice or never."""
        self.sent += 1
        fate = self._fate(self.sent)
        self.fates[fate] = self.fates.get(fate, 0) + 1
        if fate == "lose" or not self.up:
            return
        for _ in range(2 if fate == "repeat" else 1):
            wait = self.fault.delay_s + self.rng.random() * self.fault.jitter_s
            if fate == "late":
                wait += self.fault.late_s
            self.clock.call_at(self.clock.now + wait, lambda: deliver(item))

    def _fate(self, number: int) -> Fate:
        if number in self.mask:
            return self.mask[number]
        draw = self.rng.random()
        for fate, probability in (
            ("lose", self.fault.loss),
            ("repeat", self.fault.repeat),
            ("late", self.fault.late),
        ):
            if draw < probability:
                return fate  # type: ignore[return-value]
            draw -= probability
        return "pass"
