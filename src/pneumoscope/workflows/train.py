"""`train`: from a folder of X-rays to a bundle, its evaluation on validation, and a report.

RUN/config.toml     everything needed to run it again
RUN/split.csv       who is in which split
RUN/checkpoint.npz  the head after the last whole epoch; gone when the run is finished
RUN/history.csv     what every epoch scored
RUN/model/          the bundle
RUN/evaluation/     metrics, predictions and figures on validation
RUN/report.html
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pneumoscope.config import ProvenanceConfig, TrainConfig, from_toml, to_toml
from pneumoscope.data.fingerprint import fingerprint
from pneumoscope.data.index import index
from pneumoscope.data.split import with_usable_validation, write_split
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.calibration import fit_calibration
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.metrics import auc
from pneumoscope.evaluation.threshold import choose_threshold
from pneumoscope.inference.backends import KerasBackend
from pneumoscope.inference.bundle import (
    Bundle,
    BundleManifest,
    InitialWeights,
    OperatingPoint,
    TrainingData,
    write_bundle,
)
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import Dataset
from pneumoscope.report.content import EpochPoint, LearningCurves
from pneumoscope.storage import cache_folder, remove_leftovers, write_text
from pneumoscope.training.extractor import KerasExtractor
from pneumoscope.training.features import FeatureTable, Views, compute_features
from pneumoscope.training.head import Epoch, LabelledFeatures, TrainedHead, train_head
from pneumoscope.training.network import (
    Architecture,
    build_backbone,
    build_network,
    initialise_randomly,
    weights_digest,
)
from pneumoscope.training.weights import load_backbone_weights, resolve_weights
from pneumoscope.workflows.answering import Answered, answer_all, evaluate_answers
from pneumoscope.workflows.card import card_text
from pneumoscope.workflows.evaluate import Evaluated, metrics_table, write_evaluation
from pneumoscope.workflows.facts import announce
from pneumoscope.workflows.timing import Stopwatch, peak_memory_mb


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A run folder that knows its data and its configuration."""

    folder: Path
    config: TrainConfig
    dataset: Dataset


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run.

    Attributes:
        folder: RUN.
        bundle: the model, as it lies in `RUN/model`.
        evaluation: on the validation images, on which epoch and threshold were chosen too.
        history: what every epoch scored.
        best: index of the epoch that was kept.
        seconds: wall time per stage.
    """

    folder: Path
    bundle: Bundle
    evaluation: Evaluation
    history: tuple[Epoch, ...]
    best: int
    seconds: Mapping[str, float]


def train(
    data: Path | str,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    progress: Progress = SILENT,
    resume: bool = False,
    given: Collection[str] = (),
) -> TrainedRun:
    """Train on `data` into the run folder `out`.

    Args:
        data: DATA by the contract.
        out: a new folder, or with `resume` the folder of a run that stopped.
        config: how; with `resume` the run's own config counts.
        progress: is told of every stage.
        resume: go on where the run stopped.
        given: names of settings that the user gave, to tell them of a conflict on resuming.

    Raises:
        UsageError: `out` is taken, or a setting conflicts with the run that is resumed.
        DataError: the data can't be trained on, or changed since the run began.
        MissingError: weights or an extra are missing.
    """
    data, out = Path(data), Path(out)
    watch = Stopwatch()
    prepared = _prepare(data, out, config or TrainConfig(), progress, resume, given)
    config, dataset = prepared.config, prepared.dataset
    backbone, initial = _backbone(config)
    watch.lap("data and network")
    train, val = _features(dataset, config, backbone, progress)
    watch.lap("features")
    architecture = Architecture(
        "densenet121", config.preprocess.size, config.fit.dropout, config.fit.hidden_units
    )
    checkpoint = out / "checkpoint.npz"
    trained = train_head(
        train, val, architecture, config.fit, config.seed, auc, checkpoint, progress
    )
    _write_history(out / "history.csv", trained.history)
    watch.lap("head")
    network = build_network(backbone, architecture, trained.weights)
    manifest = _manifest(dataset, config, architecture, initial)
    answered = answer_all(
        dataset.subset("val").records,
        Predictor(manifest, KerasBackend(network)),
        "validation",
        progress,
    )
    manifest = _operating(manifest, answered, config)
    answered = answered.decided_anew(manifest)
    evaluation = evaluate_answers(answered, manifest, config.interval)
    manifest = replace(manifest, validation=evaluation.to_metrics_json())
    card = card_text(data.name, dataset, manifest, config, evaluation, len(trained.history))
    bundle = write_bundle(out / "model", network, manifest, card)
    watch.lap("validation and evaluation")
    evaluated = Evaluated(answered, evaluation, bundle.manifest, dataset, "val", data.name)
    write_evaluation(
        out / "evaluation",
        evaluated,
        config=config,
        seconds=watch.laps,
        learning=_curves(trained),
        page=out / "report.html",
    )
    checkpoint.unlink(missing_ok=True)
    return TrainedRun(
        out, bundle, evaluation, trained.history, trained.best, MappingProxyType(watch.laps)
    )


def run_training(
    data: Path,
    out: Path,
    config: TrainConfig,
    progress: Progress,
    *,
    resume: bool = False,
    given: Collection[str] = (),
) -> tuple[dict[str, Any], str]:
    """`train`, told as a document and a text: where the results are, the metrics on validation."""
    return _outcome(train(data, out, config, progress=progress, resume=resume, given=given))


def _prepare(
    data: Path,
    out: Path,
    config: TrainConfig,
    progress: Progress,
    resume: bool,
    given: Collection[str],
) -> _Prepared:
    stored = out / "config.toml"
    if resume and not stored.exists():
        raise UsageError(
            f"--resume: {stored} is not there, so {out} holds no run to go on with. "
            "Start it: the same command without --resume."
        )
    if not resume and out.exists() and any(out.iterdir()):
        raise UsageError(
            f"--out {out}: is not empty. Give another folder, or --resume to go on with its run."
        )
    remove_leftovers(out)
    if resume:
        config = _resumed(config, from_toml(TrainConfig, stored), given)
    _check(config)
    dataset = index(data, progress=progress)
    dataset, messages = with_usable_validation(
        dataset, replace(config.split, seed=config.seed), config.keep_val
    )
    dataset = replace(dataset, warnings=(*dataset.warnings, *messages))
    announce(dataset)
    found = fingerprint(dataset.records)
    if resume and config.provenance.fingerprint != found:
        raise DataError(
            f"{data}: its fingerprint is {found[:16]}…, the run began on "
            f"{config.provenance.fingerprint[:16]}… ({config.provenance.data}). The images, labels "
            "or patients changed: begin a new run in another folder."
        )
    config = replace(
        config,
        provenance=ProvenanceConfig(str(data), found, metadata.version("pneumoscope")),
    )
    write_text(stored, to_toml(config))
    write_split(out / "split.csv", dataset)
    return _Prepared(out, config, dataset)


def _check(config: TrainConfig) -> None:
    if config.views < 1:
        raise UsageError(f"views: found {config.views}, wanted 1 or more")
    if config.fit.epochs < 1:
        raise UsageError(f"epochs: found {config.fit.epochs}, wanted 1 or more")


def _resumed(asked: TrainConfig, stored: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The stored config; a setting that the user gave must agree with it."""
    known = {f.name for f in fields(TrainConfig)}
    for name in given:
        mine, its = (
            (getattr(asked, name), getattr(stored, name))
            if name in known
            else (getattr(asked.fit, name), getattr(stored.fit, name))
        )
        if mine != its:
            raise UsageError(
                f"--resume: the run has {name} = {its!r}, you gave {mine!r}. Leave it out to go "
                "on, or begin a new run in another folder."
            )
    return stored


