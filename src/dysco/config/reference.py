"""The reference page docs/configuration.md, written from the models so that it cannot disagree with them."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dysco.config.changes import needs_restart
from dysco.config.models import HopRef, HostConfig

_INTRODUCTION = """\
# Configuration reference

<!-- Written by `dysco.config.render_reference()`; a test compares. Change the models, not this page. -->

An agent reads one TOML file. `dysco check host.toml` tells everything that is wrong with it at once, each
with line and column; `dysco reload` shows what would change, and applies a file whole or not at all. Keys
marked *restart* keep their old value until the agent is started again; all others change on reload. Live
sessions keep the chain that they have whatever a reload changes.

Unknown keys are errors. Relative paths are relative to the file. Times are in seconds.
Sections in double brackets may stand any number of times, one for each thing that they describe.
"""

_TABLES = ("peer", "box", "group", "policy", "proxy")


def render_reference() -> str:
    """Write the reference of all keys as Markdown."""
    parts = [_INTRODUCTION]
    for section, field in HostConfig.model_fields.items():
        model = _model(field.annotation)
        header = f"[[{section}]]" if section in _TABLES else f"[{section}]"
        parts.append(f"## `{header}`\n\n{_paragraph(model.__doc__)}\n")
        parts.append("| key | value | default | on reload | meaning |\n| --- | --- | --- | --- | --- |")
        for key, one in model.model_fields.items():
            reload = "*restart*" if needs_restart(model, key) else "changes"
            cells = (f"`{key}`", _value(one), _default(one), reload, _paragraph(one.description))
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append(_NOTES.get(section, ""))
    return "\n".join(parts).rstrip() + "\n"


_NOTES = {
    "box": (
        "\nA box that comes or goes needs a restart. Chain headers name a box by the first four bytes of "
        "SHA-256 of its\n"
        "name; two boxes of one host whose numbers collide are refused.\n"
    ),
    "policy": (
        "\nThe language of `match`: `host ADDRESS`, `net PREFIX/LENGTH`, `port NUMBER`, `portrange "
        "LOW-HIGH`, each with\n"
        "`src`, `dst` or `src or dst` before it, `ip`, `ip6`, `tcp`, joined by `and`, `or`, `not` (`&&`, "
        "`||`, `!`) and\n"
        "parentheses. As in pcap, `and` and `or` bind equally, from the left, `not` binds tighter, and a "
        "bare value takes\n"
        "the qualifiers of the one before it: `tcp dst port 80 or 443`. Addresses and ports are numbers; "
        "names are not\n"
        "looked up. The empty expression is every session.\n"
    ),
    "": "",
}


def _model(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_model(inner) for inner in get_args(annotation) if inner is not Ellipsis)


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    match field.default:
        case None:
            return "not set"
        case bool():
            return f"`{str(field.default).lower()}`"
        case tuple():
            return f"`[{', '.join(_toml(part) for part in field.default)}]`"
    return f"`{_toml(field.default)}`"


def _toml(value: object) -> str:
    return (
        f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def _value(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
    text = _type(field.annotation)
    bounds = _bounds(field.metadata)
    return text + (f" {bounds}" if bounds else "") + (f", {unit}" if unit else "")


def _bounds(metadata: list[Any]) -> str:
    low = next((f"{m.ge}" for m in metadata if isinstance(m, Ge)), "")
    low = low or next((f"above {m.gt}" for m in metadata if isinstance(m, Gt)), "")
    high = next((f"{m.le}" for m in metadata if isinstance(m, Le)), "")
    if low and high:
        return f"{low} to {high}"
    most = next((m.max_length for m in metadata if isinstance(m, MaxLen)), None)
    least = next((m.min_length for m in metadata if isinstance(m, MinLen)), None)
    return f"of at most {most}" if most else "that is not empty" if least else ""


def _type(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return _type(get_args(annotation)[0])
    if origin is Literal:
        return " or ".join(f"`{_toml(word)}`" for word in get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        kinds = dict.fromkeys(_type(inner) for inner in get_args(annotation) if inner is not type(None))
        return " or ".join(kinds)
    if origin is tuple:
        inner = get_args(annotation)
        return "pair of numbers" if inner == (int, int) else f"list of {_type(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, HopRef):
        return "hop"
    return _NAMES.get(getattr(annotation, "__name__", ""), "text")


_NAMES = {
    "bool": "`true` or `false`",
    "int": "number",
    "float": "number",
    "Path": "path",
    "IPv4Address": "address",
    "IPv6Address": "address",
}
