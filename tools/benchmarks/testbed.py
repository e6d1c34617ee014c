"""The bench's three namespaces, the programs in them, and the ways a session can take.

    client 10.77.1.2 ---- 10.77.1.1 middle 10.77.2.1 ---- 10.77.2.2 server
           fd77:1::2      fd77:1::1        fd77:2::1      fd77:2::2

The middle host forwards in its kernel; agents and HAProxy are started on top of that, so that every way of
getting from client to server crosses the same links. There may be three middle hosts, in a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from dysco.dataplane import tcx
from dysco.dataplane.bpf import program_by_id
from dysco.host import run_in

CLIENT, MIDDLE, SERVER = "client", "middle", "server"
MIDDLES = (MIDDLE, "middle2", "middle3")
ADDRESSES = {
    CLIENT: ("10.77.1.2", "fd77:1::2"),
    MIDDLE: ("10.77.1.1", "fd77:1::1"),
    MIDDLES[1]: ("10.77.3.2", "fd77:3::2"),
    MIDDLES[2]: ("10.77.4.2", "fd77:4::2"),
    SERVER: ("10.77.2.2", "fd77:2::2"),
}
UNDERLAY = {CLIENT: ["eth0"], SERVER: ["eth0"], **{middle: ["eth0", "eth1"] for middle in MIDDLES}}
HTTP_PORT, IPERF_PORT, PROXY_HTTP, PROXY_IPERF, DIRECT_HTTP, DIRECT_IPERF = 8080, 5201, 8081, 5202, 9080, 9201
START_LIMIT_S = 60.0
HURRY_S = 3.0  # then an agent that is told so again leaves the rest of its sessions to others
STOP_LIMIT_S = 30.0
_SIDES: tuple[tcx.Direction, ...] = ("ingress", "egress")


class BenchError(Exception):
    """Something that the bench needs did not work; the message says what."""


def wait_for(what: str, condition: Callable[[], bool], limit_s: float = START_LIMIT_S) -> None:
    """Return when the condition holds; BenchError after limit_s seconds."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"{what}: not within {limit_s:g} s")
        time.sleep(0.02)


