"""The client API against a real control socket: commands, errors by kind, events, several clients, rude ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import dysco
from cli import fakes
from dysco import client
from dysco.errors import (
    ConfigError,
    DyscoError,
    ExitStatus,
    HostError,
    LocalError,
    NoAgentError,
    PermissionDeniedError,
    RemoteError,
    TimedOutError,
)
from dysco.protocol.events import PeerUp
from dysco.service import control
from dysco.service.control import ControlServer, Events
from dysco.views import Chain, Change, Choice, Explanation, Hop, Reload, Verdict
from dysco.wire.tuples import FiveTuple

STATUS = fakes.STATUS.plain() | {"name": "x"}
EXPLANATION = Explanation(
    session=fakes.SESSION,
    policy="web",
    hops=(Choice("fw", "10.0.2.2", "first of group edge"),),
    on_fail="closed",
    egress="agent",
    failure=None,
    policies=(Verdict("web", 0, "dst port 80", "taken", None),),
    text="policy web",
)
KINDS: dict[str, DyscoError] = {
    "local": LocalError("no such session"),
    "config": ConfigError("host.toml:1:1: wrong"),
    "remote": RemoteError("b refuses"),
    "late": TimedOutError("b does not answer"),
    "forbidden": PermissionDeniedError("CAP_NET_ADMIN is missing"),
    "host": HostError("the kernel refuses"),
}


class Agent:
    """Commands that a test steers, behind a real control socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = Events()
        self.gate = asyncio.Event()
        self.said: list[tuple[str, ...]] = []
        self.entered = asyncio.Event()
        commands: dict[str, Any] = {
            "status": self.status,
            "echo": self.echo,
            "fail": self.fail,
            "wait": self.wait,
            "reload": self.reload,
            "sessions": self.sessions,
            "peers": self.peers,
            "explain": self.explain,
            "set_hops": self.set_hops,
            "expect": self.expect,
        }
        self.server = ControlServer(path, commands, self.events)

    async def status(self) -> dict[str, Any]:
        return STATUS

    async def echo(self, text: str) -> str:
        return text

    async def fail(self, kind: str) -> None:
        raise KINDS[kind]

    async def wait(self) -> str:
        self.entered.set()
        await self.gate.wait()
        return "waited"

    async def reload(self, dry_run: bool = False) -> dict[str, Any]:
        return {"changes": [{"text": "x", "key": "tun.mtu", "restart": dry_run}]}

    async def sessions(self) -> list[dict[str, Any]]:
        return [fakes.AT_A.plain(), fakes.AT_B.plain()]

    async def peers(self) -> list[dict[str, Any]]:
        return [peer.plain() for peer in fakes.PEERS]

    async def explain(self, session: str) -> dict[str, Any]:
        return EXPLANATION.plain()

    async def set_hops(self, session: str, hops: list[str]) -> bool:
        self.said.append((session, *hops))
        return True

    async def expect(self, session_in: str, session_out: str) -> bool:
        self.said.append((session_in, session_out))
        return False


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    made = Agent(tmp_path / "x.sock")
    await made.server.start()
    yield made
    await made.server.close()


async def test_commands_and_their_answers(agent: Agent) -> None:
    async with dysco.connect(agent.path) as d:
        assert (await d.status()).name == "x"
        assert await d.reload(dry_run=True) == Reload((Change("x", "tun.mtu", restart=True),))
        assert await d.command("echo", text="ü\n" * 30_000) == "ü\n" * 30_000


async def test_what_an_agent_tells_is_typed(agent: Agent) -> None:
    async with dysco.connect(agent.path) as d:
        assert await d.sessions() == [fakes.AT_A, fakes.AT_B]
        assert await d.chains() == [Chain(fakes.CHAIN_ID, (Hop("x", fakes.AT_A), Hop("x", fakes.AT_B)))]
        assert await d.peers() == fakes.PEERS
        assert await d.explain(fakes.SESSION) == EXPLANATION


async def test_a_handle_acts_on_its_session(agent: Agent) -> None:
    async with dysco.connect(agent.path) as d:
        handle = d.session(fakes.AT_A)
        assert str(handle) == str(d.session(FiveTuple.parse(fakes.SESSION))) == fakes.SESSION
        assert await handle.look() == fakes.AT_A
        assert await handle.choose_hops(("b", "c"))
        assert not await handle.expect(fakes.A_B)
        assert agent.said == [(fakes.SESSION, "b", "c"), (fakes.SESSION, fakes.A_B)]
        assert await d.session("10.9.9.9:1 > 10.9.9.8:2").look() is None


async def test_commands_do_not_wait_for_each_other(agent: Agent) -> None:
    async with dysco.connect(agent.path) as d:
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(d.command("wait"))
            await agent.entered.wait()
            assert (await d.status()).name == "x"
            assert not slow.done()
            agent.gate.set()
        assert slow.result() == "waited"


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_errors_keep_their_kind(agent: Agent, kind: str) -> None:
    async with dysco.connect(agent.path) as d:
        with pytest.raises(DyscoError, match=str(KINDS[kind])) as caught:
            await d.command("fail", kind=kind)
    assert caught.value.exit_status == KINDS[kind].exit_status
    if kind != "host":
        assert isinstance(caught.value, type(KINDS[kind]))


