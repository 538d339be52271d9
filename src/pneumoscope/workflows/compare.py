"""`compare`: test whether a new model is non-inferior to an old one on the same labelled images.

The two sides are two models, two evaluations, or two score columns of one table; only the first
needs to load models. It writes into one folder:

compare.json    everything, for programs
compare.html    the same as a page, with the cases whose prediction changed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import CompareConfig, PreprocessConfig, check_ranges
from pneumoscope.data.index import index
from pneumoscope.data.scores import read_scores
from pneumoscope.errors import DataError, InputError, UsageError
from pneumoscope.evaluation.compare import Comparison, compare, in_own_units
from pneumoscope.evaluation.operating_point import ScoreScale
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import model_fingerprint
from pneumoscope.inference.overlay import image_png, overlay_png
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import Result
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import CLASS_NAMES, SPLITS, UNCERTAIN, ImageRecord
from pneumoscope.report.compare_page import CompareContent, Flip, render_compare_page
from pneumoscope.report.content import EvaluatedSplit
from pneumoscope.storage import claim_folder, path_text, write_json, write_text, writes_alone
from pneumoscope.workflows.evaluate import chosen_split
from pneumoscope.workflows.evaluate_scores import LabelledScores, labelled_scores
from pneumoscope.workflows.evaluation_folder import SavedEvaluation, read_evaluation
from pneumoscope.workflows.run_folder import announce, command_line
from pneumoscope.workflows.scoring import Scored, score_all
from pneumoscope.workflows.seen import seen_by

SCHEMA_VERSION = 1

FLIPS_SHOWN = 12
_THUMBNAIL_SIDE = 260


@dataclass(frozen=True, slots=True)
class Side:
    """One of two systems, on the images that both scored.

    Attributes:
        name: its name in reports.
        scores: float64, (n,), in the system's own units.
        threshold: scores at or above it are called PNEUMONIA; same units.
        scale: of the scores.
        only: number of further images that this system alone scored.
        identity: further entries about the system in compare.json.
        uncertain: number of images predicted `uncertain`; `None`: the system never abstains.
    """

    name: str
    scores: NDArray[np.float64]
    threshold: float
    scale: ScoreScale = field(default_factory=ScoreScale)
    only: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)
    uncertain: int | None = None

    def called(self) -> NDArray[np.bool_]:
        """Whether each image is called PNEUMONIA, (n,)."""
        found: NDArray[np.bool_] = self.scores >= self.threshold
        return found


@dataclass(frozen=True, slots=True)
class Compared:
    """Two systems on the same labelled images.

    Attributes:
        old: the system in use.
        new: its candidate replacement.
        records: the images, (n,).
        data: name of the data in compare.json.
        data_name: name of the data on the page.
        split: the part of the data.
        further: further entries of compare.json.
        notes: cautions for the page, the terminal and compare.json.
    """

    old: Side
    new: Side
    records: Sequence[ImageRecord]
    data: str
    data_name: str
    split: EvaluatedSplit = "all"
    further: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
    """Compare two systems and write both files.

    Args:
        out: output folder.
        compared: the two systems and their images.
        config: margins, confidence, intervals.
        pictures: draws the images at the given positions; `None`: the page lists them in a table.

    Returns:
        The JSON document, the terminal text, and the exit code: 3 if the new system does not pass.
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
        notes=compared.notes,
    )
    document = {
        "schema_version": SCHEMA_VERSION,
        "models": {
            name: {"name": side.name, **side.identity}
            for name, side in zip(("old", "new"), compared.sides, strict=True)
        },
        **{"data": compared.data, "split": compared.split},
        "config": asdict(config),
        "answered_by_one": {"old": old.only, "new": new.only},
        **found.to_dict(),
        **compared.further,
        "notes": [*compared.notes],
        "flipped": rows,
    }
    write_json(out / "compare.json", document)
    write_text(out / "compare.html", render_compare_page(content))
    code = 0 if found.passed else InputError.exit_code
    return document | {"out": str(out)}, _text(found, len(flipped), compared, out), code


