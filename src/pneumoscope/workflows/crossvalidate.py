"""`crossvalidate`: score every image with a model that was not trained on its patient.

Patients are divided into folds. For each fold a model is trained on the other folds, by any recipe,
with its own validation part for epoch, calibration and threshold; it then scores the held-out fold.
The pooled predictions give narrower intervals than one test split and do not depend on one split.

OUT/config.toml        the training settings of all folds
OUT/folds.csv          path, label, patient, fold
OUT/splits/fold-K.csv  the train, val and test parts of fold K
OUT/fold-K/            its training run
OUT/out_of_fold.csv    one row per image: the held-out prediction, the fold, the label
OUT/crossvalidation.json   a row per fold, and the pooled metrics
OUT/metrics.json, predictions.csv, labels.csv, report.html, figures/    pooled, as `evaluate` writes
OUT/matched-SHARE/     with `matched`: the same, of images cropped so that the lungs fill that share
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.config import (
    CrossValidationConfig,
    PreprocessConfig,
    SplitConfig,
    TrainConfig,
    check_ranges,
    to_toml,
)
from pneumoscope.data.index import index
from pneumoscope.data.splits import write_split
from pneumoscope.data.splitting import assign_folds, assign_splits
from pneumoscope.data.training_overlap import TrainingOverlap, total_overlap
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.intervals import bootstrap_metrics
from pneumoscope.images.lungs import MATCHED_SHARES
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import as_row
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import CLASS_NAMES, Dataset, Estimate, ImageRecord
from pneumoscope.storage import claim_folder, csv_text, path_text, safe_path, write_json, write_text
from pneumoscope.workflows.evaluate import Evaluated, write_evaluation
from pneumoscope.workflows.evaluation_folder import metrics_table
from pneumoscope.workflows.run_folder import (
    announce,
    check_empty,
    check_settings,
    settings_of_run,
    warn_of_unused_split,
    with_cautions,
)
from pneumoscope.workflows.scoring import (
    MatchedFraming,
    Scored,
    evaluate_scored,
    reversed_scores,
    score_all,
    score_matched,
)
from pneumoscope.workflows.seen import caution_on_folds, seen_by
from pneumoscope.workflows.tracking import Stopwatch
from pneumoscope.workflows.train import train

SCHEMA_VERSION = 1

CONFIG = "config.toml"

FOLD = "{fold}"
"""Placeholder for the fold's number in a teacher's name: a teacher per fold avoids leakage."""

_DECIDED = ("backbone", *(f"preprocess.{each.name}" for each in fields(PreprocessConfig)))
"""Settings that the bundle of the initial weights no longer changes in a fold."""

_LOGGER = logging.getLogger(__name__)
_DECISIONS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity")
_SHOWN = ("auc", "sensitivity", "specificity", "accuracy")


@dataclass(frozen=True, slots=True)
class Fold:
    """One held-out fold: its number, its images and predictions, and their metrics.

    `seen` counts the images that the fold's model was trained on after all: through its initial
    weights, its teachers or copies. `matched` holds the predictions on its cropped images, one
    entry for each share.
    """

    number: int
    scored: Scored
    evaluation: Evaluation
    threshold: float
    seen: TrainingOverlap
    matched: Mapping[float, MatchedFraming] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The entry of the fold in `crossvalidation.json`."""
        found = self.evaluation
        return {
            "fold": self.number,
            "n": found.n,
            "patients": found.patients,
            "positives": found.positives,
            "refused": found.refused,
            "threshold": self.threshold,
            "metrics": {name: asdict(each) for name, each in found.metrics.items()},
        }


@dataclass(frozen=True, slots=True)
class _Job:
    """What all folds share; `numbers` (n,) are the folds of the data set's images."""

    out: Path
    dataset: Dataset
    numbers: Sequence[int]
    config: TrainConfig
    division: CrossValidationConfig
    progress: Progress
    matched: bool


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """A finished cross-validation.

    Attributes:
        folder: OUT.
        folds: in order.
        pooled: all out-of-fold predictions together, at the median of the folds' thresholds.
        decided: accuracy, balanced accuracy, sensitivity and specificity of all images, each at
            its own fold's threshold; patients are resampled.
        matched: for each share that the lungs were made to fill, as `pooled`; empty if that was
            not asked for.

    Examples:
        >>> config = training_config(epochs=1, **small)
        >>> found = crossvalidate(xrays, folder / "folds", config, CrossValidationConfig(folds=2))
        >>> len(found.folds), found.pooled.n
        (2, 40)
    """

    folder: Path
    folds: tuple[Fold, ...]
    pooled: Evaluation
    decided: dict[str, Estimate]
    matched: dict[float, Evaluation]

    @property
    def seen(self) -> TrainingOverlap:
        """Held-out images that their fold's model was trained on after all, over all folds."""
        return total_overlap([fold.seen for fold in self.folds])


