"""Who may change a host: one agent for each run directory, and one for each network namespace.

Knows flock(2), which the kernel releases when its holder dies, however it dies: no lock is ever stale. A
lock's file is removed by its holder, so that nothing is left; who waits for a file that has been removed
meanwhile starts again. Who takes a lock, or looks whether one is held, does so while the directory is his, so that
nobody takes a look for a holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
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
                with _turn(self.path.parent):
                    self._take()
            except FileNotFoundError:
                continue  # somebody has removed the empty directory
            except PermissionError:
                raise PermissionDeniedError(f"{self.path}: permission denied; root is needed") from None
            except OSError as error:
                raise HostError(f"{self.path}: {error.strerror}") from None

    def _take(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise HostError(f"{who} is at work here ({self.path}): stop it first") from None
        if not _is_named(self.path, descriptor):
            os.close(descriptor)
            return
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{self.holder} (process {os.getpid()})\n".encode(), 0)

    def release(self) -> None:
        """Remove the file and let go; nothing happens if the lock is not held."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def sweep(directory: Path, pattern: str) -> None:
    """Remove the locks' files that match and that nobody holds: their holders were killed."""
    with contextlib.suppress(FileNotFoundError), _turn(directory):
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_named(path, descriptor):
                        path.unlink()
                finally:
                    os.close(descriptor)


@contextlib.contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """While nobody else takes a lock in a directory, or looks at one; raises FileNotFoundError without it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _is_named(directory, descriptor):
            raise FileNotFoundError(directory)
        yield
    finally:
        os.close(descriptor)


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))
