"""Whether a SYN that a neighbour sent may make a chain here: who signed it, when, and what it asks for.

Nothing here keeps a session or sends a packet. What a chain may ask (no open relay): be signed by a peer with a
key of its association, carry a counter that was not seen, name this host as its next hop and a box that is here,
go on only to peers that this peer may reach, and end at an address that this peer may have us send to.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

from dysco.protocol.neighbours import SELF, Neighbour, Neighbours
from dysco.protocol.settings import LocalBox, Settings
from dysco.wire.chain_header import ChainHeader, Egress
from dysco.wire.packet import Located
from dysco.wire.tuples import FiveTuple

LONGEST_CHAIN: Final = 64  # ours: sixteen hops a header, and boxes that add more; ends loops
_REMEMBERED: Final = 1024


class Admission:
    """Judges chain headers; remembers its last refusals so that a lost answer can be repeated."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self._refused: OrderedDict[bytes, str] = OrderedDict()

    def signer(self, header: ChainHeader, at: Located) -> Neighbour | None:
        """The neighbour that claims to have sent a header: by the address seen, else, behind NAT, by its own."""
        return self._neighbours.at(at.five_tuple.src) or self._neighbours.at(header.subsession.src)

    def remember(self, key: bytes, reason: str) -> None:
        """Keep a refusal."""
        self._refused[key] = reason
        if len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)

    def refused_before(self, key: bytes) -> str | None:
        """Why a chain was refused a short while ago, if it was."""
        return self._refused.get(key)

    def box_for(self, header: ChainHeader, settings: Settings) -> LocalBox | str | None:
        """The box that the first hop means; None: no box; text: why there is none."""
        wanted = header.hops[0].box
        if not wanted and len(header.hops) == 1 and header.egress is Egress.AGENT:
            return None
        return find_box(wanted, settings)

    def refusal(
        self, header: ChainHeader, at: Located, neighbour: Neighbour, settings: Settings, now: float
    ) -> str | None:
        """Why this host will not be a hop of an authentic chain; None if it will."""
        peer, hops, session = neighbour.peer, header.hops, header.session
        low, high = settings.port_range
        if hops[0].address not in settings.addresses:
            return "this host is not the hop that the header names"
        if not low <= at.five_tuple.dport <= high:
            return "the subsession's port is not in the reserved range"
        if header.hop_index >= LONGEST_CHAIN:
            return "the chain is too long"
        if peer.name != SELF and not neighbour.admit(settings.limits.setups_per_second, now):
            return "too many sessions a second"
        if not peer.accept:
            return f"{peer.name} may not send chains here"
        for hop in hops[1:]:
            next_one = self._neighbours.at(hop.address)
            if next_one is None and not is_target(hop.address):
                return "a next hop has an address that is never a target"
            if next_one is None or peer.next_hops is None:
                continue
            if next_one.peer.name not in (SELF, *peer.next_hops):
                return f"{peer.name} may not go on to {next_one.peer.name}"
        if len(hops) == 1 and peer.name != SELF and not self._may_end_here(header, neighbour, settings):
            return f"{peer.name} may not send this session on from here"
        if session.dport == settings.control_port and len(hops) == 1 and header.egress is not Egress.AGENT:
            return "the control port is never a target"
        return None

    def _may_end_here(self, header: ChainHeader, neighbour: Neighbour, settings: Settings) -> bool:
        destination = header.session.dst
        if header.egress is Egress.AGENT and destination in settings.addresses:
            return True
        return is_target(destination) and neighbour.peer.may_use(header.session)


def is_target(address: bytes) -> bool:
    """Whether a chain may be sent to an address at all, which is no loopback, link-local or group address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return False
    if address == b"\xff\xff\xff\xff":
        return False
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)


def same_chain(header: ChainHeader, key: bytes) -> bool:
    """Whether a header is of the chain with this key (chain id and hop index)."""
    return key[:-1] == header.chain_id


def native_tuple(session: FiveTuple, own: bytes, port: int) -> FiveTuple:
    """The session with an own address and port as its source."""
    return FiveTuple.of(own, port, session.dst, session.dport)


def find_box(wanted: int, settings: Settings) -> LocalBox | str | None:
    """The box with a number, 0 for the first; None: this host has no box; text: why there is none."""
    if wanted:
        found = next((box for box in settings.boxes if box.tag == wanted), None)
    else:
        found = next(iter(settings.boxes), None)
    if wanted and found is None:
        return "no such middlebox here"
    return f"{found.name} is drained" if found is not None and found.drained else found
