"""Real bytes through real devices: nginx and curl across three hosts, a chain made by static agents.

    dp0 (10.7.0.1) --- switch --- dp1 (10.7.0.2), a middlebox host --- switch --- dp2 (10.7.0.3)

The agents have no protocol (static_agent.py), so that what fails here fails in the data plane.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.devices import Steer
from dysco.dataplane import selftest
from dysco.dataplane.bpf import HASH, MapSpec, create_map
from dysco.dataplane.forward import Forwarder
from dysco.dataplane.selftest import offload_fault
from dysco.dataplane.steer import IN, OUT, Steering
from dysco.dataplane.table import PythonFlowTable
from dysco.dataplane.tun import Tun
from dysco.host import run_in
from dysco.policy.clauses import Clause
from dysco.protocol.flow import HOST
from dysco.wire import vnet
from dysco.wire.packet import build_tcp
from dysco.wire.tuples import FiveTuple
from netns.labs import until
from netns.worlds import run

SIZE = 24 * 1024 * 1024
TIMED_OUT = 28  # curl(1); a connection past the agent would give 0, a reset 7 or 56
SOURCES = Path(__file__).parents[2] / "src"
NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{ listen 80; listen [::]:80; root {directory}; dav_methods PUT; client_max_body_size 64m; }}
}}
"""


class World:
    """Three hosts on a switch, a web server on the last."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names = [f"dp{os.getpid()}-{number}" for number in range(3)]
        self.switch = f"dp{os.getpid()}-sw"
        self.agents: list[subprocess.Popen[str]] = []
        self.server: subprocess.Popen[bytes] | None = None
        self.addresses = [
            (f"10.7.0.{number}", f"fd07::{number}") for number in range(1, 4)
        ]  # fmt: skip

    def build(self) -> None:
        run(["ip", "netns", "add", self.switch])
        run(["ip", "-n", self.switch, "link", "add", "br0", "up", "type", "bridge"])
        for number, (name, (four, six)) in enumerate(zip(self.names, self.addresses, strict=True)):
            run(["ip", "netns", "add", name])
            run(["ip", "-n", name, "link", "set", "lo", "up"])
            peer = ["peer", "name", f"p{number}", "netns", self.switch]
            run(["ip", "-n", name, "link", "add", "eth0", "type", "veth", *peer])
            run(["ip", "-n", self.switch, "link", "set", f"p{number}", "master", "br0", "up"])
            run(["ip", "-n", name, "address", "add", f"{four}/24", "dev", "eth0"])
            run(["ip", "-n", name, "address", "add", f"{six}/64", "dev", "eth0", "nodad"])
            run(["ip", "-n", name, "link", "set", "eth0", "up"])
            self.inside(number, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 43999")

    def destroy(self) -> None:
        for agent in self.agents:
            agent.kill()
            agent.communicate()
        if self.server is not None:
            self.server.terminate()
            self.server.wait()
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def inside(self, host: int, *argv: str) -> str:
        """Run a command on a host."""
        return run(self._argv(host, *argv))

    def _argv(self, host: int, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.names[host]}", *argv]

    def serve(self, data: bytes) -> None:
        """Start the web server with one file on the last host."""
        (self.directory / "data").write_bytes(data)
        self.directory.chmod(0o755)
        (self.directory / "nginx.conf").write_text("user root;" + NGINX.format(directory=self.directory))
        argv = self._argv(2, "nginx", "-c", str(self.directory / "nginx.conf"))
        self.server = subprocess.Popen(argv)
        self.inside(
            2, "curl", "-s", "--retry", "50", "--retry-connrefused", "--retry-delay", "0", "-o", "/dev/null",
            "http://127.0.0.1/",
        )  # fmt: skip

    def start(
        self, *, offload: bool = True, shift: int = 0, fast: bool = False, by_tcx: bool | None = None
    ) -> None:
        """Start an agent on every host."""
        hosts = [[ipaddress.ip_address(one).packed.hex() for one in both] for both in self.addresses]
        environment = dict(os.environ, PYTHONPATH=f"{SOURCES}:{Path(__file__).parents[1]}")
        for number in range(3):
            directory = self.directory / f"agent{number}"
            directory.mkdir(exist_ok=True)
            settings: dict[str, Any] = {
                "place": number, "hosts": hosts, "offload": offload, "shift": shift, "fast": fast, "by_tcx": by_tcx,
                "directory": str(directory),
            }  # fmt: skip
            argv = self._argv(number, sys.executable, "-m", "netns.static_agent", json.dumps(settings))
            self.agents.append(
                subprocess.Popen(
                    argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        for agent in self.agents:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "ready\n"

    def stop(self) -> list[dict[str, Any]]:
        """Stop the agents; give what they counted."""
        reports = [json.loads(agent.communicate("", timeout=20)[0]) for agent in self.agents]
        self.agents.clear()
        return reports

    def fetch(self, family: int, *more: str) -> str:
        """Download the file through the chain and give its SHA-256."""
        host = self.addresses[2][family == 6]
        url = f"http://[{host}]/data" if family == 6 else f"http://{host}/data"
        argv = self._argv(0, "curl", "-sSf", "--max-time", "25", *more, url)
        done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return hashlib.sha256(done.stdout).hexdigest()

    def attempt(self) -> int:
        """Try a download for two seconds and give curl's exit status."""
        argv = self._argv(0, "curl", "-s", "--max-time", "2", "-o", "/dev/null", "http://10.7.0.3/data")
        return subprocess.run(argv, check=False).returncode

    def store(self, family: int, data: Path) -> None:
        """Upload a file through the chain."""
        host = self.addresses[2][family == 6]
        url = f"http://[{host}]/stored" if family == 6 else f"http://{host}/stored"
        self.inside(0, "curl", "-sSf", "--max-time", "25", "-o", "/dev/null", "-T", str(data), url)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    try:
        made.build()
        yield made
    finally:
        made.destroy()


