"""Paths whose MTU is smaller in the middle, with ICMP and without, and one that shrinks under a transfer."""

from __future__ import annotations

import signal

import pytest

from netns.conftest import MakeLab
from netns.labs import MEGABYTE, ask, both_modes, counters, fetch, lab_text, put_file, sessions, until, url
from netns.test_life import MORE_THAN_BUFFERS, download, finished

NARROW = """
[[host]]
name = "b"
[host.config]
box = [{ name = "relay", kind = "kernel" }]
[[router]]
name = "left"
[[router]]
name = "right"
[[link]]
between = ["a", "left"]
[[link]]
between = ["b", "left"]
[[link]]
between = ["left", "right"]
mtu = 1280
[[link]]
between = ["d", "right"]
"""
SILENT = (
    "add table inet quiet; add chain inet quiet f { type filter hook output priority 0; }; "
    "add rule inet quiet f icmp type destination-unreachable drop; "
    "add rule inet quiet f icmpv6 type packet-too-big drop"
)


@both_modes
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("icmp", [True, False])
def test_a_chain_crosses_a_narrow_link(make_lab: MakeLab, family: int, icmp: bool) -> None:
    lab = make_lab(lab_text("narrow", NARROW, hops='["b"]'))
    lab.up()
    if not icmp:
        for router in ("left", "right"):
            lab.exec(router, ["nft", SILENT])

    def probed() -> bool:
        return all(peer["mtu"] == 1280 for peer in ask(lab, "b", "peers") if peer["name"] == "d")

    until("the path MTU to d is not found", probed)
    wanted = put_file(lab, 3 * MEGABYTE)
    assert fetch(lab, url(lab, family), timeout_s=15) == wanted


@both_modes
@pytest.mark.parametrize("family", [4, 6])
def test_a_path_that_shrinks_under_a_transfer(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("shrinks", NARROW.replace("mtu = 1280", "mtu = 1500"), hops='["b"]'))
    lab.up()
    wanted = put_file(lab, MORE_THAN_BUFFERS)
    with download(lab, family, rate="15M") as process:
        # The window closes, so that something is left to be sent afterwards.
        process.send_signal(signal.SIGSTOP)
        assert sessions(lab, "b")
        for router in ("left", "right"):
            devices = lab.exec(router, ["ip", "-o", "link"]).stdout
            name = next(
                line.split()[1]
                for line in devices.splitlines()
                if "right" in line.split()[1] or "left" in line.split()[1]
            )
            lab.exec(router, ["ip", "link", "set", "dev", name.partition("@")[0].rstrip(":"), "mtu", "1280"])
        process.send_signal(signal.SIGCONT)
        assert finished(lab, process) == wanted
    assert counters(lab, "d").get("icmp_translated", 0) > 0
