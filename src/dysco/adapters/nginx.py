"""nginx's stream module: which two connections belong together, by its error log.

`access_log` writes a session's line when the session has ended, which is too late; and `$upstream_addr` lacks nginx's
own port. What tells of live sessions is `error_log FILE info;`, which says of each, when it begins (nginx 1.9 to 1.27):

    [info] 77#77: *5 client 192.0.2.1:39012 connected to 0.0.0.0:7202
    [info] 77#77: *5 proxy 10.0.0.9:43102 connected to 10.0.0.2:80

The numbers of bytes are the kernel's. Sessions that the log does not tell, as it was rotated away or its level is
another one, are found as those of any relay. nginx on the one side and the log on the other run in this host's
namespace and name space of files.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from dysco.adapters.base import Pair
from dysco.adapters.preambles import Fingerprints
from dysco.adapters.relay import NOTHING_SEEN, Relay
from dysco.adapters.sockets import Socket
from dysco.errors import HostError, PermissionDeniedError, WireError
from dysco.wire.tuples import FiveTuple

_MOST: Final = 64 << 20  # ours: of an old log that is met first, no more than the last bytes are read
_CHUNK: Final = 1 << 20
_LINE: Final = re.compile(rb" \*(\d+) (?:(client|proxy) (\S+) connected to (\S+)$|.* disconnected, bytes )")

Side = tuple[bytes, int, int]  # the other end's address and port, and the own port


class Log:
    """Reads what was added to an error log, and knows the sessions that have not ended by it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._inode = 0
        self._rest = b""
        self._clients: dict[int, Side] = {}
        self._rights: dict[Side, FiveTuple] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def right_of(self, left: FiveTuple) -> FiveTuple | None:
        """Give the session that nginx opened for a client's; None if the log does not say."""
        return self._rights.get((left.src, left.sport, left.dport))

    def read(self) -> None:
        """Read what is new, also after the log was rotated; raises HostError, PermissionDeniedError."""
        try:
            if self._file is not None:
                self._take(self._file)
            status = self._path.stat()
            if self._file is None or status.st_ino != self._inode or status.st_size < self._file.tell():
                self.close()
                self._file = self._path.open("rb")
                self._inode, self._rest = status.st_ino, b""
                if status.st_size > _MOST:
                    self._file.seek(status.st_size - _MOST)
                self._take(self._file)
        except PermissionError:
            raise PermissionDeniedError(f"{self._path}: permission denied") from None
        except OSError as error:
            raise HostError(f"{self._path}: {error.strerror}") from None

    def close(self) -> None:
        """Close the file; what was read is kept."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, file: IO[bytes]) -> None:
        while chunk := file.read(_CHUNK):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                if b" *" in line:
                    self._line(line)

    def _line(self, line: bytes) -> None:
        match = _LINE.search(line)
        if match is None:
            return
        number = int(match[1])
        if match[2] is None:
            ended = self._clients.pop(number, None)
            if ended is not None:
                self._rights.pop(ended, None)
            return
        try:
            session = FiveTuple.parse(f"{match[3].decode('ascii')} > {match[4].decode('ascii')}")
        except (WireError, UnicodeDecodeError):
            return  # a socket of the kind unix, or of two families
        if match[2] == b"client":
            self._clients[number] = session.src, session.sport, session.dport
            self._rights.pop(self._clients[number], None)
        elif number in self._clients:
            self._rights[self._clients[number]] = session


class NginxStream(Relay):
    """Find the pairs of nginx's stream module. log: its error log, of level `info`."""

    def __init__(
        self,
        log: Path | str,
        *,
        port: int | None = None,
        pid: int | Path | None = None,
        heads: Fingerprints = NOTHING_SEEN,
    ) -> None:
        super().__init__(port=port, pid=pid, heads=heads)
        self._log = Log(Path(log))

    async def pairs(self) -> list[Pair]:
        """Give the pairs that are known; raises HostError if nginx does not run or its log cannot be read."""
        await asyncio.to_thread(self._log.read)
        return await super().pairs()

    def _partners(
        self, pid: int, before: dict[int, Socket], after: dict[int, Socket]
    ) -> Iterator[tuple[int, int, str]]:
        there = {inode: one for inode, one in after.items() if inode in before}
        rights = {one.tuple: inode for inode, one in there.items() if one.opened}
        told: dict[int, int] = {}
        for inode, one in there.items():
            if one.opened is False:
                session = self._log.right_of(one.session)
                if session in rights:
                    told[inode] = rights[session]
        for left, right in told.items():
            yield left, right, "nginx's log says so"
        known = told.keys() | set(told.values())
        rest = {inode: one for inode, one in after.items() if inode not in known}
        yield from super()._partners(pid, before, rest)
