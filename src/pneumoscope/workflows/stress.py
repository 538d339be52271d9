"""`stress`: measure a model under image perturbations, masked regions and background swaps.

It writes into one folder:

stress.json       every number (`workflows/stress_files.py`)
stress.csv        one row per change
answers.csv       one row per image and change
answers.jsonl     journal of scored images, for `--resume`
figures/*.svg     the figures of the page
stress.html       the page
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pneumoscope.config import IntervalConfig, StressConfig, check_ranges
from pneumoscope.data.index import index, require_both_classes, sample_patients
from pneumoscope.data.training_overlap import TrainingOverlap
from pneumoscope.errors import UsageError
from pneumoscope.images.grey import count_warnings, summary_lines
from pneumoscope.images.lungs import MaskFolder
from pneumoscope.images.perturbation_sweeps import SWEEPS
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord
from pneumoscope.report.content import EvaluatedSplit
from pneumoscope.report.stress_findings import StressContent, stress_findings
from pneumoscope.report.stress_page import render_stress_page, stress_figures
from pneumoscope.storage import claim_folder, path_text, write_json, write_text, writes_alone
from pneumoscope.workflows.evaluate import chosen_split
from pneumoscope.workflows.evaluation_folder import run_facts
from pneumoscope.workflows.run_folder import announce
from pneumoscope.workflows.seen import seen_by
from pneumoscope.workflows.stress_files import (
    Stressed,
    StressJournal,
    stress_document,
    write_copies,
    write_rows,
)
from pneumoscope.workflows.stress_numbers import StressInput, stress_content
from pneumoscope.workflows.stress_scoring import conditions_of, score_stressed

_LOGGER = logging.getLogger(__name__)
_JOURNAL_FORMAT = 2


def stress(  # noqa: PLR0913 - data, a model, and five settings
    data: Path | str,
    out: Path | str,
    model: Path | str = "default",
    split: EvaluatedSplit = "test",
    config: StressConfig | None = None,
    interval: IntervalConfig | None = None,
    *,
    masks: Path | str | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> StressContent:
    """Run a stress test of `model` on one split of `data`; write the files to `out`.

    Args:
        data: a folder with class folders, or a CSV manifest. Without splits every image is used.
        out: output folder; created if it does not exist.
        model: a bundle, a run, or `default`.
        split: the part of the data to use.
        config: number of images, largest acceptable loss, whether to test for shortcuts.
        interval: confidence level and number of resamples.
        masks: folder of lung masks, PNG, with the names of the images; `None`: lungs are segmented.
        resume: continue from the journal in `out`, if it exists.
        progress: advances by one for each image.

    Raises:
        DataError: the split is empty, or no image of one class has a prediction.
        UsageError: no such model or masks, a setting is out of range, or the journal in `out`
            belongs to another model or other settings.

    Examples:
        >>> config = StressConfig(limit=4, shortcuts=False)
        >>> found = stress(xrays, folder / "stressed", run.folder, config=config)
        >>> (folder / "stressed" / "stress.html").exists()
        True
    """
    return _stress(
        Path(data),
        Path(out),
        model,
        split,
        config or StressConfig(),
        interval or IntervalConfig(),
        Path(masks) if masks is not None else None,
        progress,
        resume=resume,
    )[0]


@writes_alone
def _stress(  # noqa: PLR0913 - as `stress`
    data: Path,
    out: Path,
    model: Path | str,
    split: EvaluatedSplit,
    config: StressConfig,
    interval: IntervalConfig,
    masks: Path | None,
    progress: Progress,
    *,
    resume: bool,
) -> tuple[StressContent, TrainingOverlap]:
    """Run the stress test; also returns how many images the model was trained on."""
    check_ranges(config, "stress")
    check_ranges(interval, "interval")
    started = time.monotonic()
    # Without input check: refusing the modified copies would hide what a change costs.
    predictor = Predictor.load(model, input_check=False)
    given = _input(data, split, config, interval, masks, progress)
    seen = seen_by(predictor, given.records, progress)
    claim_folder(out)
    stressed = _scored(given, predictor, out / "answers.jsonl", progress, resume=resume)
    content = stress_content(given, stressed, predictor.manifest, str(model), progress)
    warned = dict(count_warnings(each.warnings for each in stressed).most_common())
    facts_of_run = run_facts({"stress": round(time.monotonic() - started, 2)}, config)
    content = replace(content, run=facts_of_run, warned=warned)
    facts = {**content.model.facts, "Seen before": seen.in_words()}
    content = replace(content, model=replace(content.model, facts=facts))
    _write(out, content, given, stressed, seen)
    return content, seen


def run_stress(  # noqa: PLR0913 - as `stress`
    data: Path,
    out: Path,
    model: str,
    split: EvaluatedSplit,
    config: StressConfig,
    interval: IntervalConfig,
    masks: Path | None,
    progress: Progress,
    *,
    resume: bool,
) -> tuple[dict[str, Any], str]:
    """Run `stress`; returns the JSON document (`stress.json` and `out`) and the terminal text."""
    content, seen = _stress(
        data, out, model, split, config, interval, masks, progress, resume=resume
    )
    findings = [f"{finding.severity:<8} {finding.text}" for finding in stress_findings(content)]
    warned = summary_lines(Counter(content.warned))
    text = "\n".join([seen.in_words(), "", *findings, "", *warned, f"page  {out / 'stress.html'}"])
    return _document(content, seen) | {"out": str(out)}, text


def _document(content: StressContent, seen: TrainingOverlap) -> dict[str, Any]:
    """`stress.json`, with the number of images that the model was trained on."""
    return stress_document(content) | {"seen": seen.to_dict()}


def _input(
    data: Path,
    split: EvaluatedSplit,
    config: StressConfig,
    interval: IntervalConfig,
    masks: Path | str | None,
    progress: Progress,
) -> StressInput:
    dataset, split = chosen_split(index(data, progress=progress), split, data)
    announce(dataset)
    require_both_classes(dataset.records, f"{data}, split {split}")
    records = sample_patients(dataset.records, config.limit, config.seed)
    if len(records) < len(dataset.records):
        _LOGGER.info(
            "using %d of %d images: whole patients, drawn by class (--limit)",
            len(records),
            len(dataset.records),
        )
    return StressInput(
        data.name,
        dataset,
        split,
        records,
        len(dataset.records),
        _mask_folder(masks, dataset.root, records, config),
        config,
        interval,
    )


def _mask_folder(
    masks: Path | str | None, root: Path, records: Sequence[ImageRecord], config: StressConfig
) -> MaskFolder | None:
    if masks is None:
        return None
    if not config.shortcuts:
        raise UsageError("--masks: has no effect with --no-shortcuts. Drop one.")
    folder = MaskFolder(Path(masks), root)
    if not any(folder.path_of(record.path) for record in records):
        wanted = records[0].path.with_suffix(".png").name
        raise UsageError(
            f"--masks {masks}: holds no mask for any of {len(records)} images; wanted PNG files "
            f"with the names of the images, such as {wanted}."
        )
    return folder


def _scored(
    given: StressInput, predictor: Predictor, path: Path, progress: Progress, *, resume: bool
) -> tuple[Stressed, ...]:
    """Score all images; those in the journal are not scored again."""
    journal = StressJournal(path, _origin(given, predictor.manifest), resume=resume)
    done = len(journal.done)
    title = f"stress test, {len(conditions_of(given.config))} conditions each"
    try:
        with progress.task(title, len(given.records), "images") as task:
            task.advance(done)
            for stressed in score_stressed(
                given.records, predictor, given.config, given.masks, done
            ):
                journal.add(stressed)
                task.advance()
    finally:
        journal.close()
    return tuple(journal.done)


def _origin(given: StressInput, manifest: BundleManifest) -> str:
    """Digest of everything that determines the scores: version, model, settings, images."""
    names = [condition.name for condition in conditions_of(given.config)]
    strengths = [step.perturbation.strength for sweep in SWEEPS for step in sweep.steps]
    parts: list[Any] = [_JOURNAL_FORMAT, metadata.version("pneumoscope"), asdict(manifest)]
    parts += [names, strengths]
    # These settings judge the scores; they do not change them.
    parts.append(asdict(given.config) | {"largest_fall": None, "folds": None, "limit": None})
    parts.append(None if given.masks is None else str(given.masks.folder))
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for record in given.records:
        digest.update(f"{path_text(record.path)}\0{record.sha256}\0".encode())
    return digest.hexdigest()


def _write(
    out: Path,
    content: StressContent,
    given: StressInput,
    stressed: Sequence[Stressed],
    seen: TrainingOverlap,
) -> None:
    write_json(out / "stress.json", _document(content, seen))
    write_rows(out / "stress.csv", content)
    names = [condition.name for condition in conditions_of(given.config)]
    write_copies(out / "answers.csv", given.records, stressed, names)
    for figure in stress_figures(content):
        figure.save(out / "figures" / f"{figure.name}.svg")
    write_text(out / "stress.html", render_stress_page(content))