async def test_bad_requests_are_answered(agent: Agent) -> None:
    async with dysco.connect(agent.path) as d:
        with pytest.raises(LocalError, match="unknown command 'nonsense'"):
            await d.command("nonsense")
        with pytest.raises(ConfigError, match="bad request") as caught:
            await d.command("echo", wrong=1)
        assert caught.value.exit_status is ExitStatus.USAGE
        assert (await d.status()).name == "x"


@pytest.mark.parametrize(
    "line",
    [b"no json\n", b"[]\n", b"3\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"do": []}\n', b"\xff\n", b"\n"],
)
async def test_whatever_is_sent_is_answered(agent: Agent, line: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(agent.path))
    writer.write(line + b'{"id": 7, "do": "status"}\n')
    answers = sorted([json.loads(await reader.readline()) for _ in range(2)], key=lambda one: one["id"] or 0)
    assert "error" in answers[0]
    assert answers[1] == {"id": 7, "answer": STATUS}
    writer.close()


async def test_a_client_that_closes_its_side_still_gets_answers(agent: Agent) -> None:
    reader, writer = await asyncio.open_unix_connection(str(agent.path))
    writer.write(b'{"id": 1, "do": "status"}\n{"id": 2, "do": "events", "follow": true}\n')
    writer.write_eof()
    lines = (await reader.read()).splitlines()
    assert json.loads(lines[0]) == {"id": 1, "answer": STATUS}
    writer.close()


async def test_a_line_without_end_is_hung_up_on(agent: Agent) -> None:
    reader, writer = await asyncio.open_unix_connection(str(agent.path))
    writer.write(b"x" * (1 << 21))
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
    async with dysco.connect(agent.path) as d:
        assert (await d.status()).name == "x"


async def test_events_that_were_and_that_come(agent: Agent) -> None:
    agent.events.add(PeerUp("a"))
    async with dysco.connect(agent.path) as d, dysco.connect(agent.path) as other:
        assert [one.fields["peer"] async for one in d.events(follow=False)] == ["a"]
        follower, second = d.events(), other.events()
        assert (await anext(follower)).fields["peer"] == "a"
        assert (await anext(second)).name == "peer_up"
        agent.events.add(PeerUp("b"))
        assert (await anext(follower)).fields["peer"] == "b"
        assert (await anext(second)).fields["peer"] == "b"
        assert (await d.status()).name == "x"


async def test_a_slow_reader_loses_events_and_is_told_how_many() -> None:
    events = Events()
    with events.follow() as queue:
        for number in range(control._EVENTS_AHEAD + 5):
            events.add(PeerUp(str(number)))
        assert queue.get_nowait()["peer"] == "0"
        assert queue.get_nowait()["peer"] == "1"
        events.add(PeerUp("later"))
        last = [queue.get_nowait() for _ in range(queue.qsize())][-2:]
    assert last[0] == {"event": "events_lost", "count": 5}
    assert last[1]["peer"] == "later"
    assert len(events.last) == control._EVENTS_KEPT


async def test_the_socket_is_ours_alone_and_goes_away(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "deep" / "x.sock")
    await agent.server.start()
    assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600
    second = Agent(agent.path)
    with pytest.raises(HostError, match="another agent listens"):
        await second.server.start()
    async with dysco.connect(agent.path) as d:
        assert (await d.status()).name == "x"
        await agent.server.close()
        with pytest.raises(NoAgentError):
            await d.command("wait")
    assert not agent.path.exists()
    with pytest.raises(NoAgentError):
        async with dysco.connect(agent.path):
            pass


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NoAgentError):
        async with dysco.connect(path):
            pass
    agent = Agent(path)
    await agent.server.start()
    async with dysco.connect(path) as d:
        assert (await d.status()).name == "x"
    await agent.server.close()


async def test_too_many_clients_are_turned_away(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_CLIENTS", 1)
    async with dysco.connect(agent.path) as d:
        assert (await d.status()).name == "x"
        async with dysco.connect(agent.path) as other:
            with pytest.raises(NoAgentError):
                await other.status()
        assert (await d.status()).name == "x"


def test_which_socket_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RUN", tmp_path / "none")
    monkeypatch.delenv(client.SOCKET_VARIABLE, raising=False)
    with pytest.raises(NoAgentError, match="no agent runs here"):
        client._find()
    monkeypatch.setattr(client, "RUN", tmp_path)
    (tmp_path / "a.sock").touch()
    assert client._find() == tmp_path / "a.sock"
    (tmp_path / "b.sock").touch()
    with pytest.raises(LocalError, match=r"a\.sock, .*b\.sock"):
        client._find()
    monkeypatch.setenv(client.SOCKET_VARIABLE, "/run/other.sock")
    assert client._find() == Path("/run/other.sock")


def test_a_directory_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(client, "RUN", tmp_path)
    monkeypatch.delenv(client.SOCKET_VARIABLE, raising=False)
    monkeypatch.setattr("dysco.client.os.listdir", refuse)
    with pytest.raises(PermissionDeniedError):
        client._find()