@pytest.mark.parametrize(
    ("fast", "offload", "transmit", "shift"),
    [
        pytest.param(False, True, True, 0, id="offload"),
        pytest.param(False, True, False, 0, id="complete-checksums"),
        pytest.param(False, False, True, 0, id="plain"),
        pytest.param(False, True, True, 2**31 + 12345, id="numbers"),
        pytest.param(False, True, False, 2**31 + 12345, id="numbers-complete-checksums"),
        pytest.param(True, True, True, 0, id="kernel"),
        pytest.param(True, True, False, 0, id="kernel-complete-checksums"),
        pytest.param(True, True, True, 2**31 + 12345, id="kernel-numbers"),
        pytest.param(True, True, False, 2**31 + 12345, id="kernel-numbers-complete-checksums"),
    ],
)
def test_a_file_through_a_chain(world: World, fast: bool, offload: bool, transmit: bool, shift: int) -> None:
    """Both ways, both families; with transmit offload off on all devices every checksum is a complete one."""
    size = SIZE if offload and transmit else SIZE // 8
    data = os.urandom(size)
    digest = hashlib.sha256(data).hexdigest()
    world.serve(data)
    if not transmit:
        for host in range(3):
            world.inside(host, "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
    world.start(offload=offload, shift=shift, fast=fast)
    for family in (4, 6):
        assert world.fetch(family) == digest
        world.store(family, world.directory / "data")
        assert hashlib.sha256((world.directory / "stored").read_bytes()).hexdigest() == digest
        (world.directory / "stored").unlink()
    reports = world.stop()
    for report in reports:
        assert report["offload"] == offload
        assert report["fast"] > 4 * size / 65536, "the sessions went past the agent"
        assert (report["steering"]["rewritten"] > report["fast"] / 2) == fast
        assert report["steering"]["no_route"] == 0
        assert report["steering"]["reset_kept_back"] == 0
    assert reports[0]["steering"]["syn_captured"] == 4


def test_a_file_through_a_chain_of_kernels_without_tcx(world: World) -> None:
    data = os.urandom(SIZE // 8)
    world.serve(data)
    world.start(fast=True, by_tcx=False)
    for family in (4, 6):
        assert world.fetch(family) == hashlib.sha256(data).hexdigest()
    assert all(report["steering"]["rewritten"] > 2 * SIZE / 8 / 65536 for report in world.stop())


def test_a_stopped_and_a_killed_agent(world: World) -> None:
    """While an agent does not read, nothing leaks and nothing is reset; a killed one's programs stay."""
    world.serve(os.urandom(SIZE))
    world.start()
    world.inside(
        0, "nft", "add table inet watch; add chain inet watch in { type filter hook input priority 0; }; "
        "add rule inet watch in tcp flags rst counter"
    )  # fmt: skip
    slow = world._argv(0, "curl", "-sSf", "--limit-rate", "6M", "-o", str(world.directory / "got"))
    with subprocess.Popen([*slow, "http://10.7.0.3/data"]) as transfer:
        watched = world.directory / "got"
        until("nothing arrives", lambda: watched.exists() and watched.stat().st_size > SIZE // 16)
        for number in (0, 1):
            world.agents[number].send_signal(signal.SIGSTOP)
        assert world.attempt() == TIMED_OUT
        for number in (0, 1):
            world.agents[number].send_signal(signal.SIGCONT)
        assert transfer.wait(25) == 0
    assert watched.read_bytes() == (world.directory / "data").read_bytes()
    world.agents[0].kill()
    world.agents[0].wait()
    assert world.attempt() == TIMED_OUT
    assert "tcp flags rst counter packets 0 " in world.inside(0, "nft", "list", "table", "inet", "watch")


def test_a_map_in_the_kernel() -> None:
    table = create_map(MapSpec("test", HASH, 4, 1, 64))
    try:
        keys = {bytes((0, 0, 0, number)) for number in range(60)}
        for key in keys:
            table.put(key, b"\1")
        assert set(table.keys()) == keys
        assert table.get(bytes(4)) == b"\1"
        table.delete(bytes(4))
        table.delete(bytes(4))
        assert table.get(bytes(4)) is None
        assert set(table.keys()) == keys - {bytes(4)}
    finally:
        table.close()


def test_steering_forgets_what_is_removed() -> None:
    steering = Steering.open("no-such-tun")
    try:
        four = FiveTuple.parse("10.0.0.1:1 > 10.0.0.2:2")
        six = FiveTuple.parse("[fd00::1]:1 > [fd00::2]:2")
        for match in (four, six):
            steering.add(match, OUT)
            steering.add(match, IN)
        assert sorted(steering.entries()) == sorted((m, d) for m in (four, six) for d in (OUT, IN))
        for match in (four, six):
            steering.remove(match, OUT)
        assert sorted(steering.entries()) == sorted((m, IN) for m in (four, six))
        steering.set_policies([Clause(4, bytes(4), 0, bytes(4), 0)])
        steering.set_policies([])
        assert set(steering.counters().values()) == {0}
    finally:
        steering.close()


def test_offload_works_here() -> None:
    """The test for broken kernels passes on this one, and leaves no namespace and no device."""
    before = os.listdir("/proc/self/fd"), os.stat("/proc/self/ns/net").st_ino
    assert offload_fault() is None
    assert (os.listdir("/proc/self/fd"), os.stat("/proc/self/ns/net").st_ino) == before


def test_a_kernel_that_damages_packets_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that does not fit its packet is refused, dropped or damaged: whatever it is, it is said."""
    whole = vnet.pack
    wrong = (
        lambda packet: whole(packet)[:8] + b"\x04\x00",  # the checksum's place
        lambda packet: bytes((1, 200)) + whole(packet)[2:],  # a kind of segmentation that there is not
        lambda packet: bytes(10),  # no segmentation at all
    )
    for pack in wrong:
        monkeypatch.setattr(vnet, "pack", pack)
        monkeypatch.setattr(selftest, "WAIT_S", 0.1)
        fault = offload_fault()
        assert fault is not None
        assert fault.startswith("an offload packet for IPv4 ")


def test_a_device_of_an_agent_with_offload_opened_without(world: World) -> None:
    """A persistent device remembers offloads; opened as a plain one it must not give large packets."""

    def features() -> str:
        return run(["ethtool", "-k", "tun9"])

    def work() -> tuple[str, str]:
        run(["ip", "tuntap", "add", "dev", "tun9", "mode", "tun", "vnet_hdr"])
        Tun("tun9", offload=True).close()
        first = features()
        tun = Tun("tun9", offload=False)
        second = features()
        tun.close()
        return first, second

    first, second = run_in(world.names[0], work)
    assert "tx-tcp-segmentation: on" in first
    assert "tx-tcp-segmentation: off" in second
    assert "tx-checksum-ip-generic: off" in second


def test_a_device_that_is_deleted_is_waited_for_no_more(world: World) -> None:
    def work() -> tuple[list[int], int]:
        gone: list[int] = []
        tun = Tun("tun9", offload=True)
        table = PythonFlowTable(Steer(), (), (61000, 65535))
        forwarder = Forwarder({tun: HOST}, {HOST: tun}, table, lambda port, packet, at: None, gone.append)
        forwarder.readable(tun.fd)
        assert gone == []
        run(["ip", "link", "delete", "tun9"])
        forwarder.readable(tun.fd)
        forwarder.send(HOST, build_tcp(FiveTuple(bytes(12)), 1, 1, 16, 1))
        tun.close()
        return gone, tun.fd

    gone, fd = run_in(world.names[0], work)
    assert gone == [fd]
