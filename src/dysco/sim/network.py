"""The network between simulated hosts, and the channel between their agents."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from dysco.sim.clock import Clock
from dysco.sim.host import Host, destination
from dysco.sim.link import Fault, Link
from dysco.wire.frames import decode, encode
from dysco.wire.messages import Message
from dysco.wire.packet import Packet, locate


@dataclass
class Network:
    """Carries packets by destination address and messages by name, each pair of hosts over links of its own."""

    clock: Clock
    rng: random.Random
    fault: Fault = field(default_factory=Fault)
    control_fault: Fault = field(default_factory=Fault)
    hosts: dict[str, Host] = field(default_factory=dict)
    dialogue: list[str] | None = None
    lost: int = 0
    _routes: dict[bytes, Host] = field(default_factory=dict)
    _links: dict[tuple[str, str, str], Link] = field(default_factory=dict)

    def add(self, name: str, *addresses: bytes) -> Host:
        """Make a host with these addresses (4 or 16 bytes each)."""
        host = Host(name, addresses, self, self.clock, self.rng)
        self.hosts[name] = host
        self._routes.update(dict.fromkeys(addresses, host))
        return host

    def route(self, address: bytes, host: Host) -> None:
        """Send packets for `address` to `host`."""
        self._routes[address] = host

    def cut(self, address: bytes) -> None:
        """Lose packets for `address` from now on."""
        self._routes.pop(address, None)

    def link(self, kind: str, left: str, right: str) -> Link:
        """The link of one direction between two hosts; `kind` is "data" or "control"."""
        key = (kind, left, right)
        if key not in self._links:
            fault = self.fault if kind == "data" else self.control_fault
            self._links[key] = Link(self.clock, self.rng, fault)
        return self._links[key]

    def send(self, source: Host, packet: Packet) -> None:
        """Carry a packet to the host that has its destination address."""
        target = self._routes.get(destination(packet))
        if target is None:
            self.lost += 1
            return
        if self.dialogue is not None:
            at = locate(packet)
            assert at is not None
            what = f"flags={at.flags:#04x} seq={at.seq} ack={at.ack} len={at.payload_len}"
            self._note(source, target, f"{at.five_tuple} {what}")
        frozen = bytes(packet.data)
        partial, gso_size, ecn = packet.partial, packet.gso_size, packet.ecn
        self.link("data", source.name, target.name).send(
            frozen, lambda data: target.from_wire(Packet(bytearray(data), partial, gso_size, ecn))
        )

    def message(self, source: Host, peer: str, message: Message) -> None:
        """Carry a control message, encoded and decoded as on the wire."""
        target = self.hosts[peer]
        if self.dialogue is not None:
            self._note(source, target, str(message))
        for datagram in encode([message]):
            self.link("control", source.name, peer).send(
                datagram, lambda data: self._arrive(source, target, data)
            )

    def _arrive(self, source: Host, target: Host, datagram: bytes) -> None:
        if target.agent is None or target.silent:
            return
        for message in decode(datagram):
            target.agent.receive_message(source.name, message, self.clock.now)
            target.drain()

    def _note(self, source: Host, target: Host, text: str) -> None:
        assert self.dialogue is not None
        self.dialogue.append(f"{self.clock.now:12.6f} {source.name:>4} -> {target.name:<4} {text}")
