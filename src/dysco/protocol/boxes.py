"""SYNs that are inside a middlebox: how they are known again when they leave it.

By their tuple; by a tag, a TCP option that we insert and that NAT leaves alone; by a fingerprint of what
NAT does not change; or by what the box told through the API. A fingerprint counts only while it names one
candidate.
"""

from __future__ import annotations

from collections.abc import Callable

from dysco.protocol.chain import Chain, Fingerprint, Opening
from dysco.protocol.flow import HOST, FlowTable
from dysco.protocol.states import State
from dysco.wire.options import TAG_LEN, find_tag, insert_tag, syn_options
from dysco.wire.packet import Located, Packet, locate
from dysco.wire.tuples import FiveTuple


class AtBox:
    """The SYNs that were delivered to boxes and have not left yet."""

    def __init__(self, table: FlowTable, rng: Callable[[int], bytes]) -> None:
        self._table = table
        self._rng = rng
        self._by_tuple: dict[tuple[int, FiveTuple], Chain] = {}
        self._by_tag: dict[bytes, Chain] = {}
        self._by_fingerprint: dict[Fingerprint, list[tuple[Chain, float]]] = {}
        self._by_session: dict[FiveTuple, Chain] = {}
        self._expected: dict[Chain, FiveTuple] = {}

    def deliver(self, chain: Chain, opening: Opening, packet: Packet, now: float, patience: float) -> None:
        """Remember a SYN that goes into its box; it may get a tag."""
        box = chain.box
        assert box is not None
        self._by_session[chain.session_in] = chain
        if "tuple" in box.match:
            self._by_tuple[box.right_read, chain.session_in] = chain
            if box.right_read == HOST:
                self._table.capture(chain.session_in)
        if "fingerprint" in box.match:
            self._remember_looks(chain, opening, packet, now + patience)
        if "tag" in box.match:
            tag = self._rng(TAG_LEN)
            if insert_tag(packet, tag):
                opening.tag = tag
                self._by_tag[tag] = chain

    def delivered(self, chain: Chain) -> None:
        """Remember a SYN that the kernel has given to its box, and lets on by itself as a rule."""
        assert chain.box is not None
        if self.waiting_for(chain.session_in) is not None:
            return  # a later session has its tuple, so that this one has left the box
        self._by_session[chain.session_in] = chain
        self._by_tuple[chain.box.right_read, chain.session_in] = chain
        self._table.expect(chain.session_in)

    def renew(self, chain: Chain, opening: Opening, packet: Packet, now: float, patience: float) -> None:
        """A SYN that is repeated goes into the box once more, looking as the first did or with a new timestamp."""
        assert chain.box is not None
        if "fingerprint" in chain.box.match and chain.state is State.AT_BOX:
            self._forget_looks(chain, opening)
            self._remember_looks(chain, opening, packet, now + patience)
        if opening.tag:
            insert_tag(packet, opening.tag)

    def match(self, port: int, packet: Packet, at: Located, now: float) -> Chain | None:
        """The chain whose SYN this is, read from the right side of its box."""
        chain = self._by_tuple.get((port, at.five_tuple))
        if chain is None and self._by_tag:
            tag = find_tag(packet)
            chain = None if tag is None else self._by_tag.get(tag)
        if chain is None and self._by_fingerprint:
            candidates = self._by_fingerprint.get(fingerprint(packet), ())
            fitting = [one for one, until in candidates if now < until and one.state is State.AT_BOX]
            chain = fitting[0] if len(fitting) == 1 else None
        if (
            chain is None
            or chain.box is None
            or chain.box.right_read != port
            or chain.state is not State.AT_BOX
        ):
            return None
        return chain

    def waiting_for(self, session: FiveTuple) -> Chain | None:
        """The chain whose SYN went into its box with this tuple and has not left."""
        chain = self._by_session.get(session)
        return chain if chain is not None and chain.state is State.AT_BOX else None

    def expect(self, chain: Chain, session_out: FiveTuple) -> None:
        """The SYN of this chain will leave with this tuple."""
        assert chain.box is not None
        self._by_tuple[chain.box.right_read, session_out] = chain
        self._expected[chain] = session_out
        if chain.box.right_read == HOST:
            self._table.capture(session_out)

    def forget(self, chain: Chain, opening: Opening) -> None:
        """The SYN has left, or will not."""
        box = chain.box
        if box is None:
            return
        for session in (chain.session_in, self._expected.pop(chain, None)):
            # A later session with the same tuple may wait there by now.
            if session is not None and self._by_tuple.get((box.right_read, session)) is chain:
                del self._by_tuple[box.right_read, session]
                if box.right_read == HOST:
                    self._table.release(session)
        if self._by_session.get(chain.session_in) is chain:
            del self._by_session[chain.session_in]
        self._by_tag.pop(opening.tag, None)
        self._forget_looks(chain, opening)

    def _remember_looks(self, chain: Chain, opening: Opening, packet: Packet, until: float) -> None:
        opening.fingerprint = fingerprint(packet)
        self._by_fingerprint.setdefault(opening.fingerprint, []).append((chain, until))

    def _forget_looks(self, chain: Chain, opening: Opening) -> None:
        kept = [pair for pair in self._by_fingerprint.get(opening.fingerprint, ()) if pair[0] is not chain]
        if kept:
            self._by_fingerprint[opening.fingerprint] = kept
        else:
            self._by_fingerprint.pop(opening.fingerprint, None)


def fingerprint(packet: Packet) -> Fingerprint:
    """What NAT leaves alone: initial sequence number, timestamp, window, MSS."""
    at = locate(packet)
    assert at is not None
    options = syn_options(packet, at)
    return at.seq, options.tsval, at.window, options.mss
