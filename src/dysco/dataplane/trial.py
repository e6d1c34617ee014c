"""Find out whether this kernel rewrites packets as we do, before traffic depends on it.

Knows the kernel programs, TUN devices and a network namespace of its own, which lives as long as the trial: nothing
of the host is touched. A packet to oneself goes through both programs and must come out as `dysco.wire.rewrite` makes
it, to the byte:

    written to `in` --ingress_l3: subsession -> session--> forwarded --egress_l3: session -> subsession--> read at `out`
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dysco.dataplane import tcx
from dysco.dataplane.fast import KernelFlowTable
from dysco.dataplane.selftest import SEGMENT, arriving, in_own_namespace, switch_forwarding_on
from dysco.dataplane.since_boot import believed, mark
from dysco.dataplane.steer import OBJECT, Steering, SteeringConfig
from dysco.dataplane.tun import Tun
from dysco.errors import DyscoError
from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST, UNDERLAY, Flow, Translation
from dysco.wire import vnet
from dysco.wire.checksum import add
from dysco.wire.packet import ACK, PSH, Packet, build_tcp, fix_checksums, locate
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple

PORTS: Final = (61000, 65535)
ENTRIES: Final = 64
_ETH_P_ALL: Final = 3
_PARENT: Final = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
# Documentation prefixes (RFC 5737, RFC 3849): the namespace is closed to all others.
_NETS: Final = {
    "in": ("192.0.2.0/24", "2001:db8:1::/64"),
    "out": ("198.51.100.0/24", "2001:db8:2::/64"),
}
_U16 = struct.Struct("!H")


class Range:
    """Two TUN devices in the calling thread's namespace with the programs between them."""

    def __init__(self, undo: contextlib.ExitStack) -> None:
        self.families = switch_forwarding_on()
        self.steering = Steering.make(ENTRIES)
        undo.callback(self.steering.close)
        self.source, self.target = Tun("in", offload=True), Tun("out", offload=True)
        undo.callback(self.source.close)
        undo.callback(self.target.close)
        programs = self.steering.programs([FIRST_BOX])
        for program in programs.values():
            program()  # what the kernel refuses, it refuses here
        with IPRoute() as ip:
            index = {name: int(ip.link_lookup(ifname=name)[0]) for name in _NETS}
            for name, nets in _NETS.items():
                ip.link("set", index=index[name], mtu=1500, state="up")
                for net in (ipaddress.ip_network(nets[family == 6]) for family in self.families):
                    ip.addr("add", index=index[name], address=str(net[1]), prefixlen=net.prefixlen)
            places: tuple[tuple[str, tcx.Direction], ...] = (("in", "ingress"), ("out", "egress"))
            for name, direction in places:
                _attach(ip, index[name], direction, programs[f"{direction}_l3"]())
        own = tuple(host("in", family, 1) for family in self.families)
        self.steering.configure(
            SteeringConfig(index["in"], index["in"], index["in"], None, PORTS, own)
        )  # fmt: skip
        self.table = KernelFlowTable(self.steering, own, PORTS)

    def through(self, packet: Packet, first: Flow, second: Flow) -> tuple[Packet | None, Packet]:
        """Send a packet by two flows; give what arrived and what had to."""
        expected = packet.copy()
        apply(expected, first)
        _age(expected)
        apply(expected, second)
        for flow in (first, second):
            self.table.insert(flow)
        os.writev(self.source.fd, (vnet.pack(packet), packet.data))
        at = locate(expected)
        assert at is not None
        return self._received(at.five_tuple), expected

    def _received(self, wanted: FiveTuple) -> Packet | None:
        for packet in arriving(self.target):
            at = locate(packet)
            if at is not None and at.five_tuple == wanted:
                return packet
        return None


def steering_fault() -> str | None:
    """Say why programs cannot be loaded, or attached to a device, which every mode needs.

    None if they can, and also if it cannot be tried, which needs CAP_SYS_ADMIN.
    """
    try:
        in_own_namespace(_attach_here)
    except PermissionError:
        return None
    except DyscoError as error:
        return str(error)
    except (NetlinkError, OSError) as error:
        return f"neither tcx nor cls_bpf takes a program: {error}"
    return None


