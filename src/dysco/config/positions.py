"""Where each key and array element of a TOML text stands.

`tomllib` gives values without places. This scanner runs after it, only on text that it accepted, so it need
not judge: it walks keys, strings, brackets and comments of TOML 1.0 and notes places. It knows nothing of
what the keys mean. A path is a tuple of keys and indexes: ("policy", 0, "hops", 1).
"""

from __future__ import annotations

import bisect
import re
from typing import NamedTuple

Path = tuple[str | int, ...]

_DOTTED_LIMIT = 64  # parts of one key; ours: places of all its beginnings take the square of that


class Position(NamedTuple):
    """Line and column, both counted from 1, the column in characters."""

    line: int
    column: int


_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# A date and its time may stand apart by one space.
_SCALAR = re.compile(r"[^,\]\}\s#]+(?: [0-9][^,\]\}\s#]*)?")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"'[^']*'")
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}(?!")', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'{3,5}(?!')", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def locate(text: str) -> dict[Path, Position]:
    """Give the place of every key and element of a text that `tomllib` accepted, or RecursionError."""
    return _Scanner(text).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places: dict[Path, Position] = {}
        self.counts: dict[Path, int] = {}  # elements of arrays of tables so far
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def run(self) -> dict[Path, Position]:
        table: Path = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                self.at += 2
                table = self.array_header()
                self.at += 2
            elif self.text[self.at] == "[":
                self.at += 1
                table = self.note(self.key(), ())
                self.at += 1
            else:
                self.pair(table)
            self.skip(_BLANK)
        return self.places

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError(f"not TOML at offset {self.at}")
        self.at = match.end()
        return match.group()

    def place(self, offset: int) -> Position:
        line = bisect.bisect_right(self.line_starts, offset)
        return Position(line, offset - self.line_starts[line - 1] + 1)

    def key(self) -> list[tuple[str, int]]:
        """Read a dotted key; give its parts with their offsets. RecursionError if it is absurdly long."""
        parts = []
        while True:
            self.skip(_SPACE)
            start = self.at
            if self.text[start] == '"':
                part = _ESCAPE.sub(_unescape, self.skip(_BASIC)[1:-1])
            elif self.text[start] == "'":
                part = self.skip(_LITERAL)[1:-1]
            else:
                part = self.skip(_BARE_KEY)
            parts.append((part, start))
            if len(parts) > _DOTTED_LIMIT:
                raise RecursionError
            self.skip(_SPACE)
            if self.text[self.at : self.at + 1] != ".":
                return parts
            self.at += 1

    def note(self, parts: list[tuple[str, int]], base: Path) -> Path:
        """Note the place of each part of a key unless it has one; step into the last of arrays of tables."""
        path = base
        for part, offset in parts:
            path = (*path, part)
            self.places.setdefault(path, self.place(offset))
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        return path

    def array_header(self) -> Path:
        parts = self.key()
        path = (*self.note(parts[:-1], ()), parts[-1][0])
        index = self.counts.get(path, 0)
        self.counts[path] = index + 1
        place = self.place(parts[-1][1])
        self.places.setdefault(path, place)
        self.places[(*path, index)] = place
        return (*path, index)

    def pair(self, table: Path) -> None:
        path = self.note(self.key(), table)
        self.at += 1  # the equals sign
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: Path) -> None:
        text, at = self.text, self.at
        if text.startswith('"""', at):
            self.skip(_LONG_BASIC)
        elif text.startswith("'''", at):
            self.skip(_LONG_LITERAL)
        elif text[at] == '"':
            self.skip(_BASIC)
        elif text[at] == "'":
            self.skip(_LITERAL)
        elif text[at] == "[":
            self.array(path)
        elif text[at] == "{":
            self.inline_table(path)
        else:
            self.skip(_SCALAR)

    def array(self, path: Path) -> None:
        self.at += 1
        index = 0
        self.skip(_BLANK)
        while self.text[self.at] != "]":
            element = (*path, index)
            self.places[element] = self.place(self.at)
            self.value(element)
            index += 1
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
                self.skip(_BLANK)
        self.at += 1

    def inline_table(self, path: Path) -> None:
        self.at += 1
        self.skip(_BLANK)
        while self.text[self.at] != "}":
            self.pair(path)
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
                self.skip(_BLANK)
        self.at += 1


def _unescape(match: re.Match[str]) -> str:
    short, long, letter = match.groups()
    return chr(int(short or long, 16)) if letter is None else _ESCAPES[letter]
