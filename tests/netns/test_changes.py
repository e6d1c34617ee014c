"""Chains of live sessions are changed on real kernels: what arrives is compared by SHA-256, wires are watched."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
from collections.abc import Iterator

import pytest

import dysco
from dysco.chains import Step
from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, both_modes, lab_text, put_file, sessions, until, url

FAMILIES = pytest.mark.parametrize("family", [4, 6])

# A connection tracker that takes nothing it has not seen begin, and no packet out of its windows.
FIREWALL = """
[[host]]
name = "NAME"
setup = [["nft", "-f", "firewall.nft"], ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=0"],
         ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0"]]
[host.config]
box = [{ name = "firewall", kind = "kernel" }]
[host.files]
"firewall.nft" = '''
table inet firewall {
    counter fresh {}
    counter passed {}
    counter invalid {}
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid counter name invalid drop
        ct state established,related counter name passed accept
        iifname "dysco0" tcp dport 80 tcp flags & (syn | ack) == syn ct state new counter name fresh accept
    }
}
'''
"""


def firewall(name: str) -> str:
    """A host with a strict stateful firewall."""
    return FIREWALL.replace("NAME", name)


@contextlib.contextmanager
def download(lab: Lab, family: int, rate: str = "8M") -> Iterator[subprocess.Popen[bytes]]:
    """Begin a download of `file` from d to a, and wait until it is under way."""
    arrived = lab.directory / "a" / "arrived"
    arrived.unlink(missing_ok=True)
    argv = ["curl", "-sS", "-f", "--limit-rate", rate, "-o", str(arrived), url(lab, family)]
    process = subprocess.Popen(lab.command("a", argv))
    try:
        until("nothing arrives", lambda: arrived.exists() and arrived.stat().st_size > MEGABYTE)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def finish(lab: Lab, process: subprocess.Popen[bytes]) -> str:
    """Wait for a download; returns the SHA-256 of what arrived."""
    assert process.wait(30) == 0
    return hashlib.sha256((lab.directory / "a" / "arrived").read_bytes()).hexdigest()


def change(
    lab: Lab, node: str, kind: str, *args: str, session: str = "dst port 80", **terms: object
) -> list[Step]:
    """Ask the agent of a node for a change; returns the steps."""

    async def run() -> list[Step]:
        async with dysco.connect(lab.socket(node)) as agent:
            handle = agent.session(session)
            return [one async for one in getattr(handle, kind)(*args, **terms)]

    return asyncio.run(run())


@both_modes
@FAMILIES
def test_a_firewall_is_removed_during_a_download(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("remove", firewall("b"), hops='["b"]'))
    lab.up()
    wanted = put_file(lab, 20 * MEGABYTE)
    with download(lab, family) as process:
        steps = change(lab, "a", "remove", "b")
        assert steps[0].before == ("a", "b/firewall", "d")
        assert steps[0].after == ("a", "d")
        assert [one.phase for one in steps[1:]] == [
            "requested", "locked", "new path up", "two paths", "drained", "done", "done",
        ]  # fmt: skip
        until("the firewall's host has left", lambda: sessions(lab, "b") == [])
        assert finish(lab, process) == wanted
