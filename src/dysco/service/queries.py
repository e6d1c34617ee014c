"""What the control socket offers of the agent itself: its state in plain values, and what ends with one answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from dysco import config as configuration
from dysco.errors import ConfigError, WireError
from dysco.service import report
from dysco.wire.tuples import FiveTuple

if TYPE_CHECKING:
    from dysco.service.agent import AgentService

_SLICE: Final = 64  # sessions that are asked for in one go, which keeps the loop for 3 ms


class Queries:
    """The commands that answer once."""

    def __init__(self, agent: AgentService) -> None:
        self._agent = agent

    def commands(self) -> dict[str, Any]:
        """The commands by name."""
        agent = self._agent
        return {
            "status": self._status,
            "sessions": self._sessions,
            "peers": self._peers,
            "metrics": self._metrics,
            "explain": self._explain,
            "reload": agent.reload,
            "set_hops": self._set_hops,
            "expect": self._expect,
            "undrain": agent.draining.undrain,
            "proxies": agent.proxies.states,
            "undrain_proxy": agent.proxies.undrain,
            "stop": self._stop,
        }

    async def _status(self) -> dict[str, Any]:
        return report.status(self._agent).plain()

    async def _sessions(self) -> list[dict[str, Any]]:
        """In slices: with many of them packets would have to wait for more than a second."""
        agent, said = self._agent, list[dict[str, Any]]()
        for info in agent.core.sessions(agent.now()):
            said.append(report.session(info).plain())
            if not len(said) % _SLICE:
                await asyncio.sleep(0)
        return said

    async def _peers(self) -> list[dict[str, Any]]:
        agent = self._agent
        known = {peer.name: peer for peer in agent.core_settings.peers}
        return [
            report.peer(
                status,
                sum(agent.core.sessions_via(address) for address in known[status.name].addresses),
                report.addresses(known[status.name].addresses),
            ).plain()
            for status in agent.channel.status()
        ]

    async def _metrics(self) -> str:
        return self._agent.metrics()

    async def _explain(self, session: str) -> dict[str, Any]:
        agent, parsed = self._agent, _tuple(session)
        found, rules = agent.policies.explain(parsed, agent), configuration.proxy_rules(agent.config, parsed)
        text = "\n".join([found.as_text(), *(f"proxy    {rule}" for rule in rules)])
        return {**found.as_json(), "text": text, "proxies": [rule.as_json() for rule in rules]}

    async def _set_hops(self, session: str, hops: list[str]) -> bool:
        return self._agent.set_hops(_tuple(session), hops)

    async def _expect(self, session_in: str, session_out: str) -> bool:
        return self._agent.core.expect(_tuple(session_in), _tuple(session_out))

    async def _stop(self, for_good: bool = False) -> None:
        self._agent.for_good = for_good
        self._agent.stopped.set()


def _tuple(text: str) -> FiveTuple:
    try:
        return FiveTuple.parse(text)
    except WireError as error:
        raise ConfigError(str(error)) from None
