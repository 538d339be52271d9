"""`compare`: a new model beside an old one on the same labelled images, with a verdict.

compare.json    everything, for programs
compare.html    the same for people, with the cases whose answer changed
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.config import CompareConfig, PreprocessConfig, check_ranges
from pneumoscope.data.index import index
from pneumoscope.errors import DataError, InputError
from pneumoscope.evaluation.compare import Comparison, compare
from pneumoscope.images.read import read_image
from pneumoscope.inference.identity import model_fingerprint
from pneumoscope.inference.overlay import film_png, overlay_png
from pneumoscope.inference.predictor import Answer, Predictor
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import CLASS_NAMES, UNCERTAIN, ImageRecord
from pneumoscope.report.compare_page import CompareContent, Flip, write_compare_page
from pneumoscope.report.content import EvaluatedSplit
from pneumoscope.storage import claim_folder, path_text, write_json, writes_alone
from pneumoscope.workflows.answering import Answered, answer_all
from pneumoscope.workflows.evaluate import chosen_split
from pneumoscope.workflows.facts import announce, command_line
from pneumoscope.workflows.seen import seen_by

SCHEMA_VERSION = 1
FLIPS_SHOWN = 12
_THUMBNAIL_SIDE = 260


@writes_alone
def run_compare(
    old: str,
    new: str,
    data: Path,
    out: Path,
    split: EvaluatedSplit = "test",
    config: CompareConfig | None = None,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], str, int]:
    """Compare, write the files, and tell of it; the exit code is 3 if the new model doesn't pass.

    Only images that both models answered count.

    Raises:
        UsageError: there is no such model.
        DataError: the split is empty, or no image was answered by both.
    """
    config = config or CompareConfig()
    check_ranges(config)
    predictors = (Predictor.load(old), Predictor.load(new))
    dataset = index(data, progress=progress)
    chosen, split = chosen_split(dataset, split, data)
    announce(chosen)
    claim_folder(out)
    seen = [seen_by(predictor, chosen.records, progress) for predictor in predictors]
    answered = [
        answer_all(chosen.records, predictor, f"{name} model", progress)
        for name, predictor in zip(("old", "new"), predictors, strict=True)
    ]
    both = sorted(set(answered[0].ok) & set(answered[1].ok))
    if not both:
        raise DataError(f"{data}: no image was answered by both models. Compare on other images.")
    records = [chosen.records[k] for k in both]
    scores = [_probabilities(one, both) for one in answered]
    thresholds = tuple(predictor.manifest.threshold.value for predictor in predictors)
    found = compare(
        [record.label for record in records],
        (scores[0], scores[1]),
        (thresholds[0], thresholds[1]),
        [record.patient for record in records],
        config,
    )
    flipped = _flipped(records, scores, found.thresholds)
    flips = _pictures(flipped[:FLIPS_SHOWN], both, records, answered, predictors)
    content = CompareContent(
        old=old,
        new=new,
        data=data.name,
        split=split,
        comparison=found,
        config=config,
        only_old=len(set(answered[0].ok) - set(both)),
        only_new=len(set(answered[1].ok) - set(both)),
        flips=flips,
        flipped=len(flipped),
        command=command_line(),
        uncertain=_uncertain(answered, both, predictors),
    )
    marks = [
        {
            "name": name,
            "fingerprint": model_fingerprint(predictor.manifest),
            "abstention": asdict(predictor.manifest.abstention) | {"uncertain": withheld or 0},
        }
        for name, predictor, withheld in zip((old, new), predictors, content.uncertain, strict=True)
    ]
    document = {
        "schema_version": SCHEMA_VERSION,
        "models": {"old": marks[0], "new": marks[1]},
        **{"data": str(data), "split": split},
        "config": asdict(config),
        "answered_by_one": {"old": content.only_old, "new": content.only_new},
        **found.to_dict(),
        "seen": {"old": seen[0].to_dict(), "new": seen[1].to_dict()},
        "flipped": [_flip_row(records[k], scores, k, found.thresholds) for k in flipped],
    }
    write_json(out / "compare.json", document)
    write_compare_page(out / "compare.html", content)
    code = 0 if found.passed else InputError.exit_code
    return document | {"out": str(out)}, _text(found, len(flipped), content.uncertain, out), code


def _probabilities(answered: Answered, both: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([answered.answers[k].prediction.probability for k in both], np.float64)


def _uncertain(
    answered: list[Answered], both: list[int], predictors: tuple[Predictor, ...]
) -> tuple[int | None, ...]:
    """How many images each model answers with `uncertain`; `None` of one that never does."""
    found: list[int | None] = []
    for one, predictor in zip(answered, predictors, strict=True):
        said = [one.answers[k].prediction.prediction for k in both]
        never = predictor.manifest.abstention.method == "none"
        found.append(None if never else said.count(UNCERTAIN))
    return tuple(found)


def _flipped(
    records: list[ImageRecord], scores: list[Any], thresholds: tuple[float, float]
) -> list[int]:
    """Images whose answer changed: those made wrong first, then by how far it moved."""
    calls = [values >= at for values, at in zip(scores, thresholds, strict=True)]
    changed = np.flatnonzero(calls[0] != calls[1])
    labels = np.array([record.label for record in records])
    now_right = calls[1] == (labels == 1)
    moved = np.abs(scores[1] - scores[0])
    return sorted((int(k) for k in changed), key=lambda k: (now_right[k], -moved[k], k))


def _flip_row(
    record: ImageRecord, scores: list[Any], k: int, thresholds: tuple[float, float]
) -> dict[str, Any]:
    answers = [CLASS_NAMES[int(scores[side][k] >= thresholds[side])] for side in (0, 1)]
    return {
        "path": path_text(record.path),
        "label": CLASS_NAMES[record.label],
        "old": {"probability": float(scores[0][k]), "prediction": answers[0]},
        "new": {"probability": float(scores[1][k]), "prediction": answers[1]},
    }


def _pictures(
    shown: list[int],
    both: list[int],
    records: list[ImageRecord],
    answered: list[Answered],
    predictors: tuple[Predictor, Predictor],
) -> tuple[Flip, ...]:
    """The cases to show, as pictures."""
    configs = tuple(predictor.manifest.preprocessing for predictor in predictors)
    return tuple(
        _pictured(records[k], tuple(one.answers[both[k]] for one in answered), configs)
        for k in shown
    )


def _pictured(
    record: ImageRecord,
    pair: tuple[Answer, ...],
    preprocessing: tuple[PreprocessConfig, ...],
) -> Flip:
    pixels = read_image(record.path).pixels
    maps = []
    for answer, config in zip(pair, preprocessing, strict=True):
        cam = answer.cam
        maps.append(None if cam is None else overlay_png(pixels, cam, config, _THUMBNAIL_SIDE))
    return Flip(
        record.path.name,
        record.label,
        tuple(answer.prediction.probability or 0.0 for answer in pair),
        film_png(pixels, _THUMBNAIL_SIDE),
        tuple(maps),
    )


def _text(found: Comparison, flipped: int, uncertain: tuple[int | None, ...], out: Path) -> str:
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
