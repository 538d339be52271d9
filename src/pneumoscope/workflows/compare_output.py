"""A comparison measured and written: of models, of evaluations, of columns of a table.

compare.json    everything, for programs
compare.html    the same for people, with the cases whose answer changed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import CompareConfig
from pneumoscope.errors import InputError
from pneumoscope.evaluation.compare import Comparison, compare, in_own_units
from pneumoscope.evaluation.score_scale import ScoreScale
from pneumoscope.records import CLASS_NAMES, ImageRecord
from pneumoscope.report.compare_page import CompareContent, Flip, write_compare_page
from pneumoscope.report.content import EvaluatedSplit
from pneumoscope.storage import path_text, write_json
from pneumoscope.workflows.facts import command_line

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Side:
    """One of two systems, on the images that both scored.

    Attributes:
        name: what the reader knows it by.
        scores: float64, (n,), in their own units.
        threshold: PNEUMONIA is called from here up, in these units.
        scale: of the scores.
        only: further images that this system alone scored.
        mark: what compare.json says of the system besides its name.
        uncertain: images answered with `uncertain`; `None`: it never does.
    """

    name: str
    scores: NDArray[np.float64]
    threshold: float
    scale: ScoreScale = field(default_factory=ScoreScale)
    only: int = 0
    mark: Mapping[str, Any] = field(default_factory=dict)
    uncertain: int | None = None

    def called(self) -> NDArray[np.bool_]:
        """Whether each image is called PNEUMONIA, (n,)."""
        found: NDArray[np.bool_] = self.scores >= self.threshold
        return found


@dataclass(frozen=True, slots=True)
class Compared:
    """Two systems on the same labelled images.

    Attributes:
        old: the one in use.
        new: the one to take its place.
        records: the images, (n,).
        data: what compare.json calls the data.
        data_name: what the page calls them.
        split: which part of them.
        told: what else compare.json says of the comparison.
    """

    old: Side
    new: Side
    records: Sequence[ImageRecord]
    data: str
    data_name: str
    split: EvaluatedSplit = "all"
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Old and new."""
        return self.old, self.new


def write_comparison(
    out: Path,
    compared: Compared,
    config: CompareConfig,
    pictures: Callable[[list[int]], tuple[Flip, ...]] | None = None,
) -> tuple[dict[str, Any], str, int]:
    """Measure, write both files, and tell of it: a document, a text, an exit code.

    Args:
        out: folder to write.
        compared: what is compared.
        config: margins, confidence, intervals.
        pictures: draws the images at the given positions; `None`: they are listed in a table.
    """
    old, new = compared.sides
    records = compared.records
    found = compare(
        [record.label for record in records],
        (old.scale.to_unit(old.scores), new.scale.to_unit(new.scores)),
        (float(old.scale.to_unit(old.threshold)), float(new.scale.to_unit(new.threshold))),
        [record.patient for record in records],
        config,
    )
    found = in_own_units(found, (old.scale, new.scale), (old.threshold, new.threshold))
    flipped = _flipped(compared)
    rows = [_flip_row(compared, k) for k in flipped]
    content = CompareContent(
        old=old.name,
        new=new.name,
        data=compared.data_name,
        split=compared.split,
        comparison=found,
        config=config,
        only_old=old.only,
        only_new=new.only,
        flips=pictures(flipped) if pictures else tuple(_plain(compared, k) for k in flipped),
        flipped=len(flipped),
        command=command_line(),
        uncertain=(old.uncertain, new.uncertain),
        one_scale=old.scale.probability and new.scale.probability,
    )
    document = {
        "schema_version": SCHEMA_VERSION,
        "models": {
            name: {"name": side.name, **side.mark}
            for name, side in zip(("old", "new"), compared.sides, strict=True)
        },
        **{"data": compared.data, "split": compared.split},
        "config": asdict(config),
        "answered_by_one": {"old": old.only, "new": new.only},
        **found.to_dict(),
        **compared.told,
        "flipped": rows,
    }
    write_json(out / "compare.json", document)
    write_compare_page(out / "compare.html", content)
    code = 0 if found.passed else InputError.exit_code
    return document | {"out": str(out)}, _text(found, len(flipped), compared, out), code


def _flipped(compared: Compared) -> list[int]:
    """Images whose answer changed: those made wrong first, then by how far the score moved."""
    units = [side.scale.to_unit(side.scores) for side in compared.sides]
    calls = [side.called() for side in compared.sides]
    changed = np.flatnonzero(calls[0] != calls[1])
    labels = np.array([record.label for record in compared.records])
    now_right = calls[1] == (labels == 1)
    moved = np.abs(units[1] - units[0])
    return sorted((int(k) for k in changed), key=lambda k: (now_right[k], -moved[k], k))


def _flip_row(compared: Compared, k: int) -> dict[str, Any]:
    record = compared.records[k]
    row: dict[str, Any] = {"path": path_text(record.path), "label": CLASS_NAMES[record.label]}
    for name, side in zip(("old", "new"), compared.sides, strict=True):
        key = "probability" if side.scale.probability else "score"
        called = CLASS_NAMES[int(side.scores[k] >= side.threshold)]
        row[name] = {key: float(side.scores[k]), "prediction": called}
    return row


def _plain(compared: Compared, k: int) -> Flip:
    record = compared.records[k]
    scores = tuple(float(side.scores[k]) for side in compared.sides)
    return Flip(record.path.name, record.label, scores, None, ())


def _text(found: Comparison, flipped: int, compared: Compared, out: Path) -> str:
    lines = [
        f"{found.n} images of {found.patients} patients; {flipped} answers changed",
        "",
        f"{'metric':<20}{'old':>8}{'new':>8}{'change':>9}   interval",
    ]
    for name, estimate in found.differences.two_sided.items():
        values = (found.old[name].value, found.new[name].value, estimate.value)
        if None in values:
            lines.append(f"{name:<20}{'–':>8}{'–':>8}{'–':>9}   undefined")
            continue
        span = "–" if estimate.low is None else f"{estimate.low:+.4f} to {estimate.high:+.4f}"
        lines.append(f"{name:<20}{values[0]:>8.4f}{values[1]:>8.4f}{values[2]:>+9.4f}   {span}")
    uncertain = [side.uncertain for side in compared.sides]
    if any(withheld is not None for withheld in uncertain):
        told = ["–" if withheld is None else str(withheld) for withheld in uncertain]
        lines.append(f"{'uncertain, images':<20}{told[0]:>8}{told[1]:>8}   counted above as called")
    lines.append("")
    for check in found.checks:
        lower = "–" if check.lower is None else f"{check.lower:+.4f}"
        verdict = "passed" if check.passed else f"not passed: {check.reason}"
        lines.append(f"{check.name:<12} lower limit {lower}, margin {check.margin:g}: {verdict}")
    lines.append("passed" if found.passed else "not passed")
    return "\n".join([*lines, f"page    {out / 'compare.html'}"])
