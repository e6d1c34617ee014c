"""The kernel's side of an agent: steering, host changes, devices. Blocking; call it from a thread.

Knows in which order things are made: programs are loaded, the host's changes are made (devices, switches, classifiers),
devices are opened, the programs are told which devices these are. Undone in the opposite order.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute

from dysco.config.models import HostConfig
from dysco.dataplane.fast import BoxDevice
from dysco.dataplane.selftest import offload_fault
from dysco.dataplane.since_boot import believed
from dysco.dataplane.steer import MAX_ADDRESSES, Steering, SteeringConfig, entries_for
from dysco.dataplane.trial import fault_since_boot
from dysco.dataplane.tun import Tun
from dysco.errors import HostError
from dysco.host import pins
from dysco.host.addresses import KeepAddress, device_of
from dysco.host.netns import run_in
from dysco.host.plan import Plan, for_agent, for_move, veth_name
from dysco.host.transaction import Transaction
from dysco.service.logs import log
from dysco.service.settings import box_ports, namespace_boxes

TRIAL: Final = Path("/run/dysco/trial")
"""Remembers what this kernel has shown since it booted: that it rewrites, signs and segments rightly."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """What the underlay devices are: own addresses (packed), the smallest MTU, the first device's index and MAC."""

    addresses: tuple[bytes, ...]
    mtu: int
    ifindex: int
    mac: bytes | None


@dataclass
class KernelSide:
    """All that an agent holds in the kernel. left: addresses that the agent before it had left and kept for sockets."""

    underlay: Underlay
    plan: Plan
    steering: Steering
    transaction: Transaction
    session: Tun
    subsession: Tun
    boxes: dict[int, Tun] = field(default_factory=dict)
    carried: dict[int, BoxDevice] = field(default_factory=dict)
    offload_refused: str = ""
    in_kernel: bool = False
    kernel_refused: str = ""
    left: frozenset[bytes] = frozenset()

    @property
    def has_offload(self) -> bool:
        """Whether packets move with segmentation offload."""
        return self.session.has_offload

    def close(self, *, keep: bool) -> list[str]:
        """Give devices back; then undo every change, or with `keep` leave all for the next agent."""
        for tun in (self.session, self.subsession, *self.boxes.values()):
            tun.close()
        self.steering.close()
        if keep:
            self.transaction.leave()
            return []
        return self.transaction.down()


def look(config: HostConfig) -> Underlay:
    """Ask the kernel about the underlay devices. Raises HostError if one is not there or has no address."""
    with IPRoute() as ip:
        links: dict[str, Any] = {link.get_attr("IFLA_IFNAME"): link for link in ip.get_links()}
        missing = [name for name in config.agent.underlay if name not in links]
        if missing:
            raise HostError(
                f"agent.underlay: there is no device {missing[0]} here; there are {', '.join(links)}"
            )
        devices = [links[name] for name in config.agent.underlay]
        own = tuple(address.packed for address in config.agent.addresses) or _addresses(ip, devices)
    if not own:
        raise HostError(
            f"agent.addresses: {', '.join(config.agent.underlay)} have no address that others can reach"
        )
    first = devices[0]
    mac = first.get_attr("IFLA_ADDRESS")
    is_ethernet = first["ifi_type"] == 1  # ARPHRD_ETHER
    return Underlay(
        own,
        config.tun.mtu or min(int(device.get_attr("IFLA_MTU")) for device in devices),
        int(first["index"]),
        bytes.fromhex(mac.replace(":", "")) if mac and is_ethernet else None,
    )


def move(
    config: HostConfig, side: KernelSide, new: Sequence[bytes], forgotten: Collection[bytes] = ()
) -> SteeringConfig:
    """Let packets of subsessions come and go by the devices that have other addresses, which `side` knows then.

    Gives what `side.steering` is to be told, by the thread that tells it all else.

    The addresses that are left stay the host's own, for sessions that live use them; those of them that are forgotten
    do not, for none does any more. Raises HostError.
    """
    devices = [device_of(address, config.tun.session) for address in new]
    known = [one for one in side.underlay.addresses if one not in forgotten]
    left = [one for one in known if one not in new and any(len(one) == len(other) for other in new)]
    if len({*known, *new}) > MAX_ADDRESSES:
        raise HostError(
            f"an agent knows {MAX_ADDRESSES} own addresses at most, those among them that it has left and that "
            "sessions still use"
        )
    texts = [str(ipaddress.ip_address(one)) for one in left]
    for device in dict.fromkeys(devices):
        bpffs = None if side.plan.not_pinned else pins.directory_of(config.run_directory)
        changes = for_move(device, config.tun.session, texts, side.steering.programs(), bpffs=bpffs)
        side.transaction.extend(changes)
    with IPRoute() as ip:
        links = [ip.get_links(ifname=device)[0] for device in devices]
        mtu = min(int(link.get_attr("IFLA_MTU")) for link in links)
        first = links[0]
        mac = first.get_attr("IFLA_ADDRESS")
        is_ethernet = first["ifi_type"] == 1  # ARPHRD_ETHER
    kept = [one for one in known if one not in new and one not in left]
    side.underlay = Underlay(
        (*new, *kept, *left),
        config.tun.mtu or min(mtu, side.underlay.mtu),
        int(first["index"]),
        bytes.fromhex(mac.replace(":", "")) if mac and is_ethernet else None,
    )
    side.transaction.withdraw(
        KeepAddress(device=config.tun.session, address=str(ipaddress.ip_address(one))) for one in forgotten
    )
    return _steering_config(config, side.underlay)


