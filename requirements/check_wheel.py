"""Check what `make release` built: names in the wheel, and rows of a prediction made with it.

    python requirements/check_wheel.py DIST [ROWS.csv]

DIST holds one wheel and one sdist. ROWS.csv is a table of `predict`. Imports the standard library
only.
"""

from __future__ import annotations

import csv
import sys
import zipfile
from pathlib import Path

NEEDED = (
    "pneumoscope/py.typed",
    "pneumoscope/models/default/bundle.json",
    "pneumoscope/models/default/model.keras",
    "pneumoscope/report/templates/base.html.j2",
    "pneumoscope/delivery/web/index.html",
)


def wheel_problems(names: list[str]) -> list[str]:
    """What is wrong with the names of a wheel's members, as sentences."""
    allowed = ("pneumoscope/", "pneumoscope-")
    strays = sorted({name.split("/")[0] for name in names if not name.startswith(allowed)})
    found = [f"found {name}, expected only the package and its metadata" for name in strays]
    found += [f"{name} is missing" for name in NEEDED if name not in names]
    found += [f"found {name}, which is compiled" for name in names if name.endswith(".pyc")]
    return found


def row_problems(rows: list[dict[str, str]]) -> list[str]:
    """What is wrong with rows of predictions of good images, as sentences."""
    if not rows:
        return ["found no row, expected one per image"]
    return [
        f"{row['path']}: found status {row['status']} ({row['reason']}), expected ok"
        for row in rows
        if row["status"] != "ok" or not 0 <= float(row["probability"]) <= 1
    ]


def main(arguments: list[str]) -> int:
    """Check what is given; 1 if anything is wrong."""
    dist = Path(arguments[0])
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        problems = wheel_problems(archive.namelist())
    if len(arguments) > 1:
        with Path(arguments[1]).open(encoding="utf-8", newline="") as stream:
            problems += row_problems(list(csv.DictReader(stream)))
    for problem in problems:
        sys.stderr.write(f"{wheel.name}: {problem}\n")
    if not problems:
        sys.stdout.write(f"{wheel.name} and {sdist.name}: checked\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
