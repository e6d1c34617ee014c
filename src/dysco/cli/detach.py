"""Puts an agent into the background, and waits until it answers or has said why it cannot.

The child is this same command in a session of its own; what it logs goes to a file in its run directory.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from dysco.errors import DyscoError, ExitStatus, HostError, PermissionDeniedError, TimedOutError

START_S: Final = 30.0  # seconds until a new agent must answer
STOP_S: Final = 10.0  # seconds that an agent has to undo what it did
_LOOK_S: Final = 0.05
_TAIL: Final = 20  # lines of the log that are shown when it fails


class DetachedError(DyscoError):
    """The agent ended before it was up; the message is its last words, the status its own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        known = {int(one) for one in ExitStatus} - {ExitStatus.DONE}
        self.exit_status = ExitStatus(status) if status in known else ExitStatus.FAILED


def start(arguments: Sequence[str], log: Path, answers: Callable[[], bool]) -> int:
    """Run `dysco ARGUMENTS` in the background, its output appended to `log`; give its process id.

    Returns once `answers()` is true. Raises DetachedError if it ends before, TimedOutError if it is never up
    (it is ended then), HostError if the log cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except PermissionError as error:
        raise PermissionDeniedError(f"{log}: {error.strerror}") from error
    except OSError as error:
        raise HostError(f"{log}: {error.strerror}") from error
    with output:
        begin = output.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "dysco.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            close_fds=True,
            cwd="/",
        )
    deadline = time.monotonic() + START_S
    while child.poll() is None:
        if answers():
            return child.pid
        if time.monotonic() > deadline:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_S)
            raise TimedOutError(f"the agent did not answer within {START_S:g} s; see {log}")
        time.sleep(_LOOK_S)
    raise DetachedError(_last_words(log, begin) or f"the agent ended; see {log}", child.returncode)


def _last_words(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(line.removeprefix("dysco: ") for line in lines[-_TAIL:])
