"""Whether a model gains by larger images than it was trained on: AUC with framing matched.

    python benchmarks/sizes.py DATA [--models MODEL [MODEL ...]] [--sizes PIXELS [PIXELS ...]]
    python benchmarks/sizes.py CROSSVALIDATION

Given a split CSV or a folder with splits, every model predicts the images of its val and test
split. Given the folder that `pneumoscope crossvalidate` wrote, the model of each fold predicts the
fold's held-out images, and the AUC of a size is the mean over the folds. Every image is cropped to
three shares of the lungs' height, and the network runs on each copy at every size without further
training. The first size is the baseline; patients are resampled for the intervals of the
differences from it. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perturbations import printed, records_of, score
from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.intervals import percentile_interval, resampled_weights
from pneumoscope.evaluation.proportions import patient_codes
from pneumoscope.evaluation.ranked_metrics import RankedScores, auc_values
from pneumoscope.graph.archive import read_network
from pneumoscope.images.lungs import MATCHED_SHARES
from pneumoscope.inference.bundle import load_bundle
from pneumoscope.inference.engine import OpenVinoBackend, fast_precisions
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import TerminalProgress
from pneumoscope.records import ImageRecord
from pneumoscope.report.formatting import number
from threshold_rules import MATCHED, RESAMPLES, matched_framing

SIZES = (112, 128, 144, 160)


@dataclass(frozen=True, slots=True)
class Group:
    """Images that one network has predicted at every size.

    Attributes:
        labels: (n,), 0 or 1.
        patients: (n) ids.
        probabilities: (n, sizes, 1 + shares), the image as it is first.
    """

    labels: NDArray[np.int64]
    patients: list[str]
    probabilities: NDArray[np.float64]

    def areas(self) -> NDArray[np.float64]:
        """AUC of all images and of each resample, (1 + resamples, sizes, 1 + shares)."""
        codes, count = patient_codes(self.patients, len(self.labels))
        draws = resampled_weights(codes, count, IntervalConfig(resamples=RESAMPLES))
        weights = np.concatenate([np.ones((1, len(self.labels))), *draws])
        found = np.empty((len(weights), *self.probabilities.shape[1:]))
        for size, column in np.ndindex(self.probabilities.shape[1:]):
            ranked = RankedScores.of(self.labels, self.probabilities[:, size, column])
            found[:, size, column] = auc_values(ranked.counts(weights[:, ranked.order]))
        return found


def predictor_of(model: Path | str, size: int) -> Predictor:
    """The predictor of a model for images of another size, without its input check.

    In bfloat16 where the processor is fast at it, else in float32: int8 is certified for one size.
    """
    bundle = load_bundle(model)
    manifest = replace(
        bundle.manifest, preprocessing=replace(bundle.manifest.preprocessing, size=size)
    )
    backend = OpenVinoBackend(
        [read_network(path, manifest.architecture) for path in bundle.weights],
        size,
        flip=manifest.flip,
        floats="bf16" if "bf16" in fast_precisions() else "f32",
    )
    return Predictor(manifest, backend, precision=backend.precision)


def predicted(model: Path | str, records: Sequence[ImageRecord], sizes: Sequence[int]) -> Group:
    """The model's predictions at every size."""
    copies = matched_framing()
    found = [
        score(records, predictor_of(model, size), copies, TerminalProgress()) for size in sizes
    ]
    labels = np.array([record.label for record in found[0].records])
    patients = [record.patient for record in found[0].records]
    return Group(labels, patients, np.stack([each.probabilities for each in found], axis=1))


def groups_of(data: Path, models: Sequence[str], sizes: Sequence[int]) -> dict[str, list[Group]]:
    """The groups of each row: the folds of a cross-validation, or val and test of each model."""
    folds = sorted(data.glob("splits/fold-*.csv"), key=lambda path: int(path.stem.split("-")[1]))
    if folds:
        runs = [data / path.stem for path in folds]
        held_out = [predicted(run, records_of(run / "split.csv", "test"), sizes) for run in runs]
        return {f"the {len(runs)} folds, held out": held_out}
    return {
        f"{model}, {split}": [predicted(model, records_of(data, split), sizes)]
        for model in models
        for split in ("val", "test")
    }


def table(found: dict[str, list[Group]], sizes: Sequence[int]) -> list[str]:
    """A row for each group and size; with several groups of one model, another for all of them."""
    lines = [
        f"| | px | as they are | {' | '.join(f'{share:g}' for share in MATCHED_SHARES)} "
        "| matched, mean | difference |",
        f"| --- | ---: | ---: |{' ---: |' * len(MATCHED_SHARES)} ---: | ---: |",
    ]
    areas = {
        name: np.mean([each.areas() for each in groups], axis=0) for name, groups in found.items()
    }
    if len(areas) > 1:
        models = dict.fromkeys(name.rpartition(",")[0] for name in areas)
        areas |= {
            f"{model}, mean of both": np.mean([areas[f"{model}, {s}"] for s in ("val", "test")], 0)
            for model in models
        }
    fewest = min(len(set(each.patients)) for groups in found.values() for each in groups)
    for name, values in areas.items():
        means = values[:, :, MATCHED].mean(axis=2)
        for k, size in enumerate(sizes):
            gains = means[:, k] - means[:, 0]
            low, high, _ = percentile_interval(gains[1:], 0.95, fewest)
            cells = [number(area) for area in (*values[0, k], means[0, k])]
            gain = f"{gains[0]:+.4f} ({low:+.4f} to {high:+.4f})" if k else ""
            lines.append(f"| {name} | {size} | {' | '.join(cells)} | {gain} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="DATA with splits, or a finished cross-validation")
    parser.add_argument("--models", nargs="+", default=["default"], help="bundles or runs")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=SIZES, help="pixels; baseline first"
    )
    parser.add_argument("--out", type=Path, help="also write the Markdown to this file")
    asked = parser.parse_args(arguments)
    return printed(lambda: measure(asked), asked.out)


def measure(asked: argparse.Namespace) -> str:
    """Measure as asked: the Markdown."""
    found = groups_of(asked.data, asked.models, asked.sizes)
    images = sum(len(each.labels) for groups in found.values() for each in groups)
    about = (
        f"{asked.data.name}: {images} images, each as it is and with framing matched; AUC. "
        f"{date.today().isoformat()}."
    )
    return "\n".join([about, "", *table(found, asked.sizes)])


if __name__ == "__main__":
    raise SystemExit(main())
