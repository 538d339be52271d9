"""What a model's input check rejects: images that it should not, other images that it should.

    python benchmarks/input_check.py SPLIT_CSV [--split test] [--model default] [--others DIR]

Three tables in Markdown: images of the split as they are, by class; changed copies of them, some
changes being of other strengths than the check was made with; other images by category, with the
share rejected under the right code. `--others` adds a folder of images none of which is a frontal
chest X-ray. `--json` prints one document instead. Intervals are Wilson's. No X-ray is written.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from other_images import Other, drawn, photographs, slices
from pneumoscope.data.index import index
from pneumoscope.errors import ImageRefusedError, InputError, PneumoscopeError, Reason
from pneumoscope.evaluation.proportions import wilson_interval
from pneumoscope.images.perturbation_sweeps import PERTURBATIONS, Perturbation, rotation
from pneumoscope.images.read import read_image
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import Progress, TerminalProgress
from pneumoscope.records import CLASS_NAMES, SPLITS, ImageRecord, Prediction
from pneumoscope.report.formatting import percent
from pneumoscope.storage import write_text

MOST_REJECTED = 0.02
MOST_CHANGED_REJECTED = 0.03
LEAST_RIGHT = 0.98
"""Limits: rejected images, rejected changed copies, and other images rejected rightly (issue 5)."""

_LEVEL = 0.95
_BY_NAME = {perturbation.name: perturbation for perturbation in PERTURBATIONS}
_BETWEEN = {
    "contrast_half": 0.7,
    "contrast_double": 1.5,
    "gamma_06": 0.8,
    "gamma_16": 1.3,
    "brighter_40": 0.2,
    "darker_40": -0.2,
    "crop_10": 0.05,
    "border_10": 0.05,
    "blur_1": 0.015,
    "noise_5": 0.08,
}
"""Other strengths than those that statistics and limits come from."""


@dataclass(frozen=True, slots=True)
class Row:
    """Images of one category: all, the rejected, and those of them with the right code."""

    title: str
    images: int
    refused: int
    right: int
    reasons: dict[str, int]


def counted(title: str, predictions: Iterable[tuple[Prediction, Reason | None]]) -> Row:
    """Count predictions, each with the code that would be right for it."""
    found = list(predictions)
    reasons = Counter(str(p.reason) for p, _ in found if p.reason is not None)
    right = sum(p.reason is not None and p.reason == wanted for p, wanted in found)
    return Row(title, len(found), reasons.total(), right, dict(reasons.most_common()))


def changes() -> Iterator[Perturbation]:
    """What images are changed by: all of `perturb`, other strengths, turns up to 15°, mirroring."""
    yield from PERTURBATIONS
    for name, strength in _BETWEEN.items():
        title = f"{_BY_NAME[name].change.__name__}, {strength:g}"
        yield replace(_BY_NAME[name], title=title, strength=strength)
    for degrees in (-15.0, -5.0, 15.0):
        yield Perturbation("rotation", f"rotation {degrees:g}°", rotation, degrees)
    yield Perturbation("mirrored", "mirrored", lambda image, _: image[:, ::-1].copy(), 0.0)


def unchanged_images(
    records: Sequence[ImageRecord], predictor: Predictor, progress: Progress
) -> list[Row]:
    """Images as they are: all, and by class."""
    with progress.task("images", len(records), "images") as task:
        found: list[Prediction] = []
        for result in predictor.predict_files([record.path for record in records]):
            found.append(result.prediction)
            task.advance()
    rows = [counted("all", ((p, None) for p in found))]
    for label, name in enumerate(CLASS_NAMES):
        own = [p for p, r in zip(found, records, strict=True) if r.label == label]
        rows.append(counted(name, ((p, None) for p in own)))
    return rows


def changed_images(
    records: Sequence[ImageRecord], predictor: Predictor, progress: Progress
) -> list[Row]:
    """Changed copies of images, one row for each change, most rejected first."""
    ways = list(changes())
    found: list[list[Prediction]] = [[] for _ in ways]

    def copies() -> Iterator[tuple[str, NDArray[np.float32]]]:
        for record, pixels in _pixels(records):
            for way in ways:
                yield f"{record.path} ({way.title})", way.apply(pixels)

    with progress.task("changed images", len(records) * len(ways), "images") as task:
        for number, result in enumerate(predictor.predict_images(copies())):
            found[number % len(ways)].append(result.prediction)
            task.advance()
    rows = [
        counted(way.title, ((p, None) for p in each)) for way, each in zip(ways, found, strict=True)
    ]
    rows.sort(key=lambda row: -row.refused)
    everything = [(p, None) for each in found for p in each]
    return [counted("all", everything), *rows]


def turned_images(records: Sequence[ImageRecord]) -> Iterator[Other]:
    """Each image turned by 90°, 180° and 270°, and inverted."""
    turns: dict[str, tuple[Callable[[Any], Any], Reason]] = {
        "images turned by 90°": (np.rot90, Reason.ROTATED),
        "images turned by 180°": (lambda image: np.rot90(image, 2), Reason.ROTATED),
        "images turned by 270°": (lambda image: np.rot90(image, 3), Reason.ROTATED),
        "images inverted": (lambda image: 1.0 - image, Reason.INVERTED),
    }
    for _, pixels in _pixels(records):
        for category, (turn, right) in turns.items():
            yield Other(category, np.rint(turn(pixels) * 255).astype(np.uint8), right)


def in_folder(folder: Path) -> Iterator[Other]:
    """A folder's files, all of one category."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield Other(f"{folder.name}/", path)


