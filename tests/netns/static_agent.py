"""An agent without a protocol: a chain whose mapping is arithmetic, to test the data plane by itself.

Runs in a network namespace as a process of its own. Session ports are in 40000-43999, and hop `h` carries the session
with source port `p` to the service `s` as `61000 + p - 40000` > `65000 + 10 h + s`, between the neighbours' addresses;
so each host knows all tuples from any one SYN. Settings come as JSON in the first argument; it says `ready` when it
runs, and its counters as JSON when its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from pyroute2 import IPRoute

from dysco.dataplane.fast import KernelFlowTable
from dysco.dataplane.forward import Forwarder
from dysco.dataplane.steer import Steering, SteeringConfig
from dysco.dataplane.table import PythonFlowTable
from dysco.dataplane.tun import Tun
from dysco.host import Transaction, for_agent
from dysco.policy.clauses import Clause
from dysco.protocol.flow import FORWARD, HOST, UNDERLAY, Flow, Translation
from dysco.wire.packet import Located, Packet
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple, show_address

FIRST_SESSION = 40000
FIRST_SUB = 61000
FIRST_SERVICE = 65000
SERVICES = (80, 5201)
PORTS = (61000, 65535)


@dataclass(frozen=True)
class Role:
    """One host of the chain: its place in it (0 is the client), and every host's addresses (IPv4, IPv6)."""

    place: int
    hosts: tuple[tuple[bytes, bytes], ...]
    shift: int = 0

    def subsession(self, hop: int, session: FiveTuple) -> FiveTuple:
        """The tuple on the way from host `hop` to the next."""
        six = session.family == 6
        return FiveTuple.of(
            self.hosts[hop][six],
            FIRST_SUB + session.sport - FIRST_SESSION,
            self.hosts[hop + 1][six],
            FIRST_SERVICE + 10 * hop + SERVICES.index(session.dport),
        )

    def session(self, sub: FiveTuple) -> FiveTuple | None:
        """The session that a subsession from the left carries."""
        service = sub.dport - FIRST_SERVICE - 10 * (self.place - 1)
        sport = FIRST_SESSION + sub.sport - FIRST_SUB
        if not 0 <= service < len(SERVICES) or not 0 <= sport - FIRST_SESSION < 4000:
            return None
        six = sub.family == 6
        return FiveTuple.of(self.hosts[0][six], sport, self.hosts[-1][six], SERVICES[service])

    def flows(self, session: FiveTuple) -> list[Flow]:
        """What this host does with the session."""
        back, last = session.reversed(), len(self.hosts) - 1
        inward = HOST if self.place in (0, last) else FORWARD
        flows = []
        # Between hosts the client's numbers are higher by `shift`, the server's by a third of it.
        up, down = self.shift, self.shift // 3
        plus, minus = (
            (Translation(up, down), Translation(-down, -up)) if up else (None, None)
        )  # forward into a subsession, backward out of one
        undo, redo = (Translation(-up, -down), Translation(down, up)) if up else (None, None)
        if self.place > 0:
            left = self.subsession(self.place - 1, session)
            flows += [Flow(UNDERLAY, left, inward, session, translation=undo)]
            flows += [Flow(HOST, back, UNDERLAY, left.reversed(), translation=redo)]
        if self.place < last:
            right = self.subsession(self.place, session)
            flows += [Flow(HOST, session, UNDERLAY, right, translation=plus)]
            flows += [Flow(UNDERLAY, right.reversed(), inward, back, translation=minus)]
        return flows