def _backbone(config: TrainConfig) -> tuple[Any, InitialWeights]:
    source = resolve_weights(config.weights)
    backbone = build_backbone(config.preprocess.size)
    if source.kind == "none":
        initialise_randomly(backbone, config.seed)
        return backbone, InitialWeights(
            f"random (He-normal, seed {config.seed})", weights_digest(backbone)
        )
    load_backbone_weights(backbone, source)
    return backbone, InitialWeights(source.origin, source.sha256)


def _features(
    dataset: Dataset, config: TrainConfig, backbone: Any, progress: Progress
) -> tuple[LabelledFeatures, LabelledFeatures]:
    extractor = KerasExtractor(backbone)
    parts = []
    for split, count in (("val", 1), ("train", config.views)):
        records = dataset.subset(split).records  # type: ignore[arg-type]
        table: FeatureTable = compute_features(
            records,
            Views(count, config.augment, config.seed),
            config.preprocess,
            extractor,
            cache_folder(),
            progress,
        )
        labels = np.array([records[k].label for k in table.kept], np.int64)
        parts.append(LabelledFeatures(table, labels))
    return parts[1], parts[0]


def _manifest(
    dataset: Dataset, config: TrainConfig, architecture: Architecture, initial: InitialWeights
) -> BundleManifest:
    """The manifest before calibration and threshold are known."""
    train = dataset.subset("train").records
    return BundleManifest(
        pneumoscope_version=metadata.version("pneumoscope"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        architecture=architecture,
        preprocessing=config.preprocess,
        training_data=TrainingData(
            fingerprint(train),
            len(train),
            len({record.patient for record in train}),
            sum(record.label for record in train),
        ),
        initial_weights=initial,
    )


def _operating(manifest: BundleManifest, answered: Answered, config: TrainConfig) -> BundleManifest:
    """Calibration and threshold, both chosen on the validation images and on nothing else."""
    labels, patients = answered.labels(), answered.patients()
    calibration = fit_calibration(labels, answered.logits(), patients, config.seed)
    calibrated = answered.decided_anew(replace(manifest, calibration=calibration))
    chosen = choose_threshold(labels, calibrated.probabilities(), config.threshold)
    where = f"{len(labels)} validation images of {len(set(patients))} patients"
    return replace(
        manifest,
        calibration=calibration,
        threshold=OperatingPoint(chosen.value, chosen.rule, where),
    )


def _write_history(path: Path, history: tuple[Epoch, ...]) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [f.name for f in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in history)
    write_text(path, stream.getvalue())


def _curves(trained: TrainedHead) -> LearningCurves:
    points = tuple(
        EpochPoint(e.epoch + 1, e.loss, e.val_loss, e.val_auc, e.learning_rate)
        for e in trained.history
    )
    return LearningCurves(points, trained.best + 1)


def _outcome(run: TrainedRun) -> tuple[dict[str, Any], str]:
    peak = peak_memory_mb()
    document = {
        "run": str(run.folder),
        "model": str(run.bundle.folder),
        "report": str(run.folder / "report.html"),
        "epochs": len(run.history),
        "best_epoch": run.best + 1,
        "seconds": dict(run.seconds),
        "peak_memory_mb": round(peak),
        "validation": run.evaluation.to_metrics_json(),
    }
    text = (
        f"{metrics_table(run.evaluation)}\n\n"
        f"best of {len(run.history)} epochs: {run.best + 1}; "
        f"{sum(run.seconds.values()):.0f} s; peak memory {peak:.0f} MB\n"
        f"model   {run.bundle.folder}\nreport  {run.folder / 'report.html'}\n"
        f"next    pneumoscope predict FILES --model {run.folder} --heatmaps heatmaps"
    )
    return document, text
