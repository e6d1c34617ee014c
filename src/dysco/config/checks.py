"""What values of a host.toml must be together: names that are known and unique, hops that can be reached.

Works on a HostConfig whose values are each in order. Knows no file and no place: it yields paths.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, NamedTuple

from dysco.config.findings import did_you_mean
from dysco.config.models import Box, HostConfig, Peer, box_tag
from dysco.config.positions import Path
from dysco.policy import clauses, parse


class Problem(NamedTuple):
    """A finding before its place is known."""

    path: Path
    message: str
    severity: Literal["error", "warning"] = "error"


def problems(config: HostConfig) -> Iterator[Problem]:
    """Find everything that does not fit together."""
    for check in _CHECKS:
        yield from check(config)


def _unique_names(config: HostConfig) -> Iterator[Problem]:
    sections: list[tuple[str, list[str]]] = [
        ("peer", [peer.name for peer in config.peer]),
        ("box", [box.name for box in config.box]),
        ("group", [group.name for group in config.group]),
        ("policy", [policy.name for policy in config.policy]),
        ("proxy", [proxy.name for proxy in config.proxy]),
    ]
    for section, names in sections:
        seen: dict[str, int] = {}
        for index, name in enumerate(names):
            if name in seen:
                yield Problem((section, index, "name"), f"'{name}' is the name of two {_plural(section)}")
            seen.setdefault(name, index)
    for index, peer in enumerate(config.peer):
        if peer.name == config.agent.name:
            yield Problem(("peer", index, "name"), f"'{peer.name}' is the name of this agent")
    for index, group in enumerate(config.group):
        if group.name in {peer.name for peer in config.peer}:
            yield Problem(("group", index, "name"), f"'{group.name}' is the name of a peer too")


def _unique_addresses(config: HostConfig) -> Iterator[Problem]:
    owners: dict[object, str] = {}
    for index, address in enumerate(config.agent.addresses):
        if address in owners:
            yield Problem(("agent", "addresses", index), f"{address} stands here twice")
        owners.setdefault(address, "this agent")
    for number, peer in enumerate(config.peer):
        for index, address in enumerate(peer.addresses):
            if address in owners:
                owner = owners[address]
                text = (
                    "stands here twice" if owner == f"peer '{peer.name}'" else f"is an address of {owner} too"
                )
                yield Problem(("peer", number, "addresses", index), f"{address} {text}")
            owners.setdefault(address, f"peer '{peer.name}'")


def _devices(config: HostConfig) -> Iterator[Problem]:
    tun = config.tun
    if tun.session == tun.underlay:
        yield Problem(("tun", "underlay"), f"'{tun.underlay}' is the session device too")
    for index, name in enumerate(config.agent.underlay):
        if name in (tun.session, tun.underlay):
            yield Problem(("agent", "underlay", index), f"'{name}' is a device that the agent makes itself")
        if name in config.agent.underlay[:index]:
            yield Problem(("agent", "underlay", index), f"'{name}' stands here twice")


def _keys(config: HostConfig) -> Iterator[Problem]:
    keys = config.keys
    if (keys.certificate is None) != (keys.key is None):
        lacking, given = ("key", "certificate") if keys.key is None else ("certificate", "key")
        yield Problem(("keys",), f"{given} without {lacking}")
    elif keys.certificate is None:
        yield Problem(("keys",), "certificate and key are missing: agents prove to each other who they are")
    if keys.ca is None:
        for index, peer in enumerate(config.peer):
            if peer.fingerprint is None:
                yield Problem(
                    ("peer", index),
                    "neither a fingerprint here nor keys.ca: the peer could not prove who it is",
                )


def _peers(config: HostConfig) -> Iterator[Problem]:
    names = {peer.name for peer in config.peer}
    for index, peer in enumerate(config.peer):
        for number, hop in enumerate(peer.next_hops or ()):
            if hop not in names:
                yield Problem(
                    ("peer", index, "next_hops", number),
                    f"no peer is called '{hop}'{did_you_mean(hop, names)}",
                )
        if not peer.accept and (peer.next_hops is not None or peer.may_use is not None):
            lost = "next_hops" if peer.next_hops is not None else "may_use"
            yield Problem(("peer", index, lost), "has no effect: accept = false", "warning")


def _boxes(config: HostConfig) -> Iterator[Problem]:
    tags: dict[int, str] = {0: "the host's default"}
    defaults = 0
    devices = {config.tun.session: "tun.session", config.tun.underlay: "tun.underlay"}
    pairs: dict[tuple[str, str], str] = {}
    for index, box in enumerate(config.box):
        if tags.get(box.tag, box.name) != box.name:
            yield Problem(
                ("box", index, "name"),
                f"'{box.name}' has the same 32-bit number ({box_tag(box.name):08x}) as {tags[box.tag]}: "
                f"choose another name",
            )
        tags.setdefault(box.tag, box.name)
        if box.default:
            defaults += 1
            if defaults > 1:
                yield Problem(("box", index, "default"), "another box is the default already")
        yield from _one_box(index, box)
        if box.kind != "namespace":
            continue
        if box.left == box.right:
            yield Problem(("box", index, "right"), f"'{box.right}' is the left device too")
        for side in ("left", "right"):
            device = getattr(box, side)
            if device in devices:
                yield Problem(("box", index, side), f"'{device}' is {devices[device]} already")
            place = (box.namespace or "", device)
            if place in pairs and pairs[place] != box.name:
                yield Problem(
                    ("box", index, side), f"'{device}' in this namespace belongs to box '{pairs[place]}'"
                )
            pairs.setdefault(place, box.name)
    kernel = [index for index, box in enumerate(config.box) if box.kind == "kernel"]
    for index in kernel[1:]:
        yield Problem(
            ("box", index, "kind"), "there is one 'kernel' box a host at most: its forwarding is one thing"
        )


def _one_box(index: int, box: Box) -> Iterator[Problem]:
    given = box.model_fields_set
    if box.kind == "namespace" and box.namespace is None:
        yield Problem(("box", index), "namespace is missing: where does the box run?")
    for name, kinds in (
        ("namespace", ("namespace",)),
        ("left", ("namespace",)),
        ("right", ("namespace",)),
        ("python", ("packet", "stream")),
        ("default", ("kernel", "namespace", "packet", "stream")),
    ):
        if name in given and box.kind not in kinds:
            yield Problem(
                ("box", index, name), f"a box of kind '{box.kind}' has none; it is for {_either(kinds)}"
            )
    yield from _state(index, box)
    if box.changes_tuple and box.match is not None and set(box.match) == {"tuple"}:
        yield Problem(("box", index, "match"), "'tuple' alone never finds a SYN of a box that changes tuples")
    if box.match is not None and len(set(box.match)) != len(box.match):
        yield Problem(("box", index, "match"), "one way stands here twice")
    if box.changes_tuple and box.kind == "stream":
        yield Problem(
            ("box", index, "changes_tuple"), "a stream box sees bytes and cannot change addresses or ports"
        )


def _state(index: int, box: Box) -> Iterator[Problem]:
    kinds = {"conntrack": ("kernel", "namespace"), "python": ("packet", "stream")}.get(box.state)
    if kinds is not None and box.kind not in kinds:
        yield Problem(
            ("box", index, "state"), f"'{box.state}' is for boxes of kind {_either(kinds)}, not '{box.kind}'"
        )
    if box.kind == "proxy" and box.state != "none":
        yield Problem(
            ("box", index, "state"), "a proxy's sessions end there; its state cannot go to another host"
        )
    if box.state == "command" and not box.state_command:
        yield Problem(("box", index), "state_command is missing: what moves the state?")
    if box.state_command and not box.state_command[0].startswith("/"):
        yield Problem(("box", index, "state_command"), f"'{box.state_command[0]}' is not an absolute path")
    for name, states in (
        ("state_command", ("command",)),
        ("state_timeout", ("command",)),
        ("state_limit", ("command", "python")),
    ):
        if name in box.model_fields_set and box.state not in states:
            yield Problem(("box", index, name), f"has no effect: state = '{box.state}'", "warning")


def _hops(config: HostConfig) -> Iterator[Problem]:
    peers = {peer.name: peer for peer in config.peer}
    groups = {group.name: group for group in config.group}
    for index, group in enumerate(config.group):
        for number, member in enumerate(group.members):
            yield from _place(("group", index, "members", number), member, config, peers, groups)
            if member in group.members[:number]:
                yield Problem(("group", index, "members", number), f"'{member}' stands here twice")
        for number, member in enumerate(group.drained):
            if member not in group.members:
                yield Problem(
                    ("group", index, "drained", number),
                    f"'{member}' is no member{did_you_mean(member, group.members)}",
                )
    for index, policy in enumerate(config.policy):
        if not policy.hops and policy.egress != "agent":
            yield Problem(("policy", index, "hops"), f"egress = '{policy.egress}' needs a hop that does it")
        if len(policy.hops) == 16 and policy.egress == "agent":
            yield Problem(
                ("policy", index, "hops"), "16 hops and the final host are 17: a chain has at most 16"
            )
        for number, hop in enumerate(policy.hops):
            path: Path = ("policy", index, "hops", number)
            if (hop.to is None) == (hop.group is None):
                yield Problem(path, "a hop is a peer, 'peer/box', an address, or { group = ... }")
            elif hop.to is not None and hop.pick is not None:
                yield Problem(path, "pick is for groups")
            elif hop.to is not None:
                yield from _place(path, hop.to, config, peers, groups)
            elif hop.group is not None and hop.group not in groups:
                yield Problem(
                    (*path, "group"), f"no group is called '{hop.group}'{did_you_mean(hop.group, groups)}"
                )
    yield from _reachable_families(config, peers)


def _place(
    path: Path, text: str, config: HostConfig, peers: Iterable[str], groups: Iterable[str]
) -> Iterator[Problem]:
    """Check `peer`, `peer/box`, `address` or `address/box`."""
    host, slash, box = text.partition("/")
    if slash and not box:
        yield Problem(path, f"'{text}': the name of a box is missing after '/'")
    if host in peers:
        return
    if host == config.agent.name or host in map(str, config.agent.addresses):
        boxes = [one.name for one in config.box if one.kind != "proxy"]
        if any(one.name == box and one.kind == "proxy" for one in config.box):
            yield Problem(
                path,
                f"box '{box}' is a proxy, which ends sessions and opens others: no chain goes through it. Let "
                f"sessions be addressed to it, and give those that it opens a policy of their own",
            )
        elif box and box not in boxes:
            yield Problem(path, f"no box here is called '{box}'{did_you_mean(box, boxes)}")
        elif not boxes:
            yield Problem(path, f"'{host}' is this agent, and it has no box that a chain goes through")
        return
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        hint = did_you_mean(host, [*peers, config.agent.name])
        if host in groups:
            hint = f'; a group is written {{ group = "{host}" }}'
        yield Problem(path, f"no peer is called '{host}'{hint}")
        return
    known = [*config.agent.addresses, *(one for peer in config.peer for one in peer.addresses)]
    if address not in known:
        yield Problem(path, f"{address} is an address of no peer{did_you_mean(host, map(str, known))}")


def _reachable_families(config: HostConfig, peers: dict[str, Peer]) -> Iterator[Problem]:
    """Warn of hops that sessions of one family cannot take."""
    for index, policy in enumerate(config.policy):
        families = _families(policy.match)
        for number, hop in enumerate(policy.hops):
            if hop.to is None:
                continue
            host = hop.to.partition("/")[0]
            if host in peers:
                reached = {address.version for address in peers[host].addresses}
                named = f"peer '{host}'"
            elif host == config.agent.name:
                continue
            else:
                peer = next((peer for peer in config.peer if host in map(str, peer.addresses)), None)
                if peer is None:
                    continue
                reached, named = {ipaddress.ip_address(host).version}, "the address"
            for version in sorted(families - reached):
                yield Problem(
                    ("policy", index, "hops", number),
                    f"{named} has no IPv{version} address: IPv{version} sessions of this policy fail as "
                    f"on_fail says"
                    f" (add `{'ip' if version == 6 else 'ip6'}` to match if they are not meant)",
                    "warning",
                )


def _families(match: str) -> set[int]:
    return {clause.family for clause in clauses(parse(match), limit=2)}


def _ports(config: HostConfig) -> Iterator[Problem]:
    low, high = config.agent.port_range
    if high - low + 1 < 64:
        yield Problem(
            ("agent", "port_range"),
            f"{high - low + 1} ports are few: each live session to a neighbour needs one",
            "warning",
        )
    if low < 61000:
        yield Problem(
            ("agent", "port_range"),
            "reaches below 61000: the kernel's ephemeral ports end at 60999 by default; these are reserved "
            "at start",
            "warning",
        )


_FOR: Final[dict[str, tuple[str, ...]]] = {
    "socket": ("haproxy",),
    "line": ("haproxy",),
    "log": ("nginx-stream",),
    "port": ("nginx-stream", "generic"),
    "pid_file": ("nginx-stream", "generic"),
}


def _proxies(config: HostConfig) -> Iterator[Problem]:
    for index, proxy in enumerate(config.proxy):
        own_class = ":" in proxy.adapter
        for key, adapters in _FOR.items():
            if key in proxy.model_fields_set and not own_class and proxy.adapter not in adapters:
                yield Problem(
                    ("proxy", index, key),
                    f"adapter '{proxy.adapter}' has none; it is for {_either(adapters)}",
                )
        if proxy.adapter == "haproxy" and proxy.socket is None:
            yield Problem(("proxy", index), "socket is missing: where is HAProxy's runtime API?")
        if proxy.adapter == "nginx-stream" and proxy.log is None:
            yield Problem(("proxy", index), "log is missing: where does nginx tell of its sessions?")
        if proxy.adapter in _FOR["port"] and proxy.port is None and proxy.pid_file is None:
            yield Problem(("proxy", index), "port or pid_file is missing: which program is it?")
        limits = ("after_bytes", "after_seconds")
        if proxy.remove == "after" and all(getattr(proxy, key) is None for key in limits):
            yield Problem(("proxy", index, "remove"), "'after' what? after_bytes or after_seconds is missing")
        for key in limits:
            if getattr(proxy, key) is not None and proxy.remove != "after":
                yield Problem(("proxy", index, key), f"has no effect: remove = '{proxy.remove}'", "warning")


def _plural(section: str) -> str:
    return {"box": "boxes", "policy": "policies", "proxy": "proxies"}.get(section, section + "s")


def _either(words: Iterable[str]) -> str:
    return " or ".join(f"'{word}'" for word in words)


_CHECKS: tuple[Callable[[HostConfig], Iterator[Problem]], ...] = (
    _unique_names,
    _unique_addresses,
    _devices,
    _keys,
    _peers,
    _boxes,
    _proxies,
    _hops,
    _ports,
)
