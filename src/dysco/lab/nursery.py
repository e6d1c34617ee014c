"""The nursery of a lab: one process that has imported all that an agent needs, and forks agents.

A fresh Python takes longer to import an agent than the agent takes to come up, and a lab has several of them. So the
lab starts one process (`dysco.cli.nursery`), which imports everything once; each agent is then a fork of it. What is
born there is a process like any other: it runs the same command line with its own id, session, namespace, directory,
environment and output, and lives on when the nursery is gone. Only the seed of `hash()` is not its own. What an
interpreter reads of its environment it reads when it starts, so that another such environment makes another nursery.

    lab ---link: the descriptors of a line and of a log---> nursery --fork--> child
    lab ---line: what it shall be-------------------------------------------> child
    lab <--line: process id with a pidfd; exit status------ nursery

The nursery ends when the other end of `link` is closed, however that came about.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from dysco.errors import HostError, TimedOutError
from dysco.host.netns import path_of
from dysco.lab import processes

READY_S: Final = 60.0  # for a nursery to have imported everything, on a machine that does other things too
UNSEEN: Final = 255  # the exit status of a process whose end nobody saw, because the nursery ended first
ROOM: Final = 1024  # bytes for the command lines that ps(1) shows
_WORD: Final = 32  # bytes of a process id or an exit status, at most


def command(arguments: Sequence[str]) -> list[str]:
    """Give the command line that runs `dysco ARGUMENTS`."""
    return [sys.executable, "-m", "dysco.cli", *arguments]


class Born:
    """A process that a nursery has forked; `poll` and `wait` as those of subprocess.Popen."""

    def __init__(self, pid: int, descriptor: int, line: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._descriptor = descriptor
        self._line = line
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Give the exit status, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Give the exit status once it has ended; raises subprocess.TimeoutExpired."""
        with self._lock:
            if self.returncode is None:
                end = select.poll()
                end.register(self._descriptor, select.POLLIN)
                if not end.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
                said = b""
                with contextlib.suppress(OSError):
                    said = self._line.recv(_WORD)
                self.returncode = int(said or UNSEEN)
                self._line.close()
                os.close(self._descriptor)
            return self.returncode


class Nursery:
    """A nursery, started when it is first needed, and again should it have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._interpreter: dict[str, str] = {}

    @property
    def pid(self) -> int | None:
        """The process id of the nursery, None if there is none."""
        return self._process.pid if self._process is not None else None

    def open(self) -> None:
        """Start the nursery, and do not wait until it is ready."""
        with self._lock:
            self._open(processes.environment())

    def start(self, arguments: Sequence[str], log: Path, *, netns: str | None, cwd: Path) -> Born:
        """Start `dysco ARGUMENTS` in a namespace, its output in `log`. Raises HostError, TimedOutError."""
        environment = processes.environment()
        wish = {
            "arguments": list(arguments),
            "command": command(arguments),
            "netns": None if netns is None else str(path_of(netns)),
            "directory": str(cwd),
            "environment": environment,
        }
        with self._lock, log.open("ab") as output:
            born = self._ask(self._open(environment), wish, output.fileno())
            if born is None:
                self._close()
                born = self._ask(self._open(environment), wish, output.fileno())
        if born is None:
            raise HostError("the process that starts the agents of the lab ends by itself")
        return born

    def close(self) -> None:
        """End the nursery; what it has started goes on. Does nothing if there is none."""
        with self._lock:
            self._close()

    def _open(self, environment: dict[str, str]) -> socket.socket:
        interpreter = {key: value for key, value in environment.items() if key.startswith("PYTHON")}
        if interpreter != self._interpreter:
            self._close()
        if self._link is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "dysco.cli.nursery", str(theirs.fileno()), " " * ROOM],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                )
            self._link, self._interpreter = ours, interpreter
        return self._link

    def _ask(self, link: socket.socket, wish: dict[str, Any], output: int) -> Born | None:
        """Have a process started; None if the nursery has ended."""
        line, theirs = socket.socketpair()
        line.settimeout(READY_S)
        try:
            with theirs:
                socket.send_fds(link, [b"\0"], [theirs.fileno(), output])
            line.sendall(json.dumps(wish).encode() + b"\n")
            said, descriptors, _, _ = socket.recv_fds(line, _WORD, 1)
        except TimeoutError:
            line.close()
            raise TimedOutError(f"no agent was started within {READY_S:g} s") from None
        except OSError:
            said = b""
        if not said:
            line.close()
            return None
        return Born(int(said), descriptors[0], line)

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.wait()
            self._process = None
