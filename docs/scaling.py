"""Draws the figure of jobs/scaling.sh from its runs: `python docs/scaling.py RUNS OUT.svg`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8d5a97")
WIDTH, HEIGHT, LEFT, TOP, WIDE, HIGH = 760, 300, 60, 40, 280, 200


def main(runs: Path, out: Path) -> None:
    found = sorted((int(path.name[1:]), path) for path in runs.glob("p[0-9]*") if path.is_dir())
    memory = {ranks: megabytes((path / "log").read_text()) for ranks, path in found}
    losses = {ranks: curve(path / "metrics.jsonl") for ranks, path in found}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *bars(memory),
        *lines(losses, LEFT + WIDE + 100),
        "</svg>",
    ]
    out.write_text("\n".join(parts) + "\n", encoding="utf-8")
    for ranks, size in memory.items():
        last = losses[ranks][-1]
        print(f"P={ranks}: {size:.1f} MB on the largest rank, loss {last:.6f} at the end")
    first = losses[found[0][0]]
    spread = max(abs(a - b) for curve in losses.values() for a, b in zip(first, curve, strict=True))
    print(f"largest difference between the curves: {spread:.1e}; {out}")


def megabytes(log: str) -> float:
    """Peak above imports of the largest rank, as `hpcgnn train` prints it."""
    found = re.search(r"peak memory above imports: .* to ([\d.]+) (kB|MB|GB) per rank", log)
    if found is None:
        raise SystemExit("the log has no line on peak memory: the run did not finish")
    return float(found.group(1)) * {"kB": 1e-3, "MB": 1, "GB": 1e3}[found.group(2)]


def curve(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def bars(memory: dict[int, float]) -> list[str]:
    most = max(memory.values()) * 1.15
    step = WIDE / len(memory)
    parts = frame(LEFT, "peak memory of the largest rank, MB above imports")
    for i, (ranks, size) in enumerate(memory.items()):
        high = HIGH * size / most
        x, y = LEFT + step * (i + 0.2), TOP + HIGH - high
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{0.6 * step:.1f}" height="{high:.1f}" '
            f'fill="{COLOURS[i]}"/>'
        )
        parts.append(text(x + 0.3 * step, y - 5, f"{size:.0f}"))
        parts.append(text(x + 0.3 * step, TOP + HIGH + 18, f"P = {ranks}"))
    return parts


def lines(losses: dict[int, list[float]], left: float) -> list[str]:
    top = max(max(values) for values in losses.values()) * 1.05
    epochs = max(map(len, losses.values()))
    parts = frame(left, "training loss by epoch (the curves lie on each other)")
    for i, (ranks, values) in enumerate(losses.items()):
        points = " ".join(
            f"{left + WIDE * k / max(1, epochs - 1):.1f},{TOP + HIGH * (1 - loss / top):.1f}"
            for k, loss in enumerate(values)
        )
        # Thick below thin, so that all of them can be seen.
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[i]}" '
            f'stroke-width="{1.5 + 3 * (len(losses) - 1 - i)}"/>'
        )
        parts.append(
            f'<text x="{left + WIDE - 60}" y="{TOP + 20 + 16 * i}" fill="{COLOURS[i]}">'
            f"P = {ranks}</text>"
        )
    for share in (0.0, 0.5, 1.0):
        y = TOP + HIGH * (1 - share)
        parts.append(text(left - 20, y + 4, f"{share * top:.1f}"))
    parts += [text(left, TOP + HIGH + 18, "1"), text(left + WIDE, TOP + HIGH + 18, str(epochs))]
    return parts


def frame(left: float, title: str) -> list[str]:
    return [
        text(left + WIDE / 2, TOP - 18, title),
        f'<path d="M{left} {TOP} V{TOP + HIGH} H{left + WIDE}" fill="none" stroke="#444"/>',
    ]


def text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="#222">{words}</text>'


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
