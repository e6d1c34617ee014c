"""A proxy that knows nothing of it is taken out of live sessions: bytes, its log and its sockets are looked at."""

from __future__ import annotations

import asyncio

import pytest

import dysco
from dysco import views
from dysco.chains import Step
from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, haproxy_host, lab_text, log_of, put_file, sessions, until
from netns.test_changes import download, seen, watch


def proxy_lab(family: int) -> str:
    """Client a, HAProxy on b, web server d; two chains of one hop each."""
    proxy = haproxy_host(
        family, for_all="log stdout format raw local0", defaults="log global\n  option tcplog"
    )
    return lab_text("splice", proxy, hops="[]", match="dst port 8080")


def splice(lab: Lab, left: str = "dst port 8080", right: str = "dst port 80", **terms: object) -> list[Step]:
    """Ask the proxy's agent to take it out; returns the steps."""

    async def run() -> list[Step]:
        async with dysco.connect(lab.socket("b")) as agent:
            return [one async for one in agent.splice(left, right, **terms)]

    return asyncio.run(run())


def sockets(lab: Lab) -> str:
    """TCP sockets of the proxy's host that are not listening."""
    return lab.exec("b", ["ss", "-Htan", "state", "all", "exclude", "listening"]).stdout.strip()


@pytest.mark.parametrize(("mode", "family"), [("tun", 4), ("ebpf", 6)], indirect=["mode"])
def test_haproxy_is_taken_out_during_a_download(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(proxy_lab(family))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 40 * MEGABYTE)
    with download(lab, family, node="b", port=8080) as running:
        steps = splice(lab)
        assert steps[-1].phase == "done", steps
        until("the proxy's host has left", lambda: sessions(lab, "b") == [])
        [joined] = views.chains((node, map(views.Session.of, sessions(lab, node))) for node in ("a", "d"))
        assert [hop.agent for hop in joined.agents] == ["a", "d"]
        before = seen(lab, "passing")
        assert running.digest() == wanted
    assert seen(lab, "passing") == before
    assert seen(lab, "resets") == 0
    # HAProxy's two letters for the end of a session: both ends have closed, and nobody has given up.
    until("the proxy logs an ordinary end", lambda: " -- " in log_of(lab, "b", "haproxy.log"))
    until("a socket of the proxy is left", lambda: sockets(lab) == "")
