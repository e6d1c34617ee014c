"""Namespaces and the links between them, built with ip in a few batches.

Knows which commands a topology needs. A link that is only a cable is a veth pair; an emulated one is a pair
of TAP devices with wire.py between, or a veth pair with netem on both ends where the kernel has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from dysco.errors import HostError, PermissionDeniedError
from dysco.lab import processes
from dysco.lab.emulator import Impairment, netem
from dysco.lab.models import Link
from dysco.lab.topology import Node, Topology
from dysco.lab.wire import End, Wire

NAMED: Final = Path("/run/netns")
_SEED_STEP: Final = 1_000_003  # so that links of one lab do not share their luck
# Of every namespace, before it has devices: no reverse-path filter and no wait for duplicate addresses.
_SYSCTLS: Final = {
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.default.dad_transmits": 0,
    "net.ipv6.conf.default.accept_ra": 0,
}
_FORWARD: Final = {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1}


class Names:
    """The names of a lab's namespaces."""

    def __init__(self, topology: Topology, prefix: str) -> None:
        self._stem = f"{prefix}-{topology.file.lab.name}"
        self._nodes = topology.nodes

    def of(self, node: str) -> str:
        """Give the namespace of a node."""
        return f"{self._stem}-{node}"

    def all(self) -> list[str]:
        """Give all of the lab, further ones of hosts too."""
        more = [
            f"{self.of(n.name)}-{extra}"
            for n in self._nodes.values()
            if n.host
            for extra in n.host.namespaces
        ]
        return [*map(self.of, self._nodes), *more]


def ip(commands: Sequence[str], *, netns: str | None = None) -> None:
    """Run commands of ip in one process, in a namespace or here; raises HostError with the first that fails."""
    argv = ["ip", *(("-n", netns) if netns else ()), "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(commands), capture_output=True, text=True, check=False)
    if done.returncode:
        message = done.stderr.strip()
        if "not permitted" in message or "ermission denied" in message:
            raise PermissionDeniedError(f"ip: {message.splitlines()[0]}; a lab needs root")
        raise HostError(f"ip: {message}")


def make_namespaces(topology: Topology, names: Names) -> None:
    """Make the namespaces, their loopback and their switches."""
    ip([f"netns add {name}" for name in names.all()])
    for name in names.all():
        ip(["link set lo up"], netns=name)
    forwarding = {names.of(node.name) for node in topology.nodes.values() if node.forwards}
    for name in names.all():
        values = _SYSCTLS | (_FORWARD if name in forwarding else {})
        pairs = [f"{key}={value}" for key, value in values.items()]
        _run(["ip", "netns", "exec", name, "sysctl", "-qw", *pairs])


def _run(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"{' '.join(argv)}: {done.stderr.strip()}")


def has_netem(names: Names, node: str) -> bool:
    """Whether the kernel has netem; tried on the loopback of a namespace of the lab, which has no traffic yet."""
    there = ["tc", "-n", names.of(node), "qdisc"]
    tried = subprocess.run(
        [*there, "add", "dev", "lo", "root", "netem", "limit", "10"], capture_output=True, check=False
    )
    if tried.returncode == 0:
        _run([*there, "del", "dev", "lo", "root"])
    return tried.returncode == 0


def impairment(link: Link) -> Impairment:
    """Give what a link does in seconds and bits per second."""
    return Impairment(
        delay_s=link.delay_ms / 1e3,
        jitter_s=link.jitter_ms / 1e3,
        loss=link.loss,
        duplicate=link.duplicate,
        reorder=link.reorder,
        rate=(link.rate_mbit or 0.0) * 1e6,
        queue=link.queue,
    )


def make_links(topology: Topology, names: Names, use_netem: bool) -> list[Wire]:
    """Make all devices; give the wires that an emulator has to serve."""
    wires: list[Wire] = []
    for node in topology.nodes.values():
        if node.kind == "bridge":
            ip(
                [f"link add name {node.name} type bridge", f"link set dev {node.name} up"],
                netns=names.of(node.name),
            )
    for number, (link, (one, other)) in enumerate(zip(topology.links, topology.ends, strict=True)):
        ends = [(names.of(end.node), end.name) for end in (one, other)]
        if link.emulated and not use_netem:
            seed = link.seed if link.seed is not None else topology.file.lab.seed * _SEED_STEP + number
            for space, device in ends:
                ip([f"tuntap add dev {device} mode tap"], netns=space)
            wires.append(Wire((End(*ends[0]), End(*ends[1])), impairment(link), seed))
        else:
            (space, device), (there, peer) = ends
            ip([f"link add name {device} netns {space} type veth peer name {peer} netns {there}"])
        for space, device in ends:
            ip([f"link set dev {device} mtu {link.mtu} up"], netns=space)
            if link.emulated and use_netem:
                _run(["tc", "-n", space, *netem(impairment(link), device)[1:]])
    for node in topology.nodes.values():
        ip(list(_addresses(node)), netns=names.of(node.name))
    return wires


def _addresses(node: Node) -> Iterator[str]:
    if node.kind == "bridge":
        yield from (f"link set dev {device.name} master {node.name}" for device in node.devices)
        return
    for device in node.devices:
        yield f"addr add {device.ipv4}/24 dev {device.name}"
        if device.ipv6:
            yield f"addr add {device.ipv6}/64 dev {device.name} nodad"
    for route in node.routes:
        yield f"route add {route.destination or ('default' if route.family == 4 else '::/0')} via {route.via}"


def start_emulator(wires: list[Wire], directory: Path) -> subprocess.Popen[bytes]:
    """Start the emulator in the namespace of the first wire's end and wait until it has all devices."""
    log = directory / "emulator.log"
    process = processes.start(
        wires[0].ends[0].netns,
        [sys.executable, "-m", "dysco.lab.wire"],
        log,
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        process.stdin.write(json.dumps([wire.record() for wire in wires]).encode())
        process.stdin.close()
        if process.stdout.readline() != b"ready\n":
            raise HostError(f"the link emulator did not start: {processes.tail(log)}")
    return process
