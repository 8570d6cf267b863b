"""One HTML page about one or several runs, and its figures, as files in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from hpcgnn.errors import InputError, OutputError, printable
from hpcgnn.report import summary
from hpcgnn.report.figures import SIGN as FIGURE_SIGN
from hpcgnn.report.figures import Drawing, draw
from hpcgnn.report.run import RunFiles, read_quality
from hpcgnn.report.summary import as_text, metric_of, summarise
from hpcgnn.storage.write import atomic
from hpcgnn.train.journal import check_regular
from hpcgnn.version import __version__

# Marks a page as ours, so that it may be replaced.
SIGN = '<meta name="generator" content="hpcgnn report'
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #e4e4e4; border-radius: 6px; padding: .4rem;
         overflow-x: auto; }
figure svg { width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #ececec;
         vertical-align: top; overflow-wrap: break-word; }
th { font-weight: 600; } .scroll { overflow-x: auto; } .faint { color: #666; }
@media (max-width: 32rem) {
  .figures { grid-template-columns: minmax(0, 1fr); }
  figure svg { min-width: 27rem; } /* their words stay large enough to be read */
}
@media (max-width: 48rem) { /* a row of many columns as a list of its own */
  .wide tr:first-child { display: none; }
  .wide tr { display: block; padding: .5rem 0; border-bottom: 1px solid #ececec; }
  .wide td { display: block; border: 0; padding: .1rem 0; overflow-wrap: anywhere; }
  .wide td::before { content: attr(data-head) ": "; font-weight: 600; }
}
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #1a1a1a; } .faint { color: #a0a0a0; }
  th, td, figure, .wide tr { border-color: #3a3a3a; }
  figure svg { filter: invert(0.9) hue-rotate(180deg); } /* light and dark change, hues stay */
}
"""
PAGE = "index.html"
_MOST_COLUMNS = 4  # side by side on a phone
_START = 400  # bytes at the start of a page or figure that contain its mark


def page(runs: Sequence[RunFiles], drawings: Iterable[Drawing]) -> str:
    """Return the HTML text of the page; all content read from files is escaped."""
    names = ", ".join(run.folder.name for run in runs)
    parts = [f"<h1>{_text(names)}</h1>"]
    if len(runs) > 1:
        parts += ["<h2>Comparison</h2>", _comparison(runs)]
    else:
        parts.append(_facts(runs[0]))
    shown = "".join(
        f'<figure id="{escape(d.name)}" role="img" aria-label="{escape(printable(d.words))}">'
        f"{d.svg()}</figure>"
        for d in drawings
    )
    parts += ["<h2>Figures</h2>", f'<div class="figures">{shown}</div>']
    for run in runs:
        title = f": {_text(run.folder.name)}" if len(runs) > 1 else ""
        parts += _sections(run, title)
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'{SIGN} {escape(__version__)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(names)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _facts(run: RunFiles) -> str:
    lines = as_text(summarise(run))[1:]
    return _rows([line.strip().partition("  ")[::2] for line in lines])


def _comparison(runs: Sequence[RunFiles]) -> str:
    reached = _table(["run", *summary.COLUMNS.values()], summary.reached(runs))
    rows = summary.differing(runs)
    if not rows:
        return f"{reached}<p>All settings are the same.</p>"
    head = ["setting", *(run.folder.name for run in runs)]
    return (
        reached
        + "<h2>Settings that differ</h2>"
        + _table(head, [[name, *values] for name, values in rows.items()])
    )


def _sections(run: RunFiles, title: str) -> Iterable[str]:
    quality = read_quality(run.starts)
    if quality:
        yield f"<h2>Partition{title}</h2>"
        yield _quality(quality)
    if run.starts:
        yield f"<h2>Starts{title}</h2>"
        columns = ["time", "from_epoch", "ranks", "hosts", "device", "releases", "graph"]
        head = [name.replace("_", " ") for name in columns]
        head[columns.index("hosts")] = "hosts (ranks)"
        yield _table(head, [[_of_start(s, name) for name in columns] for s in run.starts])
    yield f"<h2>Settings{title}</h2>"
    yield _rows(sorted(run.settings().items()))
    yield f'<p class="faint">From {_text(str(run.folder))}.</p>'


def _of_start(start: dict[str, Any], name: str) -> str:
    value = start.get(name)
    if name == "time" and isinstance(value, str):
        return value.replace("T", " ").replace("Z", " UTC")
    if name == "hosts" and isinstance(value, dict):
        return ", ".join(f"{host} ({_joined(number)})" for host, number in value.items())
    return _joined(value)


