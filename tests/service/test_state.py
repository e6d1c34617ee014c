"""State of boxes goes out and comes in: Python classes, commands, and what neither may do."""

from __future__ import annotations

import base64
import json
import os
import select
import sys
from pathlib import Path

import pytest

from dysco.config import Box
from dysco.errors import HostError, LocalError
from dysco.middlebox import Direction, Middlebox, Session, StreamMiddlebox
from dysco.service.boxes import Device, device, load
from dysco.service.state import CommandMover, ConntrackMover, NotReadyError, PythonMover, movers
from dysco.wire.packet import SYN, build_tcp
from dysco.wire.tuples import FiveTuple

BOXES = Path(__file__).parents[2] / "configs" / "boxes"
V4 = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")
V6 = FiveTuple.parse("[fd00::1]:1234 > [fd00::9]:80")
families = pytest.mark.parametrize("session", [V4, V6], ids=["ipv4", "ipv6"])


def standing(box: Middlebox | StreamMiddlebox) -> Device:
    return device("box", box, 8, lambda port, packet: None, lambda session, hops: None)


def opened(box: Middlebox | StreamMiddlebox, session: FiveTuple) -> Device:
    made = standing(box)
    made.from_left(build_tcp(session, 1, 0, SYN, 100))
    return made


class Holder(Middlebox):
    """Gives and takes what the test says."""

    def __init__(self, state: object = b"mine") -> None:
        self.state = state

    def export_state(self, session: Session) -> bytes | None:
        if isinstance(self.state, Exception):
            raise self.state
        return self.state  # type: ignore[return-value]

    def import_state(self, session: Session, state: bytes) -> None:
        if state == b"wrong":
            raise ValueError("no state of mine")
        self.state = state


class Stream(StreamMiddlebox):
    """Is in the middle of something."""

    def export_state(self, session: Session) -> bytes | None:
        return None


