"""Tables and plots of the bench: every figure beside its ratio to the first row."""

from __future__ import annotations

from pathlib import Path

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


def plot(rows: dict[str, Figures], path: Path) -> None:
    """Draw each column of the chain's table as bars relative to the first row; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = list(next(iter(rows.values())))
    first = next(iter(rows.values()))
    figure, axes = pyplot.subplots(2, (len(columns) + 1) // 2, figsize=(14, 7), constrained_layout=True)
    for axis, column in zip(axes.flat, columns, strict=False):
        names = list(rows)
        values = [rows[name][column] for name in names]
        bars = axis.barh(names, values, color=["#7a8a99", "#1f6feb", "#9ecbff", "#d9822b"][: len(names)])
        axis.bar_label(bars, [f"{value / first[column]:.2f}" for value in values], padding=3)
        axis.set_title(column)
        axis.invert_yaxis()
        axis.margins(x=0.2)
    for axis in axes.flat[len(columns) :]:
        axis.axis("off")
    figure.suptitle("One middlebox host; the number beside a bar is its ratio to plain kernel forwarding")
    figure.savefig(path)