def crossvalidate(
    data: Path | str,
    out: Path | str,
    config: TrainConfig | None = None,
    division: CrossValidationConfig | None = None,
    *,
    progress: Progress = SILENT,
    matched: bool = False,
    resume: bool = False,
    given: Collection[str] = (),
) -> CrossValidated:
    """Cross-validate a training recipe on all images of `data`.

    Args:
        data: a folder with class folders, or a CSV manifest; its splits are ignored.
        out: a new folder, or with `resume` that of an interrupted cross-validation.
        config: how each fold's model is trained; `split.val` is the share of the remaining
            patients that becomes its validation part. A teacher's name may hold `{fold}`: with
            `cv/fold-{fold}` each fold's model learns from the one of another cross-validation
            that held out the same patients.
        division: how many folds, and how patients are divided.
        progress: receives every stage.
        matched: score the held-out images also cropped so that the lungs fill the same share of
            each, once for each of `MATCHED_SHARES`. This removes framing as a cue.
        resume: keep finished folds and continue, with the settings in `out`; images cropped before
            are so again.
        given: dotted names of training settings that the user gave (see `train`).

    Raises:
        UsageError: `out` is not empty, or a setting is out of range or conflicts with the run that
            is resumed.
        DataError: a class has fewer patients than there are folds, or the data is unusable.
        MissingError: weights or an extra are missing.

    Examples:
        >>> config = training_config(epochs=1, **small)
        >>> found = crossvalidate(xrays, folder / "cv", config, CrossValidationConfig(folds=2))
        >>> 0 <= found.pooled.metrics["auc"].value <= 1
        True
    """
    data, out = Path(data), Path(out)
    config, division = config or TrainConfig(), division or CrossValidationConfig()
    check_ranges(division, "crossvalidate")
    watch = Stopwatch()
    config = _settings(out, replace(config, keep_val=True), given, resume=resume)
    warn_of_unused_split(config.split, _split(config, division))
    dataset = index(data, progress=progress, splits=False)
    numbers, warnings = assign_folds(dataset.records, division.folds, division.by, config.seed)
    dataset = replace(dataset, warnings=(*dataset.warnings, *warnings))
    announce(dataset)
    _claim(out, dataset, numbers, config, resume=resume)
    matched = matched or any(_matched_folder(out, share).is_dir() for share in MATCHED_SHARES)
    job = _Job(out, dataset, numbers, config, division, progress, matched)
    folds, manifests = [], []
    for number in range(1, division.folds + 1):
        _LOGGER.info("fold %d of %d", number, division.folds)
        fold, manifest = _fold(job, number)
        folds.append(fold)
        manifests.append(manifest)
        watch.lap(f"fold {number}")
    found = _pooled(job, folds, manifests[0])
    _write(job, found, manifests[0], data.name, watch)
    return found


def run_crossvalidation(
    data: Path,
    out: Path,
    config: TrainConfig,
    division: CrossValidationConfig,
    progress: Progress,
    *,
    matched: bool,
    resume: bool,
    given: Collection[str],
) -> tuple[dict[str, Any], str]:
    """Run `crossvalidate`; returns the document (`crossvalidation.json`, `out`) and the text."""
    found = crossvalidate(
        data, out, config, division, progress=progress, matched=matched, resume=resume, given=given
    )
    seen = caution_on_folds(found.seen) or found.seen.in_words()
    parts = [seen, _table(found), f"pooled, out of fold:\n{metrics_table(found.pooled)}"]
    if found.matched:
        parts.append(f"pooled, framing matched:\n{_matched_table(found)}")
    files = {"predictions": out / "out_of_fold.csv", "report": out / "report.html"}
    parts.append("\n".join(f"{name:<13}{path}" for name, path in files.items()))
    return _document(found, division) | {"out": str(out)}, "\n\n".join(parts)


def _settings(
    out: Path, config: TrainConfig, given: Collection[str], *, resume: bool
) -> TrainConfig:
    """The training settings of all folds, checked; to resume, those that are stored.

    Older versions stored none: the settings given now are taken.
    """
    begun = resume and (out / CONFIG).exists()
    config = settings_of_run(out, config, given, resume=begun)
    check_settings(_of_fold(config, 1))
    return config