@families
async def test_the_counts_of_the_example_go_on_at_another_host(
    session: FiveTuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = (load(f"{BOXES}/counter.py:Counter", "box counter", "packet") for _ in range(2))
    source, target = opened(old, session), opened(new, session)
    for _ in range(4):
        source.from_left(build_tcp(session, 2, 0, 16, 100))
    state = await PythonMover(source, 1000).export(session, session)
    assert state is not None
    for _ in range(2):
        await PythonMover(target, 1000).install(session, session, state)
    assert new.counts == {Session(session): {Direction.FORWARD: 5, Direction.BACKWARD: 0}}  # type: ignore[union-attr]
    for wrong in (b"", b"[1]", b"[1, -1]", b"[1, true]", b'{"a": 1, "b": 2}', b"\xff", b"[" * 100_000):
        with pytest.raises(LocalError, match="import_state"):
            await PythonMover(target, 200_000).install(session, session, wrong)


async def test_a_class_that_keeps_nothing_moves_nothing_and_needs_nothing() -> None:
    for box in (Middlebox(), StreamMiddlebox()):
        mover = PythonMover(opened(box, V4), 10)
        assert await mover.export(V4, V4) == b""
        await mover.install(V4, V4, b"")


async def test_a_stream_box_says_that_it_is_not_ready() -> None:
    with pytest.raises(NotReadyError):
        await PythonMover(opened(Stream(), V4), 10).export(V4, V4)


async def test_faults_of_a_class_refuse_the_move_and_hurt_nothing_else() -> None:
    for state in (RuntimeError("oops"), "text", 7):
        mover = PythonMover(opened(Holder(state), V4), 10)
        with pytest.raises(LocalError, match="box box: export_state"):
            await mover.export(V4, V4)
    holder = Holder()
    mover = PythonMover(opened(holder, V4), 10)
    with pytest.raises(LocalError, match="no state of mine"):
        await mover.install(V4, V4, b"wrong")
    assert holder.state == b"mine"
    assert mover.device.counters["errors"] == 1


async def test_a_session_that_is_not_here_is_named() -> None:
    mover = PythonMover(standing(Holder()), 10)
    with pytest.raises(LocalError, match=r"10\.0\.0\.1:1234 > 10\.0\.0\.9:80 is not here"):
        await mover.export(V4, V4)
    with pytest.raises(LocalError, match="is not here"):
        await mover.install(V4, V4, b"")


async def test_state_beyond_the_limit_goes_neither_way() -> None:
    holder = Holder(bytes(11))
    mover = PythonMover(opened(holder, V4), 10)
    with pytest.raises(LocalError, match="state_limit = 10"):
        await mover.export(V4, V4)
    with pytest.raises(LocalError, match="state_limit = 10"):
        await mover.install(V4, V4, b"12345678901")
    assert holder.state == bytes(11)


# Commands


def command(tmp_path: Path, body: str, timeout_s: float = 20.0, limit: int = 1000) -> CommandMover:
    """A command that reads its request into `request`, and then does what the body says."""
    script = tmp_path / "command.py"
    script.write_text(
        f"import base64, json, os, sys\nrequest = json.loads(sys.stdin.read())\n"
        f"open({str(tmp_path / 'request')!r}, 'w').write(json.dumps(request))\n{body}\n"
    )
    return CommandMover("fw", (sys.executable, "-S", "-E", str(script)), timeout_s, limit)


@families
async def test_a_command_exports_and_imports(tmp_path: Path, session: FiveTuple) -> None:
    state = bytes(range(256))
    text = base64.b64encode(state).decode()
    mover = command(tmp_path, f"print(json.dumps({{'state': {text!r}}}))")
    assert await mover.export(session, session) == state
    asked = json.loads((tmp_path / "request").read_text())
    expected = {"version": 1, "box": "fw", "session": str(session), "right": str(session)}
    assert asked == {**expected, "action": "export"}
    await command(tmp_path, "print('{}')").install(session, session, state)
    assert json.loads((tmp_path / "request").read_text()) == {**expected, "action": "import", "state": text}


async def test_a_command_may_have_nothing_or_not_be_ready(tmp_path: Path) -> None:
    assert await command(tmp_path, "print('{\"state\": null}')").export(V4, V4) is None
    with pytest.raises(NotReadyError):
        await command(tmp_path, "print('{\"ready\": false}')").export(V4, V4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('print(\'{"error": "no such session"}\')', "no such session"),
        ("sys.exit('the daemon is down')", "ended with status 1: the daemon is down"),
        ("os.kill(os.getpid(), 9)", "ended with status -9"),
        ("print('hello')", "not JSON"),
        ("print('[' * 100000)", "wrote more than|not JSON"),
        ("print('[]')", "not a JSON object"),
        ("print('{}')", 'no "state"'),
        ("print('{\"state\": 5}')", 'no "state"'),
        ('print(\'{"state": "***"}\')', "not base64"),
        (
            "print('{\"state\": \"%s\"}' % ('A' * 1400))",
            "1050 bytes of state are more than state_limit = 1000",
        ),
        ("while True: print('x' * 10000)", "wrote more than"),
        ("sys.stderr.write('y' * 1000000); sys.exit(3)", "status 3: y{500}$"),
    ],
)
async def test_what_a_command_does_wrong_is_said(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(LocalError, match=said):
        await command(tmp_path, body).export(V4, V4)


async def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    processes = tmp_path / "processes"
    body = f"import signal\nos.fork()\nopen({str(processes)!r}, 'a').write(str(os.getpid()) + ' ')\nsignal.pause()"
    with pytest.raises(LocalError, match=r"took longer than 2 s and was killed"):
        await command(tmp_path, body, timeout_s=2.0).export(V4, V4)
    pids = [int(pid) for pid in processes.read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        assert _ends(pid), "a process of the command is left"


def _ends(pid: int) -> bool:
    """Whether a process is over, or ends within ten seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)


async def test_a_command_need_not_read_its_request(tmp_path: Path) -> None:
    script = tmp_path / "deaf.py"
    script.write_text("print('{}')")
    mover = CommandMover("fw", (sys.executable, "-S", "-E", str(script)), 20.0, 1_000_000)
    await mover.install(V4, V4, bytes(1_000_000))


async def test_a_command_gets_no_shell_and_must_exist(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="/nowhere/x; true: No such file"):
        await CommandMover("fw", ("/nowhere/x; true",), 1.0, 10).export(V4, V4)
    mark = tmp_path / "mark"
    echo = CommandMover("fw", ("/bin/echo", f"$(touch {mark})", f"; touch {mark}"), 20.0, 1000)
    with pytest.raises(LocalError, match="not JSON"):
        await echo.export(V4, V4)
    assert not mark.exists()


async def test_too_much_state_is_not_given_to_a_command(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="state_limit = 1000"):
        await command(tmp_path, "print('{}')").install(V4, V4, bytes(1001))
    assert not (tmp_path / "request").exists()


def test_each_box_gets_the_mover_of_its_profile() -> None:
    from dysco.config import Agent, HostConfig

    config = HostConfig(
        agent=Agent(name="a"),
        box=(
            Box(name="plain", kind="packet"),
            Box(name="fw", kind="kernel", state="conntrack"),
            Box(name="nat", kind="namespace", namespace="nat", state="conntrack"),
            Box(
                name="ids",
                kind="namespace",
                namespace="ids",
                state="command",
                state_command=("/bin/ids", "x"),
            ),
            Box(name="py", kind="packet", state="python", state_limit=5),
        ),
    )
    found = movers(config, {"py": standing(Holder()), "plain": standing(Holder())})
    assert sorted(found) == ["fw", "ids", "nat", "py"]
    own, nat, ids, python = found["fw"], found["nat"], found["ids"], found["py"]
    assert isinstance(own, ConntrackMover)
    assert isinstance(nat, ConntrackMover)
    assert (own.netns, nat.netns) == (None, "nat")
    assert isinstance(ids, CommandMover)
    assert (ids.argv, ids.timeout_s, ids.limit) == (("/bin/ids", "x"), 2.0, 262_144)
    assert isinstance(python, PythonMover)
    assert python.limit == 5
