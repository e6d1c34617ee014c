"""Every key of a TOML text is found where it stands: texts are written along with the places of keys."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dysco.config.positions import Path, Position, locate

NAMES = st.text("ab-_9", min_size=1, max_size=3)
ODD_NAMES = st.text("a.\"[]=# 'é", min_size=0, max_size=4)
KEYS = st.one_of(NAMES.map(lambda name: (name, name)), ODD_NAMES.map(lambda name: (name, json.dumps(name))))
LITERAL_KEYS = st.text('a."[]=# é', max_size=4).map(lambda name: (name, f"'{name}'"))
COMMENT = st.sampled_from(["", " # a [b] = \"c\" '''", "\t"])
SCALARS = st.one_of(
    st.integers(-99, 99).map(str),
    st.sampled_from(["true", "1.5e3", "inf", "0xff", "1979-05-27", "1979-05-27 07:32:00Z", "07:32:00.5"]),
    st.text('a."[]=#\\ é{}', max_size=6).map(json.dumps),
    st.text('a."[]=#\\ é{}', max_size=6).map(lambda text: f"'{text}'"),
    st.sampled_from(
        ['"""\na = 1\n[b]"""', "'''\n[[c]]\n'''", '""""q" \\""""', "''''x'''''", '""""""', '"""x"""""', "''"]
    ),
)


class Writer:
    """Writes TOML and notes where the keys go."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.places: dict[Path, Position] = {}

    def mark(self, path: Path) -> None:
        line = self.text.count("\n") + 1
        self.places[path] = Position(line, len(self.text) - self.text.rfind("\n"))

    def space(self) -> None:
        self.text += self.draw(st.sampled_from(["", " ", "  ", "\t"]))

    def blank(self) -> None:
        self.text += self.draw(st.sampled_from(["", " ", "\n", "\r\n", " # x ] }\n", "\n\n  "]))

    def value(self, path: Path, depth: int, tables: bool = True) -> None:
        kind = self.draw(st.sampled_from(["scalar", "scalar", "array", "table"])) if depth else "scalar"
        if kind == "array":
            self.text += "["
            self.blank()
            count = self.draw(st.integers(0, 3))
            for index in range(count):
                self.mark((*path, index))
                self.value((*path, index), depth - 1)
                self.blank()
                if index + 1 < count or self.draw(st.booleans()):
                    self.text += ","
                    self.blank()
            self.text += "]"
        elif kind == "table":
            self.text += "{"
            self.space()
            keys = self.draw(st.lists(KEYS | LITERAL_KEYS, max_size=3, unique_by=lambda key: key[0]))
            for index, (name, written) in enumerate(keys):
                self.mark((*path, name))
                self.text += written
                self.space()
                self.text += "="
                self.space()
                self.value((*path, name), depth - 1)
                self.space()
                if index + 1 < len(keys):
                    self.text += ","
                    self.space()
            self.text += "}"
        else:
            self.text += self.draw(SCALARS)

    def pairs(self, path: Path) -> None:
        for name, written in self.draw(
            st.lists(KEYS | LITERAL_KEYS, max_size=3, unique_by=lambda key: key[0])
        ):
            self.space()
            self.mark((*path, name))
            self.text += written
            self.space()
            if self.draw(st.booleans()):  # a dotted key
                self.text += "."
                self.space()
                self.mark((*path, name, "d"))
                self.text += "d"
                name_path: Path = (*path, name, "d")
            else:
                name_path = (*path, name)
            self.space()
            self.text += "="
            self.space()
            self.value(name_path, 3)
            self.text += self.draw(COMMENT) + "\n"

    def header(self, path: Path, name: str, written: str, array: bool, under: Path = ()) -> None:
        self.text += "[[" if array else "["
        self.space()
        for part in under:
            if isinstance(part, str):
                self.text += json.dumps(part)
                self.space()
                self.text += "."
                self.space()
        if path[:-1] == (*under, name) or path == (*under, name):
            for mark in {(*under, name), path}:
                if mark == path or mark not in self.places:
                    self.mark(mark)
        self.text += written
        self.space()
        self.text += ("]]" if array else "]") + self.draw(COMMENT) + "\n"


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Path, Position]]:
    writer = Writer(draw)
    writer.blank()
    writer.pairs(())
    taken = {path[0] for path in writer.places}
    headers = draw(st.lists(KEYS, max_size=4, unique_by=lambda key: key[0]))
    for name, written in headers:
        if name in taken:
            continue
        if draw(st.booleans()):
            writer.header((name,), name, written, array=False)
            writer.pairs((name,))
            continue
        for index in range(draw(st.integers(1, 3))):
            writer.header((name, index), name, written, array=True)
            writer.pairs((name, index))
            if (name, index, "sub") not in writer.places and draw(st.booleans()):
                writer.header((name, index, "sub"), "sub", "sub", array=False, under=(name, index))
                writer.pairs((name, index, "sub"))
    return writer.text, writer.places


def paths(node: Any, base: Path = ()) -> set[Path]:
    """List all paths of a parsed document."""
    found: set[Path] = set()
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for part, inner in items:
        found |= {(*base, part)} | paths(inner, (*base, part))
    return found


@settings(max_examples=250, deadline=None)
@given(documents())
def test_every_key_is_found_where_it_stands(document: tuple[str, dict[Path, Position]]) -> None:
    text, expected = document
    parsed = tomllib.loads(text)
    assert set(expected) == paths(parsed)
    assert locate(text) == expected


def test_tables_that_are_named_more_than_once() -> None:
    text = (
        "a.b = 1\na.c = 2\n[x.y]\nz = 1\n[x]\nw = 2\n[[p]]\n[p.q]\nr = 1\n[[p.s]]\n[[p.s]]\n t = 1\n[[p]]\n"
    )
    assert locate(text) == {
        ("a",): (1, 1),
        ("a", "b"): (1, 3),
        ("a", "c"): (2, 3),
        ("x",): (3, 2),
        ("x", "y"): (3, 4),
        ("x", "y", "z"): (4, 1),
        ("x", "w"): (6, 1),
        ("p",): (7, 3),
        ("p", 0): (7, 3),
        ("p", 0, "q"): (8, 4),
        ("p", 0, "q", "r"): (9, 1),
        ("p", 0, "s"): (10, 5),
        ("p", 0, "s", 0): (10, 5),
        ("p", 0, "s", 1): (11, 5),
        ("p", 0, "s", 1, "t"): (12, 2),
        ("p", 1): (13, 3),
    }
