"""Hosts go to and fro between two addresses during a download: each move goes through, and each new session comes.

The device that a host leaves is down while it is away, as with a cable that is pulled; when it comes back it has the
address that it had. What arrives is compared by SHA-256.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, SlowClient, both_modes, fetch, put_file, sessions, until, url
from netns.test_changes import FAMILIES, command_line
from netns.test_moves import lab_of_movers, new_device

TIMES = 3  # there, back, there
MANY = 20  # more than an agent knows of its own


@dataclass(frozen=True)
class Site:
    """A device of a host, with the address that it has there and the router behind it."""

    device: str
    address: str
    length: int
    router: str


def ip(lab: Lab, node: str, *argv: str) -> str:
    """Run ip(8) in the namespace of a node."""
    command = ["ip", "-n", lab.netns(node), *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def first_site(lab: Lab, node: str, family: int) -> Site:
    """Where a host of a lab is at first."""
    [route] = json.loads(ip(lab, node, f"-{family}", "-j", "route", "show", "default"))
    [address] = addresses(lab, node, family, route["dev"])
    return Site(route["dev"], address["local"], address["prefixlen"], route["gateway"])


def addresses(lab: Lab, node: str, family: int, device: str) -> list[dict[str, Any]]:
    """The addresses of a device that others can reach."""
    shown = ip(lab, node, f"-{family}", "-j", "address", "show", "dev", device, "scope", "global")
    return [one for link in json.loads(shown) for one in link.get("addr_info", ()) if one]


def second_site(lab: Lab, node: str, family: int) -> Site:
    """Where it can be, too. Its packets leave by the first device until it goes."""
    number, here = ord(node), first_site(lab, node, family)
    address = new_device(lab, node, number, family, gone=False)
    ip(lab, node, "route", "replace", _default(family), "via", here.router, "dev", here.device)
    length, router = (24, f"10.77.{number}.1") if family == 4 else (64, f"fd77:0:0:{number}::1")
    return Site("eth9", address, length, router)


def _default(family: int) -> str:
    return "default" if family == 4 else "::/0"


def go(lab: Lab, node: str, family: int, here: Site, there: Site) -> None:
    """Pull the cable of one device, and put in that of the other one."""
    nodad = ["nodad"] if family == 6 else []
    ip(lab, node, "link", "set", here.device, "down")
    ip(lab, node, "link", "set", there.device, "up")
    ip(lab, node, "address", "replace", f"{there.address}/{there.length}", "dev", there.device, *nodad)
    ip(lab, node, "route", "replace", _default(family), "via", there.router, "dev", there.device)


def move(lab: Lab, node: str, address: str) -> None:
    """Have the agent move; all its sessions that live have the address afterwards."""
    done = command_line(lab, node, "move", "--address", address)
    assert (done.returncode, done.stderr) == (0, "")
    live = [one for one in sessions(lab, node) if one["state"] == "established"]
    facings = [facing for one in live for facing in one["facings"] if facing["peer"] != "(this host)"]
    assert facings
    assert [one for one in facings if address not in one["subsession"]] == []


@both_modes
@FAMILIES
def test_hosts_go_to_and_fro(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_of_movers("fro"))
    lab.up()
    small = put_file(lab, MEGABYTE, "small")
    wanted = put_file(lab, 64 * MEGABYTE)
    sites = {node: (first_site(lab, node, family), second_site(lab, node, family)) for node in "ab"}
    with SlowClient(lab, family) as client:
        for _ in range(TIMES):
            for node, (here, there) in sites.items():
                go(lab, node, family, here, there)
                sites[node] = there, here
                move(lab, node, there.address)
                assert fetch(lab, url(lab, family, "small")) == small
        assert client.digest() == wanted


@both_modes
@FAMILIES
def test_a_session_that_has_ended_at_a_host_that_went_home_follows_its_end(
    make_lab: MakeLab, family: int
) -> None:
    """The last packets of a session have not come to the client, so only its own agent still takes it for alive."""
    lab = make_lab(lab_of_movers("home"))
    lab.up()
    small = put_file(lab, MEGABYTE, "small")
    wanted = put_file(lab, 64 * MEGABYTE)
    home, away = first_site(lab, "b", family), second_site(lab, "b", family)
    a_first, a_second = first_site(lab, "a", family), second_site(lab, "a", family)
    with SlowClient(lab, family) as client:
        go(lab, "b", family, home, away)
        move(lab, "b", away.address)
        drop_fins(lab, family, a_first.address, a_second.address)
        assert fetch(lab, url(lab, family, "small")) == small
        until("b has seen both ends close", lambda: "time-wait" in states(lab, "b"))
        assert states(lab, "a") == ["established", "half-closed"]
        go(lab, "b", family, away, home)
        move(lab, "b", home.address)
        go(lab, "a", family, a_first, a_second)
        move(lab, "a", a_second.address)
        assert client.digest() == wanted


def drop_fins(lab: Lab, family: int, *addresses: str) -> None:
    """Let the router lose each FIN for these addresses."""
    ip_ = "ip" if family == 4 else "ip6"
    rules = f"""
    table inet lossy {{
        chain forward {{
            type filter hook forward priority 0;
            {ip_} daddr {{ {", ".join(addresses)} }} tcp flags & fin == fin drop
        }}
    }}"""
    argv = lab.command("router", ["nft", "-f", "-"])
    subprocess.run(argv, input=rules, text=True, check=True, timeout=20)


def states(lab: Lab, node: str) -> list[str]:
    """The states of a host's sessions."""
    return sorted(one["state"] for one in sessions(lab, node))


@both_modes
@FAMILIES
def test_a_session_that_begins_right_after_a_move_waits_until_its_next_hop_knows(
    make_lab: MakeLab, family: int
) -> None:
    lab = make_lab(lab_of_movers("early"))
    lab.up()
    small = put_file(lab, MEGABYTE, "small")
    here, there = first_site(lab, "a", family), second_site(lab, "a", family)
    go(lab, "a", family, here, there)
    done = command_line(lab, "a", "move", "--address", there.address, "--no-wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert fetch(lab, url(lab, family, "small")) == small


def test_a_host_that_moves_on_and_on_forgets_where_it_was(make_lab: MakeLab) -> None:
    lab = make_lab(lab_of_movers("on"))
    lab.up()
    wanted = put_file(lab, 64 * MEGABYTE)
    here, there = first_site(lab, "b", 4), second_site(lab, "b", 4)
    with SlowClient(lab, 4) as client:
        go(lab, "b", 4, here, there)
        for number in range(MANY):
            address = there.address.removesuffix(".2") + f".{100 + number}"
            ip(lab, "b", "address", "add", f"{address}/24", "dev", "eth9")
            move(lab, "b", address)
        assert len(addresses(lab, "b", 4, "dysco0")) < MANY / 2
        assert client.digest() == wanted
