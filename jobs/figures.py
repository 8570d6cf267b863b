"""Draws the figures of the README and of docs/performance.md from results of `hpcgnn bench`.

    python jobs/figures.py FOLDER FILE.json...

FILE.json: of `bench epoch` (as many as there are) and of one `bench scale`, which trains on 1, 2
and more ranks. Writes FOLDER/scaling.svg and epochs.svg, each where there is something to draw, and
replaces its own earlier ones only. docs/performance.md says what made those in docs/figures.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcgnn.bench.draw import COLOURS, OTHERS, OURS, graph_of, new_figure, tidy
from hpcgnn.bench.output import Outputs, save
from hpcgnn.errors import HpcgnnError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Content = dict[str, Any]
PEERS = {"DGL": COLOURS[1], "PyG CSR": COLOURS[2], "PyG edge_index": COLOURS[3]}


def scaling(scale: Content, epochs: list[Content]) -> Figure:
    """Draw the largest rank's memory over P, loss curves, and below their differences."""
    figure = new_figure(wide=9.0, high=4.0)[0]
    figure.clear()
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 2))
    memory(figure.add_subplot(grid[:, 0]), scale, epochs)
    upper = figure.add_subplot(grid[0, 1])
    losses(upper, figure.add_subplot(grid[1, 1], sharex=upper), scale)
    return figure


