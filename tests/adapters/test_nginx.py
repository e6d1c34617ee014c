"""nginx's stream module: what its error log says, as nginx 1.22 wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco.adapters.nginx import Log, NginxStream
from dysco.errors import HostError
from dysco.wire.tuples import FiveTuple

LINES = """\
2026/11/23 17:24:28 [notice] 30686#30686: using the "epoll" event method
2026/11/23 17:24:28 [info] 30686#30686: *1 client 192.0.2.1:41006 connected to 192.0.2.9:7201
2026/11/23 17:24:28 [info] 30686#30686: *3 client [2001:db8::1]:44006 connected to [2001:db8::9]:7201
2026/11/23 17:24:28 [info] 30686#30686: *1 proxy 10.0.0.9:43078 connected to 10.0.0.2:80
2026/11/23 17:24:28 [info] 30686#30686: *5 client 192.0.2.1:39012 connected to 0.0.0.0:7202
2026/11/23 17:24:28 [info] 30686#30686: *3 proxy 10.0.0.9:43092 connected to 10.0.0.2:80
2026/11/23 17:24:28 [info] 30686#30686: *7 client unix: connected to unix:/run/x.sock
2026/11/23 17:24:29 [info] 30686#30686: *7 proxy 10.0.0.9:43093 connected to 10.0.0.2:80
2026/11/23 17:24:29 [error] 30686#30686: *5 connect() failed while connecting to upstream
"""
ENDS = """\
2026/11/23 17:24:29 [info] 30686#30686: *1 client disconnected, bytes from/to client:100/143, bytes from/to \
upstream:143/143
"""
FOUR = FiveTuple.parse("192.0.2.1:41006 > 192.0.2.9:7201")
SIX = FiveTuple.parse("[2001:db8::1]:44006 > [2001:db8::9]:7201")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "error.log", LINES)
    log = Log(path)
    log.read()
    assert log.right_of(FOUR) == FiveTuple.parse("10.0.0.9:43078 > 10.0.0.2:80")
    assert log.right_of(SIX) == FiveTuple.parse("10.0.0.9:43092 > 10.0.0.2:80")
    assert log.right_of(FiveTuple.parse("192.0.2.1:39012 > 192.0.2.9:7202")) is None
    with path.open("a") as file:
        file.write(ENDS[:50])
        file.flush()
        log.read()
        assert log.right_of(FOUR) is not None
        file.write(ENDS[50:])
    log.read()
    assert log.right_of(FOUR) is None
    assert len(log) == 2
    log.close()


def test_a_rotated_log(tmp_path: Path) -> None:
    path = written(tmp_path / "error.log", "")
    log = Log(path)
    log.read()
    first, second = LINES.splitlines(keepends=True)[1], LINES.splitlines(keepends=True)[3]
    with path.open("a") as file:
        file.write(first)
    path.rename(tmp_path / "error.log.1")
    written(path, second)
    log.read()
    assert log.right_of(FOUR) is not None
    log.close()


async def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        await NginxStream(tmp_path / "none.log", port=1).pairs()
