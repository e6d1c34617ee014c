"""Rules and drains of proxies, with adapters that say what a test wants and splices that end as it wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from dysco import config
from dysco.adapters import Adapter, Pair, make
from dysco.adapters.haproxy import HAProxy
from dysco.adapters.nginx import NginxStream
from dysco.adapters.relay import Relay
from dysco.errors import ConfigError, HostError, LocalError
from dysco.protocol.chain import FacingInfo, SessionInfo
from dysco.service.changes import Outcome
from dysco.service.proxies import Proxies
from dysco.wire.tuples import FiveTuple

HEAD = '[agent]\nname = "a"\n[keys]\ncertificate = "a.pem"\nkey = "a.key"\nca = "ca.pem"\n'
PROXY = '[[proxy]]\nname = "p"\nadapter = "generic"\nport = 80\n'
DONE = Outcome("done")


def load(text: str) -> config.HostConfig:
    loaded, findings = config.check_bytes((HEAD + text).encode(), "host.toml", Path("/etc/dysco"))
    assert loaded is not None, findings
    return loaded


def pair(number: int, *, safe: bool = True, why: str = "says the test") -> Pair:
    left = FiveTuple.parse(f"10.0.0.1:{40000 + number} > 10.0.0.9:80")
    right = FiveTuple.parse(f"10.0.0.9:{50000 + number} > 10.0.0.2:80")
    return Pair(left, right, 47, -3, safe, why)


def info(session: FiveTuple, role: str, octets: int = 0, age_s: float = 0.0) -> SessionInfo:
    facing = FacingInfo("peer", session, 1)
    return SessionInfo(
        bytes(16), 0, role, "established", session, session, "", None, facing, facing, age_s, 1, octets
    )


class Said(Adapter):
    """Says what a test has put into it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Pair] = []
        self.trouble = ""

    async def pairs(self) -> list[Pair]:
        if self.trouble:
            raise HostError(self.trouble)
        return list(self.said)


class Changes:
    """Splices by leaving a pair out of what the adapter says, or refuses."""

    def __init__(self, adapter: Said) -> None:
        self.adapter = adapter
        self.spliced: list[tuple[FiveTuple, FiveTuple, tuple[int, int]]] = []
        self.outcome = DONE

    async def splice(
        self, left: SessionInfo, right: SessionInfo, added: tuple[int, int], timeout: float, tell: Any
    ) -> Outcome:
        self.spliced.append((left.session, right.session, added))
        if self.outcome.is_good:
            self.adapter.said = [one for one in self.adapter.said if one.left != left.session]
        return self.outcome


