"""ssh between two hosts of a lab: a server with keys of its own, and a session that sends back what it is told."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dysco.lab import Lab
from proofs.world import Disproved, listening

_CLIENT: Final = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR"}
_END_S: Final = 30.0


def serve(lab: Lab, port: int) -> None:
    """Have sshd listen on d, until the lab ends."""
    keys = _keys(lab)
    if not keys.exists():
        keys.mkdir(mode=0o700)
        for name in ("host", "user"):
            lab.exec("d", ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)])
        options = {
            "HostKey": keys / "host", "AuthorizedKeysFile": keys / "user.pub", "StrictModes": "no", "UsePAM": "no",
            "PidFile": keys / "pid", "Port": port, "PermitRootLogin": "prohibit-password",
        }  # fmt: skip
        Path("/run/sshd").mkdir(exist_ok=True)
        lab.start("d", ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *_options(options)], name="sshd")
    listening(lab, "d", port)


def command(lab: Lab, port: int, *more: str) -> list[str]:
    """A client's words as far as the host's name."""
    return [
        "ssh",
        "-F",
        "/dev/null",
        "-i",
        str(_keys(lab) / "user"),
        "-p",
        str(port),
        *_options(_CLIENT),
        *more,
    ]


@contextmanager
def echo(lab: Lab, port: int, address: str, *more: str) -> Iterator[Callable[[str], None]]:
    """A session from a; gives what says a line on it and hears it again. Closed at the end as it should be."""
    argv = [*command(lab, port, *more), "-T", f"root@{address}", "cat"]
    client = subprocess.Popen(
        lab.command("a", argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with client:
        assert client.stdin is not None
        assert client.stdout is not None

        def say(line: str) -> None:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(f"{line}\n")
            client.stdin.flush()
            if (answer := client.stdout.readline()) != f"{line}\n":
                raise Disproved(f"ssh answers {answer!r}")

        try:
            yield say
        finally:
            client.stdin.close()
        if client.wait(_END_S):
            raise Disproved(f"ssh has ended with {client.returncode}")


def _keys(lab: Lab) -> Path:
    return lab.directory / "d" / "ssh"


def _options(values: Mapping[str, object]) -> list[str]:
    return [part for key, value in values.items() for part in ("-o", f"{key}={value}")]
