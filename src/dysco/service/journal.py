"""The session journal: what lets sessions go on after the agent was killed.

An append-only file of records, each with its length and a CRC-32; read from the start, cut at the first record that is
not whole and right. Nothing after such a record is believed, for what was lost there might have said otherwise.
Written by a thread of its own, in batches; made anew from what lives when it has grown too long.

    magic "DYSCOJ1\n", then records: length (4), crc (4), kind (1: remember, 2: forget), key (17), data
"""

from __future__ import annotations

import os
import queue
import struct
import threading
import zlib
from collections.abc import Callable, Iterable
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
_BATCH: Final = 4096  # records that are written at once
PAUSE_S: Final = 0.005  # seconds that a session may be established and not yet remembered


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
    """Writes from a thread, every PAUSE_S seconds at most; `remember` and `forget` only queue.

    If the disk refuses (full, read-only), `failed` is told once, what lives stays in memory, and with the next batch
    the whole file is written anew: a torn record in its middle would cut off everything behind it.
    """

    def __init__(self, directory: Path, failed: Callable[[str], None] = lambda reason: None) -> None:
        self.path = directory / NAME
        self._failed = failed
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._live: dict[bytes, bytes] = {}
        self._file: int | None = None
        self._grown = self._base = 0

    def start(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Begin a new file with these records, in place of the old one at once. Raises OSError."""
        self._live = dict(records)
        self._rewrite()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def remember(self, key: bytes, data: bytes) -> None:
        """Keep a session."""
        self._queue.put(bytes((REMEMBER,)) + key + data)

    def forget(self, key: bytes) -> None:
        """A session is gone."""
        self._queue.put(bytes((FORGET,)) + key)

    def close(self, *, delete: bool) -> None:
        """Write what is queued; then delete the file, if no session is to go on."""
        if self._thread is not None:
            self._closing.set()
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._close_file()
        if delete:
            self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        works = True
        batch: list[bytes] = []
        while (body := self._queue.get()) is not None:
            batch.append(body)
            if not self._queue.empty() and len(batch) < _BATCH:
                continue
            works = self._write(batch, works)
            batch.clear()
            # Each wake-up takes the interpreter from the loop, in the middle of somebody's connection set-up.
            self._closing.wait(PAUSE_S)
        if batch:
            self._write(batch, works)

    def _write(self, batch: list[bytes], works: bool) -> bool:
        """Bring a batch to the disk; False if that did not work."""
        for one in batch:
            key = one[1 : 1 + KEY_LEN]
            if one[0] == REMEMBER:
                self._live[key] = one[1 + KEY_LEN :]
            else:
                self._live.pop(key, None)
        try:
            if self._file is None:
                self._rewrite()
            else:
                self._grown += _write_all(self._file, b"".join(_frame(one) for one in batch))
                if self._grown > max(_LEAST_GROWTH, self._base):
                    self._rewrite()
        except OSError as error:
            self._close_file()
            if works:
                self._failed(f"{self.path}: {error.strerror}")
            return False
        return True

    def _rewrite(self) -> None:
        self._close_file()
        new = self.path.with_suffix(".new")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = _write_all(file, MAGIC)
            frames = [_frame(bytes((REMEMBER,)) + key + data) for key, data in self._live.items()]
            for at in range(0, len(frames), _BATCH):
                size += _write_all(file, b"".join(frames[at : at + _BATCH]))
            os.fsync(file)
            new.replace(self.path)
        except OSError:
            os.close(file)
            raise
        self._file, self._grown, self._base = file, 0, size

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write_all(file: int, data: bytes) -> int:
    """Write everything; a disk that takes only a part raises OSError with the next attempt."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    return len(data)


def _frame(body: bytes) -> bytes:
    return _HEAD.pack(len(body), zlib.crc32(body)) + body
