"""`evaluate --scores`: evaluate existing scores of any system, without model or images.

Metrics, report and checklist come from the same code that evaluates a model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.config import IntervalConfig, ScoresConfig, ThresholdConfig
from pneumoscope.data.scores import ScoreRow, ScoreTable, read_scores, stated_threshold
from pneumoscope.errors import DataError, Reason, UsageError
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.evaluation.operating_point import ScoreScale, choose_threshold
from pneumoscope.records import (
    CLASS_NAMES,
    SPLITS,
    UNCERTAIN,
    Dataset,
    ImageRecord,
    Prediction,
    Split,
)
from pneumoscope.report.checklist import Fact
from pneumoscope.report.content import EvaluatedSplit, Flow, ModelFacts, Refusals, ReportContent
from pneumoscope.report.formatting import number, plural
from pneumoscope.storage import claim_folder, sha256_of_file
from pneumoscope.workflows.documentation import checklist_facts, flow_of
from pneumoscope.workflows.evaluation_folder import (
    EvaluationFiles,
    evaluation_text,
    run_facts,
    write_evaluation_files,
)
from pneumoscope.workflows.run_folder import announce, data_facts, with_cautions
from pneumoscope.workflows.scoring import ScoredCases, evaluate_cases, reversed_scores

DEFAULT_THRESHOLD = 0.5
_NO_SCORE = "no_score"


@dataclass(frozen=True, slots=True)
class LabelledScores:
    """A table of scores, ready to be evaluated.

    Attributes:
        table: the table as read.
        rows: the rows with a reference label.
        scored: those of `rows` with a score.
        cases: labels, scores and threshold of `scored`.
        dataset: `rows` as records, with warnings about the table.
    """

    table: ScoreTable
    rows: tuple[ScoreRow, ...]
    scored: tuple[ScoreRow, ...]
    cases: ScoredCases
    dataset: Dataset


@dataclass(frozen=True, slots=True)
class EvaluatedScores:
    """An evaluation of scores, with the content of its files."""

    document: dict[str, Any]
    evaluation: Evaluation
    flow: Flow
    answers: Mapping[Fact, str]


def run_evaluate_scores(
    scores: Path,
    out: Path,
    interval: IntervalConfig,
    config: ScoresConfig | None = None,
    split: EvaluatedSplit = "all",
) -> tuple[dict[str, Any], str]:
    """Evaluate the scores of a CSV, or its rows of one split, and write the files to `out`.

    Returns:
        The JSON document and the terminal text.

    Raises:
        DataError: the table is unusable.
        UsageError: there is no such file, or the threshold is not finite.
    """
    config = config or ScoresConfig()
    if not scores.is_file():
        raise UsageError(
            f"--scores {scores}: is not a file, wanted a CSV with the columns label and score"
        )
    table = read_scores(scores, config.score_column)
    labelled = labelled_scores(table, config.threshold, split)
    found = evaluate_scores(labelled, out, interval)
    return found.document | {"out": str(out)}, evaluation_text(found.evaluation, out)


def labelled_scores(
    table: ScoreTable, threshold: float | None = None, split: EvaluatedSplit = "all"
) -> LabelledScores:
    """Select the labelled rows of a table and determine the threshold.

    The threshold is `threshold`, else the one in the table, else 0.5 for probabilities. For other
    scores it maximises balanced accuracy on these rows, with a warning. Rows that name no patient
    count as one patient if they have the same name.

    Args:
        table: the scores.
        threshold: in the units of the scores, or `None`.
        split: the rows to evaluate, by the column `split`.

    Raises:
        DataError: no row of the split has a label and a score, or the table states several
            thresholds.
        UsageError: the threshold is not finite, or not from 0 to 1 although all scores are.
    """
    chosen = _rows_of_split(table, split)
    rows = tuple(row for row in chosen if row.label is not None)
    scored = tuple(row for row in rows if row.score is not None)
    if not scored:
        raise DataError(
            f"{table.path}: none of {len(chosen)} rows has a label and a score in the column "
            f"{table.column!r}; wanted at least one. Fill in both."
        )
    values = np.array([row.score for row in scored], np.float64)
    labels = np.array([row.label for row in scored], np.int64)
    records = tuple(_record(row) for row in rows)
    patients = {id(row): record.patient for row, record in zip(rows, records, strict=True)}
    value, rule = _threshold(table, labels, values, threshold)
    columns = {name: [row.values.get(name, "") for row in scored] for name in table.groups}
    cases = ScoredCases(
        labels,
        values,
        [patients[id(row)] for row in scored],
        value,
        rule,
        columns,
        refused=len(rows) - len(scored),
    )
    warnings = _oddities(table, chosen, rows, cases)
    return LabelledScores(table, rows, scored, cases, Dataset(table.path, records, warnings))


def _rows_of_split(table: ScoreTable, split: EvaluatedSplit) -> tuple[ScoreRow, ...]:
    rows = tuple(row for row in table.rows if split in ("all", row.split.lower()))
    if not rows:
        found = sorted({row.split for row in table.rows if row.split})
        raise DataError(
            f"{table.path}: none of {len(table.rows)} rows is of the split {split}: the column "
            f"'split' holds {', '.join(found[:5]) or 'nothing'}. Fill it in, or leave out --split."
        )
    return rows


def evaluate_scores(
    labelled: LabelledScores, out: Path, interval: IntervalConfig
) -> EvaluatedScores:
    """Evaluate the scores and write the files of an evaluation to `out`."""
    started = time.monotonic()
    table, cases, dataset = labelled.table, labelled.cases, labelled.dataset
    claim_folder(out)
    announce(dataset)
    evaluation = evaluate_cases(cases, interval)
    dataset = with_cautions(dataset, reversed_scores(evaluation))
    split = _split(labelled.rows)
    refused = _refusals(labelled.rows)
    name = f"{table.path.name}, column {table.column}"
    # Rows of other splits were found too, and rows without a label are excluded.
    whole = replace(dataset, records=tuple(_record(r) for r in table.rows if r.label is not None))
    unlabelled = [_record(row) for row in table.rows if row.label is None]
    flow = flow_of(whole, dataset, split, table.path.name, evaluation, refused, unlabelled)
    seconds = {"evaluation": round(time.monotonic() - started, 2)}
    digest = sha256_of_file(table.path)
    content = ReportContent(
        title="Evaluation report",
        evaluation=evaluation,
        split=split,
        run=run_facts(seconds, interval),
        # A table may put a patient into several splits: a warning says so, nothing refuses it.
        data=replace(data_facts(table.path.name, dataset, digest), disjoint=False),
        model=ModelFacts(name, _score_facts(evaluation)),
        refused=refused,
        flow=flow,
    )
    source = {"name": name, "fingerprint": "", "scores_sha256": digest}
    document = evaluation.to_metrics_json() | {"model": source, "cautions": [*dataset.warnings]}
    files = EvaluationFiles(
        document,
        [_prediction(row, evaluation) for row in labelled.rows],
        _columns(labelled, evaluation.scale),
        content,
        {
            **checklist_facts(flow, whole, dataset, evaluation, None, interval),
            "indeterminate": _withheld(labelled.scored),
        },
    )
    write_evaluation_files(out, files, out / "report.html")
    return EvaluatedScores(document, evaluation, flow, files.answers)


def _threshold(
    table: ScoreTable, labels: Any, values: Any, given: float | None
) -> tuple[float, str]:
    scale = ScoreScale.of(values, None)
    stated = stated_threshold(table) if given is None else given
    if stated is None:
        return _default_threshold(table, labels, values, scale)
    if not np.isfinite(stated):
        raise UsageError(f"--threshold: found {stated}, wanted a finite number")
    if scale.probability and not 0.0 <= stated <= 1.0:
        raise UsageError(
            f"{table.path}: found the threshold {stated:g}, while the scores in the column "
            f"{table.column!r} run from {values.min():g} to {values.max():g}; wanted 0 to 1. Give "
            f"--threshold in the units of the scores, such as {DEFAULT_THRESHOLD:g}."
        )
    return stated, f"stated in {table.path.name}" if given is None else f"set to {given:g}"


def _default_threshold(
    table: ScoreTable, labels: Any, values: Any, scale: ScoreScale
) -> tuple[float, str]:
    if scale.probability:
        return DEFAULT_THRESHOLD, f"{DEFAULT_THRESHOLD:g}, since none was stated"
    if len(set(labels.tolist())) == 1:
        raise DataError(
            f"{table.path}: found only {CLASS_NAMES[labels[0]]} and no threshold, so none can be "
            "chosen on these rows. Give --threshold, or rows of both classes."
        )
    chosen = choose_threshold(labels, scale.to_unit(values), ThresholdConfig("balanced_accuracy"))
    return float(scale.from_unit(chosen.value)), f"{chosen.rule}, chosen on these same rows"


def _record(row: ScoreRow) -> ImageRecord:
    split = next((name for name in SPLITS if name == row.split.lower()), None)
    return ImageRecord(
        Path(row.name),
        int(row.label or 0),
        row.patient or row.name,
        split,
        row.values.get("subtype", ""),
        extra=row.values,
    )


def _split(rows: Sequence[ScoreRow]) -> EvaluatedSplit:
    """The split that all rows belong to, else `all`."""
    found = {row.split.lower() for row in rows}
    known: tuple[Split, ...] = SPLITS
    return next((name for name in known if found == {name}), "all")


def _oddities(
    table: ScoreTable, chosen: Sequence[ScoreRow], rows: Sequence[ScoreRow], cases: ScoredCases
) -> tuple[str, ...]:
    """Warnings about the table."""
    found = []
    if table.rival:
        found.append(
            f"The table has the columns {table.column} and {table.rival}: the scores are those of "
            f"the column {table.column}. For the others give --score-column {table.rival}."
        )
    if without := len(chosen) - len(rows):
        found.append(f"{without} of {len(chosen)} rows have no reference label and are skipped.")
    if without := sum(not row.patient for row in rows):
        found.append(
            f"{without} of {len(rows)} rows name no patient: each name counts as its own patient, "
            "and intervals are too narrow if several names belong to one person."
        )
    if withheld := sum(row.uncertain for row in rows):
        found.append(
            f"The system abstains: {withheld} of {plural(len(cases.scores), 'prediction')} are "
            "indeterminate. All metrics apply the threshold, as if it never abstained."
        )
    found += _repeated(rows)
    found += _splits(table, rows)
    scale = ScoreScale.of(cases.scores, cases.threshold)
    if not scale.probability:
        found.append(
            f"The scores range from {scale.low:g} to {scale.high:g} and are not probabilities, so "
            "calibration, Brier score and ECE are not reported."
        )
    if cases.rule.endswith("same rows"):
        found.append(
            "No threshold was stated, in the table or by option: the one used was chosen on these "
            "same rows, so sensitivity and specificity are too favourable."
        )
    elif cases.rule.endswith("none was stated"):
        found.append("No threshold was stated, in the table or by option: 0.5 was used.")
    return tuple(found)


def _withheld(scored: Sequence[ScoreRow]) -> str:
    """How many predictions the system withheld, and how they are counted."""
    withheld = sum(row.uncertain for row in scored)
    if not withheld:
        return "No prediction of the table is indeterminate."
    return (
        f"{withheld} of {plural(len(scored), 'prediction')} are indeterminate; all metrics apply "
        "the threshold, as if the system never abstained."
    )


def _repeated(rows: Sequence[ScoreRow]) -> list[str]:
    """Warnings about rows with the same name: contradictory labels, and copies."""
    found = []
    labels: dict[str, set[int | None]] = {}
    for row in rows:
        labels.setdefault(row.name, set()).add(row.label)
    divided = [name for name, its in labels.items() if len(its) > 1]
    if divided:
        found.append(
            f"Rows of one name are labelled both NORMAL and PNEUMONIA "
            f"({plural(len(divided), 'name')}, the first is {divided[0]!r}): correct the labels, "
            "or name each image once."
        )
    copies = Counter((row.name, row.label, row.score) for row in rows)
    if repeated := sum(copies.values()) - len(copies):
        first = next(name for (name, *_), count in copies.items() if count > 1)
        found.append(
            f"{repeated} of {len(rows)} rows repeat the name, label and score of another row, the "
            f"first is {first!r}: counts are too large. Remove the copies."
        )
    return found


def _splits(table: ScoreTable, rows: Sequence[ScoreRow]) -> list[str]:
    """Warnings about patients of several splits of the table, and about rows of training."""
    found = []
    splits: dict[str, set[str]] = {}
    of_rows = {row.patient for row in rows}
    for row in table.rows:
        if row.patient in of_rows and row.patient and row.split:
            splits.setdefault(row.patient, set()).add(row.split.lower())
    shared = [patient for patient, its in splits.items() if len(its) > 1]
    if shared:
        found.append(
            f"Rows of {plural(len(shared), 'patient')} are in more than one split, the first is "
            f"{shared[0]!r}: results on such splits look better than they are."
        )
    if trained := sum(row.split.lower() == "train" for row in rows):
        found.append(
            f"{trained} of {len(rows)} rows belong to the split train: a system looks better on "
            "images that it was trained on. Evaluate a table of the rows of test alone."
        )
    return found


def _refusals(rows: Sequence[ScoreRow]) -> tuple[Refusals, ...]:
    without = [row for row in rows if row.score is None]
    counts = Counter(row.reason or _NO_SCORE for row in without)
    return tuple(
        Refusals(
            reason,
            count,
            tuple(row.name for row in without if (row.reason or _NO_SCORE) == reason)[:3],
        )
        for reason, count in counts.most_common()
    )


def _score_facts(found: Evaluation) -> dict[str, str]:
    scale = found.scale
    kind = (
        "a probability from 0 to 1"
        if scale.probability
        else f"from {scale.low:g} to {scale.high:g}, not a probability"
    )
    return {"Score": kind, "Threshold": f"{number(found.threshold, 4)}, {found.rule}"}


def _prediction(row: ScoreRow, found: Evaluation) -> Prediction:
    if row.score is None:
        known = row.reason in {reason.value for reason in Reason}
        reason = Reason(row.reason) if known else None
        return Prediction(row.name, reason.status if reason else "refused", reason)
    called = UNCERTAIN if row.uncertain else CLASS_NAMES[int(row.score >= found.threshold)]
    probability = row.score if found.scale.probability else None
    return Prediction(row.name, "ok", None, probability, called, found.threshold)


def _columns(labelled: LabelledScores, scale: ScoreScale) -> dict[str, list[str | float]]:
    rows = labelled.rows
    columns: dict[str, list[str | float]] = {}
    if not scale.probability:
        columns["score"] = ["" if row.score is None else row.score for row in rows]
    columns["label"] = [CLASS_NAMES[int(row.label or 0)] for row in rows]
    columns["patient"] = [record.patient for record in labelled.dataset.records]
    columns["split"] = [row.split for row in rows]
    for name in labelled.table.groups:
        columns[name] = [row.values.get(name, "") for row in rows]
    return columns