class Rig:
    """An agent as far as proxies know it. Its time passes only while nothing else can happen."""

    def __init__(self, text: str = PROXY) -> None:
        self.adapter = Said()
        self.changes: Any = Changes(self.adapter)
        self.sessions: list[SessionInfo] = []
        self.config = load(text)
        self.time = 0.0
        self.proxies = Proxies(self)
        self.proxies.configure(self.config, {"p": self.adapter})

    def now(self) -> float:
        return self.time

    def live_sessions(self) -> Iterator[SessionInfo]:
        return iter(self.sessions)

    def counted(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def first_bytes(self, session: FiveTuple) -> tuple[bytes, bytes] | None:
        return None

    def add(self, one: Pair, octets: int = 0, age_s: float = 0.0) -> None:
        self.adapter.said.append(one)
        self.sessions += [info(one.left, "last", octets, age_s), info(one.right, "first")]

    async def drain(self, timeout: float = 60.0) -> dict[str, Any]:
        reports: list[dict[str, Any]] = []

        async def tell(item: dict[str, Any]) -> None:
            reports.append(item)
            self.time += 0.5

        return await self.proxies.drain(tell, "p", timeout)

    async def pairs(self) -> list[dict[str, Any]]:
        return list((await self.proxies.states())[0]["pairs"])


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dysco.service.proxies._LOOK_S", 0.0)


async def settle(true: Callable[[], bool]) -> None:
    """Let tasks run until something is so."""
    async with asyncio.timeout(30.0):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


async def test_a_drain_empties() -> None:
    rig = Rig()
    for number in range(100):
        rig.add(pair(number))
    last = await rig.drain()
    assert (last["empty"], last["moved"], last["failed"], last["left"], last["reasons"]) == (
        True,
        100,
        0,
        0,
        {},
    )
    assert rig.changes.spliced[0] == (pair(0).left, pair(0).right, (47, -3))
    assert (await rig.proxies.states())[0]["drained"]
    assert await rig.proxies.undrain("p")
    assert not await rig.proxies.undrain("p")


async def test_a_proxy_with_sessions_whose_partner_is_unknown_is_not_empty() -> None:
    rig = Rig(PROXY + 'match = "src portrange 40000-40009"\n')
    rig.add(pair(1))
    rig.adapter.unplaced = [pair(2).left, pair(99).left]  # the other one is none of this section's
    last = await rig.drain()
    assert (last["empty"], last["moved"], last["left"]) == (False, 1, 1)
    assert last["reasons"] == {"the session with the server is not known yet": 1}
    rig.adapter.unplaced = [pair(99).left]
    assert (await rig.drain())["empty"]


async def test_what_is_not_safe_stays_and_is_named() -> None:
    rig = Rig(PROXY + 'keep = "src port 40004"\nmatch = "src portrange 40000-40009"\n')
    rig.add(pair(1))
    rig.add(pair(2, safe=False, why="TLS ends here"))
    rig.adapter.said.append(pair(3))
    rig.add(pair(4))
    rig.add(pair(99))
    last = await rig.drain()
    assert (last["empty"], last["moved"], last["left"]) == (False, 1, 3)
    assert last["reasons"] == {
        "TLS ends here": 1,
        "the session with the client is not chained here": 1,
        "stays in the session: keep = 'src port 40004' is true": 1,
    }
    assert [one["safe"] for one in await rig.pairs()] == [False, False, False]
    assert len(rig.changes.spliced) == 1


async def test_a_refusal_is_named_and_tried_again_later() -> None:
    rig = Rig()
    rig.changes.outcome = Outcome("refused", "server", "no timestamps on one side")
    rig.add(pair(1))
    last = await rig.drain()
    assert (last["moved"], last["failed"], last["left"]) == (0, 1, 0)
    assert last["reasons"] == {"server: no timestamps on one side": 1}
    assert 1 <= len(rig.changes.spliced) <= 3
    rig.changes.outcome = DONE
    assert (await rig.drain())["empty"]


async def test_rules() -> None:
    text = PROXY + 'remove = "after"\nafter_bytes = 1000\nafter_seconds = 60.0\nevery = 0.001\n'
    rig = Rig(text)
    rig.add(pair(1), octets=999, age_s=59.0)
    rig.add(pair(2), octets=1000)
    rig.add(pair(3), age_s=60.0)
    rig.add(pair(4, safe=False), octets=5000)
    rig.proxies.start()
    await settle(lambda: len(rig.changes.spliced) == 2)
    assert {left.sport for left, _, _ in rig.changes.spliced} == {40002, 40003}
    await rig.proxies.close()


async def test_nobody_is_asked_for_nothing() -> None:
    """With `remove = "never"` a proxy is not asked until somebody drains it; later sessions leave it then too."""
    rig = Rig(PROXY + "every = 0.001\n")
    rig.proxies.start()
    rig.add(pair(1))
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.changes.spliced == []
    assert (await rig.drain())["empty"]
    rig.add(pair(2))

    def passes() -> bool:
        rig.time += 0.01
        return len(rig.changes.spliced) == 2

    await settle(passes)
    await rig.proxies.close()


async def test_a_proxy_that_cannot_be_asked() -> None:
    rig = Rig()
    rig.adapter.trouble = "is HAProxy running?"
    (said,) = await rig.proxies.states()
    assert (said["trouble"], said["pairs"]) == ("is HAProxy running?", [])
    with pytest.raises(HostError, match="is HAProxy running"):
        await rig.drain()
    rig.adapter.trouble = ""
    assert (await rig.proxies.states())[0]["trouble"] == ""


async def test_no_such_proxy() -> None:
    with pytest.raises(LocalError, match=r"'q' is no \[\[proxy\]\].*there are: p"):
        await Rig().proxies.undrain("q")


async def test_a_reload_keeps_what_has_not_changed() -> None:
    rig = Rig()
    await rig.drain()
    assert rig.proxies.prepare(rig.config) == {}
    changed = load(
        PROXY.replace("port = 80", "port = 81") + '[[proxy]]\nname = "q"\nadapter = "generic"\nport = 1\n'
    )
    fresh = rig.proxies.prepare(changed)
    assert set(fresh) == {"p", "q"}
    rig.proxies.configure(changed, fresh)
    assert [(one["name"], one["drained"]) for one in await rig.proxies.states()] == [
        ("p", True),
        ("q", False),
    ]


OWN = """
from dysco import Adapter, Pair

class Mine(Adapter):
    async def pairs(self) -> list[Pair]:
        return []

class NoAdapter:
    def __init__(self, proxy):
        pass
"""


def test_adapters_are_made(tmp_path: Path) -> None:
    def made(text: str) -> Adapter:
        return make(load('[[proxy]]\nname = "p"\n' + text).proxy[0])

    assert isinstance(made('adapter = "haproxy"\nsocket = "h.sock"\n'), HAProxy)
    assert isinstance(made('adapter = "nginx-stream"\nlog = "e.log"\nport = 1\n'), NginxStream)
    assert isinstance(made('adapter = "generic"\npid_file = "p.pid"\n'), Relay)
    (tmp_path / "mine.py").write_text(OWN)
    own = made(f'adapter = "{tmp_path}/mine.py:Mine"\n')
    assert own.proxy is not None
    assert own.proxy.name == "p"
    for wrong, says in (
        ("mine.py:NoAdapter", "is no dysco.Adapter"),
        ("mine.py:Nothing", "cannot be loaded"),
        ("none.py:X", "cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=f"proxy p: .*{says}"):
            made(f'adapter = "{tmp_path}/{wrong}"\n')


async def test_a_file_with_the_process(tmp_path: Path) -> None:
    path = tmp_path / "p.pid"
    with pytest.raises(HostError, match="No such file"):
        await Relay(pid=path).pairs()
    path.write_text("nonsense")
    with pytest.raises(HostError, match="no number of a process"):
        await Relay(pid=path).pairs()
