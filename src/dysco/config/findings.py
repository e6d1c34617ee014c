"""What is wrong in a configuration, in sentences, each with its place.

Knows the error types of pydantic and how people like to read them; knows nothing of what keys mean.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError

from dysco.config.positions import Path, Position
from dysco.errors import ConfigError

_SHOWN_VALUE = 60  # longer values are cut in messages


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong (`error`: the file is refused) or doubtful (`warning`)."""

    position: Position
    key: str
    message: str
    file: str = ""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        where = f"{self.file}:{self.position.line}:{self.position.column}: "
        key = f"{self.key}: " if self.key else ""
        return f"{where}{'warning: ' if self.severity == 'warning' else ''}{key}{self.message}"


class ConfigErrors(ConfigError):
    """A configuration was refused; `findings` has all that is wrong with it, in the file's order."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = sorted(findings)
        super().__init__("\n".join(map(str, self.findings)))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Give `; did you mean 'x'?` for the nearest known word, else nothing."""
    folded = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean '{folded[near[0]]}'?" if near else ""


def key_name(path: Path, document: object) -> str:
    """Name a place for people: `tun.mtu`, `policy[web].hops[1]`; unnamed elements are counted from 1."""
    text = ""
    node = document
    for part in path:
        node = _child(node, part)
        if isinstance(part, int):
            name = node.get("name") if isinstance(node, dict) else None
            text += f"[{name}]" if isinstance(name, str) and name.isprintable() else f"[{part + 1}]"
        else:
            shown = part if part.isprintable() and part else repr(part)
            text += f".{shown}" if text else shown
    return text


def position_of(path: Path, places: dict[Path, Position]) -> Position:
    """Find the place of a path, or of the nearest thing around it."""
    for length in range(len(path), 0, -1):
        if path[:length] in places:
            return places[path[:length]]
    return Position(1, 1)


def show(value: object) -> str:
    """Show a value as a person would write it, cut if long."""
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, (str, int, float)) else _kind(value)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 3] + "..."


def from_pydantic(error: ValidationError, model: type[BaseModel], document: object) -> list[tuple[Path, str]]:
    """Turn pydantic's errors into (path, sentence), one for each key."""
    seen: dict[Path, str] = {}
    for entry in error.errors(include_url=False):
        if entry["type"] == "too_short" and entry["input"]:
            continue  # pydantic counts the right elements only; the wrong ones have findings of their own
        path = _real_path(entry["loc"], document, entry["type"])
        sentence = _sentence(entry, path, model)
        seen[path] = (
            f"{seen[path]}, or {sentence}" if path in seen and sentence not in seen[path] else sentence
        )
    return list(seen.items())


def _real_path(loc: Sequence[str | int], document: object, kind: str) -> Path:
    """Drop from pydantic's location what names a branch of a union and not a key."""
    path: list[str | int] = []
    node = document
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        child = _child(node, part)
        if child is None and not (last and kind in ("missing", "extra_forbidden")):
            break
        path.append(part)
        node = child
    return tuple(path)


def _child(node: object, part: str | int) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    if isinstance(node, list) and isinstance(part, int) and part < len(node):
        return node[part]
    return None


def _sentence(entry: Any, path: Path, model: type[BaseModel]) -> str:
    kind, value, context = entry["type"], entry["input"], entry.get("ctx", {})
    known = _fields_at(model, path[:-1])
    match kind:
        case "missing":
            field = known.get(str(path[-1])) if path else None
            return "is missing" + (
                f" ({_first_sentence(field.description)})" if field and field.description else ""
            )
        case "extra_forbidden":
            return f"unknown key{did_you_mean(str(path[-1]), known)}"
        case "greater_than_equal":
            return f"{show(value)} is below {context['ge']}"
        case "greater_than":
            return f"{show(value)} is not above {context['gt']:g}"
        case "less_than_equal":
            return f"{show(value)} is above {context['le']:,.0f}".replace(",", "")
        case "finite_number":
            return f"{show(value)} is not a finite number"
        case "literal_error":
            words = _literals(context["expected"])
            hint = did_you_mean(value, words) if isinstance(value, str) else ""
            return f"{show(value)} is not one of {', '.join(map(repr, words))}{hint}"
        case "too_short" | "string_too_short":
            return "must not be empty"
        case "too_long":
            return f"{context['actual_length']} are too many: at most {context['max_length']}"
        case "value_error":
            return str(context["error"])
        case "is_instance_of" if context["class"] == "Path":
            kind = "path_type"
    expected = _EXPECTED.get(kind)
    return f"expected {expected}, not {show(value)}" if expected else f"{show(value)}: {entry['msg']}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "string_type": "a text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "path_type": "a path in quotes",
    "is_instance_of": "an address in quotes",
}


def _kind(value: object) -> str:
    match value:
        case dict():
            return "a table"
        case list() | tuple():
            return "a list"
    return str(value)


def _literals(expected: str) -> list[str]:
    return [word.strip("'") for part in expected.split(", ") for word in part.split(" or ")]


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".")


def _fields_at(model: type[BaseModel], path: Path) -> dict[str, Any]:
    """Give the keys that the table at a path may have."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        fields = current.model_fields if _is_model(current) else {}
        if part not in fields:
            return {}
        current = next(_models_in(fields[part].annotation), None)
    return dict(current.model_fields) if _is_model(current) else {}


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _models_in(annotation: Any) -> typing.Iterator[type[BaseModel]]:
    if _is_model(annotation):
        yield annotation
    if typing.get_origin(annotation) in (tuple, typing.Union, types.UnionType, typing.Annotated):
        for inner in get_args(annotation):
            yield from _models_in(inner)
