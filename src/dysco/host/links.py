"""Changes of devices, rules, routes and classifiers; the contract is in changes.py.

Knows rtnetlink through pyroute2 and the ioctls of /dev/net/tun. Must not know which of them an agent needs
(plan.py), nor what a classifier does: its program comes as a callable that gives a descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pyroute2.netlink.exceptions import NetlinkError

from dysco.dataplane import tcx
from dysco.errors import HostError, PermissionDeniedError
from dysco.host.changes import Change, State
from dysco.host.netns import Kernel, path_of
from dysco.host.pins import LINKS_IN, link_name, reach

Family = Literal["inet", "inet6"]
_FAMILY: Final[dict[str, int]] = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
_TUN: Final = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
# linux/if.h
_IFF_UP: Final = 0x1
# linux/pkt_sched.h, linux/if_ether.h
_PARENT: Final = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ETH_P_ALL: Final = 3
_GONE: Final = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EINVAL}


@contextlib.contextmanager
def _errors_of(change: Change) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        number = error.code
        text = f"{change.show()}: {os.strerror(number)}"
        if number in (errno.EPERM, errno.EACCES):
            raise PermissionDeniedError(f"{text}; CAP_NET_ADMIN is needed") from None
        raise HostError(text) from None
    except PermissionError as error:
        raise PermissionDeniedError(f"{change.show()}: {error.strerror}; root is needed") from None
    except OSError as error:
        raise HostError(f"{change.show()}: {error.strerror}") from None


def _link(kernel: Kernel, device: str) -> Any:
    index = kernel.index(device)
    return kernel.ip.get_links(index)[0] if index is not None else None


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    return info.get_attr("IFLA_INFO_KIND") if info is not None else None


def _index(kernel: Kernel, change: Change, device: str) -> int:
    index = kernel.index(device)
    if index is None:
        raise HostError(f"{change.show()}: there is no device {device}")
    return index


@dataclass(frozen=True, kw_only=True)
class CreateTun(Change):
    """Make a persistent TUN device with virtio headers: while no agent reads, what is sent to it vanishes."""

    device: str

    def command(self) -> str:
        """Give the change in ip's syntax."""
        return f"ip tuntap add dev {self.device} mode tun vnet_hdr"

    def look(self, kernel: Kernel) -> State:
        """Refuse a device that is there already: dysco made it neither now nor before a crash."""
        if kernel.index(self.device) is not None:
            raise HostError(
                f"{self.show()}: there is a device of this name that the journal does not know. "
                f"Delete it (ip link delete {self.device}) or choose another name under [tun]"
            )
        return {}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Make the device, unless a crashed agent has left it."""
        if kernel.index(self.device) is not None:
            return
        with _errors_of(self):
            descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
            try:
                request = struct.pack("16sH22x", self.device.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
                fcntl.ioctl(descriptor, _TUNSETIFF, request)
                fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
            finally:
                os.close(descriptor)

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Delete the device."""
        with _errors_of(self):
            link = _link(kernel, self.device)
            if link is None:
                return None
            if _kind(link) != "tun":
                return f"{self.device} is no TUN device any more: left as it is"
            _unless_gone(lambda: kernel.ip.link("del", index=link["index"]))
            return None


def _unless_gone(work: Callable[[], Any]) -> None:
    try:
        work()
    except NetlinkError as error:
        if error.code not in _GONE:
            raise


@dataclass(frozen=True, kw_only=True)
class CreateVeth(Change):
    """Make a veth pair, one end here, the other with the same name in another namespace."""

    device: str
    there: str

    def command(self) -> str:
        """Give the change in ip's syntax."""
        return f"ip link add {self.device} type veth peer name {self.device} netns {self.there}"

    def look(self, kernel: Kernel) -> State:
        """Refuse a device that is there already: dysco made it neither now nor before a crash."""
        if kernel.index(self.device) is not None:
            raise HostError(
                f"{self.show()}: there is a device of this name that the journal does not know. "
                f"Delete it: ip link delete {self.device}"
            )
        return {}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Make the pair, unless a crashed agent has left it."""
        if kernel.index(self.device) is not None:
            return
        with _errors_of(self):
            peer = {"ifname": self.device, "net_ns_fd": str(path_of(self.there))}
            kernel.ip.link("add", ifname=self.device, kind="veth", peer=peer)

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Delete the pair; with the other namespace it has gone by itself."""
        with _errors_of(self):
            link = _link(kernel, self.device)
            if link is None:
                return None
            if _kind(link) != "veth":
                return f"{self.device} is no veth device any more: left as it is"
            _unless_gone(lambda: kernel.ip.link("del", index=link["index"]))
            return None


