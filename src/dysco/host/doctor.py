"""Look at a machine: whether an agent can run here, how well, and what to do about it.

Knows what each part of the product needs of the kernel. Changes nothing: what has to be tried is tried in a
namespace of its own. A finding says what was seen and, unless all is well, what to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pyroute2 import IPRoute

from dysco.dataplane import tcx
from dysco.dataplane.selftest import offload_fault
from dysco.dataplane.trial import rewriting_fault, steering_fault
from dysco.errors import DyscoError
from dysco.host import pins
from dysco.host.probe import Arrival, syn_with_payload
from dysco.wire.tuples import show_address

Level = Literal["good", "note", "bad"]
OLDEST_KERNEL: Final = (5, 12)  # atomic operations in eBPF
LEAST_MTU: Final = 1280  # RFC 8200 section 5
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_BPF": 39}  # linux/capability.h
_CAP_SYS_ADMIN: Final = 21
# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL: Final = 0x8946
_FEATURES: Final = {"TSO": 0x1E, "GRO": 0x2B}
_IFF_UP: Final = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, in words, and what to do; remedy None: nothing."""

    subject: str
    level: Level
    text: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A peer to try: its name and one address (packed)."""

    name: str
    address: bytes


def machine() -> Iterator[Finding]:
    """What every agent needs of this machine, whatever its configuration."""
    yield _kernel()
    yield _tun()
    yield _capabilities()
    fault = offload_fault()
    if fault is None:
        yield Finding("offload", "good", "large packets and partial checksums pass a TUN device unharmed")
    else:
        yield Finding(
            "offload",
            "note",
            fault,
            'newer kernels may work; until then agents take tun.offload = false by "auto"',
        )
    yield _programs()


def pinning(run_directory: Path) -> Finding:
    """Whether what an agent has in the kernel can be pinned where it outlives the agent."""
    fault = pins.fault(pins.directory_of(run_directory))
    if fault is None:
        return Finding("bpffs", "good", "maps, programs and links can be pinned")
    remedy = (
        "agents work without, their programs attached without links; or mount a bpffs that lasts at "
        f"{pins.directory_of(run_directory)}"
    )
    return Finding("bpffs", "note", fault, remedy)


def devices(underlay: Sequence[str]) -> Iterator[Finding]:
    """The underlay devices: there, up, addressed, fast, and with one MTU."""
    with IPRoute() as ip:
        links: dict[str, Any] = {link.get_attr("IFLA_IFNAME"): link for link in ip.get_links()}
        addressed = {entry["index"] for entry in ip.get_addr() if entry["scope"] == 0}
    mtus = {}
    for name in underlay:
        link = links.get(name)
        if link is None:
            yield Finding(
                name, "bad", "there is no such device", f"agent.underlay: choose of {', '.join(links)}"
            )
            continue
        mtus[name] = int(link.get_attr("IFLA_MTU"))
        if not link["flags"] & _IFF_UP:
            yield Finding(name, "bad", "the device is down", f"ip link set {name} up")
        elif link["index"] not in addressed:
            remedy = f"ip address add ADDRESS/LENGTH dev {name}"
            yield Finding(name, "bad", "the device has no address that others can reach", remedy)
        else:
            yield Finding(name, "good", f"up, MTU {mtus[name]}")
        off = [feature for feature, command in _FEATURES.items() if _feature(name, command) is False]
        info = link.get_attr("IFLA_LINKINFO")
        if "GRO" in off and info is not None and info.get_attr("IFLA_INFO_KIND") == "veth":
            off.remove("GRO")  # packets come over as large as the other end has sent them
        if off:
            words = " and ".join(off)
            yield Finding(
                name, "note", f"{words} switched off: every packet is handled singly, up to ten times slower",
                f"ethtool -K {name} {' '.join(f'{feature.lower()} on' for feature in off)}",
            )  # fmt: skip
        if mtus[name] < LEAST_MTU:
            yield Finding(
                name,
                "bad",
                f"MTU {mtus[name]}: IPv6 needs {LEAST_MTU}",
                f"ip link set {name} mtu {LEAST_MTU}",
            )
    if len(set(mtus.values())) > 1:
        shown = ", ".join(f"{name} {mtu}" for name, mtu in mtus.items())
        yield Finding(
            "mtu", "note", f"{shown}: sessions are clamped to the smallest", "give all devices one MTU"
        )


def switches(*, kernel_box: bool, session_tun: str) -> Iterator[Finding]:
    """Sysctls and firewall chains that decide over what an agent hands to the kernel."""
    reverse = _sysctl("net/ipv4/conf/all/rp_filter")
    if reverse in (None, "0"):
        yield Finding("rp_filter", "good", "not set for all devices")
    elif kernel_box:
        yield Finding(
            "rp_filter", "good", f"{reverse} for all devices: the agent moves it to every device but its own"
        )
    else:
        yield Finding(
            "rp_filter", "good", f"{reverse} for all devices: in nobody's way without a kernel middlebox"
        )
    if kernel_box and _sysctl("net/ipv6/conf/all/forwarding") is not None:
        if _sysctl("net/ipv6/conf/all/force_forwarding") is not None:
            yield Finding("forwarding", "good", "IPv6 can be forwarded for single devices")
        else:
            yield Finding(
                "forwarding", "note", "this kernel (before 6.17) forwards IPv6 for all devices or none: the agent sets "
                "net.ipv6.conf.all.forwarding, and router advertisements count no more",
                "net.ipv6.conf.DEVICE.accept_ra = 2 where a route is learnt from them",
            )  # fmt: skip
    if kernel_box:
        yield from _firewall(session_tun)


def peers(neighbours: Sequence[Neighbour], port: int) -> Iterator[Finding]:
    """Whether a chain's first packet, a SYN with payload, gets through to each peer; TCP port `port` is tried."""
    for one in neighbours:
        subject = f"{one.name} ({show_address(one.address)})"
        try:
            found = syn_with_payload(one.address, port)
        except DyscoError as error:
            yield Finding(subject, "note", str(error), "run dysco doctor as root, with a route to the peer")
            continue
        match found:
            case Arrival.WHOLE:
                yield Finding(subject, "good", found.value)
            case Arrival.STRIPPED | Arrival.DROPPED:
                remedy = "some firewall on the way allows no data in SYNs (as for TCP Fast Open): let it"
                yield Finding(subject, "bad", found.value, remedy)
            case Arrival.SERVED:
                yield Finding(subject, "note", found.value, f"leave TCP port {port} free there")
            case Arrival.SILENT:
                remedy = f"see that the host is up and that its firewall rejects, not drops, TCP port {port}"
                yield Finding(subject, "note", found.value, remedy)


