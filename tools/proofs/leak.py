"""Ten thousand sessions open and close, and nothing of them is left in any agent or kernel. Needs root.

    a: clients ── router ── b: nftables ── router ── d: a server

Four programs open sessions one after the other, which end in each way that there is: either side closes first, either
side resets, nobody listens. A tenth as many go before, so that what is made once has been made. Afterwards no agent
has a session, an entry of its flow table or of the kernel's maps, or a pair of ports; no descriptor more
than before, and at most 3 MB more memory. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dysco
from dysco.errors import DyscoError
from dysco.lab import Lab
from proofs import labs
from proofs.world import HERE, Disproved, Program, listening, until

PORT: Final = 7000
PROGRAMS: Final = 4
MEMORY: Final = 3_000_000  # bytes that an agent may grow by: a leak of 300 bytes a session is more
NODES: Final = "abd"
TEXT: Final = """
[lab]
name = "leak"
mode = "{mode}"
[[host]]
name = "a"
[host.config]
timers = {{ time_wait = 0.5, quarantine = 0.5 }}
[[host.config.policy]]
name = "short"
match = "dst portrange 7000-7001"
hops = ["b"]
[[host]]
name = "b"
setup = [["nft", "add table inet fw; add chain inet fw f {{ type filter hook forward priority 0; policy drop; }};\
 add rule inet fw f ct state established,related accept; add rule inet fw f ct state new accept"]]
[host.config]
timers = {{ time_wait = 0.5, quarantine = 0.5 }}
box = [{{ name = "firewall", kind = "kernel" }}]
[[host]]
name = "d"
[host.config]
timers = {{ time_wait = 0.5, quarantine = 0.5 }}
"""
KERNEL: Final = """
from dysco.dataplane.steer import Steering
steering = Steering.open("dysco1")
assert steering.taken_over, "no programs are attached"
print(len(steering.entries()))
"""


@dataclass(frozen=True)
class Held:
    """What an agent and its kernel have: descriptors, resident bytes, and how much is counted of each kind."""

    descriptors: int
    memory: int
    left: dict[str, int]


def metrics(lab: Lab, node: str) -> str:
    """What the agent of a node says of itself."""

    async def ask() -> Any:
        async with dysco.connect(lab.socket(node)) as agent:
            return await agent.command("metrics")

    return str(asyncio.run(ask()))


def held(lab: Lab, node: str) -> Held:
    """Look at the agent of a node."""
    gauges = dict(line.split() for line in metrics(lab, node).splitlines() if line.count(" ") == 1)
    left = {name: int(gauges[f"dysco_{name}"]) for name in ("sessions", "flows", "ports")}
    left["entries of the kernel's maps"] = int(lab.exec(node, [sys.executable, "-c", KERNEL]).stdout)
    process = Path(f"/proc/{lab.agent_pid(node)}")
    resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Held(len(list((process / "fd").iterdir())), resident, left)


def churn(lab: Lab, family: int, number: int) -> Counter[str]:
    """Let so many sessions come and go; Disproved if one is not as it should be."""
    argv = [sys.executable, str(HERE / "churn.py"), "open", lab.address("d", family), str(PORT)]
    clients = [
        Program(lab.command("a", [*argv, str(number // PROGRAMS)]), lab.directory / "a")
        for _ in range(PROGRAMS)
    ]
    ended = Counter[str]()
    try:
        for client in clients:
            line = client.line()
            if line["wrong"]:
                raise Disproved(f"sessions went wrong: {line['wrong']}")
            ended.update(line["ended"])
    finally:
        for client in clients:
            client.kill()
    for node in NODES:
        until(f"{node} keeps sessions", lambda node=node: "\ndysco_sessions 0\n" in metrics(lab, node))  # type: ignore[misc]
    return ended


def drill(lab: Lab, family: int, number: int) -> str:
    """Compare what is held before and after; Disproved if anything has stayed."""
    server = Program(
        lab.command("d", [sys.executable, str(HERE / "churn.py"), "serve", str(PORT)]), lab.directory / "d"
    )
    try:
        listening(lab, "d", PORT)
        churn(lab, family, number // 10)
        before = {node: held(lab, node) for node in NODES}
        began = time.monotonic()
        ended = churn(lab, family, number)
        took_s = time.monotonic() - began
        after = {node: held(lab, node) for node in NODES}
    finally:
        server.kill()
    for node in NODES:
        if any(after[node].left.values()):
            raise Disproved(f"{node} has left: {after[node].left}")
        if after[node].descriptors > before[node].descriptors:
            raise Disproved(
                f"{node} has {after[node].descriptors - before[node].descriptors} descriptors more"
            )
        if after[node].memory - before[node].memory > MEMORY:
            raise Disproved(f"{node} has {after[node].memory - before[node].memory:,} bytes more")
    grown = ", ".join(f"{node} {(after[node].memory - before[node].memory) / 1024:+,.0f}" for node in NODES)
    return f"{sum(ended.values()):,} sessions in {took_s:.0f} s, nothing left; KiB more: {grown}"


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        prog="tools/prove leak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--mode", choices=("ebpf", "tun"), default="ebpf")
    parser.add_argument("--family", type=int, choices=(4, 6), default=4)
    parser.add_argument("--prefix", default=f"leak{os.getpid()}", help="of the names of namespaces")
    options = parser.parse_args()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="dysco-leak-") as directory,
            labs.up(TEXT.format(mode=options.mode), Path(directory), "leak", options.prefix) as lab,
        ):
            said = drill(lab, options.family, options.sessions)
    except (Disproved, DyscoError, OSError, subprocess.SubprocessError) as error:
        sys.stdout.write(f"FAILED: {error}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
