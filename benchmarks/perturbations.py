"""How far a model's predictions hold when the images come from another scanner or site: a table.

    python benchmarks/perturbations.py SPLIT_CSV [--split test] [--model default] [--out FILE.md]

Scores every image of the split as it is and as each fixed change of
`images/perturbation_sweeps.py`, at the model's own frozen threshold and calibration. Prints
Markdown, the largest fall of sensitivity or specificity first, and whether none is larger than
`--limit`; `--json` prints one document instead. Changes are made to the decoded image, before
preprocessing. Intervals are bootstrapped over patients.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.config import IntervalConfig
from pneumoscope.data.index import index, require_both_classes
from pneumoscope.errors import DataError, ImageRefusedError, PneumoscopeError
from pneumoscope.evaluation.intervals import BOOTSTRAP_METHOD, bootstrap_metrics
from pneumoscope.images.perturbation_sweeps import PERTURBATIONS
from pneumoscope.images.read import read_image
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT, Progress, TerminalProgress
from pneumoscope.records import SPLITS, Estimate, ImageRecord
from pneumoscope.report.formatting import ABSENT, number, percent, plural
from pneumoscope.report.formatting import interval as interval_text
from pneumoscope.storage import write_text

LIMIT = 0.05
"""Largest fall of sensitivity, and of specificity, that the shipped model may show (issue 3)."""

_ROUNDING = 1e-9
PLAIN = "plain"


Change = Callable[[Float32Array], Float32Array]


@dataclass(frozen=True, slots=True)
class Scores:
    """Probabilities of the images that could be read.

    Attributes:
        records: those images.
        refused: how many more there were.
        probabilities: float64 (images, 1 + changes): as they are, then in the changes' order.
    """

    records: tuple[ImageRecord, ...]
    refused: int
    probabilities: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """One way of looking at the images; a fall is positive where it got worse than plain."""

    name: str
    title: str
    auc: Estimate
    sensitivity: Estimate
    specificity: Estimate
    sensitivity_fall: float = 0.0
    specificity_fall: float = 0.0

    @property
    def fall(self) -> float:
        """The larger of the two falls."""
        return max(self.sensitivity_fall, self.specificity_fall)


@dataclass(frozen=True, slots=True)
class Table:
    """Plain images, their perturbed copies (worst first), and what may be lost."""

    plain: Row
    rows: tuple[Row, ...]
    limit: float

    @property
    def beyond(self) -> tuple[Row, ...]:
        """The rows that lose more than the limit."""
        return tuple(row for row in self.rows if row.fall > self.limit + _ROUNDING)


def score(
    records: Sequence[ImageRecord],
    predictor: Predictor,
    changes: Mapping[str, Change],
    progress: Progress = SILENT,
) -> Scores:
    """Every record as it is and as each change has it, through the predictor.

    Each image is decoded once, and its copies are made just before they are scored. An image
    that can't be read is left out of every row alike.

    Raises:
        DataError: no image of one of the classes could be read.
        PneumoscopeError: the model's output is no number.
    """
    read: list[ImageRecord] = []
    ways = 1 + len(changes)

    def copies() -> Iterator[tuple[str, Float32Array]]:
        for record in records:
            try:
                image = read_image(record.path).pixels
            except ImageRefusedError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            read.append(record)
            yield str(record.path), image
            for name, change in changes.items():
                yield f"{record.path} ({name})", change(image)

    found: list[float] = []
    with progress.task("Changed copies", len(records) * ways, "images") as task:
        for result in predictor.predict_images(copies()):
            if result.prediction.probability is None:
                raise PneumoscopeError(f"{result.prediction.path}: {result.prediction.detail}")
            found.append(result.prediction.probability)
            task.advance()
    require_both_classes(read, f"the {len(read)} of {len(records)} images that can be read")
    return Scores(tuple(read), len(records) - len(read), np.reshape(found, (len(read), ways)))


def tabulate(scores: Scores, threshold: float, interval: IntervalConfig, limit: float) -> Table:
    """Metrics with intervals of each column of probabilities, and what each loses."""
    labels = [record.label for record in scores.records]
    patients = [record.patient for record in scores.records]
    names = [(PLAIN, "as they are"), *((p.name, p.title) for p in PERTURBATIONS)]
    rows = []
    for (name, title), column in zip(names, scores.probabilities.T, strict=True):
        found = bootstrap_metrics(labels, column, patients, threshold, interval).estimates
        rows.append(Row(name, title, found["auc"], found["sensitivity"], found["specificity"]))
    plain, *perturbed = rows
    fallen = [
        replace(
            row,
            sensitivity_fall=_fall(plain.sensitivity, row.sensitivity),
            specificity_fall=_fall(plain.specificity, row.specificity),
        )
        for row in perturbed
    ]
    # Sorting is stable: equal falls stay in the order of the registry.
    return Table(plain, tuple(sorted(fallen, key=lambda row: -row.fall)), limit)


def _fall(plain: Estimate, perturbed: Estimate) -> float:
    # Images of both classes are there, so neither value is undefined.
    return (plain.value or 0.0) - (perturbed.value or 0.0)


def verdict(table: Table) -> str:
    """Whether the limit holds, in one line; where not, which rows are beyond it."""
    limit = f"{number(table.limit)} of sensitivity or specificity"
    worst, beyond = table.rows[0], table.beyond
    if not beyond:
        return (
            f"**Holds**: none of {len(table.rows)} perturbations takes more than {limit}; "
            f"the most is {number(worst.fall)} ({worst.title})."
        )
    named = ", ".join(f"{row.title} ({number(row.fall)})" for row in beyond)
    verb = "takes" if len(beyond) == 1 else "take"
    return f"**Fails**: {len(beyond)} of {len(table.rows)} {verb} more than {limit}: {named}."


def markdown(table: Table, about: Sequence[str]) -> str:
    """The table below a paragraph for each line of `about`, the verdict below it."""
    lines = [text for line in about for text in (line, "")]
    lines += [
        "| images | AUC | sensitivity | specificity | fall of sensitivity | of specificity |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in (table.plain, *table.rows):
        falls = (row.sensitivity_fall, row.specificity_fall)
        told = (ABSENT, ABSENT) if row is table.plain else map(number, falls)
        estimates = map(_cell, (row.auc, row.sensitivity, row.specificity))
        lines.append(f"| {' | '.join((row.title, *estimates, *told))} |")
    return "\n".join([*lines, "", verdict(table)])


def _cell(estimate: Estimate) -> str:
    span = interval_text(estimate)
    return number(estimate.value) + (f" ({span})" if span != ABSENT else "")


def document(table: Table) -> dict[str, Any]:
    """The table as plain values."""
    strengths = {p.name: p.strength for p in PERTURBATIONS}
    return {
        "limit": table.limit,
        "holds": not table.beyond,
        "beyond": [row.name for row in table.beyond],
        "plain": asdict(table.plain),
        "perturbations": [asdict(row) | {"strength": strengths[row.name]} for row in table.rows],
    }


def records_of(
    data: Path, split: Literal["train", "val", "test", "all"]
) -> tuple[ImageRecord, ...]:
    """The labelled images of one split.

    Raises:
        DataError: the data can't be used, or have no such split.
    """
    dataset = index(data, hash_files=False)
    records = dataset.subset(split).records
    if not records:
        there = sorted({str(record.split) for record in dataset.records})
        raise DataError(
            f"{data}: has no {split} split, found {', '.join(there)}. Give another --split, or "
            "deal patients: pneumoscope data split DATA --out split.csv"
        )
    return records


def measure(asked: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], str]:
    """Measure as asked: the document and the Markdown."""
    records = records_of(asked.data, asked.split)
    predictor = Predictor.load(asked.model, input_check=False)  # every copy needs a result
    threshold, interval = predictor.manifest.threshold, IntervalConfig()
    changes = {each.name: partial(each.apply, seed=asked.seed) for each in PERTURBATIONS}
    scores = score(records, predictor, changes, progress)
    table = tabulate(scores, threshold.value, interval, asked.limit)
    images, patients = len(scores.records), len({record.patient for record in scores.records})
    facts = {
        "date": date.today().isoformat(),
        "data": str(asked.data),
        "split": asked.split,
        "model": asked.model,
        "images": images,
        "patients": patients,
        "positives": sum(record.label for record in scores.records),
        "refused": scores.refused,
        "threshold": {"value": threshold.value, "rule": threshold.rule},
        "interval": asdict(interval) | {"method": BOOTSTRAP_METHOD},
        "noise_seed": asked.seed,
    }
    about = [
        f"Model {Path(asked.model).name}, split {asked.split} of {asked.data.name}: "
        f"{plural(images, 'image')} of {plural(patients, 'patient')}, {facts['positives']} with "
        f"pneumonia, {scores.refused} rejected; threshold {threshold.value:.4f} "
        f"({threshold.rule}); {percent(interval.level)} intervals, {BOOTSTRAP_METHOD}; "
        f"{facts['date']}.",
        "Changes are made to the decoded image, before preprocessing. Worst first.",
    ]
    return facts | document(table), markdown(table, about)


def printed(measured: Callable[[], str], out: Path | None) -> int:
    """Print what a script measures and keep it in `out`, if given; the exit code of the script."""
    try:
        text = measured()
    except PneumoscopeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(text)
    if out:  # after printing: a full disk should not cost the result
        write_text(out, text + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit code: 0 whether the limit holds or not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a split CSV, or any DATA with splits")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test")
    parser.add_argument("--model", default="default", help="a bundle, a run, or 'default'")
    parser.add_argument("--limit", type=float, default=LIMIT, help="largest fall allowed")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
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
