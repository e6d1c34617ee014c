"""The drawing of a lab: its nodes as a tree from the first router, its links, the chains that policies name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dysco.lab.models import Link
from dysco.lab.topology import Node, Topology


def draw(topology: Topology, tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the lab as text."""
    about = topology.file.lab.about
    lines = [f"lab {topology.file.lab.name}" + (f": {about}" if about else ""), ""]
    middle = [node for node in topology.nodes.values() if node.kind != "host"]
    seen: set[str] = set()
    rows: list[tuple[str, str]] = []
    for root in (*middle, *topology.nodes.values()):
        if root.name not in seen:
            _tree(topology, tables, root, None, seen, rows, "", "")
    width = max(len(left) for left, _ in rows)
    lines += [f"{left:<{width}}   {right}".rstrip() for left, right in rows]
    chains = [line for name, table in tables.items() for line in _chains(name, table)]
    return "\n".join([*lines, *(["", "chains", *chains] if chains else [])]) + "\n"


def _tree(
    topology: Topology,
    tables: Mapping[str, Mapping[str, Any]],
    node: Node,
    up: Link | None,
    seen: set[str],
    rows: list[tuple[str, str]],
    first: str,
    rest: str,
) -> None:
    seen.add(node.name)
    rows.append((first + node.name, _about(node, tables.get(node.name), up)))
    nearby: list[tuple[Node, Link]] = []
    for device in node.devices:
        name = topology.neighbour(device).node
        if name not in seen:
            seen.add(name)
            nearby.append((topology.nodes[name], topology.links[device.link]))
    for number, (other, link) in enumerate(nearby):
        is_last = number == len(nearby) - 1
        branch, below = ("└── ", "    ") if is_last else ("├── ", "│   ")
        _tree(topology, tables, other, link, seen, rows, rest + branch, rest + below)


def _about(node: Node, table: Mapping[str, Any] | None, up: Link | None) -> str:
    words = [node.kind] if node.kind != "host" else []
    words += [" ".join((*node.ipv4, *node.ipv6))] if node.kind == "host" else []
    if table is not None:
        boxes = [f"{box.get('name')} ({box.get('kind')})" for box in table.get("box", [])]
        words.append("agent" + (" with " + ", ".join(boxes) if boxes else ""))
    if node.host is not None:
        words += [program.name for program in node.host.program]
    label = _link(up) if up is not None else ""
    if label:
        words.append(f"link of {label}")
    return ", ".join(filter(None, words))


def _link(link: Link) -> str:
    words = []
    if link.delay_ms or link.jitter_ms:
        words.append(f"{link.delay_ms:g} ms" + (f" ± {link.jitter_ms:g}" if link.jitter_ms else ""))
    for word, share in (("loss", link.loss), ("twice", link.duplicate), ("late", link.reorder)):
        if share:
            words.append(f"{word} {100 * share:g} %")
    if link.rate_mbit:
        words.append(f"{link.rate_mbit:g} Mbit/s")
    if link.mtu != 1500:
        words.append(f"MTU {link.mtu}")
    return ", ".join(words)


def _chains(name: str, table: Mapping[str, Any]) -> list[str]:
    lines = []
    for policy in table.get("policy", []):
        hops = [hop if isinstance(hop, str) else f"({hop.get('group')})" for hop in policy.get("hops", [])]
        path = " ══ ".join([name, *hops, "destination"])
        lines.append(f"  {policy.get('name')}: {path}   if {policy.get('match')}")
    return lines
