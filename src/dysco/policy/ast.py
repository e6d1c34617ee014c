"""The syntax tree of a match expression. Nodes compare by meaning; `span` is where each stood in the text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dysco.wire.tuples import Family

Direction = Literal["src", "dst", "either", "both"]
Span = tuple[int, int]

_NOWHERE: Span = (0, 0)


@dataclass(frozen=True, slots=True)
class Everything:
    """The empty expression, and `tcp`: true for every session, since all are TCP."""

    span: Span = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class FamilyIs:
    """`ip` or `ip6`."""

    family: Family
    span: Span = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Net:
    """`host` or `net`: an address of that family that begins with the first `length` bits of `prefix`."""

    direction: Direction
    prefix: bytes  # 4 or 16 bytes, the bits after `length` are zero
    length: int
    span: Span = field(default=_NOWHERE, compare=False)

    @property
    def family(self) -> Family:
        return 4 if len(self.prefix) == 4 else 6


@dataclass(frozen=True, slots=True)
class Ports:
    """`port` or `portrange`: a port from low to high, both included."""

    direction: Direction
    low: int
    high: int
    span: Span = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    part: Node
    span: Span = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Node, ...]
    span: Span = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Node, ...]
    span: Span = field(default=_NOWHERE, compare=False)


Node = Everything | FamilyIs | Net | Ports | Not | And | Or


@dataclass(frozen=True, slots=True)
class Ast:
    """A parsed expression with its text, so that parts of it can be quoted."""

    root: Node
    text: str = field(default="", compare=False)

    def quote(self, node: Node) -> str:
        """Give the piece of the text that a node was made from."""
        start, end = node.span
        return self.text[start:end].strip()
