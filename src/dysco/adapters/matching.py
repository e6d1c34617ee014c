"""Which sockets of one process belong together, by what went through them: the whole process is looked at at once.

Three kinds of evidence, each of which must name exactly one socket for exactly one other:

- equal counts: at rest a relay has written to one what it has read from the other, in both directions;
- equal steps: between two moments of rest both have grown alike, whatever the relay had added before;
- first bytes: the streams begin alike, after what a proxy took off or put before.

One piece is enough if it is first bytes, and those of all sockets were seen, or equal counts while all sockets at which
it could point are at rest; else two are needed. None may contradict. A socket that was there before the other's client
came is no partner. Where sessions look alike, nothing is said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Final

from dysco.adapters.preambles import (
    Fingerprints,
    Heads,
    Unclear,
    compare,
    consumed,
    proxy_line,
    v1_length,
    v2_length,
)
from dysco.adapters.sockets import Socket

_ENOUGH: Final = 2
_SURE: Final = 16  # ours: equal first bytes that are no accident
_SIZES: Final = (_SURE, 64, 256, 1024)  # ours: beginnings by which sessions are found, the longest they share


class Matching:
    """The partners in one process, over all observations."""

    def __init__(self) -> None:
        self._turn = 0
        self._seen: dict[int, int] = {}  # turn in which an inode was first seen
        self._rested: dict[int, tuple[int, int]] = {}  # counts of what was at rest in the last turn
        self._evidence: dict[tuple[int, int], set[Hashable]] = {}
        self._partner: dict[int, int] = {}

    def observe(
        self, before: dict[int, Socket], after: dict[int, Socket], heads: Fingerprints
    ) -> dict[int, int]:
        """Take the process's sockets at two moments; give the right one of each left one that is known, by inode."""
        self._turn += 1
        there = after.keys() & before.keys()
        self._forget(there)
        lefts = [after[inode] for inode in there if after[inode].opened is False]
        rights = [after[inode] for inode in there if after[inode].opened]
        resting = {one for one in there if before[one] == after[one] and after[one].still}
        if len(lefts) == len(rights) == 1:
            self._partner = {lefts[0].inode: rights[0].inode}
            return self._partner
        self._counts(after, lefts, rights, resting)
        self._steps(lefts, rights, resting)
        self._heads(after, lefts, rights, heads)
        self._rested = {one: (after[one].read, after[one].written) for one in resting}
        self._partner = dict(self._decide())
        self._only_ones(lefts, rights)
        return self._partner

    def _forget(self, there: Iterable[int]) -> None:
        alive = set(there)
        self._seen = {inode: self._seen.get(inode, self._turn) for inode in alive}
        self._evidence = {pair: found for pair, found in self._evidence.items() if alive.issuperset(pair)}

    def _counts(
        self, after: dict[int, Socket], lefts: list[Socket], rights: list[Socket], resting: set[int]
    ) -> None:
        by_count: dict[tuple[int, int], list[int]] = {}
        for one in rights:
            if one.inode in resting:
                by_count.setdefault((one.written, one.read), []).append(one.inode)
        wanted: dict[int, list[int]] = {}  # lefts by right
        found: dict[int, list[int]] = {}
        for one in lefts:
            if one.inode not in resting or one.read + one.written == 0:
                continue
            for line in (0, v1_length(one.session), v2_length(one.session)):
                for inode in by_count.get((one.read + line, one.written), ()):
                    if self._may(one, after[inode]):
                        found.setdefault(one.inode, []).append(inode)
                        wanted.setdefault(inode, []).append(one.inode)
        # Of sockets that are all at rest, one must be the partner; who has another partner already does not matter.
        known = set(self._partner.values())
        all_rest = all(one.inode in resting or one.inode in known for one in rights)
        for left, partners in found.items():
            if len(partners) == 1 and len(wanted[partners[0]]) == 1:
                pair = left, partners[0]
                self._add(pair, ("counts", after[left].read, after[left].written))
                if all_rest:
                    self._add(pair, "all at rest")

    def _steps(self, lefts: list[Socket], rights: list[Socket], resting: set[int]) -> None:
        grown: dict[tuple[int, int], tuple[list[Socket], list[Socket]]] = {}
        for side, sockets in enumerate((lefts, rights)):
            for one in sockets:
                earlier = self._rested.get(one.inode)
                if earlier is None or one.inode not in resting:
                    continue
                step = one.read - earlier[0], one.written - earlier[1]
                if step != (0, 0):
                    grown.setdefault(step[::-1] if side else step, ([], []))[side].append(one)
        for step, (some, others) in grown.items():
            if len(some) == len(others) == 1 and self._may(some[0], others[0]):
                self._add((some[0].inode, others[0].inode), ("step", step, some[0].read, some[0].written))

    def _heads(
        self, after: dict[int, Socket], lefts: list[Socket], rights: list[Socket], heads: Fingerprints
    ) -> None:
        ours = {one.inode: seen for one in lefts if (seen := heads.get(one.session)) is not None}
        theirs = {one.inode: seen for one in rights if (seen := heads.get(one.session)) is not None}
        # Where some were not seen, the true partner may be among them, and begin alike.
        all_seen = len(ours) == len(lefts) and len(theirs) == len(rights)
        for left, right in _alike(ours, theirs):
            if self._may(after[left], after[right]):
                self._add((left, right), "first bytes")
                if all_seen:
                    self._add((left, right), "of all")

    def _decide(self) -> Iterator[tuple[int, int]]:
        claims: dict[int, int] = {}
        for pair in self._evidence:
            for inode in pair:
                claims[inode] = claims.get(inode, 0) + 1
        for (left, right), found in self._evidence.items():
            if len(found) >= _ENOUGH and claims[left] == claims[right] == 1:
                yield left, right

    def _only_ones(self, lefts: list[Socket], rights: list[Socket]) -> None:
        """Of all but one the partners are known: the two that are left belong together."""
        taken = set(self._partner.values())
        free = [one for one in lefts if one.inode not in self._partner]
        others = [one for one in rights if one.inode not in taken]
        if len(lefts) == len(rights) and len(free) == len(others) == 1 and self._may(free[0], others[0]):
            self._partner[free[0].inode] = others[0].inode

    def _may(self, left: Socket, right: Socket) -> bool:
        """Whether the right one is no older, and not the very client of the left one."""
        return self._seen[right.inode] >= self._seen[left.inode] and left.tuple != right.tuple.reversed()

    def _add(self, pair: tuple[int, int], evidence: Hashable) -> None:
        self._evidence.setdefault(pair, set()).add(evidence)


