"""Real proxies are taken out of the sessions of real programs, which must not notice. Needs root.

    a: curl, wrk, iperf3, ssh, rsync, psql ── router ── b: HAProxy, nginx, squid, socat ── router ── d: servers

Of each row: the proxy is taken out while the program's sessions live, its host has none of them left and its program
no socket of them, and what has arrived is what was sent (SHA-256), or the program says that all is well. Exit status 1
otherwise.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dysco
from dysco.chains import Drained
from dysco.errors import DyscoError
from dysco.lab import Lab
from dysco.views import ProxiedPair
from proofs import labs, shell
from proofs.options import rows
from proofs.reload import started
from proofs.world import LIMIT_S, LOSSY, SERVER, Disproved, listening, until

WEB, SSH, IPERF, SQL, KINDS = 7080, 7022, 7201, 7432, 7000  # of the servers
FRONT: Final = {WEB: 8080, SSH: 8022, IPERF: 8201, SQL: 8432, KINDS: 8000}  # of HAProxy, for each of them
NGINX, SQUID, SOCAT = 8180, 8128, 8280
OTHERS: Final = f"""
[[host.config.proxy]]
name = "nginx"
adapter = "nginx-stream"
log = "error.log"
port = {NGINX}
[[host.config.proxy]]
name = "squid"
adapter = "generic"
port = {SQUID}
[[host.config.proxy]]
name = "socat"
adapter = "generic"
port = {SOCAT}
"""
FILES: Final = f"""
"error.log" = ""
"nginx.conf" = '''
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
user root;
pid ${{dir}}/nginx.pid;
error_log ${{dir}}/error.log info;
events {{ worker_connections 512; }}
stream {{ server {{ listen [::]:{NGINX} ipv6only=off; proxy_pass TARGET:{SSH}; }} }}
'''
"squid.conf" = '''
http_port {SQUID}
acl all_ports port 1-65535
http_access allow all
cache deny all
access_log none
cache_log ${{dir}}/cache.log
pid_filename ${{dir}}/squid.pid
coredump_dir ${{dir}}
netdb_filename none
pinger_enable off
shutdown_lifetime 0 seconds
'''
"""


class Place:
    """The lab, its proxies and servers. small: rows of some seconds."""

    def __init__(self, lab: Lab, family: int, ends: ExitStack, *, small: bool) -> None:
        self.lab = lab
        self.family = family
        self.small = small
        self._ends = ends

    def address(self, node: str) -> str:
        """The address of a node as it stands in a URL."""
        found = self.lab.address(node, self.family)
        return f"[{found}]" if ":" in found else found

    def run(self, node: str, argv: list[str], **more: object) -> subprocess.Popen[str]:
        """Start a program in the directory of a node; it is ended with the row."""
        process: subprocess.Popen[str] = subprocess.Popen(
            self.lab.command(node, argv), cwd=self.lab.directory / node, text=True, **more
        )  # type: ignore[call-overload]
        self._ends.callback(process.wait)
        self._ends.callback(process.terminate)
        return process

    def start(self, node: str, port: int, *argv: str, **more: object) -> None:
        """Start a program, and wait until it listens."""
        self.run(node, list(argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
        listening(self.lab, node, port)

    def file(self, size: int, name: str = "file") -> str:
        """Give d a file of random bytes; its SHA-256."""
        data = random.randbytes(size)
        (self.lab.directory / "d" / "www" / name).write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def pairs(self, proxy: str) -> list[ProxiedPair]:
        """What the agent of the proxy's host knows of its sessions."""

        async def ask() -> list[ProxiedPair]:
            async with dysco.connect(self.lab.socket("b")) as agent:
                return [pair for one in await agent.proxies() if one.name == proxy for pair in one.pairs]

        return asyncio.run(ask())

    def leave(self, proxy: str, front: int, count: int = 1) -> Drained:
        """Take the proxy out of so many sessions as soon as they are known; they must leave no trace on its host."""
        until(f"{proxy} has not {count} sessions", lambda: len(self.pairs(proxy)) >= count)

        async def drain() -> Drained:
            moved, end = 0, time.monotonic() + LIMIT_S
            async with dysco.connect(self.lab.socket("b")) as agent:
                while True:
                    last = [one async for one in agent.drain_proxy(proxy, timeout=LIMIT_S)][-1]
                    moved += last.moved
                    # It ends when nothing has changed for a while: where data never rest, it takes more than one.
                    if last.empty or last.failed or time.monotonic() > end:
                        await agent.undrain_proxy(proxy)
                        return replace(last, moved=moved)

        began = time.monotonic()
        last = replace(asyncio.run(drain()), after_s=time.monotonic() - began)
        if not last.empty or last.moved < count or last.failed:
            raise Disproved(f"{proxy} is not out of its sessions: {last}")
        established = ["ss", "-Htn", "state", "established", f"sport = :{front}"]
        until("its program has sockets left", lambda: not self.lab.exec("b", established).stdout)
        return last


