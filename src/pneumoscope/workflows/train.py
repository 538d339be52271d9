"""`train`: from a folder of X-rays to a bundle, its evaluation on validation, and a report.

RUN/config.toml          everything needed to run it again
RUN/split.csv            who is in which split
RUN/checkpoint-*.npz     a stage after its last whole epoch; gone when the run is finished
RUN/history.csv          loss, AUC and accuracy of every epoch, written as training goes on
RUN/model/               the bundle
RUN/evaluation/          metrics, predictions and figures on validation
RUN/report.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pneumoscope.config import TrainConfig, training_config, with_settings
from pneumoscope.data.index import fingerprint
from pneumoscope.data.splits import write_split
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.metrics import auc
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.images.dicom.patient import describe_ages
from pneumoscope.images.grey import summary, summary_lines
from pneumoscope.inference.bundle import (
    Bundle,
    BundleManifest,
    InitialWeights,
    InputCheck,
    TrainingData,
    write_bundle,
)
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.inference.input_check import statistics_of
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.weights_store import Table
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import Dataset, ImageRecord, make_frame
from pneumoscope.report.content import EpochPoint, LearningCurves
from pneumoscope.storage import (
    cache_folder,
    claim_cache,
    path_text,
    writes_alone,
)
from pneumoscope.training.backbones import arrays_of, build_backbone
from pneumoscope.training.guidance import described_teacher
from pneumoscope.training.network import initialise_randomly, weights_digest
from pneumoscope.training.recipes import Job, StageEpoch, Trained, architecture, train_network
from pneumoscope.training.runtime import (
    choose_backend,
    describe_runtime,
    distribute,
    keep_to_one_thread,
)
from pneumoscope.training.weights import load_backbone_weights, resolve_weights
from pneumoscope.workflows.certify import state
from pneumoscope.workflows.documentation import card_text
from pneumoscope.workflows.evaluate import Evaluated, write_evaluation
from pneumoscope.workflows.evaluation_folder import metrics_table
from pneumoscope.workflows.input_check import (
    QUICK,
    EmbeddingBackend,
    card_with_check,
    either,
    pooled_by_record,
    scored_by_record,
    tables_of,
    warn_without_check,
    with_input_check,
)
from pneumoscope.workflows.operating_point import with_operating_point
from pneumoscope.workflows.run_folder import Prepared, ages_of, begin, prepare, with_cautions
from pneumoscope.workflows.scoring import Scored, evaluate_scored, score_all
from pneumoscope.workflows.seen import caution_on_validation, hashes_of_earlier, hashes_of_training
from pneumoscope.workflows.tracking import (
    HISTORY_COLUMNS,
    Callback,
    HistoryFile,
    MLflow,
    Stopwatch,
    TensorBoard,
    check_callbacks,
    peak_memory_mb,
)


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished training run.

    Attributes:
        folder: RUN.
        bundle: the model in `RUN/model`.
        evaluation: on the validation images, on which epoch and threshold were also chosen.
        history: losses and validation metrics of every epoch of every stage.
        best: index, in `history`, of the epoch that the first network kept.
        seconds: wall time per stage.
        warned: number of images of train and val with each warning.

    Examples:
        >>> run.folder.name, len(run.history), run.best in (0, 1)
        ('run', 2, True)
        >>> run.history_frame().columns[:3]
        ['seed', 'stage', 'epoch']
    """

    folder: Path
    bundle: Bundle
    evaluation: Evaluation
    history: tuple[StageEpoch, ...]
    best: int
    seconds: Mapping[str, float]
    warned: Mapping[str, int]
    members: tuple[tuple[int, int, int], ...] = ()
    """Per network its seed, the epoch that it kept (from 1), and its number of epochs."""

    def history_frame(self) -> Any:
        """`history.csv` as a DataFrame, a row for every epoch: polars, else pandas."""
        rows = [asdict(epoch) for epoch in self.history]
        columns = {name: [row[name] for row in rows] for name in HISTORY_COLUMNS}
        return make_frame(columns, set(HISTORY_COLUMNS) - {"stage"})


