"""Hosts with several underlay devices, devices on top of others, and ways that are not the same there and back.

a ------ r1 ------ b        also r1 - r2
         |         :
         d ....... r2       dots: VLAN devices (macvlan where the kernel has no 802.1Q)
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

from dysco.dataplane import tcx
from dysco.dataplane.steer import Steering, SteeringConfig
from dysco.host import run_in
from dysco.lab import Lab
from dysco.wire.packet import ACK, build_tcp
from dysco.wire.tuples import FiveTuple
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, ask, both_modes, fetch, lab_text, nft_counter, put_file, sessions, until, url
from netns.worlds import Space

BETWEEN = """
[[host]]
name = "b"
setup = [["nft", "add table inet box; add counter inet box web; add chain inet box f { type filter hook forward\
 priority 0; }; add rule inet box f iifname dysco0 tcp dport 80 tcp flags syn / syn,ack counter name web"]]
[host.config]
box = [{ name = "box", kind = "kernel" }]
[[router]]
name = "r1"
[[router]]
name = "r2"
[[link]]
between = ["a", "r1"]
[[link]]
between = ["b", "r1"]
[[link]]
between = ["b", "r2"]
[[link]]
between = ["d", "r2"]
[[link]]
between = ["d", "r1"]
[[link]]
between = ["r1", "r2"]
"""
STACKED = (("b", "eth1"), ("r2", "b"), ("r2", "d"), ("d", "eth0"))


@both_modes
def test_several_devices_on_one_host(make_lab: MakeLab, mode: str) -> None:
    lab = make_lab(lab_text("devices", BETWEEN, hops='["b"]'))
    lab.up(agents=False)
    kind = "vlan id 7" if knows_vlan(lab) else "macvlan mode bridge"
    for node, device in STACKED:
        stack(lab, node, device, kind)
    for node in "abd":
        lab.start_agent(node)
    lab.wait_for_agents()
    wanted = put_file(lab, 3 * MEGABYTE)
    there, back = packets(lab, "d", "eth0", "rx"), packets(lab, "d", "eth1", "tx")
    for family in (4, 6):
        assert fetch(lab, url(lab, family)) == wanted
    assert nft_counter(lab, "b", "box", "web") == 2
    assert packets(lab, "d", "eth0", "rx") > there + 4, "what goes to d does not come by the stacked device"
    assert packets(lab, "d", "eth1", "tx") > back + 4, "what d answers does not leave by the other device"
    until("a session does not end", lambda: all(one["state"] == "time-wait" for one in sessions(lab, "b")))
    steering = ask(lab, "b", "status")["steering"]
    assert (steering["rewritten"] > 4 * 3 * MEGABYTE / 65536) == (mode == "ebpf")
    assert steering["no_route"] == 0
    if mode == "ebpf":
        assert steering["captured_out"] + steering["captured_in"] < 60


def knows_vlan(lab: Lab) -> bool:
    """Whether this kernel has VLAN devices."""
    made = lab.exec(
        "a", ["ip", "link", "add", "link", "eth0", "name", "v7", "type", "vlan", "id", "7"], check=False
    )
    lab.exec("a", ["ip", "link", "delete", "v7"], check=False)
    return made.returncode == 0


def stack(lab: Lab, node: str, device: str, kind: str) -> None:
    """Put a device on top of a device, with its name, addresses and routes."""
    [link] = json.loads(lab.exec(node, ["ip", "-j", "address", "show", "dev", device]).stdout)
    commands = [
        f"address flush dev {device}",
        f"link set dev {device} down",
        f"link set dev {device} name raw{device}",
        f"link set dev raw{device} arp off up",
        f"link add link raw{device} name {device} type {kind}",
        f"link set dev {device} up",
    ]
    commands += [
        f"address add {one['local']}/{one['prefixlen']} dev {device}{' nodad' * (one['family'] == 'inet6')}"
        for one in link["addr_info"]
        if one["scope"] == "global"
    ]
    for family in ("-4", "-6"):
        listed = lab.exec(node, ["ip", "-j", family, "route", "show", "dev", device]).stdout
        commands += [
            f"route add {route['dst']} via {route['gateway']} dev {device}"
            for route in json.loads(listed or "[]")
            if "gateway" in route
        ]
    lab.exec(node, ["ip", "-batch", "-"], input="\n".join(commands))


def test_a_tagged_packet_belongs_to_the_vlan_device(spaces: list[Space]) -> None:
    """Not to the device below, which is another network, perhaps with the same addresses."""
    match = FiveTuple.parse("10.1.1.2:61000 > 10.1.1.1:61001")
    packet = build_tcp(match, 1, 1, ACK, 1000, b"", b"payload").data

    def work() -> list[int]:
        steering = Steering.make(64)
        index = socket.if_nametoindex("eth0")
        mac = bytes.fromhex(Path("/sys/class/net/eth0/address").read_text().replace(":", ""))
        steering.configure(SteeringConfig(index, index, index, mac, (61000, 65535), (match.dst,)))
        tcx.attach(index, "ingress", steering.programs()["ingress"](), None)
        found = []
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as peer:
            peer.bind(("eth1", 0))
            for tag in (b"\x81\x00\x00\x07", b""):
                peer.send(mac + bytes(6) + tag + b"\x08\x00" + packet)
                found.append(steering.counters()["captured_in"])
        steering.close()
        return found

    assert run_in(spaces[0].name, work) == [0, 1]


def packets(lab: Lab, node: str, device: str, way: str) -> int:
    """How many packets a device has received (rx) or sent (tx)."""
    [link] = json.loads(lab.exec(node, ["ip", "-s", "-j", "link", "show", "dev", device]).stdout)
    return int(link["stats64"][way]["packets"])
