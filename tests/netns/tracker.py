"""A strict stateful firewall in a namespace of its own, with a wire on each side that tests hold in their hands.

    wire ns: left ---- eth0 | fw: nftables, default drop | eth1 ---- right :wire ns

Default drop, NEW only by SYN, INVALID dropped, be_liberal and loose off. The wires have no addresses: what arrives
there is read from a packet socket, so no kernel answers anything. A UDP packet sent behind each probe passes the
firewall always; whether the probe comes before it says whether the probe has passed, without a clock.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dysco.host import run_in
from dysco.wire.packet import build_tcp
from dysco.wire.tuples import FiveTuple
from netns.worlds import run

MACS: Final = {"left": "02:00:00:00:01:02", "right": "02:00:00:00:02:02"}
NEAR_MACS: Final = {"left": "02:00:00:00:01:01", "right": "02:00:00:00:02:01"}
NEAR: Final = {"left": ("10.50.1.1", "fd50:1::1"), "right": ("10.50.2.1", "fd50:2::1")}
FAR: Final = {"left": ("10.50.1.2", "fd50:1::2"), "right": ("10.50.2.2", "fd50:2::2")}
DEVICES: Final = {"left": "eth0", "right": "eth1"}
_ETHERTYPES: Final = {4: 0x0800, 6: 0x86DD}

STRICT_RULES: Final = """
table inet strict {
    counter refused { }
    chain forward {
        type filter hook forward priority filter; policy drop;
        meta l4proto udp accept
        ct state invalid counter name refused drop
        ct state established,related accept
        ct state new tcp flags & (fin | syn | rst | ack) == syn accept
        counter name refused
    }
}
"""


def harden(name: str) -> None:
    """Make a namespace a strict firewall."""

    def work() -> None:
        for key in ("tcp_be_liberal", "tcp_loose"):
            Path(f"/proc/sys/net/netfilter/nf_conntrack_{key}").write_text("0\n")
        for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path(f"/proc/sys/net/{family}").write_text("1\n")
        run(["nft", STRICT_RULES])

    run_in(name, work)


def refused(name: str) -> int:
    """Packets that the firewall in a namespace has not let pass."""
    said = json.loads(run_in(name, run, ["nft", "-j", "list", "counter", "inet", "strict", "refused"]))
    return int(next(part["counter"]["packets"] for part in said["nftables"] if "counter" in part))


@dataclass(frozen=True)
class Side:
    """One end of the wire."""

    socket: socket.socket
    frame: bytes  # how frames to the firewall begin: its address, ours


class Tracker:
    """The firewall with its two wires; `close` deletes all of it."""

    def __init__(self, name: str) -> None:
        self.firewall, self.wires = f"{name}-fw", f"{name}-w"
        for space in (self.firewall, self.wires):
            run(["ip", "netns", "add", space])
        self.sides = {side: self._side(side) for side in MACS}
        harden(self.firewall)
        self._marks = 0

    def _side(self, side: str) -> Side:
        ip = ["ip", "-n", self.firewall]
        device = DEVICES[side]
        run([*ip, "link", "add", device, "type", "veth", "peer", "name", side, "netns", self.wires])
        run([*ip, "link", "set", device, "address", NEAR_MACS[side], "addrgenmode", "none", "up"])
        run(["ip", "-n", self.wires, "link", "set", side, "address", MACS[side], "addrgenmode", "none", "up"])
        for near, far, bits in zip(NEAR[side], FAR[side], (24, 64), strict=True):
            run([*ip, "addr", "add", f"{near}/{bits}", "dev", device, *(["nodad"] if bits == 64 else [])])
            run([*ip, "neigh", "add", far, "lladdr", MACS[side], "dev", device, "nud", "permanent"])
        return Side(run_in(self.wires, _packet_socket, side), _mac(NEAR_MACS[side]) + _mac(MACS[side]))

    def close(self) -> None:
        """Delete the namespaces."""
        for side in self.sides.values():
            side.socket.close()
        for space in (self.firewall, self.wires):
            run(["ip", "netns", "delete", space])

    def passes(self, side: str, packet: bytes) -> bool:
        """Send an IP packet from a side; whether it comes out at the other side."""
        here = self.sides[side]
        there = self.sides["left" if side == "right" else "right"]
        family = packet[0] >> 4
        self._marks += 1
        mark = b"mark" + self._marks.to_bytes(8, "big")
        head = here.frame + _ETHERTYPES[family].to_bytes(2, "big")
        here.socket.send(head + packet)
        here.socket.send(head + _udp(packet, mark))
        seen = False
        while True:
            frame = there.socket.recv(65536)
            if frame.endswith(mark):
                return seen
            seen = seen or _same(frame[14:], packet)


def _same(one: bytes, other: bytes) -> bool:
    """Whether two IP packets carry the same TCP segment; a NAT may have changed ports and checksum."""
    start = 20 if other[0] >> 4 == 4 else 40
    return one[start + 4 : start + 16] == other[start + 4 : start + 16]


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _packet_socket(device: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    made.bind((device, 0))
    made.settimeout(10)
    return made


def _udp(packet: bytes, mark: bytes) -> bytes:
    """A UDP packet with addresses and ports of a TCP packet; without a checksum for IPv4, with one for IPv6."""
    length = 8 + len(mark)
    if packet[0] >> 4 == 4:
        head = bytearray(packet[:20])
        head[2:4], head[9], head[10:12] = (20 + length).to_bytes(2, "big"), 17, b"\0\0"
        head[10:12] = _checksum(head)
        return bytes(head) + packet[20:24] + length.to_bytes(2, "big") + b"\0\0" + mark
    head = bytearray(packet[:40])
    head[4:6], head[6] = length.to_bytes(2, "big"), 17
    udp = packet[40:44] + length.to_bytes(2, "big") + b"\0\0" + mark
    check = _checksum(bytes(head[8:40]) + length.to_bytes(4, "big") + b"\0\0\0\x11" + udp)
    return bytes(head) + udp[:6] + check + udp[8:]


def _checksum(data: bytes | bytearray) -> bytes:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


class Talk:
    """A session through a tracker, from left to right, by packets that a test makes."""

    def __init__(self, tracker: Tracker, family: int = 4, sport: int = 40000) -> None:
        self.tracker = tracker
        index = 0 if family == 4 else 1
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        left, right = (socket.inet_pton(kind, FAR[side][index]) for side in ("left", "right"))
        self.tuple = FiveTuple.of(left, sport, right, 80)
        self.behind: FiveTuple | None = None  # how it looks on the right, if the firewall changes it

    def __call__(
        self,
        side: str,
        seq: int,
        ack: int,
        flags: int,
        window: int = 0xFFFF,
        payload: int = 0,
        options: bytes = b"",
    ) -> bool:
        """Send one segment with `payload` bytes; whether it passes."""
        tuple_ = self.tuple if side == "left" else (self.behind or self.tuple).reversed()
        made = build_tcp(tuple_, seq % 2**32, ack % 2**32, flags, window, options, bytes(payload))
        return self.tracker.passes(side, bytes(made.data))