@dataclass(frozen=True, kw_only=True)
class LinkUp(Change):
    """Bring a device up with an MTU in bytes and a queue length in packets."""

    device: str
    mtu: int
    queue: int

    def command(self) -> str:
        """Give the change in ip's syntax."""
        return f"ip link set dev {self.device} mtu {self.mtu} txqueuelen {self.queue} up"

    def look(self, kernel: Kernel) -> State:
        """See flags, MTU and queue length."""
        with _errors_of(self):
            link = _link(kernel, self.device)
            if link is None:
                return {}
            return {
                "up": bool(link["flags"] & _IFF_UP),
                "mtu": link.get_attr("IFLA_MTU"),
                "queue": link.get_attr("IFLA_TXQLEN"),
            }

    def apply(self, kernel: Kernel, before: State) -> None:
        """Set what differs."""
        with _errors_of(self):
            index = _index(kernel, self, self.device)
            kernel.ip.link("set", index=index, mtu=self.mtu, txqlen=self.queue)
            kernel.ip.link("set", index=index, state="up")

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Set the old values where ours still stand."""
        with _errors_of(self):
            link = _link(kernel, self.device)
            if link is None or not before:
                return None
            kept = []
            for name, attribute, ours in (
                ("mtu", "IFLA_MTU", self.mtu),
                ("queue", "IFLA_TXQLEN", self.queue),
            ):
                now = link.get_attr(attribute)
                if now == ours and now != before[name]:
                    key = "txqlen" if name == "queue" else name
                    kernel.ip.link("set", index=link["index"], **{key: before[name]})
                elif now not in (ours, before[name]):
                    kept.append(f"{name} of {self.device} is {now} now, no longer {ours}: left as it is")
            if not before["up"] and link["flags"] & _IFF_UP:
                kernel.ip.link("set", index=link["index"], state="down")
            return "; ".join(kept) or None


@dataclass(frozen=True, kw_only=True)
class AddRule(Change):
    """Send what enters by a device to a routing table."""

    family: Family
    device: str
    table: int
    preference: int

    def command(self) -> str:
        """Give the change in ip's syntax."""
        six = " -6" if self.family == "inet6" else ""
        return f"ip{six} rule add pref {self.preference} iif {self.device} lookup {self.table}"

    def _there(self, kernel: Kernel) -> bool:
        return any(
            rule.get_attr("FRA_PRIORITY") == self.preference
            and rule.get_attr("FRA_IIFNAME") == self.device
            and rule.get_attr("FRA_TABLE", rule["table"]) == self.table
            for rule in kernel.ip.get_rules(family=_FAMILY[self.family])
        )

    def look(self, kernel: Kernel) -> State:
        """See whether somebody else has this rule."""
        with _errors_of(self):
            return {"there": self._there(kernel)}

    def _arguments(self) -> dict[str, Any]:
        return {
            "family": _FAMILY[self.family],
            "iifname": self.device,
            "table": self.table,
            "priority": self.preference,
        }

    def apply(self, kernel: Kernel, before: State) -> None:
        """Add the rule."""
        with _errors_of(self):
            if not self._there(kernel):
                kernel.ip.rule("add", **self._arguments())

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Delete the rule."""
        with _errors_of(self):
            if not before["there"] and self._there(kernel):
                _unless_gone(lambda: kernel.ip.rule("del", **self._arguments()))
            return None


@dataclass(frozen=True, kw_only=True)
class AddRoute(Change):
    """Send everything that reaches a routing table out of a device."""

    family: Family
    device: str
    table: int

    def command(self) -> str:
        """Give the change in ip's syntax."""
        six = " -6" if self.family == "inet6" else ""
        return f"ip{six} route add default dev {self.device} table {self.table}"

    def _default(self, kernel: Kernel) -> int | None:
        for route in kernel.ip.get_routes(family=_FAMILY[self.family], table=self.table):
            if route["dst_len"] == 0 and route.get_attr("RTA_TABLE", route["table"]) == self.table:
                index: int | None = route.get_attr("RTA_OIF")
                return index
        return None

    def look(self, kernel: Kernel) -> State:
        """Refuse a table with a default route that is not ours."""
        with _errors_of(self):
            if self._default(kernel) is not None:
                raise HostError(f"{self.show()}: table {self.table} has a default route already")
            return {}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Add the route."""
        with _errors_of(self):
            index = _index(kernel, self, self.device)
            if self._default(kernel) != index:
                kernel.ip.route(
                    "add", family=_FAMILY[self.family], dst="default", oif=index, table=self.table
                )

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Delete the route; it is gone when its device is."""
        with _errors_of(self):
            index = kernel.index(self.device)
            now = self._default(kernel)
            if now is None:
                return None
            if now != index:
                return f"the default route of table {self.table} leads elsewhere now: left as it is"
            arguments = {
                "family": _FAMILY[self.family],
                "dst": "default",
                "oif": index,
                "table": self.table,
            }
            _unless_gone(lambda: kernel.ip.route("del", **arguments))
            return None