@writes_alone
def train(
    data: Path | str,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    recipe: str | None = None,
    callbacks: Sequence[Callback] = (),
    progress: Progress = SILENT,
    resume: bool = False,
    given: Collection[str] = (),
    **settings: Any,
) -> TrainedRun:
    """Train a model on labelled images: split by patient, fit, calibrate, choose a threshold.

    Args:
        data: a folder of `train/`, `val/`, `test/`, a folder of `NORMAL/` and `PNEUMONIA/`, or a
            CSV with the columns `path,label`.
        out: a new folder, or with `resume` the folder of a run that was interrupted.
        config: how to train; with `resume` the configuration in `out` is used.
        recipe: `frozen`, `finetune` or `scratch`, as `--recipe`: instead of a `config`.
        callbacks: functions that receive every epoch when it ends, such as `TensorBoard(folder)`;
            on resuming only those that are still to come.
        progress: receives how far each stage is, such as `TerminalProgress()`.
        resume: go on where the run was interrupted.
        given: dotted names (`views`, `fit.epochs`) of the settings that `config` holds because the
            user asked for them; on resuming they must agree with the run's.
        settings: single settings by name, which override the recipe's or those of `config`:
            `weights="none"`, `epochs=3`, `fit={"batch_size": 8}`.

    Raises:
        UsageError: `out` is not empty, another process uses it, a setting conflicts with the run
            that is resumed, or a callback can't be called.
        DataError: the data is unsuitable for training, or changed since the run began.
        BundleError: a bundle of initial weights or a teacher is damaged.
        MissingError: weights or an extra are missing.

    Examples:
        >>> losses = []
        >>> run = train(
        ...     xrays, folder / "scratch", recipe="scratch", epochs=2, keep_val=True,
        ...     preprocess={"size": 32}, scratch={"sizes": [32], "shares": [1.0]},
        ...     callbacks=[lambda epoch: losses.append(epoch.loss)],
        ... )
        >>> len(losses), run.history[0].stage, run.evaluation.n
        (2, 'network', 6)
    """
    watch = Stopwatch()
    check_callbacks(callbacks)
    config, named = _chosen(config, recipe, settings)
    prepared = prepare(Path(data), Path(out), config, progress, resume, {*given, *named})
    return _train(prepared, progress, watch, callbacks)


def _chosen(
    config: TrainConfig | None, recipe: str | None, settings: Mapping[str, Any]
) -> tuple[TrainConfig, set[str]]:
    """The configuration that the arguments of `train` make, and the dotted names among them.

    Raises:
        UsageError: a recipe that the configuration contradicts, or an unknown or bad setting.
    """
    if config is None:
        config = training_config(recipe)
    elif recipe is not None and recipe != config.recipe:
        raise UsageError(
            f"recipe: found {recipe!r} beside a configuration of {config.recipe!r}, wanted one of "
            f"them. Leave one out; RECIPES[{recipe!r}] is the configuration of a recipe."
        )
    named = {"recipe"} if recipe is not None else set()
    for name, value in settings.items():
        parts = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        if name == "epochs":
            named.add("fit.epochs")
        else:
            named |= {f"{name}.{part}" for part in parts} if isinstance(parts, dict) else {name}
    return with_settings(config, settings), named


def _train(
    prepared: Prepared, progress: Progress, watch: Stopwatch, callbacks: Sequence[Callback] = ()
) -> TrainedRun:
    config, dataset, out = prepared.config, prepared.dataset, prepared.folder
    data = Path(config.provenance.data)
    earlier = hashes_of_earlier(config)  # a damaged bundle is refused before anything is trained
    val = dataset.subset("val").records
    dataset = with_cautions(dataset, caution_on_validation(earlier, val, progress))
    history_file = HistoryFile(out / "history.csv", callbacks)
    trained, initial = _networks(prepared, progress, watch, history_file)
    history = tuple(row for one in trained for row in one.history)
    predictor, table, scored = _scored_validation(trained, dataset, config, initial, progress)
    found = () if config.ages else predictor.manifest.ages
    dataset = _with_notes(dataset, trained[0], found)
    manifest = with_operating_point(predictor.manifest, scored, predictor, config, progress)
    scored = scored.with_decisions(manifest)
    evaluation = evaluate_scored(scored, manifest, config.interval)
    manifest = replace(manifest, validation=evaluation.to_metrics_json())
    card = card_text(data.name, dataset, manifest, config, evaluation, trained[0].last_stage_epochs)
    card = card_with_check(card, manifest.input_check)
    members = [one.network for one in trained]
    train = dataset.subset("train").records
    kept = [train[k] for k in trained[0].kept]
    seen = hashes_of_training(kept, scored.records, earlier, progress)
    write_bundle(out / "model", members, manifest, card, {**tables_of(table), **seen})
    bundle, _ = state(out / "model", out / "model")
    watch.lap("validation and evaluation")
    evaluated = Evaluated(scored, evaluation, bundle.manifest, dataset, "val", data.name)
    write_split(out / "evaluation" / "labels.csv", dataset.subset("val"))
    write_evaluation(
        out / "evaluation",
        evaluated,
        config=config,
        seconds=watch.laps,
        learning=_curves(trained, config),
        page=out / "report.html",
    )
    for checkpoint in out.glob("checkpoint-*.npz"):
        checkpoint.unlink()
    warn_without_check(manifest.input_check, kept, scored.records)
    warned = sum(trained[0].warned.values(), Counter[str]())
    return TrainedRun(
        out,
        bundle,
        evaluation,
        history,
        trained[0].best,
        MappingProxyType(watch.laps),
        MappingProxyType(dict(warned.most_common())),
        tuple(
            (seed, one.best + 1, len(one.history))
            for seed, one in zip(config.seeds or (config.seed,), trained, strict=True)
        ),
    )


