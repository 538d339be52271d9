"""An evaluation's folder read back: who was answered what, at which threshold, by which model.

Comes in: a folder that `evaluate` or `train` wrote (or a run, whose `evaluation/` is meant). Goes
out: one `SavedEvaluation`. Opens none of the images.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError, UsageError
from pneumoscope.records import CLASS_NAMES


@dataclass(frozen=True, slots=True)
class SavedEvaluation:
    """What a folder holds of the images that were answered for.

    Attributes:
        folder: where it lies.
        labels: int64, (n,).
        probabilities: float64, (n,).
        patients: (n,) ids.
        splits: which splits the images are of.
        threshold: PNEUMONIA was called from here up.
        rule: how it was chosen.
        model: fingerprint of the model, `""` if the folder names none.
        model_name: what the model was called.
    """

    folder: Path
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    threshold: float
    rule: str
    model: str
    model_name: str


def read_evaluation(folder: Path) -> SavedEvaluation:
    """Read `metrics.json`, `predictions.csv` and `labels.csv`.

    Raises:
        UsageError: there is no such folder, or it holds no evaluation.
        DataError: the files are damaged, don't fit each other, or hold no answer.
    """
    for place in (folder, folder / "evaluation"):
        if (place / "metrics.json").is_file():
            folder = place
            break
    else:
        raise UsageError(
            f"{folder}: holds no metrics.json, wanted the folder of an evaluation. "
            "Make one: pneumoscope evaluate DATA --out DIR"
        )
    document = _document(folder / "metrics.json")
    predictions = _rows(folder / "predictions.csv", ("path", "status", "probability"))
    labels = _rows(folder / "labels.csv", ("path", "label", "patient", "split"))
    names = [[Path(row["path"]).name for row in rows] for rows in (predictions, labels)]
    if names[0] != names[1]:
        raise DataError(
            f"{folder}: predictions.csv ({len(names[0])} rows) and labels.csv ({len(names[1])} "
            "rows) are not of the same images in the same order. Evaluate again."
        )
    both = list(zip(predictions, labels, strict=True))
    answered = [(answer, label) for answer, label in both if answer["status"] == "ok"]
    if not answered:
        raise DataError(f"{folder}: no image has an answer. See 'reason' in predictions.csv.")
    try:
        truth = [CLASS_NAMES.index(label["label"]) for _, label in answered]
        scores = [float(answer["probability"]) for answer, _ in answered]
        threshold, model = document["threshold"], document.get("model") or {}
        return SavedEvaluation(
            folder,
            np.array(truth, np.int64),
            np.array(scores, np.float64),
            tuple(label["patient"] for _, label in answered),
            tuple(sorted({label["split"] for _, label in answered} - {""})),
            float(threshold["value"]),
            str(threshold["rule"]),
            str(model.get("fingerprint", "")),
            str(model.get("name", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder}: can't be understood ({type(error).__name__}: {error}). It is incomplete "
            "or was changed. Evaluate again."
        ) from error


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error}). Evaluate again.") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: found no JSON object. Evaluate again.")
    return document


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: can't be read ({error}). Evaluate again.") from error
    lacking = [name for row in rows[:1] for name in columns if row.get(name) is None]
    if not rows or lacking:
        found = f"no column {lacking[0]!r}" if lacking else "no row"
        raise DataError(f"{path}: found {found}, wanted {', '.join(columns)}. Evaluate again.")
    return rows
