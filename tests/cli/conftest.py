"""An agent that answers from memory in the place of the one behind the control socket."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cli import fakes
from dysco import views
from dysco.chains import ChainHandle, Changing, Drained
from dysco.chains import splice as splicing
from dysco.cli.app import run
from dysco.errors import NoAgentError


class FakeAgent:
    """Gives what `fakes` says; `error` is raised in the place of any answer."""

    def __init__(self) -> None:
        self.there = True
        self.error: Exception | None = None
        self.sockets: list[Path | None] = []
        self.reloads: list[bool] = []
        self.by_socket: dict[str, tuple[str, list[views.Session]]] = {}
        self.socket: Path | None = None
        self.stops = 0
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.items: list[dict[str, Any]] = []

    @contextlib.asynccontextmanager
    async def connect(self, path: Path | None = None) -> AsyncIterator[FakeAgent]:
        self.sockets.append(path)
        if not self.there:
            raise NoAgentError("no agent answers at /run/dysco/A.sock")
        self.socket = path
        yield self

    def _answer(self, value: Any) -> Any:
        if self.error is not None:
            raise self.error
        return value

    async def status(self) -> Any:
        name, _ = self.by_socket.get(str(self.socket), ("A", []))
        return self._answer(dataclasses.replace(fakes.STATUS, name=name, drops={"malformed": 3}))

    async def sessions(self) -> Any:
        _, records = self.by_socket.get(str(self.socket), ("A", [fakes.AT_A]))
        return self._answer(records)

    async def peers(self) -> Any:
        return self._answer(fakes.PEERS)

    async def metrics(self) -> Any:
        return self._answer("dysco_sessions 1\n")

    async def explain(self, session: str) -> Any:
        return self._answer(
            views.Explanation(session, None, (), None, None, None, (), f"session  tcp {session}")
        )

    async def reload(self, dry_run: bool = False) -> Any:
        self.reloads.append(dry_run)
        return self._answer(
            views.Reload((views.Change("tun.mtu: 1500 -> 1400 (needs a restart)", "tun.mtu", True),))
        )

    def session(self, text: str) -> ChainHandle:
        return ChainHandle(self, text)

    async def stream(self, name: str, **fields: Any) -> AsyncIterator[Any]:
        self.asked.append((name, fields))
        for item in self._answer(self.items):
            yield item

    def splice(self, left: str, right: str, **terms: Any) -> Changing:
        return splicing(self, left, right, **terms)

    async def drain(self, box: str, **terms: Any) -> AsyncIterator[Drained]:
        self.asked.append(("drain", {"box": box, **terms}))
        for item in self._answer(self.items):
            yield Drained.of(item)

    async def undrain(self, box: str) -> bool:
        self.asked.append(("undrain", {"box": box}))
        return bool(self._answer(box == "firewall"))

    async def proxies(self) -> Any:
        return self._answer(fakes.PROXIES)

    async def drain_proxy(self, proxy: str, **terms: Any) -> AsyncIterator[Drained]:
        self.asked.append(("drain_proxy", {"proxy": proxy, **terms}))
        for item in self._answer(self.items):
            yield Drained.of(item)

    async def undrain_proxy(self, proxy: str) -> bool:
        self.asked.append(("undrain_proxy", {"proxy": proxy}))
        return bool(self._answer(proxy == "balancer"))

    async def stop(self, *, for_good: bool) -> None:
        assert for_good
        self.stops += 1
        self.there = False

    async def events(self, follow: bool = False) -> AsyncIterator[Any]:
        for event in self._answer(fakes.EVENTS):
            yield event


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    fake = FakeAgent()
    monkeypatch.setattr("dysco.client.connect", fake.connect)
    monkeypatch.delenv("DYSCO_SOCKET", raising=False)
    return fake


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dysco(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command line in this process; give status, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "120")

    def command(*arguments: str) -> tuple[int, str, str]:
        status = run(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return command
