"""Hosts get another address on another device during a download, and the old one is gone: not a byte is lost.

The client and the middlebox host move; both at the same time, too. What arrives is compared by SHA-256.
"""

from __future__ import annotations

import subprocess

import pytest

from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, SlowClient, ask, fetch, lab_text, put_file, sessions, until, url
from netns.test_changes import command_line, firewall, seen, watch

ROAMING = '{ roaming = ["10.77.0.0/16", "fd77::/32"] }'


def lab_of_movers(name: str) -> str:
    """A client, a firewall and a server, each of which lets the others come from elsewhere."""
    text = lab_text(name, firewall("b"), hops='["b"]')
    text = text.replace("[[host.config.policy]]", f"[host.config]\nagent = {ROAMING}\n[[host.config.policy]]")
    text = text.replace("[host.config]\nbox", f"[host.config]\nagent = {ROAMING}\nbox")
    return text.replace(
        'name = "d"\nagent = true\n', f'name = "d"\nagent = true\nconfig = {{ agent = {ROAMING} }}\n'
    )


def new_device(lab: Lab, node: str, number: int, family: int, *, gone: bool) -> str:
    """Give a host a second device with an address of its own, and take the first one away; returns the address."""
    own, router = (
        (f"10.77.{number}.2/24", f"10.77.{number}.1/24")
        if family == 4
        else (f"fd77:0:0:{number}::2/64", f"fd77:0:0:{number}::1/64")
    )
    name, there = lab.netns(node), lab.netns("router")
    far = f"new{number}"
    default = "default" if family == 4 else "::/0"
    argv = [
        ["ip", "-n", name, "link", "add", "eth9", "type", "veth", "peer", "name", far, "netns", there],
        ["ip", "-n", name, "address", "add", own, "dev", "eth9", *(["nodad"] if family == 6 else [])],
        ["ip", "-n", there, "address", "add", router, "dev", far, *(["nodad"] if family == 6 else [])],
        ["ip", "-n", name, "link", "set", "eth9", "up"],
        ["ip", "-n", there, "link", "set", far, "up"],
        *([["ip", "-n", name, "link", "set", "eth0", "down"]] if gone else []),
        ["ip", "-n", name, "route", "replace", default, "via", router.partition("/")[0]],
    ]
    for one in argv:
        subprocess.run(one, check=True, capture_output=True, timeout=20)
    return own.partition("/")[0]


@pytest.mark.parametrize(
    ("mode", "family", "movers", "gone"),
    [
        ("ebpf", 4, "ab", True),
        ("tun", 6, "b", False),
    ],
    indirect=["mode"],
)
def test_a_host_moves_during_a_download(make_lab: MakeLab, family: int, movers: str, *, gone: bool) -> None:
    lab = make_lab(lab_of_movers("moves"))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 64 * MEGABYTE)
    with SlowClient(lab, family) as client:
        for number, node in enumerate(movers, 1):
            address = new_device(lab, node, number, family, gone=gone)
            done = command_line(lab, node, "move", "--address", address)
            assert (done.returncode, done.stderr) == (0, "")
            assert " == " in done.stdout
            [session] = sessions(lab, node)
            ends = [one["subsession"] for one in session["facings"] if one["peer"] != "(this host)"]
            assert all(address in one for one in ends)
        assert client.digest() == wanted
    assert seen(lab, "resets") == 0


@pytest.mark.parametrize(("mode", "family"), [("ebpf", 4), ("ebpf", 6)], indirect=["mode"])
def test_kernels_go_on_to_open_chains_when_all_hosts_have_moved(make_lab: MakeLab, family: int) -> None:
    """Policies name the middlebox by the address that it had at first, and it has forgotten that one by now."""
    lab = make_lab(lab_of_movers("openers"))
    lab.up()
    wanted = put_file(lab, 1000)
    for number, node in enumerate("abd", 1):
        for address in (
            new_device(lab, node, number, family, gone=False),
            next_address(lab, node, number, family),
        ):
            done = command_line(lab, node, "move", "--address", address)
            assert (done.returncode, done.stderr) == (0, "")

    def opened() -> list[int]:
        return [int(ask(lab, node, "status")["steering"]["syn_opened"]) for node in "abd"]

    def is_opened() -> bool:
        """The first may come while somebody does not know yet where the next one is; then agents open its chain."""
        before = opened()
        assert fetch(lab, url(lab, family)) == wanted
        return [after - now for after, now in zip(opened(), before, strict=True)] == [1, 2, 1]

    until("agents open all chains", is_opened)


def next_address(lab: Lab, node: str, number: int, family: int) -> str:
    """Give the second device of a host one more address."""
    address = f"10.77.{number}.3" if family == 4 else f"fd77:0:0:{number}::3"
    more = ["nodad"] if family == 6 else []
    argv = ["ip", "-n", lab.netns(node), "address", "add", f"{address}/{24 if family == 4 else 64}"]
    subprocess.run([*argv, "dev", "eth9", *more], check=True, capture_output=True, timeout=20)
    return address
