"""A proxy with many live sessions is drained, restarted and undrained: none may be lost. Needs root.

    a: clients ── router ── b: HAProxy, mode tcp ── router ── d: servers

Sessions of five kinds go through HAProxy (downloads, uploads, idle ones, request and answer, half-closed ones). It is
drained while they live, ended as a service manager ends it, started anew and undrained; every session must come to its
ordinary end with the same bytes at both ends, and new ones must go through the new HAProxy. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dysco
from dysco.chains import Drained
from dysco.errors import DyscoError
from dysco.lab import Lab
from dysco.views import ProxyState
from proofs import labs
from proofs.world import HERE, Disproved, Program, listening, until

FRONT, BACK = 8080, 7000


class Proxy:
    """HAProxy in the foreground on b."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = labs.start_haproxy(self._lab)
        listening(self._lab, "b", FRONT)

    def end(self) -> None:
        """End it as a service manager does, and wait for that."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


def started(lab: Lab, node: str, name: str, *args: object) -> Program:
    """Start sessions.py on a node, in a directory of its own."""
    directory = lab.directory / node / name
    directory.mkdir(exist_ok=True)
    argv = lab.command(node, [sys.executable, str(HERE / "sessions.py"), *map(str, args)])
    return Program(argv, directory)


def drain(lab: Lab, timeout_s: float) -> Drained:
    """Drain the proxy; gives the last report."""

    async def run() -> Drained:
        async with dysco.connect(lab.socket("b")) as agent:
            return [one async for one in agent.drain_proxy("haproxy", timeout=timeout_s)][-1]

    return asyncio.run(run())


def undrain(lab: Lab) -> ProxyState:
    """Undrain it; gives what the agent says of it then."""

    async def run() -> ProxyState:
        async with dysco.connect(lab.socket("b")) as agent:
            await agent.undrain_proxy("haproxy")
            return (await agent.proxies())[0]

    return asyncio.run(run())


def drill(lab: Lab, family: int, number: int) -> str:
    """Drain, restart and undrain the proxy under so many sessions; Disproved if one of them notices."""
    proxy = Proxy(lab)
    server = started(lab, "d", "serve", "serve", BACK)
    programs = [server]
    try:
        listening(lab, "d", BACK)
        proxy.start()
        began = time.monotonic()
        client = started(lab, "a", "open", "open", lab.address("b", family), FRONT, number)
        programs.append(client)
        if client.line()["open"] != number:
            raise Disproved("a session has ended before all were open")
        opened_s = time.monotonic() - began
        last = drain(lab, 200.0)
        if not last.empty or last.moved != number:
            raise Disproved(f"drained: {last}")
        proxy.end()
        proxy.start()
        after = undrain(lab)
        later = started(lab, "a", "later", "open", lab.address("b", family), FRONT, 5)
        programs.append(later)
        if later.line()["open"] != 5:
            raise Disproved("a new session has ended at once")
        until("the new proxy's pairs are not found", lambda: len(undrain(lab).pairs) == 5)
        for program in programs:
            program.stop()
        for program, wanted in ((client, number), (later, 5)):
            ends = program.line()
            if ends["wrong"] or sum(ends["equal"].values()) != wanted:
                raise Disproved(f"sessions were lost: {ends}")
        return (
            f"{number} sessions opened in {opened_s:.1f} s, the proxy empty after {last.after_s:.1f} s, "
            f"restarted; 0 lost, SHA-256 equal; it has left {after.removed}"
        )
    finally:
        for program in programs:
            program.kill()
        proxy.end()


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="tools/prove reload", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--mode", choices=("ebpf", "tun"), default="ebpf")
    parser.add_argument("--family", type=int, choices=(4, 6), default=4)
    parser.add_argument("--prefix", default="reload", help="of the names of namespaces")
    options = parser.parse_args()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="dysco-reload-") as directory,
            labs.up(
                labs.proxied(options.mode, options.family, {FRONT: BACK}),
                Path(directory),
                "reload",
                options.prefix,
            ) as lab,
        ):
            said = drill(lab, options.family, options.sessions)
    except (Disproved, DyscoError, OSError, subprocess.SubprocessError) as error:
        sys.stdout.write(f"FAILED: {error}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
