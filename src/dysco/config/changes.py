"""What differs between two configurations, and which of it a reload can bring into force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from dysco.config.checks import problems
from dysco.config.models import HostConfig
from dysco.errors import ConfigError

# A box has devices or a process behind it, so that one cannot come or go under a running agent.
_FIXED = frozenset(("box",))


@dataclass(frozen=True)
class Difference:
    """One key that differs. `old` or `new` is None where a table came or went or the key was not set."""

    key: str
    old: Any
    new: Any
    restart: bool

    def __str__(self) -> str:
        if self.old is None and isinstance(self.new, BaseModel):
            text = f"{self.key}: added"
        elif self.new is None and isinstance(self.old, BaseModel):
            text = f"{self.key}: removed"
        else:
            text = f"{self.key}: {_show(self.old)} -> {_show(self.new)}"
        return text + (" (needs a restart)" if self.restart else "")


def diff(old: HostConfig, new: HostConfig) -> list[Difference]:
    """List what changes from old to new, in the order of the reference. Named tables are paired by name."""
    found: list[Difference] = []
    for section in HostConfig.model_fields:
        before, after = getattr(old, section), getattr(new, section)
        if not isinstance(before, tuple):
            found += _keys(section, before, after)
            continue
        was, now = {item.name: item for item in before}, {item.name: item for item in after}
        fixed = section in _FIXED
        for name in [*was, *(name for name in now if name not in was)]:
            key = f"{section}[{name}]"
            if name in was and name in now:
                found += _keys(key, was[name], now[name])
            else:
                found.append(Difference(key, was.get(name), now.get(name), restart=fixed))
        if section == "policy":
            kept = [name for name in was if name in now]
            order = [name for name in now if name in was]
            if kept != order:
                found.append(Difference("policy order", kept, order, restart=False))
    return found


def reloaded(running: HostConfig, new: HostConfig) -> HostConfig:
    """Give what is in force after a reload: keys that need a restart keep their old value.

    Raises ConfigError if the new file only makes sense with them, such as a policy that uses the agent's new name.
    """
    sections: dict[str, Any] = {}
    for section in HostConfig.model_fields:
        before, after = getattr(running, section), getattr(new, section)
        if isinstance(before, tuple):
            sections[section] = before if section in _FIXED else after
            continue
        live = {
            key: getattr(after, key)
            for key in type(before).model_fields
            if not needs_restart(type(before), key)
        }
        sections[section] = before.model_copy(update=live)
    config = running.model_copy(update=sections)
    wrong = [one for one in problems(config) if one.severity == "error"]
    if wrong:
        reasons = "; ".join(f"{'.'.join(map(str, one.path))}: {one.message}" for one in wrong)
        raise ConfigError(
            f"this file needs a restart of the agent, for with what cannot change until then: {reasons}"
        )
    return config


def needs_restart(model: type[BaseModel], key: str) -> bool:
    """Tell whether a change of a key waits for a restart of the agent."""
    extra = model.model_fields[key].json_schema_extra
    return isinstance(extra, dict) and extra.get("reload") == "restart"


def _keys(prefix: str, before: BaseModel, after: BaseModel) -> list[Difference]:
    model = type(before)
    return [
        Difference(f"{prefix}.{key}", getattr(before, key), getattr(after, key), needs_restart(model, key))
        for key in model.model_fields
        if getattr(before, key) != getattr(after, key)
    ]


def _show(value: Any) -> str:
    match value:
        case None:
            return "not set"
        case bool():
            return str(value).lower()
        case tuple() | list():
            return f"[{', '.join(map(_show, value))}]"
        case BaseModel():
            given = {key: part for key, part in value if part is not None}
            if set(given) == {"to"}:
                return _show(given["to"])
            return "{ " + ", ".join(f"{key} = {_show(part)}" for key, part in given.items()) + " }"
        case int() | float():
            return str(value)
    return f'"{value}"'
