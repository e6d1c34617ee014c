"""Drawings of a chain: who stands where, and which subsession joins two of them.

Pure: from sessions, as agents tell of them, to lines of text. One agent knows its own two facings
and, at the first agent, the hops; records of one chain from several agents make the whole drawing.

    A client         10.0.1.1                   |  one Stop for each time an agent stands in the chain
    |    10.0.1.1:61001 > 10.0.2.2:61000        |  a subsession, in the forward direction
    B fw             10.0.2.2
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dysco.views import Session

_UNKNOWN: Final = "?"


@dataclass(frozen=True)
class Stop:
    """One agent in a chain; a subsession is None where the session itself begins or ends there."""

    agent: str
    box: str = ""
    left: str | None = None
    right: str | None = None
    left_peer: str = ""
    right_peer: str = ""
    goes_on_as: str = ""  # the session behind a box that changes addresses or ports

    @property
    def label(self) -> str:
        return f"{self.agent} ({self.box})" if self.box else self.agent


def stop_of(agent: str, session: Session) -> Stop:
    """Read what one agent says of one session."""
    left, right = session.left, session.right
    return Stop(
        agent,
        session.box or "",
        left.subsession if left else None,
        right.subsession if right else None,
        left.peer if left else "",
        right.peer if right else "",
        session.session_out if session.session_out != session.session else "",
    )


def in_order(stops: Iterable[Stop]) -> list[Stop]:
    """Put the stops of one chain into the order of its hops, as far as their subsessions join."""
    waiting = list(stops)
    ordered: list[Stop] = []
    while waiting:
        ends = {_ends(stop.right) for stop in waiting if stop.right}
        # Whose left subsession is nobody's right one begins the chain, or what is known of it.
        first = next((stop for stop in waiting if not stop.left or _ends(stop.left) not in ends), waiting[0])
        while True:
            waiting.remove(first)
            ordered.append(first)
            following = [stop for stop in waiting if stop.left and first.right]
            near = next((stop for stop in following if _ends(stop.left) == _ends(first.right)), None)
            if near is None:
                break
            first = near
    return ordered


def line(stops: Sequence[Stop]) -> str:
    """Draw a chain in one line: `A == B (fw) == C (tap) == D`."""
    if not stops:
        return ""
    labels = [stop.label for stop in stops]
    if stops[0].left:
        labels.insert(0, stops[0].left_peer or _UNKNOWN)
    if stops[-1].right:
        labels.append(stops[-1].right_peer or _UNKNOWN)
    return " ══ ".join(labels)


def drawing(stops: Sequence[Stop]) -> list[str]:
    """Draw a chain in a line for each stop and each subsession."""
    lines: list[str] = []
    for index, stop in enumerate(stops):
        joined = index > 0 and stop.left is not None and _ends(stops[index - 1].right) == _ends(stop.left)
        if stop.left and not joined:
            if index == 0:
                lines.append(stop.left_peer or _UNKNOWN)
            lines.append(f"│    {stop.left}")
        lines.append(stop.label + (f"   the session goes on as {stop.goes_on_as}" if stop.goes_on_as else ""))
        if stop.right:
            lines.append(f"│    {stop.right}")
    if stops and stops[-1].right:
        lines.append(stops[-1].right_peer or _UNKNOWN)
    return lines


def _ends(subsession: str | None) -> frozenset[str]:
    return frozenset((subsession or "").split(" > "))