def _quality(quality: dict[str, Any]) -> str:
    """Return a table of a partition's quality, beside a random partition's if it was compared."""
    random = quality.get("random")
    random = random if isinstance(random, dict) else {}
    rows = [
        [name.replace("_", " "), quality[name], *([random.get(name, "")] if random else [])]
        for name in quality
        if name != "random" and quality[name] not in ("", [], None)
    ]
    return _table(["", "this partition", *(["a random one"] if random else [])], rows)


def _joined(value: Any) -> str:
    """Return plain text of a value from a file, with long lists cut."""
    if isinstance(value, dict):
        return ", ".join(f"{n.replace('_', ' ')} {_joined(entry)}" for n, entry in value.items())
    if isinstance(value, list):
        shown = [_joined(entry) for entry in value[:8]]
        return " ".join(shown) + (f" and {len(value) - 8} more" if len(value) > 8 else "")
    if value is None:
        return "-"
    return f"{value:,}" if type(value) is int else str(value)


def _text(value: Any) -> str:
    text = escape(printable(str(value)).replace(" %", "\u00a0%"))
    return text.replace("/", "/<wbr>")  # a path may break into the next line there


def _rows(rows: Iterable[tuple[Any, Any]]) -> str:
    cells = "".join(f"<tr><th>{_text(a)}</th><td>{_text(b)}</td></tr>" for a, b in rows)
    return f'<div class="scroll"><table>{cells}</table></div>'


def _table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    names = [str(cell) for cell in head]
    top = "".join(f"<th>{_text(name)}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-head="{escape(printable(name))}">{_text(_joined(cell))}</td>'
            for name, cell in zip(names, row, strict=False)
        )
        + "</tr>"
        for row in rows
    )
    wide = " wide" if len(names) > _MOST_COLUMNS else ""
    return f'<div class="scroll{wide}"><table><tr>{top}</tr>{body}</table></div>'


def write_report(runs: Sequence[RunFiles], out: Path, *, force: bool) -> Path:
    """Write `index.html` and a PNG per figure into the folder `out`; return the page's path.

    Args:
        out: if it ends in .html, it is the path of the page, which is written without PNG files.
        force: replace a page and figures of ours.

    Raises:
        InputError: another file has the page's name, a page exists already without `force`, or
            matplotlib is not installed.
        OutputError: a file can't be written.
    """
    alone = out.suffix.lower() in (".html", ".htm") and not out.is_dir()
    folder, target = (out.parent, out) if alone else (out, out / PAGE)
    if not alone and folder.is_symlink():
        raise InputError("is a link: choose another place with -o", file=folder)
    if not alone and folder.exists() and not folder.is_dir():
        raise InputError(
            "is not a folder: name a folder, or a page that ends in .html", file=folder
        )
    _check(target, SIGN, "page", force)
    drawings = draw(runs, metric_of(runs[0]))
    figures = {} if alone else {folder / f"{drawing.name}.png": drawing for drawing in drawings}
    for path in figures:
        _check(path, FIGURE_SIGN, "figure", force)
    absent = [path for path in (*figures, target) if not path.exists()]
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, drawing in figures.items():
            _write(path, drawing.png())
        _write(target, page(runs, drawings).encode())
    except (OSError, OutputError) as error:
        with suppress(OSError):
            for path in absent:
                path.unlink(missing_ok=True)
            if fresh:
                folder.rmdir()
        if isinstance(error, OutputError):
            raise
        at = target if alone else folder
        raise OutputError(f"can't be written: {error.strerror}", file=at) from None
    return target


def _check(path: Path, sign: str, what: str, force: bool) -> None:
    """Check that `path` is free, or with `force` holds a file of ours, which has `sign`."""
    if not check_regular(path):
        return
    if path.is_symlink():
        raise InputError("is a link: choose another place with -o", file=path)
    with path.open("rb") as file:
        ours = sign.encode() in file.read(_START)
    if not ours:
        raise InputError(
            f"exists and is not a {what} of hpcgnn report: choose another place with -o", file=path
        )
    if not force:
        raise InputError("exists already: choose another place, or use --force", file=path)


def _write(path: Path, content: bytes) -> None:
    with atomic.claim(path) as temporary:
        temporary.write_bytes(content)
        atomic.publish(temporary, path)
