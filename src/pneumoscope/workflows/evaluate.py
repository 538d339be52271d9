"""`evaluate`: measure a model on labelled images and write the results into a folder.

The folder gets the files listed in `evaluation_folder.py`, and `labels.csv`, a manifest of the same
images in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pneumoscope.config import IntervalConfig, TrainConfig
from pneumoscope.data.index import fingerprint, index
from pneumoscope.data.splits import write_split
from pneumoscope.data.training_overlap import TrainingOverlap
from pneumoscope.delivery.dicom_report.source import checks_of
from pneumoscope.errors import DataError
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.images.grey import summary, summary_lines
from pneumoscope.inference.bundle import BundleManifest, model_fingerprint
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import SPLITS, UNCERTAIN, Dataset
from pneumoscope.report.content import EvaluatedSplit, LearningCurves, ModelFacts, ReportContent
from pneumoscope.storage import claim_folder, writes_alone
from pneumoscope.workflows.documentation import checklist_facts, flow_of
from pneumoscope.workflows.evaluation_folder import (
    EvaluationFiles,
    evaluation_text,
    run_facts,
    write_evaluation_files,
)
from pneumoscope.workflows.run_folder import (
    announce,
    data_facts,
    model_facts,
    with_cautions,
)
from pneumoscope.workflows.scoring import (
    Scored,
    abstained,
    evaluate_scored,
    label_columns,
    refusals_of,
    reversed_scores,
    score_all,
    score_matched,
    worst_errors,
)
from pneumoscope.workflows.seen import seen_by


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation with its inputs.

    Examples:
        >>> found = evaluate_model(xrays, folder / "val", run.folder, "val", input_check=False)
        >>> len(found.dataset) == found.evaluation.n
        True
    """

    scored: Scored
    evaluation: Evaluation
    manifest: BundleManifest
    dataset: Dataset
    split: EvaluatedSplit
    data_name: str
    model_name: str = ""
    commands: Mapping[str, str] = field(default_factory=dict)
    whole: Dataset | None = None
    """The data set that `dataset` is a part of, if it is a part."""
    seen: TrainingOverlap | None = None
    """Number of images that the model was trained on; `None` if not counted."""

    framing: Mapping[str, float] = field(default_factory=dict)
    """How the images were cropped before scoring; empty if they were not."""


@writes_alone
def evaluate_model(  # noqa: PLR0913 - data, a model, and how its images are scored
    data: Path | str,
    out: Path | str,
    model: Path | str = "default",
    split: EvaluatedSplit = "test",
    interval: IntervalConfig | None = None,
    progress: Progress = SILENT,
    *,
    input_check: bool = True,
    framing: float | None = None,
    any_age: bool = False,
) -> Evaluated:
    """Evaluate `model` on one split of `data`; write the files to `out`.

    Args:
        data: a folder with class folders, or a CSV manifest. Without splits every image is used.
        out: output folder; created if it does not exist.
        model: a bundle, a run, or `default`.
        split: the part of the data to use.
        interval: confidence level and number of resamples.
        progress: advances by one for each image.
        input_check: reject images that the input check of the model rejects.
        framing: crop every image so that the lungs fill this share of its width and height,
            without the input check. This removes framing as a cue.
        any_age: predict for patients outside the model's age range.

    Raises:
        DataError: the split is empty, or no image has a prediction.
        UsageError: there is no such model, or `interval` is out of range.

    Examples:
        >>> found = evaluate_model(xrays, folder / "test", run.folder, input_check=False)
        >>> found.evaluation.metrics["auc"].value is not None
        True
        >>> (folder / "test" / "report.html").exists()
        True
    """
    data, out, interval = Path(data), Path(out), interval or IntervalConfig()
    started = time.monotonic()
    checked = input_check and framing is None
    predictor = Predictor.load(model, input_check=checked, any_age=any_age)
    dataset = index(data, progress=progress)
    chosen, split = chosen_split(dataset, split, data)
    announce(chosen)
    claim_folder(out)
    seen = seen_by(predictor, chosen.records, progress)
    if seen.is_optimistic:  # not logged: the terminal text always says how many were seen
        chosen = replace(chosen, warnings=(*chosen.warnings, seen.in_words()))
    write_split(out / "labels.csv", chosen)
    title, recut = f"evaluating {split}", {}
    if framing is None:
        scored = score_all(chosen.records, predictor, title, progress)
    else:
        matched = score_matched(chosen.records, predictor, [framing], title, progress)[framing]
        scored, recut = matched.scored, matched.facts()
        chosen = with_cautions(chosen, matched.note())
    evaluation = evaluate_scored(scored, predictor.manifest, interval)
    chosen = with_cautions(
        chosen,
        _relaxed(checks_of(predictor)) if framing is None else "",
        abstained(scored, predictor.manifest),
        reversed_scores(evaluation),
    )
    if warned := summary(scored.warning_counts()):  # not logged, as the text states it
        chosen = replace(chosen, warnings=(*chosen.warnings, f"Warnings about images: {warned}"))
    name = str(model)
    evaluated = Evaluated(
        scored,
        evaluation,
        predictor.manifest,
        chosen,
        split,
        data.name,
        name,
        whole=dataset,
        framing=recut,
        seen=seen,
    )
    seconds = {"evaluation": round(time.monotonic() - started, 2)}
    write_evaluation(out, evaluated, config=interval, seconds=seconds, page=out / "report.html")
    return evaluated