def run(argv: Sequence[str], limit_s: float = 60.0) -> str:
    """Run a command to its end and return what it printed; BenchError with its output if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode:
        raise BenchError(
            f"{' '.join(argv)}: exit {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}"
        )
    return done.stdout


class Testbed:
    """The namespaces with their links; `close()` ends every process that it started and deletes them."""

    def __init__(self, workdir: Path, name: str = "", middles: int = 1) -> None:
        self.workdir = workdir
        self.middles = MIDDLES[:middles]
        self.hosts = (CLIENT, *self.middles, SERVER)
        self.prefix = f"dyb{os.getpid()}{name}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._logs = 0

    def netns(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def __enter__(self) -> Testbed:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _build(self) -> None:
        self._delete()
        for host in self.hosts:
            run(["ip", "netns", "add", self.netns(host)])
            self.sh(host, "ip", "link", "set", "lo", "up")
        # Subnet 1 is the client's and 2 the server's, as many as there are between them.
        subnets = [1, *range(3, 2 + len(self.middles)), 2]
        for place, subnet in enumerate(subnets):
            self._link(place, subnet)
        for place, host in enumerate(self.hosts):
            self._route(place, host, subnets)
        for host in self.middles:
            for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
                self.sh(host, "sysctl", "-qw", f"net.{key}=1")
        for host in (CLIENT, SERVER):
            self.sh(host, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 60999")
            self.sh(host, "sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1")

    def _link(self, place: int, subnet: int) -> None:
        """Connect a host to the next one."""
        left, right = self.hosts[place : place + 2]
        devices = ("eth1" if left in self.middles else "eth0", "eth0")
        run(["ip", "link", "add", devices[0], "netns", self.netns(left), "type", "veth",
             "peer", "name", devices[1], "netns", self.netns(right)])  # fmt: skip
        for host, device, last in zip((left, right), devices, _ends(place), strict=True):
            self.sh(host, "ip", "addr", "add", f"10.77.{subnet}.{last}/24", "dev", device)
            self.sh(host, "ip", "addr", "add", f"fd77:{subnet}::{last}/64", "dev", device, "nodad")
            self.sh(host, "ip", "link", "set", device, "up")

    def _route(self, place: int, host: str, subnets: list[int]) -> None:
        """Tell a host the way to each subnet that is not its own, along the line."""
        for number, subnet in enumerate(subnets):
            toward = place if number > place else place - 1
            if number in (place - 1, place):
                continue
            near = _ends(toward)[number > place]
            via = subnets[toward]
            self.sh(host, "ip", "route", "add", f"10.77.{subnet}.0/24", "via", f"10.77.{via}.{near}")
            self.sh(host, "ip", "-6", "route", "add", f"fd77:{subnet}::/64", "via", f"fd77:{via}::{near}")

    def inside(self, host: str, *argv: str) -> list[str]:
        """The command line that runs `argv` in the network namespace of a host."""
        return ["nsenter", f"--net=/run/netns/{self.netns(host)}", "--", *argv]

    def sh(self, host: str, *argv: str, limit_s: float = 60.0) -> str:
        """Run a command in a host to its end and return its output."""
        return run(self.inside(host, *argv), limit_s)

    def start(self, host: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a program in a host; its output goes to a file in the work directory."""
        self._logs += 1
        log = self.workdir / f"{self._logs:02}-{host}-{Path(argv[0]).name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.inside(host, *argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process.log = log  # type: ignore[attr-defined]
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a program and wait for it."""
        if process.poll() is None:
            for limit_s in (HURRY_S, STOP_LIMIT_S):
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(limit_s)
                    break
            else:
                process.kill()
                process.wait()
        if process in self.processes:
            self.processes.remove(process)

    def packets(self, host: str, device: str) -> int:
        """How many packets a device has carried, in both directions."""
        [link] = json.loads(self.sh(host, "ip", "-s", "-j", "link", "show", "dev", device))
        return int(link["stats64"]["rx"]["packets"]) + int(link["stats64"]["tx"]["packets"])

    def cpu_seconds(self) -> float:
        """CPU seconds of all that runs here and of what has ended, with the kernel's work on their behalf.

        Softirqs count for whom they interrupt: on a machine with other work a little goes to that, and comes from it.
        """
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = [process.pid for process in self.processes]
        used = 0.0
        for pid in found:
            with contextlib.suppress(OSError):
                task = Path(f"/proc/{pid}")
                found += map(int, (task / f"task/{pid}/children").read_text().split())
                used += sum(
                    int((one / "schedstat").read_text().split()[0]) for one in (task / "task").iterdir()
                )
        return used / 1e9 + ended.ru_utime + ended.ru_stime

    def programs_ran(self, hosts: Iterable[str]) -> tuple[float, int]:
        """Seconds that the agents' classifiers have run, and how often; counted only `with counting_programs()`."""
        seconds, runs = 0.0, 0
        for host in hosts:
            for device in (*UNDERLAY[host], "dysco1"):
                for side in _SIDES:
                    for number in run_in(self.netns(host), _attached, device, side):
                        found = _ran(number)
                        seconds, runs = seconds + found[0], runs + found[1]
        return seconds, runs

    def listening(self, host: str, port: int) -> bool:
        """Whether a TCP socket of the host listens at the port."""
        return bool(self.sh(host, "ss", "-Hltn", f"sport = :{port}").strip())

    def close(self) -> None:
        """End everything and delete the namespaces."""
        for process in reversed(list(self.processes)):
            self.stop(process)
        self._delete()

    def _delete(self) -> None:
        known = run(["ip", "netns", "list"])
        for host in self.hosts:
            if any(line.split()[0] == self.netns(host) for line in known.splitlines() if line):
                run(["ip", "netns", "delete", self.netns(host)])


def _ends(place: int) -> tuple[int, int]:
    """The last parts of the addresses of a link's left and right end."""
    return (2, 1) if place == 0 else (1, 2)


