"""A middlebox of a live chain is replaced and its state goes along, on real kernels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import (
    MEGABYTE,
    both_modes,
    lab_text,
    log_of,
    nft_counter,
    put_file,
    sessions,
    until,
    until_said,
)
from netns.test_changes import FAMILIES, change, download, firewall, was_done

BOXES = Path(__file__).parents[2] / "configs" / "boxes"
MODES = pytest.mark.parametrize("state", ["copy", "freeze"])

COUNTER = """
[[host]]
name = "NAME"
copy = ["BOXES/counter.py"]
[host.config]
box = [{ name = "counter", kind = "packet", python = "counter.py:Counter", state = "python" }]
timers = { time_wait = 0.5 }
"""

# Says how many packets its own kernel has seen, and writes down what it is told.
COMMAND = '''
[host.files]
"move.py" = """
import base64, json, pathlib, sys
request = json.load(sys.stdin)
said = json.dumps(request)
with (pathlib.Path(__file__).parent / "asked").open("a") as file:
    file.write(said + chr(10))
answer = {}
if request["action"] == "export":
    answer["state"] = base64.b64encode(b"of b").decode()
print(json.dumps(answer))
"""
'''


# New data are held for half a second at most, and then the session goes on without its state: a busy machine may need
# longer by itself until the old path is empty.
PATIENT = """
from dysco.protocol import inside, left, right
inside.FROZEN_S = left.FROZEN_S = right.FROZEN_S = 20.0
"""


@pytest.fixture
def _patient(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have agents hold new data until the state of a frozen session is there."""
    directory = tmp_path_factory.getbasetemp() / "patient"
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(PATIENT)
    monkeypatch.setenv("PYTHONPATH", str(directory))


def stateful(name: str, extra: str) -> str:
    """A strict firewall whose box has a way to move state."""
    return firewall(name).replace('kind = "kernel" }', f'kind = "kernel", {extra} }}')


def marked(lab: Lab, node: str) -> int:
    """Entries of port 80 with the mark of this test in the connection tracker of a node."""
    argv = ["conntrack", "-L", "-p", "tcp", "--dport", "80", "-m", "77"]
    found = 0
    for family in ("ipv4", "ipv6"):
        found += lab.exec(node, [*argv, "-f", family]).stdout.count("mark=77")
    return found


def replaced(lab: Lab, family: int, state: str, before: Callable[[], None] = lambda: None) -> None:
    """Replace b by c during a download, which must arrive whole."""
    wanted = put_file(lab, 20 * MEGABYTE)
    with download(lab, family) as running:
        before()
        was_done(change(lab, "a", "replace", "b", "c", state=state))
        until("the old host has left", lambda: sessions(lab, "b") == [])
        assert running.digest() == wanted


@both_modes
@MODES
@FAMILIES
@pytest.mark.usefixtures("_patient")
def test_a_firewalls_entry_goes_along(make_lab: MakeLab, family: int, state: str) -> None:
    box = 'state = "conntrack"'
    lab = make_lab(lab_text("entry", stateful("b", box), stateful("c", box), hops='["b"]'))
    lab.up()

    def mark() -> None:
        kind = f"ipv{family}"
        lab.exec("b", ["conntrack", "-U", "-f", kind, "-p", "tcp", "--dport", "80", "-m", "77"])
        assert marked(lab, "b") == 1
        assert marked(lab, "c") == 0

    replaced(lab, family, state, mark)
    assert marked(lab, "c") == 1, "the mark that the old firewall's entry had"
    assert nft_counter(lab, "c", "firewall", "invalid") == 0
    until_said(lab, "b", "agent.log", "state_exported")
    until_said(lab, "c", "agent.log", "state_installed")


@both_modes
@MODES
@pytest.mark.usefixtures("_patient")
def test_a_python_boxs_counts_go_along(make_lab: MakeLab, state: str) -> None:
    boxes = [COUNTER.replace("NAME", name).replace("BOXES", str(BOXES)) for name in "bc"]
    lab = make_lab(lab_text("counts", *boxes, hops='["b"]'))
    lab.up()
    replaced(lab, 4, state)

    def said(node: str) -> int:
        found = re.search(
            r"ended after (\d+) packets forward, (\d+) backward", log_of(lab, node, "counter.txt")
        )
        return 0 if found is None else int(found[1]) + int(found[2])

    until("a counter does not tell", lambda: said("b") > 0 and said("c") > 0)
    assert said("c") > said("b")


@both_modes
def test_a_commands_state_goes_along(make_lab: MakeLab) -> None:
    box = 'state = "command", state_command = ["/usr/bin/env", "python3", "${dir}/move.py"], state_timeout = 8.0'
    hosts = [stateful(name, box).replace("[host.files]\n", COMMAND.strip() + "\n") for name in "bc"]
    lab = make_lab(lab_text("command", *hosts, hops='["b"]'))
    lab.up()
    replaced(lab, 4, "copy")
    assert '"action": "export"' in log_of(lab, "b", "asked")
    asked = log_of(lab, "c", "asked")
    assert '"action": "import"' in asked
    assert '"state": "b2YgYg=="' in asked


@both_modes
def test_a_box_without_state_refuses_and_the_session_goes_on(make_lab: MakeLab) -> None:
    lab = make_lab(lab_text("none", firewall("b"), firewall("c"), hops='["b"]'))
    lab.up()
    wanted = put_file(lab, 20 * MEGABYTE)
    with download(lab, 4) as running:
        steps = change(lab, "a", "replace", "b", "c", state="copy")
        assert steps[-1].phase in ("refused", "aborted"), steps
        assert 'has state = "none"' in steps[-1].reason
        assert running.digest() == wanted
