"""A middlebox in Python that puts another word in place of one, whatever their lengths.

    [[box]]
    name = "replace"
    kind = "stream"
    python = "replace.py:Replace"

It changes what the server answers (backward) and leaves what the client asks as it is. A web server says the length
of its answer before the answer, so an HTTP client sees a changed length as an error; protocols that end an answer by
closing, or by a line, do not mind.
"""

from __future__ import annotations

from typing import ClassVar

import dysco
from dysco.middlebox import Direction, Session


class Replace(dysco.StreamMiddlebox):
    """Replaces `word` by `by` in the backward direction."""

    word: ClassVar[bytes] = b"sheep"
    by: ClassVar[bytes] = b"elephant"

    def __init__(self) -> None:
        self.held: dict[Session, bytes] = {}

    def data(self, session: Session, direction: Direction, chunk: bytes) -> bytes:
        """Replace, and hold back an end that may be the beginning of the word."""
        if direction is Direction.FORWARD:
            return chunk
        *parts, rest = (self.held.get(session, b"") + chunk).split(self.word)
        keep = next((n for n in range(len(self.word) - 1, 0, -1) if rest.endswith(self.word[:n])), 0)
        self.held[session] = rest[len(rest) - keep :]
        return self.by.join([*parts, rest[: len(rest) - keep]])

    def end(self, session: Session, direction: Direction) -> bytes:
        """No more bytes come: what was held back is not the word."""
        return self.held.pop(session, b"") if direction is Direction.BACKWARD else b""

    def may_leave(self, session: Session) -> bool:
        """Between words."""
        return not self.held.get(session)

    def closed(self, session: Session) -> None:
        """Forget the session."""
        self.held.pop(session, None)


class Remove(Replace):
    """Takes the word out."""

    by: ClassVar[bytes] = b""
