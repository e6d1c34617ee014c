"""Processes in namespaces: started there, found there, ended there.

Knows /proc and pidfds. Whoever is in a lab's namespace belongs to the lab, whoever started it and however it
came to be a daemon: the namespace itself says who is to be ended, and a process id that was given to another
process meanwhile never is.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from dysco.errors import HostError
from dysco.host import run_in

TERM_S: Final = 10.0  # an agent undoes its changes meanwhile
_SOURCE: Final = str(Path(__file__).resolve().parents[2])


class Process(Protocol):
    """A process that a lab has started; as subprocess.Popen has it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment of a lab's programs: this process's, with this dysco first among Python's modules."""
    paths = [_SOURCE, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **(more or {})}


def start(
    netns: str,
    argv: Sequence[str],
    log: Path,
    *,
    cwd: Path,
    stdin: Any = subprocess.DEVNULL,
    stdout: Any = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a namespace, its output in `log`; raises HostError if there is no such program."""
    with log.open("ab") as output:
        try:
            return run_in(
                netns,
                lambda: subprocess.Popen(
                    argv,
                    stdin=stdin,
                    stdout=output if stdout is None else stdout,
                    stderr=output,
                    cwd=cwd,
                    env=environment(),
                    start_new_session=True,
                ),
            )
        except OSError as error:
            raise HostError(f"{argv[0]}: {error.strerror}") from None


def run(netns: str, argv: Sequence[str], *, cwd: Path, limit_s: float = 60.0) -> str:
    """Run a command in a namespace to its end, give what it printed; raises HostError if it fails."""
    try:
        done = run_in(
            netns,
            lambda: subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                cwd=cwd,
                env=environment(),
                timeout=limit_s,
                check=False,
            ),
        )
    except OSError as error:
        raise HostError(f"{argv[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{' '.join(argv)}: not done within {limit_s:g} s") from None
    if done.returncode:
        raise HostError(f"{' '.join(argv)}: status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def inodes(paths: Iterable[Path]) -> set[int]:
    """Give the inode numbers of namespaces, of those that exist."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError):
            found.add(path.stat().st_ino)
    return found


def inside(spaces: set[int]) -> list[int]:
    """Give the ids of the processes that stand in one of these namespaces."""
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            if path.stat().st_ino in spaces:
                found.append(int(path.parts[2]))
    return found


def end(spaces: set[int], limit_s: float = TERM_S) -> None:
    """End every process in these namespaces: ask, wait for at most `limit_s` seconds, then kill."""
    for number, limit in ((signal.SIGTERM, limit_s), (signal.SIGKILL, 5.0)):
        until = time.monotonic() + limit
        descriptors = [fd for pid in inside(spaces) if (fd := _signalled(pid, spaces, number)) is not None]
        try:
            for descriptor in descriptors:
                select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _signalled(pid: int, spaces: set[int], number: signal.Signals) -> int | None:
    """Send a signal to a process that is still in one of the namespaces; give a descriptor that ends with it."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        if pid == os.getpid() or os.stat(f"/proc/{pid}/ns/net").st_ino not in spaces:
            raise ProcessLookupError
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def listening(netns: str) -> set[int]:
    """Give the TCP ports on which a namespace listens, of both families."""

    def read() -> set[int]:
        ports = set()
        for name in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[3] == "0A":  # TCP_LISTEN, net/tcp_states.h
                        ports.add(int(fields[1].rpartition(":")[2], 16))
        return ports

    return run_in(netns, read)


def tail(log: Path, lines: int = 15) -> str:
    """Give the last lines of a log."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