def _filters(kernel: Kernel, index: int, direction: str) -> list[Any]:
    try:
        return list(kernel.ip.get_filters(index=index, parent=_PARENT[direction]))
    except NetlinkError as error:
        if error.code in _GONE:
            return []
        raise


def _has_clsact(kernel: Kernel, index: int) -> bool:
    return any(
        qdisc["index"] == index and qdisc.get_attr("TCA_KIND") == "clsact"
        for qdisc in kernel.ip.get_qdiscs(index)
    )


@dataclass(frozen=True, kw_only=True)
class AddClsact(Change):
    """Give a device the place where classifiers stand; it may be there already for somebody else's."""

    device: str

    def command(self) -> str:
        """Give the change in tc's syntax."""
        return f"tc qdisc add dev {self.device} clsact"

    def look(self, kernel: Kernel) -> State:
        """See whether it is there."""
        with _errors_of(self):
            index = kernel.index(self.device)
            return {"there": index is not None and _has_clsact(kernel, index)}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Add it."""
        with _errors_of(self):
            index = _index(kernel, self, self.device)
            if not _has_clsact(kernel, index):
                kernel.ip.tc("add", "clsact", index)

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Delete it, unless it was there before or somebody else has put a filter into it."""
        with _errors_of(self):
            index = kernel.index(self.device)
            if before["there"] or index is None or not _has_clsact(kernel, index):
                return None
            if any(_filters(kernel, index, direction) for direction in _PARENT):
                return f"clsact of {self.device} stays: somebody else's filters use it"
            _unless_gone(lambda: kernel.ip.tc("del", "clsact", index))
            return None


