"""A middlebox in Python that chooses the hops behind it for each session.

    [[box]]
    name = "chooser"
    kind = "packet"
    python = "chooser.py:Chooser"

Sessions from even source ports go through the host `c`, others straight to the server.
"""

from __future__ import annotations

import dysco
from dysco.middlebox import Session


class Chooser(dysco.Middlebox):
    """Chooses once, before the SYN goes on; later packets pass as they are."""

    def choose(self, session: Session) -> list[str] | None:
        """Names as in a policy; the final host is added."""
        return ["c"] if session.tuple.sport % 2 == 0 else []
