"""Which changes an agent needs, from simple values: names of devices, ports, boxes.

Knows what DESIGN calls the plumbing; must not know host.toml (service translates) nor how classifiers work
(the data plane loads them). The picture of one host:

    local programs, kernel boxes              other hosts
            |                                      |
      [routing, netfilter]                    eth0 (underlay)
            |      egress classifier  --------->   |  \\
            |            | captured                |   ingress classifier
            v            v                         |        | subsessions
        dysco0  <--------+          agent       dysco1 <----+
                 session side  <=========>  underlay side
            ^ FORWARD: into a kernel box         | inject classifier: to a socket, or out of eth0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dysco.dataplane import tcx
from dysco.errors import HostError
from dysco.host.addresses import KeepAddress
from dysco.host.changes import Change, ForwardIPv6, ReservePorts, ReversePathPerDevice, SetSysctl
from dysco.host.links import (
    AddClsact,
    AddRoute,
    AddRule,
    AttachClassifier,
    AttachProgram,
    CreateTun,
    CreateVeth,
    Family,
    LinkUp,
)
from dysco.host.netns import Kernel, Namespace
from dysco.host.pins import MountBpf
from dysco.protocol.flow import FIRST_BOX

QUEUE: Final = (
    1000  # packets that wait for the agent in a TUN device, ours: two bursts of 64 KiB at 1280 bytes
)
FILTER_PREFERENCE: Final = 2016  # of our classifiers; the same number as the control port, to be recognised
TABLE: Final = 201600  # first routing table of boxes in namespaces: two for each box
RULE_PREFERENCE: Final = 2016  # first preference of their rules: behind `local` (0), ahead of `main` (32766)
_FORCE: Final = "net/ipv6/conf/all/force_forwarding"
_FAMILIES: Final[tuple[Family, ...]] = ("inet", "inet6")

_LARGEST_MTU: Final = 65535  # of a veth device; the devices at the ends of the way decide
_ETHERNET: Final = 1  # ARPHRD_ETHER, linux/if_arp.h

Direction = Literal["ingress", "egress"]
Programs = Mapping[str, Callable[[], int]]


@dataclass(frozen=True)
class Hooks:
    """Where programs are attached: to devices themselves, or as classifiers of tc on kernels before 6.6.

    bpffs: where the links that hold them are pinned.
    """

    programs: Programs
    by_tcx: bool
    bpffs: Path | None = None

    def on(
        self, device: str, names: Mapping[Direction, str], *, netns: str | None = None, instance: str = ""
    ) -> list[Change]:
        """Give the changes that attach programs to a device; `instance` tells one of several of a name."""
        if self.by_tcx:
            return [
                AttachProgram(
                    netns=netns,
                    device=device,
                    direction=direction,
                    name=f"dysco_{name}",
                    program=self.programs.get(name + instance),
                    bpffs=self.bpffs,
                )
                for direction, name in names.items()
            ]
        return [
            AddClsact(netns=netns, device=device),
            *(
                AttachClassifier(
                    netns=netns,
                    device=device,
                    direction=direction,
                    name=f"dysco_{name}",
                    preference=FILTER_PREFERENCE,
                    program=self.programs.get(name + instance),
                )
                for direction, name in names.items()
            ),
        ]


@dataclass(frozen=True)
class Plan:
    """Changes in the order in which they are made, and what a person should know about them.

    not_pinned: why programs and maps are not pinned; empty: they are.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    not_pinned: str = ""

    def show(self) -> list[str]:
        """Give each change in the syntax of ip, tc and sysctl, one a line; touches nothing."""
        return [change.show() for change in self.changes]


@dataclass(frozen=True)
class NamespaceBox:
    """A middlebox in a namespace of its own (a name of `ip netns`, or a path) and its two devices there.

    `port` is the left device's number in the flow table, the right one's is the next.
    """

    name: str
    netns: str
    left: str
    right: str
    port: int = FIRST_BOX


