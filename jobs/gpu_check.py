"""Prints the measurements of the parts of jobs/gpu_check.sh, a line each.

python jobs/gpu_check.py FOLDER PART...
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path


def lines(folder: Path, parts: list[str]) -> Iterator[str]:
    """The card; kernels by width, with the share of a copy's speed; epochs by model.

    Those of another checkout are marked. An incomplete file, of a part that was ended, is named.
    """
    card = None
    files = [(path, [int(n) for n in re.findall("[0-9]+", path.name)]) for path in folder.iterdir()]
    for path, _ in sorted(files, key=lambda file: (file[0].name.split("-")[0], file[1], file[0])):
        if path.suffix != ".json" or path.name.split("-")[0] not in parts:
            continue
        try:
            found = json.loads(path.read_text())
        except ValueError:
            yield f"{path.name} is incomplete"
            continue
        if found.get("card") and found["card"] != card:
            card = found["card"]
            yield card
        where = "  (BASE)" if path.stem.endswith("-base") else ""
        for row in found["rows"]:
            if found["what"] == "kernels":
                share = "" if row["share"] is None else f"{row['share']:6.0%} of a copy"
                yield f"{row['operation']:44s}{_milliseconds(row['seconds'])}{share}{where}"
            else:
                median = None if row["seconds"] is None else row["seconds"]["median"]
                peak = row["peak_bytes"]
                peak = "" if peak is None else f"{peak / 1e9:8.2f} GB"
                what = f"an epoch of {found['model']}, {found['graph']['nodes']:,} nodes"
                yield f"{what:44s}{_milliseconds(median)}{peak}{where}"


def _milliseconds(seconds: float | None) -> str:
    return "         none" if seconds is None else f"{1e3 * seconds:10.2f} ms"


if __name__ == "__main__":
    for line in lines(Path(sys.argv[1]), sys.argv[2:]):
        print(line)
