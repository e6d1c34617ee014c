"""`python -m dysco.cli.nursery LINK ROOM`: import everything once, then become the commands that a lab asks for.

What is said over the socket LINK stands in `dysco.lab.nursery`; ROOM is a long word that leaves room for the command
lines of children. Nothing that must be one process's own may be there before a fork: no thread, no event loop, no DTLS
context. Random numbers are no such thing: `random` and OpenSSL begin anew in a child, everything else asks the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import typer.main

from dysco.cli import app
from dysco.errors import DyscoError
from dysco.host.netns import enter
from dysco.service import process


def serve(link: socket.socket) -> list[int] | None:
    """Fork a child for each one that is asked for, and tell how each ends, until the link is closed.

    Returns None then; and in each child the descriptors that are for it: its line and its log.
    """
    living: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: process id, line
    while True:
        for descriptor in select.select([link.fileno(), *living], [], [])[0]:
            if descriptor in living:
                _tell_end(descriptor, *living.pop(descriptor))
                continue
            _, handed, _, _ = socket.recv_fds(link, 1, 2)
            if not handed:
                return None
            pid = os.fork()
            if pid == 0:
                link.close()
                for other, (_, line) in living.items():
                    os.close(other)
                    line.close()
                return handed
            line = socket.socket(fileno=handed[0])
            os.close(handed[1])
            child = os.pidfd_open(pid)
            living[child] = pid, line
            with contextlib.suppress(OSError):
                socket.send_fds(line, [b"%d" % pid], [child])


def _tell_end(descriptor: int, pid: int, line: socket.socket) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(descriptor)
    with line, contextlib.suppress(OSError):
        line.send(b"%d" % status)


def become(line: int, log: int) -> list[str]:
    """Be the process that is described on the line; gives the arguments of its command."""
    with socket.socket(fileno=line) as link, link.makefile("rb") as words:
        wish = json.loads(words.readline())
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, place)
    os.close(nothing)
    os.close(log)
    os.environ.clear()
    os.environ.update(wish["environment"])
    os.chdir(wish["directory"])
    # As `python -m` has it: the directory in which the command was given comes first.
    sys.path[0] = wish["directory"]
    importlib.invalidate_caches()
    sys.argv[:] = [str(Path(__file__).with_name("__main__.py")), *wish["arguments"]]
    _show(wish["command"])
    if wish["netns"] is not None:
        enter(wish["netns"])
    return list(wish["arguments"])


def _show(command: Sequence[str]) -> None:
    """Have ps(1) show this command line, as much of it as there is room where the nursery's own was."""
    begin, end = (
        int(field) for field in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47]
    )
    text = b"\0".join(map(os.fsencode, command))[: end - begin - 1]
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def main() -> None:
    """Run the nursery; in a child, the command that it has become."""
    link = socket.socket(fileno=int(sys.argv[1]))
    _show(sys.orig_argv[:-1])
    process.preload()
    typer.main.get_command(app.build())
    gc.collect()
    gc.freeze()
    handed = serve(link)
    if handed is not None:
        try:
            arguments = become(*handed)
        except (DyscoError, OSError) as error:
            sys.exit(f"dysco: {error}")
        sys.exit(app.run(arguments))


if __name__ == "__main__":
    main()
