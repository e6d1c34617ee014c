"""From a tree to a short list of clauses for the packet classifier in the kernel.

A clause is one box in the space of five-tuples: family, two prefixes, two port ranges. The list covers at
least every session that the expression matches (the agent decides exactly on what the classifier hands over),
and exactly those as long as few clauses suffice; where they would not, parts are widened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dysco.policy.ast import And, Ast, Everything, FamilyIs, Net, Node, Not, Or, Ports
from dysco.wire.tuples import Family, FiveTuple

DEFAULT_LIMIT: Final = 64  # clauses of one expression; ours: the classifier looks at them one by one
_COMPLEMENT_LIMIT: Final = 32  # clauses of one negated prefix; an IPv4 host takes 32, longer ones are widened
_COMPARISONS: Final = (
    400_000  # of clauses with clauses in intersections, about a second; then parts are widened
)
_ALL_PORTS: Final = (0, 65535)


@dataclass(frozen=True, slots=True)
class Clause:
    """All sessions of a family whose addresses have these prefixes and whose ports lie in these ranges."""

    family: Family
    src: bytes  # 4 or 16 bytes, the bits after src_length are zero
    src_length: int
    dst: bytes
    dst_length: int
    sport: tuple[int, int] = _ALL_PORTS  # first and last, both included
    dport: tuple[int, int] = _ALL_PORTS

    def matches(self, session: FiveTuple) -> bool:
        """Tell whether a session lies in the clause."""
        return (
            session.family == self.family
            and _under(session.src, self.src, self.src_length)
            and _under(session.dst, self.dst, self.dst_length)
            and self.sport[0] <= session.sport <= self.sport[1]
            and self.dport[0] <= session.dport <= self.dport[1]
        )

    def covers(self, other: Clause) -> bool:
        """Tell whether every session in the other clause lies in this one."""
        return (
            self.family == other.family
            and self.src_length <= other.src_length
            and _under(other.src, self.src, self.src_length)
            and self.dst_length <= other.dst_length
            and _under(other.dst, self.dst, self.dst_length)
            and self.sport[0] <= other.sport[0]
            and other.sport[1] <= self.sport[1]
            and self.dport[0] <= other.dport[0]
            and other.dport[1] <= self.dport[1]
        )


def clauses(ast: Ast, limit: int = DEFAULT_LIMIT) -> list[Clause]:
    """Cover an expression with at most `limit` (2 or more) clauses."""
    found: list[Clause] = []
    for family in (4, 6):
        most = max(1, limit // 2)
        found += _reduce(_Builder(family, most).cover(ast.root, False), most)
    return found


def exactly(ast: Ast, limit: int = DEFAULT_LIMIT) -> list[Clause] | None:
    """Give clauses that hold just the sessions of an expression; None if that would take more than `limit`."""
    found: list[Clause] = []
    for family in (4, 6):
        builder = _Builder(family, limit)
        found += builder.cover(ast.root, False)
        if not builder.is_exact or len(found) > limit:
            return None
    return found


def union(lists: Iterable[Sequence[Clause]], limit: int) -> list[Clause]:
    """Join clauses of several expressions into at most `limit` (2 or more), widening where needed."""
    everything = [clause for one in lists for clause in one]
    found: list[Clause] = []
    for family in (4, 6):
        found += _reduce([clause for clause in everything if clause.family == family], max(1, limit // 2))
    return found


class _Builder:
    def __init__(self, family: Family, limit: int) -> None:
        self.limit = limit
        self.budget = _COMPARISONS
        self.is_exact = True  # until a part had to be widened
        self.family = family
        size = 4 if family == 4 else 16
        self.whole = Clause(family, bytes(size), 0, bytes(size), 0)

    def cover(self, node: Node, negated: bool) -> list[Clause]:
        match node:
            case Everything():
                return [] if negated else [self.whole]
            case FamilyIs():
                return [self.whole] if (node.family == self.family) != negated else []
            case Not():
                return self.cover(node.part, not negated)
            case And() | Or():
                parts = (self.cover(part, negated) for part in node.parts)
                return self.any(parts) if isinstance(node, Or) != negated else self.all(parts)
            case Net():
                if node.family != self.family:
                    return [self.whole] if negated else []
                return self.directed(node.direction, negated, lambda side: self.prefixes(node, side, negated))
            case Ports():
                return self.directed(node.direction, negated, lambda side: self.ranges(node, side, negated))

    def directed(self, direction: str, negated: bool, one: Callable[[str], list[Clause]]) -> list[Clause]:
        """Combine the tests of both sides; each is negated already, which turns `either` into `both`."""
        if direction in ("src", "dst"):
            return one(direction)
        sides = (one("src"), one("dst"))
        return self.any(sides) if (direction == "either") != negated else self.all(sides)

    def prefixes(self, node: Net, side: str, negated: bool) -> list[Clause]:
        if not negated:
            return [self.with_prefix(side, node.prefix, node.length)]
        if node.length > _COMPLEMENT_LIMIT:
            self.is_exact = False
            return [self.whole]
        size = 8 * len(node.prefix)
        value = int.from_bytes(node.prefix, "big")
        found = []
        for length in range(1, node.length + 1):
            # All addresses that share length - 1 bits with the prefix and differ in the next one.
            flipped = (value >> (size - length) ^ 1) << (size - length)
            found.append(self.with_prefix(side, flipped.to_bytes(len(node.prefix), "big"), length))
        return found

    def with_prefix(self, side: str, prefix: bytes, length: int) -> Clause:
        whole = self.whole
        if side == "src":
            return Clause(self.family, prefix, length, whole.dst, 0)
        return Clause(self.family, whole.src, 0, prefix, length)

    def ranges(self, node: Ports, side: str, negated: bool) -> list[Clause]:
        wanted = [(node.low, node.high)]
        if negated:
            wanted = [(0, node.low - 1), (node.high + 1, 65535)]
        whole = self.whole
        return [
            Clause(
                self.family,
                whole.src,
                0,
                whole.dst,
                0,
                sport=(low, high) if side == "src" else _ALL_PORTS,
                dport=(low, high) if side == "dst" else _ALL_PORTS,
            )
            for low, high in wanted
            if low <= high
        ]

    def any(self, parts: Iterable[list[Clause]]) -> list[Clause]:
        found: list[Clause] = []
        for part in parts:
            found += part
            if len(found) > 2 * self.limit:  # a reduction costs the square of what it is given
                found = self.reduce(found)
        return self.reduce(found)

    def all(self, parts: Iterable[list[Clause]]) -> list[Clause]:
        found = [self.whole]
        for part in parts:
            cost = (len(found) * len(part)) ** 2
            if cost > self.budget:
                # Each side alone covers the intersection; the shorter one is the cheaper.
                found = min(found, part, key=len)
                self.is_exact = False
                continue
            self.budget -= cost
            meets = [meet for one in found for other in part if (meet := _meet(one, other)) is not None]
            found = self.reduce(meets)
        return found

    def reduce(self, found: list[Clause]) -> list[Clause]:
        kept = _uncovered(found)
        if len(kept) <= self.limit:
            return kept
        self.is_exact = False
        return _reduce(kept, self.limit)


def _reduce(items: list[Clause], limit: int) -> list[Clause]:
    """Drop what another clause covers; then join near neighbours until there are at most `limit`."""
    kept = _uncovered(items)
    while len(kept) > limit:
        kept.sort(key=lambda one: (one.dst, one.src, one.dport, one.sport))
        hulls = [_hull(one, other) for one, other in pairwise(kept)]
        joined: set[int] = set()
        made: list[Clause] = []
        for index in sorted(range(len(hulls)), key=lambda index: _size(hulls[index])):
            # An eighth at a time: the nearest are joined, and the far ones may find a nearer neighbour then.
            if len(kept) - len(made) <= limit or len(made) > len(kept) // 8:
                break
            if not joined & {index, index + 1}:
                joined |= {index, index + 1}
                made.append(hulls[index])
        kept = _uncovered(made + [clause for index, clause in enumerate(kept) if index not in joined])
    return kept


def _uncovered(items: list[Clause]) -> list[Clause]:
    kept: list[Clause] = []
    for clause in sorted(dict.fromkeys(items), key=_size, reverse=True):
        if not any(other.covers(clause) for other in kept):
            kept.append(clause)
    return kept


def _size(clause: Clause) -> float:
    """Logarithm of how many sessions a clause has, near enough to compare."""
    ports = (clause.sport[1] - clause.sport[0] + 1) * (clause.dport[1] - clause.dport[0] + 1)
    return ports.bit_length() - clause.src_length - clause.dst_length


def _meet(one: Clause, other: Clause) -> Clause | None:
    """Give the sessions that lie in both; None if there are none."""
    src = _longer(one.src, one.src_length, other.src, other.src_length)
    dst = _longer(one.dst, one.dst_length, other.dst, other.dst_length)
    sport = max(one.sport[0], other.sport[0]), min(one.sport[1], other.sport[1])
    dport = max(one.dport[0], other.dport[0]), min(one.dport[1], other.dport[1])
    if src is None or dst is None or sport[0] > sport[1] or dport[0] > dport[1]:
        return None
    return Clause(one.family, *src, *dst, sport, dport)


def _hull(one: Clause, other: Clause) -> Clause:
    """Give the smallest clause that covers both."""
    src = _common(one.src, one.src_length, other.src, other.src_length)
    dst = _common(one.dst, one.dst_length, other.dst, other.dst_length)
    sport = min(one.sport[0], other.sport[0]), max(one.sport[1], other.sport[1])
    dport = min(one.dport[0], other.dport[0]), max(one.dport[1], other.dport[1])
    return Clause(one.family, *src, *dst, sport, dport)


def _under(address: bytes, prefix: bytes, length: int) -> bool:
    shift = 8 * len(prefix) - length
    return int.from_bytes(address, "big") >> shift == int.from_bytes(prefix, "big") >> shift


def _longer(one: bytes, one_length: int, other: bytes, other_length: int) -> tuple[bytes, int] | None:
    if one_length < other_length:
        one, one_length, other, other_length = other, other_length, one, one_length
    return (one, one_length) if _under(one, other, other_length) else None


def _common(one: bytes, one_length: int, other: bytes, other_length: int) -> tuple[bytes, int]:
    size = 8 * len(one)
    differing = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    length = min(one_length, other_length, size - differing.bit_length())
    kept = int.from_bytes(one, "big") >> (size - length) << (size - length)
    return kept.to_bytes(len(one), "big"), length