def _claim(
    out: Path, dataset: Dataset, numbers: Sequence[int], config: TrainConfig, *, resume: bool
) -> None:
    """Check that `out` is empty or, to resume, holds the same folds; then write the first files."""
    path, text = out / "folds.csv", _folds_text(dataset, numbers)
    if resume:
        if not path.exists():
            raise UsageError(
                f"--resume: {path} does not exist, so {out} holds nothing to resume. Start it: "
                "the same command without --resume."
            )
        if path.read_text(encoding="utf-8") != text:
            raise UsageError(
                f"--resume: {path} has other images or folds than this command. Give the same "
                "DATA, --folds, --by and --seed, or another --out."
            )
    else:
        check_empty(out)
    claim_folder(out)
    # The folds first: with them alone --resume continues, as with the folder of an older version.
    write_text(path, text)
    write_text(out / CONFIG, to_toml(config))


def _folds_text(dataset: Dataset, numbers: Sequence[int]) -> str:
    rows = (
        (
            safe_path(path_text(record.path)),
            CLASS_NAMES[record.label],
            path_text(record.patient),
            number,
        )
        for record, number in zip(dataset.records, numbers, strict=True)
    )
    return csv_text(("path", "label", "patient", "fold"), rows)


def _fold(job: _Job, number: int) -> tuple[Fold, BundleManifest]:
    """Train on the other folds, unless a finished run exists; score this fold."""
    folder = job.out / f"fold-{number}"
    split = job.out / "splits" / f"fold-{number}.csv"
    if not (folder / "report.html").exists():  # the last file that a run writes
        write_split(split, _parted(job, number))
        config = replace(_of_fold(job.config, number), split=_split(job.config, job.division))
        begun = (folder / CONFIG).exists()
        train(split, folder, config, progress=job.progress, resume=begun, given=_DECIDED)
    predictor = Predictor.load(folder)
    held_out = [r for r, n in zip(job.dataset.records, job.numbers, strict=True) if n == number]
    seen = seen_by(predictor, held_out, job.progress)
    scored = score_all(held_out, predictor, f"held-out fold {number}", job.progress)
    evaluation = evaluate_scored(scored, predictor.manifest, job.config.interval)
    threshold = predictor.manifest.threshold.value
    matched = _matched(job, folder, held_out, number) if job.matched else {}
    return Fold(number, scored, evaluation, threshold, seen, matched), predictor.manifest


def _matched(
    job: _Job, folder: Path, held_out: Sequence[ImageRecord], number: int
) -> dict[float, MatchedFraming]:
    """The predictions on cropped images, which the input check does not judge."""
    predictor = Predictor.load(folder, input_check=False)
    title = f"fold {number}, framing matched"
    return score_matched(held_out, predictor, MATCHED_SHARES, title, job.progress)


def _split(config: TrainConfig, division: CrossValidationConfig) -> SplitConfig:
    """How the patients outside a fold are divided into train and val."""
    return replace(config.split, test=0.0, by=division.by, seed=config.seed)


def _of_fold(config: TrainConfig, number: int) -> TrainConfig:
    """The settings of one fold: `{fold}` in the names of teachers becomes its number."""
    teachers = tuple(choice.replace(FOLD, str(number)) for choice in config.teachers)
    return replace(config, teachers=teachers)


def _matched_folder(out: Path, share: float) -> Path:
    return out / f"matched-{share:g}"


def _parted(job: _Job, number: int) -> Dataset:
    """The data set with this fold as test and the other folds split into train and val."""
    paired = list(zip(job.dataset.records, job.numbers, strict=True))
    shares = _split(job.config, job.division)
    others = iter(assign_splits([record for record, n in paired if n != number], shares)[0])
    records: list[ImageRecord] = [
        replace(record, split="test") if n == number else next(others) for record, n in paired
    ]
    return replace(job.dataset, records=tuple(records))


def _pooled(job: _Job, folds: Sequence[Fold], manifest: BundleManifest) -> CrossValidated:
    """All folds together; `manifest` is that of any fold."""
    threshold = statistics.median(fold.threshold for fold in folds)
    rule = f"median of {len(folds)} thresholds, each chosen on its fold's validation part"
    at = replace(manifest, threshold=OperatingPoint(threshold, rule, "the validation parts"))
    interval = job.config.interval
    scored = _together(job.dataset, [fold.scored for fold in folds])
    predictions = [scored.results[k].prediction for k in scored.ok]
    decisions = [float((p.probability or 0.0) >= (p.threshold or 0.0)) for p in predictions]
    own = bootstrap_metrics(
        scored.labels(), np.array(decisions), scored.patients(), 0.5, interval
    ).estimates
    decided = {name: own[name] for name in _DECISIONS}
    matched = {
        share: evaluate_scored(each.scored, at, interval)
        for share, each in _matched_together(job.dataset, folds).items()
    }
    pooled = evaluate_scored(scored, at, interval)
    return CrossValidated(job.out, tuple(folds), pooled, decided, matched)


