"""Tables and plots of the bench: every figure beside its ratio to the first row."""

from __future__ import annotations

import statistics
from operator import truediv
from pathlib import Path
from typing import Final

Figures = dict[str, float]


class Turns(Figures):
    """Medians of what was measured in turns; ratios: the medians of the ratios to the first row, turn by turn.

    A machine that is slower for a minute is so for the rows of a turn alike: what it does to the ratio of medians of
    few turns, it does not do to these.
    """

    def __init__(self, turns: dict[str, list[float]], first: dict[str, list[float]]) -> None:
        super().__init__({column: statistics.median(values) for column, values in turns.items()})
        self.ratios: dict[str, float] = {
            column: statistics.median(map(truediv, values, first[column]))
            for column, values in turns.items()
            if len(values) == len(first.get(column, ())) and all(first[column])
        }


def ratio(figures: Figures, column: str, first: Figures) -> float | None:
    """A figure by that of the first row; None if that is zero."""
    if isinstance(figures, Turns) and column in figures.ratios:
        return figures.ratios[column]
    return figures[column] / first[column] if first[column] else None


def table(name: str, rows: dict[str, Figures]) -> str:
    """A text table of one part of the bench; ratios are to the first row that has the column."""
    columns = list(dict.fromkeys(column for figures in rows.values() for column in figures))
    lines = [f"## {name}", "", "| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for row, figures in rows.items():
        cells = []
        for column in columns:
            if column not in figures:
                cells.append("-")
                continue
            first = next(other for other in rows.values() if column in other)
            value = figures[column]
            by_first = None if figures is first else ratio(figures, column, first)
            shown = f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"
            cells.append(shown if by_first is None else f"{shown} ({by_first:.2f})")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_TITLES: Final = {
    "stream_gbit_s": ("one stream", "Gbit/s, more is better"),
    "eight_streams_gbit_s": ("eight streams", "Gbit/s, more is better"),
    "stream_cpu_s_per_gb": ("CPU time a gigabyte, one stream", "seconds, less is better"),
    "eight_streams_cpu_s_per_gb": ("CPU time a gigabyte, eight streams", "seconds, less is better"),
    "keepalive_requests_s": ("requests, keepalive", "a second, more is better"),
    "keepalive_cpu_us": ("CPU time a request", "µs, less is better"),
    "keepalive_p99_ms": ("slowest request in 100", "ms, less is better"),
    "connection_each_requests_s": ("requests, a connection each", "a second, more is better"),
    "connect_p50_us": ("connect(), median", "µs, less is better"),
    "connect_p99_us": ("connect(), slowest in 100", "µs, less is better"),
    "change_ms_p50": ("a change, median", "ms"),
    "change_ms_p90": ("slowest in 10", "ms"),
    "rtt_ms": ("round trip of the anchors", "ms"),
    "beyond_two_rtt_ms": ("beyond two round trips", "ms"),
    "to_locked_ms": ("until locked", "ms"),
    "to_new_path_up_ms": ("until the new path is up", "ms"),
    "to_two_paths_ms": ("until both carry data", "ms"),
    "to_drained_ms": ("until the old one is empty", "ms"),
    "to_done_ms": ("until done", "ms"),
    "cpu_ms": ("CPU time of three agents a change", "ms"),
    "goodput_ratio_p50": ("goodput around a change, by that before, median", "ratio"),
    "goodput_ratio_least": ("least", "ratio"),
    "without_change_p50": ("the same where nothing is changed, median", "ratio"),
    "without_change_least": ("the least of that", "ratio"),
    "gbit_s": ("goodput", "Gbit/s"),
    "timeouts": ("retransmission time-outs", "number"),
    "seconds": ("until all have left", "seconds"),
    "failed": ("changes that failed", "number"),
    "cpu_ms_a_change": ("CPU time of three agents for each", "ms"),
    "grown_mb": ("memory that an agent has grown by", "MB"),
    "goodput_proxied_gbit_s": ("goodput through the proxy", "Gbit/s"),
    "goodput_removed_gbit_s": ("after it has left all sessions", "Gbit/s"),
    "goodput_without_proxy_gbit_s": ("the same agents without any proxy", "Gbit/s"),
    "ratio_removed": ("after, by without", "ratio"),
    "removal_ms_p50": ("a removal, median", "ms"),
    "removal_ms_most": ("slowest", "ms"),
    "proxy_cpu_percent": ("CPU of the proxy before", "percent of a core"),
    "proxy_cpu_percent_removed": ("CPU of the proxy after", "percent of a core"),
    "load": ("load average", "others included"),
}
_COLOURS: Final = {
    "forwarding": "#7a8a99",
    "dysco, ebpf": "#0b4fb3",
    "dysco, tun": "#3f8cf0",
    "dysco, tun without offload": "#a5cdfb",
    "HAProxy": "#d9822b",
}


BEGIN: Final = "<!-- figures: made by tools/bench --page -->"
END: Final = "<!-- end of figures -->"
_PARTS: Final = {
    "chain": "Through one middlebox host",
    "three": "Through three middlebox hosts",
    "unchained": "Traffic that no policy matches",
    "packets": "What the programs cost a packet",
    "sessions": "Many established sessions",
    "setups": "Chain set-ups",
    "reconfigure": "Changes of live chains",
    "removed": "After a middlebox or a proxy has left",
    "proxy": "A proxy that leaves",
}


def page(path: Path, results: dict[str, dict[str, Figures]], about: list[str]) -> None:
    """Put tables of figures, with lines about where they come from, into the place that a page has for them.

    Parts that were not measured now stay as they are. Raises ValueError if the page has no such place.
    """
    text = path.read_text()
    before, found, rest = text.partition(BEGIN)
    if not found or END not in rest:
        raise ValueError(f"{path} has no place for figures")
    old, _, rest = rest.partition(END)
    parts: dict[str, str] = {}
    for part in old.split("\n### ")[1:]:
        title, _, body = part.partition("\n")
        parts[title] = body.strip()
    for name, rows in results.items():
        parts[_PARTS.get(name, name)] = "\n\n".join(["\n".join(about), *_page_tables(rows)])
    body = "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())
    path.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{rest}")


def _page_tables(rows: dict[str, Figures]) -> list[str]:
    """One table if all rows have columns in common, with ratios; else one for rows of each kind, without."""
    kinds: dict[tuple[str, ...], dict[str, Figures]] = {}
    for name, figures in rows.items():
        kinds.setdefault(tuple(figures), {})[name] = figures
    if set.intersection(*(set(kind) for kind in kinds)) - {"load"}:
        columns = list(dict.fromkeys(column for figures in rows.values() for column in figures))
        return [_page_table(columns, rows, compare=True)]
    return [_page_table(list(columns), some, compare=False) for columns, some in kinds.items()]


def _page_table(columns: list[str], rows: dict[str, Figures], *, compare: bool) -> str:
    heads = [_head(column) for column in columns]
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(columns)]
    for row, figures in rows.items():
        cells = []
        for column in columns:
            first = next(other for other in rows.values() if column in other)
            compared = compare and figures is not first and column in figures
            cells.append(_cell(figures.get(column), ratio(figures, column, first) if compared else None))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _head(column: str) -> str:
    if column not in _TITLES:
        return column.replace("_", " ")
    title, unit = _TITLES[column]
    return f"{title}, {unit.partition(',')[0]}"


