"""The agent: the protocol core driven by asyncio, with devices, channel, control socket, journal and metrics.

    devices --Forwarder--> core <--Channel-- peers
                 ^           |
                 +-----------+-- packets, messages, events, one timer

All that a wake-up has given to the core is followed by one `_transmit`, which carries out what the core wants and arms
the one timer if it would come too late. Nothing here decides anything about sessions. `AgentService` may run inside
another asyncio program; `process` is what `dysco tun up` runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from dysco import config as configuration
from dysco.config.models import HostConfig
from dysco.config.policies import find_place, policy_set, resolve_hop
from dysco.dataplane.fast import KernelFlowTable
from dysco.dataplane.forward import Forwarder, Writer
from dysco.dataplane.opening import Openings
from dysco.dataplane.steer import MAX_CLAUSES
from dysco.dataplane.table import PythonFlowTable
from dysco.errors import LocalError
from dysco.policy import Place, PolicySet
from dysco.protocol.agent import Agent, MessageOut, PacketOut
from dysco.protocol.chain import SessionInfo
from dysco.protocol.events import (
    ChangeMoved,
    Event,
    PeerMoved,
    SessionClosed,
    SessionForgotten,
    SessionRecord,
    SetupRefused,
    StateArrived,
    StateWanted,
    Traced,
)
from dysco.protocol.flow import FORWARD, HOST, UNDERLAY
from dysco.protocol.replay import ReplayWindow
from dysco.protocol.settings import Settings
from dysco.service import boxes, journal, kernel, logs, metrics, report, settings
from dysco.service.changes import ChainChanges
from dysco.service.commands import ChainCommands
from dysco.service.control import ControlServer, Events
from dysco.service.draining import Draining
from dysco.service.entropy import Entropy
from dysco.service.hurry import Hurry
from dysco.service.logs import log
from dysco.service.moving import Moving
from dysco.service.opening import KernelOpening, clear_stale
from dysco.service.proxies import Proxies
from dysco.service.queries import Queries
from dysco.service.resets import LeftBehind, reset_all
from dysco.service.state import movers
from dysco.service.state_driver import StateDriver
from dysco.transport.channel import Channel
from dysco.wire.chain_header import Hop
from dysco.wire.messages import AGENT_AND_SESSIONS, Gone, Hello, Message, Moved
from dysco.wire.packet import Located, Packet
from dysco.wire.tuples import FiveTuple

LOGGED_FAULTS: Final = 100  # defects that are logged; all are counted
OVER: Final = frozenset(
    ("time-wait", "reset", "closed", "denied", "probed")
)  # states that only wait for their end
WATCH_S: Final = 5.0
"""Seconds between two looks at the event loop's lag and at what else changes by itself. Nothing wakes an idle agent
more often: each time costs a millisecond, for nothing of it is in the processor's caches any more, and who shares the
processor may be late by that."""


class AgentService:
    """One agent. `async with AgentService(config):` brings it up and takes it down again.

    Entering raises HostError, PermissionDeniedError, ConfigError; on failure nothing is left behind.
    """

    def __init__(self, config: HostConfig, path: Path | None = None) -> None:
        self.config = config
        self.path = path
        self.stopped = asyncio.Event()
        self.events = Events()
        self.closed = asyncio.Event()  # set with each session that is gone
        self.hurried = False
        self.lag_s = 0.0
        self.began_at = 0.0
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lag_timer: asyncio.TimerHandle | None = None
        self._slicing: asyncio.TimerHandle | None = None
        self._stale_timer: asyncio.TimerHandle | None = None
        self._hurry: Hurry | None = None
        self.opening: KernelOpening | None = None
        self._undo = contextlib.AsyncExitStack()
        self.changes = ChainChanges(self)
        self.devices = boxes.Devices(self._from_box, self._choose, self.changes.leave)
        self._keep = self._sessions_over = False
        self.for_good = False
        """Whether no agent will start here again."""
        self.failure: OSError | None = None
        self.faults = 0
        self.draining = Draining(self)
        self.left_behind = LeftBehind(self)
        self.proxies = Proxies(self)
        self.moving = Moving(self)
        self.states: StateDriver
        self.channel: Channel
        # Who hears of events that are nobody else's, and who besides the log and those who listen.
        self._inner: dict[type[Any], Callable[[Any], None]] = {
            Traced: self.changes.hear,
            StateWanted: lambda event: self.states.hear(event),
            StateArrived: lambda event: self.states.hear(event),
        }
        self._outer: dict[type[Any], Callable[[Any], None]] = {
            PeerMoved: lambda event: self.channel.admit(event.peer, event.addresses),
            ChangeMoved: self.changes.hear,
            SetupRefused: self.draining.hear,
            SessionClosed: self._closed,
        }

    async def __aenter__(self) -> AgentService:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Bring the agent up."""
        try:
            await self._start()
        except BaseException:
            await self._undo.aclose()
            raise

    async def stop(self) -> None:
        """Take it down; established sessions are kept or reset, as `agent.on_stop` says, or reset `for_good`."""
        self._keep = self.config.agent.on_stop == "keep" and not self.for_good
        if self.opening is not None:
            self.opening.stop()
            self._transmit()
        silent = 0
        await self.left_behind.close()
        if not self._keep and hasattr(self, "core"):
            self._withdraw_policies()
            self._sessions_over = True
            silent = await reset_all(self)
        await self._undo.aclose()
        sessions = "kept" if self._keep else "reset"
        log("agent_stopped", name=self.config.agent.name, sessions=sessions, silent=silent)
        self.stopped.set()

    def hurry(self) -> None:
        """Stop without the resets that are still to come."""
        self.hurried = True
        self.closed.set()

    async def _start(self) -> None:
        config = self.config
        self._loop = asyncio.get_running_loop()
        self.began_at = self._loop.time()
        identity = settings.identity(self.config)
        writers: dict[int, Writer] = {}
        for one in settings.box_ports(config):
            if one.box.python is not None and one.left is not None:
                made = boxes.load(one.box.python, f"box {one.box.name}", one.box.kind)
                writers.update(self.devices.add(one.box.name, made, one.left))
        adapters = self.proxies.prepare(config)
        side = await asyncio.to_thread(kernel.up, config)
        self.kernel = side
        if side.in_kernel:
            # Else it carries every packet itself, and would keep those from running whom it carries them for.
            self._hurry = Hurry(self._loop)
            self._undo.callback(self._hurry.end)
        self._undo.push_async_callback(self._close_kernel)
        own, mtu = side.underlay.addresses, side.underlay.mtu
        self.moving.left = side.left
        self.policies: PolicySet = policy_set(config, own)
        self.table: PythonFlowTable = (
            KernelFlowTable(side.steering, own, config.agent.port_range, side.carried)
            if side.in_kernel
            else PythonFlowTable(side.steering, own, config.agent.port_range)
        )
        self.core_settings = settings.core_settings(config, own, mtu, left=side.left)
        # What the kernel has opened for an agent before this one is taken up in the mode `tun` too.
        opens = side.in_kernel and config.dataplane.opening == "kernel"
        openings = Openings(side.steering) if opens or side.steering.taken_over else None
        self.core = Agent(
            self.core_settings,
            self.table,
            settings.decider(self.policies, self),
            Entropy(),
            openings.new_window if openings is not None and opens else ReplayWindow,
        )
        readers = {
            side.session: HOST,
            side.subsession: UNDERLAY,
            **{tun: port for port, tun in side.boxes.items()},
        }
        writers |= {HOST: side.subsession, UNDERLAY: side.subsession, FORWARD: side.session, **side.boxes}
        self.forwarder = Forwarder(readers, writers, self.table, self._slow, self._device_gone)
        self.core.boxes_settle(self.devices.settle, self.devices.unsettle)
        self.states = StateDriver(self, movers(config, self.devices.by_name))
        self._restore()
        if openings is not None:
            self._undo.callback(openings.close)
            self.opening = KernelOpening(self, openings)
            self.take_reports()
            if not opens:
                self.opening = None
        if len(self.core):
            log("sessions_restored", sessions=len(self.core))
        if side.steering.taken_over:
            self._stale_timer = clear_stale(self)
        for tun in readers:
            self._loop.add_reader(tun.fd, self._readable, tun.fd)
            self._undo.callback(self._loop.remove_reader, tun.fd)
        boot = settings.boot_id(os.urandom(32))
        here = tuple(one for one in own if one not in side.left)
        self.channel = Channel(
            settings.channel_settings(config, here, mtu, boot), identity, self, random.SystemRandom()
        )
        await self.channel.start()
        self._undo.push_async_callback(self._close_channel)
        self._undo.push_async_callback(self.left_behind.close)
        side.steering.set_policies(self.policies.clauses(MAX_CLAUSES))
        self._undo.callback(self._withdraw_policies)
        if self.opening is not None:
            await self.opening.start()
        self._undo.push_async_callback(self.states.close)
        self.proxies.configure(config, adapters)
        self.proxies.start()
        self._undo.push_async_callback(self.proxies.close)
        streams = {
            **ChainCommands(self.changes, self.draining, self.moving).streams(),
            "drain_proxy": self.proxies.drain,
        }
        commands = Queries(self).commands()
        control = ControlServer(config.socket, commands, self.events, streams, self.take_reports)
        await control.start()
        self._undo.push_async_callback(control.close)
        if config.agent.metrics is not None:
            self._undo.push_async_callback(await metrics.listen(config.agent.metrics, self.metrics))
        self._watch(self._loop.time())
        self._transmit()
        log(
            "agent_started",
            name=config.agent.name,
            addresses=list(report.addresses(own)),
            mode=report.mode(side),
            why_no_ebpf=side.kernel_refused or None,
            why_not_pinned=side.plan.not_pinned or None,
        )

    def take_reports(self, *, settle: bool = True) -> None:
        """Take up what the kernel has opened, answered and ended since, before anything is done that may concern it."""
        if self.opening is not None and self.opening.take(settle=settle):
            self._transmit()
            self.opening.done()

    def _refresh_opening(self) -> None:
        """Tell the kernel what it may do by itself, after something has changed."""
        if self.opening is not None:
            self.opening.refresh()

    def _withdraw_policies(self) -> None:
        """Let new sessions go without a chain, unless they are to wait for the next agent."""
        if not self._keep:
            self.kernel.steering.set_policies(())

    def healthy(self, address: bytes) -> bool:
        """For policies: whether the agent at an address can be reached."""
        if address in self.core_settings.addresses:
            return True
        peer = next((one.name for one in self.core_settings.peers if address in one.addresses), None)
        return peer is not None and self.core.peer_is_up(peer)

    def sessions(self, address: bytes, box: int) -> int:
        """For policies: how many sessions go from here to the agent at an address."""
        return self.core.sessions_via(address)

    def drained(self, address: bytes, box: int) -> bool:
        """For policies: whether a box shall get no new sessions."""
        return self.draining.drained(address, box)

    def instead(self, address: bytes, box: int) -> Place | None:
        """For policies: where the new sessions of a drained box go."""
        return self.draining.instead(address, box)

    def metrics(self) -> str:
        """Counters in Prometheus' text format."""
        self.take_reports()
        return metrics.text(self)

    # What the channel calls.

    def on_key(self, peer: str, receive_key: bytes) -> None:
        self.core.accept_key(peer, receive_key, self._loop.time())
        self._refresh_opening()

    def on_up(self, peer: str, hello: Hello, send_key: bytes, receive_key: bytes, address: bytes) -> None:
        self.core.peer_up(peer, hello, send_key, receive_key, self._loop.time(), address=address)
        self._refresh_opening()
        self.moving.announce(peer)
        self._transmit()

    def on_down(self, peer: str) -> None:
        self.core.peer_down(peer, self._loop.time())
        self._refresh_opening()
        self._transmit()

    def on_message(self, peer: str, message: Message) -> None:
        if self._hurry is not None:
            self._hurry.begin()
        self.take_reports()
        try:
            self.core.receive_message(peer, message, self._loop.time())
        except Exception:
            self.fault("message")
        if isinstance(message, Moved):
            self._refresh_opening()  # or the kernel goes on beginning chains toward where the peer was
        elif isinstance(message, Gone) and message.chain_id == AGENT_AND_SESSIONS:
            self.left_behind.by(peer)
        self._transmit()

    def on_mtu(self, peer: str, mtu: int) -> None:
        self.core.peer_mtu(peer, mtu)
        self._refresh_opening()

    def digest(self, peer: str) -> bytes:
        return bytes(8)

    def standing(self, peer: str) -> list[Message]:
        return self.moving.standing()

    # What the devices call.

    def _readable(self, fd: int) -> None:
        self._read(fd)
        # A SYN that was written to a kernel box has passed it by now, as a rule: no need to wait for a wake-up.
        back = self.forwarder.echo()
        if back is not None and back != fd:
            self._read(back)

    def _read(self, fd: int) -> None:
        try:
            self.forwarder.readable(fd)
        except OSError as error:
            self._loop.remove_reader(fd)
            self._fail(error)
        self._transmit()

    def _device_gone(self, fd: int) -> None:
        """Somebody has deleted a device of ours; one of a box is that box's loss, both others carry everything."""
        self._loop.remove_reader(fd)
        if fd in (self.kernel.session.fd, self.kernel.subsession.fd):
            self._fail(OSError(errno.ENODEV, "a TUN device of the agent was deleted"))
        else:
            log("device_gone", logging.ERROR, remedy="restart the agent when the box is there again")

    def _slow(self, port: int, packet: Packet, at: Located | None) -> None:
        self.take_reports(settle=at is None)
        try:
            self.core.receive_packet(port, packet, self._loop.time(), at)
        except Exception:
            self.fault("packet")

    def fault(self, what: str) -> None:
        """Survive a defect of our own: what caused it is lost, counted and logged, everything else goes on."""
        self.faults += 1
        if self.faults <= LOGGED_FAULTS:
            logs.LOGGER.exception("internal_error", extra={"fields": {"while_handling": what}})

    def _fail(self, error: OSError) -> None:
        """An agent without its devices only seems to work, so it stops and says why."""
        if self.failure is None:
            self.failure = error
            log("device_failed", logging.ERROR, reason=error.strerror or str(error))
            self.stopped.set()

    def _transmit(self) -> None:
        """Carry out what the core wants; packets to software devices may lead to more.

        What the journal must know is written before anything leaves: a session that others know and a restarted agent
        does not would be lost, and a change of which only one side knows would lose bytes.
        """
        core = self.core
        while True:
            out, happened = core.outgoing(), core.events()
            if not out and not happened:
                break
            events = []
            for event in happened:
                if isinstance(event, SessionRecord):
                    self._journal.remember(event.key, event.data)
                elif isinstance(event, SessionForgotten):
                    self._journal.forget(event.key)
                else:
                    events.append(event)
            if len(events) < len(happened):
                self._write_journal()
            for item in out:
                if isinstance(item, PacketOut):
                    self.forwarder.send(item.port, item.packet)
                elif isinstance(item, MessageOut):
                    self.channel.send(item.peer, item.message)
            for event in events:
                self._event(event)
        deadline = core.next_deadline()
        # A timer that comes too soon is armed again then, which is cheaper than with each packet.
        if deadline is not None and (self._deadline is None or deadline < self._deadline):
            if self._timer is not None:
                self._timer.cancel()
            self._deadline = deadline
            self._timer = self._loop.call_at(deadline, self._due)

    def _event(self, event: Event) -> None:
        """Tell the log, and whoever listens."""
        kind = type(event)
        if kind in self._inner:
            self._inner[kind](event)
            return
        self.events.add(event)
        if kind in self._outer:
            self._outer[kind](event)
        level = report.level(event)
        if logs.LOGGER.isEnabledFor(level):
            log(report.name(event), level, **report.fields(event))

    def _closed(self, event: SessionClosed) -> None:
        self.closed.set()
        if event.box is not None:
            self.devices.forget(event.box, event.session)

    def _write_journal(self) -> None:
        """Write what was noted; a new file is made in slices."""
        if self._journal.flush() and self._slicing is None:
            self._slicing = self._loop.call_later(journal.PAUSE_S, self._slice)

    def _slice(self) -> None:
        self._slicing = None
        self._write_journal()

    def _due(self) -> None:
        self._deadline = None
        self._timer = None
        self.take_reports(settle=False)
        try:
            self.core.handle_deadline(self._loop.time())
        except Exception:
            self.fault("deadline")
        self._transmit()

    def _watch(self, expected_at: float) -> None:
        """Measure how late the event loop is, and see to what the kernel must know."""
        now = self._loop.time()
        self.lag_s = max(0.0, now - expected_at)
        self._lag_timer = self._loop.call_at(now + WATCH_S, self._watch, now + WATCH_S)
        if self.opening is not None:
            self.opening.look()

    def _from_box(self, port: int, packet: Packet) -> None:
        self.forwarder.receive(port, packet)
        self._transmit()

    def _choose(self, session: FiveTuple, hops: list[str]) -> None:
        self.core.set_hops(session, self._hops(session, hops))

    def _hops(self, session: FiveTuple, names: list[str]) -> tuple[Hop, ...]:
        """The hops that names mean, with the session's final host behind them."""
        return (*(self.hop(name, session) for name in names), Hop(session.dst))

    # What changes of chains and draining need.

    def own_addresses(self) -> tuple[bytes, ...]:
        """This agent's addresses, packed."""
        return self.core_settings.addresses

    def place(self, name: str) -> Place:
        """What a name in a policy means; ConfigError if nothing."""
        return find_place(self.config, self.kernel.underlay.addresses, name)

    def live_sessions(self) -> Iterator[SessionInfo]:
        """The sessions that a change of their chain may still concern."""
        self.take_reports()
        return (info for info in self.core.sessions(self.now()) if info.state not in OVER)

    def counted(self) -> contextlib.AbstractContextManager[None]:
        """Inside of it, what sessions have carried is as the kernel knows it."""
        return self.table.refresh_all()

    def first_bytes(self, session: FiveTuple) -> tuple[bytes, bytes] | None:
        """What was sent first in a session of a proxy here, and what was answered; None if it was not seen."""
        return self.core.first_bytes(session)

    def redraw(self) -> None:
        """Let the core know which boxes are drained."""
        self.core_settings = self._core_settings(self.config)
        self.core.configure(self.core_settings, settings.decider(self.policies, self))
        self._refresh_opening()

    def _core_settings(self, config: HostConfig) -> Settings:
        own, mtu = self.kernel.underlay.addresses, self.kernel.underlay.mtu
        return settings.core_settings(config, own, mtu, self.draining.own_boxes(), self.moving.left)

    def readdress(self, underlay: kernel.Underlay) -> None:
        """Go on with other addresses; the configuration is as if it had named them."""
        own, used = underlay.addresses, self.config.agent
        addresses = tuple(map(ipaddress.ip_address, report.addresses(own)))
        agent = used.model_copy(update={"addresses": addresses})
        self.config = self.config.model_copy(update={"agent": agent})
        self.policies = policy_set(self.config, own)
        self.table.move(own)
        self.core.moved()
        self.redraw()
        self.kernel.steering.set_policies(self.policies.clauses(MAX_CLAUSES))
        self.take_reports()
        self.core.begin_anew(self._loop.time())
        self._transmit()
        log("moved", addresses=list(report.addresses(own)))

    def aware(self, peer: str) -> None:
        """A peer has been told where this host is now."""
        self.core.peer_aware(peer, self._loop.time())
        self._refresh_opening()
        self._transmit()

    @property
    def name(self) -> str:
        """This agent's name."""
        return self.config.agent.name

    def now(self) -> float:
        """The time that the core is given, in monotonic seconds."""
        return self._loop.time()

    def transmit(self) -> None:
        """Carry out what a command has made the core want."""
        if self._hurry is not None:
            self._hurry.begin()
        self._transmit()

    def hop(self, name: str, session: FiveTuple) -> Hop:
        """The hop that a name means for a session; ConfigError if none."""
        return Hop(*resolve_hop(self.config, self.kernel.underlay.addresses, name, session.family))

    def _restore(self) -> None:
        directory = self.config.run_directory
        records, cut = journal.read(directory / journal.NAME)
        now = self._loop.time()
        restored = sum(self.core.restore(data, now) for data in records.values())
        if cut or len(records) != restored:
            log("journal_damaged", lost=len(records) - restored, cut_bytes=cut)
        self._journal = journal.Journal(
            directory, self.core.records, lambda reason: log("journal_failed", logging.ERROR, reason=reason)
        )
        self._journal.start()
        self._undo.callback(lambda: self._journal.close(delete=not self._keep))

    async def _close_channel(self) -> None:
        await self.channel.close(with_sessions=self._sessions_over)

    async def _close_kernel(self) -> None:
        for timer in (self._timer, self._lag_timer, self._slicing, self._stale_timer):
            if timer is not None:
                timer.cancel()
        left = await asyncio.to_thread(self.kernel.close, keep=self._keep)
        for text in left:
            log("host_change_left", what=text)

    # What commands need.

    async def reload(self, dry_run: bool = False) -> dict[str, Any]:
        """Read host.toml again; an invalid one changes nothing (ConfigError). Live sessions stay."""
        if self.path is None:
            raise LocalError("this agent was started without a file")
        new = await asyncio.to_thread(configuration.load, self.path)
        changes = configuration.diff(self.config, new)
        if changes and not dry_run:
            merged = configuration.reloaded(self.config, new)
            policies = policy_set(merged, self.kernel.underlay.addresses)
            adapters = self.proxies.prepare(merged)
            self.core_settings = self._core_settings(merged)
            self.config = merged
            self.policies = policies
            self.proxies.configure(merged, adapters)
            self.core.configure(self.core_settings, settings.decider(policies, self))
            self.channel.reconfigure(settings.channel_peers(merged))
            self.kernel.steering.set_policies(policies.clauses(MAX_CLAUSES))
            self._refresh_opening()
            log("reloaded", changes=len(changes))
        return {"changes": [{"text": str(one), "key": one.key, "restart": one.restart} for one in changes]}

    def set_hops(self, session: FiveTuple, names: list[str]) -> bool:
        """Choose the hops of a session that waits for that; False if none does. ConfigError: no such hop."""
        done = self.core.set_hops(session, self._hops(session, names))
        self._transmit()
        return done
