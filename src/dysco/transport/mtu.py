"""The search for the largest IP packet that reaches a peer: sizes to try come out, answers go in.

Knows sizes in bytes of whole IP packets and the time that it is handed. Must not know how a probe is sent. In
the manner of RFC 8899 (packetization layer path MTU discovery): padded messages with DF that the peer
acknowledges; no ICMP message is believed. The device's own MTU is tried first and mostly is the answer;
else a ladder of sizes goes out at once, the usual MTUs among them, and the gap between the largest that
passed and the smallest that did not is divided again until it is closed.
"""

from __future__ import annotations

from typing import Final

# RFC 791 (every host takes 576 bytes) and RFC 8200, 5: never believe less.
LEAST_V4: Final = 576
LEAST_V6: Final = 1280
_USUAL: Final = (1280, 1400, 1420, 1440, 1450, 1460, 1480, 1492, 1500, 4352, 8900, 9000)
_RUNGS: Final = 8
_TRIES: Final = 3
_TRY_S: Final = 0.2  # so a round trip may take 0.6 s


class Search:
    """One search from `least` to `most`, the MTU of the own device.

    `sizes` gives what to send now; `passed` and `refused` (by the own kernel) report; `found` is the answer
    as soon as the search is `done`, or None if no probe at all was answered.
    """

    __slots__ = ("_deadline", "_fails", "_least", "_most", "_open", "_passes", "_tries", "answered", "done")

    def __init__(self, least: int, most: int) -> None:
        """Begin a search; it does nothing until `sizes` is called."""
        self._most = max(least, most)
        self._least = least
        self._passes = least - 1
        self._fails = self._most + 1
        self._open = {self._most}
        self._tries = 0
        self._deadline: float | None = None
        self.answered = False
        self.done = False

    @property
    def found(self) -> int | None:
        return self._passes if self.done and self.answered else None

    def next_deadline(self) -> float | None:
        """Tell when `sizes` wants to be called again."""
        return None if self.done else self._deadline

    def sizes(self, now: float) -> list[int]:
        """Give the sizes to be sent now, largest first; empty while answers may still come."""
        if self.done or (self._deadline is not None and now < self._deadline and self._open):
            return []
        if self._open and self._tries == _TRIES:
            self._fails = min(self._fails, *self._open)
            self._open = set()
        if not self._open:
            self._ladder()
        if self.done:
            return []
        self._tries += 1
        self._deadline = now + _TRY_S
        return sorted(self._open, reverse=True)

    def passed(self, size: int) -> None:
        """Report that the peer has acknowledged a packet of `size` bytes."""
        if not max(self._least, self._passes) <= size <= self._most:
            return
        self.answered = True
        self._passes = size
        self._fails = max(self._fails, size + 1)
        self._open = {rung for rung in self._open if rung > size}
        self._end_if_closed()

    def refused(self, size: int) -> None:
        """Report that the own kernel does not send a packet of `size` bytes."""
        if size > self._passes:
            self._fails = min(self._fails, size)
            self._open = {rung for rung in self._open if rung < size}
            self._end_if_closed()

    def _ladder(self) -> None:
        self._end_if_closed()
        self._tries = 0
        low, high = self._passes + 1, self._fails - 1
        if low > high:
            return
        usual = [size for size in _USUAL if low <= size <= high]
        steps = min(_RUNGS, high - low + 1)
        even = [low + (high - low) * step // max(1, steps - 1) for step in range(steps)]
        self._open = set(usual[-_RUNGS:] + even)

    def _end_if_closed(self) -> None:
        if self._fails - self._passes <= 1:
            self.done = True
            self._open = set()