def others(images: Iterable[Other], predictor: Predictor, progress: Progress) -> list[Row]:
    """Other images by category."""
    kept = list(images)
    found: dict[str, list[tuple[Prediction, Reason | None]]] = {}
    with progress.task("other images", len(kept), "images") as task:
        for number, other in enumerate(kept):
            found.setdefault(other.category, []).append(
                (_ask(other, predictor, f"{other.category} {number}"), other.right)
            )
            task.advance()
    rows = [counted(category, each) for category, each in found.items()]
    return [counted("all", (pair for each in found.values() for pair in each)), *rows]


def _ask(other: Other, predictor: Predictor, name: str) -> Prediction:
    if isinstance(other.content, Path):
        prediction = predictor.predict_file(other.content).prediction
    else:
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(other.content)).save(stream, format="PNG")
        prediction = predictor.predict_bytes(stream.getvalue(), name).prediction
    if prediction.reason != other.right:
        print(f"wrong: {prediction.path}: {prediction}", file=sys.stderr)
    return prediction


def _pixels(records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, NDArray[np.float32]]]:
    for record in records:
        try:
            yield record, read_image(record.path).pixels
        except ImageRefusedError as error:
            print(f"left out: {error}", file=sys.stderr)


def _spread(records: Sequence[ImageRecord], most: int) -> Sequence[ImageRecord]:
    return records[:: max(1, -(-len(records) // most))]


def markdown(rows: Sequence[Row], what: str, *, right: bool = False) -> str:
    """A table; `right` adds the share that was rejected with the right code."""
    head = f"| {what} | images | rejected | 95 % interval |"
    lines = [head + (" right code | codes |" if right else " codes |")]
    lines.append("|" + " --- |" * (5 + right))
    for row in rows:
        share = wilson_interval(row.refused, row.images, _LEVEL)
        codes = ", ".join(f"{reason} {count}" for reason, count in row.reasons.items()) or "–"
        cells = [row.title, str(row.images), percent(share.value, 1)]
        cells.append(f"{percent(share.low, 1)} to {percent(share.high, 1)}")
        cells += [percent(row.right / row.images, 1)] if right else []
        lines.append(f"| {' | '.join([*cells, codes])} |")
    return "\n".join(lines)


def verdicts(plain: Row, changed: Row, other: Row) -> list[str]:
    """Each limit, and whether it holds."""
    found = (
        ("images rejected", plain.refused / plain.images, MOST_REJECTED, True),
        ("changed images rejected", changed.refused / changed.images, MOST_CHANGED_REJECTED, True),
        ("others rejected rightly", other.right / other.images, LEAST_RIGHT, False),
    )
    return [
        f"**{'Holds' if (share <= limit if most else share >= limit) else 'Fails'}**: {title} "
        f"{percent(share, 1)}, wanted at {'most' if most else 'least'} {percent(limit)}."
        for title, share, limit, most in found
    ]


def measure(asked: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], str]:
    """Measure as asked: the document and the Markdown."""
    records = index(asked.data, hash_files=False).subset(asked.split).records
    if not records:
        raise InputError(f"{asked.data}: has no {asked.split} split. Give another --split.")
    predictor = Predictor.load(asked.model)
    plain = unchanged_images(records, predictor, progress)
    changed = changed_images(_spread(records, asked.changed), predictor, progress)
    images = [*drawn(asked.each, asked.seed), *photographs(2 * asked.each, asked.seed), *slices()]
    images += turned_images(_spread(records, asked.turned))
    images += in_folder(asked.others) if asked.others else []
    other = others(images, predictor, progress)
    told = verdicts(plain[0], changed[0], other[0])
    check = predictor.manifest.input_check
    about = (
        f"Model {asked.model} (check `{check.method}`, limits of {check.patients} patients), split "
        f"{asked.split} of {asked.data}, seed {asked.seed}; {date.today().isoformat()}."
    )
    tables = (
        markdown(plain, "images"),
        markdown(changed, "changed images"),
        markdown(other, "other images", right=True),
    )
    document = {
        name: [asdict(row) for row in rows]
        for name, rows in (("images", plain), ("changed", changed), ("others", other))
    }
    return document | {"verdicts": told}, "\n\n".join([about, *tables, *told])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit code: 0 whether the limits hold or not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a split CSV, or any DATA with splits")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test")
    parser.add_argument("--model", default="default", help="a bundle, a run, or 'default'")
    parser.add_argument("--others", type=Path, help="a folder of images to be rejected")
    parser.add_argument("--each", type=int, default=20, help="drawn images of every category")
    parser.add_argument("--turned", type=int, default=25, help="images that are turned, at most")
    parser.add_argument("--changed", type=int, default=100, help="images that are changed, at most")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--out", type=Path, help="also write the Markdown to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    asked = parser.parse_args(arguments)
    try:
        found, text = measure(asked, TerminalProgress())
    except PneumoscopeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, allow_nan=False) if asked.json else text)
    if asked.out:  # after printing: a full disk should not cost the result
        write_text(asked.out, text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