def memory(axes: Axes, scale: Content, epochs: list[Content]) -> None:
    """Draw the largest rank's peak, and those of peers on the same graph as lines."""
    tidy(axes)
    ranks, peaks = zip(
        *((step["layout"]["ranks"], step["rank_bytes"] / 1e9) for step in whole(scale)), strict=True
    )
    ideal = [peaks[0] * ranks[0] / count for count in ranks]
    axes.plot(ranks, peaks, marker="o", color=OURS, label="hpcgnn, largest rank")
    axes.plot(ranks, ideal, linestyle="--", color=OTHERS, label="1/P of the first")
    for count, peak in zip(ranks, peaks, strict=True):
        axes.annotate(
            f"{1e3 * peak:.0f} MB",
            (count, peak),
            xytext=(7, 1),
            textcoords="offset points",
            fontsize=8,
        )
    graph = scale["steps"][0]["graph"]
    for row in peers_on(graph, scale["model"], epochs):
        name = short(row["name"])
        label = f"{name}, one process"
        axes.axhline(row["peak_bytes"] / 1e9, color=PEERS[name], linewidth=1.4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, list(map(str, ranks)))
    axes.set_xlim(0.9 * ranks[0], 1.45 * ranks[-1])
    logarithmic(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend
    axes.set_xlabel("ranks P")
    axes.set_ylabel("peak memory above imports, GB")
    axes.set_title(named(scale["model"], graph), loc="left", fontsize=9)
    axes.legend(
        frameon=False, fontsize=8, loc="upper right", ncols=2, columnspacing=1, handlelength=1.4
    )


def peers_on(graph: Content, model: str, epochs: list[Content]) -> list[Content]:
    """Return rows of peers that trained this model on a graph of this size, ordered as PEERS."""
    rows = {
        short(row["name"]): row
        for one in epochs
        if one["model"] == model and one["graph"] == graph
        for row in one["rows"]
    }
    return [rows[name] for name in PEERS if name in rows and rows[name]["peak_bytes"]]


def beside_peers(epochs: list[Content]) -> Figure:
    """Draw medians of an epoch with floors as lines, and below the memory of the whole job."""
    figure = new_figure(wide=9.0, high=5.6)[0]
    figure.clear()
    upper, lower = figure.subplots(2, 1, sharex=True)
    grouped(upper, epochs, "seconds", 1.0, floor=True)
    upper.set_ylabel("seconds per epoch")
    upper.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    upper.set_ylim(top=6 * upper.get_ylim()[1])
    grouped(lower, epochs, "peak_bytes", 1e-9)
    lower.set_ylabel("peak of the whole job, GB")
    return figure


def grouped(
    axes: Axes, epochs: list[Content], value: str, unit: float, floor: bool = False
) -> None:
    """Draw a group of bars per measurement, one per contender, on a logarithmic axis."""
    tidy(axes)
    names = list(dict.fromkeys(short(row["name"]) for one in epochs for row in one["rows"]))
    wide = 0.8 / len(names)
    lowest = min(v for one in epochs for row in one["rows"] if (v := number(row, value, unit)))
    own = iter((OURS, COLOURS[5]))
    for place, name in enumerate(names):
        colour = PEERS.get(name) or next(own, OTHERS)
        at, high, missing = [], [], []
        for group, one in enumerate(epochs):
            x = group + (place - (len(names) - 1) / 2) * wide
            row = next((row for row in one["rows"] if short(row["name"]) == name), None)
            shown = None if row is None else number(row, value, unit)
            if shown:
                at.append(x)
                high.append(shown)
            elif row is not None and "out of memory" in (row["problem"] or ""):
                missing.append(x)
        axes.bar(at, high, width=0.92 * wide, color=colour, label=name)
        for x in missing:
            axes.text(x, lowest, "out of memory", rotation=90, fontsize=7, ha="center", va="bottom")
    if floor:
        for group, one in enumerate(epochs):
            ends = [group - 0.4, group + 0.4]
            label = "floor" if group == 0 else None
            axes.plot(ends, [one["floor"]["seconds"]] * 2, color="black", linewidth=1, label=label)
    logarithmic(axes)
    axes.set_xticks(range(len(epochs)), [group_name(one) for one in epochs], fontsize=7)
    axes.grid(visible=False, axis="x")


def logarithmic(axes: Axes) -> None:
    """Make a logarithmic y axis with the numbers 1, 2, 5, 10 and so on."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def losses(upper: Axes, lower: Axes, scale: Content) -> None:
    """Draw curves of all numbers of ranks, and below the difference of each from the first."""
    steps = whole(scale)
    first = steps[0]["losses"]
    for place, step in enumerate(steps):
        epochs = range(1, len(step["losses"]) + 1)
        label = f"P = {step['layout']['ranks']}"
        # Thick below thin lines, so that all of them can be seen.
        width = 1.4 + 2.6 * (len(steps) - 1 - place)
        upper.plot(epochs, step["losses"], color=COLOURS[place], linewidth=width, label=label)
        if place:
            off = [abs(a - b) or math.nan for a, b in zip(step["losses"], first, strict=True)]
            label += f" from P = {steps[0]['layout']['ranks']}"
            lower.plot(epochs, off, color=COLOURS[place], marker=".", label=label)
    upper.set_ylabel("training loss")
    upper.set_ylim(bottom=0)
    lower.set_ylabel("difference\nof the loss")
    if any(step["losses"] != first for step in steps):
        lower.set_yscale("log")
    lower.set_xlabel("epoch")
    lower.xaxis.get_major_locator().set_params(integer=True)
    upper.tick_params(labelbottom=False)
    for each in (upper, lower):
        tidy(each)
        each.legend(frameon=False, fontsize=8)


def whole(scale: Content) -> list[Content]:
    return [step for step in scale["steps"] if step["problem"] is None]


def number(row: Content, value: str, unit: float) -> float | None:
    found = row[value]
    if isinstance(found, dict):
        found = found["median"]
    return None if found is None else found * unit


def short(name: str) -> str:
    """Return names such as `hpcgnn, 2 ranks x 1 thread` and `PyG CSR`, without releases."""
    return " ".join(
        word for word in name.split(" ") if not word.replace(".", "").isdigit() or "." not in word
    )


def named(model: str, graph: Content) -> str:
    return f"{model}, {graph['nodes']:,} nodes, {graph['edges'] / 1e6:.2g} million edges"


def group_name(one: Content) -> str:
    return f"{one['model']}\n{graph_of(one).replace(', ', chr(10))}"


def main(folder: Path, files: list[Path]) -> int:
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    epochs = [content for content in contents if content["what"] == "epoch"]
    scales = [content for content in contents if content["what"] == "scale"]
    figures = {}
    if scales:
        figures["scaling"] = scaling(scales[0], epochs)
    if epochs:
        figures["epochs"] = beside_peers(epochs)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {folder / f"{name}.svg": figure for name, figure in figures.items()}
    for path in drawn:
        Outputs(None, path, force=True).check()
    for path, figure in drawn.items():
        save(figure, path)
        print(path)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), list(map(Path, sys.argv[2:]))))
    except HpcgnnError as error:
        sys.exit(f"figures.py: error: {error}")