def _cell(value: float | None, by_first: float | None) -> str:
    if value is None:
        return "-"
    shown = f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
    return shown if by_first is None else f"{shown} (×{by_first:.2f})"


def plot(rows: dict[str, Figures], path: Path) -> None:
    """Draw each column of the chain's table as bars, with ratios to the first row; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(rows)
    columns = list(rows[names[0]])
    width = (len(columns) + 1) // 2
    figure, axes = pyplot.subplots(2, width, figsize=(3.6 * width, 7), sharey=True, constrained_layout=True)
    for axis, column in zip(axes.flat, columns, strict=False):
        values = [rows[name][column] for name in names]
        bars = axis.barh(names, values, color=[_COLOURS.get(name, "#7a8a99") for name in names], height=0.7)
        ratios = [ratio(rows[name], column, rows[names[0]]) or 0.0 for name in names]
        labels = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values]
        axis.bar_label(
            bars, [labels[0], *(f"{one}  (×{beside:.2f})" for one, beside in zip(labels[1:], ratios[1:], strict=True))],
            padding=4, fontsize=9,
        )  # fmt: skip
        title, unit = _TITLES.get(column, (column, ""))
        axis.set_title(f"{title}\n", loc="left", fontsize=11, fontweight="bold")
        axis.text(0, 1.02, unit, transform=axis.transAxes, fontsize=9, color="#57606a")
        axis.set_xlim(0, max(values) * 1.6 or 1)  # room for the labels
        axis.xaxis.set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    axes.flat[0].invert_yaxis()  # which all share
    for axis in axes.flat[len(columns) :]:
        axis.axis("off")
    figure.suptitle(
        "Through one middlebox host; in brackets the ratio to plain kernel forwarding", fontsize=13
    )
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
