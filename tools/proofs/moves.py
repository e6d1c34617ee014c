"""Proofs that hosts of live sessions move: the client's and the middlebox's, to another device and several addresses.

    a, b ── eth0 ── router        a and b get a second device each, eth9, and go to an address there, and to the next
         └─ eth9 ──┘

After a move nothing of the moved sessions comes from the old address or goes there (tcpdump).
"""

from __future__ import annotations

import asyncio
import subprocess
from typing import Final

import dysco
from proofs import shell
from proofs.acts import FINE, many, one_sided
from proofs.world import SERVE, SSH, WEB, Disproved, Download, World, until

MOVERS: Final = ("a", "b")
_DEVICE: Final = "eth9"
_MOST: Final = 6  # moves of one host: its agent keeps the addresses that it leaves, sixteen in all
_NETS: Final = {4: "10.77.{}.{}/24", 6: "fd77:0:0:{}::{:x}/64"}
_ROUTER: Final = 1


def move(world: World, size: int) -> str:
    """Both hosts move in the middle of a download, of many short ones, of an idle session, of sessions one way."""
    _second_devices(world)
    _download(world, size)
    _crowd(world, min(200, size // 100_000))
    _idle(world)
    _one_way(world)
    return f"a and b, {len(world.times)} sessions moved"


def _download(world: World, size: int) -> None:
    server = world.script("d", "serve", "serve", "listen", SERVE, "--least", size)
    try:
        world.listening("d", SERVE)
        curl = Download(world, world.url(SERVE, "file"))
        try:
            until("nothing arrives", lambda: curl.total > size // 10)
            for node in MOVERS:
                left = _next(world, node)
                have = curl.total
                with world.silence(left):
                    until("nothing arrives any more", lambda have=have: curl.total > have)  # type: ignore[misc]
            server.stop()
            sent = server.line()
            if (curl.sha256(), curl.total) != (sent["sha256"], sent["sent"]):
                raise Disproved(f"{curl.total} of {sent['sent']} bytes arrived, or others")
        finally:
            curl.kill()
    finally:
        server.kill()


def _crowd(world: World, size: int) -> None:
    with many(world, size, "slowly/") as (argv, check):
        for least in (1, size // 2):  # the others are being opened
            process = subprocess.Popen(world.lab.command("a", argv), stderr=subprocess.PIPE, text=True)
            try:
                until("no sessions", lambda: world.sessions(WEB) >= least)  # noqa: B023
                for node in MOVERS:
                    _next(world, node)
                if process.poll() is not None:
                    raise Disproved("all downloads were over before the hosts had moved")
                _, errors = process.communicate()
            finally:
                process.kill()
                process.wait()
            if process.returncode:
                raise Disproved(f"curl has ended with {process.returncode}: {errors}")
            check()


def _idle(world: World) -> None:
    shell.serve(world.lab, SSH)
    with shell.echo(world.lab, SSH, world.address("d")) as say:
        for node in MOVERS:
            say(f"before {node} moves")
            with world.silence(_next(world, node)):
                say(f"after {node} has moved")


def _one_way(world: World) -> None:
    for sender in ("d", "a"):
        with one_sided(world, sender) as end:
            for node in MOVERS:
                left = _next(world, node)
            with world.silence(left):
                end()


def _next(world: World, node: str) -> str:
    """Move a host to the next address of its second device; gives the address that it has left.

    Sessions of a crowd, also those of an act before, may end meanwhile. That the one in question has moved shows on the
    wire: nothing comes from the old address any more.
    """
    number = world.moved[node]
    left = _address(world, node, number + 1) if number else world.address(node)
    world.moved[node] += 1
    target = _address(world, node, number + 2)
    if not number:
        default = "default" if world.family == 4 else "::/0"
        # Routes to single networks would go on by the first device.
        for route in _routes(world, node):
            _ip("-n", world.lab.netns(node), f"-{world.family}", "route", "delete", *route)
        _ip(
            "-n", world.lab.netns(node), "route", "replace", default,
            "via", _address(world, node, _ROUTER), "dev", _DEVICE,
        )  # fmt: skip

    async def run() -> None:
        async with dysco.connect(world.lab.socket(node)) as agent:
            steps = [one async for one in agent.move(target)]
        world.note(steps)
        for one in steps:
            if one.is_failure and not any(why in one.reason for why in FINE):
                raise Disproved(f"{node} to {target}: {one.phase} by {one.by}: {one.reason}")
        world.failed.clear()

    asyncio.run(run())
    return left


def _second_devices(world: World) -> None:
    """Give both hosts another way to the router, which stays: they do not come back."""
    there = world.lab.netns("router")
    for node in MOVERS:
        world.moved[node] = 0
        name, end = world.lab.netns(node), f"new{node}"
        if not world.has_second:
            _ip("-n", name, "link", "add", _DEVICE, "type", "veth", "peer", "name", end, "netns", there)
        nodad = ["nodad"] if world.family == 6 else []
        _ip("-n", there, "address", "add", _network(world, node, _ROUTER), "dev", end, *nodad)
        for number in range(_MOST):
            _ip("-n", name, "address", "add", _network(world, node, number + 2), "dev", _DEVICE, *nodad)
        _ip("-n", name, "link", "set", _DEVICE, "up")
        _ip("-n", there, "link", "set", end, "up")
    world.has_second = True


def _network(world: World, node: str, number: int) -> str:
    return _NETS[world.family].format(MOVERS.index(node) + 1, number)


def _address(world: World, node: str, number: int) -> str:
    return _network(world, node, number).partition("/")[0]


def _routes(world: World, node: str) -> list[list[str]]:
    """A host's routes by a router."""
    argv = ["ip", "-n", world.lab.netns(node), f"-{world.family}", "route", "show"]
    found = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout
    return [line.split()[:5] for line in found.splitlines() if " via " in line]


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True, timeout=20)
