"""Random bytes by the page: a call to the kernel for the four of a pair of ports costs more than choosing the ports."""

from __future__ import annotations

import os
from typing import Final

_PAGE: Final = 4096


class Entropy:
    """Gives the bytes of os.urandom, each once."""

    def __init__(self) -> None:
        self._page = b""
        self._at = 0

    def __call__(self, count: int) -> bytes:
        """Give so many bytes."""
        at, end = self._at, self._at + count
        if end > len(self._page):
            self._page = os.urandom(max(count, _PAGE))
            at, end = 0, count
        self._at = end
        return self._page[at:end]
