"""From nodes and links to devices, subnets, addresses and routes; pure, nothing is touched.

    host number i (in the order of the file)    10.0.S.i / fd00:S::i    in its subnet number S
    router number j                             10.0.S.(255 - j)
    subnets are numbered as hosts meet them, so that a star of hosts has host i in subnet i

What hangs together by bridges is one subnet. Only routers and hosts with `forward` pass packets on; each
node gets a route to every subnet by the fewest hops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from dysco.errors import ConfigError
from dysco.lab.models import DEFAULT_ROUTER, Host, LabFile, Link, Middle

_DEVICE_LENGTH: Final = 15


@dataclass
class Device:
    """One end of a link."""

    node: str
    name: str
    link: int
    subnet: int = 0
    ipv4: str | None = None
    ipv6: str | None = None


@dataclass(frozen=True)
class Route:
    """A route of a node; `destination` None is the default."""

    family: int
    destination: str | None
    via: str


@dataclass
class Node:
    """A host, a router or a bridge."""

    name: str
    kind: str  # host, router, bridge
    number: int
    forwards: bool
    host: Host | None = None
    devices: list[Device] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)

    @property
    def octet(self) -> int:
        """The last part of its addresses."""
        return 255 - self.number if self.kind == "router" else self.number

    @property
    def ipv4(self) -> list[str]:
        """Its IPv4 addresses, one for each device."""
        return [device.ipv4 for device in self.devices if device.ipv4]

    @property
    def ipv6(self) -> list[str]:
        """Its IPv6 addresses, one for each device."""
        return [device.ipv6 for device in self.devices if device.ipv6]


class Topology:
    """The nodes by name and the links, whose ends are devices."""

    def __init__(self, file: LabFile) -> None:
        self.file = file
        self.nodes: dict[str, Node] = {}
        self.links: list[Link] = []
        self.ends: list[tuple[Device, Device]] = []
        for number, host in enumerate(file.host, 1):
            self.nodes[host.name] = Node(host.name, "host", number, host.forward, host)
        linked = {end for link in file.link for end in link.between}
        lonely = [host.name for host in file.host if host.name not in linked]
        routers = list(file.router)
        if not routers and (lonely or DEFAULT_ROUTER in linked):
            routers = [Middle(name=DEFAULT_ROUTER)]
        for number, middle in enumerate(routers, 1):
            self.nodes[middle.name] = Node(middle.name, "router", number, True)
        for number, middle in enumerate(file.bridge, 1):
            self.nodes[middle.name] = Node(middle.name, "bridge", number, False)
        cables = [Link(between=[name, routers[0].name]) for name in lonely]
        order = {name: place for place, name in enumerate(self.nodes)}
        for link in sorted([*file.link, *cables], key=lambda link: min(order[end] for end in link.between)):
            self._connect(link)
        self._number_subnets()
        self._route()

    def _connect(self, link: Link) -> None:
        ends = []
        for here, there in (link.between, reversed(link.between)):
            node = self.nodes[here]
            name = f"eth{len(node.devices)}" if node.kind == "host" else there
            if any(device.name == name for device in node.devices):
                raise ConfigError(f"link between {here} and {there}: there are two of them")
            device = Device(here, name[:_DEVICE_LENGTH], len(self.links))
            node.devices.append(device)
            ends.append(device)
        self.links.append(link)
        self.ends.append((ends[0], ends[1]))

    def neighbour(self, device: Device) -> Device:
        """Give the other end of a device's link."""
        one, other = self.ends[device.link]
        return other if device is one else one

    def segment(self, device: Device) -> list[Device]:
        """Give all devices of hosts and routers in the subnet of a device."""
        found: list[Device] = []
        waiting, seen = [device], {id(device)}
        while waiting:
            here = waiting.pop()
            node = self.nodes[here.node]
            nearby = [self.neighbour(here)]
            if node.kind == "bridge":
                nearby += node.devices
            else:
                found.append(here)
            for other in nearby:
                if id(other) not in seen:
                    seen.add(id(other))
                    waiting.append(other)
        return found

    def _number_subnets(self) -> None:
        count = 0
        for node in self.nodes.values():
            for device in node.devices:
                if node.kind == "bridge" or device.subnet:
                    continue
                count += 1
                for member in self.segment(device):
                    octet = self.nodes[member.node].octet
                    member.subnet = count
                    member.ipv4 = f"10.0.{count}.{octet}"
                    member.ipv6 = f"fd00:{count:x}::{octet:x}" if self.file.lab.ipv6 else None

    def _members(self) -> dict[int, list[Device]]:
        members: dict[int, list[Device]] = {}
        for node in self.nodes.values():
            for device in node.devices:
                if device.subnet:
                    members.setdefault(device.subnet, []).append(device)
        return members

    def _route(self) -> None:
        members = self._members()
        for node in self.nodes.values():
            if node.kind == "bridge":
                continue
            first = self._first_hops(node, members)
            for subnet, hop in sorted(first.items()):
                node.routes += _routes(hop, f"10.0.{subnet}.0/24", f"fd00:{subnet:x}::/64")
            gateway = next(self._gateways(node, members), None)
            if gateway is not None and node.kind == "host":
                node.routes += _routes(gateway, None, None)

    def _gateways(self, node: Node, members: dict[int, list[Device]]) -> Iterator[Device]:
        for device in node.devices:
            for member in members[device.subnet]:
                if member.node != node.name and self.nodes[member.node].forwards:
                    yield member

    def _first_hops(self, node: Node, members: dict[int, list[Device]]) -> dict[int, Device]:
        """Give for each subnet that is not the node's own the neighbouring device to send to."""
        near = {device.subnet for device in node.devices}
        hops: dict[int, Device] = {}
        seen = {node.name}
        waiting = deque((gateway.node, gateway) for gateway in self._gateways(node, members))
        while waiting:
            name, hop = waiting.popleft()
            if name in seen:
                continue
            seen.add(name)
            for device in self.nodes[name].devices:
                if device.subnet not in near:
                    hops.setdefault(device.subnet, hop)
                waiting.extend(
                    (member.node, hop)
                    for member in members[device.subnet]
                    if self.nodes[member.node].forwards
                )
        return hops


def _routes(hop: Device, destination4: str | None, destination6: str | None) -> list[Route]:
    routes = [Route(4, destination4, hop.ipv4)] if hop.ipv4 else []
    return routes + ([Route(6, destination6, hop.ipv6)] if hop.ipv6 else [])
