"""A proxy dies while it is being taken out of a download: what it held decides what becomes of the session.

HAProxy is killed; its host's kernel then closes or resets what it had open. Or the whole host falls silent.

a (curl) == b (HAProxy) == d (nginx)        becomes        a == d
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from dysco.chains import Step
from dysco.errors import DyscoError
from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.deaths import die
from netns.labs import MEGABYTE, counters, log_of, put_file, sessions, until
from netns.test_changes import download, seen, watch
from netns.test_splice import proxy_lab, splice

# What the server sends to the proxy is lost; what agents say to each other is not.
LOSS = """
table inet loss {
    chain forward {
        type filter hook forward priority filter;
        NET saddr FROM NET daddr TO meta l4proto tcp meta length > 100 drop
    }
}
"""


@contextlib.contextmanager
def lossy(lab: Lab, family: int, source: str, target: str) -> Iterator[None]:
    """Lose TCP data on the way from one host to another."""
    rules = LOSS.replace("NET", "ip" if family == 4 else "ip6")
    path = lab.directory / "loss.nft"
    path.write_text(
        rules.replace("FROM", lab.address(source, family)).replace("TO", lab.address(target, family))
    )
    lab.exec("router", ["nft", "-f", str(path)])
    try:
        yield
    finally:
        lab.exec("router", ["nft", "delete", "table", "inet", "loss"])


def queues(lab: Lab, node: str) -> list[tuple[int, int]]:
    """Bytes that the kernel holds for each open session of a node: of the network, and for it."""
    lines = lab.exec(node, ["ss", "-Htn", "state", "established"]).stdout.splitlines()
    return [(int(unread), int(unsent)) for unread, unsent, *_ in map(str.split, lines)]


def tell_proxy(lab: Lab, number: signal.Signals) -> None:
    """Send HAProxy a signal."""
    [host] = [one for one in lab.status()["nodes"] if one["name"] == "b"]
    found = [one["pid"] for one in host["processes"] if one["name"] == "haproxy"]
    for pid in found:
        os.kill(pid, number)
    assert found


def lost(lab: Lab) -> list[int]:
    """Bytes that went with the proxy, by what the anchors' logs say."""
    said = log_of(lab, "a", "agent.log") + log_of(lab, "d", "agent.log")
    found = re.findall(r"the proxy is dead; (\d+) bytes that it was to pass on have not come to ", said)
    return [int(one) for one in found]


def survived(lab: Lab) -> list[int]:
    """How often each anchor has gone on without the proxy."""
    return [counters(lab, node)["proxy_survived"] for node in "ad"]


def phases(lab: Lab, node: str) -> list[str]:
    """How far the changes of the session of an agent are."""
    return [change["phase"] for one in sessions(lab, node) for change in one["changes"]]


@contextlib.contextmanager
def splicing(lab: Lab) -> Iterator[Future[list[Step]]]:
    """Take the proxy out until both anchors have two paths; the steps come when it has ended."""
    with ThreadPoolExecutor(1) as pool:
        steps = pool.submit(splice, lab)

        def switched() -> bool:
            assert not steps.done(), steps.result()
            return phases(lab, "a") == ["two paths"] and phases(lab, "d") in (["two paths"], ["drained"])

        until("the anchors do not switch", switched)
        yield steps


def is_empty(lab: Lab) -> bool:
    """Whether the proxy has passed on all that has come to it, and there is more."""
    return queues(lab, "b") == [(0, 0)] * 2 and all(unsent for _, unsent in queues(lab, "d"))


@pytest.mark.parametrize(("mode", "family"), [("tun", 4), ("ebpf", 6)], indirect=["mode"])
def test_a_session_is_saved_whose_proxy_held_nothing(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(proxy_lab(family))
    lab.up()
    watch(lab, "a")
    wanted = put_file(lab, 48 * MEGABYTE)
    with download(lab, family, node="b", port=8080) as running:
        with lossy(lab, family, "d", "b"):
            until("the proxy does not get empty", lambda: is_empty(lab))
            with splicing(lab) as steps:
                tell_proxy(lab, signal.SIGKILL)
        assert steps.result()[-1].phase == "done", steps.result()
        until("an anchor does not go on", lambda: survived(lab) == [1, 1])
        for node in "ad":
            assert [one["state"] for one in sessions(lab, node)] == ["established"]
        assert running.digest() == wanted
    assert seen(lab, "resets") == 0


@pytest.mark.parametrize(("mode", "family"), [("tun", 6), ("ebpf", 4)], indirect=["mode"])
def test_a_session_ends_whose_proxy_held_bytes_and_it_is_said_how_many(
    make_lab: MakeLab, family: int
) -> None:
    lab = make_lab(proxy_lab(family))
    lab.up()
    put_file(lab, 48 * MEGABYTE)
    with download(lab, family, 4 * MEGABYTE, node="b", port=8080) as running:
        tell_proxy(lab, signal.SIGSTOP)
        until("nothing waits for the proxy", lambda: any(unread for unread, _ in queues(lab, "b")))
        with splicing(lab) as steps:
            tell_proxy(lab, signal.SIGKILL)
        end = steps.result()[-1]
        assert (end.phase, end.reason.partition(";")[0]) == ("aborted", "the proxy is dead"), end
        assert running.status() != 0
    until("a session is left", lambda: not any(sessions(lab, node) for node in "ad"))
    until("it is not said how many bytes are lost", lambda: lost(lab) != [])
    assert min(lost(lab)) > 0


# A minute is long for a test.
IMPATIENT = """
from dysco.protocol import left, right, switching
switching.ALARM_S = 1.0
left.RENEW_S = right.RENEW_S = 0.5
"""


@pytest.mark.parametrize(("mode", "family"), [("ebpf", 4)], indirect=["mode"])
def test_a_session_is_saved_when_the_whole_host_of_its_proxy_dies(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: int
) -> None:
    lab = make_lab(proxy_lab(family))
    lab.up(agents=False)
    (tmp_path / "sitecustomize.py").write_text(IMPATIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for node in "abd":
        lab.start_agent(node)
    lab.wait_for_agents()
    watch(lab, "a")
    wanted = put_file(lab, 48 * MEGABYTE)
    with download(lab, family, node="b", port=8080) as running:
        with lossy(lab, family, "d", "b"):
            until("the proxy does not get empty", lambda: is_empty(lab))
            with contextlib.suppress(DyscoError), splicing(lab):
                die(lab, "b")
        until("it is not saved", lambda: all(survived(lab)))
        assert running.digest() == wanted
    assert seen(lab, "resets") == 0
