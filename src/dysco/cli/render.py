"""Tables and texts from what agents tell. Pure: nothing here asks, waits, or knows the time.

What comes from other hosts (names, reasons) is shown without its control characters: a peer shall not write
on anybody's terminal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dysco.chains import Step
from dysco.cli import chain
from dysco.views import Chain, Event, Peer, Session, Status

_UNITS: Final = ("", "k", "M", "G", "T")
_SHORT_ID: Final = 8  # hexadecimal digits that tell chains apart for a person
_BARS: Final = " ▁▂▃▄▅▆▇█"
_ISO_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d(?:\.\d+)?)(?:Z|\+00:00)")
_STATE_STYLE: Final = {
    "established": "green",
    "up": "green",
    "opening": "yellow",
    "half-closed": "yellow",
    "time-wait": "dim",
    "down": "red",
}


def clean(value: object) -> str:
    """Show a value with nothing in it that a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def number(value: float, unit: str = "") -> str:
    """Show a quantity with three digits and a decimal prefix: 999, 1.23k, 45.6M."""
    step = 0
    value = float(value)
    while abs(value) >= 999.5 and step < len(_UNITS) - 1:
        value /= 1000
        step += 1
    digits = (
        f"{value:.0f}"
        if step == 0 or value >= 99.95
        else f"{value:.1f}"
        if value >= 9.995
        else f"{value:.2f}"
    )
    return f"{digits}{_UNITS[step]}{unit}"


def duration(seconds: float | None) -> str:
    """Show a time span by its two largest units: 12s, 3m07s, 2h05m, 4d03h; below a second 8ms."""
    if seconds is None:
        return "-"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{second:02d}s"
    hours, minute = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minute:02d}m"
    days, hour = divmod(hours, 24)
    return f"{days}d{hour:02d}h"


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw the last `width` values as bars of eight heights; the highest of them fills its cell."""
    shown = list(values)[-width:]
    top = max(shown, default=0)
    bars = [_BARS[min(8, -(-int(v * 8) // int(top)))] if top >= 1 else _BARS[0] for v in shown]
    return "".join(bars).rjust(width)


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """Make an empty table in our manner: no lines, columns named here flush right."""
    made = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    flush = set(right)
    for column in columns:
        made.add_column(column, justify="right" if column in flush else "left", no_wrap=True)
    return made


def sessions(said: Sequence[Session]) -> RenderableType:
    """List the sessions of one agent."""
    if not said:
        return Text("no sessions")
    numbers = ("packets", "bytes", "age")
    made = table("chain", "session", "state", "box", "left", "right", *numbers, right=numbers)
    for one in said:
        stop = chain.stop_of("", one)
        made.add_row(
            short_id(one.chain_id),
            Text(clean(one.session)),
            state(one.state),
            clean(stop.box or "-"),
            clean(stop.left_peer or "-") if stop.left else "-",
            clean(stop.right_peer or "-") if stop.right else "-",
            number(one.packets),
            number(one.bytes),
            duration(one.age_s),
        )
    return made


def short_id(chain_id: object) -> str:
    """Show the beginning of a chain's id, enough to tell chains apart."""
    return clean(chain_id)[:_SHORT_ID]


def state(word: str) -> Text:
    """Show a state in its colour."""
    shown = clean(word or "-")
    return Text(shown, style=_STATE_STYLE.get(shown, ""))


def chains(found: Sequence[Chain]) -> RenderableType:
    """Draw chains from what each agent said of them."""
    if not found:
        return Text("no chains")
    parts: list[RenderableType] = []
    for one in found:
        stops = chain.in_order([chain.stop_of(hop.agent, hop.session) for hop in one.agents])
        head = Text(f"chain {short_id(one.chain_id)}  tcp {clean(one.session)}  ", style="bold")
        parts.append(head.append_text(state(one.state)))
        whole = " ══ ".join(map(str, one.places)) or chain.line(stops)
        parts.append(Text("  " + clean(whole), style="cyan"))
        parts += [Text("  " + clean(row)) for row in chain.drawing(stops)]
        parts.append(Text())
    return Group(*parts[:-1])


def step(one: Step) -> Text:
    """Show what has happened to the change of one session in a line, and a plan in three."""
    name = short_id(one.chain_id)
    if one.kind == "plan":
        head = Text(f"chain {name}  tcp {clean(one.session)}", style="bold")
        for word, labels in (("now ", one.before), ("then", one.after)):
            head.append(f"\n  {word}  ", style="dim not bold")
            head.append(clean(" ══ ".join(labels)), style="cyan not bold")
        return head
    style = "red" if one.is_failure else "green" if one.kind == "end" else ""
    phase = f"{one.phase}." if one.kind == "end" else one.phase
    line = Text(f"  {name}  {one.after_s * 1000:8.1f} ms  ").append(clean(phase), style=style)
    if one.by:
        line.append(f"  by {clean(one.by)}")
    return line.append(f": {clean(one.reason)}") if one.reason else line


def outcomes(ends: Sequence[Step]) -> Text:
    """Count how the changes of several sessions have ended."""
    counts = Counter(one.phase for one in ends)
    return Text(
        f"{len(ends)} sessions: " + ", ".join(f"{count} {clean(phase)}" for phase, count in counts.items())
    )


def peers(said: Sequence[Peer]) -> RenderableType:
    """List the neighbours of one agent."""
    if not said:
        return Text("no peers")
    numbers = ("since", "heard", "mtu", "sessions")
    made = table("peer", "state", "address", *numbers, "why not", right=numbers)
    for one in said:
        made.add_row(
            clean(one.name),
            state(one.state),
            clean(one.address or ", ".join(one.addresses) or "-"),
            duration(one.since_s),
            duration(one.heard_s),
            clean(one.mtu or "-"),
            clean(one.sessions),
            clean((not one.up and one.last_failure) or "-"),
        )
    return made


def status(said: Status) -> RenderableType:
    """Show an agent in a line for each key."""
    shown = {}
    for key, value in said.plain().items():
        if isinstance(value, Mapping):
            text = "  ".join(f"{clean(k)}={clean(v)}" for k, v in value.items()) or "-"
        elif isinstance(value, (list, tuple)):
            text = ", ".join(map(clean, value)) or "-"
        elif key.endswith("_s"):
            key, text = key.removesuffix("_s"), duration(value)
        else:
            text = clean("-" if value is None else value)
        shown[clean(key)] = text
    width = max(map(len, shown), default=0)
    return Group(
        *(
            Text(f"{key:<{width}}  ", style="bold").append(text, style="not bold")
            for key, text in shown.items()
        )
    )


def event(said: Event) -> Text:
    """Show one event in a line: when (the time of day, UTC), what, and its fields."""
    when = clean(said.time)
    time_of_day = _ISO_TIME.fullmatch(when)
    line = Text(f"{time_of_day.group(1) if time_of_day else when}  " if when else "")
    line.append(clean(said.name), style="bold")
    for key, value in said.fields.items():
        if value is None or value == "":
            continue
        shown = short_id(value) if key == "chain_id" else clean(value)
        line.append(f"  {clean(key)}=", style="dim").append(shown)
    return line