def plan(config: HostConfig, programs: Any = None, in_kernel: bool | None = None) -> Plan:
    """The changes that an agent needs; without programs the plan can only be shown.

    in_kernel: whether programs rewrite packets; None: as the configuration wants it.
    """
    bpffs = pins.directory_of(config.run_directory)
    fault = pins.fault(bpffs)
    made = for_agent(
        underlay=config.agent.underlay,
        session_tun=config.tun.session,
        underlay_tun=config.tun.underlay,
        mtu=config.tun.mtu,
        port_range=config.agent.port_range,
        kernel_box=any(box.kind == "kernel" for box in config.box),
        boxes=namespace_boxes(config),
        programs=programs,
        carries=config.dataplane.mode != "tun" if in_kernel is None else in_kernel,
        bpffs=bpffs if fault is None else None,
    )
    if fault is None:
        return made
    return replace(made, notes=(*made.notes, f"nothing is pinned: {fault}"), not_pinned=fault)


def up(config: HostConfig) -> KernelSide:
    """Make everything; on failure nothing is left. Raises HostError and its kinds."""
    underlay = look(config)
    in_kernel, kernel_refused = choose(config.dataplane.mode)
    bpffs = pins.directory_of(config.run_directory)
    wanted = entries_for(config.limits.sessions)
    steering = Steering.open(config.tun.underlay, partial(pins.reach, bpffs), wanted)
    if steering.room < wanted:
        log("flow_table_small", logging.WARNING, room=steering.room, wanted=wanted)
    ports = [port for box in namespace_boxes(config) for port in (box.port, box.port + 1)]
    changes = plan(config, steering.programs(ports), in_kernel)
    transaction = Transaction(changes, config.run_directory, name=config.agent.name)
    transaction.up()
    with contextlib.ExitStack() as undo:
        undo.callback(transaction.down)
        left = _left(config, transaction, underlay)
        underlay = replace(underlay, addresses=(*underlay.addresses, *left))
        devices = [config.tun.session, config.tun.underlay]
        session, subsession, refused = _open(devices, config.tun.offload)
        undo.callback(session.close)
        undo.callback(subsession.close)
        boxes: dict[int, Tun] = {}
        for one in box_ports(config):
            if one.box.kind == "namespace" and one.left is not None:
                for port, device in ((one.left, one.box.left), (one.left + 1, one.box.right)):
                    boxes[port] = run_in(one.box.namespace, partial(Tun, device, offload=session.has_offload))
                    undo.callback(boxes[port].close)
        carried = _join(config, steering) if in_kernel else {}
        steering.configure(_steering_config(config, underlay))
        undo.pop_all()
    return KernelSide(
        underlay,
        changes,
        steering,
        transaction,
        session,
        subsession,
        boxes,
        carried,
        refused,
        in_kernel,
        kernel_refused,
        frozenset(left),
    )


def _left(config: HostConfig, transaction: Transaction, underlay: Underlay) -> list[bytes]:
    """The addresses that our device keeps for sockets, but those that this host has come back to."""
    kept = [one for one in transaction.made() if isinstance(one, KeepAddress)]
    found = (ipaddress.ip_address(one.address).packed for one in kept if one.device == config.tun.session)
    return [one for one in dict.fromkeys(found) if one not in underlay.addresses]


def _join(config: HostConfig, steering: Steering) -> dict[int, BoxDevice]:
    """Have the programs carry packets into boxes in namespaces and out of them; by port, the devices there."""
    found: dict[int, BoxDevice] = {}
    for number, box in enumerate(namespace_boxes(config)):
        veth = veth_name(number)
        here = socket.if_nametoindex(veth)
        for port, device in enumerate((box.left, box.right), box.port):
            found[port] = BoxDevice(run_in(box.netns, socket.if_nametoindex, device), here)
            steering.join(port, run_in(box.netns, socket.if_nametoindex, veth))
    return found


def choose(mode: str) -> tuple[bool, str]:
    """Whether programs in the kernel rewrite packets, and if they might but do not, why."""
    if mode == "tun":
        return False, 'dataplane.mode is "tun"'
    fault = fault_since_boot(TRIAL)
    if fault is not None and mode == "ebpf":
        raise HostError(f"dataplane.mode: {fault}; set it to auto or tun")
    return fault is None, fault or ""


def _open(names: Sequence[str], offload: bool | str) -> tuple[Tun, Tun, str]:
    """Open both devices alike; `auto` falls back to plain packets if the kernel refuses or damages larger ones."""
    refused = ""
    if offload == "auto":
        refused = believed(TRIAL, "offload", offload_fault) or ""
    if offload is not False and not refused:
        try:
            return Tun(names[0], offload=True), Tun(names[1], offload=True), ""
        except HostError as error:
            if offload is True:
                raise
            refused = str(error)
    return Tun(names[0], offload=False), Tun(names[1], offload=False), refused


def _steering_config(config: HostConfig, underlay: Underlay) -> SteeringConfig:
    with IPRoute() as ip:
        session, subsession = (
            int(ip.link_lookup(ifname=name)[0]) for name in (config.tun.session, config.tun.underlay)
        )
    return SteeringConfig(
        session_ifindex=session,
        underlay_ifindex=subsession,
        device_ifindex=underlay.ifindex,
        device_mac=underlay.mac,
        port_range=config.agent.port_range,
        addresses=underlay.addresses,
        capture_all_syn=any(
            box.kind == "kernel" and "fingerprint" in box.matching and "tag" not in box.matching
            for box in config.box
        ),
    )


def _addresses(ip: Any, devices: Sequence[Any]) -> tuple[bytes, ...]:
    """The global addresses of devices: one of each family, IPv4 first."""

    found: dict[int, bytes] = {}
    for device in devices:
        for entry in ip.get_addr(index=device["index"]):
            if entry["scope"] == 0:
                address = ipaddress.ip_address(entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS"))
                found.setdefault(address.version, address.packed)
    return tuple(found[version] for version in sorted(found))