def rewriting_fault() -> str | None:
    """Say why packets cannot be rewritten in this kernel; takes a few tenths of a second.

    None if they can, and also if it cannot be tried, which needs CAP_SYS_ADMIN.
    """
    answer: list[str | None] = []
    try:
        in_own_namespace(lambda: answer.append(_fault_here()))
    except DyscoError as error:
        return str(error)
    except (NetlinkError, OSError) as error:
        return (
            None if isinstance(error, PermissionError) else f"the test of the kernel programs failed: {error}"
        )
    return answer[0]


def fault_since_boot(memory: Path) -> str | None:
    """As `rewriting_fault`, but what this kernel has shown with these programs is believed until it boots again."""
    return believed(memory, f"rewriting {mark(OBJECT)}", rewriting_fault)


def host(device: str, family: int, number: int) -> bytes:
    """An address behind a device of the trial; number 1 is the device's own."""
    return ipaddress.ip_network(_NETS[device][family == 6])[number].packed


def flows(family: int, numbers: Translation | None = None) -> tuple[Flow, Flow]:
    """The flows of a middlebox host, one after the other."""
    near, far, own = host("in", family, 2), host("out", family, 2), host("in", family, 1)
    session = FiveTuple.of(near, 40000, far, 80)
    before, behind = FiveTuple.of(near, 61001, own, 61002), FiveTuple.of(own, 61003, far, 61004)
    return (
        Flow(UNDERLAY, before, FORWARD, session, translation=numbers),
        Flow(HOST, session, UNDERLAY, behind, translation=numbers),
    )


def _attach(ip: Any, ifindex: int, direction: tcx.Direction, program: int) -> None:
    if tcx.is_here():
        tcx.attach(ifindex, direction, program, None)
        return
    ip.tc("add", "clsact", ifindex)
    ip.tc(
        "add-filter", "bpf", ifindex, 1, parent=_PARENT[direction], prio=1, protocol=_ETH_P_ALL,
        fd=program, name="dysco_trial", direct_action=True,
    )  # fmt: skip


def _attach_here() -> None:
    """Load the programs that every agent needs, and hang one on a device."""
    with contextlib.closing(Steering.make(ENTRIES)) as steering:
        loaded = {name: program() for name, program in steering.programs().items()}
        with contextlib.closing(Tun("in", offload=False)), IPRoute() as ip:
            _attach(ip, int(ip.link_lookup(ifname="in")[0]), "ingress", loaded["ingress_l3"])


def _fault_here() -> str | None:
    with contextlib.ExitStack() as undo:
        place = Range(undo)
        for packet, numbers in _packets(place.families):
            at = locate(packet)
            assert at is not None
            kind = f"a packet of {len(packet.data)} bytes for IPv{at.family}"
            try:
                got, expected = place.through(packet, *flows(at.family, numbers))
            except OSError as error:
                return f"{kind} is refused: {error.strerror}"
            if got is None:
                return f"{kind} does not arrive"
            if got != expected:
                return f"{kind} arrives with other bytes"
    return None


def _packets(families: tuple[int, ...]) -> Iterator[tuple[Packet, Translation | None]]:
    """Large ones with a partial checksum and small ones with a complete one, as they are and with other numbers."""
    stamps = b"\1\1\x08\x0a" + bytes((1, 2, 3, 4, 5, 6, 7, 8))
    for family in families:
        match = flows(family)[0].match
        for size in (0, 20_001):
            packet = build_tcp(match, 1, 1, ACK | PSH, 1000, stamps, bytes(size))
            if size:
                packet.partial, packet.gso_size = True, SEGMENT
                at = locate(packet)
                assert at is not None
                fix_checksums(packet, at)
            yield packet, None
            yield packet, Translation(0x89ABCDEF, 0x12345678, 3, 0xFFFFFFF0)


def _age(packet: Packet) -> None:
    """Do what forwarding does: one hop less to live."""
    if packet.data[0] >> 4 == 4:
        packet.data[8] -= 1
        _U16.pack_into(packet.data, 10, add(_U16.unpack_from(packet.data, 10)[0], -0x100 % 0xFFFF))
    else:
        packet.data[7] -= 1