def _alike(lefts: Mapping[int, Heads], rights: Mapping[int, Heads]) -> Iterator[tuple[int, int]]:
    """Sessions whose first bytes are the same and nobody else's.

    Whoever agrees in so many bytes shares one of their beginnings, so that not each has to be compared with each.
    """
    ours, theirs = _by_beginning(lefts, _of_left), _by_beginning(rights, _of_right)
    done: set[tuple[int, int]] = set()
    for beginning in ours.keys() & theirs.keys():
        some, others = ours[beginning], theirs[beginning]
        if len(some) == len(others) == 1 and (some[0], others[0]) not in done:
            done.add((some[0], others[0]))
            try:
                added = compare(lefts[some[0]], rights[others[0]])
            except Unclear:
                continue
            if added is not None and added.compared >= _SURE:
                yield some[0], others[0]


def _by_beginning(
    heads: Mapping[int, Heads], streams: Callable[[Heads], Iterator[tuple[str, bytes]]]
) -> dict[tuple[str, bytes], list[int]]:
    found: dict[tuple[str, bytes], list[int]] = {}
    for inode, one in heads.items():
        beginnings = {
            (way, data[:size]) for way, data in streams(one) for size in _SIZES if len(data) >= size
        }
        for beginning in beginnings:
            found.setdefault(beginning, []).append(inode)
    return found


def _of_left(heads: Heads) -> Iterator[tuple[str, bytes]]:
    """What a proxy may have passed on of a client's session: all, or what came behind a preamble."""
    yield "sent", heads.sent
    yield "answered", heads.answered
    with contextlib.suppress(Unclear):
        taken = consumed(heads)
        yield "sent", heads.sent[taken.sent :]
        yield "answered", heads.answered[taken.answered :]


def _of_right(heads: Heads) -> Iterator[tuple[str, bytes]]:
    """What of the session with a server may have come from a client: all, or what is behind a PROXY line."""
    yield "sent", heads.sent
    yield "answered", heads.answered
    with contextlib.suppress(Unclear):
        yield "sent", heads.sent[proxy_line(heads.sent) :]
