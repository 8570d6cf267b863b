"""Plots of runs, by matplotlib: each is a `Figure` that can be saved as SVG or PNG.

Colours keep their meaning in all figures, and can be told apart by the colour-blind.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from hpcgnn.errors import InputError, printable, shortened
from hpcgnn.report.run import SETS, RunFiles
from hpcgnn.report.summary import PARTS, per_epoch, per_rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: https://jfly.uni-koeln.de/color/
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
_SET_COLOURS = dict(zip(SETS, _COLOURS, strict=False))
_MOST_EPOCHS = 2000  # points of a curve; more than that many pixels show nothing
_MOST_WORDS = 6  # beside lines where runs were resumed
_ABBREVIATIONS = ("auc", "f1", "mae", "mrr", "r2", "rmse")
SIGN = "hpcgnn report"  # marks a PNG as ours, so that it may be replaced


@dataclass(frozen=True)
class Drawing:
    """A figure and its title."""

    name: str
    title: str
    figure: Figure

    @property
    def words(self) -> str:
        """The title as text."""
        return self.title.replace(r"\$", "$")

    def svg(self) -> str:
        """Return the figure as an `<svg>` element, the same bytes for the same run."""
        buffer = io.StringIO()
        matplotlib = _matplotlib()
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            self._save(buffer, format="svg", metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self._save(buffer, format="png", dpi=144, metadata={"Software": SIGN})
        return buffer.getvalue()

    def _save(self, buffer: IO[Any], **how: Any) -> None:
        with warnings.catch_warnings():  # its font lacks letters that names of runs may have
            warnings.filterwarnings("ignore", "Glyph ")
            self.figure.savefig(buffer, **how)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "the page of a report needs matplotlib: pip install matplotlib, or --text"
        ) from None
    except ValueError as error:  # such as a MPLBACKEND that it doesn't know
        raise InputError(f"matplotlib can't be loaded: {shortened(str(error))}") from None
    return matplotlib


def draw(runs: Sequence[RunFiles], metric: str) -> list[Drawing]:
    """Return all figures for which these runs have data.

    Raises:
        InputError: matplotlib is not installed.
    """
    _matplotlib()
    found = [_curves(runs, "loss", "Loss", lambda r: r["loss"], log=True)]
    found.append(_scores(runs, metric))
    found.append(_curves(runs, "learning-rate", "Learning rate", lambda r: r.get("lr")))
    for number, run in enumerate(runs):
        suffix = f"-{number + 1}" if len(runs) > 1 else ""
        found += [_time(run, suffix), _rank_seconds(run, suffix), _rank_memory(run, suffix)]
        found.append(_matrix(run, suffix))
    return [drawing for drawing in found if drawing is not None]


def _figure(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _thinned(run: RunFiles) -> list[dict[str, Any]]:
    """Return at most `_MOST_EPOCHS` of the records, and always the last one."""
    step = -(-len(run.records) // _MOST_EPOCHS)
    kept = run.records[::step]
    return kept if kept[-1] is run.records[-1] else [*kept, run.records[-1]]


def _curves(
    runs: Sequence[RunFiles],
    name: str,
    title: str,
    value: Callable[[dict[str, Any]], float | None],
    *,
    log: bool = False,
) -> Drawing | None:
    figure, axes = _figure(title)
    drawn = 0
    for number, run in enumerate(runs):
        points = [(r["epoch"], value(r)) for r in _thinned(run) if value(r) is not None]
        if points:
            x, y = zip(*points, strict=True)
            log = log and min(y) > 0
            colour, label = _COLOURS[number % 7], _plain(run.folder.name)
            axes.plot(x, y, color=colour, label=label, linewidth=1.6, marker=_mark(x))
            drawn += 1
    if not drawn:
        return None
    if log:
        _log(axes)
    _mark_resumptions(axes, runs)
    _epochs(axes)
    axes.set_ylabel(title.lower())
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=9)
    return Drawing(name, title, figure)


def _mark_resumptions(axes: Axes, runs: Sequence[RunFiles], *, low: bool = False) -> None:
    """Dotted lines where a run went on; beside each what it is, or one word for many of them.

    Args:
        low: the words stand at the bottom, where scores are not.
    """
    one = len(runs) == 1
    for number, run in enumerate(runs):
        found = run.resumptions
        worded = one and len(found) <= _MOST_WORDS
        label = None if worded or not found else "resumed" if one else f"{run.folder.name} resumed"
        for resumption in found:
            x, colour = resumption.epoch + 0.5, "#666666" if one else _COLOURS[number % 7]
            axes.axvline(x, color=colour, linewidth=0.9, linestyle=":", label=label)
            label = None
            if worded:
                axes.annotate(
                    str(resumption),
                    (x, 0 if low else 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(2, 4 if low else -2),
                    textcoords="offset points",
                    va="bottom" if low else "top",
                    rotation=90,
                    fontsize=8,
                    color=colour,
                )


def _mark(x: Sequence[int]) -> str | None:
    """Return a marker for a curve of one point, whose line would be invisible."""
    return "o" if len(x) == 1 else None


def _log(axes: Axes) -> None:
    """Use a logarithmic axis with plain numbers if the values span powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.dataLim.intervaly
    if high < 10 * low:
        return
    axes.set_yscale("log")
    # With many powers of ten, the labels of numbers between them would overlap.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _named(metric: str) -> str:
    """Return the usual spelling of a metric: macro F1, MRR, hits@10."""
    words = metric.split("_")
    return " ".join(word.upper() if word in _ABBREVIATIONS else word for word in words)


