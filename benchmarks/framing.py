"""How far the shape of the field moves the predictions of several models side by side: a table.

    python benchmarks/framing.py SPLIT_CSV [--split val] [--models default runs/a] [--out FILE.md]

A threshold of its own is given to each model: the one at which a stated share of the unchanged
normal images is positive (`--false-alarms`). Then images are cut off on all sides, or on two, which
makes a child look taller or broader in the square, and are scored at that threshold. Models with
thresholds of their own can't be set side by side: where one's leaves fewer false alarms, fewer are
seen to be added. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perturbations import printed, records_of, score
from pneumoscope.evaluation.metrics import point_metrics
from pneumoscope.images.perturbation_sweeps import collimation, crop
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import TerminalProgress
from pneumoscope.records import SPLITS
from pneumoscope.report.formatting import number

CUTS = {
    "10 % off each side": partial(crop, share=0.1),
    "15 % off each side": partial(crop, share=0.15),
    "10 % off top and bottom": partial(collimation, share=-0.1),
    "15 % off top and bottom": partial(collimation, share=-0.15),
    "10 % off left and right": partial(collimation, share=0.1),
    "15 % off left and right": partial(collimation, share=0.15),
}


def rows(
    labels: NDArray[np.bool_], probabilities: NDArray[np.float64], false_alarms: float
) -> list[tuple[float, float, float]]:
    """AUC, sensitivity and specificity of each column, at the threshold of the first."""
    alarms = np.quantile(probabilities[~labels, 0], 1 - false_alarms, method="lower")
    # An image at the threshold counts as positive; this one should not.
    threshold = float(np.nextafter(alarms, 2.0))
    found = [point_metrics(labels, each, threshold) for each in probabilities.T]
    return [(each["auc"], each["sensitivity"], each["specificity"]) for each in found]


def table(found: dict[str, list[tuple[float, float, float]]]) -> list[str]:
    """A row for each way of cutting, a column for each model: AUC, sensitivity / specificity."""
    lines = [f"| images | {' | '.join(found)} |", f"| --- |{' --- |' * len(found)}"]
    for k, name in enumerate(("as they are", *CUTS)):
        cells = (
            f"{number(area)}, {number(sensitivity)} / {number(specificity)}"
            for area, sensitivity, specificity in (each[k] for each in found.values())
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a split CSV, or any DATA with splits")
    parser.add_argument("--split", choices=SPLITS, default="val")
    parser.add_argument("--models", nargs="+", default=["default"], help="bundles or runs")
    parser.add_argument("--false-alarms", type=float, default=0.05, help="share, as they are")
    parser.add_argument("--out", type=Path, help="also write the Markdown to this file")
    asked = parser.parse_args(arguments)
    return printed(lambda: measure(asked), asked.out)


def measure(asked: argparse.Namespace) -> str:
    """Measure as asked: the Markdown."""
    records = records_of(asked.data, asked.split)
    found = {}
    for model in asked.models:
        predictor = Predictor.load(model, input_check=False)  # every cut needs a result
        scores = score(records, predictor, CUTS, TerminalProgress())
        labels = np.array([record.label == 1 for record in scores.records])
        found[model] = rows(labels, scores.probabilities, asked.false_alarms)
    positives = int(labels.sum())
    about = (
        f"Split {asked.split} of {asked.data}: {len(labels)} images, {positives} with pneumonia; "
        f"{number(asked.false_alarms)} of the unchanged normal images are positive. "
        f"AUC, sensitivity / specificity; {date.today().isoformat()}."
    )
    return "\n".join([about, "", *table(found)])


if __name__ == "__main__":
    raise SystemExit(main())
