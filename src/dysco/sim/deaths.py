"""Scenarios in which the host of a proxy dies: its agent and its proxy at the same moment, with all the proxy held.

Everything that scenarios with a proxy draw is drawn here too. At a random moment, often while the proxy is being taken
out, one of these happens:

    processes   agent and proxy are killed; the kernel lives on, and the agent begins again with its journal
    reboot      the host comes back with nothing: no journal, no sockets
    loss        it never comes back

Nobody's fault is a session whose proxy was still needed: TCP ends it, or both ends hear at once that it is over. Judged
is what must hold all the same: no end gets a byte that was not sent, or out of its place; a session of which an anchor
has said that the proxy is out of it goes on to its ordinary end; one with two paths, whose ends still hold all that the
proxy had not passed on, is saved; of one that is not, both ends hear a reset and the event says how much was lost.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Final

from dysco.protocol.events import ChangeMoved
from dysco.sim.endpoint import State
from dysco.sim.host import Host
from dysco.sim.proxied import ENDED, Proxied
from dysco.sim.scenario import Pair, Verdict

DECIDED_S: Final = 150.0  # longer than anchors need to hear of a host that never comes back
DEATHS: Final = ("processes", "reboot", "loss")


class Deadly(Proxied):
    """A scenario with a proxy whose host dies. death: how; died_at: when, once it has."""

    def __init__(self, seed: int, *, record: bool = False) -> None:
        self.dice = random.Random(seed ^ 0xDEAD)
        self.death = self.dice.choice(DEATHS)
        self.died_at: float | None = None
        super().__init__(seed, record=record)
        self.clock.call_at(self.clock.now + 0.05 + self.dice.random() * 1.2, self._die)

    def _die(self) -> None:
        host, now = self.relay_host, self.clock.now
        self.died_at = now
        for pair in self.pairs:
            pair.excused = True
        for relay in self.relays.values():
            relay.died = True
            relay.until = now
        for end in list(host.endpoints.values()):
            end.vanish()
        host.endpoints.clear()
        host.listeners.clear()
        self.changer.forget(host)
        self._cut(host, up=False)
        if self.death == "loss":
            host.silence()
            return
        if self.death == "reboot":
            host.journal.clear()
        down_s = self.dice.choice((0.1, 2.0, 15.0, 40.0))
        host.silence()
        self.clock.call_at(now + down_s, partial(self._come_back, host))

    def _come_back(self, host: Host) -> None:
        host.resets = True
        self._cut(host, up=True)
        host.restart()

    def _cut(self, host: Host, *, up: bool) -> None:
        for other in (*self.hosts, *self.spares):
            if other is not host:
                for kind in ("data", "control"):
                    self.network.link(kind, host.name, other.name).up = up
                    self.network.link(kind, other.name, host.name).up = up
                assert other.agent is not None
                if not up:
                    self.clock.call_at(
                        self.clock.now + self.dice.choice((3.0, 10.0)), partial(self._noticed, host, other)
                    )

    def _noticed(self, host: Host, other: Host) -> None:
        """An agent has not heard of the host for long enough."""
        if not self.network.link("control", host.name, other.name).up and other.agent is not None:
            other.agent.peer_down(host.name, self.clock.now)
            other.drain()

    def _restart(self, host: Host) -> None:
        if self.died_at is None or host is not self.relay_host:
            super()._restart(host)

    def _settled(self, pair: Pair) -> bool:
        if self.died_at is None:
            return super()._settled(pair)
        if self.clock.now > self.died_at + DECIDED_S:
            return True
        return all(end is not None and end.state in ENDED for end in (pair.client, pair.server))

    def _judge(self, number: int, pair: Pair, verdict: Verdict) -> None:
        ends = (pair.client, pair.server)
        if self.died_at is None:
            super()._judge(number, pair, verdict)
            return
        for end, wanted, who in (
            (pair.client, pair.download, "client"),
            (pair.server, pair.upload, "server"),
        ):
            if end is None:
                continue
            verdict.faults += [f"session {number}: {who}: {text}" for text in end.violations]
            if bytes(end.received) != wanted[: len(end.received)]:
                verdict.faults.append(f"session {number}: the {who} received other bytes than were sent")
            verdict.bytes += len(end.received)
        said = self._said(pair)
        if pair.aborted or None in ends:
            return
        if "done" in said and not self._is_whole(pair):
            verdict.faults.append(f"session {number}: {self.death}: the proxy was out of it, and it is lost")
        elif "two paths" in said and not self._is_whole(pair) and not self._has_failed(number, pair):
            verdict.faults.append(f"session {number}: {self.death}: nobody has said that it is over")
        verdict.completed += self._is_whole(pair)

    def _judge_rest(self, host: Host, verdict: Verdict) -> None:
        if host.agent is not None:
            super()._judge_rest(host, verdict)

    def _said(self, pair: Pair) -> set[str]:
        """What the anchors have said of taking the proxy out of a session, at the client's and the server's side."""
        mine = {end.tuple for end in (pair.client, pair.server) if end is not None}
        mine |= {one.reversed() for one in mine}
        others = (host for host in (*self.hosts, *self.spares) if host is not self.relay_host)
        return {
            event.phase
            for host in others
            for event in host.events
            if isinstance(event, ChangeMoved) and event.request in self.splices and event.session in mine
        }

    @staticmethod
    def _is_whole(pair: Pair) -> bool:
        """Whether both ends have had all that the other one meant to send, and an ordinary end."""
        client, server = pair.client, pair.server
        return (
            client is not None
            and server is not None
            and client.state is State.DONE is server.state
            and (bytes(client.received), bytes(server.received)) == (pair.download, pair.upload)
        )


def run(seed: int, *, record: bool = False) -> Verdict:
    """Make the scenario of a seed and run it; the same seed gives the same run."""
    return Deadly(seed, record=record).run()
