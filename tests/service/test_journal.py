"""The session journal: what it gives back after it was cut, flipped, filled up and made anew."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dysco.service.journal import KEY_LEN, NAME, Journal, read

Steps = list[tuple[int, bytes | None]]


def key(number: int) -> bytes:
    return number.to_bytes(KEY_LEN, "big")


def write(directory: Path, steps: Steps) -> None:
    """Remember data under numbers, or forget (None), and close."""
    live: dict[bytes, bytes] = {}
    one = Journal(directory, lambda: list(live.items()))
    one.start()
    for number, data in steps:
        if data is None:
            live.pop(key(number), None)
            one.forget(key(number))
        else:
            live[key(number)] = data
            one.remember(key(number), data)
        one.flush()
    one.close(delete=False)


def states(steps: Steps) -> list[dict[bytes, bytes]]:
    """What lives after each step, beginning before the first."""
    live: dict[bytes, bytes] = {}
    found: list[dict[bytes, bytes]] = [{}]
    for number, data in steps:
        live = dict(live)
        if data is None:
            live.pop(key(number), None)
        else:
            live[key(number)] = data
        found.append(live)
    return found


STEPS = st.lists(st.tuples(st.integers(0, 5), st.none() | st.binary(min_size=1, max_size=40)), max_size=12)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_what_was_written_is_read(steps: Steps, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("journal")
    write(directory, steps)
    assert read(directory / NAME) == (states(steps)[-1], 0)


SOME: Steps = [(1, b"one"), (2, b"two" * 9), (1, None), (3, b"three"), (2, b"two again"), (4, b"\0" * 20)]


def test_cut_at_every_place_it_gives_a_state_that_was(tmp_path: Path) -> None:
    write(tmp_path, SOME)
    path = tmp_path / NAME
    whole = path.read_bytes()
    known = states(SOME)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        records, cut = read(path)
        assert records in known
        assert cut <= length
    assert records == known[-1]


def test_any_flipped_byte_gives_a_state_that_was(tmp_path: Path) -> None:
    write(tmp_path, SOME)
    path = tmp_path / NAME
    whole = path.read_bytes()
    known = states(SOME)
    rng = random.Random(1)
    for at in range(len(whole)):
        for flip in {1 << rng.randrange(8), 0xFF}:
            path.write_bytes(whole[:at] + bytes((whole[at] ^ flip,)) + whole[at + 1 :])
            records, cut = read(path)
            assert records in known
            assert cut > 0


def test_no_file_and_foreign_files_have_no_records(tmp_path: Path) -> None:
    assert read(tmp_path / NAME) == ({}, 0)
    (tmp_path / NAME).write_bytes(b"something else")
    assert read(tmp_path / NAME) == ({}, 14)


def test_a_new_one_begins_with_what_lives(tmp_path: Path) -> None:
    write(tmp_path, SOME)
    records, _ = read(tmp_path / NAME)
    one = Journal(tmp_path, lambda: list(records.items()))
    one.start()
    one.forget(key(3))
    one.close(delete=False)
    del records[key(3)]
    assert read(tmp_path / NAME) == (records, 0)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    one.close(delete=True)
    assert list(tmp_path.glob(NAME)) == []


def test_it_is_made_anew_before_it_grows_without_bound(tmp_path: Path) -> None:
    steps: Steps = [(number % 10, bytes(3000)) for number in range(2000)]
    write(tmp_path, steps)
    assert read(tmp_path / NAME)[0] == states(steps)[-1]
    assert (tmp_path / NAME).stat().st_size < 2_500_000


def test_it_is_made_anew_in_slices_while_sessions_come_and_go(tmp_path: Path) -> None:
    live = {key(number): bytes(2000) for number in range(1000)}
    one = Journal(tmp_path, lambda: iterate(live))
    one.start()
    slices = 0
    for number in range(3000):
        live[key(number)] = data = number.to_bytes(3, "big") * 700
        one.remember(key(number), data)
        if number % 3 == 0:
            del live[key(number)]
            one.forget(key(number))
        slices += one.flush()
    while one.flush():
        slices += 1
    one.close(delete=False)
    assert slices > 5
    assert read(tmp_path / NAME) == (live, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]


def iterate(live: dict[bytes, bytes]) -> Iterator[tuple[bytes, bytes]]:
    """As the core gives its records: those that live when it is their turn."""
    for one in list(live):
        if one in live:
            yield one, live[one]


class Disk:
    """os.write that takes `room` more bytes and then has no space."""

    def __init__(self) -> None:
        self.room = 1 << 40
        self._write: Callable[[int, memoryview], int] = os.write

    def write(self, file: int, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._write(file, data[: self.room])
        self.room -= taken
        return taken


def test_a_full_disk_loses_nothing_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    monkeypatch.setattr("dysco.service.journal.os.write", disk.write)
    said: list[str] = []
    live = {key(1): b"one"}
    one = Journal(tmp_path, lambda: list(live.items()), said.append)
    one.start()
    disk.room = 10  # the next record is torn
    for number, data in ((2, b"two"), (3, b"three")):
        live[key(number)] = data
        one.remember(key(number), data)
        one.flush()
    assert len(said) == 1
    disk.room = 1 << 40
    live[key(4)] = b"four"
    one.remember(key(4), b"four")
    one.close(delete=False)
    assert read(tmp_path / NAME) == (live, 0)
