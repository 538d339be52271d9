"""`compare`: a new model beside an old one on the same labelled images, with a verdict."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.config import CompareConfig, PreprocessConfig, check_ranges
from pneumoscope.data.index import index
from pneumoscope.errors import DataError
from pneumoscope.images.read import read_image
from pneumoscope.inference.identity import model_fingerprint
from pneumoscope.inference.overlay import film_png, overlay_png
from pneumoscope.inference.predictor import Answer, Predictor
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import UNCERTAIN, ImageRecord
from pneumoscope.report.compare_page import Flip
from pneumoscope.report.content import EvaluatedSplit
from pneumoscope.storage import claim_folder, writes_alone
from pneumoscope.workflows.answering import Answered, answer_all
from pneumoscope.workflows.compare_output import Compared, Side, write_comparison
from pneumoscope.workflows.evaluate import chosen_split
from pneumoscope.workflows.facts import announce
from pneumoscope.workflows.seen import seen_by

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
    old_side, new_side = (
        _side(name, one, both, predictor)
        for name, one, predictor in zip((old, new), answered, predictors, strict=True)
    )
    told = {"seen": {"old": seen[0].to_dict(), "new": seen[1].to_dict()}}
    compared = Compared(old_side, new_side, records, str(data), data.name, split, told)

    def pictures(flipped: list[int]) -> tuple[Flip, ...]:
        return _pictures(flipped[:FLIPS_SHOWN], both, records, answered, predictors)

    return write_comparison(out, compared, config, pictures)


def _side(name: str, answered: Answered, both: list[int], predictor: Predictor) -> Side:
    """One model's answers to the images that both answered."""
    manifest = predictor.manifest
    predictions = [answered.answers[k].prediction for k in both]
    withheld = [found.prediction for found in predictions].count(UNCERTAIN)
    never = manifest.abstention.method == "none"
    return Side(
        name,
        np.array([found.probability for found in predictions], np.float64),
        manifest.threshold.value,
        only=len(set(answered.ok) - set(both)),
        mark={
            "fingerprint": model_fingerprint(manifest),
            "abstention": asdict(manifest.abstention) | {"uncertain": 0 if never else withheld},
        },
        uncertain=None if never else withheld,
    )


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