def _programs() -> Finding:
    fault = steering_fault()
    if fault is not None:
        remedy = (
            "no mode works without: take a kernel with tcx (6.6 and later) or cls_bpf (modprobe cls_bpf), and let this "
            "process use bpf(2)"
        )
        return Finding("ebpf", "bad", fault, remedy)
    fault = rewriting_fault()
    if fault is not None:
        remedy = 'agents take dataplane.mode = "tun" by "auto", which costs throughput'
        return Finding("ebpf", "note", fault, remedy)
    way = "tcx" if tcx.is_here() else "cls_bpf"
    return Finding("ebpf", "good", f"programs load, attach by {way}, and rewrite a packet to oneself rightly")


def _kernel() -> Finding:
    release = platform.release()
    numbers = release.split("-")[0].split(".")
    with contextlib.suppress(ValueError):
        if (int(numbers[0]), int(numbers[1])) < OLDEST_KERNEL:
            return Finding(
                "kernel", "bad", f"Linux {release}", f"Linux {'.'.join(map(str, OLDEST_KERNEL))} is needed"
            )
    return Finding("kernel", "good", f"Linux {release}")


def _tun() -> Finding:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        remedy = "modprobe tun" if error.errno in (errno.ENOENT, errno.ENODEV) else "run as root"
        return Finding("tun", "bad", f"/dev/net/tun: {error.strerror}", remedy)
    return Finding("tun", "good", "/dev/net/tun can be opened")


def _capabilities() -> Finding:
    status = Path("/proc/self/status").read_text()
    have = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not have >> bit & 1]
    if have >> _CAP_SYS_ADMIN & 1 and "CAP_BPF" in missing:
        missing.remove("CAP_BPF")  # the older capability includes it
    if missing:
        remedy = "run as root, or give the service these capabilities"
        return Finding("capabilities", "bad", f"{', '.join(missing)} missing", remedy)
    return Finding("capabilities", "good", f"{', '.join(_CAPABILITIES)}")


def _feature(device: str, command: int) -> bool | None:
    """Whether a device has a feature of ethtool's switched on; None if it does not say."""
    value = ctypes.create_string_buffer(struct.pack("=II", command, 0), 8)
    request = struct.pack("16sP16x", device.encode(), ctypes.addressof(value))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
    except OSError:
        return None
    return bool(struct.unpack_from("=I", value, 4)[0])


def _sysctl(key: str) -> str | None:
    try:
        return (Path("/proc/sys") / key).read_text().strip()
    except OSError:
        return None


def _firewall(session_tun: str) -> Iterator[Finding]:
    """Chains of nftables (also those that iptables-nft has made) that drop what no rule accepts."""
    try:
        done = subprocess.run(["nft", "-j", "list", "chains"], capture_output=True, timeout=10, check=False)
    except FileNotFoundError:
        yield Finding(
            "nftables", "note", "nft is not there, so that no firewall was looked at", "install nftables"
        )
        return
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        yield Finding("nftables", "note", f"the rules cannot be read: {reason}", "run dysco doctor as root")
        return
    chains = [
        part["chain"] for part in json.loads(done.stdout or b"{}").get("nftables", ()) if "chain" in part
    ]
    dropping = [one for one in chains if one.get("hook") == "forward" and one.get("policy") == "drop"]
    for one in dropping:
        chain = f"{one['family']} {one['table']} {one['name']}"
        yield Finding(
            "nftables", "note",
            f"the chain {chain} drops what no rule accepts; sessions come to the "
            f"middlebox by {session_tun}, and it judges them as it judges all others",
            f"if they shall pass: nft add rule {chain} iifname {session_tun} accept",
        )  # fmt: skip
    if not dropping:
        yield Finding("nftables", "good", "no chain drops forwarded packets by default")
