"""The channel: authenticated messages to and from the peers that the configuration names, over UDP.

Knows asyncio, sockets and links, and which of a peer's links is used. Must not know what the messages of
chains mean. Messages may be lost, repeated and reordered here; whoever needs an answer repeats.

Every agent listens on the control port of each of its addresses, and calls its peers from a fresh port for
each attempt. So two associations never share their addresses and ports, a restarted peer is never mistaken
for the one before (RFC 6347, 4.2.8), and no association is given up before the next one has proved itself.

Both sides call, at once when they start and after a silence. Who leads is settled by the names, which both
sides know, and not by addresses, which a NAT shows differently to each: the smaller name leads.

* A follower that is called by its leader drops its own call; a leader that has just called does not listen.
* If two links come up all the same, the newer one counts, unless the leader closes it because its other one is
  young and well. The leader closes a link that it has replaced when something still arrives on it. So both sides
  end with the same link, whatever was lost or reordered.
* A replaced link receives for a while longer, and its keys stay valid (which is the core's business).
* Who has moved calls until the link in use is one from a new address. A peer that does not know of the move yet may
  call the old address meanwhile, and that link is the newer one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from dysco.errors import HostError, LocalError, WireError
from dysco.transport import probing, records
from dysco.transport.association import State
from dysco.transport.identity import Identity
from dysco.transport.link import Link
from dysco.transport.peer import Peer
from dysco.transport.settings import ChannelSettings, Handler, PeerSettings, PeerStatus
from dysco.transport.switchboard import Switchboard
from dysco.wire import frames
from dysco.wire.messages import (
    AGENT_AND_SESSIONS,
    WHOLE_AGENT,
    Gone,
    Hello,
    Keepalive,
    KeepaliveAck,
    Message,
    MtuProbe,
    MtuProbeAck,
)

PROTOCOL_VERSION: Final = 1
# A leader does not listen to a follower for so long after its own call, nor replaces a link that young.
_OWN_CALL_S: Final = 1.0
_YOUNG_S: Final = 5.0
# A silence of so many keepalives makes us call again, long before the peer counts as down.
_SILENCE: Final = 1.6
_CLOSE_AGAIN_S: Final = 2.0
_STALL_S: Final = 0.5
# A keepalive that is due within this part of its time goes at once where it spares a wake-up: in the place of an
# answer, and together with another peer's, so many at a time.
_SOON: Final = 0.5
_TOGETHER: Final = 32
_LAG: Final = 0.2  # who answers so lets the other begin the next time: it waits so much longer


class Channel:
    """All associations of an agent. `counters` counts every datagram by what became of it."""

    def __init__(
        self, settings: ChannelSettings, identity: Identity, handler: Handler, rng: random.Random
    ) -> None:
        """Prepare; nothing is opened before `start`. Raises LocalError if the certificate has another
        name."""
        if identity.name is not None and identity.name != settings.name:
            raise LocalError(f"the certificate is for {identity.name!r}, this agent is {settings.name!r}")
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self._identity = identity
        self._handler = handler
        self._rng = rng
        self._peers: dict[str, Peer] = {}
        self._switchboard: Switchboard | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flush_due: set[str] = set()
        self._moved_at = -math.inf

    async def start(self) -> None:
        """Open the sockets and call the peers; raises ConfigError, PermissionDeniedError or HostError."""
        loop = asyncio.get_running_loop()
        self._switchboard = Switchboard(self.settings, self._identity, self.counters, self, loop)
        self._loop = loop
        self.reconfigure(self.settings.peers)

    async def close(self, *, with_sessions: bool = False) -> None:
        """Tell the peers that this agent goes, and close everything. Nothing is called any more.

        with_sessions: whether nobody will take up its sessions.
        """
        if self._loop is None:
            return
        now = self._loop.time()
        for peer in self._peers.values():
            if peer.current is not None:
                self._flush(peer, now)
                self._post(peer.current, [Gone(AGENT_AND_SESSIONS if with_sessions else WHOLE_AGENT)], now)
            self._forget(peer)
        self._peers.clear()
        self._board().close()
        self._switchboard = None
        self._loop = None

    def reconfigure(self, peers: Iterable[PeerSettings]) -> None:
        """Take another list of peers: who stays keeps the association, who is gone is dropped.

        Another fingerprint makes it another peer; another address leads to a new association, and until that
        is there the old one serves.
        """
        board, now = self._board(), self._now()
        wanted = {peer.name: peer for peer in peers if peer.name != self.settings.name}
        for name, peer in list(self._peers.items()):
            new = wanted.get(name)
            if new is None or new.fingerprint != peer.settings.fingerprint:
                del self._peers[name]
                was_up = peer.current is not None
                self._forget(peer)
                if was_up:
                    self._handler.on_down(name)
        self._identity.pins = {p.fingerprint: p.name for p in wanted.values() if p.fingerprint is not None}
        for name, settings in wanted.items():
            known = self._peers.get(name)
            if known is None:
                self._peers[name] = Peer(settings, self.settings.timing, leads=self.settings.name < name)
            elif known.configured != settings:
                self._change(known, settings, now)
        board.allow(peer.settings for peer in self._peers.values())
        for name in wanted:
            self._tick(name, now)

    def _change(self, peer: Peer, settings: PeerSettings, now: float) -> None:
        """Take over other addresses or another MTU; the association serves until another one is there."""
        before, peer.configured = peer.configured, settings
        if (before.addresses, before.port) == (settings.addresses, settings.port):
            peer.settings = replace(settings, addresses=peer.settings.addresses)
        else:
            peer.settings = settings
            peer.told = ()
            self._end_call(peer)
            peer.call_at = now
            peer.attempts = 0
            if peer.current is not None and peer.current.remote[0] not in settings.addresses:
                self._call(peer, now)
        if peer.current is not None:
            self._path_mtu(peer, peer.current, now)

    def move(self, addresses: Iterable[str]) -> None:
        """Have other own addresses from now on, and make new associations from them; the old ones serve until then.

        Also where the old one has an address that stays: its device may be gone all the same.

        Raises ConfigError, PermissionDeniedError or HostError, and is as before then.
        """
        settings = replace(self.settings, addresses=tuple(addresses))
        fresh = set(settings.addresses) - set(self.settings.addresses)
        # The address of another version may be gone with the device: a call from there would take its whole time.
        versions = {ipaddress.ip_address(address).version for address in fresh}
        self._board().move(settings)
        self.settings = settings
        self._moved_at = now = self._now()
        for peer in self._peers.values():
            self._end_call(peer)
            peer.turn_to(versions)
            peer.pause_s = peer.timing.first_pause_s
            self._call(peer, now)
            self._tick(peer.settings.name, now)

    def has_moved(self, peer: str) -> bool:
        """Tell whether a peer has answered since this host has the addresses that it has now."""
        current = self._known(peer).current
        return current is not None and self._from_here(current)

    def _from_here(self, link: Link) -> bool:
        """Tell whether the peer has answered on a link since this host has the addresses that it has now."""
        if link.ready_at is None or link.ready_at < self._moved_at:
            return False
        return link.socket.getsockname()[0] in self.settings.addresses

    def _strayed(self, peer: Peer) -> bool:
        """Tell whether the link in use ends at an address that this host has left, and wants another one."""
        return peer.current is not None and not self._from_here(peer.current)

    def admit(self, peer: str, addresses: Iterable[str]) -> None:
        """Reach a peer at other addresses too, and let it call from there, as it has said itself."""
        known, now = self._known(peer), self._now()
        known.tell(addresses)
        self._board().allow(one.settings for one in self._peers.values())
        if known.call is not None and known.has_left(known.call.remote[0]):
            # It would be waited for in vain, and for long.
            self._end_call(known)
            self._call(known, now)
            self._tick(peer, now)

    def send(self, peer: str, message: Message) -> bool:
        """Queue a message; it goes out at the end of this turn of the loop. False: peer down or queue
        full."""
        known = self._peers.get(peer)
        if known is None or known.current is None:
            self.counters["not_sent_peer_down"] += 1
            return False
        if len(known.queue) >= self.settings.queue_limit:
            self.counters["not_sent_queue_full"] += 1
            return False
        known.queue.append(message)
        if not self._flush_due:
            self._running().call_soon(self._flush_all)
        self._flush_due.add(peer)
        return True

    def rekey(self, peer: str) -> None:
        """Make a new association with a peer; the old one serves until then. Raises LocalError."""
        self._call(self._known(peer), self._now())

    def probe(self, peer: str) -> None:
        """Search for the largest packet that reaches a peer, now; raises LocalError."""
        known = self._known(peer)
        if known.current is not None and known.settings.mtu is None:
            probing.begin(known, known.current, self.settings.mtu, self._now())
            self._tick(peer, self._now())

    def status(self) -> list[PeerStatus]:
        """Tell how every configured peer stands, by name."""
        now = self._now()
        return [peer.status(now) for _, peer in sorted(self._peers.items())]

    # What the switchboard tells.

    def listens_to(self, names: frozenset[str], now: float) -> bool:
        """Tell whether a call from one of these peers is wanted: not right after our own, if we lead."""
        peers = [self._peers[name] for name in names]
        return any(
            not peer.leads or peer.call is None or now >= peer.call.began_at + _OWN_CALL_S for peer in peers
        )

    def called_by(self, names: frozenset[str], own: str, now: float) -> None:
        """Drop the own calls to these peers where they lead, unless they call an address that this host has left."""
        if own not in self.settings.addresses:
            return
        for name in names:
            peer = self._peers[name]
            if not peer.leads and peer.call is not None:
                self.counters["calls_yielded"] += 1
                self._end_call(peer)
                peer.call_at = now + _YOUNG_S
                self._tick(name, now)

    def arrived(self, link: Link, before: State, plaintexts: list[bytes], now: float) -> None:
        """Greet over a new association; take the messages of an old one."""
        if before is State.HANDSHAKE and link.up:
            self._handshake_done(link, now)
        for plaintext in plaintexts:
            self.counters["datagrams_in"] += 1
            self.counters["bytes_in"] += len(plaintext) + records.RECORD_OVERHEAD
            try:
                received = frames.decode(plaintext)
            except WireError:
                self.counters["dropped_undecodable"] += 1
                continue
            link.heard_at = now
            for message in received:
                self._message(link, message, now)

    def _handshake_done(self, link: Link, now: float) -> None:
        name = link.association.peer
        peer = self._peers.get(name) if name is not None else None
        if name is None or peer is None:
            link.association.close()  # the configuration has dropped it meanwhile
            return
        self.counters["handshakes"] += 1
        if peer.call is link:
            peer.call = None
        link.peer = name
        peer.links.append(link)
        link.hello_at = link.heard_at = now
        self._handler.on_key(name, link.association.receive_key)
        self._tick(name, now)

    def _message(self, link: Link, message: Message, now: float) -> None:
        peer = self._peers.get(link.peer) if link.peer is not None else None
        if peer is None or not link.up:
            return
        if isinstance(message, Hello):
            self._hello(peer, link, message, now)
            return
        if not link.confirmed:
            link.confirmed = True
            self._ready_if(peer, link, now)
        if link.hello is None:
            self.counters["dropped_before_hello"] += 1
            return
        if link.retired_at is not None and peer.leads and now > link.retired_at + _CLOSE_AGAIN_S:
            self.counters["links_closed_replaced"] += 1
            self._drop(link)
        match message:
            case MtuProbe():
                self._post(link, [MtuProbeAck(message.number, message.size)], now)
            case KeepaliveAck():
                pass  # that it came is all it says
            case MtuProbeAck():
                if link.search is not None and link is peer.current:
                    link.search.passed(message.size)
                    self._probe_on(peer, link, now)
                    self._arm(peer, now)
            case Gone() if message.chain_id in (WHOLE_AGENT, AGENT_AND_SESSIONS):
                if message.chain_id == AGENT_AND_SESSIONS:
                    self._handler.on_message(peer.settings.name, message)
                self._say_gone(peer, link, now)
            case _:
                if isinstance(message, Keepalive):
                    self._answer(peer, link, message.number, now)
                self.counters["messages_in"] += 1
                self._handler.on_message(peer.settings.name, message)

    def _hello(self, peer: Peer, link: Link, hello: Hello, now: float) -> None:
        if hello.version != PROTOCOL_VERSION or hello.name != peer.settings.name:
            peer.last_failure = (
                f"it calls itself {hello.name!r}"
                if hello.name != peer.settings.name
                else f"it speaks version {hello.version}, we speak {PROTOCOL_VERSION}"
            )
            self.counters["hello_refused"] += 1
            self._drop(link)
            peer.failed(now, self._rng)
            self._lost(peer, link, now)
            return
        link.hello = hello
        self._post(link, [KeepaliveAck()], now)
        self._ready_if(peer, link, now)

    # Which link is used.

    def _ready_if(self, peer: Peer, link: Link, now: float) -> None:
        if not link.ready or link.ready_at is not None:
            return
        link.ready_at = now
        peer.pause_s = peer.timing.first_pause_s
        old = peer.current
        if old is not None and old.hello is not None and link.hello is not None:
            same_boot = old.hello.boot_id == link.hello.boot_id
            well = old.ready_at is not None and now < old.ready_at + _YOUNG_S
            moved = old.remote[0] != link.remote[0] or not self._from_here(old)
            if same_boot and well and peer.leads and not peer.rekeying and not moved:
                self.counters["links_closed_double"] += 1
                link.retired_at = now
                self._drop(link)
                return
            if not same_boot:
                self.counters["peer_restarts"] += 1
        self._use(peer, link, now)

    def _use(self, peer: Peer, link: Link, now: float) -> None:
        assert link.hello is not None
        old, peer.current = peer.current, link
        peer.last_failure = None
        if self._from_here(link):
            self._end_call(peer)
        elif peer.call is None:
            # A moment, or two that have moved and do not know it yet would call each other in circles.
            peer.call_at = max(peer.call_at, now + peer.timing.first_pause_s)
        peer.rekeying = peer.call is not None
        link.retired_at = None
        if old is not None:
            old.retired_at = now
            old.search = None
        for other in list(peer.links):
            if other.hello is not None and other.hello.boot_id != link.hello.boot_id:
                self._drop(other)
        association = link.association
        self._handler.on_up(
            peer.settings.name,
            link.hello,
            association.send_key,
            association.receive_key,
            ipaddress.ip_address(link.remote[0]).packed,
        )
        if peer.current is not link:
            return
        self._path_mtu(peer, link, now)
        self._tick(peer.settings.name, now)

    def _say_gone(self, peer: Peer, link: Link, now: float) -> None:
        if link is peer.current:
            self.counters["peers_gone"] += 1
        peer.call_at = max(peer.call_at, now + peer.pause_s)
        self._drop(link)
        self._lost(peer, link, now)

    def ended(self, link: Link, before: State, now: float) -> None:
        """Go on without a link that the peer, a failed handshake or its time has ended."""
        reason = link.association.reason or "closed"
        self._drop(link)
        if before is State.HANDSHAKE:
            self.counters["handshakes_failed"] += 1
        for peer in self._peers.values():
            if peer.call is link:
                peer.call = None
                peer.last_failure = reason
                peer.failed(now, self._rng)
                self._tick(peer.settings.name, now)
                return
        known = self._peers.get(link.peer) if link.peer is not None else None
        if known is not None:
            if link.ready_at is None:
                known.last_failure = reason
                known.failed(now, self._rng)
            self._lost(known, link, now)

    def _lost(self, peer: Peer, link: Link, now: float) -> None:
        """Go on without a link that has ended: with another one that is alive, or with none."""
        if peer.current is link:
            others = [other for other in peer.links if other.ready]
            if others:
                peer.current = None
                self._use(peer, max(others, key=lambda other: other.heard_at), now)
                return
            peer.current = None
            peer.queue.clear()
            self._handler.on_down(peer.settings.name)
        self._tick(peer.settings.name, now)

    def _drop(self, link: Link) -> None:
        """End a link; which link is used stays as it is."""
        self._board().drop(link)
        peer = self._peers.get(link.peer) if link.peer is not None else None
        if peer is not None and link in peer.links:
            peer.links.remove(link)

    def _forget(self, peer: Peer) -> None:
        self._end_call(peer)
        for link in list(peer.links):
            self._drop(link)
            if link in peer.links:
                peer.links.remove(link)
        peer.current = None
        peer.queue.clear()
        if peer.timer is not None:
            peer.timer.cancel()
            peer.timer = None

    # Calling.

    def _call(self, peer: Peer, now: float) -> None:
        """Begin a handshake as client, unless one is going on."""
        if peer.call is not None:
            return
        settings = peer.settings
        address = str(ipaddress.ip_address(peer.address(peer.attempts)))
        peer.attempts += 1
        self.counters["calls"] += 1
        try:
            peer.call = self._board().call(settings.name, (address, settings.port), now)
        except HostError as error:
            peer.last_failure = str(error)
            peer.failed(now, self._rng)
        else:
            peer.rekeying = peer.current is not None

    def _end_call(self, peer: Peer) -> None:
        if peer.call is not None:
            link, peer.call = peer.call, None
            self._drop(link)

    # What time brings.

    def _tick(self, name: str, now: float, *, soon: float = 0.0) -> None:
        """Do what is due for a peer, and arm its timer for what comes next.

        soon: seconds before its time that a keepalive goes.
        """
        peer = self._peers.get(name)
        if peer is None:
            return
        timing = peer.timing
        for link in list(peer.links):
            if link.hello_due(now):
                self._post(link, [self._own_hello(link)], now)
            limit = timing.linger_s if link.retired_at is not None else timing.dead_s
            since = link.retired_at if link.retired_at is not None else link.heard_at
            if now >= since + limit:
                self._drop(link)
                if link is peer.current:
                    self.counters["peers_silent"] += 1
                    peer.last_failure = f"silent for {timing.dead_s:g} s"
                    self._lost(peer, link, now)
                    return
        current = peer.current
        if current is not None:
            if now + soon >= peer.keepalive_at:
                peer.keepalive_at = now + timing.keepalive_s
                peer.keepalives += 1
                keepalive = Keepalive(peer.keepalives, self._handler.digest(name))
                self._post(current, [keepalive, *self._handler.standing(name)], now)
            wanted = peer.silent(now, _SILENCE) or peer.aged(now) or self._strayed(peer)
            if wanted and not peer.greeting(now):
                self._call_if_due(peer, now)
            if current.search is None and peer.settings.mtu is None and now >= peer.probe_at:
                probing.begin(peer, current, self.settings.mtu, now)
            self._probe_on(peer, current, now)
        elif not peer.greeting(now):
            self._call_if_due(peer, now)
        self._arm(peer, now)

    def _call_if_due(self, peer: Peer, now: float) -> None:
        if peer.call is None and now >= peer.call_at:
            self._call(peer, now)

    def _arm(self, peer: Peer, now: float) -> None:
        deadline = max(peer.next_deadline(now, _SILENCE, strayed=self._strayed(peer)), now + 0.001)
        if peer.timer is not None:
            if peer.armed_for == deadline:
                return
            peer.timer.cancel()
        peer.armed_for = deadline
        peer.timer = self._running().call_at(deadline, self._timer, peer.settings.name)

    def _timer(self, name: str) -> None:
        peer = self._peers.get(name)
        if peer is not None:
            now = self._now()
            peer.timer = None
            if now > peer.armed_for + _STALL_S:
                # This process was stopped or busy: what the peer said meanwhile waits in the socket.
                for link in peer.links:
                    link.heard_at = max(link.heard_at, now - peer.timing.keepalive_s)
            sent = peer.keepalives
            self._tick(name, now)
            if peer.keepalives != sent:
                self._keepalives_soon(now)

    def _keepalive_soon(self, peer: Peer, link: Link, now: float) -> bool:
        """Send the next keepalive to a peer now if it is due soon; it answers the peer's own."""
        soon = _SOON * peer.timing.keepalive_s
        if link is not peer.current or now + soon < peer.keepalive_at:
            return False
        self._tick(peer.settings.name, now, soon=soon)
        return True

    def _answer(self, peer: Peer, link: Link, number: int, now: float) -> None:
        """Answer a keepalive."""
        if self._keepalive_soon(peer, link, now):
            peer.keepalive_at += _LAG * peer.timing.keepalive_s
            self._arm(peer, now)
        else:
            self._post(link, [KeepaliveAck(number)], now)

    def _keepalives_soon(self, now: float) -> None:
        """Send those that are due soon to other peers, too, while this agent is awake."""
        sent = 0
        for peer in list(self._peers.values()):
            if sent < _TOGETHER and peer.current is not None:
                sent += self._keepalive_soon(peer, peer.current, now)

    # Sending.

    def _flush_all(self) -> None:
        due, self._flush_due = self._flush_due, set()
        if self._loop is None:
            return
        now = self._now()
        for name in due:
            peer = self._peers.get(name)
            if peer is not None:
                self._flush(peer, now)

    def _flush(self, peer: Peer, now: float) -> None:
        if peer.queue and peer.current is not None:
            waiting = list(peer.queue)
            peer.queue.clear()
            self.counters["messages_out"] += len(waiting)
            self._post(peer.current, waiting, now)

    def _post(self, link: Link, batch: list[Message], now: float) -> None:
        packed = b""
        for message in batch:
            frame = frames.encode_one(message)
            if packed and len(packed) + len(frame) > link.room:
                link.send(packed, now)
                packed = b""
            packed += frame
        link.send(packed, now)

    def _own_hello(self, link: Link) -> Hello:
        return Hello(
            version=PROTOCOL_VERSION,
            capabilities=self.settings.capabilities,
            boot_id=self.settings.boot_id,
            name=self.settings.name,
            port_range=self.settings.port_range,
            observed_address=ipaddress.ip_address(link.remote[0]).packed,
        )

    # The path's MTU.

    def _path_mtu(self, peer: Peer, link: Link, now: float) -> None:
        if peer.settings.mtu is not None:
            link.search = None
            self._report_mtu(peer, link, peer.settings.mtu)
        else:
            probing.begin(peer, link, self.settings.mtu, now)

    def _probe_on(self, peer: Peer, link: Link, now: float) -> None:
        found = probing.step(peer, link, now)
        if found is not None:
            self._report_mtu(peer, link, found)

    def _report_mtu(self, peer: Peer, link: Link, mtu: int) -> None:
        link.fit(mtu)
        if peer.mtu != mtu:
            peer.mtu = mtu
            self._handler.on_mtu(peer.settings.name, mtu)

    # Small things.

    def _known(self, name: str) -> Peer:
        peer = self._peers.get(name)
        if peer is None:
            raise LocalError(f"no peer {name!r} is configured")
        return peer

    def _board(self) -> Switchboard:
        if self._switchboard is None:
            raise LocalError("the channel is not started")
        return self._switchboard

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise LocalError("the channel is not started")
        return self._loop

    def _now(self) -> float:
        return self._running().time()
