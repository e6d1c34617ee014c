"""Sessions that the kernel has opened and that are over before anybody had to know of them.

Most sessions of a busy host last milliseconds. To make a `Chain` of each costs more than everything else that an agent
does for it, so reports are kept as they are for a moment (`young`); if both ends have sent FIN by then, only their
flows and ports are left to be given back. Whoever asks for such a session, by a packet or a command, gets the chain.

    young --FIN of both ends--> brief --timers.time_wait, nothing passed lately--> closed
      |                           |
      +--- a moment later         +--- a packet the kernel does not carry, or one that it has carried lately
      +--- somebody asks          |
                \\-- replayed into a chain --/
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

from dysco.protocol.chain import Chain, FacingInfo, SessionInfo, first_label
from dysco.protocol.events import SessionClosed, SessionEstablished, SessionOpened
from dysco.protocol.flow import HOST, UNDERLAY, FlowKey, FlowTable
from dysco.protocol.neighbours import Neighbours
from dysco.protocol.output import Output
from dysco.protocol.reports import ANSWERED, ARRIVED, BEGAN, ENDED, WENT_ON, PlainReport, Report
from dysco.protocol.settings import LocalBox, Settings
from dysco.wire import chain_header
from dysco.wire.chain_header import ChainHeader
from dysco.wire.tuples import trusted

YOUNG_S: Final = (
    0.05  # ours: longer than most sessions of a busy host last, shorter than anybody waits for an answer
)
LATE_S: Final = 0.05  # ours: how much later than it might a session that is over is looked at
_CHAIN: Final = -1.0  # as `until`: there is a chain now
_FORWARD: Final = 1
_BACKWARD: Final = 2
_SESSION_AT: Final = 28  # of a chain header: session and subsession, each as long as the tuple of the packet


class Brief:
    """One session: its reports, the flows that it has here, and what of its end was seen.

    forward: the flow whose FIN is the left end's. counts: packets that its flows had carried when that was looked at.
    mark: what whoever gave the reports calls the place of the first. until: when it is looked at again; 0: it is young.
    """

    __slots__ = ("answered", "began_at", "counts", "fins", "forward", "keys", "mark", "reports", "until")

    def __init__(self, report: PlainReport, mark: int, now: float) -> None:
        kind, port, match, _, header, _ = report
        size = len(match)
        self.reports: tuple[PlainReport, ...] = (report,)
        self.began_at = now
        self.mark = mark
        self.until = 0.0
        self.counts = -1
        self.fins = 0
        self.answered = False
        self.forward: FlowKey = (port, match)
        self.keys: tuple[FlowKey, ...]
        if kind == BEGAN:
            self.keys = (self.forward, (UNDERLAY, _reversed(header, _SESSION_AT + size, size)))
        else:
            answers = (HOST, _reversed(header, _SESSION_AT, size))
            if header[25] > 1:
                self.keys = (self.forward, answers, (HOST, header[_SESSION_AT : _SESSION_AT + size]))
            else:
                self.keys = (self.forward, answers)

    def went_on(self, report: PlainReport) -> FlowKey:
        """The SYN has left the box; gives the flow that this has made."""
        _, port, match, _, header, _ = report
        size = len(match)
        self.reports += (report,)
        self.forward = (port, match)
        key = (UNDERLAY, _reversed(header, _SESSION_AT + size, size))
        self.keys += (key,)
        return key


class Briefs:
    """All that are young or brief. `replay` makes a chain out of reports; `box` is the one that they went through.

    `replace` ends a chain that is over and whose tuple a new session has; `known` says whether there is one with a key.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        table: FlowTable,
        neighbours: Neighbours,
        output: Output,
        counters: Counter[str],
        replay: Callable[[PlainReport, float], None],
        box: Callable[[], LocalBox | None],
        replace: Callable[[Chain, float], None],
        known: Callable[[bytes], bool],
    ) -> None:
        self._settings = settings
        self._table = table
        self._neighbours = neighbours
        self._output = output
        self._counters = counters
        self._replay = replay
        self._box = box
        self._replace = replace
        self._known = known
        self._flows: dict[FlowKey, Brief] = {}
        self._last: deque[Brief] = deque()
        self._fresh: deque[Brief] = deque()
        self._rested: deque[Brief] = deque()
        self._replaced: list[Brief] = []
        self._count = 0

    def __len__(self) -> int:
        """How many sessions there are of which no chain was made."""
        return self._count

    @property
    def has_young(self) -> bool:
        """Whether reports are kept that may still become chains."""
        return bool(self._last)

    @property
    def mark(self) -> int | None:
        """The place of the first report of what is young; None: nothing is."""
        return self._last[0].mark if self._last else None

    def take(self, reports: Iterable[PlainReport], now: float, mark: int, *, settle: bool) -> None:
        """Take reports, oldest first. settle: whoever asks is about to act, so nothing may stay young."""
        flows = self._flows
        try:
            for report in reports:
                kind = report[0]
                if kind <= ARRIVED:
                    self._begin(report, mark, now)
                    continue
                where = (report[1], report[2])
                found = flows.get(where)
                if found is None:
                    self._replay(report, now)
                elif found.until:
                    continue  # of a session that was over
                elif kind == ENDED:
                    found.reports += (report,)
                    found.fins |= _FORWARD if where == found.forward else _BACKWARD
                    if found.fins == _FORWARD | _BACKWARD and found.answered:
                        self._ended(found, now)
                elif kind == ANSWERED:
                    found.reports += (report,)
                    found.answered = True
                else:
                    flows[found.went_on(report)] = found
                    self._make_room(where, found, found, now)
        finally:
            replaced, self._replaced = self._replaced, []
            self._close(replaced, now, "replaced")
            last, born = self._last, math.inf if settle else now - YOUNG_S
            while last and (last[0].until or last[0].began_at <= born):
                brief = last.popleft()
                if not brief.until:
                    self._grow(brief, now)

    def _begin(self, report: PlainReport, mark: int, now: float) -> None:
        header = report[4]
        if self._known(header[8:24] + bytes((header[24] + (report[0] == ARRIVED),))):
            return  # read again after a restart
        brief = Brief(report, mark, now)
        self._count += 1
        self._last.append(brief)
        flows = self._flows
        for key in brief.keys:
            old = flows.get(key)
            flows[key] = brief
            self._make_room(key, old, brief, now)

    def wake(self, port: int, match: bytes, now: float) -> bool:
        """Make a chain of the session that has this flow; False if there is none."""
        key = (port, match)
        brief = self._flows.get(key)
        if brief is None:
            return False
        if not brief.until:
            self._grow(brief, now)
            return True
        self._forget(brief)
        # It was counted when it ended.
        self._counters["opened"] -= 1
        self._counters["established"] -= 1
        self._play(brief, now)
        return True

    def next_deadline(self) -> float | None:
        """When `handle_deadline` must be called; None: no need. A little late, so that it has several to look at."""
        ends = [queue[0].until for queue in (self._fresh, self._rested) if queue]
        return min(ends) + LATE_S if ends else None

    def handle_deadline(self, now: float) -> None:
        """Look at those that have rested for half of their time, and give back what those have that rested for all."""
        rest = self._settings().timers.time_wait / 2
        looked_at = _due(self._fresh, now)
        for brief, (packets, _) in zip(looked_at, self._traffic(looked_at), strict=True):
            brief.counts = packets
            brief.until = now + rest
            self._rested.append(brief)
        looked_at, over = _due(self._rested, now), []
        for brief, (packets, _) in zip(looked_at, self._traffic(looked_at), strict=True):
            if packets != brief.counts:
                self.wake(*brief.keys[0], now)
            else:
                over.append(brief)
        self._close(over, now, "closed")

    def infos(self, now: float) -> Iterator[SessionInfo]:
        """Those that are over, for people."""
        for brief in dict.fromkeys(self._flows.values()):
            if not brief.until:
                continue
            first, *_ = reports = [Report.of(one) for one in brief.reports]
            header = _header(first)
            box = self._box() if any(one.kind == WENT_ON for one in reports) else None
            [(packets, octets)] = self._traffic([brief])
            right = next((_header(one) for one in reports if one.kind in (BEGAN, WENT_ON)), None)
            index = header.hop_index + (first.kind != BEGAN)
            yield SessionInfo(
                header.chain_id,
                index,
                "first" if first.kind == BEGAN else "last" if right is None else "middle",
                "time-wait",
                header.session,
                header.session,
                first.policy,
                None if box is None else box.name,
                FacingInfo(None, header.session)
                if first.kind == BEGAN
                else FacingInfo(self._name(first.match.src), first.match, first_label(header.hop_index)),
                FacingInfo(None, header.session)
                if right is None
                else FacingInfo(self._name(right.subsession.dst), right.subsession, first_label(index)),
                max(0.0, now - brief.began_at),
                packets,
                octets,
            )

    def _make_room(self, key: FlowKey, old: Brief | None, brief: Brief, now: float) -> None:
        """The kernel has let a new session in, in the place of an old one that is over, by what it has seen."""
        if old is not None and old.until:
            self._forget(old)
            old.until = _CHAIN
            self._replaced.append(old)
            return
        flow = self._table.get(*key)
        if flow is not None and isinstance(flow.owner, Chain):
            for one in brief.keys:
                self._table.forget(*one)
            self._replace(flow.owner, now)

    def _ended(self, brief: Brief, now: float) -> None:
        """Both FINs have passed: it stays as it is."""
        brief.until = now + self._settings().timers.time_wait / 2
        self._fresh.append(brief)
        self._counters["opened"] += 1
        self._counters["established"] += 1
        kind, _, match, _, header, policy = brief.reports[0]
        chain_id, index = header[8:24], header[24] + (kind != BEGAN)
        session = trusted(header[_SESSION_AT : _SESSION_AT + len(match)])
        self._output.event(SessionOpened(chain_id, index, session, policy))
        self._output.event(SessionEstablished(chain_id, index, session))

    def _grow(self, brief: Brief, now: float) -> None:
        """It has been young for long enough."""
        self._forget(brief)
        self._play(brief, now)

    def _forget(self, brief: Brief) -> None:
        """Its flows are those of a chain now, or of nobody, but for those that a later session has taken."""
        flows = self._flows
        for key in brief.keys:
            if flows.get(key) is brief:
                del flows[key]

    def _play(self, brief: Brief, now: float) -> None:
        brief.until = _CHAIN  # what is left of it in the queues is of nobody
        self._count -= 1
        for report in brief.reports:
            self._replay(report, now)

    def _close(self, over: list[Brief], now: float, reason: str) -> None:
        """Take away what sessions have that no later one has taken; say what they have carried."""
        if not over:
            return
        self._count -= len(over)
        for brief in over:
            self._forget(brief)
            brief.keys = tuple(key for key in brief.keys if self._is_free(key))
        box = self._box()
        carried = iter(self._table.drop([key for brief in over for key in brief.keys]))
        for brief in over:
            packets, octets = _sum(islice(carried, len(brief.keys)))
            kind, _, match, _, header, _ = brief.reports[0]
            size = len(match)
            went_on = False
            for one, _, _, _, sent, _ in brief.reports:
                went_on = went_on or one == WENT_ON
                if one in (BEGAN, WENT_ON):
                    self._neighbours.release(trusted(sent[_SESSION_AT + size : _SESSION_AT + 2 * size]), now)
            self._counters[f"closed_{reason}"] += 1
            self._output.event(
                SessionClosed(
                    header[8:24],
                    header[24] + (kind != BEGAN),
                    trusted(header[_SESSION_AT : _SESSION_AT + size]),
                    reason,
                    packets,
                    octets,
                    None if box is None or not went_on else box.name,
                )
            )

    def _is_free(self, key: FlowKey) -> bool:
        """Whether no session that is known has a flow."""
        return key not in self._flows and self._table.get(*key) is None

    def _traffic(self, briefs: list[Brief]) -> list[tuple[int, int]]:
        if not briefs:
            return []
        carried = iter(self._table.carried([key for brief in briefs for key in brief.keys]))
        return [_sum(islice(carried, len(brief.keys))) for brief in briefs]

    def _name(self, address: bytes) -> str:
        neighbour = self._neighbours.at(address)
        return "" if neighbour is None else neighbour.peer.name


def _due(queue: deque[Brief], now: float) -> list[Brief]:
    """Take those whose time has come, and drop those of which a chain was made."""
    found = []
    while queue and queue[0].until <= now:
        brief = queue.popleft()
        if brief.until != _CHAIN:
            found.append(brief)
    return found


def _sum(carried: Iterable[tuple[int, int]]) -> tuple[int, int]:
    packets = octets = 0
    for count, size in carried:
        packets, octets = packets + count, octets + size
    return packets, octets


def _reversed(header: bytes, at: int, size: int) -> bytes:
    """The tuple of the other direction of one that stands in a chain header."""
    half, ports = at + size // 2 - 2, at + size - 4
    return header[half:ports] + header[at:half] + header[ports + 2 : ports + 4] + header[ports : ports + 2]


def _header(report: PlainReport) -> ChainHeader:
    header = chain_header.peek(report[4])
    assert header is not None
    return header
