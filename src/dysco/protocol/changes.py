"""Changing the chain of a live session: who gets which message (DESIGN sections 6 to 9).

    who asks --rightRequest along the chain--> left anchor --requestLock, syn--> ... --> right anchor
             <--progress-----------------------

    ground.py      labels, messages along a chain, numbers, flows
    locks.py       the lock of a subsession, as a table
    anchors.py     both anchors, as tables
    left.py        what the left anchor does
    right.py       what the right anchor does
    inside.py      hosts of the old path and of the new one
    wishes.py      who has asked for what
    packets.py     the packets of a chain that is being changed
    paths.py       which packet goes where while there are two paths
    switching.py   what both anchors do alike
    rescue.py      what they do when a proxy is dead
    traces.py      who is on a chain
    bypass.py      past hosts that are dead
    this           who gets which message

Every message names its subsession; one that comes from anyone but the neighbour on that subsession is dropped, unless
it comes past dead hosts from somebody who may.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from dysco.protocol.bypass import Bypass
from dysco.protocol.chain import BACKWARD_FIN, FORWARD_FIN, Chain, Facing
from dysco.protocol.changing import LeftAnchor, Phase, RightAnchor
from dysco.protocol.flow import UNDERLAY
from dysco.protocol.ground import FIRST_DRAWN, Ground, Side, along, leftward, means, rightward
from dysco.protocol.inside import Hosts
from dysco.protocol.joining import Joining
from dysco.protocol.joints import Added
from dysco.protocol.left import TAKEN_BACK, Left
from dysco.protocol.packets import Packets
from dysco.protocol.rescue import SAVED, Rescue
from dysco.protocol.right import Right
from dysco.protocol.states import State
from dysco.protocol.traces import Traces
from dysco.protocol.transfers import ARRIVED, Transfers
from dysco.protocol.wishes import NOT_FOUND, Wishes
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckCancel,
    AckLock,
    CancelLock,
    Change,
    CopyState,
    LockQuery,
    LockStatus,
    Message,
    NackLock,
    NackSyn,
    OldDead,
    OldDone,
    OldDoneAck,
    Progress,
    PutState,
    RenewLock,
    RequestLock,
    RightRequest,
    StateTransferred,
    Syn,
    SynAck,
    Trace,
)
from dysco.wire.packet import Packet, locate

_RIGHTWARD: Final = (RequestLock, CancelLock, RenewLock, Ack, LockStatus, CopyState)
_LEFTWARD: Final = (AckLock, NackLock, AckCancel, SynAck, NackSyn, AckAck, LockQuery)
_FLAGGED: Final = (RightRequest, Progress, OldDone, OldDoneAck, OldDead, PutState, StateTransferred)
MESSAGES: Final = (*_RIGHTWARD, *_LEFTWARD, *_FLAGGED, Syn, Trace)
UNHEARD, CANCELLED, UNDECIDED, COMMITTED = range(4)


class Changes:
    """All changes at this agent."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.transfers = Transfers(ground)
        self.left = Left(ground, self.transfers)
        self.right = Right(ground)
        self.hosts = Hosts(ground)
        self.joining = Joining(ground)
        self.traces = Traces(ground)
        self.bypass = Bypass(ground, self.left, self.right)
        self.wishes = Wishes(ground, self.left, self.hosts.joints, self.traces, self.bypass)
        self.rescue = Rescue(ground, self.left, self.right)
        self.packets = Packets(ground, self.left, self.right, self.hosts, self.joining, self.rescue)
        self.traces.passed_by = self.hosts.passed_by
        ground.life.established = self._established
        ground.life.before_close = self._closing
        ground.life.after_restore = self._restored
        ground.life.chains.held = self._held

    def _held(self) -> set[bytes]:
        """Keys of chains that are kept for more than this moment although nothing is being changed here."""
        again = (chain for chain, _ in self._ground.again)
        return {chain.key for chain in (*self.wishes.chains(), *self.traces.chains(), *again)} | {
            chain.key for chain in self._ground.requested.values()
        }

    def ask(self, chain: Chain, change: Change, now: float, *, rightward: bool) -> None:
        """Ask for a change; ChangeMoved events tell how it goes. rightward: where its left anchor is from here."""
        self.wishes.ask(chain, change, now, rightward=rightward)
        self.settle_local(now)

    def splice(self, left: Chain, right: Chain, request: int, added: Added, now: float) -> None:
        """Join two chains whose ends a proxy is on this host, and take it out; ChangeMoved events tell how it goes."""
        self.wishes.splice(left, right, request, added, now)
        self.settle_local(now)

    def leftovers(self) -> list[str]:
        """Names of what is not empty although it should be once all is at rest."""
        found = {
            **self.wishes.leftovers(),
            **self._ground.leftovers(),
            **self.transfers.leftovers(),
            **self.traces.leftovers(),
        }
        return [name for name, kept in found.items() if kept]

    # Messages.

    def receive(self, peer: str, message: Message, now: float) -> None:
        """Take a message of a neighbour."""
        self._receive(peer, message, now)
        self.settle_local(now)

    def handle_deadline(self, now: float) -> None:
        """Do what time asks for."""
        self._ground.handle_deadline(now)
        self.settle_local(now)

    def settle_local(self, now: float) -> None:
        """Deliver what this agent sends to itself, and requests that were held."""
        ground = self._ground
        while ground.local or ground.again or ground.replay:
            if ground.again:
                chain, held = ground.again.popleft()
                self._request_lock(chain, held, now)
            if ground.local:
                self._receive("", ground.local.popleft(), now)
            if ground.replay:
                self.overtaken(ground.replay.popleft(), now)

    def overtaken(self, packet: Packet, now: float) -> None:
        """Take the SYN of a path handshake that was held."""
        at = locate(packet)
        assert at is not None
        flow = self._ground.table.get(UNDERLAY, at.five_tuple)
        if flow is not None:  # else the message was for a change that has another new path here
            assert isinstance(flow.owner, Chain)
            self.packets.receive(flow.owner, flow, packet, at, now)

    def _receive(self, peer: str, message: Message, now: float) -> None:
        ground = self._ground
        if isinstance(message, Syn):
            self._syn(peer, message, now)
            return
        if isinstance(message, Trace):
            self.traces.receive(peer, message, now)
            return
        assert isinstance(message, MESSAGES)
        if isinstance(message, AckCancel) and ground.cancelling.get((message.request, message.hop)) == peer:
            del ground.cancelling[message.request, message.hop]
        if isinstance(message, CancelLock):
            ground.cancel(message.request, message.last)
        if isinstance(message, _FLAGGED):
            rightward = message.rightward
        else:
            rightward = isinstance(message, _RIGHTWARD)
        side: Side = "left" if rightward else "right"
        chain = ground.find(side, message.chain_id, message.hop)
        facing = None if chain is None else ground.facing(chain, side, message.hop)
        if chain is None or facing is None:
            self._unknown(peer, message, side)
            return
        if facing.peer != peer:
            if not self._past(chain, facing, side, peer, message, now):
                self._unknown(peer, message, side)
            return
        self._dispatch(chain, facing, message, now)

    def _past(
        self, chain: Chain, facing: Facing, side: Side, peer: str, message: Message, now: float
    ) -> bool:
        """Take a message that does not come along its subsession; False if it is not to be believed."""
        peer = peer or self._ground.settings.name
        if isinstance(message, RightRequest):
            if not self.bypass.asks(chain, peer, message):
                return False
            self.wishes.request(chain, message, now, peer)
            return True
        if isinstance(message, Progress):
            return self.wishes.past(peer, message, now)
        return self.bypass.receive(chain, facing, side, peer, message, now)

    def _dispatch(self, chain: Chain, facing: Facing, message: Message, now: float) -> None:
        roles = chain.changing
        left = None if roles is None else roles.left
        right = None if roles is None else roles.right
        match message:
            case RightRequest():
                self.wishes.request(chain, message, now)
            case Progress():
                if self.wishes.is_open(message.request):
                    self.wishes.hear(message, now, chain)
                else:
                    self._ground.send(along(chain, to_right=message.rightward), message)
            case RequestLock():
                self._request_lock(chain, message, now)
            case AckLock() if left is not None and left.change.request == message.request:
                self.left.ack_lock(chain, left, message, now)
            case AckLock() if message.request in self._ground.cancelled:
                last = self._ground.cancelled[message.request]
                self._ground.send(facing, CancelLock(chain.chain_id, 0, message.request, last))
            case AckLock():
                self.hosts.ack_lock(chain, message, now)
            case NackLock() if left is not None and left.change.request == message.request:
                self.left.nack_lock(chain, left, message, now)
            case NackLock():
                self.hosts.nack_lock(chain, message, now)
            case CancelLock() if means(chain, facing, message.last) or (
                right is not None and facing is right.new
            ):
                if right is not None and right.change.request == message.request:
                    self.right.cancel(chain, right, now)
                self._ground.send(facing, AckCancel(chain.chain_id, 0, message.request))
            case CancelLock():
                self.hosts.cancel(chain, message, now)
            case AckCancel() if left is not None and left.change.request == message.request:
                if facing is left.old:
                    self.left.ack_cancel(chain, left, now)
            case AckCancel():
                self._ground.send(leftward(chain), message)
            case RenewLock() if not means(chain, facing, message.last):
                self.hosts.renew(chain, message, now)
            case SynAck() if left is not None and facing is left.new:
                self.left.syn_ack(chain, left, message, now)
            case SynAck():
                self._ground.send(chain.left, message)
            case NackSyn() if left is not None and facing is left.new:
                self.left.nack_syn(chain, left, message, now)
            case NackSyn():
                self.joining.nack_syn(chain, message, now)
            case Ack() if right is not None and facing is right.new:
                self.right.ack(chain, right, message, now)
            case Ack() if message.request not in self._ground.completed:
                self.joining.ack(chain, message)
            case Ack():
                cutoff = self._ground.completed[message.request]
                self._ground.send(facing, AckAck(chain.chain_id, 0, message.request, cutoff, message.cutoff))
            case AckAck() if left is not None and facing is left.new:
                self.left.ack_ack(chain, left, message, now)
            case AckAck():
                self.joining.ack_ack(chain, message)
            case OldDone():
                self._old_done(chain, facing, message, now)
            case OldDoneAck():
                self._old_done_ack(chain, message)
            case OldDead():
                self._old_dead(chain, facing, message, now)
            case CopyState() if roles is not None and roles.inside is not None:
                self.transfers.wanted(chain, message, now)
            case PutState():
                self._put_state(chain, message, now)
            case StateTransferred():
                self._state_transferred(chain, message, now)
            case LockQuery():
                self._lock_query(chain, facing, message)
            case LockStatus():
                self._lock_status(chain, facing, message, now)
            case _:
                pass

    def _syn(self, peer: str, message: Syn, now: float) -> None:
        if message.request in self._ground.cancelled:
            return
        if not message.hops:
            self._ground.counters["message_implausible"] += 1
            return
        if len(message.hops) > 1:
            refusal = self.joining.syn(peer, message, now)
        else:
            chain = self._ground.find("left", message.chain_id, message.last)
            if chain is None:
                # A chain that is joined to that one further left; its lock says so, and the syn comes again after it.
                chain = self._ground.requested.get(message.request)
                if chain is None and message.last >= FIRST_DRAWN:
                    return
            refusal = None if chain is not None else "not found"
            if chain is not None:
                if not self._ground.allowed(chain, peer, message.anchor):
                    refusal = f"{message.anchor} may not change this session"
                else:
                    self.right.syn(chain, peer, message, now)
        if refusal is not None:
            nack = NackSyn(
                message.chain_id, message.hop, message.request, self._ground.settings.name, refusal
            )
            self._ground.tell(peer, nack)

    def _request_lock(self, chain: Chain, message: RequestLock, now: float) -> None:
        if message.change.request in self._ground.cancelled:
            return
        if not self._ground.allowed(chain, chain.left.peer or "", message.anchor, message.change.origin):
            refusal: str | None = f"{message.anchor} may not change this session"
        elif means(chain, chain.left, message.change.last):
            refusal = self.right.request(chain, message, now)
        else:
            refusal = self.hosts.request(chain, message, now)
        if refusal is not None:
            self._ground.counters["change_nacked"] += 1
            me = self._ground.settings.name
            nack = NackLock(chain.chain_id, 0, message.change.request, me, refusal)
            self._ground.send(leftward(chain), nack)

    def _put_state(self, chain: Chain, message: PutState, now: float) -> None:
        roles = chain.changing
        left = None if roles is None else roles.left
        if left is not None and left.change.request == message.request and not message.rightward:
            self._ground.send(left.new, replace(message, rightward=True))
        elif message.request in self._ground.passing:
            self.transfers.put(chain, message, now)
        elif roles is not None and roles.inside is not None and not message.rightward:
            self._ground.send(chain.left, message)

    def _state_transferred(self, chain: Chain, message: StateTransferred, now: float) -> None:
        roles = chain.changing
        left = None if roles is None else roles.left
        right = None if roles is None else roles.right
        inside = None if roles is None else roles.inside
        if not message.rightward:
            if left is not None and left.change.request == message.request:
                self._ground.send(left.old, replace(message, rightward=True))
                if message.status != ARRIVED:
                    self.left.state_moved(chain, left, message, now)
            elif message.request in self._ground.passing:
                self._ground.send(chain.left, message)
        elif right is not None and right.change.request == message.request:
            if message.status != ARRIVED:
                self.right.let_go(chain, right, now)
        elif message.request in self._ground.passing:
            self._ground.send(chain.right, message)
        elif inside is not None and inside.request == message.request:
            self.transfers.confirmed(chain, message, now)
            if message.status != ARRIVED and inside.left_done and inside.right_done:
                self.hosts.leave(chain, inside, now)

    def _old_done(self, chain: Chain, facing: Facing, message: OldDone, now: float) -> None:
        anchor = self._ground.anchor(chain, "left" if message.rightward else "right")
        if anchor is not None and anchor.change.request == message.request:
            answer = OldDoneAck(chain.chain_id, 0, message.request, not message.rightward, message.last)
            self._ground.send(facing, answer)
            if isinstance(anchor, RightAnchor):
                self.right.peer_done(chain, anchor, now)
            else:
                assert isinstance(anchor, LeftAnchor)
                self.left.peer_done(chain, anchor, now)
            return
        roles = chain.changing
        if roles is not None and roles.inside is not None and roles.inside.request == message.request:
            self._ground.send(along(chain, to_right=message.rightward), message)
            inside = roles.inside
            if inside.new:
                self.joining.learn(chain, message)
                self._learn_fins(chain, message, now)
                return
            self.hosts.old_done(chain, message, now)
            if inside.left_done and inside.right_done:
                # Who asked for its own removal hears it here: what the left anchor says now goes along the new path.
                self.wishes.hear(Progress(chain.chain_id, 0, message.request, Phase.DONE), now, chain)
            return
        if message.request in self._ground.completed:
            for said in self._answers(replace(message, chain_id=chain.chain_id)):
                self._ground.send(facing, said)
        elif message.request in self._ground.passing or not message.last:
            self._ground.send(along(chain, to_right=message.rightward), message)
            self._learn_fins(chain, message, now)
        elif roles is None:
            # This agent has restarted since the lock: it is inside, and knows that from here on.
            self.hosts.remember(chain, message, now)
            self._old_done(chain, facing, message, now)

    def _learn_fins(self, chain: Chain, message: OldDone, now: float) -> None:
        """What has ended by the old path ends for this host of the new one; its box, too, if nothing else comes."""
        unseen, life = message.fins & ~chain.fins, self._ground.life
        for fin in (FORWARD_FIN, BACKWARD_FIN):
            if unseen & fin:
                life.closing(chain, forward=fin == FORWARD_FIN, reset=False, now=now)
        if unseen:
            life.record(chain)
        if unseen and chain.state is State.TIME_WAIT:
            # An end that has not heard that its FIN has come says it again, and that passes here.
            packets = life.traffic(chain)[0]
            half = self._ground.settings.timers.time_wait / 2
            self._ground.alarm(now + half, lambda at: self.hosts.over(chain, packets, at))

    def _answers(self, message: OldDone) -> Iterator[Message]:
        """What an agent says that is no anchor any more: that it knows, and, if asked, that its half was empty."""
        rightward = not message.rightward
        yield OldDoneAck(message.chain_id, message.hop, message.request, rightward, message.last)
        if message.waiting and message.request in self._ground.completed:
            yield replace(message, rightward=rightward, waiting=False)

    def _old_done_ack(self, chain: Chain, message: OldDoneAck) -> None:
        anchor = self._ground.anchor(chain, "left" if message.rightward else "right")
        told = self._ground.telling.get((message.request, not message.rightward))
        if told is not None:
            told.know(message)
        elif anchor is not None and anchor.change.request == message.request:
            anchor.know(message)
        elif message.request in self._ground.passing or (
            chain.changing is not None and chain.changing.inside is not None
        ):
            self._ground.send(along(chain, to_right=message.rightward), message)

    def _old_dead(self, chain: Chain, facing: Facing, message: OldDead, now: float) -> None:
        anchor = self._ground.anchor(chain, "left" if message.rightward else "right")
        if anchor is not None and anchor.change.request == message.request:
            if facing is anchor.new:
                self.rescue.hear(chain, anchor, message, now)
            else:
                self.rescue.begin(chain, anchor, now)
        elif message.request in self._ground.completed:
            if message.verdict != SAVED:  # else both would answer each other for ever
                answer = replace(
                    message, chain_id=chain.chain_id, rightward=not message.rightward, verdict=SAVED
                )
                self._ground.send(facing, answer)
        else:
            self._ground.send(along(chain, to_right=message.rightward), message)

    def _lock_query(self, chain: Chain, facing: Facing, message: LockQuery) -> None:
        left = None if chain.changing is None else chain.changing.left
        status, cutoff, last = UNHEARD, 0, 0
        if left is not None and left.change.request == message.request:
            last = left.change.last
            status = UNDECIDED
            if left.two is not None:
                status, cutoff = (TAKEN_BACK if left.is_taken_back else COMMITTED), left.two.cutoff
        elif self.wishes.is_over(message.request):
            status = CANCELLED
        elif self._ground.send(leftward(chain), message):
            return  # a host inside, which may have forgotten it in a restart; the first host of all is sure
        answer = LockStatus(chain.chain_id, 0, message.request, status, last, cutoff)
        self._ground.send(facing, answer)

    def _lock_status(self, chain: Chain, facing: Facing, message: LockStatus, now: float) -> None:
        roles = chain.changing
        right = None if roles is None else roles.right
        if message.status == TAKEN_BACK and means(chain, facing, message.last):
            if right is not None and right.change.request == message.request:
                self.right.take_back(chain, right, now)
            if message.request in self._ground.cancelled:
                self._ground.send(facing, AckCancel(chain.chain_id, 0, message.request))
        elif right is not None and right.change.request == message.request:
            # Where chains are joined, a proxy's host that has forgotten it takes itself for the first one of all.
            sure = not right.joined or facing is not right.old
            if message.status in (CANCELLED, UNHEARD) and sure:
                self.right.cancel(chain, right, now)
            elif message.status == COMMITTED:
                switched = Ack(chain.chain_id, 0, message.request, message.cutoff)
                self.right.ack(chain, right, switched, now, whole=False)
        else:
            self._ground.send(rightward(chain), message)

    def _unknown(self, peer: str, message: Message, side: Side) -> None:
        """Nothing of the kind is here; what would be repeated for ever is answered."""
        if not isinstance(message, OldDone | OldDoneAck | AckCancel):
            self._ground.counters["message_implausible"] += 1
        answer: Message | None = None
        me = self._ground.settings.name
        if isinstance(message, RequestLock) and message.change.request in self._ground.completed:
            pass  # a repetition that comes late: its change is done
        elif isinstance(message, RequestLock):
            answer = NackLock(message.chain_id, message.hop, message.change.request, me, NOT_FOUND)
        elif isinstance(message, RightRequest):
            # One that is here, and comes from who may not ask so, is not answered.
            if self._ground.find(side, message.chain_id, message.hop) is None:
                answer = self.wishes.unknown(message)
        elif isinstance(message, CancelLock):
            answer = AckCancel(message.chain_id, message.hop, message.request)
        elif isinstance(message, AckLock | SynAck) and message.request in self._ground.cancelled:
            last = self._ground.cancelled[message.request]
            answer = CancelLock(message.chain_id, message.hop, message.request, last)
        elif isinstance(message, OldDone):
            # The session may have ended since, and the host of a proxy still wait for its end of the old path.
            for said in self._answers(message) if peer else ():
                self._ground.output.message(peer, said)
        elif isinstance(message, OldDoneAck):
            told = self._ground.telling.get((message.request, not message.rightward))
            if told is not None and told.old.peer == peer:
                told.know(message)
        elif isinstance(message, RenewLock) and message.request not in self._ground.completed:
            # After the switch the left anchor has no other way to hear that this host has lost all it knew. One that
            # is done needs the old path no more, and has lost nothing: what it says of it may be under way for long.
            answer = OldDead(message.chain_id, message.hop, message.request, False, 0, 0)
        elif isinstance(message, LockQuery):
            answer = LockStatus(message.chain_id, message.hop, message.request, UNHEARD, 0)
        if answer is not None and peer:
            self._ground.output.message(peer, answer)

    # Beginnings and endings.

    def _established(self, chain: Chain, now: float) -> None:
        self._ground.beginnings.begin(chain, self._ground.settings)
        if chain.left.peer is None:
            self.traces.tell_later(chain, now)

    def _restored(self, chain: Chain, now: float) -> None:
        """A session has come from the journal, perhaps with two paths."""
        ground, roles = self._ground, chain.changing
        ground.label("left", chain, chain.left)
        assert chain.right is not None
        ground.label("right", chain, chain.right)
        if chain.left.peer is not None and chain.right.peer is not None:
            self.traces.tell_later(chain, now)
        ground.recall(chain)
        if roles is None:
            return
        ground.install(chain)
        if roles.inside is not None:
            (self.joining if roles.inside.new else self.hosts).resume(chain, roles.inside, now)
        if roles.left is not None and roles.left.new is not None:
            ground.label("right", chain, roles.left.new)
            ground.life.claim(roles.left.new)
            self.left.resume(chain, roles.left, now)
        if roles.right is not None and roles.right.new is not None:
            ground.label("left", chain, roles.right.new)
            if roles.right.joined:
                ground.requested[roles.right.change.request] = chain
            self.right.resume(chain, roles.right, now)

    def _closing(self, chain: Chain, now: float) -> None:
        """A session ends here: its changes end with it."""
        self._ground.beginnings.forget(chain)
        self.wishes.closing(chain, now)
        self.hosts.end_joint(chain)
        roles = chain.changing
        if roles is not None:
            if roles.left is not None:
                self.left.gone(chain, roles.left, now)
            if roles.right is not None:
                self.right.gone(chain, roles.right, now)
            chain.changing = None
            self.transfers.closed(chain)
        self._ground.unlabel("left", chain, chain.left)
        if chain.right is not None:
            self._ground.unlabel("right", chain, chain.right)
