"""What stands in a host's directory: its host.toml, made of the lab's file and what the lab knows, and its
files.

Knows placeholders, `${NAME}`, which stand in configurations, files and command lines:

    ${server.ipv4}  ${server.ipv6}   first address of a host or router
    ${dir}                           the host's own directory
    ${lab}                           the directory of the lab's file
    ${ns.NAME}                       a further network namespace of the host
    ${python}                        the running Python
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dysco.errors import ConfigError
from dysco.lab.topology import Node, Topology

_PLACEHOLDER: Final = re.compile(r"\$\{([a-z0-9_.-]+)\}")


def placeholders(topology: Topology, node: Node, directory: Path, source: Path, netns: str) -> dict[str, str]:
    """Give the values of the placeholders for one host."""
    values = {"dir": str(directory), "lab": str(source), "python": sys.executable}
    for other in topology.nodes.values():
        for key, addresses in (("ipv4", other.ipv4), ("ipv6", other.ipv6)):
            if addresses:
                values[f"{other.name}.{key}"] = addresses[0]
    if node.host is not None:
        values |= {f"ns.{name}": f"{netns}-{name}" for name in node.host.namespaces}
    return values


def fill(value: Any, values: Mapping[str, str]) -> Any:
    """Put values in place of placeholders, at any depth; raises ConfigError for an unknown one."""

    def one(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ConfigError(
                f"${{{match[1]}}}: there is no such value; there are {', '.join(sorted(values))}"
            )
        return values[match[1]]

    if isinstance(value, str):
        return _PLACEHOLDER.sub(one, value)
    if isinstance(value, Mapping):
        return {key: fill(part, values) for key, part in value.items()}
    if isinstance(value, list):
        return [fill(part, values) for part in value]
    return value


def host_toml(
    topology: Topology, node: Node, directory: Path, source: Path, values: Mapping[str, str]
) -> dict[str, Any]:
    """Give the tables of a host's host.toml: what the file says, and for the rest what the lab knows.

    Names, addresses, devices, keys, the socket and all other agents as peers. Raises ConfigError.
    """
    assert node.host is not None
    given = node.host.config
    if isinstance(given, str):
        try:
            given = tomllib.loads((source / given).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{source / str(given)}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source / str(node.host.config)}: {error}") from None
    tables: dict[str, Any] = fill(given, values)
    agent = {
        "name": node.name,
        "addresses": [*node.ipv4[:1], *node.ipv6[:1]],
        "underlay": [device.name for device in node.devices],
        "socket": str(directory / "agent.sock"),
        "run_directory": str(directory / "run"),
    }
    keys = {
        "ca": str(directory / "ca.pem"),
        "certificate": str(directory / f"{node.name}.pem"),
        "key": str(directory / f"{node.name}.key"),
    }
    peers = {peer.get("name"): peer for peer in tables.get("peer", [])}
    for other in agents(topology):
        if other is not node:
            known = {"name": other.name, "addresses": [*other.ipv4, *other.ipv6]}
            peers[other.name] = known | peers.get(other.name, {})
    if topology.file.lab.mode is not None:
        tables["dataplane"] = {"mode": topology.file.lab.mode} | tables.get("dataplane", {})
    return tables | {
        "agent": agent | tables.get("agent", {}),
        "keys": keys | tables.get("keys", {}),
        "peer": list(peers.values()),
    }


def agents(topology: Topology) -> list[Node]:
    """Give the hosts that run an agent."""
    return [node for node in topology.nodes.values() if node.host is not None and node.host.agent]


def to_toml(tables: Mapping[str, Any]) -> str:
    """Write tables as TOML; `tomllib` reads the same back."""
    lines: list[str] = []
    for name, value in tables.items():
        many = isinstance(value, list) and bool(value) and all(isinstance(part, Mapping) for part in value)
        if many or isinstance(value, Mapping):
            for part in value if many else [value]:
                lines += ["", f"[[{_key(name)}]]" if many else f"[{_key(name)}]"]
                lines += [f"{_key(key)} = {_value(inner)}" for key, inner in part.items()]
        else:
            lines.insert(0, f"{_key(name)} = {_value(value)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)
