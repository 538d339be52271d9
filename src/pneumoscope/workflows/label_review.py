"""What the audit's review of labels needs from outside: a model's answers, and pictures of films.

Comes in: a predictions file; an `Audit`. Goes out: probabilities by path; PNG bytes by path.
Runs no model.
"""

from __future__ import annotations

import csv
from pathlib import Path

from pneumoscope.data.audit_record import Audit
from pneumoscope.errors import DataError, ImageRefusedError
from pneumoscope.images.read import read_image
from pneumoscope.inference.overlay import film_png
from pneumoscope.records import Dataset
from pneumoscope.storage import path_text

MOST_PICTURES = 24
_SIDE = 224
_WANTED = ("path", "status", "probability")


def answers_for(dataset: Dataset, predictions: Path) -> dict[Path, float]:
    """The probability of pneumonia of each image that the file answers for, by its path.

    Paths in the file are as `predict` wrote them: absolute, or relative to the folder in which it
    ran. One that is neither is found by its name if only one image bears it.

    Args:
        dataset: indexed.
        predictions: a `predictions.csv`.

    Raises:
        DataError: the file can't be read, is no predictions file, or answers for no image here.
    """
    by_path = {path_text(record.path): record.path for record in dataset.records}
    by_name: dict[str, list[Path]] = {}
    for record in dataset.records:
        by_name.setdefault(path_text(record.path.name), []).append(record.path)
    found: dict[Path, float] = {}
    for path, probability in _rows(predictions):
        same_name = by_name.get(Path(path).name, [])
        image = by_path.get(path) or by_path.get(str(Path(path).absolute()))
        if image is None and len(same_name) == 1:
            image = same_name[0]
        if image is not None:
            found[image] = probability
    if not found:
        raise DataError(
            f"{predictions}: answers for none of the {len(dataset.records)} images of "
            f"{dataset.root}; wanted rows with their paths. Make it: pneumoscope predict "
            f"{dataset.root} --out {predictions}"
        )
    return found


def _rows(predictions: Path) -> list[tuple[str, float]]:
    """Path and probability of every row with an answer."""
    try:
        with predictions.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [name for name in _WANTED if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{predictions}: lacks the column {missing[0]!r}; wanted a file as "
                    "`pneumoscope predict --out FILE.csv` writes it."
                )
            rows = [(row["path"], row["probability"]) for row in reader if row["status"] == "ok"]
        return [(path, _probability(text, predictions, path)) for path, text in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{predictions}: can't be read ({error}); wanted a CSV in UTF-8. "
            "Give the file that `pneumoscope predict --out FILE.csv` wrote."
        ) from error


def _probability(text: str, predictions: Path, path: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise DataError(
            f"{predictions}: found the probability {text!r} for {path}, wanted a number from 0 to "
            "1. Make the file again: pneumoscope predict"
        )
    return value


def pictures_of(found: Audit) -> dict[str, bytes]:
    """The films with the most doubtful labels as small PNGs, by `Doubt.path`."""
    pictures: dict[str, bytes] = {}
    review = found.evidence.labels
    for doubt in review.doubts[:MOST_PICTURES] if review else ():
        try:
            image = read_image(Path(found.root) / doubt.path)
        except ImageRefusedError:  # it was removed since it was measured
            continue
        pictures[doubt.path] = film_png(image.pixels, _SIDE)
    return pictures
