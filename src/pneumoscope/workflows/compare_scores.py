"""`compare` of scores that exist: two evaluations, or two columns of one table. Loads no model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.config import CompareConfig, check_ranges
from pneumoscope.data.scores import read_scores
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.score_scale import ScoreScale
from pneumoscope.records import SPLITS, ImageRecord
from pneumoscope.report.content import EvaluatedSplit
from pneumoscope.storage import claim_folder
from pneumoscope.workflows.compare_output import Compared, Side, write_comparison
from pneumoscope.workflows.evaluate_scores import LabelledScores, labelled_scores
from pneumoscope.workflows.evaluation_folder import SavedEvaluation, read_evaluation
from pneumoscope.workflows.facts import announce


def run_compare_evaluations(
    old: Path, new: Path, out: Path, config: CompareConfig | None = None
) -> tuple[dict[str, Any], str, int]:
    """Compare two evaluations of the same images, case by case.

    Raises:
        UsageError: a folder holds no evaluation.
        DataError: they share no image, name one twice, or label one differently.
    """
    config = config or CompareConfig()
    check_ranges(config)
    saved = (read_evaluation(old), read_evaluation(new))
    places = _joined(*saved)
    claim_folder(out)
    sides = [
        Side(
            str(folder),
            one.own_scores[[pair[k] for pair in places]],
            one.own_threshold,
            one.scale,
            one.labels.size - len(places),
            {"evaluation_of": one.model_name, "fingerprint": one.model},
        )
        for k, (folder, one) in enumerate(zip((old, new), saved, strict=True))
    ]
    first = saved[0]
    records = [
        ImageRecord(Path(first.names[k]), int(first.labels[k]), first.patients[k])
        for k, _ in places
    ]
    split: EvaluatedSplit = next((s for s in SPLITS if first.splits == (s,)), "all")
    compared = Compared(sides[0], sides[1], records, str(old), f"{old.name}, {new.name}", split)
    return write_comparison(out, compared, config)


def run_compare_columns(
    table: Path,
    columns: tuple[str, str],
    thresholds: tuple[float, float] | None,
    out: Path,
    config: CompareConfig | None = None,
) -> tuple[dict[str, Any], str, int]:
    """Compare two score columns of one table.

    The threshold of a column `NAME` is the one given, else that of the column `NAME_threshold`,
    else as for `evaluate --scores`.

    Raises:
        UsageError: there is no such file.
        DataError: the table can't be used, or no row has a label and both scores.
    """
    config = config or CompareConfig()
    check_ranges(config)
    if not table.is_file():
        raise UsageError(f"--scores {table}: is no file, wanted a CSV with a label and two scores")
    given = thresholds or (None, None)
    both = [
        labelled_scores(read_scores(table, name), at)
        for name, at in zip(columns, given, strict=True)
    ]
    announce(both[0].dataset)
    shared = [
        k
        for k, (one, other) in enumerate(zip(both[0].rows, both[1].rows, strict=True))
        if one.score is not None and other.score is not None
    ]
    if not shared:
        raise DataError(
            f"{table}: no row has a label and a score in both {columns[0]!r} and {columns[1]!r}. "
            "Give columns that were filled in for the same cases."
        )
    claim_folder(out)
    sides = [_column_side(one, shared) for one in both]
    records = [both[0].dataset.records[k] for k in shared]
    compared = Compared(sides[0], sides[1], records, str(table), table.name)
    return write_comparison(out, compared, config)


def _column_side(labelled: LabelledScores, shared: list[int]) -> Side:
    scores = np.array([labelled.rows[k].score for k in shared], np.float64)
    cases = labelled.cases
    return Side(
        labelled.table.column,
        scores,
        cases.threshold,
        ScoreScale.of(cases.scores, cases.threshold),
        len(labelled.scored) - len(shared),
        {"threshold_rule": cases.rule},
    )


def _joined(old: SavedEvaluation, new: SavedEvaluation) -> list[tuple[int, int]]:
    """Positions of the images that both scored, in the order of the old evaluation.

    By path; where no path is shared, by file name, since data may lie elsewhere today.
    """
    for shorten in (False, True):
        names = [[Path(name).name if shorten else name for name in one.names] for one in (old, new)]
        if set(names[0]) & set(names[1]):
            break
    else:
        raise DataError(
            f"{old.folder} and {new.folder}: share no image. Evaluate both on the same images."
        )
    for one, mine in zip((old, new), names, strict=True):
        name, count = Counter(mine).most_common(1)[0]
        if count > 1:
            raise DataError(
                f"{one.folder}: names {name!r} {count} times, so cases can't be matched one by "
                "one. Evaluate with a column that names each image once."
            )
    where = {name: k for k, name in enumerate(names[1])}
    places = [(k, where[name]) for k, name in enumerate(names[0]) if name in where]
    for k, other in places:
        if old.labels[k] != new.labels[other]:
            raise DataError(
                f"{names[0][k]}: has one label in {old.folder} and another in {new.folder}. "
                "Evaluate both against the same reference."
            )
    return places
