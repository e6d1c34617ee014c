"""Virtual time: a queue of what happens next. Nothing here ever waits.

Times are seconds as floats from an arbitrary zero, as a monotonic clock gives them. Two things planned for
the same moment happen in the order in which they were planned, so a run is a function of its seed alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Timer:
    """Something planned; `cancel()` makes it not happen."""

    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Action) -> None:
        self.at = at
        self.action: Action | None = action

    def cancel(self) -> None:
        self.action = None


class Clock:
    """A virtual monotonic clock with a queue of timers."""

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start
        self._queue: list[tuple[float, int, Timer]] = []
        self._planned = 0

    def call_at(self, at: float, action: Action) -> Timer:
        """Plan `action` for the time `at` (seconds); a time that has passed means now."""
        timer = Timer(max(at, self.now), action)
        self._planned += 1
        heapq.heappush(self._queue, (timer.at, self._planned, timer))
        return timer

    def step(self) -> bool:
        """Let the next thing happen; False when nothing is planned."""
        while self._queue:
            at, _, timer = heapq.heappop(self._queue)
            if timer.action is None:
                continue
            self.now = at
            timer.action()
            return True
        return False

    def run_until(self, at: float) -> None:
        """Let everything happen that is planned up to the time `at`, and stand there."""
        while self._queue and self._queue[0][0] <= at:
            self.step()
        self.now = max(self.now, at)
