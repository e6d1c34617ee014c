"""The agent service on real kernels: lost devices, stopping with sessions kept, embedding, metrics over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from dysco.host import run_in
from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import (
    MEGABYTE,
    both_modes,
    fetch,
    lab_text,
    log_of,
    of_host,
    put_file,
    sessions,
    until,
    until_said,
    url,
)
from netns.worlds import attached

BOX = """
[[host]]
name = "b"
[host.config]
box = [{ name = "plain", kind = "kernel" }]
"""

EMBEDDED = """
import asyncio, json, sys
from pathlib import Path
import dysco
from dysco import config

async def main():
    path = Path(sys.argv[1])
    async with dysco.Agent(config.load(path), path) as agent:
        print("up", flush=True)
        async with dysco.connect(path.parent / "own.sock") as d:
            print(json.dumps((await d.status()).name), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(asyncio.get_running_loop().is_running()), flush=True)

asyncio.run(main())
"""


def test_an_agent_whose_device_was_deleted_stops_and_says_so(make_lab: MakeLab) -> None:
    lab = make_lab(lab_text("gone", BOX, hops='["b"]'))
    lab.up(agents=False)
    agents = {node: lab.start_agent(node) for node in ("a", "b", "d")}
    lab.wait_for_agents()
    wanted = put_file(lab, MEGABYTE)
    assert fetch(lab, url(lab, 4)) == wanted
    lab.exec("b", ["ip", "link", "delete", "dysco0"])
    assert agents["b"].wait(20) == 1
    said = log_of(lab, "b", "agent.log")
    assert "device_failed" in said
    assert "a TUN device of the agent was deleted" in said
    assert "Traceback" not in said
    lab.start_agent("b")
    lab.wait_for_agents()
    assert fetch(lab, url(lab, 4)) == wanted


@both_modes
def test_while_sessions_are_kept_new_ones_do_not_go_past_the_chain(make_lab: MakeLab) -> None:
    text = lab_text("keep", BOX, hops='["b"]')
    lab = make_lab(of_host("a", 'config.agent = { on_stop = "keep" }', text))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    assert fetch(lab, url(lab, 4)) == wanted
    pid = lab.agent_pid("a")
    os.kill(pid, signal.SIGTERM)
    until("the agent does not end", lambda: not Path(f"/proc/{pid}/exe").exists())
    for family in (4, 6):
        done = lab.exec("a", ["curl", "-sS", "-m", "1", url(lab, family)], check=False)
        assert done.returncode == 28, done.stderr  # curl's "timed out"
    until_said(lab, "d", "access.log", "GET")
    assert log_of(lab, "d", "access.log").count("GET") == 1
    lab.start_agent("a")
    lab.wait_for_agents()
    assert fetch(lab, url(lab, 6)) == wanted


@both_modes
def test_an_agent_inside_another_program(make_lab: MakeLab) -> None:
    lab = make_lab(lab_text("inside", BOX, hops='["b"]'))
    lab.up(agents=False)
    for node in ("b", "d"):
        lab.start_agent(node)
    path = lab.directory / "a" / "host.toml"
    path.write_text(path.read_text().replace(str(lab.socket("a")), str(lab.directory / "a" / "own.sock")))
    before = routes(lab)
    with subprocess.Popen(
        lab.command("a", [sys.executable, "-c", EMBEDDED, str(path)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        assert program.stdout.readline() == "up\n"
        assert json.loads(program.stdout.readline()) == "a"
        wanted = put_file(lab, MEGABYTE)
        until("the chain does not work", lambda: fetches(lab, wanted))
        assert sessions(lab, "b")
        assert routes(lab) != before
        program.stdin.close()
        assert json.loads(program.stdout.readline()) is True
    assert program.returncode == 0
    assert routes(lab) == before


def fetches(lab: Lab, wanted: str) -> bool:
    done = lab.exec("a", ["curl", "-sS", "-m", "5", "-o", "/dev/null", url(lab, 4)], check=False)
    return done.returncode == 0 and fetch(lab, url(lab, 4)) == wanted


def routes(lab: Lab) -> str:
    """What an agent changes most visibly."""
    return lab.exec("a", ["ip", "-br", "link"]).stdout + " ".join(run_in(lab.netns("a"), attached))


def test_metrics_over_http(make_lab: MakeLab) -> None:
    text = lab_text("metrics", BOX, hops='["b"]')
    lab = make_lab(of_host("a", 'config.agent = { metrics = "127.0.0.1:9416" }', text))
    lab.up()
    assert fetch(lab, url(lab, 4, "index.html"))
    told = lab.exec("a", ["curl", "-sS", "-f", "http://127.0.0.1:9416/metrics"]).stdout
    assert 'dysco_core_total{what="established"} 1' in told
    assert "dysco_sessions 1" in told.splitlines()
    names = {line.split("{")[0].split(" ")[0] for line in told.splitlines() if not line.startswith("#")}
    assert all(f"# TYPE {name} " in told for name in names)
    done = lab.exec("a", ["curl", "-sS", "-f", "http://127.0.0.1:9416/other"], check=False)
    assert done.returncode == 22  # curl: an HTTP error
