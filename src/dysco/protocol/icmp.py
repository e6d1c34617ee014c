"""ICMP errors about packets of chained sessions, translated both ways.

What an error quotes is a packet that some flow wrote. The flow of the other direction, read where the error
was read, knows what that packet was before and where it had come from: so the error goes the same way, quoting
what its receiver knows. An error made on the way to the next hop becomes one about the session for a local
application, or one about the previous subsession for the previous hop, from this host's own address.

Anyone can forge an error, so little is believed: the quoted tuple must be one that is in use, an MTU not below
what every path must carry, and while a session is being opened the quoted number must be that of its SYN.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from dysco.protocol.chain import Chain
from dysco.protocol.flow import HOST, UNDERLAY, FlowTable
from dysco.protocol.neighbours import FLOOR_MTU, Neighbours
from dysco.protocol.output import Output
from dysco.protocol.setup import Setup
from dysco.wire.icmp import TOO_BIG, UNREACHABLE, IcmpError, parse_error, translate_error
from dysco.wire.packet import Packet

# RFC 1122 section 4.2.3.9 calls protocol and port unreachable hard errors; on a SYN, Linux takes all of these so.
_HARD_V4: Final = frozenset((0, 1, 2, 3, 9, 10, 13))
_UNREACHABLE_V6: Final = 1


class IcmpErrors:
    """Takes the errors that an agent reads."""

    def __init__(
        self, table: FlowTable, neighbours: Neighbours, setup: Setup, output: Output, counters: Counter[str]
    ) -> None:
        self._table = table
        self._neighbours = neighbours
        self._setup = setup
        self._output = output
        self._counters = counters

    def receive(self, port: int, packet: Packet, now: float) -> bool:
        """Translate an error and send it on; False if it is about nothing of ours."""
        error = parse_error(packet)
        if error is None:
            return False
        back = self._table.get(port, error.five_tuple.reversed())
        if back is None:
            return False
        chain = back.owner
        assert isinstance(chain, Chain)
        if not self._is_plausible(chain, port, error):
            self._counters["icmp_implausible"] += 1
            return True
        if port == UNDERLAY:
            if error.mtu:
                neighbour = self._neighbours.at(error.five_tuple.dst)
                if neighbour is not None:
                    neighbour.learn_mtu(error.mtu, error.dst, now)
            elif _is_hard(error) and self._setup.unreachable(chain, error.seq, now):
                return True
        quoted = back.rewrite.reversed()
        source = error.src if back.out == HOST else back.rewrite.src
        seq_delta = 0 if back.translation is None else back.translation.ack_delta
        translate_error(packet, error, quoted, src=source, dst=quoted.src, seq_delta=seq_delta)
        self._counters["icmp_translated"] += 1
        self._output.packet(back.out, packet)
        return True

    def _is_plausible(self, chain: Chain, port: int, error: IcmpError) -> bool:
        if _is_mtu(error) and error.mtu < FLOOR_MTU[len(error.dst)]:
            return False
        right = chain.right
        if chain.opening is None or right is None or error.five_tuple != right.tuple or port != right.read:
            return True
        return error.seq == right.forward.isn


def _is_mtu(error: IcmpError) -> bool:
    if error.family == 4:
        return error.type == UNREACHABLE and error.code == 4
    return error.type == TOO_BIG


def _is_hard(error: IcmpError) -> bool:
    if error.family == 4:
        return error.type == UNREACHABLE and error.code in _HARD_V4
    return error.type == _UNREACHABLE_V6
