"""Plots of the results of `hpcgnn bench`, made from its JSON files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcgnn.bench.output import import_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
OURS, OTHERS = COLOURS[0], COLOURS[6]


def new_figure(columns: int = 1, *, wide: float = 7.2, high: float = 3.2) -> tuple[Figure, Any]:
    """Return a figure with axes side by side."""
    import_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, high), layout="constrained")
    axes = figure.subplots(1, columns)
    for each in axes if columns > 1 else [axes]:
        tidy(each)
    return figure, axes


def tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def kernels(content: dict[str, Any]) -> Figure:
    """Plot the milliseconds of each operation by implementation."""
    rows = [row for row in content["rows"] if row["seconds"] is not None]
    figure, axes = new_figure(high=1.2 + 0.28 * len(rows))
    names = [f"{row['operation']}: {row['implementation']}" for row in rows]
    colours = [OURS if row["implementation"] == "hpcgnn" else OTHERS for row in rows]
    bars(axes, names, [1e3 * row["seconds"] for row in rows], colours)
    axes.set_xlabel("milliseconds")
    return figure


def epochs(content: dict[str, Any]) -> Figure:
    """Plot seconds per epoch and peak memory of each contender, as bars."""
    rows = content["rows"]
    figure, (left, right) = new_figure(2, wide=9.0, high=1.3 + 0.38 * len(rows))
    names = [row["name"] for row in rows]
    colours = [OURS if name.startswith("hpcgnn") else OTHERS for name in names]
    left.set_title(f"{content['model']} on {graph_of(content)}", loc="left", fontsize=10)
    values = [None if row["seconds"] is None else row["seconds"]["median"] for row in rows]
    problems = [row["problem"] for row in rows]
    bars(left, names, values, colours, problems)
    for place, row in enumerate(rows):
        if row["seconds"] is not None:
            ends = [row["seconds"]["least"], row["seconds"]["most"]]
            left.plot(ends, [place, place], color="black", linewidth=1)
    left.axvline(content["floor"]["seconds"], color="black", linestyle="--", linewidth=1)
    left.set_xlabel("seconds per epoch (dashed: floor)")
    bars(
        right,
        names,
        [None if r["peak_bytes"] is None else r["peak_bytes"] / 1e9 for r in rows],
        colours,
    )
    right.set_yticklabels([])
    right.set_xlabel("peak GB of the whole job, above imports")
    return figure


def ring(content: dict[str, Any]) -> Figure:
    """Plot rates and overlap by message size."""
    lanes = content["lanes"]
    figure, (left, right) = new_figure(2, wide=9.0)
    sizes = [lane["message_bytes"] / 1024 for lane in lanes]
    names = {"ping_pong": "MPI, one way", "both_ways": "MPI, both ways", "ring": "ring"}
    for (name, label), colour in zip(names.items(), COLOURS[6::-1], strict=False):
        colour = OURS if name == "ring" else colour
        rates = [lane[name] / 1e9 for lane in lanes]
        left.plot(sizes, rates, marker="o", color=colour, label=label)
    left.set_ylabel("GB/s into a rank")
    left.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=8)
    right.plot(sizes, [100 * lane["overlap"] for lane in lanes], marker="o", color=OURS)
    right.set_ylabel("% hidden of the shorter of messages and work")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("KiB of a message")
    return figure


def scale(content: dict[str, Any]) -> Figure:
    """Plot seconds and memory by number of ranks, with dashed ideals."""
    steps = [step for step in content["steps"] if step["seconds"] is not None]
    figure, (left, right) = new_figure(2, wide=9.0)
    ranks = [step["layout"]["ranks"] for step in steps]
    left.set_title(f"{content['kind']} scaling, {content['model']}", loc="left", fontsize=10)
    left.plot(ranks, [step["seconds"]["median"] for step in steps], marker="o", color=OURS)
    left.plot(ranks, [step["ideal"] for step in steps], linestyle="--", color=OTHERS)
    left.set_ylabel("seconds per epoch (dashed: ideal)")
    right.plot(ranks, [step["rank_bytes"] / 1e9 for step in steps], marker="o", color=OURS)
    right.plot(ranks, [step["ideal_bytes"] / 1e9 for step in steps], linestyle="--", color=OTHERS)
    right.set_ylabel("GB of the largest rank (dashed: ideal)")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, list(map(str, ranks)))
        axes.set_xlabel("ranks")
        axes.set_ylim(bottom=0)
    return figure


def accuracy(content: dict[str, Any]) -> Figure:
    """Plot validation accuracy over seconds of training."""
    figure, axes = new_figure()
    axes.set_title(f"{content['model']} on {graph_of(content)}", loc="left", fontsize=10)
    for race, colour in zip(content["races"], COLOURS, strict=False):
        if race["curve"]:
            seconds, scores = zip(*race["curve"], strict=True)
            shown = [100 * score for score in scores]
            axes.plot(seconds, shown, marker=".", color=colour, label=race["name"])
    axes.axhline(100 * content["target"], color="black", linestyle="--", linewidth=1)
    axes.set_xlabel("seconds of training, without evaluations")
    axes.set_ylabel("validation accuracy, %")
    axes.legend(frameon=False, fontsize=8)
    return figure


def graph_of(content: dict[str, Any]) -> str:
    graph = content["graph"]
    return f"{graph['nodes']:,} nodes, {graph['edges']:,} edges"


def bars(
    axes: Axes,
    names: list[str],
    values: list[float | None],
    colours: list[str],
    problems: list[str | None] | None = None,
) -> None:
    """Draw bars from the top down, each with its value, or the reason why it has none."""
    places = list(range(len(names)))
    axes.barh(places, [value or 0.0 for value in values], color=colours, height=0.65)
    most = max((value for value in values if value is not None), default=1.0)
    for place, value in zip(places, values, strict=True):
        why = problems[place] if problems else None
        text = (why or "") if value is None else f"{value:.3g}"
        shown = axes.text((value or 0.0) + 0.01 * most, place, f" {text}", va="center", fontsize=8)
        shown.set_in_layout(False)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * most)
    axes.grid(visible=False, axis="y")
