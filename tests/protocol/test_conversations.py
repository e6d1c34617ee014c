"""Several agents and modelled endpoints in memory: a chain from end to end, and random walks of one agent."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from dysco.protocol.agent import Agent
from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST, UNDERLAY
from dysco.protocol.settings import Decision, Limits, LocalBox, Peer, Settings, Timers
from dysco.sim.box import Firewall, SourceNat
from dysco.sim.clock import Clock
from dysco.sim.endpoint import Endpoint, Profile
from dysco.sim.endpoint import State as End
from dysco.sim.host import Host, Listener
from dysco.sim.link import Fault
from dysco.sim.network import Network
from dysco.wire.chain_header import Egress, Hop
from dysco.wire.messages import Hello, SynRefused
from dysco.wire.packet import ACK, FIN, RST, SYN, Packet, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import KERNEL_BOX, NAT_BOX, PAIR_BOX, Rig, address, both, hops, session, syn_ack, to_c

PROFILE = Profile(mss=1460, wscale=7, timestamps=True, sack=True, buffer=65535, burst=4)


class World:
    """Hosts a to d with numbers 1 to 4, on a network without faults; b and c may have a box."""

    def __init__(self, decision: Decision, boxes: dict[str, LocalBox], family: int) -> None:
        self.clock = Clock()
        rng = random.Random(1)
        self.network = Network(self.clock, rng, Fault(delay_s=0.001), Fault(delay_s=0.001))
        self.hosts = {
            name: self.network.add(name, address(number, family)) for number, name in enumerate("abcd", 1)
        }
        for name, host in self.hosts.items():
            self.agent(name, host, decision, boxes.get(name), rng)
        for name, host in self.hosts.items():
            assert host.agent is not None
            for other in set("abcd") - {name}:
                host.agent.peer_up(other, Hello(name=other), name.encode() * 32, other.encode() * 32, 0.0)
            host.drain()
        self.server: Endpoint | None = None

    def agent(
        self, name: str, host: Host, decision: Decision, box: LocalBox | None, rng: random.Random
    ) -> None:
        peers = tuple(
            Peer(other, both(1 + "abcd".index(other)), may_use=lambda _: True)
            for other in "abcd"
            if other != name
        )
        settings = Settings(name, host.addresses, boxes=() if box is None else (box,), peers=peers)
        if box is not None:
            model = SourceNat(host.addresses[0]) if box.changes_tuple else Firewall()
            if box.left_read >= FIRST_BOX:
                host.boxes[FIRST_BOX] = model
            else:
                host.box = model

        def decide(_: FiveTuple, __: float) -> Decision | None:
            return decision if name == "a" else None

        host.agent = Agent(settings, host.table, decide, rng.randbytes)

    def talk(self, upload: bytes, download: bytes, family: int) -> Endpoint:
        """Open a session from a to d, send both ways, close both ways."""

        def accept(endpoint: Endpoint) -> None:
            self.server = endpoint
            endpoint.write(download, self.clock.now)
            endpoint.close(self.clock.now)

        self.hosts["d"].listeners[80] = Listener(PROFILE, accept)
        client = self.hosts["a"].connect(session(1, 4, family=family), 0xFFFFFF00, PROFILE)
        client.write(upload, self.clock.now)
        client.close(self.clock.now)
        self.clock.run_until(self.clock.now + 5.0)
        return client


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", [KERNEL_BOX, PAIR_BOX, NAT_BOX], ids=["kernel", "devices", "nat"])
@pytest.mark.parametrize("egress", [Egress.AGENT, Egress.NAT], ids=["agent", "nat"])
def test_a_session_passes_a_b_c_d(egress: Egress, kind: LocalBox, family: int) -> None:
    route = hops(2, 3, 4, family=family) if egress is Egress.AGENT else hops(2, 3, family=family)
    world = World(Decision("all", route, egress=egress), {"b": kind, "c": PAIR_BOX}, family)
    upload, download = random.Random(2).randbytes(70_000), random.Random(3).randbytes(50_000)
    client = world.talk(upload, download, family)
    assert world.server is not None
    assert bytes(world.server.received) == upload
    assert bytes(client.received) == download
    assert (client.state, world.server.state) == (End.DONE, End.DONE)
    assert client.violations == world.server.violations == []
    on_the_way = "abcd" if egress is Egress.AGENT else "abc"
    for name in on_the_way:
        agent = world.hosts[name].agent
        assert agent is not None
        assert [info.state for info in agent.sessions()] == ["time-wait"]
        assert agent.counters["bug"] == 0
    box = world.hosts["b"].box or world.hosts["b"].boxes[FIRST_BOX]
    assert box.dropped == 0
    world.clock.run_until(world.clock.now + 200.0)
    for host in world.hosts.values():
        assert host.agent is not None
        assert len(host.agent) == 0
        assert not host.table.flows
        assert not host.table.captured


def test_chains_have_one_id_and_a_growing_index() -> None:
    world = World(Decision("all", hops(2, 3, 4)), {"b": PAIR_BOX, "c": PAIR_BOX}, 4)
    world.talk(b"", b"x" * 10, 4)
    infos = [info for host in world.hosts.values() if host.agent for info in host.agent.sessions()]
    assert len({info.chain_id for info in infos}) == 1
    assert [(info.hop_index, info.role) for info in infos] == [
        (0, "first"), (1, "middle"), (2, "middle"), (3, "last"),
    ]  # fmt: skip


def mutated(packet: Packet, rng: random.Random) -> Packet:
    """The packet with some bytes changed, cut or added."""
    data = bytearray(packet.data)
    for _ in range(rng.choice((0, 1, 1, 4))):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.1:
        del data[rng.randrange(len(data) + 1) :]
    return Packet(data)


@pytest.mark.parametrize("seed", range(40))
def test_a_random_walk_ends_with_nothing(seed: int) -> None:
    """Anything in any order, true and damaged: no exception, no bug counted, nothing left in the end."""
    rng = random.Random(seed)
    second = replace(NAT_BOX, left_read=6, left_write=6, right_read=7, right_write=7)
    rig = Rig(
        decision=rng.choice((to_c(), replace(to_c(), on_fail_open=True), Decision("self", hops(2, 3)))),
        boxes=rng.choice(((), (PAIR_BOX, second), (KERNEL_BOX,), (second,))),
        up=rng.choice(("a", "ac", "acd")),
        limits=Limits(sessions=12, embryonic=6),
        timers=Timers(established=400.0, half_closed=200.0),
        peers=lambda peer: replace(peer, may_use=lambda _: True),
    )
    ports = (HOST, UNDERLAY, 4, 5, 6, 7)
    seen: list[tuple[int, Packet]] = []
    for _ in range(400):
        kind = rng.randrange(12)
        family = rng.choice((4, 4, 6))
        if kind == 0:
            tuple_ = session(2, port=rng.randrange(1, 6), family=family)
            seen += rig.feed(HOST, build_tcp(tuple_, rng.choice((1000, 2000)), 0, SYN, 1))
        elif kind <= 2:
            route = tuple(Hop(address(n, family), box) for n, box in rng.choice(
                (((2, 0),), ((2, 0xA), (3, 0)), ((2, 0xB), (2, 0xA), (4, 0)), ((2, 0), (3, 0), (4, 0)))))  # fmt: skip
            chained = rig.chained_syn(
                route, of=session(1, rng.choice((2, 4)), port=rng.randrange(1, 6), family=family),
                ports=(61001, 61002 + rng.randrange(4)), chain_id=bytes([rng.randrange(8)]) * 16,
                egress=rng.choice(list(Egress)), isn=rng.choice((1000, 2000)),
            )  # fmt: skip
            seen.append((-1, chained))
            seen += rig.feed(UNDERLAY, chained)
        elif kind <= 8 and seen:
            port, packet = rng.choice(seen[-30:])
            if rng.random() < 0.3:
                packet = mutated(packet, rng)
            into = {FORWARD: HOST, 2: UNDERLAY, -1: UNDERLAY}.get(
                port, port ^ 1 if port >= FIRST_BOX else port
            )
            seen += rig.feed(rng.choice((into, into, into, rng.choice(ports))), packet)
        elif kind == 9 and rig.table.flows:
            flow = rng.choice(list(rig.table.flows.values()))
            flags = rng.choice((ACK, FIN | ACK, FIN | ACK, RST, RST | ACK, SYN, SYN | ACK))
            packet = build_tcp(flow.match, rng.randrange(3000), rng.choice((1001, 2001, 1200)), flags, 9)
            if flags == SYN | ACK:
                packet = syn_ack(flow.match.reversed())
            seen += rig.feed(flow.port, packet)
        elif kind == 10:
            infos = list(rig.agent.sessions())
            if infos:
                rig.agent.receive_message("c", SynRefused(rng.choice(infos).chain_id, "no"), rig.now)
            name = rng.choice("acd")
            if rng.random() < 0.5:
                rig.up(name, bytes([rng.randrange(256)]) * 32 if rng.random() < 0.3 else b"")
            else:
                rig.agent.peer_down(name, rig.now)
        else:
            seen += rig.wait(rng.choice((0.1, 1.0, 3.0, 61.0, 100.0)))
        seen += rig.take()
        rig.events()
        assert rig.agent.counters["bug"] == 0
        assert len(rig.agent) <= 12
    rig.wait(2000.0)
    setup, life = rig.agent._setup, rig.agent._life
    assert len(rig.agent) == 0
    assert not rig.table.flows
    assert not rig.table.captured
    assert not life.embryonic
    assert not life.via
    assert not setup._held
    assert not any(setup._waiting.values())
    assert not setup.at_box._by_tuple
    assert not setup.at_box._by_tag
    assert not setup.at_box._by_fingerprint
    assert not setup.at_box._by_session
    assert not setup.at_box._expected
    for pool in rig.agent._neighbours._pools.values():
        pool.expire(rig.now + 100)
        assert len(pool) == 0
