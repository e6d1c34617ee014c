"""The journal survives a crash in the middle of a record, and damage; locks die with their holders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.errors import HostError
from dysco.host.journal import Journal, decode, encode
from dysco.host.lock import Lock

RECORDS = st.lists(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20)), max_size=6)


@given(RECORDS, st.integers(min_value=0))
def test_a_torn_tail_costs_the_last_record_alone(records: list[dict[str, int | str]], cut: int) -> None:
    lines = [encode(record) for record in records]
    whole = b"".join(lines)
    end = cut % (len(whole) + 1)
    read, damaged = decode(whole[:end])
    assert damaged == 0
    kept = whole[:end].count(b"\n")
    assert read == records[:kept]


@given(RECORDS.filter(bool), st.data())
def test_a_damaged_line_is_passed_over_and_counted(
    records: list[dict[str, int | str]], data: st.DataObject
) -> None:
    lines = [encode(record) for record in records]
    which = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[which]) - 2))
    byte = lines[which][place] ^ 0x01
    if byte == ord("\n"):
        return
    spoilt = lines[which][:place] + bytes([byte]) + lines[which][place + 1 :]
    read, damaged = decode(b"".join([*lines[:which], spoilt, *lines[which + 1 :]]))
    if damaged:
        assert read == records[:which] + records[which + 1 :]
    else:  # only a hexadecimal digit's case may change without harm
        assert spoilt.lower() == lines[which].lower()


@given(st.binary(max_size=200))
def test_any_bytes_are_read(data: bytes) -> None:
    decode(data)


def test_a_journal_is_replaced_then_grows_then_goes(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read() == []
    journal.begin([{"a": 1}])
    journal.append({"b": 2})
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b"0123")
    again = Journal(tmp_path)
    assert again.read() == [{"a": 1}, {"b": 2}]
    again.begin(again.read())
    again.append({"c": 3})
    assert Journal(tmp_path).read() == [{"a": 1}, {"b": 2}, {"c": 3}]
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_excludes_names_its_holder_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    first, second = Lock(path, "agent one"), Lock(path, "agent two")
    first.take()
    with pytest.raises(HostError, match=r"agent one \(process \d+\) is at work here"):
        second.take()
    first.release()
    assert not path.exists()
    second.take()
    second.release()
    second.release()


LOOK = """
import sys, pathlib
from dysco.host.lock import sweep
while True:
    sweep(pathlib.Path(sys.argv[1]), "*.lock")
"""


def test_who_looks_for_locks_that_nobody_holds_is_not_taken_for_a_holder(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "x.lock", "one agent")
    with subprocess.Popen([sys.executable, "-c", LOOK, str(tmp_path)]) as looking:
        try:
            (tmp_path / "left.lock").touch()
            while (tmp_path / "left.lock").exists():
                assert looking.poll() is None
            for _ in range(3000):
                lock.take()
                lock.release()
        finally:
            looking.kill()


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        Lock(path, "agent one").take()
        os.write(writer, b"x")
        signal.pause()
        os._exit(1)
    assert os.read(reader, 1) == b"x"
    with pytest.raises(HostError):
        Lock(path, "agent two").take()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    heir = Lock(path, "agent two")
    heir.take()
    heir.release()
    os.close(reader)
    os.close(writer)