def curl(place: Place, proxy: str, front: int, rate: str = "6M") -> str:
    """A download that the proxy leaves in the middle."""
    wanted = place.file(40_000_000 * (1 if place.small else 3))
    target = f"http://{place.address('b')}:{front}/file"
    got = place.lab.directory / "a" / "got"
    got.unlink(missing_ok=True)
    argv = ["curl", "-sS", "-f", "-g", "--limit-rate", rate, "-o", "got", target]
    process = place.run("a", argv)
    until("nothing arrives", lambda: got.exists() and got.stat().st_size > 100_000)
    last = place.leave(proxy, front)
    if process.wait(300):
        raise Disproved(f"curl has ended with {process.returncode}")
    if hashlib.sha256(got.read_bytes()).hexdigest() != wanted:
        raise Disproved("another file has arrived")
    return f"{got.stat().st_size:,} bytes, left after {last.after_s:.2f} s"


def haproxy_curl(place: Place) -> str:
    """HAProxy leaves a download."""
    return curl(place, "haproxy", FRONT[WEB])


def slow(place: Place) -> str:
    """The client reads so slowly that the proxy's buffers are full when it leaves."""
    return curl(place, "haproxy", FRONT[WEB], rate="4M")


def talked(place: Place, proxy: str, front: int, node: str = "b", *more: str) -> str:
    """A proxy leaves an ssh session between lines, as soon as it is known what went through it."""
    shell.serve(place.lab, SSH)
    port, lines = SSH if node == "d" else front, itertools.count(1)
    with shell.echo(place.lab, port, place.lab.address(node, place.family), *more) as say:

        def is_known() -> bool:
            say("x" * 16 * next(lines))
            return any(pair.safe for pair in place.pairs(proxy))

        until(f"it is not seen what {proxy} passes on", is_known)
        last = place.leave(proxy, front)
        say("the end")
    return f"{next(lines)} lines, left after {last.after_s:.2f} s"


def nginx(place: Place) -> str:
    """nginx stream, whose log tells which sessions belong together."""
    place.start("b", NGINX, "nginx", "-e", "error.log", "-c", str(place.lab.directory / "b" / "nginx.conf"))
    return talked(place, "nginx", NGINX)


def squid(place: Place) -> str:
    """squid, which has taken the CONNECT exchange off."""
    directory = place.lab.directory / "b"
    for one in (*directory.parents[:2], directory):
        one.chmod(one.stat().st_mode | 0o755)
    directory.chmod(0o777)
    place.start("b", SQUID, "squid", "-N", "-f", str(directory / "squid.conf"), "-n", f"p{os.getpid()}")
    by = f"socat - PROXY:{place.address('b')}:{place.address('d')}:{SSH},proxyport={SQUID}"
    return talked(place, "squid", SQUID, "d", "-o", f"ProxyCommand={by}")


def socat(place: Place) -> str:
    """socat, of which nothing is known but its sockets."""
    there = f"TCP{place.family}:{place.address('d')}:{SSH}"
    place.start("b", SOCAT, "socat", f"TCP{place.family}-LISTEN:{SOCAT},fork,reuseaddr", there)
    return talked(place, "socat", SOCAT)


def wrk(place: Place) -> str:
    """Connections that are kept alive lose their proxy between requests and in them."""
    place.file(4000, "small")
    seconds = 8 if place.small else 20
    url = f"http://{place.address('b')}:{FRONT[WEB]}/small"
    process = place.run("a", ["wrk", "-t2", "-c16", f"-d{seconds}", url], stdout=subprocess.PIPE)
    last = place.leave("haproxy", FRONT[WEB], 16)
    said = process.communicate(timeout=60)[0]
    if process.returncode or "Socket errors" in said or "Non-2xx" in said:
        raise Disproved(f"wrk: {said}")
    count = re.search(r"(\d+) requests in", said)
    return f"{last.moved} connections, {count and count[1]} requests, no error"


def iperf3(place: Place) -> str:
    """Streams in both directions, at full speed."""
    place.start("d", IPERF, "iperf3", "-s", "-p", str(IPERF))
    said = []
    for more in ([], ["-R"]):
        address = place.lab.address("b", place.family)
        seconds = "8" if place.small else "20"
        argv = ["iperf3", "-c", address, "-p", str(FRONT[IPERF]), "-P", "4", "-t", seconds, "-J", *more]
        process = place.run("a", argv, stdout=subprocess.PIPE)
        place.leave("haproxy", FRONT[IPERF], 5)
        end = json.loads(process.communicate(timeout=60)[0])
        if process.returncode or "error" in end:
            raise Disproved(f"iperf3: {end.get('error')}")
        said.append(f"{end['end']['sum_received']['bits_per_second'] / 1e9:.1f} Gbit/s")
    return " there, ".join(said) + " back"