def _plain(text: str) -> str:
    """As Matplotlib shows what people have named: in one line, and `$` is no mathematics."""
    return printable(text).replace("$", r"\$")


def _scores(runs: Sequence[RunFiles], metric: str) -> Drawing | None:
    metric = _plain(_named(metric))
    title = f"{metric[:1].upper()}{metric[1:]}, "
    title += "training, validation and test" if len(runs) == 1 else "validation"
    figure, axes = _figure(title)
    drawn = 0
    for number, run in enumerate(runs):
        for kind in SETS if len(runs) == 1 else ("valid",):
            points = [(r["epoch"], r[kind]) for r in _thinned(run) if r.get(kind) is not None]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            colour = _SET_COLOURS[kind] if len(runs) == 1 else _COLOURS[number % 7]
            label = kind if len(runs) == 1 else _plain(run.folder.name)
            axes.plot(x, y, color=colour, label=label, linewidth=1.6, marker=_mark(x))
            drawn += 1
    if not drawn:
        return None
    if len(runs) == 1 and runs[0].best.get("valid") is not None:
        axes.axvline(runs[0].best["epoch"], color="#666666", linewidth=0.9, linestyle="--")
        axes.annotate(
            "best",
            (runs[0].best["epoch"], 0),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="#666666",
        )
    _mark_resumptions(axes, runs, low=True)
    _epochs(axes)
    axes.set_ylabel(metric)
    axes.legend(frameon=False, fontsize=9)
    return Drawing("scores", title, figure)


def _time(run: RunFiles, suffix: str) -> Drawing:
    title = f"Time per epoch by phase{_of(run, suffix)}"
    figure, axes = _figure(title)
    records = _thinned(run)
    epochs = [record["epoch"] for record in records]
    split = [per_epoch(record) for record in records]
    stacks = {part: [each[part] for each in split] for part in PARTS}
    stacks = {part: values for part, values in stacks.items() if any(values)}
    colours = [_COLOURS[list(PARTS).index(part)] for part in stacks]
    if len(epochs) > 1:
        labels = [PARTS[part] for part in stacks]
        axes.stackplot(epochs, *stacks.values(), labels=labels, colors=colours, step="mid", lw=0)
    else:
        low = 0.0
        for (part, values), colour in zip(stacks.items(), colours, strict=True):
            axes.bar(epochs, values, bottom=low, label=PARTS[part], color=colour, width=0.4)
            low += values[0]
    for resumption in run.resumptions:
        axes.axvline(resumption.epoch + 0.5, color="black", linewidth=0.9, linestyle=":")
    _epochs(axes)
    axes.set_ylabel("seconds, mean over ranks")
    axes.legend(fontsize=8, ncols=4, loc="upper right", framealpha=1, edgecolor="none")
    top = sorted(sum(each.values()) for each in split)
    # The slowest 2 % of the epochs may exceed the axis; a few outliers would flatten the rest.
    axes.set_ylim(0, 1.35 * top[math.ceil(0.98 * len(top)) - 1] or None)
    return Drawing(f"time{suffix}", title, figure)


