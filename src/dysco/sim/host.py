"""A simulated host: a TCP stack, perhaps an agent with its flow table, perhaps a middlebox.

It steers as the kernel programs of `dysco.dataplane` do: what the stack sends is diverted to the agent if a
flow or a policy wants it, what comes from the wire if it is addressed to a reserved port. The agent inside
is the real protocol core.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dysco.protocol.agent import Agent, MessageOut, PacketOut
from dysco.protocol.events import Event, SessionForgotten, SessionRecord
from dysco.protocol.flow import FORWARD, HOST, LOOP, UNDERLAY
from dysco.sim.box import Box
from dysco.sim.clock import Clock, Timer
from dysco.sim.endpoint import Endpoint, Profile, State
from dysco.sim.table import SimFlowTable
from dysco.wire.packet import ACK, FIN, RST, SYN, Located, Packet, build_tcp, locate
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple

if TYPE_CHECKING:
    from dysco.sim.network import Network


@dataclass
class Listener:
    """A server: what each new session gets to send, and what kind of stack it has."""

    profile: Profile
    accept: Callable[[Endpoint], None]


@dataclass
class Host:
    """One machine of the simulated network.

    queues: what its endpoints send leaves a moment later, for an agent here may answer it at once. resets: its stack
    answers what belongs to no endpoint with a reset. silent: it is dead, agent and all; nothing comes in or goes
    out.
    """

    name: str
    addresses: tuple[bytes, ...]
    network: Network
    clock: Clock
    rng: random.Random
    agent: Agent | None = None
    table: SimFlowTable = field(default_factory=SimFlowTable)
    port_range: tuple[int, int] = (61000, 65535)
    box: Box | None = None
    boxes: dict[int, Box] = field(default_factory=dict)
    listeners: dict[int, Listener] = field(default_factory=dict)
    endpoints: dict[FiveTuple, Endpoint] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    hear: Callable[[Event], None] = lambda event: None
    journal: dict[bytes, bytes] = field(default_factory=dict)
    born: Callable[[], Agent] | None = None
    strays: int = 0
    queues: bool = False
    resets: bool = False
    silent: bool = False
    _timer: Timer | None = None
    _armed_at: float | None = None

    def connect(self, tuple_: FiveTuple, isn: int, profile: Profile) -> Endpoint:
        """Open a session from this host; the tuple's source is one of its addresses."""
        endpoint = self._endpoint(tuple_, isn, profile)
        endpoint.open(self.clock.now)
        self.arm(endpoint)
        return endpoint

    def from_wire(self, packet: Packet) -> None:
        """Take a packet that the network delivers."""
        at = None if self.silent else locate(packet)
        if at is None:
            self.strays += 1
            return
        ours = at.five_tuple.dst in self.addresses
        if self.agent is not None:
            reserved = ours and self.port_range[0] <= at.five_tuple.dport <= self.port_range[1]
            if reserved or self.table.get(UNDERLAY, at.five_tuple) is not None:
                self._to_agent(UNDERLAY, packet, at)
                return
        self._to_stack(packet, at.five_tuple, at.flags)

    def from_stack(self, packet: Packet) -> None:
        """Take a packet that the TCP stack sends or that the kernel forwards."""
        at = locate(packet)
        if at is None:
            self.strays += 1
            return
        if self.agent is not None and (
            self.table.get(HOST, at.five_tuple) is not None
            or at.five_tuple in self.table.captured
            or (at.flags & SYN and not at.flags & ACK)
        ):
            self._to_agent(HOST, packet, at)
        else:
            self.network.send(self, packet)

    def write(self, port: int, packet: Packet) -> None:
        """Do what the data plane does with a packet that leaves by `port`."""
        if port in (HOST, UNDERLAY):
            at = locate(packet) if port == HOST and destination(packet) in self.addresses else None
            if at is not None:
                self._to_stack(packet, at.five_tuple, at.flags)
            else:
                self.network.send(self, packet)
        elif port == LOOP:
            self._to_agent(UNDERLAY, packet, _located(packet))
        elif port == FORWARD:
            if self.box is not None:
                for out in self.box.forward(packet, "left"):
                    self.from_stack(out)
        else:
            for out in self.boxes[port & ~1].forward(packet, "right" if port & 1 else "left"):
                self._to_agent(port ^ 1, out, _located(out))

    def drain(self) -> None:
        """Carry out what the core wants and plan its next deadline."""
        assert self.agent is not None
        while True:
            out = self.agent.outgoing()
            if not out:
                break
            for item in out:
                if isinstance(item, PacketOut):
                    self.write(item.port, item.packet)
                elif isinstance(item, MessageOut):
                    self.network.message(self, item.peer, item.message)
        while (event := self.agent.next_event()) is not None:
            if isinstance(event, SessionRecord):
                self.journal[event.key] = event.data
            elif isinstance(event, SessionForgotten):
                self.journal.pop(event.key, None)
            self.events.append(event)
            self.hear(event)
        deadline = self.agent.next_deadline()
        if deadline != self._armed_at:
            if self._timer is not None:
                self._timer.cancel()
            self._armed_at = deadline
            self._timer = None if deadline is None else self.clock.call_at(deadline, self._deadline)

    def restart(self) -> None:
        """Kill the agent and begin another one, which knows what the journal holds and has its associations again."""
        assert self.born is not None
        self.table = SimFlowTable()
        self.agent = self.born()
        records, self.journal = self.journal, {}
        for key, data in records.items():
            if self.agent.restore(data, self.clock.now):
                self.journal[key] = data
        self.drain()

    def silence(self) -> None:
        """Kill the agent; nobody is there until `restart`."""
        self.agent = None
        self.table = SimFlowTable()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._armed_at = None

    def fall_silent(self) -> None:
        """Die, agent and all; what the journal holds is there when it comes back."""
        self.silent = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._armed_at = None, None

    def arm(self, endpoint: Endpoint) -> None:
        """Plan the retransmission timer of an endpoint."""
        deadline = endpoint.deadline
        if deadline is not None and deadline != endpoint.armed_at:
            endpoint.armed_at = deadline

            def due() -> None:
                if endpoint.deadline == deadline:
                    endpoint.handle_deadline(self.clock.now)
                    self.arm(endpoint)

            self.clock.call_at(deadline, due)

    def _endpoint(self, tuple_: FiveTuple, isn: int, profile: Profile) -> Endpoint:
        endpoint = Endpoint(tuple_, isn, profile, self._from_endpoint, self.rng)
        self.endpoints[tuple_] = endpoint
        return endpoint

    def _from_endpoint(self, packet: Packet) -> None:
        if self.queues:
            self.clock.call_at(self.clock.now, lambda: self.from_stack(packet))
        else:
            self.from_stack(packet)

    def _deadline(self) -> None:
        assert self.agent is not None
        self._armed_at = None
        self.agent.handle_deadline(self.clock.now)
        self.drain()

    def _to_agent(self, port: int, packet: Packet, at: Located) -> None:
        assert self.agent is not None
        flow = self.table.get(port, at.five_tuple)
        if flow is not None and not flow.slow and not at.flags & (SYN | FIN | RST):
            flow.count(at, len(packet.data))
            apply(packet, flow, at)
            self.write(flow.out, packet)
            return
        self.agent.receive_packet(port, packet, self.clock.now)
        self.drain()

    def _to_stack(self, packet: Packet, tuple_: FiveTuple, flags: int) -> None:
        if tuple_.dst not in self.addresses:
            if self.box is not None:
                for out in self.box.forward(packet, "left"):
                    self.from_stack(out)
            else:
                self.from_stack(packet)
            return
        mine = tuple_.reversed()
        endpoint = self.endpoints.get(mine)
        if endpoint is None:
            listener = self.listeners.get(tuple_.dport)
            if listener is None or flags & (SYN | ACK) != SYN:
                self.strays += 1
                if self.resets and not flags & RST:
                    self._reset(packet)
                return
            endpoint = self._endpoint(mine, self.rng.randrange(1 << 32), listener.profile)
            listener.accept(endpoint)
        before = endpoint.deadline
        endpoint.receive(packet, self.clock.now)
        if endpoint.deadline != before or endpoint.state is State.OPEN:
            self.arm(endpoint)

    def _reset(self, packet: Packet) -> None:
        """Say that there is no such session (RFC 9293 section 3.10.7.1)."""
        at = _located(packet)
        seq, ack, flags = (at.ack, 0, RST) if at.flags & ACK else (0, at.next_seq, RST | ACK)
        self._from_endpoint(build_tcp(at.five_tuple.reversed(), seq, ack, flags, 0))


def destination(packet: Packet) -> bytes:
    """Destination address of an IP packet that is whole."""
    data = packet.data
    return bytes(data[16:20] if data[0] >> 4 == 4 else data[24:40])


def _located(packet: Packet) -> Located:
    at = locate(packet)
    assert at is not None
    return at
