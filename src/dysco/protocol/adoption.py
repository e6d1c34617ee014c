"""Chains that the kernel has opened by itself: what it must be told for that, and what it reports.

Where nothing has to be decided any more, programs put the chain header before a SYN or take it off (`Setup` says what
that means; they do the same, to the byte) and let the flows in. Here the agent gets the chain as if it had opened it.

Reports come in the order of their packets and are taken before any other packet of theirs; one that is read again,
after a restart, changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from dysco.protocol.brief import Briefs
from dysco.protocol.chain import NO_HANDSHAKE, Chain, Opening, facing_agent, facing_host, first_label
from dysco.protocol.events import SessionOpened
from dysco.protocol.flow import HOST, Flow, FlowTable
from dysco.protocol.life import Life
from dysco.protocol.neighbours import SELF, Neighbours
from dysco.protocol.output import Output
from dysco.protocol.replay import Window
from dysco.protocol.reports import Kind, PlainReport, Report
from dysco.protocol.settings import LocalBox, Settings, unwatched
from dysco.protocol.setup import Setup
from dysco.protocol.states import Input
from dysco.wire import chain_header
from dysco.wire.chain_header import ChainHeader
from dysco.wire.tuples import Family

_NO_HALF: Final = NO_HANDSHAKE[len(NO_HANDSHAKE) // 2 :]
_SIZES: Final[dict[Family, int]] = {4: 4, 6: 16}
_ALIASES: Final = 30  # of a neighbour; the kernel has room for them and for two ways


class Accepted(NamedTuple):
    """A key with which a neighbour may sign, its window, and until when: monotonic seconds, or infinity."""

    key: bytes
    window: Window
    until: float


class Association(NamedTuple):
    """A neighbour as the kernel needs it. rate: chains that it may begin in a second without being looked at; 0: none.

    ways: own address and the neighbour's, of each family in which it can be reached. aliases: other addresses by which
    hops and subsessions name it, and those ways lead to it. send_key: empty while it is down.
    """

    name: str
    ways: tuple[tuple[bytes, bytes], ...]
    aliases: tuple[bytes, ...]
    mtu: int
    rate: int
    send_key: bytes
    accepted: tuple[Accepted, ...]


class Adoption:
    """Takes up what the kernel has opened; shares all else with `Setup` and `Life`."""

    def __init__(
        self,
        setup: Setup,
        table: FlowTable,
        neighbours: Neighbours,
        life: Life,
        output: Output,
        counters: Counter[str],
    ) -> None:
        self._setup = setup
        self._table = table
        self._neighbours = neighbours
        self._life = life
        self._output = output
        self._counters = counters
        self.briefs = Briefs(
            lambda: setup.settings,
            table,
            neighbours,
            output,
            counters,
            self.take,
            lambda: plain_box(setup.settings),
            lambda chain, now: life.close(chain, "replaced", now),
            life.chains.__contains__,
        )
        self._take = {
            Kind.BEGAN: self._began,
            Kind.ARRIVED: self._arrived,
            Kind.WENT_ON: self._went_on,
            Kind.ANSWERED: self._answered,
            Kind.ENDED: self._ended,
        }

    def take(self, plain: PlainReport, now: float) -> None:
        """Take one report."""
        report = Report.of(plain)
        self._take[report.kind](report, now)

    def associations(self, now: float) -> Iterator[Association]:
        """What the kernel must know of each neighbour."""
        settings = self._setup.settings
        for name, one in self._neighbours.by_name.items():
            if name == SELF:
                continue
            ways = []
            for size in _SIZES.values():
                named = next((address for address in one.peer.addresses if len(address) == size), None)
                own = None if named is None else self._neighbours.own(named)
                if named is not None and own is not None:
                    ways.append((own, self._neighbours.reach(named)))
            plain = one.peer.accept and one.peer.next_hops is None
            reached = [address for _, address in ways]
            known = (*one.peer.addresses, *one.left)
            yield Association(
                name,
                tuple(ways),
                tuple(
                    islice((it for it in known if it not in reached and one.reach(it) in reached), _ALIASES)
                ),
                one.mtu(now, settings.mtu),
                settings.limits.setups_per_second if plain and self._may_open() else 0,
                one.send_key if one.may_begin and self._may_open() else b"",
                tuple(Accepted(key, window, until) for key, (window, until) in one.accepted(now)),
            )

    def charge(self, name: str, begun: int, now: float) -> None:
        """The kernel has let a neighbour begin so many chains here."""
        neighbour = self._neighbours.by_name.get(name)
        if neighbour is not None:
            neighbour.charge(self._setup.settings.limits.setups_per_second, begun, now)

    def allocate(self, own: bytes, remote: bytes, count: int, now: float) -> list[tuple[int, int]]:
        """Take pairs of ports toward a neighbour's address, as far as there are, for chains to come."""
        neighbour = self._neighbours.at(remote)
        if neighbour is None:
            return []
        pool = self._neighbours.pool(own, remote, neighbour)
        return list(islice(iter(lambda: pool.allocate(now), None), count))

    def _may_open(self) -> bool:
        """Whether the kernel may go on.

        Where a table is nearly full, it is the agent that makes room; and where it must see the first bytes of
        sessions, it must have them from the first one on.
        """
        limits = self._setup.settings.limits
        if self._setup.settings.watch is not unwatched:
            return False
        return (
            len(self._life.chains) + len(self.briefs) < limits.sessions * 0.9
            and len(self._life.embryonic) < limits.embryonic * 0.5
        )

    def _began(self, report: Report, now: float) -> None:
        header = _header(report)
        key = header.chain_id + b"\0"
        if key in self._life.chains:
            return
        opening = Opening(header.hops, header.egress, header.on_fail_open)
        chain = Chain(key, facing_host(report.match), report.match, report.policy, opening, now)
        if self._begins(chain, report, now):
            self._sent(chain, opening, header, report, now)
        else:
            self._neighbours.release(header.subsession, now)

    def _arrived(self, report: Report, now: float) -> None:
        header = _header(report)
        key = header.chain_id + bytes((header.hop_index + 1,))
        if key in self._life.chains:
            return
        neighbour = self._neighbours.at(report.match.src)
        name = "" if neighbour is None else neighbour.peer.name
        opening = Opening(header.hops, header.egress, header.on_fail_open)
        left = facing_agent(report.match, name, first_label(header.hop_index), opened=False)
        chain = Chain(key, left, header.session, "", opening, now)
        box = plain_box(self._setup.settings) if len(header.hops) > 1 else None
        if len(header.hops) > 1 and box is None:
            return  # it was taken away meanwhile; so are the flows, when its sender repeats itself
        if not self._begins(chain, report, now):
            return
        if box is None:
            chain.right = facing_host(header.session)
            chain.right.handshake = chain.left.handshake
            self._life.advance(chain, Input.SENT, now)
            self._adopt(chain.right_flows())
            return
        chain.box = box
        self._adopt(chain.left_flows())
        self._life.advance(chain, Input.DELIVERED, now)
        self._setup.at_box.delivered(chain)

    def _went_on(self, report: Report, now: float) -> None:
        header = _header(report)
        chain = self._life.chains.get(header.chain_id + bytes((header.hop_index,)))
        if chain is None or chain.opening is None or chain.right is not None:
            return
        chain.opening.hops = header.hops
        self._sent(chain, chain.opening, header, report, now)

    def _answered(self, report: Report, now: float) -> None:
        flow = self._table.get(report.port, report.match)
        if flow is not None and isinstance(flow.owner, Chain):
            self._setup.answered(flow.owner, flow, report.half, now)

    def _ended(self, report: Report, now: float) -> None:
        flow = self._table.get(report.port, report.match)
        if flow is not None and isinstance(flow.owner, Chain):
            chain = flow.owner
            self._life.closing(chain, forward=chain.is_forward(flow), reset=False, now=now)

    def _begins(self, chain: Chain, report: Report, now: float) -> bool:
        if not self._life.add(chain, now):
            self._counters["table_full"] += 1
            return False
        chain.left.handshake = report.half + _NO_HALF
        self._counters["opened"] += 1
        self._output.event(SessionOpened(chain.chain_id, chain.hop_index, chain.session_in, chain.policy))
        return True

    def _sent(self, chain: Chain, opening: Opening, header: ChainHeader, report: Report, now: float) -> None:
        """The SYN has gone to the next hop with this header."""
        subsession = header.subsession
        neighbour = self._neighbours.at(subsession.dst)
        chain.right = right = facing_agent(
            subsession,
            "" if neighbour is None else neighbour.peer.name,
            first_label(chain.hop_index),
            opened=True,
        )
        self._life.via[subsession.dst] += 1
        opening.header, opening.sent = report.header, len(report.header)
        opening.key = b"" if neighbour is None else neighbour.send_key
        right.handshake = report.half + _NO_HALF
        flows = tuple(chain.right_flows())
        if chain.box is not None:
            twin = self._table.get(chain.box.left_read, flows[1].rewrite)
            assert twin is not None
            flows[1].rewrite = twin.match
        self._life.advance(chain, Input.SENT, now)
        self._adopt(flows)

    def _adopt(self, flows: Iterable[Flow]) -> None:
        """Keep flows, but for those that a later session has taken."""
        for flow in flows:
            if self._table.get(flow.port, flow.match) is None:
                self._table.adopt(flow)


def plain_box(settings: Settings) -> LocalBox | None:
    """The box to which the kernel may give SYNs by itself: this host's default, in its own namespace, by tuple."""
    box = next(iter(settings.boxes), None)
    if box is None or box.drained or box.match != ("tuple",) or box.right_read != HOST:
        return None
    return box


def _header(report: Report) -> ChainHeader:
    header = chain_header.peek(report.header)
    assert header is not None
    return header
