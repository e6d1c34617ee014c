"""A replay window over a counter (RFC 6479): 8,128 counters wide, each accepted once."""

from __future__ import annotations

from typing import Final, Protocol

WINDOW: Final = 8128


class Window(Protocol):
    """A replay window, wherever it is kept."""

    def accept(self, counter: int) -> bool:
        """Mark a counter as seen; False if it was seen before or is older than the window."""
        ...


class ReplayWindow:
    """Remembers which of the last 8,128 counters were seen."""

    __slots__ = ("_bits", "_top")

    def __init__(self) -> None:
        self._top = -1
        self._bits = 0

    def accept(self, counter: int) -> bool:
        """Mark a counter as seen; False if it was seen before or is older than the window."""
        ahead = counter - self._top
        if ahead > 0:
            self._bits = ((self._bits << ahead) if ahead < WINDOW else 0) & ((1 << WINDOW) - 1) | 1
            self._top = counter
            return True
        if -ahead >= WINDOW or self._bits >> -ahead & 1:
            return False
        self._bits |= 1 << -ahead
        return True
