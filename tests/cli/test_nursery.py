"""A nursery starts commands that are processes like any other; who kills it or forgets it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dysco.errors import ExitStatus
from dysco.lab.nursery import UNSEEN, Born, Nursery, command

WAIT_S = 30.0


def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}/exe").exists()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def waiting(nursery: Nursery, tmp_path: Path) -> Iterator[Born]:
    """A command that waits for its configuration."""
    os.mkfifo(tmp_path / "host.toml")
    born = nursery.start(["check", "host.toml"], tmp_path / "log", netns=None, cwd=tmp_path)
    yield born
    if born.poll() is None:
        os.kill(born.pid, signal.SIGKILL)
        born.wait(WAIT_S)


def test_output_and_status_are_those_of_the_command(nursery: Nursery, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for arguments, status, said in (
        (["version"], 0, "dysco "),
        (["check", "no.toml"], ExitStatus.USAGE, "no.toml"),
        (["tun", "up", "--config", "no.toml"], ExitStatus.USAGE, "no.toml"),
        (["nothing"], ExitStatus.USAGE, "nothing"),
    ):
        log.write_text("before\n")
        born = nursery.start(arguments, log, netns=None, cwd=tmp_path)
        assert born.wait(WAIT_S) == status
        assert born.poll() == status
        fresh = subprocess.run(
            command(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
        )
        assert fresh.returncode == status
        assert log.read_text() == "before\n" + fresh.stdout
        assert said in fresh.stdout


def test_a_namespace_that_is_not_there(nursery: Nursery, tmp_path: Path) -> None:
    born = nursery.start(["version"], tmp_path / "log", netns="no-such", cwd=tmp_path)
    assert born.wait(WAIT_S) == 1
    assert (tmp_path / "log").read_text().startswith("dysco: /run/netns/no-such: there is no such")


def test_it_is_a_process_of_its_own(nursery: Nursery, waiting: Born, tmp_path: Path) -> None:
    place = Path(f"/proc/{waiting.pid}")
    wanted = b"\0".join(map(os.fsencode, command(["check", "host.toml"])))
    until(lambda: (place / "cmdline").read_bytes().rstrip(b"\0") == wanted)
    until(lambda: (place / "stat").read_text().rpartition(") ")[2][0] == "S")  # it has come to the file
    assert (place / "cwd").readlink() == tmp_path
    assert os.getpgid(waiting.pid) == os.getsid(waiting.pid) == waiting.pid
    assert waiting.pid != nursery.pid
    assert (place / "comm").read_text() == Path(f"/proc/{nursery.pid}/comm").read_text()
    assert len(list((place / "task").iterdir())) == 1
    found = {int(one.name): os.readlink(one) for one in (place / "fd").iterdir()}
    log = str(tmp_path / "log")
    assert {number: found.pop(number) for number in (0, 1, 2)} == {0: "/dev/null", 1: log, 2: log}
    assert not [name for name in found.values() if "socket" in name or "pidfd" in name or name == log]
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.01)
    os.kill(waiting.pid, signal.SIGKILL)
    assert waiting.wait(WAIT_S) == -signal.SIGKILL
    until(lambda: not place.exists())


def test_random_numbers_are_not_shared(nursery: Nursery, tmp_path: Path) -> None:
    made = [tmp_path / name for name in ("one", "other")]
    for directory in made:
        born = nursery.start(
            ["keys", "init", "--dir", str(directory)], tmp_path / "log", netns=None, cwd=tmp_path
        )
        assert born.wait(WAIT_S) == 0, (tmp_path / "log").read_text()
    one, other = ({path.name: path.read_bytes() for path in directory.iterdir()} for directory in made)
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if name.endswith((".key", ".pem")))


def test_after_a_nursery_was_killed_there_is_another(nursery: Nursery, waiting: Born, tmp_path: Path) -> None:
    killed = nursery.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    born = nursery.start(["version"], tmp_path / "other", netns=None, cwd=tmp_path)
    assert born.wait(WAIT_S) == 0
    assert nursery.pid != killed
    assert is_gone(killed)
    # What it has started lives on; only how it ends is not known.
    assert waiting.poll() is None
    os.kill(waiting.pid, signal.SIGKILL)
    assert waiting.wait(WAIT_S) == UNSEEN


def test_another_environment_of_the_interpreter_makes_another(
    nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nursery.open()
    before = nursery.pid
    (tmp_path / "sitecustomize.py").write_text(
        "from dysco.cli import output\noutput.say = lambda text: print('customized')\n"
    )
    monkeypatch.setenv("SOMETHING", "else")
    nursery.open()
    assert nursery.pid == before
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    born = nursery.start(["version"], tmp_path / "log", netns=None, cwd=tmp_path)
    assert born.wait(WAIT_S) == 0
    assert nursery.pid != before
    assert (tmp_path / "log").read_text() == "customized\n"


def test_a_nursery_ends_when_it_is_closed_and_when_its_owner_is_killed(tmp_path: Path) -> None:
    nursery = Nursery()
    nursery.close()
    nursery.open()
    pid = nursery.pid
    assert pid is not None
    nursery.close()
    assert is_gone(pid)
    assert nursery.pid is None
    owner = "from dysco.lab import Nursery; n = Nursery(); n.open(); print(n.pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert not is_gone(pid)
        process.kill()
    until(lambda: is_gone(pid))
