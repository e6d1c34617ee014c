"""Dysco: steer unmodified TCP sessions through chains of middleboxes, and change the chain of a live one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dysco.errors import DyscoError, ExitStatus

if TYPE_CHECKING:
    from dysco.adapters import Adapter, Pair
    from dysco.client import Dysco, connect, splice
    from dysco.middlebox import Direction, Middlebox, Packet, Session, StreamMiddlebox
    from dysco.service.agent import AgentService as Agent

__all__ = [
    "Adapter",
    "Agent",
    "Direction",
    "Dysco",
    "DyscoError",
    "ExitStatus",
    "Middlebox",
    "Packet",
    "Pair",
    "Session",
    "StreamMiddlebox",
    "connect",
    "splice",
]

_WHERE = {
    "Adapter": ("dysco.adapters", "Adapter"),
    "Pair": ("dysco.adapters", "Pair"),
    "Agent": ("dysco.service.agent", "AgentService"),
    "Dysco": ("dysco.client", "Dysco"),
    "connect": ("dysco.client", "connect"),
    "splice": ("dysco.client", "splice"),
    "Direction": ("dysco.middlebox", "Direction"),
    "Middlebox": ("dysco.middlebox", "Middlebox"),
    "Packet": ("dysco.wire.packet", "Packet"),
    "Session": ("dysco.middlebox", "Session"),
    "StreamMiddlebox": ("dysco.middlebox", "StreamMiddlebox"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import dysco` costs nothing (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'dysco' has no attribute {name!r}")
    import importlib

    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)