def _together(dataset: Dataset, parts: Sequence[Scored]) -> Scored:
    """The out-of-fold predictions of all images, in the order of the data set."""
    results = {
        record.path: result
        for part in parts
        for record, result in zip(part.records, part.results, strict=True)
    }
    return Scored(dataset.records, tuple(results[r.path] for r in dataset.records))


def _matched_together(dataset: Dataset, folds: Sequence[Fold]) -> dict[float, MatchedFraming]:
    return {
        share: MatchedFraming(
            share,
            sum(fold.matched[share].by_median_box for fold in folds),
            _together(dataset, [fold.matched[share].scored for fold in folds]),
        )
        for share in folds[0].matched
    }


def _write(
    job: _Job, found: CrossValidated, manifest: BundleManifest, name: str, watch: Stopwatch
) -> None:
    out, folds = job.out, found.folds
    dataset = with_cautions(job.dataset, caution_on_folds(found.seen))
    point = OperatingPoint(found.pooled.threshold, found.pooled.rule, "the validation parts")
    evaluated = Evaluated(
        _together(dataset, [fold.scored for fold in folds]).at_threshold(point.value),
        found.pooled,
        replace(manifest, threshold=point),
        with_cautions(dataset, reversed_scores(found.pooled)),
        "all",
        name,
        f"{len(folds)}-fold cross-validation (facts are those of fold 1's model)",
        seen=found.seen,
    )
    _write_predictions(out / "out_of_fold.csv", folds)
    write_json(out / "crossvalidation.json", _document(found, job.division))
    pages = {out: evaluated}
    for share, each in _matched_together(dataset, folds).items():
        pages[_matched_folder(out, share)] = replace(
            evaluated,
            scored=each.scored.at_threshold(point.value),
            evaluation=found.matched[share],
            dataset=with_cautions(dataset, each.note(), reversed_scores(found.matched[share])),
            framing=each.facts(),
        )
    for folder, page in pages.items():
        folder.mkdir(exist_ok=True)
        write_split(folder / "labels.csv", dataset)
        report = folder / "report.html"
        write_evaluation(folder, page, config=job.config, seconds=watch.laps, page=report)


def _write_predictions(path: Path, folds: Sequence[Fold]) -> None:
    rows = [
        as_row(result.prediction)
        | {
            "label": CLASS_NAMES[record.label],
            "patient": path_text(record.patient),
            "fold": fold.number,
            "logit": result.logit,
        }
        for fold in folds
        for record, result in zip(fold.scored.records, fold.scored.results, strict=True)
    ]
    write_text(path, csv_text(rows[0], (row.values() for row in rows)))


def _document(found: CrossValidated, division: CrossValidationConfig) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "folds": [fold.row() for fold in found.folds],
        "by": division.by,
        "seen": found.seen.to_dict(),
        "pooled": found.pooled.to_metrics_json(),
        "decided_by_fold_thresholds": {n: asdict(e) for n, e in found.decided.items()},
        "matched": {f"{share:g}": e.to_metrics_json() for share, e in found.matched.items()},
    }


def _table(found: CrossValidated) -> str:
    """A line per fold, and one for all images, each at the threshold of its fold."""
    lines = [f"{'fold':<8}{'images':>8}{'patients':>10}{'threshold':>11}" + "".join(
        f"{name:>13}" for name in _SHOWN
    )]  # fmt: skip
    for fold in found.folds:
        values = "".join(f"{_shown(fold.evaluation.metrics[name]):>13}" for name in _SHOWN)
        evaluation = fold.evaluation
        lines.append(
            f"{fold.number:<8}{evaluation.n:>8}{evaluation.patients:>10}{fold.threshold:>11.4f}"
            f"{values}"
        )
    rates = "; ".join(
        f"{name} {_with_interval(found.decided[name])}"
        for name in ("sensitivity", "specificity", "accuracy")
    )
    return "\n".join([*lines, "", f"all images, each at the threshold of its fold: {rates}"])


def _matched_table(found: CrossValidated) -> str:
    """A line per share."""
    names = _SHOWN[:3]
    head = "lungs fill" + "".join(f"{name:>27}" for name in names)
    rows = [
        f"{share:<10g}" + "".join(f"{_with_interval(each.metrics[name]):>27}" for name in names)
        for share, each in found.matched.items()
    ]
    return "\n".join([head, *rows])


def _with_interval(estimate: Estimate) -> str:
    low, high = _shown_number(estimate.low), _shown_number(estimate.high)
    return f"{_shown(estimate)} ({low} to {high})"


def _shown(estimate: Estimate) -> str:
    return _shown_number(estimate.value)


def _shown_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
