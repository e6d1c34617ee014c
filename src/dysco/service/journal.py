"""The session journal: what lets sessions go on after the agent was killed.

An append-only file of records, each with its length and a CRC-32; read from the start, cut at the first record that is
not whole and right. Nothing after such a record is believed, for what was lost there might have said otherwise.
Written in batches by the agent's own loop: the file lies in memory (/run), where a write takes microseconds, and a
thread would take the interpreter from the loop in the middle of somebody's connection set-up. What is written there
survives the agent, which is all that is asked. Made anew from what lives when it has grown too long.

    magic "DYSCOJ1\n", then records: length (4), crc (4), kind (1: remember, 2: forget), key (17), data
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Final

MAGIC: Final = b"DYSCOJ1\n"
KEY_LEN: Final = 17
REMEMBER: Final = 1
FORGET: Final = 2
NAME: Final = "sessions.journal"
_HEAD: Final = struct.Struct("!II")
_LEAST_GROWTH: Final = 1 << 20  # bytes that a journal may grow by before it is made anew
_LONGEST: Final = 1 << 16
_SLICE: Final = 200  # records of a new file that are made at once, which keeps the loop for about 2 ms
PAUSE_S: Final = 0.005  # seconds between two slices of a new file


def read(path: Path) -> tuple[dict[bytes, bytes], int]:
    """Records by key, and how many bytes at the end were not believed. A missing file has no records."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}, 0
    records: dict[bytes, bytes] = {}
    if not data.startswith(MAGIC):
        return records, len(data)
    position = len(MAGIC)
    while position + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, position)
        body = data[position + _HEAD.size : position + _HEAD.size + length]
        if not KEY_LEN < length <= _LONGEST or len(body) != length or zlib.crc32(body) != crc:
            break
        key, value = body[1 : 1 + KEY_LEN], body[1 + KEY_LEN :]
        if body[0] == REMEMBER:
            records[key] = value
        elif body[0] == FORGET:
            records.pop(key, None)
        else:
            break
        position += _HEAD.size + length
    return records, len(data) - position


class Journal:
    """Keeps records on disk; `remember` and `forget` only note them down, `flush` writes.

    records gives all that live, each as it is when it is its turn: what the file is made anew from, a slice at a time,
    while what happens meanwhile goes to both files. If the disk refuses (full, read-only), `failed` is told once, and
    the file is made anew as soon as there is something to write: a torn record in its middle would cut off everything
    behind it.
    """

    def __init__(
        self,
        directory: Path,
        records: Callable[[], Iterable[tuple[bytes, bytes]]],
        failed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.path = directory / NAME
        self._records = records
        self._failed = failed
        self._works = True
        self._noted: dict[bytes, bytes | None] = {}
        self._file: int | None = None
        self._grown = self._base = 0
        self._new: _New | None = None

    def start(self) -> None:
        """Begin a new file with the records that live, in place of the old one at once. Raises OSError."""
        self._make_anew()

    def remember(self, key: bytes, data: bytes) -> None:
        """Note a session down."""
        self._noted[key] = data

    def forget(self, key: bytes) -> None:
        """A session is gone."""
        self._noted[key] = None

    def flush(self) -> bool:
        """Write what was noted, and a slice of a new file if one is being made; True if there is more to do."""
        noted, self._noted = self._noted, {}
        try:
            if self._file is None:
                self._make_anew()
            else:
                self._append(b"".join(_frame(_body(key, data)) for key, data in noted.items()))
            self._works = True
        except OSError as error:
            self._close_files()
            if self._works:
                self._works = False
                self._failed(f"{self.path}: {error.strerror}")
        return self._new is not None

    def close(self, *, delete: bool) -> None:
        """Write what was noted; then delete the file, if no session is to go on."""
        if self._noted or self._file is None:
            self.flush()
        self._close_files()
        if delete:
            self.path.unlink(missing_ok=True)

    def _append(self, frames: bytes) -> None:
        assert self._file is not None
        self._grown += _write_all(self._file, frames)
        if self._new is not None:
            self._new.size += _write_all(self._new.file, frames)
            self._slice(_SLICE)
        elif self._grown > max(_LEAST_GROWTH, self._base):
            self._new = _New(self.path.with_suffix(".new"), self._records())

    def _slice(self, most: int) -> None:
        """Bring some more of what lives into the new file; the last slice puts it into the old one's place."""
        new = self._new
        assert new is not None
        frames = [_frame(_body(key, data)) for key, data in islice(new.records, most)]
        new.size += _write_all(new.file, b"".join(frames))
        if len(frames) < most:
            new.path.replace(self.path)
            old, self._file, self._base, self._grown, self._new = self._file, new.file, new.size, 0, None
            if old is not None:
                os.close(old)

    def _make_anew(self) -> None:
        self._close_files()
        self._new = _New(self.path.with_suffix(".new"), self._records())
        while self._new is not None:
            self._slice(_SLICE)

    def _close_files(self) -> None:
        for file in (self._file, None if self._new is None else self._new.file):
            if file is not None:
                os.close(file)
        self._file = self._new = None


class _New:
    """A file that is being made, and what is still to come into it."""

    def __init__(self, path: Path, records: Iterable[tuple[bytes, bytes]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self.path = path
        self.records = iter(records)
        self.file = os.open(path, flags, 0o600)
        self.size = 0
        try:
            self.size = _write_all(self.file, MAGIC)
        except OSError:
            os.close(self.file)
            raise


def _body(key: bytes, data: bytes | None) -> bytes:
    return bytes((FORGET,)) + key if data is None else bytes((REMEMBER,)) + key + data


def _write_all(file: int, data: bytes) -> int:
    """Write everything; a disk that takes only a part raises OSError with the next attempt."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    return len(data)


def _frame(body: bytes) -> bytes:
    return _HEAD.pack(len(body), zlib.crc32(body)) + body