def _flipped(compared: Compared) -> list[int]:
    """Positions of images whose prediction changed: newly wrong first, then by change of score."""
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
        *compared.notes,
        *([""] if compared.notes else []),
        f"{found.n} images of {found.patients} patients; {flipped} predictions changed",
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
        counts = ["–" if withheld is None else str(withheld) for withheld in uncertain]
        lines.append(
            f"{'indeterminate':<20}{counts[0]:>8}{counts[1]:>8}   images, by threshold above"
        )
    lines.append("")
    for check in found.checks:
        lower = "–" if check.lower is None else f"{check.lower:+.4f}"
        verdict = "passed" if check.passed else f"not passed: {check.reason}"
        lines.append(f"{check.name:<12} lower limit {lower}, margin {check.margin:g}: {verdict}")
    lines.append("passed" if found.passed else "not passed")
    return "\n".join([*lines, f"page    {out / 'compare.html'}"])


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
    """Compare two models on labelled images and write the files.

    Only images for which both models give a prediction count.

    Args:
        old: the model in use: a bundle, a run, or `default`.
        new: its candidate replacement.
        data: a folder with class folders, or a CSV manifest.
        out: output folder.
        split: the part of the data to use.
        config: margins, confidence, intervals.
        progress: advances by one for each image and model.

    Returns:
        The JSON document, the terminal text, and the exit code: 3 if the new model does not pass.

    Raises:
        UsageError: there is no such model.
        DataError: the split is empty, or no image has a prediction from both models.
    """
    config = config or CompareConfig()
    check_ranges(config)
    predictors = (Predictor.load(old), Predictor.load(new))
    dataset = index(data, progress=progress)
    chosen, split = chosen_split(dataset, split, data)
    announce(chosen)
    claim_folder(out)
    seen = [seen_by(predictor, chosen.records, progress) for predictor in predictors]
    scored = [
        score_all(chosen.records, predictor, f"{name} model", progress)
        for name, predictor in zip(("old", "new"), predictors, strict=True)
    ]
    both = sorted(set(scored[0].ok) & set(scored[1].ok))
    if not both:
        raise DataError(
            f"{data}: no image has a prediction from both models. Compare on other images."
        )
    records = [chosen.records[k] for k in both]
    old_side, new_side = (
        _side(name, one, both, predictor)
        for name, one, predictor in zip((old, new), scored, predictors, strict=True)
    )
    further = {"seen": {"old": seen[0].to_dict(), "new": seen[1].to_dict()}}
    notes = (
        *chosen.warnings,
        *(
            f"{side} model: {each.in_words()}"
            for side, each in zip(("Old", "New"), seen, strict=True)
        ),
    )
    compared = Compared(old_side, new_side, records, str(data), data.name, split, further, notes)

    def pictures(flipped: list[int]) -> tuple[Flip, ...]:
        return _pictures(flipped[:FLIPS_SHOWN], both, records, scored, predictors)

    return write_comparison(out, compared, config, pictures)


def _side(name: str, scored: Scored, both: list[int], predictor: Predictor) -> Side:
    """One model's results on the images for which both give a prediction."""
    manifest = predictor.manifest
    predictions = [scored.results[k].prediction for k in both]
    withheld = [found.prediction for found in predictions].count(UNCERTAIN)
    never = manifest.abstention.method == "none"
    return Side(
        name,
        np.array([found.probability for found in predictions], np.float64),
        manifest.threshold.value,
        only=len(set(scored.ok) - set(both)),
        identity={
            "fingerprint": model_fingerprint(manifest),
            "abstention": asdict(manifest.abstention) | {"uncertain": 0 if never else withheld},
        },
        uncertain=None if never else withheld,
    )


def _pictures(
    shown: list[int],
    both: list[int],
    records: list[ImageRecord],
    scored: list[Scored],
    predictors: tuple[Predictor, Predictor],
) -> tuple[Flip, ...]:
    """The changed cases to show, with image and both heatmaps."""
    configs = tuple(predictor.manifest.preprocessing for predictor in predictors)
    return tuple(
        _pictured(records[k], tuple(one.results[both[k]] for one in scored), configs) for k in shown
    )


def _pictured(
    record: ImageRecord,
    pair: tuple[Result, ...],
    preprocessing: tuple[PreprocessConfig, ...],
) -> Flip:
    pixels = read_image(record.path).pixels
    maps = []
    for result, config in zip(pair, preprocessing, strict=True):
        cam = result.cam
        maps.append(None if cam is None else overlay_png(pixels, cam, config, _THUMBNAIL_SIDE))
    return Flip(
        record.path.name,
        record.label,
        tuple(result.prediction.probability or 0.0 for result in pair),
        image_png(pixels, _THUMBNAIL_SIDE),
        tuple(maps),
    )


