"""`evaluate`: a model on labelled images, measured into a folder.

The files are those of `evaluation_files`, and `labels.csv`: path, label, patient, split of the same
images, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pneumoscope.config import IntervalConfig, TrainConfig
from pneumoscope.data.fingerprint import fingerprint
from pneumoscope.data.index import index
from pneumoscope.data.split import write_split
from pneumoscope.errors import DataError
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.identity import model_fingerprint
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import SPLITS, UNCERTAIN, Dataset
from pneumoscope.report.content import EvaluatedSplit, LearningCurves, ReportContent
from pneumoscope.storage import claim_folder
from pneumoscope.workflows.answering import (
    Answered,
    answer_all,
    evaluate_answers,
    label_columns,
    refusals_of,
    worst_errors,
)
from pneumoscope.workflows.checklist import checklist_answers, flow_of
from pneumoscope.workflows.evaluation_files import (
    EvaluationFiles,
    evaluation_text,
    run_facts,
    write_evaluation_files,
)
from pneumoscope.workflows.facts import announce, data_facts, model_facts


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation and what it was made from."""

    answered: Answered
    evaluation: Evaluation
    manifest: BundleManifest
    dataset: Dataset
    split: EvaluatedSplit
    data_name: str
    model_name: str = ""
    commands: Mapping[str, str] = field(default_factory=dict)
    whole: Dataset | None = None
    """The data set of which `dataset` is a part, if it is one."""


def evaluate_model(
    data: Path | str,
    out: Path | str,
    model: Path | str = "default",
    split: EvaluatedSplit = "test",
    interval: IntervalConfig | None = None,
    progress: Progress = SILENT,
    *,
    input_check: bool = True,
) -> Evaluated:
    """Evaluate `model` on one split of `data` into the folder `out`.

    Args:
        data: DATA by the contract. Where it names no splits at all, every image is evaluated.
        out: folder for the files named above; made if need be.
        model: a bundle, a run, or `default`.
        split: which part of the data.
        interval: how uncertainty is stated.
        progress: is told of every image.
        input_check: refuse what is unlike the training images, where the model can tell.

    Raises:
        DataError: the split is empty, or no image of it could be answered for.
        UsageError: there is no such model, or `interval` is impossible.
    """
    data, out, interval = Path(data), Path(out), interval or IntervalConfig()
    started = time.monotonic()
    predictor = Predictor.load(model, input_check=input_check)
    dataset = index(data, progress=progress)
    chosen, split = chosen_split(dataset, split, data)
    announce(chosen)
    claim_folder(out)
    write_split(out / "labels.csv", chosen)
    answered = answer_all(chosen.records, predictor, f"evaluating {split}", progress)
    evaluation = evaluate_answers(answered, predictor.manifest, interval)
    name = str(model)
    evaluated = Evaluated(
        answered,
        evaluation,
        predictor.manifest,
        chosen,
        split,
        data.name,
        name,
        whole=dataset,
    )
    seconds = {"evaluation": round(time.monotonic() - started, 2)}
    write_evaluation(out, evaluated, config=interval, seconds=seconds, page=out / "report.html")
    return evaluated


def run_evaluation(
    data: Path,
    out: Path,
    model: str,
    split: EvaluatedSplit,
    interval: IntervalConfig,
    progress: Progress,
    *,
    input_check: bool = True,
) -> tuple[dict[str, Any], str]:
    """`evaluate_model`, told as a document (`metrics.json` and `out`) and a text."""
    evaluated = evaluate_model(data, out, model, split, interval, progress, input_check=input_check)
    document = metrics_document(evaluated) | {"out": str(out)}
    return document, evaluation_text(evaluated.evaluation, out)


def chosen_split(
    dataset: Dataset, split: EvaluatedSplit, data: Path
) -> tuple[Dataset, EvaluatedSplit]:
    """One split of the data; all of them, with a warning, where they name none.

    Raises:
        DataError: there are splits, but not this one.
    """
    sizes = {name: len(dataset.subset(name).records) for name in SPLITS}
    if split != "all" and not any(sizes.values()):
        note = (
            f"{data} names no splits: all of its {len(dataset.records)} images are evaluated. "
            "Numbers mean something only if the model was not trained on them."
        )
        return replace(dataset, warnings=(*dataset.warnings, note)), "all"
    chosen = dataset.subset(split)
    if chosen.records:
        return chosen, split
    there = ", ".join(f"{name} ({size} images)" for name, size in sizes.items() if size)
    raise DataError(
        f"{data}: has no {split} split, found {there}. Give another --split, or deal "
        "patients: pneumoscope data split DATA --out split.csv"
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
    """Write the files of an evaluation but `labels.csv` into `out`, its report to `page`."""
    answered, evaluation = evaluated.answered, evaluated.evaluation
    refused = refusals_of(answered)
    whole = evaluated.whole or evaluated.dataset
    chosen = replace(whole, records=answered.records)
    flow = flow_of(whole, chosen, evaluated.split, evaluated.data_name, evaluation, refused)
    content = ReportContent(
        title="Training report" if learning else "Evaluation report",
        evaluation=evaluation,
        split=evaluated.split,
        run=run_facts(seconds, config),
        data=data_facts(
            evaluated.data_name, evaluated.dataset, fingerprint(evaluated.dataset.records)
        ),
        model=model_facts(evaluated.model_name or out.parent / "model", evaluated.manifest),
        learning=learning,
        worst_errors=worst_errors(answered, evaluated.manifest.preprocessing),
        refused=refused,
        flow=flow,
        commands=evaluated.commands,
    )
    files = EvaluationFiles(
        metrics_document(evaluated),
        [answer.prediction for answer in answered.answers],
        label_columns(answered),
        content,
        checklist_answers(flow, whole, chosen, evaluation, evaluated.manifest, config),
    )
    write_evaluation_files(out, files, page)


def metrics_document(evaluated: Evaluated) -> dict[str, Any]:
    """`metrics.json`: the evaluation, which model it is of, and how many answers it withheld."""
    manifest = evaluated.manifest
    answers = [answer.prediction.prediction for answer in evaluated.answered.answers]
    withheld = asdict(manifest.abstention) | {"uncertain": answers.count(UNCERTAIN)}
    model = {"name": evaluated.model_name, "fingerprint": model_fingerprint(manifest)}
    return evaluated.evaluation.to_metrics_json() | {"model": model, "abstention": withheld}
