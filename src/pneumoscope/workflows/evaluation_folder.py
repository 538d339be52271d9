"""An evaluation's folder read back: who was answered what, at which threshold, by which model.

A folder that `evaluate` or `train` wrote (or a run, whose `evaluation/` is meant) becomes one
`SavedEvaluation`; none of the images is opened. Labels stand in predictions.csv; of folders that
older versions wrote, in labels.csv.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.score_scale import ScoreScale
from pneumoscope.records import CLASS_NAMES


@dataclass(frozen=True, slots=True)
class SavedEvaluation:
    """What a folder holds of the images that were answered for.

    Attributes:
        folder: where it lies.
        labels: int64, (n,).
        probabilities: float64, (n,); scores on another scale are brought to 0–1 by `scale`.
        patients: (n,) ids.
        names: (n,) paths, or what a table of scores calls its rows.
        splits: which splits the images are of.
        threshold: PNEUMONIA was called from here up, on the scale of `probabilities`.
        rule: how it was chosen.
        model: fingerprint of the model, `""` if the folder names none.
        model_name: what the model was called.
        scale: of the scores.
        own_threshold: the threshold in the scores' units.
        own_scores: float64, (n,), in these units.
        of_scores: whether the scores came from a file and not from a model.
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
    names: tuple[str, ...] = ()
    scale: ScoreScale = field(default_factory=ScoreScale)
    own_threshold: float = 0.0
    own_scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    of_scores: bool = False


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
    answered = [row for row in _labelled_rows(folder) if row["status"] == "ok" and row["label"]]
    if not answered:
        raise DataError(f"{folder}: no image has an answer. See 'reason' in predictions.csv.")
    try:
        truth = [CLASS_NAMES.index(row["label"]) for row in answered]
        scores = [float(row.get("score") or row["probability"]) for row in answered]
        scale = ScoreScale(**document.get("scale", {}))
        threshold, model = document["threshold"], document.get("model") or {}
        return SavedEvaluation(
            folder,
            np.array(truth, np.int64),
            scale.to_unit(scores),
            tuple(row["patient"] for row in answered),
            tuple(sorted({row["split"] for row in answered} - {""})),
            float(scale.to_unit(float(threshold["value"]))),
            str(threshold["rule"]),
            str(model.get("fingerprint", "")),
            str(model.get("name", "")),
            tuple(row["path"] for row in answered),
            scale,
            float(threshold["value"]),
            np.array(scores, np.float64),
            "scores_sha256" in model,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder}: can't be understood ({type(error).__name__}: {error}). It is incomplete "
            "or was changed. Evaluate again."
        ) from error


def _labelled_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of predictions.csv, each with its label, patient and split."""
    predictions = _rows(folder / "predictions.csv", ("path", "status", "probability"))
    if "label" in predictions[0]:
        return predictions
    labels = _rows(folder / "labels.csv", ("path", "label", "patient", "split"))
    names = [[Path(row["path"]).name for row in rows] for rows in (predictions, labels)]
    if names[0] != names[1]:
        raise DataError(
            f"{folder}: predictions.csv ({len(names[0])} rows) and labels.csv ({len(names[1])} "
            "rows) are not of the same images in the same order. Evaluate again."
        )
    return [label | row for row, label in zip(predictions, labels, strict=True)]


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
