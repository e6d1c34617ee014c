"""A proxy whose pairs its adapter finds is drained: out of a session that lives, and out of one that comes later."""

from __future__ import annotations

import asyncio
import sys

import pytest

from dysco.chains import Drained
from dysco.client import connect
from dysco.lab import Lab
from dysco.wire.tuples import FiveTuple
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, SlowClient, ask, haproxy_host, lab_text, put_file, sessions, until

RULE = """
[[host.config.proxy]]
name = "lb"
adapter = "haproxy"
socket = "haproxy.sock"
"""


def proxy_lab(family: int) -> str:
    """Client a, HAProxy on b, web server d; two chains of one hop each."""
    proxy = haproxy_host(family, section=RULE, for_all="stats socket unix@haproxy.sock mode 600 level admin")
    return lab_text("proxies", proxy, hops="[]", match="dst port 8080")


def dysco(lab: Lab, *words: str) -> str:
    """Run `dysco` against the agent of the proxy's host; gives what it has printed."""
    return lab.exec("b", [sys.executable, "-m", "dysco.cli", "--socket", str(lab.socket("b")), *words]).stdout


def drain(lab: Lab) -> Drained:
    """Drain the proxy; gives the last report."""

    async def run() -> Drained:
        async with connect(lab.socket("b")) as agent:
            return [one async for one in agent.drain_proxy("lb", timeout=30.0)][-1]

    return asyncio.run(run())


def pairs(lab: Lab) -> list[dict[str, object]]:
    """The pairs of the proxy."""
    return list(ask(lab, "b", "proxies")[0]["pairs"])


@pytest.mark.parametrize(("mode", "family"), [("tun", 6)], indirect=["mode"])
def test_haproxy_is_drained(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(proxy_lab(family))
    lab.up()
    wanted = put_file(lab, 64 * MEGABYTE)
    with SlowClient(lab, family, node="b", port=8080) as client:
        until("the pair is found", lambda: [one["safe"] for one in pairs(lab)] == [True])
        last = drain(lab)
        assert (last.empty, last.moved, last.failed, last.reasons) == (True, 1, 0, {})
        until("the proxy's host has left", lambda: sessions(lab, "b") == [])
        assert client.digest() == wanted
    # It stays drained: what comes later leaves too, by itself.
    with SlowClient(lab, family, node="b", port=8080) as client:
        until("the proxy has left the new session", lambda: ask(lab, "b", "proxies")[0]["removed"] == 2)
        assert client.digest() == wanted
    empty = "lb (haproxy), remove = never, drained: 0 pairs"
    until("a pair is left", lambda: empty in dysco(lab, "proxy", "list"))
    told = dysco(lab, "explain", f"tcp {FiveTuple.of(bytes(16), 1234, bytes(16), 8080)}")
    assert "proxy    lb: stays in the session until `dysco splice`" in told
    assert "lb stays in its sessions again" in dysco(lab, "proxy", "undrain", "lb")
