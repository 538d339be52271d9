"""A pilot's tables joined without a line of the program, to compare its figures with."""

from __future__ import annotations

import csv
from datetime import date, timedelta
from pathlib import Path
from typing import Any


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def by_hand(folder: Path) -> list[dict[str, Any]]:
    """Cases of `scores.csv` and `read.csv` in `folder`, joined by accession."""
    said: dict[str, list[int]] = {}
    for row in rows_of(folder / "read.csv"):
        if row["reading"]:
            positive = row["reading"] in ("1", "PNEUMONIA")
            said.setdefault(row["accession"], []).append(int(positive))
    images: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(folder / "scores.csv"):
        if row["accession"]:
            images.setdefault(row["accession"], []).append(row)
    cases = []
    for accession, rows in images.items():
        scored = [row for row in rows if row["probability"]]
        best = max(scored, key=lambda row: float(row["probability"]), default=rows[0])
        votes = said.get(accession, [])
        share = sum(votes) / len(votes) if votes else None
        day = date.fromisoformat(best["study_date"])
        cases.append(
            {
                "accession": accession,
                "score": float(best["probability"]) if best["probability"] else None,
                "reason": best["reason"],
                "read": accession in said,
                "label": None if share in (None, 0.5) else int(share > 0.5),
                "week": day - timedelta(days=day.weekday()),
                "patient": best["patient"],
            }
        )
    return cases
