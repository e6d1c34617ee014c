"""What host.toml says of a session that goes to a proxy on this host: whether the proxy leaves it, and when.

Knows the rules, not the sessions: whether a proxy can leave is its adapter's word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dysco.config.models import HostConfig, Proxy
from dysco.policy import parse, predicate
from dysco.wire.tuples import FiveTuple


@dataclass(frozen=True, slots=True)
class ProxyRule:
    """What one `[[proxy]]` says of one client's session.

    verdict: `no match`, `stays` (whatever happens), `when asked`, `chosen` or `after`. text: a sentence for people.
    """

    proxy: str
    verdict: str
    text: str

    @property
    def may_leave(self) -> bool:
        """Whether the proxy may be taken out of the session at all."""
        return self.verdict not in ("no match", "stays")

    def __str__(self) -> str:
        return f"{self.proxy}: {self.text}"

    def as_json(self) -> dict[str, Any]:
        """Render as values that `json` can write."""
        return {"proxy": self.proxy, "verdict": self.verdict, "text": self.text}


def proxy_rules(config: HostConfig, session: FiveTuple) -> tuple[ProxyRule, ...]:
    """Say for each proxy of the host what becomes of it in a session that a client has with it."""
    return tuple(proxy_rule(proxy, session) for proxy in config.proxy)


@lru_cache(maxsize=64)
def _says(expression: str) -> Callable[[FiveTuple], bool]:
    # Parsing takes milliseconds, and a drain asks this of thousands of sessions several times a second.
    return predicate(parse(expression))


def proxy_rule(proxy: Proxy, session: FiveTuple) -> ProxyRule:
    """Say what one proxy's section means for a client's session."""
    if proxy.port is not None and session.dport != proxy.port:
        return ProxyRule(proxy.name, "no match", f"not its session: it listens on port {proxy.port}")
    if not _says(proxy.match)(session):
        return ProxyRule(proxy.name, "no match", f"left alone: match = {proxy.match!r} is not true")
    if proxy.keep is not None and _says(proxy.keep)(session):
        return ProxyRule(proxy.name, "stays", f"stays in the session: keep = {proxy.keep!r} is true")
    if_safe = f"if adapter {proxy.adapter} finds that it only passes data on"
    match proxy.remove:
        case "never":
            asked = f"`dysco splice` or `dysco proxy drain {proxy.name}`"
            return ProxyRule(proxy.name, "when asked", f"stays in the session until {asked} (remove = never)")
        case "chosen":
            return ProxyRule(
                proxy.name,
                "chosen",
                f"is taken out as soon as its server is chosen, {if_safe} (remove = chosen)",
            )
    limits = [
        f"{proxy.after_bytes} bytes" if proxy.after_bytes is not None else "",
        f"{proxy.after_seconds:g} s" if proxy.after_seconds is not None else "",
    ]
    when = " or ".join(filter(None, limits))
    return ProxyRule(proxy.name, "after", f"is taken out after {when}, {if_safe} (remove = after)")


def due(proxy: Proxy, session: FiveTuple, carried: int, age_s: float) -> bool:
    """Whether a proxy's own rule wants it out of a session that has carried so many bytes for so many seconds."""
    match proxy_rule(proxy, session).verdict:
        case "chosen":
            return True
        case "after":
            enough = proxy.after_bytes is not None and carried >= proxy.after_bytes
            return enough or (proxy.after_seconds is not None and age_s >= proxy.after_seconds)
    return False
