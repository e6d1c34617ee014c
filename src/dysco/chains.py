"""Handles by which a program changes the chains of live sessions, and what it is told of it.

    await d.session("3f2a").insert("scrubber", after="firewall")
    async for step in d.session("dst port 80").remove("firewall"):
        print(step.session, step.phase, step.after_s)

Knows that an agent answers a command with a stream of plain values; not how it is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dysco.errors import LocalError, RemoteError, TimedOutError
from dysco.views import Place, View


class Streams(Protocol):
    """A connection to an agent."""

    def stream(self, name: str, **fields: Any) -> AsyncIterator[Any]: ...


@dataclass(frozen=True, slots=True)
class Trace(View):
    """A whole chain from left to right; error: why it could not be found out."""

    chain_id: str
    session: str
    places: tuple[Place, ...]
    error: str = ""

    @classmethod
    def _read(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        return {**record, "places": tuple(Place.of(one) for one in record["places"])}


@dataclass(frozen=True, slots=True)
class Step(View):
    """Something that has happened to the change of one session.

    kind: `plan` (before and after are the chain's agents), `phase`, or `end`. phase: requested, waiting (somebody is
    busy), locked, new path up, two paths, drained, stuck, done; at the end also refused, aborted, impossible, timed
    out, planned (only that was wanted), asked (nobody waits), over (the session was being closed, so it needs no
    other chain). by, reason: who refused, and why. after_s: seconds since the session's turn came.
    """

    kind: str
    chain_id: str
    session: str
    after_s: float
    phase: str = ""
    by: str = ""
    reason: str = ""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def is_failure(self) -> bool:
        """Whether this is the end of a change that was not made."""
        return self.kind == "end" and self.phase not in ("done", "planned", "asked", "over")


@dataclass(frozen=True, slots=True)
class Drained(View):
    """How far the draining of a box is, in sessions. The last report says after how many seconds, whether the box is
    empty, and why sessions have stayed (how many, by reason).
    """

    box: str
    moved: int
    failed: int
    left: int
    kind: str = "end"
    after_s: float = 0.0
    empty: bool = False
    reasons: Mapping[str, int] = field(default_factory=dict)


class Changing:
    """A change that is asked for when it is awaited, or iterated for its steps.

    Awaiting gives the last step of each session. It raises RemoteError if one was refused or aborted, TimedOutError,
    LocalError if it is impossible; other sessions are changed all the same.
    """

    def __init__(self, streams: Streams, fields: dict[str, Any], command: str = "change") -> None:
        self._streams = streams
        self._fields = fields
        self._command = command

    async def __aiter__(self) -> AsyncIterator[Step]:
        async for item in self._streams.stream(self._command, **self._fields):
            yield Step.of(item)

    def __await__(self) -> Generator[Any, None, list[Step]]:
        return self._run().__await__()

    async def _run(self) -> list[Step]:
        ends = [one async for one in self if one.kind == "end"]
        check(ends)
        return ends


class ChainHandle:
    """Changes the chains of all sessions that a text means."""

    def __init__(self, streams: Streams, session: str) -> None:
        self._streams = streams
        self._session = session

    def __str__(self) -> str:
        return self._session

    def insert(self, box: str, *, after: str = "", **terms: Any) -> Changing:
        """Put a box behind the agent `after`, by default behind the chain's first.

        terms, here and below: timeout (seconds, 30), wait (True), dry_run (False), force (False; True says that the old
        path is dead and need not be waited for).
        """
        return self._change("insert", hops=[box], after=after, **terms)

    def remove(self, box: str, **terms: Any) -> Changing:
        """Take a box out."""
        return self._change("remove", box=box, **terms)

    def replace(self, box: str, other: str, **terms: Any) -> Changing:
        """Put another box into the place of one; state=: `none`, `copy` or `freeze`, how its state moves there."""
        return self._change("replace", box=box, hops=[other], **terms)

    def set_hops(self, hops: Iterable[str], **terms: Any) -> Changing:
        """Make these the hops between the chain's first and last agent; what stands there already stays."""
        return self._change("set", hops=list(hops), **terms)

    def _change(self, kind: str, **fields: Any) -> Changing:
        return Changing(self._streams, {"session": self._session, "kind": kind, **fields})


def splice(agent: Streams, left: str, right: str, **terms: Any) -> Changing:
    """Take out the proxy between two sessions; see `dysco.client.Dysco.splice`."""
    return Changing(agent, {"left": left, "right": right, **terms}, "splice")


def check(ends: Iterable[Step]) -> None:
    """Raise the error that the first failure among last steps means; it counts the others."""
    failures = [one for one in ends if one.is_failure]
    if not failures:
        return
    first = failures[0]
    who = f" by {first.by}" if first.by and first.phase != "impossible" else ""
    text = f"{first.session}: {first.phase}{who}" + (f": {first.reason}" if first.reason else "")
    if len(failures) > 1:
        text += f" (and {len(failures) - 1} more sessions were not changed)"
    kinds: dict[str, type[LocalError | RemoteError]] = {"impossible": LocalError, "timed out": TimedOutError}
    raise kinds.get(first.phase, RemoteError)(text)
