"""host.toml: what a host's agent is told, checked whole before any of it counts.

`load` gives a frozen HostConfig or raises ConfigErrors with every finding at its line and column; `check`
gives warnings too; `diff` says what a reload would change; `render_reference` writes docs/configuration.md.
Knows the policy language and names; knows nothing of the agent that will use them.
"""

from __future__ import annotations

from dysco.config.changes import Difference, diff, reloaded
from dysco.config.findings import ConfigErrors, Finding
from dysco.config.load import check, check_bytes, load
from dysco.config.models import (
    Agent,
    Box,
    Dataplane,
    Group,
    HopRef,
    HostConfig,
    Keys,
    Limits,
    Peer,
    Policy,
    Proxy,
    Timers,
    Tun,
    box_tag,
)
from dysco.config.policies import policy_set
from dysco.config.positions import Position
from dysco.config.proxies import ProxyRule, proxy_rules
from dysco.config.reference import render_reference

__all__ = [
    "Agent",
    "Box",
    "ConfigErrors",
    "Dataplane",
    "Difference",
    "Finding",
    "Group",
    "HopRef",
    "HostConfig",
    "Keys",
    "Limits",
    "Peer",
    "Policy",
    "Position",
    "Proxy",
    "ProxyRule",
    "Timers",
    "Tun",
    "box_tag",
    "check",
    "check_bytes",
    "diff",
    "load",
    "policy_set",
    "proxy_rules",
    "reloaded",
    "render_reference",
]
