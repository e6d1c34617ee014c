"""Labs on the real kernel: built, used, crashed, taken down; nothing is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dysco.errors import HostError, LocalError, TimedOutError
from dysco.lab import Lab, load
from dysco.lab.emulator import Impairment, Shaper
from netns.conftest import MakeLab
from netns.labs import until
from netns.worlds import run

PAIR = """
[lab]
name = "pair"
emulator = "own"
[[host]]
name = "a"
agent = false
[[host]]
name = "b"
agent = false
"""


def left(lab: Lab) -> list[str]:
    """Give what there is of a lab on this machine."""
    stem = lab.netns("a").removesuffix("-a")
    spaces = [line for line in run(["ip", "netns", "list"]).splitlines() if line.startswith(stem)]
    return spaces + [str(path) for path in lab.directory.parent.glob("*")]


def ping(lab: Lab, family: int, count: int = 1) -> str:
    argv = ["ping", "-n", "-c", str(count), "-i", "0.01", "-W", "2", lab.address("b", family)]
    return lab.exec("a", argv, check=False).stdout


def test_up_use_down(make_lab: MakeLab) -> None:
    lab = make_lab(PAIR)
    lab.up()
    for family in (4, 6):
        assert " 0% packet loss" in ping(lab, family)
    status = lab.status()
    assert status["state"] == "up"
    assert status["nodes"][1]["ipv4"] == ["10.0.2.2"]
    assert json.dumps(status)
    with pytest.raises(HostError, match="the lab pair is up"):
        lab.up()
    with pytest.raises(LocalError, match="there is no node z in the lab pair; there are a, b, router"):
        lab.exec("z", ["true"])
    with pytest.raises(HostError, match="false on a: status 1"):
        lab.exec("a", ["false"])
    with pytest.raises(TimedOutError):
        lab.exec("a", ["sleep", "30"], timeout_s=0.05)
    lab.down()
    assert left(lab) == []
    lab.down()
    assert lab.status()["state"] == "down"


def test_another_process_uses_it_and_takes_it_down(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(PAIR)
    lab.up()
    sleeper = lab.start("a", ["sleep", "1000"])
    # A daemon that has left its parent is known by its namespace.
    lab.exec("b", ["sh", "-c", "setsid sleep 1001 >/dev/null 2>&1 &"])
    again = make_lab(PAIR)
    names = {process["name"] for node in again.status()["nodes"] for process in node["processes"]}
    assert "sleep" in names
    assert " 0% packet loss" in ping(again, 4)
    again.down()
    assert left(lab) == []
    assert sleeper.wait() == -signal.SIGTERM
    assert "sleep 1001\n" not in run(["ps", "-eo", "args"])


def test_what_fails_leaves_nothing(make_lab: MakeLab) -> None:
    failing = PAIR + 'setup = [["sh", "-c", "echo no such thing >&2; exit 3"]]\n'
    lab = make_lab(failing)
    with pytest.raises(HostError, match="status 3: no such thing"):
        lab.up()
    assert left(lab) == []
    lab = make_lab(
        PAIR + '[[host.program]]\nname = "p"\nargv = ["sh", "-c", "echo broken; exit 4"]\nlisten = [80]\n'
    )
    with pytest.raises(HostError, match="p on b ended:\nbroken"):
        lab.up()
    assert left(lab) == []
    lab = make_lab(PAIR + '[[host.program]]\nname = "p"\nargv = ["sleep", "100"]\nlisten = [80]\n')
    with pytest.raises(TimedOutError, match="p on b does not listen"):
        lab.up(wait_s=0.3)
    assert left(lab) == []
    lab = make_lab(PAIR + '[[host.program]]\nname = "p"\nargv = ["no-such-program"]\n')
    with pytest.raises(HostError, match="no-such-program: No such file"):
        lab.up()
    assert left(lab) == []


def test_a_foreign_namespace_is_not_touched(make_lab: MakeLab) -> None:
    lab = make_lab(PAIR)
    run(["ip", "netns", "add", lab.netns("b")])
    try:
        with pytest.raises(HostError, match=r"there is a network namespace .*-pair-b, but no lab"):
            lab.up()
        lab.down()
        assert lab.netns("b") in run(["ip", "netns", "list"])
    finally:
        run(["ip", "netns", "delete", lab.netns("b")])


@pytest.mark.parametrize("when", ["make_links", "start_emulator", "_make_host"])
def test_down_after_a_crash_while_it_is_built(make_lab: MakeLab, when: str) -> None:
    lab = make_lab(PAIR + '[[link]]\nbetween = ["a", "router"]\ndelay_ms = 1.0\n')
    child = os.fork()
    if child == 0:
        place: object = lab if when == "_make_host" else sys.modules["dysco.lab.network"]
        original: Callable[..., object] = getattr(place, when)

        def crash(*args: object) -> None:
            original(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(place, when, crash)
        try:
            lab.up()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert left(lab) != []
    lab.down()
    assert left(lab) == []


def test_files_placeholders_and_further_namespaces(make_lab: MakeLab) -> None:
    lab = make_lab(
        PAIR
        + 'namespaces = ["fw"]\nfiles = { "sub/x.txt" = "${a.ipv4} ${b.ipv6} ${ns.fw}" }\n'
        + 'setup = [["ip", "netns", "exec", "${ns.fw}", "true"], ["cp", "sub/x.txt", "${dir}/y.txt"]]\n'
    )
    lab.up()
    fw = lab.netns("b", "fw")
    assert (lab.directory / "b" / "y.txt").read_text() == f"10.0.1.1 fd00:2::2 {fw}"
    assert fw in run(["ip", "netns", "list"])
    with pytest.raises(LocalError):
        lab.netns("a", "fw")


def test_loss_by_seed_is_what_the_shaper_said(make_lab: MakeLab) -> None:
    """The n-th frame of a direction is lost if and only if the shaper says so for this seed."""
    link = '[[link]]\nbetween = ["a", "b"]\nloss = 0.2\nduplicate = 0.1\nseed = 5\ndelay_ms = 1.0\n'
    lab = make_lab(PAIR + link)
    lab.up()
    mac = json.loads(lab.exec("b", ["ip", "-j", "link", "show", "eth0"]).stdout)[0]["address"]
    other = json.loads(lab.exec("a", ["ip", "-j", "link", "show", "eth0"]).stdout)[0]["address"]
    for host, address, hardware in (("a", "10.0.1.2", mac), ("b", "10.0.1.1", other)):
        lab.exec(
            host, ["ip", "neigh", "replace", address, "lladdr", hardware, "dev", "eth0", "nud", "permanent"]
        )
    lab.exec("a", ["ping", "-n", "-c", "100", "-i", "0.002", "-W", "1", "10.0.1.2"], check=False)
    shaper = Shaper(Impairment(delay_s=0.001, loss=0.2, duplicate=0.1), 5, 0)
    fates: list[int] = []

    def as_said() -> bool:
        """Compare what arrived with what the seed says; true between two readings of an unchanged sender."""
        sent, got = frames(lab, "a", "tx"), frames(lab, "b")
        fates.extend(len(shaper.push(98, float(number))) for number in range(len(fates), sent))
        return frames(lab, "a", "tx") == sent and got == sum(fates)

    until("every frame met the fate that the seed gives it", as_said)
    assert len(fates) >= 100
    assert 0.6 * len(fates) <= sum(fates) < 1.1 * len(fates)


def frames(lab: Lab, host: str, way: str = "rx") -> int:
    stats = json.loads(lab.exec(host, ["ip", "-j", "-s", "link", "show", "eth0"]).stdout)[0]["stats64"]
    return int(stats[way]["packets"])


def test_delay_and_rate(make_lab: MakeLab) -> None:
    server = '[[host.program]]\nname = "iperf3"\nargv = ["iperf3", "-s"]\nlisten = [5201]\n'
    link = '[[link]]\nbetween = ["a", "router"]\ndelay_ms = 20.0\nrate_mbit = 8.0\n'
    lab = make_lab(PAIR + server + link)
    lab.up()
    ping(lab, 4)  # asks for hardware addresses
    answered = [float(one) for one in re.findall(r"time=([\d.]+) ms", ping(lab, 4, 20))]
    assert 40 <= min(answered) < 80  # a busy machine may add to some
    told = json.loads(lab.exec("a", ["iperf3", "-J", "-c", "10.0.2.2", "-t", "1"]).stdout)
    assert told["end"]["sum_received"]["bits_per_second"] < 8.8e6
    assert told["end"]["sum_received"]["bits_per_second"] > 3e6


def test_a_gateway_and_a_bridge(make_lab: MakeLab) -> None:
    lab = make_lab(
        '[lab]\nname = "gate"\n[[host]]\nname = "a"\nagent = false\n[[host]]\nname = "b"\nagent = false\n'
        '[[host]]\nname = "g"\nagent = false\nforward = true\n[[bridge]]\nname = "lan"\n'
        '[[link]]\nbetween = ["a", "lan"]\n[[link]]\nbetween = ["lan", "g"]\n[[link]]\nbetween = ["g", "router"]\n'
    )
    lab.up()
    for family in (4, 6):
        assert " 0% packet loss" in ping(lab, family)


async def test_as_a_context(make_lab: MakeLab) -> None:
    async with make_lab(PAIR) as lab:
        assert lab.status()["state"] == "up"
    assert left(lab) == []


def test_the_command_line_of_exec(make_lab: MakeLab) -> None:
    lab = make_lab(PAIR)
    lab.up()
    argv = lab.command("a", ["ip", "-j", "addr", "show", "eth0"])
    assert "10.0.1.1" in subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "10.0.1.1" in run(["ip", "netns", "exec", lab.netns("a"), "ip", "addr"])
    assert load(Path(__file__).parents[2] / "configs/lab-demo.toml").netns("a") == "dysco-demo-a"
