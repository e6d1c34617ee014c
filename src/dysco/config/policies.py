"""From the policies and groups of a host.toml to the PolicySet that decides."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import replace

from dysco import policy
from dysco.config.models import HopRef, HostConfig, box_tag
from dysco.errors import ConfigError
from dysco.wire.tuples import Family


def policy_set(config: HostConfig, own_addresses: Sequence[bytes] = ()) -> policy.PolicySet:
    """Translate a checked configuration; `own_addresses` count if agent.addresses is empty."""
    place = _places(config, own_addresses)

    groups = {
        group.name: policy.Group(
            group.name,
            tuple(place(member) for member in group.members),
            group.pick,
            group.sticky,
            frozenset(group.drained),
        )
        for group in config.group
    }

    def hop(reference: HopRef) -> policy.Place | policy.Group:
        if reference.group is None:
            return place(reference.to or "")
        group = groups[reference.group]
        return replace(group, pick=reference.pick) if reference.pick else group

    return policy.PolicySet(
        policy.Rule(
            one.name,
            policy.parse(one.match),
            tuple(hop(reference) for reference in one.hops),
            one.on_fail,
            one.egress,
            one.priority,
            one.enabled,
        )
        for one in config.policy
    )


def resolve_hop(
    config: HostConfig, own_addresses: Sequence[bytes], text: str, family: Family
) -> tuple[bytes, int]:
    """Give address and box number of a hop as policies name it; ConfigError if it means nothing here."""
    found = find_place(config, own_addresses, text)
    address = found.address(family)
    if address is None:
        raise ConfigError(f"{text!r} has no IPv{family} address")
    return address, found.box


def find_place(config: HostConfig, own_addresses: Sequence[bytes], text: str) -> policy.Place:
    """Give the place that a hop means as policies name it; ConfigError if it means nothing here."""
    try:
        return _places(config, own_addresses)(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no peer of this host and no address") from None


def _places(config: HostConfig, own_addresses: Sequence[bytes]) -> Callable[[str], policy.Place]:
    own = tuple(address.packed for address in config.agent.addresses) or tuple(own_addresses)
    peers = {peer.name: tuple(address.packed for address in peer.addresses) for peer in config.peer}

    def place(text: str) -> policy.Place:
        host, _, box = text.partition("/")
        tag = box_tag(box) if box else 0
        if host == config.agent.name:
            return policy.Place(text, own, tag)
        return policy.Place(text, peers.get(host) or (ipaddress.ip_address(host).packed,), tag)

    return place
