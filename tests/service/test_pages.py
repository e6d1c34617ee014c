"""Large pages: only whole ones, only of memory that belongs to no file, and a kernel that refuses is no matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco.service import pages
from dysco.service.pages import HUGE

MAPS = """\
00400000-00a01000 rw-p 00000000 00:00 0                                  [heap]
00bff000-01001000 rw-p 00000000 00:00 0
01001000-01401000 r--p 00000000 00:00 0
02000000-02800000 rw-p 00000000 fe:00 17                                 /some/where with a blank
03000000-03400000 rw-s 00000000 00:01 18
7ffc00000000-7ffc00400000 rw-p 00000000 00:00 0                          [stack]
"""


def test_whole_pages_of_data() -> None:
    assert list(pages.candidates(MAPS.splitlines())) == [0x400000, 0x600000, 0x800000, 0xC00000, 0xE00000]


def test_what_the_kernel_takes_is_counted() -> None:
    asked: list[int] = []

    def advise(start: int, size: int) -> bool:
        asked.append(start)
        return size == HUGE and len(asked) % 2 == 1

    assert pages.gather(advise) == (len(asked) + 1) // 2 * HUGE


def test_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert pages.gather(lambda start, size: False) == 0
    monkeypatch.setattr(pages, "_MAPS", tmp_path / "maps")
    assert pages.gather() == 0
    monkeypatch.setattr("mmap.PAGESIZE", 1 << 16)
    assert pages.gather(lambda start, size: True) == 0


def test_data_stay_what_they_are() -> None:
    data = bytearray(range(256)) * (8 * HUGE // 256)
    before = hash(bytes(data))
    assert pages.gather() % HUGE == 0
    assert hash(bytes(data)) == before
