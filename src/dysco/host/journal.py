"""What was changed in the kernel, on disk before it is done: all that `down` needs after a crash.

Knows files and checksums; what a record means is transaction.py's. One record a line:

    crc32 of the rest, 8 hexadecimal digits, blank, JSON object, newline

A record counts once its newline is on disk (fsync). What a crash left of the last line is cut off; a line in
the middle that does not fit its checksum is counted and passed over, for the records after it are still
true. The journal is small (some dozen records), so opening rewrites it, to a new file that replaces the old
one.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, Final

from dysco.errors import HostError, PermissionDeniedError

NAME: Final = "host.journal"
Record = dict[str, Any]


def boot_id() -> str:
    """Give the kernel's name of this boot: a journal of an earlier one speaks of a kernel that is gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def encode(record: Record) -> bytes:
    """Give the line of a record."""
    body = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(data: bytes) -> tuple[list[Record], int]:
    """Give the records of a file's bytes and how many whole lines were damaged; never raises."""
    records: list[Record] = []
    damaged = 0
    *lines, _torn = data.split(b"\n")
    for line in lines:
        checksum, _, body = line.partition(b" ")
        try:
            if int(checksum, 16) != zlib.crc32(body) or len(checksum) != 8:
                raise ValueError
            record = json.loads(body)
            if not isinstance(record, dict):
                raise ValueError
        except (ValueError, RecursionError):
            damaged += 1
        else:
            records.append(record)
    return records, damaged


class Journal:
    """The journal of a run directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME
        self.damaged = 0
        self._descriptor: int | None = None

    def read(self) -> list[Record]:
        """Give what is on disk; nothing if there is no journal. Raises HostError, PermissionDeniedError."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except PermissionError:
            raise PermissionDeniedError(f"{self.path}: permission denied; root is needed") from None
        except OSError as error:
            raise HostError(f"{self.path}: {error.strerror}") from None
        records, self.damaged = decode(data)
        return records

    def begin(self, records: list[Record]) -> None:
        """Replace the journal by these records, all at once, and open it for more."""
        fresh = self.path.with_suffix(".new")
        try:
            self._descriptor = os.open(
                fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            self._write(b"".join(map(encode, records)))
            fresh.replace(self.path)
            self._sync_directory()
        except OSError as error:
            raise HostError(f"{fresh}: {error.strerror}") from None

    def append(self, record: Record) -> None:
        """Write a record; it is on disk when this returns. Raises HostError."""
        try:
            self._write(encode(record))
        except OSError as error:
            raise HostError(f"{self.path}: {error.strerror}") from None

    def _write(self, data: bytes) -> None:
        assert self._descriptor is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fsync(self._descriptor)

    def _sync_directory(self) -> None:
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close the file and leave it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Close and delete the journal: everything in it is undone."""
        self.close()
        self.path.with_suffix(".new").unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self._sync_directory()