def _rank_seconds(run: RunFiles, suffix: str) -> Drawing | None:
    split = per_rank(run)
    if not split:
        return None
    title = f"Seconds of each rank in epoch {run.ranks.epoch if run.ranks else 0}{_of(run, suffix)}"
    figure, axes = _figure(title)
    count = len(next(iter(split.values())))
    low = [0.0] * count
    for part, values in split.items():
        if any(values):
            colour = _COLOURS[list(PARTS).index(part)]
            wide = _wide(count)
            axes.bar(range(count), values, bottom=low, label=PARTS[part], color=colour, width=wide)
            low = [a + b for a, b in zip(low, values, strict=True)]
    axes.set_xlabel("rank")
    axes.set_ylabel("seconds")
    axes.set_ylim(0, 1.35 * max(low) or None)
    _whole_numbers(axes, count)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper right")
    return Drawing(f"rank-seconds{suffix}", title, figure)


def _rank_memory(run: RunFiles, suffix: str) -> Drawing | None:
    peaks = run.ranks.numbers.get("peak_memory_bytes") if run.ranks else None
    if not peaks:
        return None
    title = f"Peak memory of each rank{_of(run, suffix)}"
    figure, axes = _figure(title)
    high = [peak / 1e6 for peak in peaks]
    axes.bar(range(len(peaks)), high, color=_COLOURS[0], width=_wide(len(peaks)))
    axes.set_xlabel("rank")
    axes.set_ylabel("MB, imports included")
    _whole_numbers(axes, len(peaks))
    return Drawing(f"rank-memory{suffix}", title, figure)


def _matrix(run: RunFiles, suffix: str) -> Drawing | None:
    sent = run.ranks.sent_to if run.ranks else None
    if sent is None or len(sent) < 2:
        return None
    title = f"Bytes sent from rank to rank in an epoch{_of(run, suffix)}"
    figure, axes = _figure(title)
    axes.grid(visible=False)
    figure.set_layout_engine("compressed")  # keeps the matrix centred, and its colour bar beside it
    numbers = [[value / 1e6 for value in row] for row in sent]
    image = axes.imshow(numbers, cmap="Blues", vmin=0)
    figure.colorbar(image, ax=axes, label="MB")
    if len(sent) <= 8:
        most = max(max(row) for row in numbers)
        for r, row in enumerate(numbers):
            for p, value in enumerate(row):
                colour = "white" if value > 0.6 * most else "black"
                axes.text(p, r, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("to rank")
    axes.set_ylabel("from rank")
    _whole_numbers(axes, len(sent))
    axes.set_yticks(axes.get_xticks() if len(sent) <= 16 else [])
    return Drawing(f"bytes{suffix}", title, figure)


def _of(run: RunFiles, suffix: str) -> str:
    return f": {_plain(run.folder.name)}" if suffix else ""


def _wide(bars: int) -> float:
    """Return the width of the bars, narrower if they are few."""
    return min(0.8, 0.2 * bars)


def _epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    low, high = axes.get_xlim()
    if high - low < 1:  # one epoch: a single tick for its number
        middle = round((low + high) / 2)
        axes.set_xlim(middle - 0.5, middle + 0.5)
        axes.set_xticks([middle])


def _whole_numbers(axes: Axes, count: int) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator

    few = count <= 16
    locator = FixedLocator(list(range(count))) if few else MaxNLocator(integer=True, nbins=16)
    axes.xaxis.set_major_locator(locator)
    axes.set_xlim(-0.6, count - 0.4)
