"""A middlebox host dies during a download, agent and links and all: it is bypassed, and not a byte is lost."""

from __future__ import annotations

import os
import signal

import pytest

from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, counters, lab_text, nft_counter, put_file, sessions, until
from netns.test_changes import change, download, firewall, seen, was_done, watch


def die(lab: Lab, node: str) -> None:
    """Kill a host: its agent for good, and its links."""
    os.kill(lab.agent_pid(node), signal.SIGKILL)
    lab.exec(node, ["ip", "link", "set", "eth0", "down"])


@pytest.mark.parametrize(
    ("mode", "family", "asker", "other"), [("ebpf", 4, "a", ""), ("tun", 6, "d", "c")], indirect=["mode"]
)
def test_a_dead_middlebox_is_bypassed(make_lab: MakeLab, family: int, asker: str, other: str) -> None:
    parts = firewall("b"), firewall("c")
    lab = make_lab(lab_text("dead", *parts, hops='["b"]'))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 12 * MEGABYTE)
    with download(lab, family, 2 * MEGABYTE) as running:
        until("nobody was told", lambda: all(counters(lab, one)["places_learnt"] for one in "ad"))
        die(lab, "b")
        steps = change(
            lab, asker, "replace" if other else "remove", "b", *([other] if other else []), force=True
        )
        was_done(steps)
        assert running.digest() == wanted
    assert seen(lab, "resets") == 0
    assert (nft_counter(lab, "c", "firewall", "passed") > 4) == bool(other)
    assert [one["state"] for one in sessions(lab, "d")] == ["time-wait"] or sessions(lab, "d") == []
