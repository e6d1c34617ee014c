"""Find out whether this kernel segments offload packets rightly, before traffic depends on it.

Knows TUN devices and a network namespace of its own, which lives as long as the test: nothing of the host is touched.
Some kernels (6.6.44 and its neighbours) dropped or damaged what a TUN device hands over with a virtio-net header. One
large packet of each family is written to `in`; the kernel forwards it to `whole`, which takes offload packets, and to
`parts`, for which it has to cut it and to complete the checksums. Payload and checksums must be right in both.

    in (offload) ---[ forwarding in an empty namespace ]---> whole (offload), parts (plain)
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dysco.dataplane.tun import Tun
from dysco.errors import DyscoError
from dysco.wire import vnet
from dysco.wire.packet import ACK, PSH, Packet, build_tcp, fix_checksums, locate, verify
from dysco.wire.tuples import FiveTuple

WAIT_S: Final = 1.0  # the longest pause between two packets; what is forwarded is there at once
SEGMENT: Final = 1400  # bytes of payload of one segment
PAYLOAD: Final = 20_001  # odd, and no multiple of the segment
MTU: Final = 1500
_CLONE_NEWNET: Final = 0x40000000  # sched.h
# Documentation prefixes (RFC 5737, RFC 3849): the namespace is closed to all others.
_NETS: Final = {
    "in": ("192.0.2.0/24", "2001:db8:1::/64"),
    "whole": ("198.51.100.0/24", "2001:db8:2::/64"),
    "parts": ("203.0.113.0/24", "2001:db8:3::/64"),
}
_SWITCHES: Final = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")


def offload_fault() -> str | None:
    """Say what is wrong with offload on this kernel; takes a few hundredths of a second.

    None if it works, and also if it cannot be tried: that needs CAP_SYS_ADMIN, and devices that the kernel gives.
    """
    answer: list[str | None] = []
    with contextlib.suppress(DyscoError, NetlinkError, OSError):
        in_own_namespace(lambda: answer.append(_offload_here()))
    return answer[0] if answer else None


def in_own_namespace(body: Callable[[], None]) -> None:
    """Run a function in a network namespace that ends with it; raises what it raises, OSError without the right to."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            body()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="dysco-selftest")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def switch_forwarding_on() -> tuple[int, ...]:
    """Let this namespace forward packets; give the families that the kernel has."""
    families = [4]
    Path("/proc/sys/net", _SWITCHES[0]).write_text("1\n")
    with contextlib.suppress(OSError):  # a kernel without IPv6
        Path("/proc/sys/net", _SWITCHES[1]).write_text("1\n")
        families.append(6)
    return tuple(families)


def _offload_here() -> str | None:
    families = switch_forwarding_on()
    with contextlib.ExitStack() as stack:
        tuns = {name: Tun(name, offload=name != "parts") for name in _NETS}
        for tun in tuns.values():
            stack.callback(tun.close)
        with IPRoute() as ip:
            for name, nets in _NETS.items():
                index = ip.link_lookup(ifname=name)[0]
                ip.link("set", index=index, mtu=MTU, state="up")
                for net in (ipaddress.ip_network(nets[family == 6]) for family in families):
                    ip.addr("add", index=index, address=str(net[1]), prefixlen=net.prefixlen)
        for family in families:
            for name in ("whole", "parts"):
                fault = _one_way(tuns["in"], tuns[name], family)
                if fault is not None:
                    return f"an offload packet for IPv{family} {fault}"
    return None


def _one_way(source: Tun, target: Tun, family: int) -> str | None:
    """Send one packet; say what is wrong with what arrives."""
    src, dst = (ipaddress.ip_network(_NETS[tun.name][family == 6])[2].packed for tun in (source, target))
    session = FiveTuple.of(src, 40000, dst, 80)
    payload = bytes(number % 251 for number in range(PAYLOAD))
    packet = build_tcp(session, 1, 1, ACK | PSH, 1000, payload=payload)
    packet.partial, packet.gso_size = True, SEGMENT
    at = locate(packet)
    assert at is not None
    fix_checksums(packet, at)
    try:
        os.writev(source.fd, (vnet.pack(packet), packet.data))
    except OSError as error:
        return f"is refused: {error.strerror}"
    received = bytearray(PAYLOAD)
    missing = PAYLOAD
    for got in arriving(target):
        at = locate(got)
        if at is None or at.five_tuple != session:
            continue
        if not verify(got):
            return "arrives with a wrong checksum"
        if not target.has_offload and at.payload_len > SEGMENT:
            return "arrives uncut"
        received[at.seq - 1 : at.seq - 1 + at.payload_len] = got.data[at.payload_offset : at.total_len]
        missing -= at.payload_len
        if missing <= 0:
            return None if received == payload else "arrives with other bytes"
    return f"arrives with {missing} of {PAYLOAD} bytes missing"


def arriving(tun: Tun) -> Iterator[Packet]:
    """Packets of a device, until none comes for a while."""
    while select.select([tun.fd], [], [], WAIT_S)[0]:
        frame = os.read(tun.fd, 1 << 17)
        yield vnet.unpack(frame if tun.has_offload else vnet.NO_HEADER + frame)
