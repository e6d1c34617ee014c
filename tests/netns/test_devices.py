"""Hosts with several underlay devices, devices on top of others, and ways that are not the same there and back.

a ------ r1 ------ b        also r1 - r2
         |         :
         d ....... r2       dots: VLAN devices (macvlan where the kernel has no 802.1Q)
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest

from dysco.dataplane import tcx
from dysco.dataplane.fast import TO_AGENT, TO_BOX, TO_STACK, pack
from dysco.dataplane.steer import IN, Steering, SteeringConfig
from dysco.dataplane.tun import Tun
from dysco.host import run_in
from dysco.lab import Lab
from dysco.protocol.flow import FORWARD, UNDERLAY, Flow
from dysco.wire.packet import ACK, build_tcp
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, ask, both_modes, fetch, lab_text, nft_counter, put_file, sessions, until, url
from netns.worlds import Space, run

ETH_P_ALL: Final = 3  # linux/if_ether.h

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
        passes_the_box(lab, family, wanted)
    assert packets(lab, "d", "eth0", "rx") > there + 4, "what goes to d does not come by the stacked device"
    assert packets(lab, "d", "eth1", "tx") > back + 4, "what d answers does not leave by the other device"
    until("a session does not end", lambda: all(one["state"] == "time-wait" for one in sessions(lab, "b")))
    steering = ask(lab, "b", "status")["steering"]
    assert (steering["rewritten"] > 4 * 3 * MEGABYTE / 65536) == (mode == "ebpf")
    assert steering["no_route"] == 0
    if mode == "ebpf":
        assert steering["captured_out"] + steering["captured_in"] < 60


def passes_the_box(lab: Lab, family: int, wanted: str) -> None:
    """A download arrives whole, and its box has seen it begin; a SYN that is repeated counts again."""
    before = nft_counter(lab, "b", "box", "web")
    assert fetch(lab, url(lab, family)) == wanted
    assert nft_counter(lab, "b", "box", "web") > before


def knows_vlan(lab: Lab) -> bool:
    """Whether this kernel has VLAN devices."""
    made = lab.exec(
        "a", ["ip", "link", "add", "link", "eth0", "name", "v7", "type", "vlan", "id", "7"], check=False
    )
    lab.exec("a", ["ip", "link", "delete", "v7"], check=False)
    return made.returncode == 0


def stack(lab: Lab, node: str, device: str, kind: str) -> None:
    """Put a device on top of a device, with its name, addresses and routes."""
    with instead(lab, node, device):
        lab.exec(node, ["ip", "link", "set", "dev", f"raw{device}", "arp", "off", "up"])
        lab.exec(node, ["ip", "link", "add", "link", f"raw{device}", "name", device, "type", *kind.split()])


@contextlib.contextmanager
def instead(lab: Lab, node: str, device: str) -> Iterator[None]:
    """Call a device raw... while the block makes another one with its name, and give that its addresses and routes."""
    [link] = json.loads(lab.exec(node, ["ip", "-j", "address", "show", "dev", device]).stdout)
    commands = [f"link set dev {device} up"]
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
    away = [
        f"address flush dev {device}",
        f"link set dev {device} down",
        f"link set dev {device} name raw{device}",
    ]
    lab.exec(node, ["ip", "-batch", "-"], input="\n".join(away))
    yield
    lab.exec(node, ["ip", "-batch", "-"], input="\n".join(commands))


@both_modes
def test_devices_without_ethernet_and_with_it_on_one_host(make_lab: MakeLab, mode: str) -> None:
    """As tunnels are that a program of the user carries on; here one that only copies packets."""
    lab = make_lab(lab_text("tunnels", BETWEEN, hops='["b"]'))
    lab.up(agents=False)
    with contextlib.ExitStack() as undo:
        ways: dict[int, int] = {}
        for ends in ((("a", "eth0"), ("r1", "a")), (("b", "eth0"), ("r1", "b"))):
            pair = []
            for node, device in ends:
                with instead(lab, node, device):
                    tun = run_in(lab.netns(node), partial(Tun, device, offload=True))
                    undo.callback(tun.close)
                    pair.append(tun.fd)
            ways |= {pair[0]: pair[1], pair[1]: pair[0]}
        undo.enter_context(copying(ways))
        for node in "abd":
            lab.start_agent(node)
        lab.wait_for_agents()
        wanted = put_file(lab, 3 * MEGABYTE)
        for family in (4, 6):
            passes_the_box(lab, family, wanted)
        until(
            "a session does not end", lambda: all(one["state"] == "time-wait" for one in sessions(lab, "b"))
        )
        for node in "ab":
            steering = ask(lab, node, "status")["steering"]
            assert (steering["rewritten"] > 2 * 3 * MEGABYTE / 65536) == (mode == "ebpf")
            assert steering["no_route"] == 0
            if mode == "ebpf":
                assert steering["captured_out"] + steering["captured_in"] < 60


@contextlib.contextmanager
def copying(ways: dict[int, int]) -> Iterator[None]:
    """Copy what is read from each descriptor to another one, as long as the block lasts."""
    end, ended = os.pipe()

    def run() -> None:
        while end not in (ready := select.select([*ways, end], [], [])[0]):
            for one in ready:
                with contextlib.suppress(OSError):  # it is down, or full: as lost on the way
                    os.write(ways[one], os.read(one, 1 << 17))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        os.close(ended)
        thread.join()
        os.close(end)


@pytest.mark.parametrize("action", [TO_AGENT, TO_STACK, TO_BOX])
def test_a_tagged_packet_belongs_to_the_vlan_device(spaces: list[Space], action: int) -> None:
    """Not to the device below, which is another network, perhaps with the same addresses.

    A tag whose number is zero says only how urgent a packet is: it changes nothing, and goes no further.
    """
    match = FiveTuple.parse("10.1.1.2:61000 > 10.1.1.1:61001")
    flow = Flow(UNDERLAY, match, FORWARD, FiveTuple.parse("10.1.1.9:4000 > 10.1.1.1:80"))
    sent = {
        tag: build_tcp(match, 1, 1, ACK, 1000, b"", tag or b"none")
        for tag in (b"\x81\x00\x00\x07", b"\x88\xa8\x00\x00\x81\x00\x00\x07", b"\x81\x00\xe0\x00", b"")
    }
    expected = [packet.copy() for packet in list(sent.values())[2:]]
    for packet in expected:
        if action != TO_AGENT:
            apply(packet, flow)

    def work() -> list[bytes]:
        with (
            contextlib.closing(Steering.make(64)) as steering,
            contextlib.closing(Tun("tun9", offload=False)) as tun,
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as peer,
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as stack,
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as tap,
        ):
            run(["ip", "link", "set", "tun9", "up"])
            tap.bind(("eth0", 0))
            mac = tap.getsockname()[4]
            tap.bind(("tun9", ETH_P_ALL))
            peer.bind(("eth1", 0))
            index, there = socket.if_nametoindex("eth0"), socket.if_nametoindex("tun9")
            steering.configure(SteeringConfig(there, there, index, mac, (61000, 65535), (match.dst,)))
            if action != TO_AGENT:
                steering.add(match, IN, pack(flow, action))
            tcx.attach(index, "ingress", steering.programs()["ingress"](), None)
            for tag, packet in sent.items():
                peer.send(mac + bytes(6) + tag + b"\x08\x00" + packet.data)
            place = {TO_AGENT: tun.fd, TO_STACK: stack.fileno(), TO_BOX: tap.fileno()}[action]
            found: list[bytes] = []
            while len(found) < len(expected):
                assert select.select([place], [], [], 10)[0], found
                data = os.read(place, 2000)
                if data[0] == 0x45:  # and no word of IPv6 about itself
                    found.append(data)
            return found

    assert run_in(spaces[0].name, work) == [bytes(packet.data) for packet in expected]


def packets(lab: Lab, node: str, device: str, way: str) -> int:
    """How many packets a device has received (rx) or sent (tx)."""
    [link] = json.loads(lab.exec(node, ["ip", "-s", "-j", "link", "show", "dev", device]).stdout)
    return int(link["stats64"][way]["packets"])
