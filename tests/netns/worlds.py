"""Namespaces for tests, and a full dump of what a namespace's kernel holds."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from dysco.dataplane import tcx
from dysco.dataplane.bpf import program_by_id, program_name
from dysco.host import run_in


@dataclass(frozen=True)
class Space:
    """A namespace for tests."""

    name: str


def run(argv: Sequence[str]) -> str:
    """Run a command to its end and give its output; what it says on failure is in the error."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def make(name: str) -> Space:
    """Make a namespace with eth0 (10.1.1.1) and its peer eth1, both up."""
    run(["ip", "netns", "add", name])
    run(["ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"])
    run(["ip", "-n", name, "addr", "add", "10.1.1.1/24", "dev", "eth0"])
    for device in ("lo", "eth0", "eth1"):
        run(["ip", "-n", name, "link", "set", device, "addrgenmode", "none"])
        run(["ip", "-n", name, "link", "set", device, "up"])
    return Space(name)


def delete(space: Space) -> None:
    """Delete the namespace."""
    run(["ip", "netns", "delete", space.name])


def _sysctls() -> list[str]:
    lines = []
    for directory, _, names in os.walk("/proc/sys/net"):
        for name in names:
            path = f"{directory}/{name}"
            try:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    lines.append(f"{path} = {os.read(descriptor, 4096).decode().strip()}")
                finally:
                    os.close(descriptor)
            except OSError as error:
                lines.append(f"{path}: {error.strerror}")
    return sorted(lines)


def dump(space: Space) -> list[str]:
    """Give links, addresses, rules, routes, nftables, queues, classifiers and sysctls, as lines."""
    named = ["-n", space.name]
    common = ["address", "rule", "route show table all"]
    places = [f"filter show dev {d} {side}" for d in ("eth0", "eth1") for side in ("ingress", "egress")]
    return [
        *_batch(["ip", *named, "-d", "-4"], ["link", *common]),
        *_batch(["ip", *named, "-6"], common),
        *_batch(["tc", *named, "-force"], ["qdisc", *places]),
        *run_in(space.name, run, ["nft", "list", "ruleset"]).splitlines(),
        *run_in(space.name, attached),
        *run_in(space.name, _sysctls),
    ]


def attached() -> list[str]:
    """Give the programs that hang on devices of the thread's namespace themselves, as lines."""
    directions: tuple[tcx.Direction, ...] = ("ingress", "egress")
    lines = []
    for index, device in socket.if_nameindex():
        for direction in directions:
            for number in tcx.attached(index, direction):
                descriptor = program_by_id(number)
                lines.append(f"{device} {direction} {program_name(descriptor)}")
                os.close(descriptor)
    return lines


def _batch(argv: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Run commands of ip or tc in one process; a device without clsact has no list of filters."""
    done = subprocess.run(
        [*argv, "-batch", "-"],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.stdout.splitlines()