def run_compare_evaluations(
    old: Path, new: Path, out: Path, config: CompareConfig | None = None
) -> tuple[dict[str, Any], str, int]:
    """Compare two saved evaluations of the same images, case by case.

    Raises:
        UsageError: a folder holds no evaluation.
        DataError: the evaluations share no image, name one twice, or label one differently.
    """
    config = config or CompareConfig()
    check_ranges(config)
    saved = (read_evaluation(old), read_evaluation(new))
    places, by_name = _joined(*saved)
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
    notes = _sided(*(one.cautions for one in saved))
    if by_name:
        notes = ("The evaluations share no path: images were matched by file name alone.", *notes)
    data_name = f"{old.name}, {new.name}"
    compared = Compared(sides[0], sides[1], records, str(old), data_name, split, notes=notes)
    return write_comparison(out, compared, config)


def run_compare_columns(
    table: Path,
    columns: tuple[str, str],
    thresholds: tuple[float, float] | None,
    out: Path,
    config: CompareConfig | None = None,
) -> tuple[dict[str, Any], str, int]:
    """Compare two score columns of one table.

    The threshold of a column `NAME` is the one in `thresholds`, else that in the column
    `NAME_threshold`, else chosen as `evaluate --scores` does.

    Raises:
        UsageError: there is no such file.
        DataError: the table is unusable, or no row has a label and both scores.
    """
    config = config or CompareConfig()
    check_ranges(config)
    if not table.is_file():
        raise UsageError(
            f"--scores {table}: is not a file, wanted a CSV with a label and two scores"
        )
    given = thresholds or (None, None)
    both = [
        labelled_scores(read_scores(table, name), at)
        for name, at in zip(columns, given, strict=True)
    ]
    shared = [
        k
        for k, (one, other) in enumerate(zip(both[0].rows, both[1].rows, strict=True))
        if one.score is not None and other.score is not None
    ]
    if not shared:
        raise DataError(
            f"{table}: no row has a label and a score in both {columns[0]!r} and {columns[1]!r}. "
            "Give columns that have scores for the same cases."
        )
    claim_folder(out)
    sides = [_column_side(one, shared) for one in both]
    records = [both[0].dataset.records[k] for k in shared]
    notes = _sided(*(one.dataset.warnings for one in both))
    compared = Compared(sides[0], sides[1], records, str(table), table.name, notes=notes)
    return write_comparison(out, compared, config)


def _sided(old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """The cautions about both systems: first what is true of both, then what is true of one."""
    both = [caution for caution in old if caution in new]
    return (
        *both,
        *(f"Old: {caution}" for caution in old if caution not in both),
        *(f"New: {caution}" for caution in new if caution not in both),
    )


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


def _joined(old: SavedEvaluation, new: SavedEvaluation) -> tuple[list[tuple[int, int]], bool]:
    """Positions of the images that both scored, in the order of the old evaluation.

    They are matched by path, or by file name (returned as True) if no path is shared: the data may
    have moved.
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
                f"{one.folder}: names {name!r} {count} times, so cases can't be matched one to "
                "one. Evaluate with a column that names each image once."
            )
    where = {name: k for k, name in enumerate(names[1])}
    places = [(k, where[name]) for k, name in enumerate(names[0]) if name in where]
    for pair in places:
        k, other = pair
        if old.labels[k] != new.labels[other]:
            raise DataError(
                f"{names[0][k]}: has one label in {old.folder} and another in {new.folder}. "
                "Evaluate both against the same reference."
            )
        patients = old.patients[k], new.patients[other]
        if shorten and patients[0] != patients[1] and all(map(_names_a_patient, (old, new), pair)):
            raise DataError(
                f"{names[0][k]}: is of patient {patients[0]!r} in {old.folder} and of "
                f"{patients[1]!r} in {new.folder}. The evaluations share no path, and file names "
                "match other images. Evaluate both on the same images, with the same patient ids."
            )
    return places, shorten


def _names_a_patient(one: SavedEvaluation, k: int) -> bool:
    """Whether the patient of an image is known: without one, an image's path stands for it."""
    path, patient = Path(one.names[k]), Path(one.patients[k])
    return patient.name not in (path.name, path.stem)