def ssh(place: Place) -> str:
    """A session that says nothing for a while loses its proxy, and goes on."""
    silent = 0 if place.small else 60
    shell.serve(place.lab, SSH)
    with shell.echo(place.lab, FRONT[SSH], place.lab.address("b", place.family)) as say:
        say("one")
        time.sleep(silent)
        place.leave("haproxy", FRONT[SSH])
        say("two")
    return f"nothing said for {silent} s, then its proxy left"


def rsync(place: Place) -> str:
    """A directory is copied over ssh."""
    wanted = {name: place.file(3_000_000, name) for name in ("one", "two", "three")}
    shell.serve(place.lab, SSH)
    by = " ".join(shell.command(place.lab, FRONT[SSH]))
    source = f"root@{place.address('b')}:{place.lab.directory / 'd' / 'www'}/"
    target = place.lab.directory / "a" / "copy"
    argv = ["rsync", "-a", "--bwlimit=2000", "-e", by, source, str(target)]
    process = place.run("a", argv)
    until("nothing arrives", target.exists)
    last = place.leave("haproxy", FRONT[SSH])
    if process.wait(120):
        raise Disproved(f"rsync has ended with {process.returncode}")
    got = {name: hashlib.sha256((target / name).read_bytes()).hexdigest() for name in wanted}
    if got != wanted:
        raise Disproved("other files have arrived")
    return f"{len(got)} files, left after {last.after_s:.2f} s"


