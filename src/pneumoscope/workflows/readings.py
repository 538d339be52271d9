"""`readings`: compare a system's scores with radiologists' readings, week by week.

It writes into one folder:

joined.csv       a row per case: score, call, reading; it can be evaluated again
weeks.csv        a row per week
unread.csv divided.csv unscored.csv    cases that could not be used
readings.json    everything, for programs
readings.html    the same as a page
checklist.html   DECIDE-AI checklist, filled in as far as the tables allow
evaluation/      the full evaluation of the cases that have a score and a reading
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.config import IntervalConfig, PlanConfig
from pneumoscope.data.scores import (
    Case,
    Joined,
    Key,
    ScoreTable,
    join,
    read_readings,
    read_scores,
    score_key,
    stated_threshold,
)
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.operating_point import ScoreScale
from pneumoscope.evaluation.pilot import (
    Agreement,
    Week,
    WeekCase,
    by_week,
    cohen_kappa,
    patients_to_verify,
    weeks_spanned,
)
from pneumoscope.evaluation.plan import threshold_table
from pneumoscope.records import CLASS_NAMES, UNCERTAIN
from pneumoscope.report.checklist import DECIDE, ChecklistContent, Fact, render_checklist
from pneumoscope.report.content import Missing, ReadingsContent, StillNeeded, ThresholdRow
from pneumoscope.report.formatting import in_words, plural
from pneumoscope.report.readings_page import render_readings_page
from pneumoscope.storage import claim_folder, csv_text, write_json, write_text
from pneumoscope.workflows.evaluate_scores import (
    DEFAULT_THRESHOLD,
    EvaluatedScores,
    evaluate_scores,
    labelled_scores,
)
from pneumoscope.workflows.run_folder import command_line

SCHEMA_VERSION = 1

MOST_READERS = 12
"""Readers of whom each pair is compared: 66 pairs."""

_NO_SCORE = "no_score"
_SHOWN_THRESHOLDS = 9
_FIRST_COLUMNS = ("label", "status", "reason", "score", "prediction", "threshold", "patient")


def readings_document(
    content: ReadingsContent, joined: Joined, scores: Path, readings: Path
) -> dict[str, Any]:
    """The document of `readings.json`."""
    evaluation = content.evaluation
    return {
        "schema_version": SCHEMA_VERSION,
        "scores": str(scores),
        "readings": str(readings),
        "by": content.by,
        "missing": asdict(content.missing),
        "metrics": evaluation.to_metrics_json()["metrics"] if evaluation else None,
        "confusion_matrix": evaluation.confusion_matrix.to_dict() if evaluation else None,
        "agreement": asdict(content.agreement) if content.agreement else None,
        "readers": {name: asdict(found) for name, found in content.readers.items()},
        "further_readers": [*content.further_readers],
        "weeks": [{**asdict(w), "monday": w.monday.isoformat()} for w in content.weeks],
        "undated": content.undated,
        "thresholds": [
            {
                **asdict(line.row),
                "called": line.called,
                "scored": line.scored,
                "in_use": line.in_use,
            }
            for line in content.thresholds
        ],
        "still_needed": {
            kind: {
                **asdict(found.needed),
                "have": found.have,
                "missing": found.missing,
                "weeks": found.weeks,
            }
            for kind, found in content.needed.items()
        },
        "models": [*content.models],
        "unscored": [*joined.unscored],
    }


def weeks_csv(weeks: Sequence[Week]) -> str:
    """`weeks.csv`: a row per week."""
    header = ["monday", "cases", "no_score", "read", "score_q25", "score_median", "score_q75"]
    header += ["drift", "drift_p", "positives_so_far", "negatives_so_far"]
    for name in ("called", "sensitivity_so_far", "specificity_so_far"):
        header += [name, f"{name}_low", f"{name}_high"]
    rows = []
    for week in weeks:
        estimates = (week.called, week.sensitivity, week.specificity)
        cells = [
            week.monday.isoformat(),
            week.cases,
            sum(week.refused.values()),
            week.read,
            *(week.quartiles or ("", "", "")),
            week.drift,
            week.drift_p,
            week.positives,
            week.negatives,
            *(number for e in estimates for number in (e.value, e.low, e.high)),
        ]
        rows.append(["" if cell is None else cell for cell in cells])
    return csv_text(header, rows)


def pilot_facts(content: ReadingsContent, joined: Joined) -> Mapping[Fact, str]:
    """Facts of a pilot for the DECIDE-AI checklist, besides its results."""
    weeks, missing, agreed = content.weeks, content.missing, content.agreement
    refused: dict[str, int] = {}
    for week in weeks:
        for code, cases in week.refused.items():
            refused[code] = refused.get(code, 0) + cases
    listed = ", ".join(f"{code.replace('_', ' ')} {n}" for code, n in refused.items()) or "none"
    readers = {r.reader for case in joined.cases for r in case.readings if r.reader}
    by = f" by {plural(len(readers), 'reader')}" if readers else ""
    span = (
        f" in {plural(weeks_spanned(weeks), 'week')}, {weeks[0].monday} to {weeks[-1].monday}"
        if weeks
        else ""
    )
    between = "; ".join(
        f"{name}: kappa {in_words(found.kappa, content.level, 3)}"
        for name, found in content.readers.items()
    )
    models = content.models
    changed = f"One model throughout ({models[0]})." if len(models) == 1 else ""
    if len(models) > 1:
        changed = f"{len(models)} models were in use, in this order: {', '.join(models)}."
    return {
        "exposure": f"{plural(missing.cases, 'case')} reached the system{span}; "
        f"{plural(missing.matched, 'case')} have a score and were read{by}.",
        "refusals": f"An image without a score gets a reason code. Here: {listed}.",
        "modifications": changed,
        "agreement": f"System and readers agree on {100 * agreed.observed:.1f} % of "
        f"{plural(agreed.images, 'case')}, Cohen’s kappa "
        f"{in_words(agreed.kappa, content.level, 3)}. {between}".strip()
        if agreed
        else "",
    }


def readings_text(content: ReadingsContent, out: Path) -> str:
    """The pilot as text for the terminal."""
    missing = content.missing
    lines = [
        f"{missing.matched} of {missing.cases} cases have a score and a reading; unread "
        f"{missing.unread}, divided {missing.divided}, rejected {missing.refused}, read but not "
        f"scored {missing.unscored}",
    ]
    if missing.uncertain:
        lines.append(
            f"indeterminate {missing.uncertain}: the system withheld them; all rates apply the "
            "threshold, as if it never abstained"
        )
    if content.evaluation and content.agreement:
        for name, estimate in (
            ("sensitivity", content.evaluation.metrics["sensitivity"]),
            ("specificity", content.evaluation.metrics["specificity"]),
            ("auc", content.evaluation.metrics["auc"]),
            ("kappa", content.agreement.kappa),
        ):
            if estimate.value is not None:
                span = "–" if estimate.low is None else f"{estimate.low:.4f} to {estimate.high:.4f}"
                lines.append(f"{name:<14}{estimate.value:>8.4f}   {span}")
    for kind, found in content.needed.items():
        left = "no number of" if found.missing is None else str(found.missing)
        lines.append(f"to show {kind} above {found.needed.least:.3f}: {left} more cases")
    return "\n".join([*lines, f"page    {out / 'readings.html'}"])


@dataclass(frozen=True, slots=True)
class ReadingsRequest:
    """The tables to join, and the rates to verify.

    Attributes:
        scores: table of scores (`node results`, `predict`, a vendor's).
        readings: table of readings.
        by: the column that identifies a case in both tables.
        out: output folder.
        column: of the scores; `""`: score or probability.
        threshold: the threshold in use; `None`: the one in the table of scores.
        min_sensitivity: to verify; `None`: the observed sensitivity minus a margin.
        min_specificity: likewise.
    """

    scores: Path
    readings: Path
    by: Key
    out: Path
    column: str = ""
    threshold: float | None = None
    min_sensitivity: float | None = None
    min_specificity: float | None = None


def run_readings(
    request: ReadingsRequest, config: PlanConfig | None = None
) -> tuple[dict[str, Any], str]:
    """Join the tables, evaluate the scores, and write the files.

    Returns:
        The JSON document and the terminal text.

    Raises:
        UsageError: a file does not exist, or no threshold is known.
        DataError: a table is unusable.
    """
    config = config or PlanConfig()
    for option, path in (("SCORES", request.scores), ("READINGS", request.readings)):
        if not path.is_file():
            raise UsageError(f"{option} {path}: is not a file, wanted a CSV")
    table = read_scores(request.scores, request.column, needs_labels=False)
    key = score_key(request.scores, table.rows, request.by)
    joined = join(table.rows, key, read_readings(request.readings, request.by))
    threshold = _threshold(request, table)
    claim_folder(request.out)
    _write_joined(request.out, table, joined, request.by, threshold)
    evaluated = _evaluated(request.out, joined, config.intervals())
    content = _content(request, table, joined, threshold, evaluated, config)
    document = readings_document(content, joined, request.scores, request.readings)
    write_json(request.out / "readings.json", document)
    write_text(request.out / "weeks.csv", weeks_csv(content.weeks))
    write_text(request.out / "readings.html", render_readings_page(content))
    if evaluated:
        named = f"{request.scores.name} · {request.readings.name}"
        facts = {**evaluated.answers, **pilot_facts(content, joined)}
        checklist = ChecklistContent(named, facts, evaluated.flow, (DECIDE,))
        write_text(request.out / "checklist.html", render_checklist(checklist))
    return document | {"out": str(request.out)}, readings_text(content, request.out)


def _threshold(request: ReadingsRequest, table: ScoreTable) -> float:
    if request.threshold is not None:
        return request.threshold
    stated = stated_threshold(table)
    if stated is not None:
        return stated
    scores = [row.score for row in table.rows if row.score is not None]
    if ScoreScale.of(scores, None).probability:
        return DEFAULT_THRESHOLD
    raise UsageError(
        f"{request.scores}: its scores are not probabilities and it states no threshold. Give "
        "--threshold, or a column 'threshold'."
    )


def _write_joined(out: Path, table: ScoreTable, joined: Joined, by: Key, threshold: float) -> None:
    """Write joined.csv, and one table each of the cases that lack a score or a usable reading."""
    kept = [name for name in table.groups if name != by]
    further = [name for name in ("study_date", "received", "model") if name in _columns(table)]
    header = [by, *_FIRST_COLUMNS, "week", "images", *further, *kept]
    rows = []
    for case in joined.cases:
        row = case.score
        called = "" if row.score is None else CLASS_NAMES[int(row.score >= threshold)]
        called = UNCERTAIN if row.uncertain else called
        rows.append(
            [
                case.key,
                "" if case.reference is None else CLASS_NAMES[case.reference],
                "refused" if row.score is None else "ok",
                row.reason,
                "" if row.score is None else repr(row.score),
                called,
                repr(threshold),
                row.patient,
                case.week.isoformat() if case.week else "",
                case.images,
                *(row.values.get(name, "") for name in (*further, *kept)),
            ]
        )
    write_text(out / "joined.csv", csv_text(header, rows))
    for name, keys in (
        ("unread", joined.unread),
        ("divided", joined.divided),
        ("unscored", joined.unscored),
    ):
        write_text(out / f"{name}.csv", csv_text([by], [[key] for key in keys]))


def _columns(table: ScoreTable) -> Iterable[str]:
    return table.rows[0].values if table.rows else ()


def _evaluated(out: Path, joined: Joined, intervals: IntervalConfig) -> EvaluatedScores | None:
    """Evaluate joined.csv as `evaluate --scores` does; `None` if no case has score and reading."""
    if not any(_matched(case) for case in joined.cases):
        return None
    labelled = labelled_scores(read_scores(out / "joined.csv"))
    return evaluate_scores(labelled, out / "evaluation", intervals)


def _matched(case: Case) -> bool:
    return case.reference is not None and case.score.score is not None


def _content(
    request: ReadingsRequest,
    table: ScoreTable,
    joined: Joined,
    threshold: float,
    evaluated: EvaluatedScores | None,
    config: PlanConfig,
) -> ReadingsContent:
    matched = [case for case in joined.cases if _matched(case)]
    cases = [_week_case(case, threshold) for case in joined.cases if case.week]
    weeks = by_week([case for case in cases if case], config.level)
    if evaluated and weeks and all(case.week for case in matched):
        # The last week's rates are those of all cases: one number, one interval.
        whole = evaluated.evaluation.metrics
        last = replace(
            weeks[-1], sensitivity=whole["sensitivity"], specificity=whole["specificity"]
        )
        weeks = (*weeks[:-1], last)
    agreement = None
    if matched:
        agreement = cohen_kappa(
            [int((case.score.score or 0.0) >= threshold) for case in matched],
            [int(case.reference or 0) for case in matched],
            [_patient(case) for case in matched],
            config.level,
        )
    read_cases = [case for case in joined.cases if case.reference is not None]
    readers, further = _between_readers(joined.cases, config.level)
    return ReadingsContent(
        scores=request.scores.name,
        readings=request.readings.name,
        by=request.by,
        missing=Missing(
            scores=len(table.rows),
            cases=len(joined.cases),
            images_of_several=sum(case.images > 1 for case in joined.cases),
            keyless=joined.keyless,
            unread=len(joined.unread),
            divided=len(joined.divided),
            unscored=len(joined.unscored),
            refused=sum(case.score.score is None for case in read_cases),
            matched=len(matched),
            uncertain=sum(case.score.uncertain for case in matched),
            nameless=sum(not case.score.patient for case in joined.cases),
        ),
        evaluation=evaluated.evaluation if evaluated else None,
        agreement=agreement,
        readers=readers,
        further_readers=further,
        weeks=weeks,
        undated=sum(case.week is None for case in joined.cases),
        thresholds=_thresholds(joined.cases, threshold, config),
        needed=_needed(request, matched, threshold, weeks_spanned(weeks), config),
        models=tuple(dict.fromkeys(m for row in table.rows if (m := row.values.get("model", "")))),
        level=config.level,
        command=command_line(),
        notes=tuple(evaluated.document["cautions"]) if evaluated else (),
    )


def _patient(case: Case) -> str:
    """The patient named in the scores; without one, each case counts as its own patient."""
    return case.score.patient or f"case {case.key}"


def _week_case(case: Case, threshold: float) -> WeekCase | None:
    score = case.score.score
    if case.week is None:
        return None
    return WeekCase(
        case.week,
        score,
        None if score is None else score >= threshold,
        "" if score is not None else case.score.reason or _NO_SCORE,
        case.reference,
        _patient(case),
    )


def _between_readers(
    cases: Sequence[Case], level: float
) -> tuple[dict[str, Agreement], tuple[str, ...]]:
    """Agreement of each pair of readers on the cases that both classified.

    Of more than `MOST_READERS`, those with the most readings are compared.

    Returns:
        The agreement by the names of two readers, and the readers that were not compared.
    """
    read = Counter(r.reader for case in cases for r in case.readings if r.reader)
    ranked = sorted(read, key=lambda name: (-read[name], name))
    compared = sorted(ranked[:MOST_READERS])
    together: dict[tuple[str, str], list[tuple[int, int, str]]] = {
        pair: [] for pair in combinations(compared, 2)
    }
    for case in cases:
        labels = {r.reader: r.label for r in case.readings if r.label is not None}
        for first, second in combinations(sorted(labels.keys() & set(compared)), 2):
            together[first, second].append((labels[first], labels[second], _patient(case)))
    found = {}
    for (first, second), rows in together.items():
        if rows:
            one, other, patients = zip(*rows, strict=True)
            found[f"{first} and {second}"] = cohen_kappa(one, other, patients, level)
    return found, tuple(ranked[MOST_READERS:])


def _thresholds(
    cases: Sequence[Case], threshold: float, config: PlanConfig
) -> tuple[ThresholdRow, ...]:
    """A few thresholds over the whole range of rates, including the one in use."""
    matched = [case for case in cases if _matched(case)]
    labels = np.array([case.reference for case in matched], np.int64)
    if not 0 < labels.sum() < labels.size:
        return ()
    every = np.array([c.score.score for c in cases if c.score.score is not None], np.float64)
    scale = ScoreScale.of(every, threshold)
    scores = scale.to_unit(np.array([case.score.score for case in matched], np.float64))
    patients = [_patient(case) for case in matched]
    at = float(scale.to_unit(threshold))
    table = threshold_table(labels, scores, patients, config.intervals(), keep=at)
    moved = 2.0 + table.specificity[:, 0] - table.sensitivity[:, 0]
    targets = np.linspace(moved.min(), moved.max(), _SHOWN_THRESHOLDS)
    in_use = table.nearest(at)
    shown = sorted({int(np.abs(moved - target).argmin()) for target in targets} | {in_use})
    rows = []
    for k in shown:
        row = table.row(k, float(labels.mean()))
        called = int(np.count_nonzero(scale.to_unit(every) >= row.threshold))
        own = threshold if k == in_use else float(scale.from_unit(row.threshold))
        rows.append(ThresholdRow(replace(row, threshold=own), called, every.size, k == in_use))
    return tuple(rows)


def _needed(
    request: ReadingsRequest,
    matched: Sequence[Case],
    threshold: float,
    weeks: int,
    config: PlanConfig,
) -> dict[str, StillNeeded]:
    """Number of further cases of each class needed to verify the wanted rates."""
    found = {}
    for kind, label, wanted in (
        ("sensitivity", 1, request.min_sensitivity),
        ("specificity", 0, request.min_specificity),
    ):
        of_class = [case for case in matched if case.reference == label]
        if not of_class:
            continue
        right = [((c.score.score or 0.0) >= threshold) == bool(label) for c in of_class]
        expected = sum(right) / len(right)
        least = wanted if wanted is not None else expected - config.margin
        if not 0.0 < least < 1.0:
            continue
        needed = patients_to_verify(expected, least, config.confidence, config.power)
        left = None if needed.patients is None else max(needed.patients - len(of_class), 0)
        dated = sum(case.week is not None for case in of_class)
        pace = None if left is None or not dated else left * weeks / dated
        found[kind] = StillNeeded(needed, len(of_class), pace)
    return found
