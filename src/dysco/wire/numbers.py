"""Sequence numbers: 32 bits that wrap (RFC 9293 section 3.4, RFC 1982)."""

from __future__ import annotations

from typing import Final

MASK32: Final = 0xFFFFFFFF
FAR: Final = 1 << 30  # ours: no window reaches so far back, and it is not ahead by wrapping (RFC 7323, 2.3)
_HALF: Final = 1 << 31


def distance(number: int, of: int) -> int:
    """How far `number` lies ahead of `of`; negative if it lies behind."""
    difference = (number - of) & MASK32
    return difference - (1 << 32) if difference >= _HALF else difference


def later(one: int, other: int) -> int:
    """The one of two numbers that lies ahead."""
    return one if distance(one, other) >= 0 else other


def earlier(one: int, other: int) -> int:
    """The one of two numbers that lies behind."""
    return other if distance(one, other) >= 0 else one
