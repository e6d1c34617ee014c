"""Middlebox hosts die during a download, agent and links and all, and not a byte is lost.

One of the chain is bypassed; a change that was to bring one is taken back.
"""

from __future__ import annotations

import pytest

from dysco.lab import Lab
from dysco.protocol.left import SILENT
from netns.conftest import MakeLab
from netns.deaths import die, dies, switched
from netns.labs import MEGABYTE, ask, counters, lab_text, nft_counter, put_file, sessions, until
from netns.test_changes import change, download, firewall, seen, was_done, watch
from netns.test_middleboxes import boxes


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
    # curl may have closed a moment ago.
    until("it is not over", lambda: all(one["state"] == "time-wait" for one in sessions(lab, "d")))


@pytest.mark.parametrize(("mode", "family", "asker"), [("ebpf", 4, "d"), ("tun", 6, "a")], indirect=["mode"])
def test_a_change_whose_new_host_dies_at_the_commit_is_taken_back(
    make_lab: MakeLab, family: int, asker: str
) -> None:
    lab = make_lab(lab_text("back", firewall("b"), firewall("c"), hops='["b"]'))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 24 * MEGABYTE)
    with download(lab, family, 2 * MEGABYTE) as running:
        with dies(lab, "c", switched(lab, family, "a", "c")):
            steps = change(lab, asker, "replace", "b", "c")
        assert [one.phase for one in steps[-3:]] == ["two paths", "stuck", "aborted"]
        assert (steps[-1].kind, steps[-1].by, steps[-1].reason) == ("end", "a", SILENT)
        before = running.arrived
        until("it does not go on", lambda: running.arrived > before + MEGABYTE)
        was_done(change(lab, asker, "remove", "b"))
        assert running.digest() == wanted
    assert seen(lab, "resets") == 0


@pytest.mark.parametrize(("mode", "family", "asker"), [("ebpf", 6, "a")], indirect=["mode"])
def test_a_new_host_that_dies_when_all_know_that_it_has_come_is_bypassed(
    make_lab: MakeLab, family: int, asker: str
) -> None:
    lab = make_lab(lab_text("new", firewall("b"), firewall("c"), hops='["b"]'))
    lab.up()
    watch(lab, "c")
    wanted = put_file(lab, 24 * MEGABYTE)
    with download(lab, family, 2 * MEGABYTE) as running:
        was_done(change(lab, asker, "replace", "b", "c"))
        until("nobody was told", lambda: counters(lab, "c")["places_learnt"] > 0)
        die(lab, "c")
        was_done(change(lab, asker, "remove", "c", force=True))
        assert running.digest() == wanted
    assert seen(lab, "resets") == 0


TWICE = """
[[host]]
name = "NAME"
copy = ["BOXES/counter.py"]
[host.config]
timers = { keepalive = 0.2, peer_dead = 0.8 }
box = [{ name = "one", kind = "packet", python = "counter.py:Counter" },
       { name = "two", kind = "packet", python = "counter.py:Counter" }]
"""


@pytest.mark.parametrize(("mode", "family"), [("ebpf", 4), ("tun", 6)], indirect=["mode"])
def test_a_dead_host_that_stands_twice_is_taken_out_of_both_places(make_lab: MakeLab, family: int) -> None:
    hosts = (boxes(TWICE.replace("NAME", name)) for name in "bc")
    lab = make_lab(lab_text("both", *hosts, hops='["b/one", "c/one", "b/two"]'))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 12 * MEGABYTE)
    with download(lab, family, MEGABYTE) as running:
        until("nobody was told", lambda: all(counters(lab, one)["places_learnt"] for one in "acd"))
        die(lab, "b")
        until(
            "c believes in b",
            lambda: next(one for one in ask(lab, "c", "peers") if one["name"] == "b")["state"] != "up",
        )
        was_done(change(lab, "d", "remove", "b/one", force=True))
        # Beyond b/two nobody hears of that; all before it know what stands there.
        until("a was not told", lambda: plan_of(lab, "a", "b") == ["a", "c/one", "b/two", "d"])
        was_done(change(lab, "a", "remove", "b", force=True))
        assert running.digest() == wanted
    assert seen(lab, "resets") == 0


def plan_of(lab: Lab, node: str, box: str) -> list[str]:
    """Who is on the chain, as an agent believes that is asked to take out a dead host; empty if it refuses."""
    steps = change(lab, node, "remove", box, force=True, dry_run=True)
    return list(steps[0].before) if steps[0].kind == "plan" else []
