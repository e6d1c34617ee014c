"""Changing the chain of a live session: who gets which message and which packet (DESIGN sections 6 to 9).

    who asks --rightRequest along the chain--> left anchor --requestLock, syn--> ... --> right anchor
             <--progress-----------------------

    ground.py      labels, messages along a chain, numbers, flows
    locks.py       the lock of a subsession, as a table
    anchors.py     both anchors, as tables
    left.py        what the left anchor does
    right.py       what the right anchor does
    inside.py      hosts of the old path and of the new one
    paths.py       which packet goes where while there are two paths
    switching.py   what both anchors do alike
    traces.py      who is on a chain
    bypass.py      past hosts that are dead
    this           who gets what

Every message names its subsession; one that comes from anyone but the neighbour on that subsession is dropped, unless
it comes past dead hosts from somebody who may.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Final

from dysco.protocol.bypass import Bypass
from dysco.protocol.chain import Chain, Facing
from dysco.protocol.changing import Anchor, LeftAnchor, Phase
from dysco.protocol.events import ChangeMoved
from dysco.protocol.flow import UNDERLAY, Flow
from dysco.protocol.ground import FIRST_DRAWN, Ground, Side, leftward, means, name_of, readdress
from dysco.protocol.ground import rightward as to_the_right
from dysco.protocol.inside import Hosts
from dysco.protocol.joints import Added, ours
from dysco.protocol.left import Left
from dysco.protocol.right import Right
from dysco.protocol.stamps import Stamps, raw_stamp
from dysco.protocol.switching import hold, patience
from dysco.protocol.traces import Traces
from dysco.protocol.transfers import ARRIVED, Transfers
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckCancel,
    AckLock,
    CancelLock,
    Change,
    CopyState,
    Hops,
    LockQuery,
    LockStatus,
    Message,
    NackLock,
    NackSyn,
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
from dysco.wire.packet import FIN, RST, SYN, Located, Packet, locate

_RIGHTWARD: Final = (RequestLock, CancelLock, RenewLock, Ack, LockStatus, CopyState)
_LEFTWARD: Final = (AckLock, NackLock, AckCancel, SynAck, NackSyn, AckAck, LockQuery)
_FLAGGED: Final = (RightRequest, Progress, OldDone, OldDoneAck, PutState, StateTransferred)
MESSAGES: Final = (*_RIGHTWARD, *_LEFTWARD, *_FLAGGED, Syn, Trace)
UNHEARD, CANCELLED, UNDECIDED, COMMITTED = 0, 1, 2, 3
PATIENCE_S: Final = 60.0  # ours: how long who asks goes on asking without any answer
_MOST_OUTCOMES: Final = 16_384


class Wish:
    """A change that was asked for here and whose left anchor may be elsewhere."""

    __slots__ = ("chain", "change", "heard_at", "phase", "rightward", "tries")

    def __init__(self, chain: Chain, change: Change, now: float, *, rightward: bool) -> None:
        self.chain = chain
        self.change = change
        self.rightward = rightward
        self.heard_at = now
        self.tries = 0
        self.phase = Phase.REQUESTED


class Changes:
    """All changes at this agent."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.transfers = Transfers(ground)
        self.left = Left(ground, self.transfers)
        self.right = Right(ground)
        self.hosts = Hosts(ground)
        self.traces = Traces(ground)
        self.bypass = Bypass(ground, self.left, self.right)
        self._wishes: dict[int, Wish] = {}
        # To the right, to the left, or to an agent past dead hosts.
        self._askers: dict[int, bool | str] = {}
        self._outcomes: OrderedDict[int, Progress] = OrderedDict()
        ground.report = self._report
        self.traces.passed_by = self.hosts.passed_by
        ground.life.established = self._established
        ground.life.before_close = self._closing
        ground.life.after_restore = self._restored

    # What is asked for here.

    def ask(self, chain: Chain, change: Change, now: float, *, rightward: bool) -> None:
        """Ask for a change; ChangeMoved events tell how it goes. rightward: where its left anchor is from here."""
        wish = Wish(chain, change, now, rightward=rightward)
        self._wishes[change.request] = wish
        right = chain.right
        if right is not None and means(chain, right, change.first):
            refusal = self.left.start(chain, change, now)
            if refusal is not None:
                self._heard(
                    Progress(chain.chain_id, 0, change.request, Phase.REFUSED, False, *refusal), now, chain
                )
        else:
            self._ask(wish, now)
        self.settle_local(now)

    def splice(self, left: Chain, right: Chain, request: int, added: Added, now: float) -> None:
        """Join two chains whose ends a proxy is on this host, and take it out; ChangeMoved events tell how it goes."""
        refusal = self.hosts.joints.make(left, right, request, added, now)
        if refusal is not None:
            me = self._ground.settings.name
            moved = ChangeMoved(
                left.chain_id, left.hop_index, left.session_in, request, Phase.REFUSED.words, me, refusal
            )
            self._ground.output.event(moved)
            return
        assert right.right is not None
        hops = Hops((Hop(right.right.tuple.dst),))
        first, last = name_of(left, left.left), name_of(right, right.right)
        self.ask(
            left, Change(request, first, last, hops, origin=self._ground.settings.name), now, rightward=False
        )

    def _ask(self, wish: Wish, now: float) -> None:
        chain, change = wish.chain, wish.change
        if change.request not in self._wishes:
            return
        if now - wish.heard_at > PATIENCE_S:
            me = self._ground.settings.name
            silent = Progress(chain.chain_id, 0, change.request, Phase.ABORTED, False, me, "no answer")
            self._heard(silent, now, chain)
            return
        message = RightRequest(chain.chain_id, 0, change, wish.rightward)
        facing = along(chain, rightward=wish.rightward)
        self._ground.send(facing, message)
        if change.force and (wish.tries or facing is None or not self._ground.is_up(facing.peer)):
            self.bypass.ask(chain, change)
        wait = patience(wish.tries)
        wish.tries += 1
        self._ground.alarm(now + wait, lambda at: self._ask_again(wish, at))

    def _ask_again(self, wish: Wish, now: float) -> None:
        self._ask(wish, now)
        self.settle_local(now)

    def _heard(self, message: Progress, now: float, chain: Chain) -> None:
        wish = self._wishes.get(message.request)
        if wish is None:
            return
        wish.heard_at = now
        phase = Phase(message.phase)
        if (phase.is_final or phase > wish.phase) and not (
            chain.changing and _is_left(chain, message.request)
        ):
            moved = ChangeMoved(
                chain.chain_id, chain.hop_index, chain.session_in, message.request, phase.words, message.by,
                message.reason,
            )  # fmt: skip
            self._ground.output.event(moved)
        wish.phase = max(wish.phase, phase)
        if phase.is_final:
            del self._wishes[message.request]
            if phase is not Phase.DONE:
                self.hosts.joints.part(wish.chain, message.request)

    def _report(self, chain: Chain, anchor: Anchor, phase: Phase, by: str, reason: str, now: float) -> None:
        """A phase of a change at one of its anchors: the left one tells who asked for it."""
        request = anchor.change.request
        if not isinstance(anchor, LeftAnchor):
            return
        message = Progress(chain.chain_id, 0, request, phase, False, by, reason)
        if phase is Phase.DONE:
            self.traces.tell_later(chain, now)
        if phase.is_final:
            self._outcomes[request] = message
            if len(self._outcomes) > _MOST_OUTCOMES:
                self._outcomes.popitem(last=False)
        wish = self._wishes.get(request)
        if wish is not None:
            wish.heard_at = now
            wish.phase = max(wish.phase, phase)
            if phase.is_final:
                del self._wishes[request]
        self._tell(chain, message)

    def _tell(self, chain: Chain, message: Progress) -> None:
        asker = self._askers.get(message.request)
        if asker is None:
            return
        self._answer(chain, message, asker)
        if Phase(message.phase).is_final:
            del self._askers[message.request]

    def _answer(self, chain: Chain, message: Progress, asker: bool | str) -> None:
        if isinstance(asker, str):
            self.bypass.answer(chain, message, asker)
        else:
            self._ground.send(along(chain, rightward=asker), replace(message, rightward=asker))

    def leftovers(self) -> list[str]:
        """Names of what is not empty although it should be once all is at rest."""
        found = {
            "wishes": self._wishes,
            "askers": self._askers,
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
        at = _located(packet)
        flow = self._ground.table.get(UNDERLAY, at.five_tuple)
        if flow is not None and isinstance(flow.owner, Chain) and self.takes(flow.owner, flow, at):
            self.packet(flow.owner, flow, packet, at, now)

    def _receive(self, peer: str, message: Message, now: float) -> None:
        ground = self._ground
        if isinstance(message, Syn):
            self._syn(peer, message, now)
            return
        if isinstance(message, Trace):
            self.traces.receive(peer, message, now)
            return
        assert isinstance(message, MESSAGES)
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
            self._right_request(chain, message, now, peer)
            return True
        if isinstance(message, Progress):
            wish = self._wishes.get(message.request)
            if wish is None or wish.chain is not chain or not wish.change.force:
                return False
            if peer != self.bypass.left_anchor(chain, wish.change):
                return False
            self._heard(message, now, chain)
            return True
        return self.bypass.receive(chain, facing, side, peer, message, now)

    def _dispatch(self, chain: Chain, facing: Facing, message: Message, now: float) -> None:
        roles = chain.changing
        left = None if roles is None else roles.left
        right = None if roles is None else roles.right
        match message:
            case RightRequest():
                self._right_request(chain, message, now)
            case Progress():
                if message.request in self._wishes:
                    self._heard(message, now, chain)
                else:
                    self._ground.send(along(chain, rightward=message.rightward), message)
            case RequestLock():
                self._request_lock(chain, message, now)
            case AckLock() if left is not None and left.change.request == message.request:
                self.left.ack_lock(chain, left, message, now)
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
                self.hosts.nack_syn(chain, message, now)
            case Ack() if right is not None and facing is right.new:
                self.right.ack(chain, right, message, now)
            case Ack() if message.request not in self._ground.completed:
                self.hosts.ack(chain, message)
            case Ack():
                cutoff = self._ground.completed[message.request]
                self._ground.send(facing, AckAck(chain.chain_id, 0, message.request, cutoff, message.cutoff))
            case AckAck() if left is not None and facing is left.new:
                self.left.ack_ack(chain, left, message, now)
            case AckAck():
                self.hosts.ack_ack(chain, message)
            case OldDone():
                self._old_done(chain, facing, message, now)
            case OldDoneAck():
                self._old_done_ack(chain, message)
            case CopyState() if roles is not None and roles.inside is not None:
                self.transfers.wanted(chain, message, now)
            case PutState():
                self._put_state(chain, message, now)
            case StateTransferred():
                self._state_transferred(chain, message, now)
            case LockQuery():
                self._lock_query(chain, facing, message)
            case LockStatus():
                self._lock_status(chain, message, now)
            case _:
                pass

    def _syn(self, peer: str, message: Syn, now: float) -> None:
        if not message.hops:
            self._ground.counters["message_implausible"] += 1
            return
        if len(message.hops) > 1:
            refusal = self.hosts.syn(peer, message, now)
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
            if peer:
                self._ground.output.message(peer, nack)
            else:
                self._ground.local.append(nack)

    def _request_lock(self, chain: Chain, message: RequestLock, now: float) -> None:
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

    def _right_request(
        self, chain: Chain, message: RightRequest, now: float, direct: str | None = None
    ) -> None:
        change, right = message.change, chain.right
        back: bool | str = not message.rightward if direct is None else direct
        done = self._outcomes.get(change.request)
        if done is not None:
            self._answer(chain, done, back)
            return
        running = None if chain.changing is None else chain.changing.left
        if running is not None and running.change.request == change.request:
            self._askers[change.request] = back
            self._tell(chain, Progress(chain.chain_id, 0, change.request, running.phase))
            return
        if right is not None and means(chain, right, change.first):
            self._askers[change.request] = back
            refusal = self.left.start(chain, change, now)
        else:
            if self._ground.send(along(chain, rightward=message.rightward), message):
                return
            self._askers[change.request] = back
            refusal = self._ground.settings.name, "not found"
        if refusal is not None:
            refused = Progress(chain.chain_id, 0, change.request, Phase.REFUSED, False, *refusal)
            self._outcomes[change.request] = refused
            self._tell(chain, refused)

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
        roles = chain.changing
        anchor: Anchor | None = None
        if roles is not None:
            anchor = roles.right if message.rightward else roles.left
        if anchor is not None and anchor.change.request == message.request:
            answer = OldDoneAck(chain.chain_id, 0, message.request, not message.rightward, message.last)
            self._ground.send(facing, answer)
            if message.rightward:
                assert roles is not None
                assert roles.right is not None
                self.right.peer_done(chain, roles.right, now)
            else:
                assert roles is not None
                assert roles.left is not None
                self.left.peer_done(chain, roles.left, now)
            return
        if roles is not None and roles.inside is not None and roles.inside.request == message.request:
            self._ground.send(along(chain, rightward=message.rightward), message)
            inside = roles.inside
            self.hosts.old_done(chain, message, now)
            if not inside.new and inside.left_done and inside.right_done:
                # Who asked for its own removal hears it here: what the left anchor says now goes along the new path.
                self._heard(Progress(chain.chain_id, 0, message.request, Phase.DONE), now, chain)
            return
        if message.request in self._ground.completed:
            answer = OldDoneAck(chain.chain_id, 0, message.request, not message.rightward, message.last)
            self._ground.send(facing, answer)
            if message.waiting:
                self._ground.send(facing, replace(message, rightward=not message.rightward, waiting=False))
        elif message.request in self._ground.passing or not message.last:
            self._ground.send(along(chain, rightward=message.rightward), message)
        elif roles is None:
            # This agent has restarted since the lock: it is inside, and knows that from here on.
            self.hosts.remember(chain, message, now)
            self._old_done(chain, facing, message, now)

    def _old_done_ack(self, chain: Chain, message: OldDoneAck) -> None:
        roles = chain.changing
        anchor: Anchor | None = None
        if roles is not None:
            anchor = roles.right if message.rightward else roles.left
        told = self._ground.telling.get((message.request, not message.rightward))
        if told is not None:
            told.know(message)
        elif anchor is not None and anchor.change.request == message.request:
            anchor.know(message)
        elif message.request in self._ground.passing or (roles is not None and roles.inside is not None):
            self._ground.send(along(chain, rightward=message.rightward), message)

    def _lock_query(self, chain: Chain, facing: Facing, message: LockQuery) -> None:
        left = None if chain.changing is None else chain.changing.left
        status, cutoff, last = UNHEARD, 0, 0
        if left is not None and left.change.request == message.request:
            last = left.change.last
            status = UNDECIDED
            if left.two is not None:
                status, cutoff = COMMITTED, left.two.cutoff
        elif message.request in self._outcomes:
            status = CANCELLED
        elif self._ground.send(leftward(chain), message):
            return  # a host inside, which may have forgotten it in a restart; the first host of all is sure
        answer = LockStatus(chain.chain_id, 0, message.request, status, last, cutoff)
        self._ground.send(facing, answer)

    def _lock_status(self, chain: Chain, message: LockStatus, now: float) -> None:
        roles = chain.changing
        right = None if roles is None else roles.right
        if right is not None and right.change.request == message.request:
            if message.status in (CANCELLED, UNHEARD):
                self.right.cancel(chain, right, now)
            elif message.status == COMMITTED:
                self.right.ack(chain, right, Ack(chain.chain_id, 0, message.request, message.cutoff), now)
        else:
            self._ground.send(to_the_right(chain), message)

    def _unknown(self, peer: str, message: Message, side: Side) -> None:
        """Nothing of the kind is here; what would be repeated for ever is answered."""
        if not isinstance(message, OldDone | OldDoneAck | AckCancel):
            self._ground.counters["message_implausible"] += 1
        answer: Message | None = None
        me = self._ground.settings.name
        if isinstance(message, RequestLock) and message.change.request in self._ground.completed:
            pass  # a repetition that comes late: its change is done
        elif isinstance(message, RequestLock):
            answer = NackLock(message.chain_id, message.hop, message.change.request, me, "not found")
        elif isinstance(message, CancelLock):
            answer = AckCancel(message.chain_id, message.hop, message.request)
        elif isinstance(message, OldDone):
            rightward = not message.rightward
            answer = OldDoneAck(message.chain_id, message.hop, message.request, rightward, message.last)
        elif isinstance(message, OldDoneAck):
            told = self._ground.telling.get((message.request, not message.rightward))
            if told is not None and told.old.peer == peer:
                told.know(message)
        elif isinstance(message, LockQuery):
            answer = LockStatus(message.chain_id, message.hop, message.request, UNHEARD, 0)
        if answer is not None and peer:
            self._ground.output.message(peer, answer)

    # Packets.

    def takes(self, chain: Chain, flow: Flow, at: Located) -> bool:
        """Whether a packet that the core was given is an affair of a change."""
        roles = chain.changing
        if roles is None:
            return False
        inside = roles.inside
        if inside is not None and not inside.new:
            return inside.committed
        if at.flags & SYN:
            return inside is not None or self._is_new(chain, flow)
        # A host that has joined can be an anchor of the next change before both halves of its own are empty.
        return roles.left is not None or roles.right is not None

    @staticmethod
    def _is_new(chain: Chain, flow: Flow) -> bool:
        """Whether a flow is read from the new path of an anchor."""
        roles = chain.changing
        assert roles is not None
        left = None if roles.left is None else roles.left.new
        right = None if roles.right is None else roles.right.new
        return (left is not None and flow.match == left.tuple.reversed()) or (
            right is not None and flow.match == right.tuple
        )

    def drops(self, at: Located) -> bool:
        """Whether a SYN that belongs to no change any more must not go on: it would look like a new session."""
        if not self._ground.is_late_rehearsal(at):
            return False
        self._ground.counters["rehearsal_late"] += 1
        return True

    def packet(self, chain: Chain, flow: Flow, packet: Packet, at: Located, now: float) -> None:
        """Take a packet of a chain that is being changed; what is not SYN moves along by the rules of its paths."""
        roles = chain.changing
        assert roles is not None
        inside = roles.inside
        if inside is not None and not inside.new and inside.committed:
            self.hosts.closing(chain, at, now)
            return
        if inside is not None and at.flags & SYN and not self._is_new(chain, flow):
            self.hosts.rehearse(chain, flow, packet, at, now)
            return
        where = (flow.port, flow.match)
        is_new = False
        if roles.left is not None and roles.left.new is not None:
            new = roles.left.new
            is_new = where == (new.read, new.tuple.reversed())
            if is_new and self.left.handshake(chain, roles.left, at, now):
                return
        if not is_new and roles.right is not None and roles.right.new is not None:
            new = roles.right.new
            is_new = where == (new.read, new.tuple)
            if is_new and self.right.handshake(chain, roles.right, at, now):
                return
        if at.flags & RST:
            flow.packets += 1
            flow.bytes += len(packet.data)
        elif at.payload_len or at.flags & FIN or not self._is_between(chain, flow):
            flow.count(at, len(packet.data))
        if is_new:
            if flow.match == new.tuple:
                self._from_left(chain, packet, now, new=True)
            else:
                self._from_right(chain, packet, now, new=True)
            self._see_end(chain, flow, at, now)
            return
        if where == (chain.left.read, chain.left.tuple):
            self._from_left(chain, packet, now, new=False)
        elif chain.right is not None and where == (chain.right.read, chain.right.tuple.reversed()):
            self._from_right(chain, packet, now, new=False)
        elif chain.box is not None and flow.match == chain.session_out and flow.port == chain.box.right_read:
            self._to_right(chain, packet, now)
        else:
            self._to_left(chain, packet, now)
        self._see_end(chain, flow, at, now)

    def _see_end(self, chain: Chain, flow: Flow, at: Located, now: float) -> None:
        if at.flags & (FIN | RST):
            forward = chain.is_forward(flow) or _is_new_left(chain, flow)
            self._ground.life.closing(chain, forward=forward, reset=bool(at.flags & RST), now=now)

    @staticmethod
    def _is_between(chain: Chain, flow: Flow) -> bool:
        """Whether a flow is read from a side with two paths, where bare acks may be reminders of the anchors."""
        roles = chain.changing
        assert roles is not None
        if flow.match == chain.left.tuple:
            return roles.right is not None and roles.right.two is not None
        return (
            chain.right is not None and flow.match == chain.right.tuple.reversed() and roles.left is not None
        )

    def _from_left(self, chain: Chain, packet: Packet, now: float, *, new: bool) -> None:
        """A packet has come on one of the left paths: bring it inside."""
        right = None if chain.changing is None else chain.changing.right
        facing = right.new if right is not None and new else chain.left
        assert facing is not None
        stamps = None if right is None else right.stamps
        if stamps is not None and right is not None and new:
            self._measure(right, stamps, packet)
        readdress(packet, chain.session_in, facing.translations()[0])
        at = _located(packet)
        if stamps is not None:
            _take(stamps, packet, at, facing, new=new)
        if right is not None and right.two is not None:
            if not new and right.joined:
                kept = ours(right.two, packet, at)
                if kept is None:
                    return
                packet, at = kept, _located(kept)
            accept = right.two.receive_new if new else right.two.receive_old
            if not accept(packet, at):
                self.right.look(chain, right, now)
                return
        if chain.box is not None:
            self._ground.output.packet(chain.box.left_write, packet)
        else:
            self._to_right(chain, packet, now)
        if right is not None and right.two is not None:
            self.right.look(chain, right, now)

    def _from_right(self, chain: Chain, packet: Packet, now: float, *, new: bool) -> None:
        """A packet has come on one of the right paths: bring it inside."""
        left = None if chain.changing is None else chain.changing.left
        facing = left.new if left is not None and new else chain.right
        assert facing is not None
        stamps = None if left is None else left.stamps
        if stamps is not None and left is not None and new:
            self._measure(left, stamps, packet)
        readdress(packet, chain.session_out.reversed(), facing.translations()[0])
        at = _located(packet)
        if stamps is not None:
            _take(stamps, packet, at, facing, new=new)
        if left is not None and left.two is not None:
            if not new and left.joined:
                kept = ours(left.two, packet, at)
                if kept is None:
                    return
                packet, at = kept, _located(kept)
            accept = left.two.receive_new if new else left.two.receive_old
            if not accept(packet, at):
                self.left.look(chain, left, now)
                return
        if chain.box is not None:
            self._ground.output.packet(chain.box.right_write, packet)
        else:
            self._to_left(chain, packet, now)
        if left is not None and left.two is not None:
            self.left.look(chain, left, now)

    def _to_right(self, chain: Chain, packet: Packet, now: float) -> None:
        """A packet from inside goes to the right, on one path or on two."""
        left = None if chain.changing is None else chain.changing.left
        right = chain.right
        assert right is not None
        stamps = None if left is None else left.stamps
        if stamps is not None:
            stamps.from_inside(packet, _located(packet))
        if left is None or left.two is None:
            self._ground.to_right(right, packet)
            if left is not None and stamps is not None:
                self.left.seen_inside(chain, left, now)
            return
        old, new = left.two.send(packet, _located(packet))
        assert left.new is not None
        for one in old:
            if stamps is not None:
                stamps.to_old(one, _located(one))
            self._ground.to_right(left.old, one)
        for one in hold(self._ground, left, new):
            if stamps is not None:
                stamps.to_new(one, _located(one))
            self._ground.to_right(left.new, one)
        self.left.look(chain, left, now)

    def _to_left(self, chain: Chain, packet: Packet, now: float) -> None:
        """A packet from inside goes to the left, on one path or on two."""
        right = None if chain.changing is None else chain.changing.right
        stamps = None if right is None else right.stamps
        if stamps is not None:
            stamps.from_inside(packet, _located(packet))
        if right is None or right.two is None:
            self._ground.to_left(chain.left, packet)
            return
        old, new = right.two.send(packet, _located(packet))
        for one in old:
            if stamps is not None:
                stamps.to_old(one, _located(one))
            self.right.to_path(right, one, old=True)
        for one in hold(self._ground, right, new):
            if stamps is not None:
                stamps.to_new(one, _located(one))
            self.right.to_path(right, one, old=False)
        self.right.look(chain, right, now)

    def _measure(self, anchor: Anchor, stamps: Stamps, packet: Packet) -> None:
        """The first timestamp of the new path, where the messages have not told one."""
        if stamps.peer is None:
            stamps.peer = raw_stamp(packet, _located(packet))
        if anchor.new is not None:
            stamps.settle(anchor.new)

    # Beginnings and endings.

    def _established(self, chain: Chain, now: float) -> None:
        if chain.left.peer is None:
            self.traces.tell_later(chain, now)

    def _restored(self, chain: Chain, now: float) -> None:
        """A session has come from the journal, perhaps with two paths."""
        ground, roles = self._ground, chain.changing
        ground.label("left", chain, chain.left)
        if chain.right is not None:
            ground.label("right", chain, chain.right)
        if chain.left.peer is not None and chain.right is not None and chain.right.peer is not None:
            self.traces.tell_later(chain, now)
        if roles is None:
            return
        ground.install(chain)
        if roles.inside is not None:
            self.hosts.resume(chain, roles.inside, now)
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
        for wish in [one for one in self._wishes.values() if one.chain is chain]:
            me = self._ground.settings.name
            over = Progress(
                chain.chain_id, 0, wish.change.request, Phase.ABORTED, False, me, "the session has ended"
            )
            self._heard(over, now, chain)
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


def _is_left(chain: Chain, request: int) -> bool:
    roles = chain.changing
    return roles is not None and roles.left is not None and roles.left.change.request == request


def _is_new_left(chain: Chain, flow: Flow) -> bool:
    roles = chain.changing
    new = None if roles is None or roles.right is None else roles.right.new
    return new is not None and flow.match == new.tuple


def along(chain: Chain, *, rightward: bool) -> Facing | None:
    """The facing along which a message goes on."""
    return to_the_right(chain) if rightward else leftward(chain)


def _take(stamps: Stamps, packet: Packet, at: Located, facing: Facing, *, new: bool) -> None:
    if new:
        stamps.from_new(packet, at, facing)
    else:
        stamps.from_old(packet, at)


def _located(packet: Packet) -> Located:
    at = locate(packet)
    assert at is not None
    return at
