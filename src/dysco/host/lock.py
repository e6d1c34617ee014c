"""Who may change a host: one agent for each run directory, and one for each network namespace.

Knows flock(2), which the kernel releases when its holder dies, however it dies: no lock is ever stale. A
lock's file is removed by its holder, so that nothing is left; who waits for a file that has been removed
meanwhile starts again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from dysco.errors import HostError, PermissionDeniedError


class Lock:
    """An exclusive lock on a path; the file names its holder for people."""

    def __init__(self, path: Path, holder: str) -> None:
        self.path = path
        self.holder = holder
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock at once; raises HostError that names the holder, PermissionDeniedError."""
        while self._descriptor is None:
            try:
                self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue  # somebody has removed the empty directory
            except PermissionError:
                raise PermissionDeniedError(f"{self.path}: permission denied; root is needed") from None
            except OSError as error:
                raise HostError(f"{self.path}: {error.strerror}") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise HostError(f"{who} is at work here ({self.path}): stop it first") from None
            if self._is_named(descriptor):
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{self.holder} (process {os.getpid()})\n".encode(), 0)

    def _is_named(self, descriptor: int) -> bool:
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))

    def release(self) -> None:
        """Remove the file and let go; nothing happens if the lock is not held."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def sweep(directory: Path, pattern: str) -> None:
    """Remove the locks' files that match and that nobody holds: their holders were killed."""
    for path in directory.glob(pattern):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    path.unlink()
            finally:
                os.close(descriptor)
