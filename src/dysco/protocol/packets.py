"""The packets of a chain that is being changed: which role takes them, and by which of its paths they go on.

    from the left, on one of its paths  --> inside (the box, or straight on) -->  to the right, on one path or on two

This room knows the roles and what each does with a packet, but no message; `paths` has the rules for two paths.
"""

from __future__ import annotations

from dysco.protocol.chain import Chain, Facing
from dysco.protocol.changing import Anchor
from dysco.protocol.flow import Flow
from dysco.protocol.ground import Ground, readdress
from dysco.protocol.inside import Hosts
from dysco.protocol.joining import Joining
from dysco.protocol.joints import is_cut_short, is_last, ours
from dysco.protocol.left import Left
from dysco.protocol.rescue import Rescue
from dysco.protocol.right import Right
from dysco.protocol.stamps import Stamps, raw_stamp
from dysco.protocol.switching import hold
from dysco.wire.numbers import MASK32
from dysco.wire.packet import FIN, RST, SYN, Located, Packet, locate
from dysco.wire.tuples import FiveTuple


class Packets:
    """Takes the packets that are an affair of a change."""

    def __init__(
        self, ground: Ground, left: Left, right: Right, hosts: Hosts, joining: Joining, rescue: Rescue
    ) -> None:
        self._ground = ground
        self._left = left
        self._right = right
        self._hosts = hosts
        self._joining = joining
        self._rescue = rescue

    def takes(self, chain: Chain, flow: Flow, at: Located) -> bool:
        """Whether a packet that the core was given is an affair of a change."""
        roles = chain.changing
        if roles is None:
            return False
        inside = roles.inside
        if inside is not None and not inside.new and inside.committed:
            return True
        if at.flags & SYN:
            return (inside is not None and inside.new) or self._is_new(chain, flow)
        # A host that has joined can be an anchor of the next change before both halves of its own are empty, and one of
        # an old path when the left anchor has begun again, and does not know any more what that lock was for.
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

    def drops(self, packet: Packet, at: Located) -> bool:
        """Whether a SYN that belongs to no change any more must not go on: it would look like a new session."""
        if not self._ground.is_late_rehearsal(packet, at):
            return False
        self._ground.counters["rehearsal_late"] += 1
        return True

    def receive(self, chain: Chain, flow: Flow, packet: Packet, at: Located, now: float) -> None:
        """Take a packet of a chain that is being changed; what is not SYN moves along by the rules of its paths."""
        roles = chain.changing
        assert roles is not None
        inside = roles.inside
        if inside is not None and not inside.new and inside.committed:
            self._hosts.closing(chain, at, now)
            return
        if inside is not None and at.flags & SYN and not self._is_new(chain, flow):
            self._joining.rehearse(chain, flow, packet, at, now)
            return
        where = (flow.port, flow.match)
        is_new = False
        if roles.left is not None and roles.left.new is not None:
            new = roles.left.new
            is_new = where == (new.read, new.tuple.reversed())
            if is_new and self._left.handshake(chain, roles.left, at, now):
                return
        if not is_new and roles.right is not None and roles.right.new is not None:
            new = roles.right.new
            is_new = where == (new.read, new.tuple)
            if is_new and self._right.handshake(chain, roles.right, at, now):
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
        is_foreign = at.flags & (FIN | RST) and self._is_the_proxys(chain, where, at)
        if where == (chain.left.read, chain.left.tuple):
            self._from_left(chain, packet, now, new=False)
        elif chain.right is not None and where == (chain.right.read, chain.right.tuple.reversed()):
            self._from_right(chain, packet, now, new=False)
        elif chain.box is not None and flow.match == chain.session_out and flow.port == chain.box.right_read:
            self._to_right(chain, packet, now)
        else:
            self._to_left(chain, packet, now)
        if not is_foreign:
            self._see_end(chain, flow, at, now)

    @staticmethod
    def _is_the_proxys(chain: Chain, where: tuple[int, FiveTuple], at: Located) -> bool:
        """Whether a FIN or a reset has come over an old path with a proxy on it and ends nothing by itself."""
        roles = chain.changing
        assert roles is not None
        for anchor in (roles.right, roles.left):
            if anchor is None or not anchor.joined or anchor.two is None:
                continue
            old = anchor.old
            if where == (old.read, old.tuple if anchor is roles.right else old.tuple.reversed()):
                numbers = old.translations()[0]
                next_seq = at.next_seq if numbers is None else at.next_seq + numbers.seq_delta & MASK32
                return bool(at.flags & RST) or not is_last(anchor.two, next_seq)
        return False

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
        is_right = chain.right is not None and flow.match == chain.right.tuple.reversed()
        return is_right and roles.left is not None and roles.left.two is not None

    def _from_left(self, chain: Chain, packet: Packet, now: float, *, new: bool) -> None:
        """A packet has come on one of the left paths: bring it inside."""
        right = None if chain.changing is None else chain.changing.right
        facing = right.new if right is not None and new else chain.left
        assert facing is not None
        kept = self._inwards(right, facing, packet, chain.session_in, new=new)
        if kept is not None and chain.box is not None:
            self._ground.output.packet(chain.box.left_write, kept)
        elif kept is not None:
            self._to_right(chain, kept, now)
        if right is not None and right.broken:
            self._rescue.begin(chain, right, now)
        elif right is not None and right.two is not None:
            self._right.look(chain, right, now)

    def _from_right(self, chain: Chain, packet: Packet, now: float, *, new: bool) -> None:
        """A packet has come on one of the right paths: bring it inside."""
        left = None if chain.changing is None else chain.changing.left
        facing = left.new if left is not None and new else chain.right
        assert facing is not None
        kept = self._inwards(left, facing, packet, chain.session_out.reversed(), new=new)
        if kept is not None and chain.box is not None:
            self._ground.output.packet(chain.box.right_write, kept)
        elif kept is not None:
            self._to_left(chain, kept, now)
        if left is not None and left.broken:
            self._rescue.begin(chain, left, now)
        elif left is not None and left.two is not None:
            self._left.look(chain, left, now)

    def _inwards(
        self, anchor: Anchor | None, facing: Facing, packet: Packet, inner: FiveTuple, *, new: bool
    ) -> Packet | None:
        """Give a packet the numbers inside, and what goes on of it; None: nothing does."""
        if anchor is None:
            readdress(packet, inner, facing.translations()[0])
            return packet
        stamps, two = anchor.stamps, anchor.two
        if stamps is not None and new:
            self._measure(anchor, stamps, packet)
        at = readdress(packet, inner, facing.translations()[0])
        if stamps is not None and new:
            stamps.from_new(packet, at, facing)
        elif stamps is not None:
            stamps.from_old(packet, at)
        if two is None:
            return packet
        if not new and anchor.joined:
            anchor.broken = anchor.broken or is_cut_short(two, at)
            kept = ours(two, packet, at)
            if kept is None or anchor.dead is not None:
                return None
            packet, at = kept, _located(kept)
            if at.flags & RST:
                anchor.broken = True  # what becomes of the session depends on what the proxy held
                return None
        windows = anchor.windows
        if windows is not None and new:
            windows.from_new(at)
        elif windows is not None and windows.clamp(packet, at, two.cutoff):
            at = _located(packet)
        if not (two.receive_new if new else two.receive_old)(packet, at):
            return None
        if windows is not None and new:
            # An acknowledgement that is not believed yet was raised, and its window stands for less now.
            windows.clamp(packet, _located(packet), two.cutoff)
        return packet

    def _to_right(self, chain: Chain, packet: Packet, now: float) -> None:
        """A packet from inside goes to the right, on one path or on two."""
        left = None if chain.changing is None else chain.changing.left
        right = chain.right
        assert right is not None
        stamps = None if left is None else left.stamps
        if stamps is not None:
            stamps.from_inside(packet, _located(packet))
        if left is not None and left.windows is not None:
            left.windows.from_inside(_located(packet))
        if left is None or left.two is None:
            self._ground.to_right(right, packet)
            if left is not None and stamps is not None:
                self._left.seen_inside(chain, left, now)
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
        self._left.look(chain, left, now)

    def _to_left(self, chain: Chain, packet: Packet, now: float) -> None:
        """A packet from inside goes to the left, on one path or on two."""
        right = None if chain.changing is None else chain.changing.right
        stamps = None if right is None else right.stamps
        if stamps is not None:
            stamps.from_inside(packet, _located(packet))
        if right is not None and right.windows is not None:
            right.windows.from_inside(_located(packet))
        if right is None or right.two is None:
            self._ground.to_left(chain.left, packet)
            return
        old, new = right.two.send(packet, _located(packet))
        for one in old:
            if stamps is not None:
                stamps.to_old(one, _located(one))
            self._right.to_path(right, one, old=True)
        for one in hold(self._ground, right, new):
            if stamps is not None:
                stamps.to_new(one, _located(one))
            self._right.to_path(right, one, old=False)
        self._right.look(chain, right, now)

    def _measure(self, anchor: Anchor, stamps: Stamps, packet: Packet) -> None:
        """The first timestamp of the new path, where the messages have not told one."""
        if stamps.peer is None:
            stamps.peer = raw_stamp(packet, _located(packet))
        assert anchor.new is not None
        stamps.settle(anchor.new)


def _is_new_left(chain: Chain, flow: Flow) -> bool:
    roles = chain.changing
    new = None if roles is None or roles.right is None else roles.right.new
    return new is not None and flow.match == new.tuple


def _located(packet: Packet) -> Located:
    at = locate(packet)
    assert at is not None
    return at