def _relaxed(settings: Sequence[str]) -> str:
    """A caution if the model predicts for images that it rejects by default; else empty."""
    if not settings:
        return ""
    return (
        f"Evaluated with {' and '.join(settings)}: the metrics include images that the model "
        "rejects by default."
    )


def run_evaluation(  # noqa: PLR0913 - as `evaluate_model`
    data: Path,
    out: Path,
    model: str,
    split: EvaluatedSplit,
    interval: IntervalConfig,
    progress: Progress,
    *,
    input_check: bool = True,
    framing: float | None = None,
    any_age: bool = False,
) -> tuple[dict[str, Any], str]:
    """Run `evaluate_model`; returns the document (`metrics.json` and `out`) and the text."""
    evaluated = evaluate_model(
        data,
        out,
        model,
        split,
        interval,
        progress,
        input_check=input_check,
        any_age=any_age,
        framing=framing,
    )
    document = metrics_document(evaluated) | {"out": str(out)}
    warned = summary_lines(evaluated.scored.warning_counts())
    seen_lines = [evaluated.seen.in_words(), ""] if evaluated.seen else []
    return document, "\n".join([*seen_lines, *warned, evaluation_text(evaluated.evaluation, out)])


def chosen_split(
    dataset: Dataset, split: EvaluatedSplit, data: Path
) -> tuple[Dataset, EvaluatedSplit]:
    """Select one split of the data; all images, with a warning, if the data has no splits.

    Raises:
        DataError: the data has splits, but not this one.
    """
    sizes = {name: len(dataset.subset(name).records) for name in SPLITS}
    if split != "all" and not any(sizes.values()):
        note = (
            f"{data} has no splits: all of its {len(dataset.records)} images are evaluated. "
            "The results are only valid if the model was not trained on these images."
        )
        return replace(dataset, warnings=(*dataset.warnings, note)), "all"
    chosen = dataset.subset(split)
    if chosen.records:
        return chosen, split
    available = ", ".join(f"{name} ({size} images)" for name, size in sizes.items() if size)
    raise DataError(
        f"{data}: has no {split} split, found {available}. Give another --split, or split the "
        "data: pneumoscope data split DATA --out split.csv"
    )


def write_evaluation(
    out: Path,
    evaluated: Evaluated,
    *,
    config: TrainConfig | IntervalConfig,
    seconds: Mapping[str, float],
    page: Path,
    learning: LearningCurves | None = None,
) -> None:
    """Write the files of an evaluation, except `labels.csv`, to `out` and its report to `page`."""
    scored, evaluation = evaluated.scored, evaluated.evaluation
    refused = refusals_of(scored)
    whole = evaluated.whole or evaluated.dataset
    chosen = replace(whole, records=scored.records)
    flow = flow_of(whole, chosen, evaluated.split, evaluated.data_name, evaluation, refused)
    content = ReportContent(
        title="Training report" if learning else "Evaluation report",
        evaluation=evaluation,
        split=evaluated.split,
        run=run_facts(seconds, config),
        data=data_facts(
            evaluated.data_name, evaluated.dataset, fingerprint(evaluated.dataset.records)
        ),
        model=_model_facts(out, evaluated),
        learning=learning,
        worst_errors=worst_errors(scored, evaluated.manifest.preprocessing),
        refused=refused,
        flow=flow,
        seen=evaluated.seen,
        commands=evaluated.commands,
    )
    files = EvaluationFiles(
        metrics_document(evaluated),
        [result.prediction for result in scored.results],
        label_columns(scored),
        content,
        checklist_facts(flow, whole, chosen, evaluation, evaluated.manifest, config),
    )
    write_evaluation_files(out, files, page)


def _model_facts(out: Path, evaluated: Evaluated) -> ModelFacts:
    facts = model_facts(evaluated.model_name or out.parent / "model", evaluated.manifest)
    if evaluated.seen is None:
        return facts
    return replace(facts, facts={**facts.facts, "Seen before": evaluated.seen.in_words()})


def metrics_document(evaluated: Evaluated) -> dict[str, Any]:
    """`metrics.json`: the metrics, the model, how many predictions are `uncertain`, cautions."""
    manifest = evaluated.manifest
    results = [result.prediction.prediction for result in evaluated.scored.results]
    withheld = asdict(manifest.abstention) | {"uncertain": results.count(UNCERTAIN)}
    model = {"name": evaluated.model_name, "fingerprint": model_fingerprint(manifest)}
    warned = dict(evaluated.scored.warning_counts().most_common())
    seen = None if evaluated.seen is None else evaluated.seen.to_dict()
    extra: dict[str, Any] = {"model": model, "abstention": withheld, "warnings": warned}
    extra |= {"seen": seen, "cautions": [*evaluated.dataset.warnings]}
    if evaluated.framing:
        extra["framing"] = dict(evaluated.framing)
    return evaluated.evaluation.to_metrics_json() | extra