@writes_alone
def run_training(
    data: Path,
    out: Path,
    config: TrainConfig,
    progress: Progress,
    *,
    resume: bool = False,
    given: Collection[str] = (),
    tensorboard: Path | None = None,
    mlflow: bool = False,
) -> tuple[dict[str, Any], str]:
    """Run `train`; returns the JSON document and the terminal text with the validation metrics."""
    watch = Stopwatch()
    callbacks: list[Callback] = [] if tensorboard is None else [TensorBoard(tensorboard)]
    callbacks += [MLflow()] if mlflow else []
    prepared = prepare(data, out, config, progress, resume, given)
    if prepared.config.recipe == "frozen":  # a command does not share its process
        keep_to_one_thread()
    return _outcome(_train(prepared, progress, watch, callbacks))


def _networks(
    prepared: Prepared, progress: Progress, watch: Stopwatch, history: HistoryFile
) -> tuple[list[Trained], InitialWeights]:
    """Train one network per seed; writes the first files once the weights are loaded."""
    config, dataset, out = prepared.config, prepared.dataset, prepared.folder
    choose_backend(config.backend, trains_convolutions=config.recipe != "frozen")
    distribute(config.fit.batch_size)
    seeds = config.seeds or (config.seed,)
    train, val = dataset.subset("train").records, dataset.subset("val").records
    trained: list[Trained] = []
    initial: list[InitialWeights] = []
    for seed in seeds:
        one = replace(config, seed=seed)
        backbone, origin = _backbone(one)
        if not trained:
            claim_cache()
            begin(prepared)
            watch.lap("data and network")
        job = Job(train, val, one, backbone, cache_folder(), out, auc, progress, history)
        trained.append(train_network(job))
        initial.append(origin)
        watch.lap(f"training, seed {seed}" if len(seeds) > 1 else "training")
    if len(seeds) == 1:
        return trained, initial[0]
    origins = "; ".join(dict.fromkeys(each.origin for each in initial))
    return trained, InitialWeights(origins, initial[0].sha256)


def _backbone(config: TrainConfig) -> tuple[Any, InitialWeights]:
    source = resolve_weights(config.weights, backbone=config.backbone)
    backbone = build_backbone(config.preprocess.size, config.backbone)
    if source.kind == "none":
        initialise_randomly(backbone, config.seed)
        return backbone, InitialWeights(
            f"random (He-normal, seed {config.seed})", weights_digest(backbone)
        )
    load_backbone_weights(backbone, source)
    return backbone, InitialWeights(source.origin, source.sha256)


def _scored_validation(
    trained: Sequence[Trained],
    dataset: Dataset,
    config: TrainConfig,
    initial: InitialWeights,
    progress: Progress,
) -> tuple[Predictor, Table, Scored]:
    """Fit the input check and score the validation images.

    The scores come from the same engine as later predictions, so they agree to the last digit.

    Returns:
        The predictor of the trained networks, the table of its input check, and the validation
        images with their results.
    """
    networks = [arrays_of(one.network) for one in trained]
    train = dataset.subset("train").records
    seen = [train[k] for k in trained[0].kept]
    val = dataset.subset("val").records
    manifest = _manifest(seen, config, initial)
    backend = OpenVinoBackend(networks, config.preprocess.size, flip=config.flip)
    # The input check is fitted to these results and then applied to them.
    unchecked = Predictor(manifest, backend, looks=True)
    scored = score_all(val, unchecked, "validation", progress)
    check, table = _input_check(networks[0], trained[0], seen, scored, manifest, progress)
    manifest, statistics = replace(manifest, input_check=check), statistics_of(check, table)
    predictor = Predictor(manifest, backend, statistics=statistics)
    if statistics is not None:
        scored = scored.checked_by(predictor)
    elif len(scored.ok) < len(val):  # colour pictures, which this model can't refuse
        scored = score_all(val, predictor, "validation, unchecked", progress)
    return predictor, table, scored