def psql(place: Place) -> str:
    """A database session asks before and after, and gets a long answer meanwhile."""
    directory = place.lab.directory / "d" / "sql"
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    for one in list(directory.parents)[:4]:
        one.chmod(one.stat().st_mode | 0o755)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise Disproved("there is no PostgreSQL here")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    place.lab.exec(
        "d", [*nobody, str(found[-1] / "initdb"), "-A", "trust", "-U", "sql", "-D", f"{directory}/data"]
    )
    options = ["-c", "listen_addresses=*", "-c", f"unix_socket_directories={directory}", "-p", str(SQL)]
    hba = directory / "data" / "pg_hba.conf"
    hba.write_text("host all all all trust\nlocal all all trust\n")
    place.start("d", SQL, *nobody, str(found[-1] / "postgres"), "-D", f"{directory}/data", *options)
    address = place.lab.address("b", place.family)
    argv = ["psql", "-h", address, "-p", str(FRONT[SQL]), "-U", "sql", "-qAt", "postgres"]
    process = place.run("a", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("select 1;\n")
    process.stdin.flush()
    if process.stdout.readline() != "1\n":
        raise Disproved("psql has no answer")
    rows = 200_000
    process.stdin.write(f"select n, md5(n::text) from generate_series(1, {rows}) n;\n")
    process.stdin.flush()
    place.leave("haproxy", FRONT[SQL])
    said, _ = process.communicate("select 'the end';\n", timeout=120)
    lines = [
        f"{n}|{hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest()}" for n in range(1, rows + 1)
    ]
    if said.splitlines() != [*lines, "the end"]:
        raise Disproved("psql got another answer")
    return f"{rows:,} rows, one session"


def kinds(place: Place) -> str:
    """Downloads, uploads, idle and half-closed sessions, requests and answers."""
    number = 25 if place.small else 200
    programs = [started(place.lab, "d", "serve", "serve", KINDS)]
    try:
        listening(place.lab, "d", KINDS)
        target = place.lab.address("b", place.family)
        programs.append(started(place.lab, "a", "open", "open", target, FRONT[KINDS], number))
        if programs[1].line()["open"] != number:
            raise Disproved("a session has ended before all were open")
        last = place.leave("haproxy", FRONT[KINDS], number)
        for program in programs:
            program.stop()
        ends = programs[1].line()
        if ends["wrong"] or sum(ends["equal"].values()) != number:
            raise Disproved(f"sessions were lost: {ends}")
    finally:
        for program in programs:
            program.kill()
    return f"{number} sessions of five kinds, left after {last.after_s:.2f} s"


def crowd(place: Place) -> str:
    """100 transfers at once; the proxy leaves each at a random time, if it lasts so long."""
    number = 30 if place.small else 100
    wanted = {f"c{at}": place.file(random.randrange(6, 12) * 1_000_000, f"c{at}") for at in range(number)}
    directory = place.lab.directory / "a" / "crowd"
    directory.mkdir(exist_ok=True)
    base = f"http://{place.address('b')}:{FRONT[WEB]}"
    argv = ["curl", "-sS", "-f", "-g", "--limit-rate", "2M", "-o"]
    processes = [place.run("a", [*argv, str(directory / name), f"{base}/{name}"]) for name in wanted]
    removed, left = asyncio.run(_at_random(place, processes))
    for process in processes:
        if process.wait(120):
            raise Disproved(f"curl has ended with {process.returncode}")
    wrong = [
        name for name in wanted if hashlib.sha256((directory / name).read_bytes()).hexdigest() != wanted[name]
    ]
    if wrong:
        raise Disproved(f"{len(wrong)} other files have arrived")
    if removed < number // 20:
        raise Disproved(f"the proxy has left only {removed} of {number}: {left}")
    return f"{number} at once, SHA-256 equal; the proxy has left {removed}, the others ended before"


async def _at_random(place: Place, processes: list[subprocess.Popen[str]]) -> tuple[int, list[str]]:
    """Leave each session at a random time until all programs have ended; how many, and why others not."""
    removed, reasons, asked = 0, [], set()

    async def leave(agent: dysco.Dysco, pair: ProxiedPair) -> None:
        nonlocal removed
        await asyncio.sleep(random.random())
        try:
            await agent.splice(pair.left, pair.right)
            removed += 1
        except DyscoError as error:
            reasons.append(str(error))  # it has ended, or is about to

    async with dysco.connect(place.lab.socket("b")) as agent, asyncio.TaskGroup() as tasks:
        while any(process.poll() is None for process in processes):
            for proxy in await agent.proxies():
                for pair in proxy.pairs:
                    if pair.safe and pair.left not in asked:
                        asked.add(pair.left)
                        tasks.create_task(leave(agent, pair))
            await asyncio.sleep(0.05)
    return removed, reasons


class Row(NamedTuple):
    """A row of the matrix. lossy: on links that lose one packet of a hundred."""

    run: Callable[[Place], str]
    lossy: bool = False


ROWS: Final = {
    "curl": Row(haproxy_curl), "slow": Row(slow), "wrk": Row(wrk), "iperf3": Row(iperf3), "ssh": Row(ssh),
    "rsync": Row(rsync), "psql": Row(psql), "kinds": Row(kinds), "crowd": Row(crowd), "nginx": Row(nginx),
    "squid": Row(squid), "socat": Row(socat), "lossy": Row(haproxy_curl, lossy=True),
}  # fmt: skip


def text(mode: str, family: int, *, lossy: bool) -> str:
    """The file of the lab."""
    server = SERVER.format()
    server = server.replace("listen = [80]", f"listen = [{WEB}]").replace("listen 80;", f"listen {WEB};")
    server = server.replace("listen [::]:80;", f"listen [::]:{WEB};")
    if lossy:
        server += "".join(LOSSY.format(node=node, seed=seed) for seed, node in enumerate("abd"))
    files = FILES.replace("TARGET", labs.target(family))
    ports = {front: back for back, front in FRONT.items()}
    return labs.proxied(mode, family, ports, others=OTHERS, files=files, servers=server)


def prove(name: str, lab: Lab, mode: str, family: int, *, small: bool) -> bool:
    """Run one row and print its line; whether it is as it should be."""
    began = time.monotonic()
    try:
        with ExitStack() as ends:
            place = Place(lab, family, ends, small=small)
            place.start("b", FRONT[WEB], "haproxy", "-db", "-f", "haproxy.cfg")
            said, well = ROWS[name].run(place), True
    except (Disproved, DyscoError, OSError, subprocess.SubprocessError) as error:
        said, well = f"FAILED: {error}", False
    sys.stdout.write(f"{name:<8} {mode:<5} {family:<4} {time.monotonic() - began:6.1f}  {said}\n")
    sys.stdout.flush()
    return well


def main() -> int:
    """Run what the command line says."""
    options = rows("tools/prove proxies", __doc__, ROWS)
    sys.stdout.write(f"{'':<8} {'mode':<5} {'IPv':<4} {'s':>6}\n")
    well = True
    for mode in options.mode:
        for family in options.family:
            for lossy in (False, True):
                names = [name for name in options.rows if ROWS[name].lossy is lossy]
                if not names:
                    continue
                with (
                    tempfile.TemporaryDirectory(prefix="dysco-proxies-") as directory,
                    labs.up(
                        text(mode, family, lossy=lossy), Path(directory), "proxies", options.prefix
                    ) as lab,
                ):
                    Path(directory).chmod(0o755)
                    for name in names:
                        well &= prove(name, lab, mode, family, small=options.quick)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