def for_agent(
    *,
    underlay: Sequence[str],
    session_tun: str = "dysco0",
    underlay_tun: str = "dysco1",
    mtu: int | None = None,
    port_range: tuple[int, int] = (61000, 65535),
    kernel_box: bool = False,
    boxes: Sequence[NamespaceBox] = (),
    programs: Programs | None = None,
    by_tcx: bool | None = None,
    carries: bool = False,
    bpffs: Path | None = None,
) -> Plan:
    """Compute the changes for an agent in the calling thread's network namespace; changes nothing.

    `mtu` in bytes, None for the smallest of the underlay devices. `programs` gives loaded classifiers by
    name (egress, ingress, inject); without them the plan can only be shown. `by_tcx` attaches them to devices
    themselves, else as classifiers of tc; None: as the kernel can. `carries`: programs may carry packets into
    boxes in namespaces and out of them. `bpffs`: a directory where one is mounted. Raises HostError for devices and
    namespaces that are not there.
    """
    hooks = Hooks(programs or {}, tcx.is_here() if by_tcx is None else by_tcx, bpffs)
    own = Namespace(None)
    try:
        links = own.call(lambda kernel: _links(kernel, underlay))
        changes, notes = own.call(lambda kernel: _forwarding(kernel, None, kernel_box))
    finally:
        own.close()
    mtu = mtu or min(link.get_attr("IFLA_MTU") for link in links)
    changes = [
        *([MountBpf(directory=str(bpffs))] if bpffs is not None else []),
        ReservePorts(first=port_range[0], last=port_range[1]),
        CreateTun(device=session_tun),
        CreateTun(device=underlay_tun),
        *changes,
        *_own_device(session_tun, mtu, forced=not any(isinstance(c, ForwardIPv6) for c in changes)),
        SetSysctl(key=f"net/ipv4/conf/{underlay_tun}/accept_local", value="1"),
        *_own_device(underlay_tun, mtu, forced=False),
    ]
    for number, box in enumerate(boxes):
        more, said = _box(box, number, mtu)
        changes += more
        notes += said
        if carries:
            changes += _passage(box, number, hooks)
    changes += [
        *hooks.on(underlay_tun, {"ingress": "inject"}),
        *(change for link in links for change in _capture(link, hooks)),
    ]
    return Plan(tuple(changes), tuple(notes))


def for_move(
    device: str,
    session_tun: str,
    addresses: Sequence[str],
    programs: Programs | None,
    by_tcx: bool | None = None,
    bpffs: Path | None = None,
) -> list[Change]:
    """Compute the changes for a host that is reached by another device now; `addresses` are those that it leaves.

    Sockets of sessions that live go on using them, so the session device keeps them. Raises HostError.
    """
    hooks = Hooks(programs or {}, tcx.is_here() if by_tcx is None else by_tcx, bpffs)
    own = Namespace(None)
    try:
        [link] = own.call(lambda kernel: _links(kernel, [device]))
    finally:
        own.close()
    keep = [KeepAddress(device=session_tun, address=address) for address in addresses]
    return [*_capture(link, hooks), *keep]


def _links(kernel: Kernel, underlay: Sequence[str]) -> list[Any]:
    """Give what the kernel says of the underlay devices; raises HostError if one is not there."""
    links = {link.get_attr("IFLA_IFNAME"): link for link in kernel.ip.get_links()}
    for device in underlay:
        if device not in links:
            raise HostError(
                f"agent.underlay: there is no device {device} here; there are {', '.join(sorted(links))}"
            )
    return [links[device] for device in underlay]


def _forwarding(kernel: Kernel, netns: str | None, forwards: bool) -> tuple[list[Change], list[str]]:
    """Give what has to change for a whole namespace before packets can be forwarded from our devices."""
    changes: list[Change] = []
    notes: list[str] = []
    if not forwards:
        return changes, notes
    where = f" in the namespace {netns}" if netns else ""
    changes.append(ReversePathPerDevice(netns=netns))
    if kernel.get("net/ipv4/conf/all/rp_filter") not in (None, "0"):
        notes.append(
            f"net.ipv4.conf.all.rp_filter is set{where}: it moves to every device but dysco's, and each of "
            "them is checked as before"
        )
    if kernel.get("net/ipv6/conf/all/forwarding") is not None and kernel.get(_FORCE) is None:
        changes.append(ForwardIPv6(netns=netns))
        notes.append(
            f"this kernel (before 6.17) forwards IPv6 only on all devices{where}: "
            "net.ipv6.conf.all.forwarding=1"
        )
    return changes, notes