def _input_check(
    network: NetworkArrays,
    trained: Trained,
    seen: Sequence[ImageRecord],
    scored: Scored,
    manifest: BundleManifest,
    progress: Progress,
) -> tuple[InputCheck, Table]:
    """Fit the input check of the first network; reuses embeddings that are already computed."""
    pooled, size = trained.pooled, manifest.preprocessing.size
    backend = EmbeddingBackend(pooled.extractor) if pooled else OpenVinoBackend([network], size)
    known = scored_by_record(scored)
    return with_input_check(
        Predictor(manifest, backend),
        seen,
        scored.records,
        progress,
        lookup=either(known, pooled_by_record(pooled, seen)) if pooled else known,
        effort=QUICK if pooled else None,
    )


def _with_notes(dataset: Dataset, trained: Trained, ages: tuple[int, ...]) -> Dataset:
    """The data set with warnings about skipped images, unusual files, and ages found in it."""
    notes = [
        f"images of {split} that can't be read and were skipped: {len(refused)}, the first is "
        f"{path_text(str(refused[0]))}."
        for split, refused in trained.refused.items()
        if refused
    ]
    notes += [
        f"Images of {split} with unusual files: {summary(warned)}."
        for split, warned in trained.warned.items()
        if warned
    ]
    if ages:
        notes.append(
            f"the model is for {describe_ages(ages)}, the ages in the column 'age' of its training "
            "images. --ages states others."
        )
    return replace(dataset, warnings=(*dataset.warnings, *notes))


def _manifest(
    train: Sequence[ImageRecord], config: TrainConfig, initial: InitialWeights
) -> BundleManifest:
    """The manifest before calibration and threshold; `train` are the training images."""
    return BundleManifest(
        pneumoscope_version=metadata.version("pneumoscope"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        architecture=architecture(config),
        members=len(config.seeds) or 1,
        flip=config.flip,
        store=config.store,
        preprocessing=config.preprocess,
        ages=config.ages or ages_of(train),
        training_data=TrainingData(
            fingerprint(train),
            len(train),
            len({record.patient for record in train}),
            sum(record.label for record in train),
        ),
        initial_weights=initial,
        teachers=tuple(map(described_teacher, config.teachers)),
    )


def _curves(trained: Sequence[Trained], config: TrainConfig) -> LearningCurves:
    """Learning curves of the first network; a second stage follows the first."""
    first = trained[0]
    points = tuple(
        EpochPoint(k + 1, e.loss, e.val_loss, e.val_auc, e.learning_rate)
        for k, e in enumerate(first.history)
    )
    return LearningCurves(points, first.best + 1, config.fit.keep, len(trained))


def _kept_epochs(run: TrainedRun) -> str:
    """The epoch that each network kept, of how many."""
    if len(run.members) < 2:
        return f"kept epoch {run.best + 1} of {len(run.history)}"
    each = (f"{best} of {epochs} (seed {seed})" for seed, best, epochs in run.members)
    return f"kept epochs of {len(run.members)} networks: {', '.join(each)}"


def _outcome(run: TrainedRun) -> tuple[dict[str, Any], str]:
    peak = peak_memory_mb()
    odd = "".join(f"{line}\n" for line in summary_lines(Counter(run.warned)))
    document = {
        "run": str(run.folder),
        "model": str(run.bundle.folder),
        "report": str(run.folder / "report.html"),
        "epochs": len(run.history),
        "best_epoch": run.best + 1,
        "networks": [
            {"seed": seed, "best_epoch": best, "epochs": epochs}
            for seed, best, epochs in run.members
        ],
        "runtime": describe_runtime(),
        "seconds": dict(run.seconds),
        "peak_memory_mb": peak,
        "warnings": dict(run.warned),
        "input_check": run.bundle.manifest.input_check.method,
        "validation": run.evaluation.to_metrics_json(),
    }
    text = (
        f"{metrics_table(run.evaluation)}\n\n"
        f"{_kept_epochs(run)}; "
        f"{sum(run.seconds.values()):.0f} s; peak memory {peak or '?'} MB\n{odd}"
        f"model   {run.bundle.folder}\nreport  {run.folder / 'report.html'}\n"
        f"next    pneumoscope predict FILES --model {run.folder} --heatmaps heatmaps"
    )
    return document, text
