"""One agent at a table: packets and messages go in, what comes out is looked at. No network, no real clock.

    a 10.0.0.1 ---- b 10.0.0.2 (this agent) ---- c 10.0.0.3 ---- d 10.0.0.4        (fd00::1 to fd00::4)

Every peer signs with its own letter, 32 times; b signs to each with the letter in upper case.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from dysco.protocol.agent import Agent, MessageOut, PacketOut
from dysco.protocol.events import Event
from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST, UNDERLAY
from dysco.protocol.settings import Decision, Limits, LocalBox, Peer, Settings, Timers
from dysco.sim.table import SimFlowTable
from dysco.wire import chain_header
from dysco.wire.chain_header import ChainHeader, Egress, Hop
from dysco.wire.messages import Hello, Message
from dysco.wire.packet import ACK, SYN, Located, Packet, build_tcp, locate
from dysco.wire.tuples import FiveTuple

MSS_1460: Final = b"\x02\x04\x05\xb4"
KERNEL_BOX: Final = LocalBox("fw", 0xF, HOST, FORWARD, HOST, FORWARD)
PAIR_BOX: Final = LocalBox("pair", 0xA, FIRST_BOX, FIRST_BOX, FIRST_BOX + 1, FIRST_BOX + 1)
NAT_BOX: Final = replace(
    PAIR_BOX, name="nat", tag=0xB, changes_tuple=True, match=("tuple", "tag", "fingerprint", "api")
)


def address(number: int, family: int = 4) -> bytes:
    """The address of the host with this number."""
    return (ipaddress.ip_address("10.0.0.0" if family == 4 else "fd00::") + number).packed


def both(number: int) -> tuple[bytes, ...]:
    return address(number, 4), address(number, 6)


def hops(*numbers: int, family: int = 4, box: int = 0) -> tuple[Hop, ...]:
    """Hops by host number; `box` is meant at the first."""
    return tuple(Hop(address(n, family), box if i == 0 else 0) for i, n in enumerate(numbers))


def session(client: int = 1, server: int = 4, port: int = 40000, family: int = 4) -> FiveTuple:
    return FiveTuple.of(address(client, family), port, address(server, family), 80)


def syn(tuple_: FiveTuple, isn: int = 1000, options: bytes = MSS_1460, payload: bytes = b"") -> Packet:
    return build_tcp(tuple_, isn, 0, SYN, 64240, options, payload)


def syn_ack(
    tuple_: FiveTuple, isn: int = 9000, of: int = 1000, options: bytes = MSS_1460, more: int = 0
) -> Packet:
    """The answer to a SYN that went as `tuple_`."""
    return build_tcp(tuple_.reversed(), isn, of + 1 + more, SYN | ACK, 64240, options)


def read(packet: Packet) -> Located:
    at = locate(packet)
    assert at is not None
    return at


class Rig:
    """Agent b. decision: what its policies say of every session that begins here."""

    def __init__(
        self,
        *,
        decision: Decision | None = None,
        boxes: Sequence[LocalBox] = (),
        up: str = "acd",
        peers: Callable[[Peer], Peer] = lambda peer: peer,
        timers: Timers | None = None,
        limits: Limits | None = None,
        port_range: tuple[int, int] = (61000, 65535),
        mtu: int = 1500,
    ) -> None:
        self.now = 100.0
        self.decision = decision
        self.table = SimFlowTable()
        self.settings = Settings(
            name="b",
            addresses=both(2),
            boxes=tuple(boxes),
            peers=tuple(peers(Peer(name, both(number))) for name, number in (("a", 1), ("c", 3), ("d", 4))),
            timers=timers or Timers(),
            limits=limits or Limits(),
            port_range=port_range,
            mtu=mtu,
        )
        self._random = itertools.count(1)
        self.agent = Agent(self.settings, self.table, lambda _, __: self.decision, self.rng)
        self._counter = itertools.count(1)
        self.messages: list[tuple[str, Message]] = []
        for name in up:
            self.up(name)
        self.events()

    def rng(self, size: int) -> bytes:
        """Numbers that differ, spread over all bytes."""
        return (next(self._random) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 8 * size)).to_bytes(
            size, "big"
        )

    def up(self, name: str, key: bytes = b"") -> None:
        """The association with a peer comes up."""
        receive = key or name.encode() * 32
        self.agent.peer_up(name, Hello(name=name), receive.upper(), receive, self.now)

    def feed(self, port: int, packet: Packet) -> list[tuple[int, Packet]]:
        """Give a packet; take the packets that come out."""
        self.agent.receive_packet(port, packet.copy(), self.now)
        return self.take()

    def take(self) -> list[tuple[int, Packet]]:
        found = []
        for out in self.agent.outgoing():
            if isinstance(out, PacketOut):
                found.append((out.port, out.packet))
            elif isinstance(out, MessageOut):
                self.messages.append((out.peer, out.message))
        return found

    def one(self, port: int, packet: Packet) -> tuple[int, Packet]:
        """Give a packet of which exactly one comes."""
        [out] = self.feed(port, packet)
        return out

    def wait(self, seconds: float) -> list[tuple[int, Packet]]:
        """Let time pass, deadline by deadline."""
        end = self.now + seconds
        while (deadline := self.agent.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.agent.handle_deadline(self.now)
        self.now = end
        return self.take()

    def events(self, kind: type[Event] | None = None) -> list[Event]:
        found = []
        while (event := self.agent.next_event()) is not None:
            if kind is None or isinstance(event, kind):
                found.append(event)
        return found

    def state(self) -> list[str]:
        return [info.state for info in self.agent.sessions(self.now)]

    def chained_syn(
        self,
        route: tuple[Hop, ...],
        *,
        peer: str = "a",
        number: int = 1,
        of: FiveTuple | None = None,
        ports: tuple[int, int] = (61001, 61002),
        chain_id: bytes = b"chain-0123456789",
        hop_index: int = 0,
        counter: int | None = None,
        key: bytes = b"",
        isn: int = 1000,
        egress: Egress = Egress.AGENT,
        on_fail_open: bool = False,
        payload: bytes = b"",
        options: bytes = MSS_1460,
    ) -> Packet:
        """A SYN from a peer with a chain header for this agent."""
        inner = of or session(number)
        subsession = FiveTuple.of(address(number, inner.family), ports[0], address(2, inner.family), ports[1])
        header = ChainHeader(
            chain_id, hop_index, inner, subsession, route,
            next(self._counter) if counter is None else counter, egress, on_fail_open,
        )  # fmt: skip
        signed = chain_header.encode(header, key or peer.encode() * 32)
        return syn(subsession, isn, options, signed + payload)

    def begin(self, tuple_: FiveTuple | None = None, isn: int = 1000) -> FiveTuple:
        """Begin a session here; return the subsession that its SYN went out on."""
        port, out = self.one(HOST, syn(tuple_ or session(2), isn))
        assert port == UNDERLAY
        return read(out).five_tuple

    def establish(self, tuple_: FiveTuple | None = None) -> FiveTuple:
        """Begin a session here and let the SYN-ACK pass."""
        sub = self.begin(tuple_)
        port, _ = self.one(UNDERLAY, syn_ack(sub))
        assert port == HOST
        return sub


def header_of(packet: Packet) -> ChainHeader:
    """The chain header in a SYN."""
    header = chain_header.peek(packet.data[read(packet).payload_offset :])
    assert header is not None
    return header


def to_c() -> Decision:
    """A policy: through c to d."""
    return Decision("web", hops(3, 4))
