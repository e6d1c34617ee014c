"""Agents come from one process of the lab; without it they go on, and it never stays behind.

a ---- b
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dysco.lab import Lab, Nursery
from netns.conftest import MakeLab
from netns.labs import ask, until
from netns.test_lab import left

AGENTS = '[lab]\nname = "nursery"\n[[host]]\nname = "a"\n[[host]]\nname = "b"\n'
PROGRAM = """
import os, signal, sys
from pathlib import Path
from dysco.lab import lab, load, nursery
WHEN, path, prefix, root = sys.argv[1:]
close = nursery.Nursery.close
def shown(self):
    print(self.pid, flush=True)
    close(self)
nursery.Nursery.close = shown
if WHEN == "killed":
    def killed(self, until):
        print(self._nursery.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    lab.Lab.wait_for_agents = killed
load(path, prefix=prefix, root=Path(root)).up()
"""


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}/exe").exists()


def test_agents_do_not_need_it(make_lab: MakeLab, nursery: Nursery) -> None:
    lab = make_lab(AGENTS)
    lab.up()
    killed = nursery.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    until("it lives", lambda: is_gone(killed))
    lab.wait_for_agents()
    before = {node: lab.agent_pid(node) for node in "ab"}
    os.kill(before["b"], signal.SIGKILL)
    until("the agent lives", lambda: is_gone(before["b"]))
    agent = lab.start_agent("b")
    lab.wait_for_agents()
    assert nursery.pid != killed
    assert ask(lab, "a", "status")["pid"] == before["a"]
    assert ask(lab, "b", "status")["pid"] == agent.pid == lab.agent_pid("b")
    assert agent.poll() is None
    os.kill(agent.pid, signal.SIGTERM)
    assert agent.wait(20) == 0


@pytest.mark.parametrize("when", ["up", "killed"])
def test_it_ends_with_who_has_brought_the_lab_up(make_lab: MakeLab, tmp_path: Path, when: str) -> None:
    lab = make_lab(AGENTS)
    argv = [sys.executable, "-c", PROGRAM, when, str(tmp_path / "lab-0.toml"), *place(lab)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (0 if when == "up" else -signal.SIGKILL), done.stderr
    pid = int(done.stdout)
    if when == "up":
        assert is_gone(pid)
    until("it lives", lambda: is_gone(pid))
    lab.wait_for_agents()
    names = {process["name"] for node in lab.status()["nodes"] for process in node["processes"]}
    assert len(names) == 1
    lab.down()
    assert left(lab) == []


def place(lab: Lab) -> tuple[str, str]:
    """The prefix of a lab's namespaces, and where its files are."""
    return lab.netns("a").removesuffix("-nursery-a"), str(lab.directory.parent)
