"""What the core is told is what the configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco import config
from dysco.policy import AllHealthy
from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST
from dysco.protocol.settings import Limits, Timers
from dysco.service.settings import box_ports, core_settings, decider
from dysco.wire.chain_header import Egress, Hop
from dysco.wire.tuples import FiveTuple

OWN = (b"\x0a\0\0\1",)
TEXT = """\
[agent]
name = "a"
port_range = [62000, 63000]
[keys]
certificate = "a.pem"
key = "a.key"
ca = "ca.pem"
[[peer]]
name = "fw"
addresses = ["10.0.0.2"]
next_hops = []
may_use = "dst port 80"
may_reconfigure = "dst port 22"
[[peer]]
name = "ids"
addresses = ["10.0.0.3", "2001:db8::3"]
accept = false
may_reconfigure = false
[[peer]]
name = "any"
addresses = ["10.0.0.4"]
[[box]]
name = "py"
kind = "packet"
mandatory = true
python = "m:C"
[[box]]
name = "nft"
kind = "kernel"
default = true
[[box]]
name = "nat"
kind = "namespace"
namespace = "n"
changes_tuple = true
[[box]]
name = "haproxy"
kind = "proxy"
[[policy]]
name = "web"
match = "dst port 80"
hops = ["fw", "ids/suricata"]
egress = "nat"
[[policy]]
name = "mail"
match = "dst port 25"
hops = ["fw"]
on_fail = "open"
[timers]
avoid = 5
[limits]
embryonic = 9
"""


@pytest.fixture
def host() -> config.HostConfig:
    loaded, findings = config.check_bytes(TEXT.encode(), "host.toml", Path("/etc/dysco"))
    assert loaded is not None, findings
    return loaded


def test_defaults_of_core_and_configuration_agree() -> None:
    loaded, _ = config.check_bytes(
        b'[agent]\nname = "a"\n[keys]\ncertificate = "c"\nkey = "k"\n', "host.toml", Path("/")
    )
    assert loaded is not None
    made = core_settings(loaded, OWN, 9000)
    assert made.timers == Timers()
    assert made.limits == Limits()
    assert made.addresses == OWN
    assert (made.mtu, made.control_port, made.port_range) == (9000, 2016, (61000, 65535))


def test_peers(host: config.HostConfig) -> None:
    fw, ids, anyone = core_settings(host, OWN, 1500).peers
    assert (fw.accept, fw.next_hops, fw.addresses) == (True, frozenset(), (b"\x0a\0\0\2",))
    assert fw.may_use(FiveTuple.parse("10.0.0.1:5 > 192.0.2.1:80"))
    assert not fw.may_use(FiveTuple.parse("10.0.0.1:5 > 192.0.2.1:81"))
    assert (ids.accept, ids.next_hops, len(ids.addresses)) == (False, None, 2)
    assert not ids.may_use(FiveTuple.parse("10.0.0.1:5 > 192.0.2.1:80"))
    web, shell = (FiveTuple.parse(f"10.0.0.1:5 > 192.0.2.1:{port}") for port in (80, 22))
    allowed = [[peer.may_change(one) for one in (web, shell)] for peer in (fw, ids, anyone)]
    assert allowed == [[False, True], [False, False], [True, True]]


def test_boxes(host: config.HostConfig) -> None:
    made = core_settings(host, OWN, 1500)
    assert [box.name for box in made.boxes] == [
        "nft",
        "py",
        "nat",
    ]  # a proxy ends sessions and is no box of the core
    ports = {box.name: (box.left_read, box.left_write, box.right_read, box.right_write) for box in made.boxes}
    assert ports == {
        "nft": (HOST, FORWARD, HOST, FORWARD),
        "py": (FIRST_BOX, FIRST_BOX, FIRST_BOX + 1, FIRST_BOX + 1),
        "nat": (FIRST_BOX + 2, FIRST_BOX + 2, FIRST_BOX + 3, FIRST_BOX + 3),
    }
    assert [(one.box.name, one.left) for one in box_ports(host)] == [
        ("nft", None),
        ("py", FIRST_BOX),
        ("nat", FIRST_BOX + 2),
    ]
    assert made.boxes[2].match == ("tag", "fingerprint")
    assert made.boxes[1].tag == config.box_tag("py")
    assert (made.timers.avoid, made.limits.embryonic, made.port_range) == (5.0, 9, (62000, 63000))


def test_decisions(host: config.HostConfig) -> None:
    decide = decider(config.policy_set(host), AllHealthy())
    web = decide(FiveTuple.parse("10.0.0.1:5 > 10.0.0.9:80"), 0.0)
    assert web is not None
    assert web.hops == (Hop(b"\x0a\0\0\2", 0), Hop(b"\x0a\0\0\3", config.box_tag("suricata")))
    assert (web.policy, web.egress, web.on_fail_open) == ("web", Egress.NAT, False)
    assert decide(FiveTuple.parse("10.0.0.1:5 > 10.0.0.9:22"), 0.0) is None


def test_a_chain_that_cannot_be_made_says_why(host: config.HostConfig) -> None:
    decide = decider(config.policy_set(host), AllHealthy())
    found = decide(FiveTuple.parse("[2001:db8::1]:5 > [2001:db8::9]:25"), 0.0)
    assert found is not None
    assert (found.hops, found.on_fail_open) == ((), True)
    assert found.failure == "'fw' has no IPv6 address"