@dataclass(frozen=True, kw_only=True)
class AttachClassifier(Change):
    """Attach an eBPF classifier (direct action) under a fixed preference and handle.

    `program` gives the descriptor of the loaded program; it is called when the change is made, so that the
    devices of the plan exist. A filter of ours that a crashed agent left is replaced in one step, by the
    same program if `program` gives that.
    """

    device: str
    direction: Literal["ingress", "egress"]
    name: str
    preference: int
    handle: int = 1
    program: Callable[[], int] | None = field(default=None, compare=False, repr=False)
    _volatile: ClassVar[frozenset[str]] = frozenset({"program"})

    def command(self) -> str:
        """Give the change in tc's syntax."""
        return (
            f"tc filter add dev {self.device} {self.direction} pref {self.preference} handle {self.handle} "
            f"protocol all bpf direct-action name {self.name}"
        )

    def _now(self, kernel: Kernel, index: int) -> str | None:
        """Give the name of the filter that stands there, or None."""
        for entry in _filters(kernel, index, self.direction):
            if entry["info"] >> 16 == self.preference and entry["handle"] in (0, self.handle):
                options = entry.get_attr("TCA_OPTIONS")
                if entry["handle"] == 0 and options is None:
                    continue  # the head of a preference, which has no filter of its own
                kind = entry.get_attr("TCA_KIND")
                return str(options.get_attr("TCA_BPF_NAME")) if kind == "bpf" else f"({kind})"
        return None

    def look(self, kernel: Kernel) -> State:
        """Refuse a preference that somebody else uses."""
        with _errors_of(self):
            index = kernel.index(self.device)
            now = self._now(kernel, index) if index is not None else None
            if now is not None:
                raise HostError(
                    f"{self.show()}: a filter {now} that the journal does not know stands there. Delete it: "
                    f"tc filter del dev {self.device} {self.direction} pref {self.preference}"
                )
            return {}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Attach the program, in place of an older one of ours."""
        if self.program is None:
            raise HostError(f"{self.show()}: there is no program")
        descriptor = self.program()
        with _errors_of(self):
            index = _index(kernel, self, self.device)
            kernel.ip.tc(
                "replace-filter",
                "bpf",
                index,
                self.handle,
                parent=_PARENT[self.direction],
                prio=self.preference,
                protocol=_ETH_P_ALL,
                fd=descriptor,
                name=self.name,
                direct_action=True,
            )

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Detach the program."""
        with _errors_of(self):
            index = kernel.index(self.device)
            now = self._now(kernel, index) if index is not None else None
            if now is None:
                return None
            if now != self.name:
                return f"filter {self.preference} on {self.device} is {now} now: left as it is"
            _unless_gone(
                lambda: kernel.ip.tc(
                    "del-filter",
                    "bpf",
                    index,
                    self.handle,
                    parent=_PARENT[self.direction],
                    prio=self.preference,
                    protocol=_ETH_P_ALL,
                )
            )
            return None


@dataclass(frozen=True, kw_only=True)
class AttachProgram(Change):
    """Attach an eBPF program to a device itself (tcx), behind what others have attached there.

    `program` as for `AttachClassifier`. One of the same name that a crashed agent left is replaced in one step.
    `bpffs` is where the link that holds it is pinned, if one is mounted there by then.
    """

    device: str
    direction: tcx.Direction
    name: str
    program: Callable[[], int] | None = field(default=None, compare=False, repr=False)
    bpffs: Path | None = field(default=None, compare=False, repr=False)
    _volatile: ClassVar[frozenset[str]] = frozenset({"program", "bpffs"})

    def command(self) -> str:
        """Give the change in bpftool's syntax."""
        return f"bpftool net attach tcx_{self.direction} name {self.name} dev {self.device}"

    def look(self, kernel: Kernel) -> State:
        """Refuse a program of ours that dysco has attached neither now nor before a crash."""
        index = kernel.index(self.device)
        if index is not None and tcx.own(index, self.direction, self.name) is not None:
            raise HostError(
                f"{self.show()}: there is a program of this name that the journal does not know. Detach it: "
                f"bpftool net detach tcx_{self.direction} dev {self.device}"
            )
        return {}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Attach the program, in place of an older one of ours."""
        if self.program is None:
            raise HostError(f"{self.show()}: there is no program")
        index = _index(kernel, self, self.device)
        program = self.program()
        place = reach(self.bpffs) if self.bpffs is not None else None
        pinned_at = place and place / LINKS_IN / link_name(self.netns, self.device, self.direction)
        tcx.attach(index, self.direction, program, tcx.own(index, self.direction, self.name), pinned_at)

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Detach the program."""
        index = kernel.index(self.device)
        one = tcx.own(index, self.direction, self.name) if index is not None else None
        if index is not None and one is not None:
            tcx.detach(index, self.direction, one)
        return None