@contextmanager
def counting_programs() -> Iterator[None]:
    """Have the kernel count how long eBPF programs run (sysctl kernel.bpf_stats_enabled)."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    switch.write_text("1")
    try:
        yield
    finally:
        switch.write_text(before)


def _attached(device: str, side: tcx.Direction) -> list[int]:
    return tcx.attached(socket.if_nametoindex(device), side)


def _ran(number: int) -> tuple[float, int]:
    descriptor = program_by_id(number)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["run_time_ns"]) / 1e9, int(fields["run_cnt"])


def servers(bed: Testbed) -> None:
    """Start nginx with a body of 100 bytes and two iperf3 servers on the server host."""
    root = bed.workdir / "www"
    root.mkdir()
    (root / "index.html").write_bytes(b"x" * 100)
    conf = bed.workdir / "nginx.conf"
    listens = "".join(
        f"listen {port} backlog=4096; listen [::]:{port} backlog=4096; " for port in (HTTP_PORT, DIRECT_HTTP)
    )
    conf.write_text(
        f"daemon off; user root; pid {bed.workdir}/nginx.pid; error_log {bed.workdir}/nginx.log;"
        "worker_processes 2; events { worker_connections 4096; }"
        "http { access_log off; keepalive_requests 10000000; keepalive_timeout 600s;"
        f"server {{ {listens} root {root}; }} }}\n"
    )
    bed.start(SERVER, "nginx", "-c", str(conf))
    for port in (IPERF_PORT, DIRECT_IPERF):
        bed.start(SERVER, "iperf3", "-s", "-p", str(port))
    for port in (HTTP_PORT, DIRECT_HTTP, IPERF_PORT, DIRECT_IPERF):
        wait_for(f"a server at port {port}", partial(bed.listening, SERVER, port))


@contextmanager
def haproxy(bed: Testbed, family: int) -> Iterator[None]:
    """HAProxy in TCP mode on the middle host, in front of both servers; on its other side in family 4 or 6."""
    conf = bed.workdir / "haproxy.cfg"
    server = f"ipv{family}@{ADDRESSES[SERVER][family == 6]}"
    conf.write_text(
        "global\n  maxconn 5000\n  nbthread 2\ndefaults\n  mode tcp\n  timeout connect 5s\n"
        "  timeout client 1h\n  timeout server 1h\n"
        f"listen http\n  bind :::{PROXY_HTTP} v4v6\n  server s {server}:{HTTP_PORT}\n"
        f"listen iperf\n  bind :::{PROXY_IPERF} v4v6\n  server s {server}:{IPERF_PORT}\n"
    )
    process = bed.start(MIDDLE, "haproxy", "-db", "-f", str(conf))
    wait_for("HAProxy", lambda: bed.listening(MIDDLE, PROXY_HTTP) and bed.listening(MIDDLE, PROXY_IPERF))
    try:
        yield
    finally:
        bed.stop(process)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def _host_toml(bed: Testbed, host: str, keys: Path, mode: str, offload: bool, extra: str) -> str:
    lines = [
        "[agent]",
        f"name = {_toml(host)}",
        f"addresses = {_toml(ADDRESSES[host])}",
        f"underlay = {_toml(UNDERLAY[host])}",
        f"run_directory = {_toml(bed.workdir / f'run-{host}')}",
        f"socket = {_toml(bed.workdir / f'{host}.sock')}",
        "[tun]",
        f"offload = {_toml(offload)}",
        "[dataplane]",
        f"mode = {_toml(mode)}",
        "[keys]",
        f"ca = {_toml(keys / 'ca.pem')}",
        f"certificate = {_toml(keys / f'{host}.pem')}",
        f"key = {_toml(keys / f'{host}.key')}",
    ]
    for peer in bed.hosts:
        if peer != host:
            lines += ["[[peer]]", f"name = {_toml(peer)}", f"addresses = {_toml(ADDRESSES[peer])}"]
    if host in bed.middles:
        lines += ["[[box]]", 'name = "forward"', 'kind = "kernel"']
    if host == CLIENT:
        lines += [
            "[[policy]]",
            'name = "bench"',
            f'match = "dst port {HTTP_PORT} or dst port {IPERF_PORT}"',
            f"hops = {_toml(bed.middles)}",
        ]
    return "\n".join([*lines, extra]) + "\n"


@contextmanager
def agents(
    bed: Testbed,
    *,
    mode: str = "auto",
    offload: bool = True,
    hosts: Sequence[str] = (),
    policies: str = "",
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """An agent on each of the hosts (none named: all), with certificates from a CA of the bench, associations up."""
    dysco = [sys.executable, "-m", "dysco.cli"]
    keys = bed.workdir / "keys"
    if not keys.exists():
        run([*dysco, "keys", "init", "--directory", str(keys)])
        for host in bed.hosts:
            run([*dysco, "keys", "issue", host, "--directory", str(keys)])
    running = {}
    hosts = hosts or bed.hosts
    try:
        for host in hosts:
            config = bed.workdir / f"{host}.toml"
            config.write_text(_host_toml(bed, host, keys, mode, offload, policies if host == CLIENT else ""))
            running[host] = bed.start(host, *dysco, "tun", "up", "--config", str(config))
        for host in hosts:
            up = partial(_peers_up, bed, dysco, host, running[host], len(hosts) - 1)
            wait_for(f"the agent on {host}", up)
        yield running
    finally:
        for process in running.values():
            bed.stop(process)


def _peers_up(
    bed: Testbed, dysco: list[str], host: str, process: subprocess.Popen[bytes], wanted: int
) -> bool:
    if process.poll() is not None:
        raise BenchError(f"the agent on {host} ended: {process.log.read_text()[-2000:]}")  # type: ignore[attr-defined]
    socket = bed.workdir / f"{host}.sock"
    if not socket.exists():
        return False
    done = subprocess.run(
        [*dysco, "--socket", str(socket), "peers", "--json"], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and done.stdout.count('"up"') >= wanted


def process_cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """CPU time that a process has used, in seconds (proc(5): utime and stime)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    """Memory of a process in bytes (VmRSS)."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {process.pid} is gone")
