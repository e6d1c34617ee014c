"""Tables and plots of the bench: every figure beside its ratio to the first row."""

from __future__ import annotations

from pathlib import Path
from typing import Final

Figures = dict[str, float]


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
            ratio = f" ({value / first[column]:.2f})" if first[column] and figures is not first else ""
            cells.append(f"{value:,.4g}{ratio}" if value < 10_000 else f"{value:,.0f}{ratio}")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_TITLES: Final = {
    "stream_gbit_s": ("one stream", "Gbit/s, more is better"),
    "eight_streams_gbit_s": ("eight streams", "Gbit/s, more is better"),
    "cpu_s_per_gb": ("CPU time a gigabyte", "seconds, less is better"),
    "keepalive_requests_s": ("requests, keepalive", "a second, more is better"),
    "keepalive_cpu_us": ("CPU time a request", "µs, less is better"),
    "keepalive_p99_ms": ("slowest request in 100", "ms, less is better"),
    "connection_each_requests_s": ("requests, a connection each", "a second, more is better"),
    "connect_p50_us": ("connect(), median", "µs, less is better"),
    "connect_p99_us": ("connect(), slowest in 100", "µs, less is better"),
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
}


def page(path: Path, results: dict[str, dict[str, Figures]], about: list[str]) -> None:
    """Put tables of figures, and lines about where they come from, into the place that a page has for them.

    Raises ValueError if it has none.
    """
    text = path.read_text()
    before, found, rest = text.partition(BEGIN)
    if not found or END not in rest:
        raise ValueError(f"{path} has no place for figures")
    parts = [_page_table(_PARTS.get(name, name), rows) for name, rows in results.items()]
    body = "\n".join([*about, "", *parts])
    path.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{rest.partition(END)[2]}")


def _page_table(title: str, rows: dict[str, Figures]) -> str:
    columns = list(dict.fromkeys(column for figures in rows.values() for column in figures))
    heads = [_head(column) for column in columns]
    lines = [f"### {title}", "", "| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(columns)]
    for row, figures in rows.items():
        cells = []
        for column in columns:
            first = next(other for other in rows.values() if column in other)
            cells.append(_cell(figures.get(column), None if figures is first else first[column]))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _head(column: str) -> str:
    if column not in _TITLES:
        return column.replace("_", " ")
    title, unit = _TITLES[column]
    return f"{title}, {unit.partition(',')[0]}"


def _cell(value: float | None, first: float | None) -> str:
    if value is None:
        return "-"
    shown = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{shown} (×{value / first:.2f})" if first else shown


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
        ratios = [value / values[0] if values[0] else 0.0 for value in values]
        labels = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values]
        axis.bar_label(
            bars, [labels[0], *(f"{one}  (×{ratio:.2f})" for one, ratio in zip(labels[1:], ratios[1:], strict=True))],
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