class StaticAgent:
    """Host changes, steering, devices and forwarder of one host."""

    def __init__(self, settings: dict[str, Any]) -> None:
        hosts = tuple((bytes.fromhex(four), bytes.fromhex(six)) for four, six in settings["hosts"])
        self.role = Role(settings["place"], hosts, settings.get("shift", 0))
        self.unknown = 0
        self.cpu_s = (0.0, 0.0)
        directory = Path(settings["directory"])
        steering = Steering.open("dysco1")
        plan = for_agent(
            underlay=["eth0"],
            kernel_box=0 < self.role.place < len(hosts) - 1,
            programs=steering.programs(),
            by_tcx=settings["by_tcx"],
        )
        self.transaction = Transaction(plan, directory / "run", name="static", locks=directory / "locks")
        self.transaction.up()
        self.steering = steering
        self.session = Tun("dysco0", offload=settings["offload"])
        self.underlay = Tun("dysco1", offload=settings["offload"])
        own = hosts[self.role.place]
        with IPRoute() as ip:
            index = {link.get_attr("IFLA_IFNAME"): link for link in ip.get_links()}
        mac = bytes.fromhex(index["eth0"].get_attr("IFLA_ADDRESS").replace(":", ""))
        steering.configure(
            SteeringConfig(
                session_ifindex=index["dysco0"]["index"],
                underlay_ifindex=index["dysco1"]["index"],
                device_ifindex=index["eth0"]["index"],
                device_mac=mac,
                port_range=PORTS,
                addresses=own,
            )
        )
        self.table = (KernelFlowTable if settings["fast"] else PythonFlowTable)(steering, own, PORTS)
        self.forwarder = Forwarder(
            {self.session: HOST, self.underlay: UNDERLAY},
            {HOST: self.underlay, UNDERLAY: self.underlay, FORWARD: self.session},
            self.table,
            self.slow,
        )
        wanted = [] if self.role.place else [
            Clause(4 if len(dst) == 4 else 6, bytes(len(dst)), 0, dst, 8 * len(dst), dport=(port, port))
            for dst in hosts[-1]
            for port in SERVICES
        ]  # fmt: skip
        steering.set_policies(wanted)

    def slow(self, port: int, packet: Packet, at: Located | None) -> None:
        """Stand in for the core: make flows at the first SYN, rewrite what the hot loop leaves alone."""
        if at is None:
            self.unknown += 1
            return
        flow = self.table.get(port, at.five_tuple)
        if flow is None:
            session = at.five_tuple if port == HOST else self.role.session(at.five_tuple)
            if session is None or not FIRST_SESSION <= session.sport < FIRST_SESSION + 4000:
                self.unknown += 1
                return
            for one in self.role.flows(session):
                self.table.insert(one)
            flow = self.table.get(port, at.five_tuple)
        if flow is None:
            self.unknown += 1
            return
        apply(packet, flow)
        self.forwarder.send(flow.out, packet)

    async def run(self) -> None:
        """Serve until standard input ends."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for tun in (self.session, self.underlay):
            loop.add_reader(tun.fd, self.forwarder.readable, tun.fd)
        loop.add_reader(0, ended.set)
        before = resource.getrusage(resource.RUSAGE_SELF)
        os.write(1, b"ready\n")
        await ended.wait()
        after = resource.getrusage(resource.RUSAGE_SELF)
        self.cpu_s = (after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)
        loop.remove_reader(0)
        for tun in (self.session, self.underlay):
            loop.remove_reader(tun.fd)

    def report(self) -> dict[str, Any]:
        """What was counted."""
        with self.table.refresh_all():
            for flows in self.table.ports.values():
                for flow in flows.values():
                    self.table.refresh(flow)
        return {
            "address": show_address(self.role.hosts[self.role.place][0]),
            "steering": self.steering.counters(),
            "forwarder": dict(self.forwarder.counters),
            "unknown": self.unknown,
            "flows": len(self.table),
            "fast": sum(flow.packets for flows in self.table.ports.values() for flow in flows.values()),
            "cpu_s": self.cpu_s,
            "offload": self.session.has_offload,
        }

    def close(self) -> None:
        """Undo everything."""
        self.session.close()
        self.underlay.close()
        self.steering.close()
        self.transaction.down()


def main() -> None:
    """Run one agent."""
    agent = StaticAgent(json.loads(sys.argv[1]))
    try:
        uvloop.run(agent.run())
        os.write(1, json.dumps(agent.report()).encode() + b"\n")
    finally:
        agent.close()


if __name__ == "__main__":
    main()