def _own_device(
    device: str, mtu: int, *, forced: bool, netns: str | None = None, queue: int = QUEUE
) -> list[Change]:
    """Give the switches of one TUN device of ours, and bring it up.

    No address of its own (addr_gen_mode 1: none, ip-sysctl), so that it sends no router solicitation.
    """
    four, six = f"net/ipv4/conf/{device}", f"net/ipv6/conf/{device}"
    values4 = {"forwarding": "1", "rp_filter": "0", "send_redirects": "0"}
    values6 = {"addr_gen_mode": "1", "accept_ra": "0", "router_solicitations": "0", "forwarding": "1"}
    if forced:
        values6["force_forwarding"] = "1"
    return [
        *(SetSysctl(netns=netns, key=f"{four}/{key}", value=value) for key, value in values4.items()),
        *(
            SetSysctl(netns=netns, key=f"{six}/{key}", value=value, optional=True)
            for key, value in values6.items()
        ),
        LinkUp(netns=netns, device=device, mtu=mtu, queue=queue),
    ]


def _box(box: NamespaceBox, number: int, mtu: int) -> tuple[list[Change], list[str]]:
    """Give the TUN pair of a box in its namespace: what enters by one side leaves by the other."""
    space = Namespace(box.netns)
    try:
        changes, notes = space.call(lambda kernel: _forwarding(kernel, box.netns, True))
    finally:
        space.close()
    forced = not any(isinstance(change, ForwardIPv6) for change in changes)
    changes[:0] = [CreateTun(netns=box.netns, device=device) for device in (box.left, box.right)]
    for device in (box.left, box.right):
        changes += _own_device(device, mtu, forced=forced, netns=box.netns)
    for side, (here, there) in enumerate(((box.left, box.right), (box.right, box.left))):
        table, preference = TABLE + 2 * number + side, RULE_PREFERENCE + 2 * number + side
        for family in _FAMILIES:
            changes.append(AddRoute(netns=box.netns, family=family, device=there, table=table))
            changes.append(
                AddRule(netns=box.netns, family=family, device=here, table=table, preference=preference)
            )
    return changes, notes


def veth_name(number: int) -> str:
    """The device that leads to the box in a namespace with this number, from 0 on; it has the same name there."""
    return f"dysco-b{number}"


def _passage(box: NamespaceBox, number: int, hooks: Hooks) -> list[Change]:
    """Give the veth pair by which programs carry packets to a box and back; nothing else passes there."""
    device = veth_name(number)
    changes: list[Change] = [CreateVeth(device=device, there=box.netns)]
    for netns, name in ((None, "from_box"), (box.netns, "from_host")):
        changes += [
            SetSysctl(netns=netns, key=f"net/ipv6/conf/{device}/addr_gen_mode", value="1", optional=True),
            *hooks.on(device, {"ingress": name}, netns=netns),
            LinkUp(netns=netns, device=device, mtu=_LARGEST_MTU, queue=QUEUE),
        ]
    for port, side in enumerate((box.left, box.right), box.port):
        changes += hooks.on(side, {"egress": "leave"}, netns=box.netns, instance=str(port))
    return changes


def _capture(link: Any, hooks: Hooks) -> list[Change]:
    """Give the classifiers of an underlay device; one without Ethernet headers (WireGuard, for one) has its own."""
    suffix = "" if link["ifi_type"] == _ETHERNET else "_l3"
    names: dict[Direction, str] = {"ingress": f"ingress{suffix}", "egress": f"egress{suffix}"}
    return hooks.on(link.get_attr("IFLA_IFNAME"), names)
