"""How well each rule for the threshold, and each calibration, holds on other patients: two tables.

    python benchmarks/threshold_rules.py CROSSVALIDATION [--scores FILE.npz] [--out FILE.md]

CROSSVALIDATION is the folder that `pneumoscope crossvalidate` wrote. In every fold, each rule
chooses a threshold on the validation part, which is then applied to the fold's held-out images: as
they are, with framing matched at three shares, and under changes of another site. All held-out
images together give the rates; patients are resampled for the intervals of the difference from the
rule of the model that ships. Prints Markdown. `--scores` keeps the logits, so that a second call
needs no model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perturbations import Change, printed, records_of, score
from pneumoscope.arrays import Float32Array
from pneumoscope.config import IntervalConfig, ThresholdConfig
from pneumoscope.evaluation.calibration import Calibration, fit_calibration, logit, sigmoid
from pneumoscope.evaluation.intervals import percentile_interval, resampled_weights
from pneumoscope.evaluation.metrics import point_metrics
from pneumoscope.evaluation.operating_point import choose_threshold
from pneumoscope.evaluation.proportions import patient_codes
from pneumoscope.images.lungs import MATCHED_SHARES, LungBox, match_framing, reliable_box
from pneumoscope.images.perturbation_sweeps import collimation, crop
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import TerminalProgress
from pneumoscope.report.formatting import number

Logits = NDArray[np.float64]

MATCHED = tuple(range(1, 1 + len(MATCHED_SHARES)))
"""Columns of the copies with matched framing; column 0 is the image as it is."""

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Part:
    """Images of one part of a fold.

    Attributes:
        labels: (n,), 0 or 1.
        patients: (n) ids.
        logits: (n, 1 + changes), before calibration: as they are, then in order of the changes.
    """

    labels: NDArray[np.int64]
    patients: list[str]
    logits: Logits

    def stacked(self, columns: Sequence[int]) -> tuple[NDArray[np.int64], Logits, list[str]]:
        """Labels, logits and patients of these columns as one set of images."""
        labels = np.tile(self.labels, len(columns))
        return labels, self.logits[:, columns].T.reshape(-1), self.patients * len(columns)


def matched_framing() -> dict[str, Change]:
    """Every image cropped so that the lungs fill the same share of it, at three shares."""
    found: list[tuple[Float32Array, LungBox | None]] = []

    def matched(image: Float32Array, share: float) -> Float32Array:
        if not found or found[0][0] is not image:  # the copies of an image follow each other
            found[:] = [(image, reliable_box(image))]
        return match_framing(image, found[0][1], share)

    return {f"lungs fill {share:g}": partial(matched, share=share) for share in MATCHED_SHARES}


def changes() -> dict[str, Change]:
    """What is done to every image: matched framing, and changes of another site."""
    return matched_framing() | {
        "10 % off each side": partial(crop, share=0.1),
        "10 % off top and bottom": partial(collimation, share=-0.1),
        "10 % off left and right": partial(collimation, share=0.1),
    }


def rules(columns: int) -> dict[str, Callable[[Part], float]]:
    """The threshold in logits that each rule chooses on a validation part."""

    def chosen(rule: str, over: Sequence[int], part: Part) -> float:
        labels, logits, _ = part.stacked(over)
        conditions = np.repeat(np.arange(len(over)), len(part.labels))
        config = ThresholdConfig(rule)  # type: ignore[arg-type]
        found = choose_threshold(labels, sigmoid(logits), config, conditions)
        return float(logit(found.value))

    every = range(columns)
    plain_and_matched = (0, *MATCHED)
    return {
        "balanced accuracy, matched (ships)": partial(chosen, "balanced_accuracy", MATCHED),
        "balanced accuracy, as they are": partial(chosen, "balanced_accuracy", (0,)),
        "balanced accuracy, as they are and matched": partial(
            chosen, "balanced_accuracy", plain_and_matched
        ),
        "balanced accuracy, all copies": partial(chosen, "balanced_accuracy", every),
        "worst case, matched": partial(chosen, "worst_case", MATCHED),
        "worst case, all copies": partial(chosen, "worst_case", every),
        "the network's own 0.5": lambda part: 0.0,
    }


def scored(folder: Path) -> tuple[list[tuple[Part, Part]], list[str]]:
    """Validation part and held-out images of every fold, and the names of the columns."""
    done = changes()
    found = []
    for number_of_fold in range(1, 1 + len(list(folder.glob("splits/fold-*.csv")))):
        run = folder / f"fold-{number_of_fold}"
        predictor = Predictor.load(run, input_check=False)  # every copy needs a probability
        parts = []
        for split in ("val", "test"):
            records = records_of(run / "split.csv", split)
            scores = score(records, predictor, done, TerminalProgress())
            raw = _raw(logit(scores.probabilities), predictor.manifest.calibration)
            labels = np.array([record.label for record in scores.records])
            parts.append(Part(labels, [record.patient for record in scores.records], raw))
        found.append((parts[0], parts[1]))
    return found, ["as they are", *done]


def _raw(logits: Logits, calibration: Calibration) -> Logits:
    return (logits - calibration.intercept) / calibration.slope


def stored(path: Path, folder: Path) -> tuple[list[tuple[Part, Part]], list[str]]:
    """As `scored`, from `path` if it exists, which else is written."""
    if not path.exists():
        folds, names = scored(folder)
        arrays: dict[str, Any] = {"names": np.array(names)}
        for k, fold in enumerate(folds):
            for split, part in zip(("val", "test"), fold, strict=True):
                arrays |= {f"{k}{split}_labels": part.labels, f"{k}{split}_logits": part.logits}
                arrays[f"{k}{split}_patients"] = np.array(part.patients)
        np.savez(path, **arrays)
    found = np.load(path)

    def read(k: int, split: str) -> Part:
        key = f"{k}{split}_"
        patients = found[f"{key}patients"].tolist()
        return Part(found[f"{key}labels"], patients, found[f"{key}logits"])

    count = sum(name.endswith("test_labels") for name in found.files)
    return [(read(k, "val"), read(k, "test")) for k in range(count)], found["names"].tolist()


def rates(
    labels: NDArray[np.int64], decided: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sensitivity and specificity of every column, (2, columns); `weights` (n,) count images."""
    positives, negatives = weights * labels, weights * (1 - labels)
    sensitivity = positives @ decided / positives.sum()
    specificity = negatives @ ~decided / negatives.sum()
    return np.stack([sensitivity, specificity])


