"""`dysco top`: what is remembered between two looks at an agent, and the frame that is drawn from it.

Pure: snapshots go in with their time, a frame comes out; who asks the agent and reads the keyboard is top.py.
The frame is made for 80 columns and 24 rows and uses what there is above that:

    header      host, uptime, mode                      1
    rates       now, and the last minute as bars        1
    sessions    table, the selected one marked          what is left
    chain       of the selected session                 5
    drops       by reason    | peers                    5
    events      the last ones                           4
    footer      keys                                    1
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from dysco.cli import chain
from dysco.cli.render import clean, duration, event, number, short_id, sparkline, state
from dysco.views import Event, Peer, Session, Status

HISTORY: Final = 120  # looks that are remembered for the bars, one a second
EVENTS: Final = 50
CHANGES: Final = 1000  # chains whose last change is remembered
SORTS: Final = ("rate", "bytes", "age", "session")
_FIXED_ROWS: Final = 2 + 5 + 5 + 4 + 1
_SELECTED: Final = "▶"


@dataclass(frozen=True)
class Snapshot:
    """What an agent said at one moment (`at`: monotonic seconds)."""

    at: float
    status: Status
    sessions: Sequence[Session] = ()
    peers: Sequence[Peer] = ()


@dataclass(frozen=True)
class Row:
    """One session with its rate in bytes per second."""

    session: Session
    rate: float

    @property
    def key(self) -> str:
        return _key(self.session)


class Dashboard:
    """Everything that a frame shows, and what keys change."""

    def __init__(self) -> None:
        self.now: Snapshot | None = None
        self.missing = "no agent, waiting"
        self.rows: list[Row] = []
        self.rates: deque[float] = deque(maxlen=HISTORY)
        self.drop_rates: dict[str, float] = {}
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self.phases: dict[str, list[tuple[str, str]]] = {}  # of each chain's last change: phase, and when
        self.sort = SORTS[0]
        self.selected = ""  # nobody chose: whichever is first

    def see(self, snapshot: Snapshot) -> None:
        """Take a new snapshot; rates come from its difference to the one before."""
        before = self.now
        self.missing = ""
        if before is not None and before.status.pid != snapshot.status.pid:
            before = None  # another process: its counters began at nothing
        passed = snapshot.at - before.at if before else 0.0
        old = {_key(session): session.bytes for session in before.sessions} if before else {}
        rows = []
        for session in snapshot.sessions:
            grown = session.bytes - old.get(_key(session), 0)
            rows.append(Row(session, max(0.0, grown / passed) if passed > 0 else 0.0))
        self.rows = rows
        if passed > 0:
            self.rates.append(sum(row.rate for row in rows))
        self.drop_rates = {
            reason: max(0.0, (count - before.status.drops.get(reason, 0)) / passed)
            if before and passed > 0
            else 0.0
            for reason, count in snapshot.status.drops.items()
        }
        self.now = snapshot
        self._sort()

    def lose(self, reason: str) -> None:
        """Note that the agent is not there; what was seen last stays on the screen."""
        self.missing = f"no agent, waiting ({reason})" if reason else "no agent, waiting"

    def add_event(self, said: Event) -> None:
        """Take an event; one that an agent tells again when asked again is known already."""
        if said in self.events:
            return
        self.events.append(said)
        if said.name == "change_moved":
            chain_id, phase = str(said.fields.get("chain_id")), str(said.fields.get("phase"))
            if phase == "requested" or chain_id not in self.phases:
                self.phases.pop(chain_id, None)
                self.phases[chain_id] = []
            self.phases[chain_id].append((phase, said.time))
            if len(self.phases) > CHANGES:
                del self.phases[next(iter(self.phases))]

    def press(self, key: str) -> bool:
        """Do what a key means; False: quit."""
        match key:
            case "q":
                return False
            case "s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
                self._sort()
            case "up" | "down":
                self._move(-1 if key == "up" else 1)
        return True

    def _move(self, by: int) -> None:
        if self.rows:
            self.selected = self.rows[min(len(self.rows) - 1, max(0, self._index() + by))].key

    def _index(self) -> int:
        return next((i for i, row in enumerate(self.rows) if row.key == self.selected), 0)

    def _sort(self) -> None:
        orders = {
            "rate": lambda row: (-row.rate, -row.session.bytes, row.key),
            "bytes": lambda row: (-row.session.bytes, row.key),
            "age": lambda row: (row.session.age_s, row.key),
            "session": lambda row: (row.session.session, row.key),
        }
        self.rows.sort(key=orders[self.sort])
        if self.selected not in {row.key for row in self.rows}:
            self.selected = ""

    def frame(self, width: int, height: int) -> RenderableType:
        """Draw everything for a screen of this size."""
        if self.now is None:
            return Group(Text("dysco top", style="bold"), Text(), Text(self.missing, style="yellow"))
        layout = Layout()
        room = max(3, height - _FIXED_ROWS)
        layout.split_column(
            Layout(self._header(width), size=2),
            Layout(self._sessions(width, room - 2), size=room),
            Layout(self._chain(), size=5),
            Layout(name="middle", size=5),
            Layout(self._events(3), size=4),
            Layout(self._footer(), size=1),
        )
        layout["middle"].split_row(
            Layout(self._drops(4), size=width * 2 // 5),
            Layout(Text("\n" * 4), size=2),
            Layout(self._peers(4)),
        )
        return layout

    def _header(self, width: int) -> RenderableType:
        assert self.now is not None
        status = self.now.status
        top = Text(no_wrap=True, overflow="ellipsis")
        top.append("dysco top  ", style="bold").append(clean(status.name), style="bold cyan")
        if self.missing:
            top.append(f"  {self.missing}", style="bold yellow")
        else:
            top.append(f"  up {duration(status.uptime_s)}  {clean(status.mode)}")
        total = self.rates[-1] if self.rates else 0.0
        rate = Text(f"{number(total * 8, 'bit/s'):>12}  ", no_wrap=True)
        rate.append(sparkline(list(self.rates), max(10, min(HISTORY, width - 46))), style="green")
        rate.append(f"  {len(self.now.sessions)} sessions  {len(self.now.peers)} peers")
        return Group(top, rate)

    def _sessions(self, width: int, rows: int) -> RenderableType:
        made = Table(box=None, pad_edge=False, expand=True, padding=(0, 1, 0, 0), header_style="dim")
        made.add_column("", width=1)
        made.add_column("chain", width=8)
        made.add_column("session", ratio=1, no_wrap=True, overflow="ellipsis")
        made.add_column("state", width=11, no_wrap=True)
        made.add_column("rate", width=10, justify="right", no_wrap=True)
        made.add_column("bytes", width=6, justify="right", no_wrap=True)
        made.add_column("age", width=6, justify="right", no_wrap=True)
        if width >= 110:
            made.add_column("policy", width=14, no_wrap=True, overflow="ellipsis")
        chosen = self._index()
        start = max(0, min(chosen - rows // 2, len(self.rows) - rows))
        for index, row in enumerate(self.rows[start : start + rows], start):
            session = row.session
            cells: list[str | Text] = [
                _SELECTED if index == chosen else "",
                short_id(session.chain_id),
                # Not a str, which a console may take for markup: IPv6 addresses stand in brackets.
                Text(clean(session.session)),
                state(session.state),
                number(row.rate * 8, "bit/s"),
                number(session.bytes),
                duration(session.age_s),
            ]
            if width >= 110:
                cells.append(clean(session.policy or "-"))
            made.add_row(*cells, style="bold" if index == chosen else "")
        hidden = len(self.rows) - rows
        more = f", {hidden} more" if hidden > 0 else ""
        return Group(_heading(f"sessions by {self.sort}{more}"), made)

    def _chain(self) -> RenderableType:
        assert self.now is not None
        if not self.rows:
            return Group(_heading("chain"), Text("no sessions", style="dim"))
        session = self.rows[self._index()].session
        stop = chain.stop_of(clean(self.now.status.name), session)
        lines = [Text(clean(chain.line([stop])), style="cyan", no_wrap=True, overflow="ellipsis")]
        rows = [
            f"  {side:<6}{clean(subsession)}  {clean(peer)}"
            for side, subsession, peer in (
                ("left", stop.left, stop.left_peer),
                ("right", stop.right, stop.right_peer),
            )
            if subsession
        ]
        if session.changes:
            running = session.changes[0]
            rows = [
                f"  old   {clean(running.old)}  {number(running.bytes_old, 'B')}",
                f"  new   {clean(running.new or 'not known yet')}  {number(running.bytes_new, 'B')}",
                "  " + ", ".join(f"{clean(name)} {duration(ago)} ago" for name, ago in running.since.items()),
            ]
        elif session.chain_id in self.phases:
            rows.append("  " + passed(self.phases[session.chain_id]))
        lines += [Text(row, no_wrap=True, overflow="ellipsis") for row in rows]
        return Group(_heading(f"chain {short_id(session.chain_id)}"), *lines)

    def _drops(self, rows: int) -> RenderableType:
        assert self.now is not None
        made = Table.grid(padding=(0, 2), expand=True)
        made.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        made.add_column(justify="right", no_wrap=True)
        made.add_column(justify="right", no_wrap=True)
        counted = sorted(self.now.status.drops.items(), key=lambda item: (-item[1], item[0]))
        for reason, count in [item for item in counted if item[1]][:rows]:
            made.add_row(clean(reason), number(count), number(self.drop_rates.get(reason, 0.0), "/s"))
        return Group(_heading("drops"), made if made.row_count else Text("none", style="dim"))

    def _peers(self, rows: int) -> RenderableType:
        assert self.now is not None
        made = Table.grid(padding=(0, 2))
        for peer in self.now.peers[:rows]:
            made.add_row(
                clean(peer.name), state(peer.state), clean(peer.mtu or ""), clean(peer.address or "")
            )
        hidden = len(self.now.peers) - rows
        more = f", {hidden} more" if hidden > 0 else ""
        return Group(_heading(f"peers{more}"), made if made.row_count else Text("none", style="dim"))

    def _events(self, rows: int) -> RenderableType:
        lines = [event(said) for said in list(self.events)[-rows:]]
        for one in lines:
            one.no_wrap, one.overflow = True, "ellipsis"
        return Group(_heading("events"), *(lines or [Text("none yet", style="dim")]))

    def _footer(self) -> RenderableType:
        return Text("q quit   ↑↓ select   s sort", style="dim", no_wrap=True)


def passed(phases: Sequence[tuple[str, str]]) -> str:
    """Say how a change went: its phases, each with the milliseconds since the first."""
    began = datetime.fromisoformat(phases[0][1])
    after = [(phase, (datetime.fromisoformat(at) - began).total_seconds()) for phase, at in phases]
    return "changed: " + ", ".join(f"{clean(phase)} {seconds * 1000:.0f}ms" for phase, seconds in after)


def _heading(title: str) -> Rule:
    return Rule(Text(title, style="bold"), align="left", style="dim", characters="─")


def _key(session: Session) -> str:
    return f"{session.chain_id} {session.session}"
