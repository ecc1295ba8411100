"""Curves side by side, on double logarithmic axes if not told otherwise."""

from collections.abc import Mapping, Sequence
from pathlib import Path

Line = tuple[Sequence[float], Sequence[float]]  # x and y
Lines = Mapping[str, Line]  # by label
DASHED = ("bare", "float32")  # how labels of limits and references begin


def curves(
    path: Path, title: str, x_label: str, panels: Mapping[str, Lines], log: bool = True
) -> None:
    """Save one picture with a panel for each y-axis, by its label."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import EngFormatter, LogFormatter, NullLocator

    layout = ConstrainedLayoutEngine(w_pad=0.1)
    figure = Figure(figsize=(max(6.4, 4.4 * len(panels)), 4.6), layout=layout)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    handles = {}
    for axes, (y_label, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for label, (x, y) in lines.items():
            style = "--" if label.startswith(DASHED) else "-"
            # a label has one colour in all panels
            look = {"linestyle": style, "color": f"C{labels.index(label)}", "marker": "o"}
            handles[label] = axes.plot(x, y, **look, markersize=4)[0]
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
        if not log:
            continue
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(sorted({value for x, _ in lines.values() for value in x}))
        axes.xaxis.set(major_formatter=EngFormatter(sep=""), minor_locator=NullLocator())
        minor = LogFormatter(minor_thresholds=(1.5, 0.5))  # only where the axis is short
        axes.yaxis.set(major_formatter="{x:g}", minor_formatter=minor)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3 * len(panels))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
