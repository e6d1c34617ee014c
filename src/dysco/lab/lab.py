"""A testbed of network namespaces: up, use, down.

    lab = load(Path("configs/lab-demo.toml"))
    lab.up()
    lab.exec("a", ["curl", "http://10.0.4.4/"])
    lab.down()

Knows in which order a lab is built, and how an agent is started and asked. What a lab is stands in
ROOT/NAME.json before it is made, so that another process can use it and take it down, also after a crash;
everything else of it is in its namespaces and in ROOT/NAME/.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from dysco.errors import DyscoError, HostError, LocalError, PermissionDeniedError, TimedOutError
from dysco.host import clean
from dysco.host.lock import Lock
from dysco.lab import hosts, models, network, processes
from dysco.lab.graph import draw
from dysco.lab.nursery import Nursery
from dysco.lab.topology import Node, Topology
from dysco.transport import keys

ROOT: Final = Path("/run/dysco/lab")
PREFIX: Final = "dysco"
READY_S: Final = 30.0  # for all agents to be up and to know each other, and for programs to listen
_LOOK_S: Final = 0.05


def load(path: Path | str, *, prefix: str = PREFIX, root: Path = ROOT, nursery: Nursery | None = None) -> Lab:
    """Read a lab's file; nothing is touched. Raises ConfigError with all findings, PermissionDeniedError.

    nursery: where agents are started, for several labs after each other; whoever gives it closes it.
    """
    path = Path(path).resolve()
    return Lab(models.read(path), path.parent, prefix=prefix, root=root, nursery=nursery)


class Lab:
    """A lab by its file; `async with` brings it up and takes it down."""

    def __init__(
        self,
        file: models.LabFile,
        source: Path,
        *,
        prefix: str = PREFIX,
        root: Path = ROOT,
        nursery: Nursery | None = None,
    ) -> None:
        self.topology = Topology(file)
        self.name = file.lab.name
        self.directory = root / self.name
        self._source = source
        self._state = root / f"{self.name}.json"
        self._names = network.Names(self.topology, prefix)
        self._children: list[processes.Process] = []
        self._nursery = nursery or Nursery()
        self._own_nursery = nursery is None
        self._lock = Lock(root / f"{self.name}.lock", f"dysco lab {self.name}")
        # Everything that can be wrong with the file is found before anything is made.
        self._tables = {node.name: self._host_toml(node) for node in hosts.agents(self.topology)}

    def up(self, *, agents: bool = True, wait_s: float = READY_S) -> None:
        """Build the lab and wait until all agents know each other and all programs listen.

        With `agents` false no agent is started. After an error nothing is left. Raises HostError (also if
        the lab is up already), ConfigError, PermissionDeniedError, TimedOutError.
        """
        if os.geteuid() != 0:
            raise PermissionDeniedError("a lab needs root")
        self._lock.take()
        try:
            if self._state.exists():
                raise HostError(f"the lab {self.name} is up; `dysco lab down` takes it down")
            for name in self._names.all():
                if (network.NAMED / name).exists():
                    raise HostError(
                        f"there is a network namespace {name}, but no lab: ip netns delete {name}"
                    )
            try:
                self._build(agents, time.monotonic() + wait_s)
            except BaseException:
                self._remove()
                raise
        finally:
            self._close_nursery()
            self._release()

    def down(self) -> None:
        """End all processes of the lab, delete its namespaces and files; does nothing if there are none.

        Raises HostError if something is left.
        """
        self._lock.take()
        try:
            self._remove()
        finally:
            self._close_nursery()
            self._release()

    def status(self) -> dict[str, Any]:
        """Say as plain values what there is: nodes with addresses, sockets and processes, links."""
        state = self._read_state()
        return {
            "name": self.name,
            "state": state["state"] if state else "down",
            "directory": str(self.directory),
            "nodes": [self._node_status(node, state is not None) for node in self.topology.nodes.values()],
            "links": [link.model_dump(exclude_defaults=True) for link in self.topology.links],
        }

    def graph(self) -> str:
        """Draw nodes, links and the chains that policies name."""
        return draw(self.topology, self._tables)

    def command(self, node: str, argv: Sequence[str]) -> list[str]:
        """Give the command line that runs `argv` in the network namespace of a node."""
        return ["nsenter", f"--net={network.NAMED / self.netns(node)}", "--", *argv]

    def exec(
        self, node: str, argv: Sequence[str], *, check: bool = True, timeout_s: float = 60.0, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node to its end. Raises HostError if it fails and `check` is set, TimedOutError."""
        try:
            done = subprocess.run(
                self.command(node, argv),
                capture_output=True,
                text=True,
                errors="replace",
                env=processes.environment(),
                timeout=timeout_s,
                check=False,
                **more,
            )
        except subprocess.TimeoutExpired:
            raise TimedOutError(f"{' '.join(argv)} on {node}: not done within {timeout_s:g} s") from None
        if check and done.returncode:
            raise HostError(f"{' '.join(argv)} on {node}: status {done.returncode}: {done.stderr.strip()}")
        return done

    def start(self, node: str, argv: Sequence[str], *, name: str | None = None) -> subprocess.Popen[bytes]:
        """Start a program on a node; it ends with the lab, if not before. Its output is in NODE/NAME.log."""
        name = name or Path(argv[0]).name
        log = self.log(node, name)
        child = processes.start(self.netns(node), argv, log, cwd=self.directory / node)
        self._children.append(child)
        return child

    def start_agent(self, node: str) -> processes.Process:
        """Start the agent of a node, as `up` does; it is up when `wait_for_agents` returns."""
        if node not in self._tables:
            raise LocalError(f"{node} has no agent; {', '.join(self._tables)} have one")
        directory = self.directory / node
        arguments = ["tun", "up", "--config", str(directory / "host.toml")]
        child = self._nursery.start(arguments, self.log(node), netns=self.netns(node), cwd=directory)
        self._children.append(child)
        (directory / "agent.pid").write_text(f"{child.pid}\n")
        return child

    def agent_pid(self, node: str) -> int:
        """Give the process id of the agent that was started last on a node; raises LocalError."""
        try:
            return int((self.directory / node / "agent.pid").read_text())
        except (OSError, ValueError):
            raise LocalError(f"no agent was started on {node}") from None

    def wait_for_agents(self, wait_s: float = READY_S) -> None:
        """Return when every agent says that every peer is up; raises TimedOutError, HostError if one ended."""
        asyncio.run(self._peers_up(time.monotonic() + wait_s))

    def netns(self, node: str, extra: str | None = None) -> str:
        """Give the namespace of a node, or a further one of a host. Raises LocalError."""
        known = self.topology.nodes.get(node)
        if known is None:
            raise LocalError(
                f"there is no node {node} in the lab {self.name}; there are {', '.join(self.topology.nodes)}"
            )
        if extra is None:
            return self._names.of(node)
        if known.host is None or extra not in known.host.namespaces:
            raise LocalError(f"{node} has no further namespace {extra}")
        return f"{self._names.of(node)}-{extra}"

    def address(self, node: str, family: int = 4) -> str:
        """Give the first IPv4 or IPv6 address of a node. Raises LocalError."""
        self.netns(node)
        known = self.topology.nodes[node]
        addresses = known.ipv4 if family == 4 else known.ipv6
        if not addresses:
            raise LocalError(f"{node} has no IPv{family} address")
        return addresses[0]

    def socket(self, node: str) -> Path:
        """Give the control socket of a node's agent. Raises LocalError."""
        if node not in self._tables:
            raise LocalError(f"{node} has no agent; {', '.join(self._tables)} have one")
        return Path(self._tables[node]["agent"]["socket"])

    def log(self, node: str, name: str = "agent") -> Path:
        """Give the file with the output of a program of a node."""
        return self.directory / node / f"{name}.log"

    async def __aenter__(self) -> Lab:
        await asyncio.to_thread(self.up)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.down)

    def _host_toml(self, node: Node) -> dict[str, Any]:
        directory = self.directory / node.name
        return hosts.host_toml(self.topology, node, directory, self._source, self._values(node))

    def _values(self, node: Node) -> dict[str, str]:
        netns = self._names.of(node.name)
        return hosts.placeholders(self.topology, node, self.directory / node.name, self._source, netns)

    def _build(self, agents: bool, until: float) -> None:
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._write_state("building")
        if agents and self._tables:
            self._nursery.open()  # it gets ready while the network is made
        network.make_namespaces(self.topology, self._names)
        self._make_links()
        for node in self.topology.nodes.values():
            if node.host is not None:
                self._make_host(node)
        if agents and self._tables:
            for node in hosts.agents(self.topology):
                self.start_agent(node.name)
            self.wait_for_agents(until - time.monotonic())
        for node in self.topology.nodes.values():
            for program in node.host.program if node.host else ():
                self._start_program(node, program, until)
        self._write_state("up")

    def _make_links(self) -> None:
        mode = self.topology.file.lab.emulator
        emulated = any(link.emulated for link in self.topology.links)
        use_netem = (
            emulated and mode != "own" and network.has_netem(self._names, next(iter(self.topology.nodes)))
        )
        if emulated and mode == "netem" and not use_netem:
            raise HostError('this kernel has no netem; lab.emulator = "own" needs none')
        wires = network.make_links(self.topology, self._names, use_netem)
        if wires:
            self._children.append(network.start_emulator(wires, self.directory))

    def _make_host(self, node: Node) -> None:
        assert node.host is not None
        directory = self.directory / node.name
        directory.mkdir(mode=0o755)
        values = self._values(node)
        for name, text in node.host.files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(hosts.fill(text, values))
        for name in node.host.copies:
            try:
                shutil.copy(self._source / name, directory)
            except OSError as error:
                raise HostError(f"{self._source / name}: {error.strerror}") from None
        if node.name in self._tables:
            (directory / "host.toml").write_text(hosts.to_toml(self._tables[node.name]))
            self._issue(node, directory)
        for argv in node.host.setup:
            processes.run(self.netns(node.name), hosts.fill(argv, values), cwd=directory)

    def _issue(self, node: Node, directory: Path) -> None:
        authority = self.directory / "keys"
        if not authority.exists():
            keys.init(authority)
        made = keys.issue(authority, node.name, [*node.ipv4, *node.ipv6])
        for path in (made.certificate, made.key, made.ca):
            shutil.copy2(path, directory)

    def _start_program(self, node: Node, program: models.Program, until: float) -> None:
        child = self.start(node.name, hosts.fill(program.argv, self._values(node)), name=program.name)

        def listens() -> bool:
            return set(program.listen) <= processes.listening(self.netns(node.name))

        log = self.log(node.name, program.name)
        while program.listen and not listens():
            # A program that puts itself into the background ends with 0 and listens soon.
            if child.poll():
                raise HostError(f"{program.name} on {node.name} ended:\n{processes.tail(log)}")
            _not_after(until, f"{program.name} on {node.name} does not listen:\n{processes.tail(log)}")
            time.sleep(_LOOK_S)

    async def _peers_up(self, until: float) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for name, tables in self._tables.items():
                    wanted = {peer["name"] for peer in tables["peer"] if peer["name"] in self._tables}
                    group.create_task(self._agent_ready(name, wanted, until), name=f"wait for {name}")
        except BaseExceptionGroup as group_of_errors:
            raise group_of_errors.exceptions[0] from None

    async def _agent_ready(self, node: str, wanted: set[str], until: float) -> None:
        from dysco.client import connect

        log = self.log(node)
        child = next((child for child in self._children if child.pid == self.agent_pid(node)), None)
        while True:
            missing = wanted
            with contextlib.suppress(DyscoError):
                async with (
                    asyncio.timeout(max(0.1, until - time.monotonic())),
                    connect(self.socket(node)) as agent,
                ):
                    missing = wanted - {peer.name for peer in await agent.peers() if peer.up}
                    if not missing:
                        return
            if child is not None and child.poll() is not None:
                raise HostError(f"the agent on {node} ended:\n{processes.tail(log)}")
            _not_after(
                until, f"the agent on {node} does not reach {', '.join(missing)}:\n{processes.tail(log)}"
            )
            await asyncio.sleep(_LOOK_S)

    def _remove(self) -> None:
        state = self._read_state()
        if state is None:
            return
        # The file may have changed since: what was made is what the state names.
        paths = [network.NAMED / name for name in state["namespaces"]]
        spaces = processes.inodes(paths)
        processes.end(spaces)
        for child in self._children:
            child.wait()
        self._children.clear()
        left = processes.inside(spaces)
        if left:
            raise HostError(f"processes {', '.join(map(str, left))} of the lab {self.name} do not end")
        there = [path.name for path in paths if path.exists()]
        if there:
            network.ip([f"netns delete {name}" for name in there])
        for journal in self.directory.glob("*/run/host.journal"):
            clean(journal.parent)  # of agents that have not undone what outlives their namespaces
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self._state.unlink(missing_ok=True)

    def _close_nursery(self) -> None:
        if self._own_nursery:
            self._nursery.close()

    def _release(self) -> None:
        """Let go of the lock, and of the directories that are empty then."""
        self._lock.release()
        for directory in (self._state.parent, self._state.parent.parent):
            with contextlib.suppress(OSError):
                directory.rmdir()

    def _node_status(self, node: Node, is_there: bool) -> dict[str, Any]:
        netns = self._names.of(node.name)
        space = processes.inodes([network.NAMED / netns]) if is_there else set()
        return {
            "name": node.name,
            "kind": node.kind,
            "netns": netns,
            "ipv4": node.ipv4,
            "ipv6": node.ipv6,
            "socket": str(self.socket(node.name)) if node.name in self._tables else None,
            "processes": [{"pid": pid, "name": _process_name(pid)} for pid in processes.inside(space)],
        }

    def _write_state(self, state: str) -> None:
        fresh = self._state.with_suffix(".new")
        record = {
            "name": self.name,
            "state": state,
            "namespaces": self._names.all(),
            "directory": str(self.directory),
        }
        fresh.write_text(json.dumps(record, indent=1) + "\n")
        fresh.replace(self._state)

    def _read_state(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._state.read_text()))
        except (OSError, ValueError):
            return None


def _process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _not_after(until: float, message: str) -> None:
    if time.monotonic() > until:
        raise TimedOutError(message)
