"""Pairs of ports for subsessions with one neighbour.

The agent that opens a subsession chooses both ports, at random (RFC 6056), from the reserved ranges of
both. So that two agents that call each other at the same moment never choose the same tuple, the port at
the numerically smaller address is even if that side opens and odd if the other does. (A rule for each
side's own port alone would not do: each also chooses the other's.) A pair rests in quarantine before it is
used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

_TRIES: Final = 200


class PortPool:
    """Live and resting pairs toward one neighbour address. A pair is local port << 16 | remote port."""

    def __init__(
        self,
        local: bytes,
        remote: bytes,
        local_range: tuple[int, int],
        remote_range: tuple[int, int],
        quarantine_s: float,
        rng: Callable[[int], bytes],
    ) -> None:
        self._local_parity = 0 if local < remote else None
        self._remote_parity = 1 if remote < local else None
        self._ranges = (local_range, remote_range)
        self._quarantine_s = quarantine_s
        self._rng = rng
        self._used: set[int] = set()
        self._resting: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        """How many pairs are live or resting."""
        return len(self._used)

    @property
    def live(self) -> int:
        """How many pairs are live."""
        return len(self._used) - len(self._resting)

    def allocate(self, now: float) -> tuple[int, int] | None:
        """Take a pair (local port, remote port) that is free; None if none was found."""
        self.expire(now)
        for _ in range(_TRIES):
            draw = int.from_bytes(self._rng(4), "big")
            local = _pick(self._ranges[0], draw >> 16, self._local_parity)
            remote = _pick(self._ranges[1], draw & 0xFFFF, self._remote_parity)
            pair = local << 16 | remote
            if pair not in self._used:
                self._used.add(pair)
                return local, remote
        return None

    def aim(self, remote_range: tuple[int, int]) -> None:
        """The neighbour says which range is its own; pairs that live are left alone."""
        self._ranges = (self._ranges[0], remote_range)

    def claim(self, local: int, remote: int) -> None:
        """Mark a pair as live that a journal remembers."""
        self._used.add(local << 16 | remote)

    def release(self, local: int, remote: int, now: float) -> None:
        """Give a pair back; it rests before it is used again."""
        self._resting.append((now + self._quarantine_s, local << 16 | remote))

    def expire(self, now: float) -> None:
        """Free the pairs that have rested long enough."""
        while self._resting and self._resting[0][0] <= now:
            self._used.discard(self._resting.popleft()[1])


def _pick(ports: tuple[int, int], draw: int, parity: int | None) -> int:
    low, high = ports
    if parity is None:
        return low + draw % (high - low + 1)
    first = low + (low & 1 ^ parity)
    return first + draw % ((high - first) // 2 + 1) * 2
