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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pneumoscope.config import ProvenanceConfig, TrainConfig, check_ranges, from_toml, to_toml
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
from pneumoscope.records import Dataset, ImageRecord
from pneumoscope.report.content import EpochPoint, LearningCurves
from pneumoscope.storage import (
    cache_folder,
    claim_folder,
    leftovers,
    path_text,
    remove_leftovers,
    write_text,
)
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
from pneumoscope.training.weights import WEIGHTS_BY_NAME, load_backbone_weights, resolve_weights
from pneumoscope.workflows.answering import Answered, answer_all, evaluate_answers
from pneumoscope.workflows.card import card_text
from pneumoscope.workflows.evaluate import Evaluated, metrics_table, write_evaluation
from pneumoscope.workflows.facts import announce
from pneumoscope.workflows.timing import Stopwatch, peak_memory_mb


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a run is about to do: its folder, its configuration and its data."""

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
        given: dotted names (`views`, `fit.epochs`) of settings that the user gave, to tell them of
            a conflict on resuming.

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
    claim_folder(cache_folder())
    _begin(prepared)
    watch.lap("data and network")
    train, val, dataset = _features(dataset, config, backbone, progress)
    watch.lap("features")
    architecture = _architecture(config)
    checkpoint = out / "checkpoint.npz"
    trained = train_head(
        train, val, architecture, config.fit, config.seed, auc, checkpoint, progress
    )
    _write_history(out / "history.csv", trained.history)
    watch.lap("head")
    network = build_network(backbone, architecture, trained.weights)
    seen = [dataset.subset("train").records[k] for k in train.table.kept]
    manifest = _manifest(seen, config, architecture, initial)
    predictor = Predictor(manifest, KerasBackend(network))
    answered = answer_all(dataset.subset("val").records, predictor, "validation", progress)
    manifest = _operating(manifest, answered, config)
    answered = answered.decided_anew(manifest)
    evaluation = evaluate_answers(answered, manifest, config.interval)
    manifest = replace(manifest, validation=evaluation.to_metrics_json())
    card = card_text(data.name, dataset, manifest, config, evaluation, len(trained.history))
    bundle = write_bundle(out / "model", network, manifest, card)
    watch.lap("validation and evaluation")
    evaluated = Evaluated(answered, evaluation, bundle.manifest, dataset, "val", data.name)
    write_split(out / "evaluation" / "labels.csv", dataset.subset("val"))
    _report(out, evaluated, config, watch.laps, trained)
    checkpoint.unlink(missing_ok=True)
    seconds = MappingProxyType(watch.laps)
    return TrainedRun(out, bundle, evaluation, trained.history, trained.best, seconds)


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
    # A process killed before it wrote its first file left nothing to go on with, nor to lose.
    if not resume and out.is_dir() and set(out.iterdir()) > set(leftovers(out)):
        raise UsageError(
            f"--out {out}: is not empty. Give another folder, or --resume to go on with its run."
        )
    if config.weights not in WEIGHTS_BY_NAME:  # a file: found again from any folder
        config = replace(config, weights=str(Path(config.weights).absolute()))
    if resume:
        config = _resumed(config, from_toml(TrainConfig, stored), given)
    check_ranges(config)
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
        provenance=ProvenanceConfig(
            path_text(data.absolute()), found, metadata.version("pneumoscope")
        ),
    )
    return _Prepared(out, config, dataset)


def _begin(prepared: _Prepared) -> None:
    """Write the first files of a run, once nothing that it needs is missing any more."""
    out = prepared.folder
    claim_folder(out)
    for folder in (out, out / "evaluation", out / "evaluation" / "figures"):
        remove_leftovers(folder)
    write_text(out / "config.toml", to_toml(prepared.config))
    write_split(out / "split.csv", prepared.dataset)


def _resumed(asked: TrainConfig, stored: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The stored config; a setting that the user gave must agree with it."""
    mine, its = _settings(asked), _settings(stored)
    for name in given:
        if mine[name] != its[name]:
            raise UsageError(
                f"--resume: the run has {name} = {its[name]!r}, you gave {mine[name]!r}. Leave it "
                "out to go on, or begin a new run in another folder."
            )
    return stored


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name, `fit.epochs`."""
    found: dict[str, Any] = {}
    for setting in fields(config):
        name, value = prefix + setting.name, getattr(config, setting.name)
        found |= _settings(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found


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


def _architecture(config: TrainConfig) -> Architecture:
    fit = config.fit
    return Architecture("densenet121", config.preprocess.size, fit.dropout, fit.hidden_units)


def _features(
    dataset: Dataset, config: TrainConfig, backbone: Any, progress: Progress
) -> tuple[LabelledFeatures, LabelledFeatures, Dataset]:
    """Features of train and of val, and the data set with a note of the images that have none."""
    extractor = KerasExtractor(backbone)
    parts = []
    notes = []
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
        if table.refused:
            notes.append(
                f"{len(table.refused)} images of {split} were left out, the first is "
                f"{path_text(str(table.refused[0]))}."
            )
    return parts[1], parts[0], replace(dataset, warnings=(*dataset.warnings, *notes))


def _manifest(
    train: Sequence[ImageRecord],
    config: TrainConfig,
    architecture: Architecture,
    initial: InitialWeights,
) -> BundleManifest:
    """The manifest, before calibration and threshold are known, of what saw the images `train`."""
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


def _report(
    out: Path,
    evaluated: Evaluated,
    config: TrainConfig,
    seconds: Mapping[str, float],
    trained: TrainedHead,
) -> None:
    write_evaluation(
        out / "evaluation",
        evaluated,
        config=config,
        seconds=seconds,
        learning=_curves(trained),
        page=out / "report.html",
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
        "peak_memory_mb": peak,
        "validation": run.evaluation.to_metrics_json(),
    }
    text = (
        f"{metrics_table(run.evaluation)}\n\n"
        f"best of {len(run.history)} epochs: {run.best + 1}; "
        f"{sum(run.seconds.values()):.0f} s; peak memory {peak or '?'} MB\n"
        f"model   {run.bundle.folder}\nreport  {run.folder / 'report.html'}\n"
        f"next    pneumoscope predict FILES --model {run.folder} --heatmaps heatmaps"
    )
    return document, text