def rule_table(folds: Sequence[tuple[Part, Part]], names: Sequence[str]) -> list[str]:
    """A row for each rule: rates on the held-out images of all folds together."""
    labels = np.concatenate([held_out.labels for _, held_out in folds])
    patients = [patient for _, held_out in folds for patient in held_out.patients]
    codes, count = patient_codes(patients, len(labels))
    config = IntervalConfig(resamples=RESAMPLES)
    draws = [draw for block in resampled_weights(codes, count, config) for draw in block]
    decided, thresholds = {}, {}
    for name, rule in rules(len(names)).items():
        at = [rule(val) for val, _ in folds]
        decided[name] = np.concatenate(
            [held_out.logits >= t for t, (_, held_out) in zip(at, folds, strict=True)]
        )
        thresholds[name] = at
    first = next(iter(decided.values()))
    base = [float(rates(labels, first, w).mean()) for w in draws]
    lines = [
        "| rule | raw threshold of the folds | as they are | matched, mean | all, mean "
        "| lowest rate | all, mean: difference |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, decisions in decided.items():
        found = rates(labels, decisions, np.ones(len(labels)))
        gains = np.array(
            [rates(labels, decisions, w).mean() - b for w, b in zip(draws, base, strict=True)]
        )
        low, high, _ = percentile_interval(gains, 0.95, count)
        kind, column = divmod(int(found.argmin()), len(names))
        worst = f"{('sensitivity', 'specificity')[kind]}, {names[column]}"
        cells = (
            ", ".join(number(float(sigmoid(np.array(t))), 2) for t in thresholds[name]),
            " / ".join(number(rate) for rate in found[:, 0]),
            " / ".join(number(rate) for rate in found[:, MATCHED].mean(axis=1)),
            " / ".join(number(rate) for rate in found.mean(axis=1)),
            f"{number(found.min())} ({worst})",
            f"{gains.mean():+.3f} ({low:+.3f} to {high:+.3f})" if decisions is not first else "",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def calibration_table(folds: Sequence[tuple[Part, Part]], names: Sequence[str]) -> list[str]:
    """A row for each set of validation copies: calibration errors on the held-out images."""
    sets: Mapping[str, Sequence[int] | None] = {
        "none": None,
        "as they are": (0,),
        "matched (ships)": MATCHED,
        "as they are and matched": (0, *MATCHED),
        "all copies": range(len(names)),
    }
    labels = np.concatenate([held_out.labels for _, held_out in folds])
    lines = [f"| fitted to | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for title, columns in sets.items():
        calibrated = []
        for val, held_out in folds:
            fitted = Calibration()
            if columns is not None:
                fitted = fit_calibration(*val.stacked(columns), seed=0)
            calibrated.append(fitted.apply(held_out.logits))
        probabilities = np.concatenate(calibrated)
        errors = (point_metrics(labels, each, 0.5)["ece"] for each in probabilities.T)
        lines.append(f"| {title} | {' | '.join(number(error) for error in errors)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Score, choose, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a finished cross-validation")
    parser.add_argument("--scores", type=Path, help="file that keeps the logits, *.npz")
    parser.add_argument("--out", type=Path, help="also write the Markdown to this file")
    asked = parser.parse_args(arguments)
    return printed(lambda: measure(asked), asked.out)


def measure(asked: argparse.Namespace) -> str:
    """Measure as asked: the Markdown."""
    folds, names = stored(asked.scores, asked.folder) if asked.scores else scored(asked.folder)
    images = sum(len(held_out.labels) for _, held_out in folds)
    about = (
        f"{asked.folder.name}: {images} held-out images in {len(folds)} folds, each of "
        f"{len(names)} copies; sensitivity / specificity. Calibration error: debiased, on the same "
        f"images. {date.today().isoformat()}."
    )
    areas = np.concatenate([held_out.logits for _, held_out in folds])
    labels = np.concatenate([held_out.labels for _, held_out in folds])
    pooled = (
        f"{name} {number(point_metrics(labels, sigmoid(column), 0.5)['auc'])}"
        for name, column in zip(names, areas.T, strict=True)
    )
    return "\n".join(
        [
            about,
            "",
            f"AUC, all folds pooled before calibration: {', '.join(pooled)}.",
            "",
            *rule_table(folds, names),
            "",
            *calibration_table(folds, names),
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
