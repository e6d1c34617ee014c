"""From host.toml to what core, channel and data plane are told.

Knows configuration and the layers below; decides nothing itself but the numbering of ports for boxes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dysco import policy
from dysco.config.models import Box, HostConfig
from dysco.config.proxies import proxy_rule
from dysco.errors import ConfigError
from dysco.host.plan import NamespaceBox
from dysco.policy.rules import View
from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST
from dysco.protocol.settings import (
    Decide,
    Decision,
    Limits,
    LocalBox,
    Peer,
    Settings,
    Timers,
    anything,
    nothing,
    unwatched,
)
from dysco.transport.identity import Identity
from dysco.transport.settings import ChannelSettings, PeerSettings, Timing
from dysco.wire.chain_header import Egress, Hop
from dysco.wire.tuples import FiveTuple, show_address

_BY_FIRST_BYTES = ("generic", "nginx-stream")  # adapters that tell sessions apart by what they begin with
_EGRESS = {"agent": Egress.AGENT, "native": Egress.NATIVE, "nat": Egress.NAT}


@dataclass(frozen=True, slots=True)
class BoxPort:
    """A box with its number of ports: left is even, right the one after; None in the agent's own namespace."""

    box: Box
    left: int | None


def identity(config: HostConfig) -> Identity:
    """Who the agent is to its peers. Raises ConfigError if the file does not say."""
    keys = config.keys
    if keys.certificate is None or keys.key is None:
        raise ConfigError("keys.certificate and keys.key are needed to run an agent")
    pins = {peer.fingerprint: peer.name for peer in config.peer if peer.fingerprint is not None}
    return Identity(keys.certificate, keys.key, keys.ca, pins)


def box_ports(config: HostConfig) -> tuple[BoxPort, ...]:
    """Give every box its ports; the default box comes first. A proxy has none: it ends sessions."""
    boxes = sorted(config.box, key=lambda box: box is not config.default_box)
    found, port = [], FIRST_BOX
    for box in boxes:
        if box.kind == "kernel":
            found.append(BoxPort(box, None))
        elif box.kind != "proxy":
            found.append(BoxPort(box, port))
            port += 2
    return tuple(found)


def core_settings(
    config: HostConfig,
    addresses: tuple[bytes, ...],
    mtu: int,
    drained: Collection[str] = (),
    left: frozenset[bytes] = frozenset(),
) -> Settings:
    """Build the core's settings.

    Own `addresses`, those among them that were `left`, the underlay's `mtu` in bytes, names of `drained` boxes.
    """
    timers, limits = config.timers, config.limits
    return Settings(
        name=config.agent.name,
        addresses=addresses,
        left=left,
        port_range=config.agent.port_range,
        control_port=config.agent.control_port,
        mtu=mtu,
        boxes=tuple(_local_box(one, one.box.name in drained) for one in box_ports(config)),
        peers=tuple(
            Peer(
                name=peer.name,
                addresses=tuple(address.packed for address in peer.addresses),
                mtu=peer.mtu,
                accept=peer.accept,
                next_hops=None if peer.next_hops is None else frozenset(peer.next_hops),
                may_use=_allowed(peer.may_use),
                may_change=_may_change(peer.may_reconfigure),
            )
            for peer in config.peer
        ),
        timers=Timers(
            embryonic=timers.embryonic,
            established=timers.established,
            half_closed=timers.half_closed,
            time_wait=timers.time_wait,
            quarantine=timers.quarantine,
            avoid=timers.avoid,
            association_wait=timers.association_wait,
            fingerprint=timers.fingerprint,
        ),
        limits=Limits(limits.sessions, limits.embryonic, limits.setups_per_second),
        watch=_watch(config),
    )


def channel_settings(
    config: HostConfig, addresses: tuple[bytes, ...], mtu: int, boot_id: bytes
) -> ChannelSettings:
    """Build the channel's settings."""
    return ChannelSettings(
        name=config.agent.name,
        addresses=tuple(show_address(address) for address in addresses),
        boot_id=boot_id,
        port_range=config.agent.port_range,
        peers=channel_peers(config),
        port=config.agent.control_port,
        mtu=mtu,
        roaming=config.agent.roaming,
        timing=Timing(keepalive_s=config.timers.keepalive, dead_s=config.timers.peer_dead),
    )


def channel_peers(config: HostConfig) -> tuple[PeerSettings, ...]:
    """The peers as the channel knows them."""
    return tuple(
        PeerSettings(
            name=peer.name,
            addresses=tuple(map(str, peer.addresses)),
            port=config.agent.control_port,
            fingerprint=peer.fingerprint,
            mtu=peer.mtu,
        )
        for peer in config.peer
    )


def decider(policies: policy.PolicySet, view: View) -> Decide:
    """Let the core ask the policies."""

    def decide(session: FiveTuple, now: float) -> Decision | None:
        choice = policies.decide(session, now, view)
        if choice is None:
            return None
        return Decision(
            choice.policy,
            tuple(Hop(hop.address, hop.box) for hop in choice.hops),
            choice.on_fail == "open",
            _EGRESS[choice.egress],
            choice.failure,
        )

    return decide


def namespace_boxes(config: HostConfig) -> list[NamespaceBox]:
    """The boxes that get a TUN pair in a namespace of their own."""
    return [
        NamespaceBox(box.name, box.namespace or "", box.left, box.right, left)
        for box, left in ((one.box, one.left) for one in box_ports(config))
        if box.kind == "namespace" and left is not None
    ]


def boot_id(seed: bytes) -> bytes:
    """16 bytes that tell this start of the agent from others."""
    return hashlib.sha256(seed).digest()[:16]


def _local_box(one: BoxPort, drained: bool) -> LocalBox:
    box, left = one.box, one.left
    ports = (HOST, FORWARD, HOST, FORWARD) if left is None else (left, left, left + 1, left + 1)
    return LocalBox(
        box.name,
        box.tag,
        *ports,
        changes_tuple=box.changes_tuple,
        match=box.matching,
        mandatory=box.mandatory,
        drained=drained,
        steady=box.kind != "stream",
    )


def _allowed(expression: str | None) -> Callable[[FiveTuple], bool]:
    return nothing if expression is None else policy.predicate(policy.parse(expression))


def _watch(config: HostConfig) -> Callable[[FiveTuple, bool], bool]:
    """Of which sessions the first bytes are kept: of those with a proxy, and of all that begin here, perhaps in one."""
    proxies = [proxy for proxy in config.proxy if proxy.adapter in _BY_FIRST_BYTES]
    if not proxies:
        return unwatched

    def watch(session: FiveTuple, ends_here: bool) -> bool:
        return not ends_here or any(proxy_rule(proxy, session).may_leave for proxy in proxies)

    return watch


def _may_change(said: bool | str) -> Callable[[FiveTuple], bool]:
    if isinstance(said, str):
        return _allowed(said)
    return anything if said else nothing
