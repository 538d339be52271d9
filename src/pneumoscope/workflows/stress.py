"""`stress`: how far a model's answers hold when the films change, and whether it reads the lungs.

stress.json       every number (`workflows/stress_files.py`)
stress.csv        one row per change
answers.csv       one row per image and change
answers.jsonl     the same as it grows, for `resume`
figures/*.svg     the page's figures
stress.html
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

from pneumoscope.config import IntervalConfig, StressConfig, check_ranges
from pneumoscope.data.index import index, require_both_classes, sample_patients
from pneumoscope.errors import UsageError
from pneumoscope.images.lungs import MaskFolder
from pneumoscope.images.perturbation_sweeps import SWEEPS
from pneumoscope.images.warning_summary import count_warnings, summary_lines
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord
from pneumoscope.report.content import EvaluatedSplit, RunFacts
from pneumoscope.report.stress_findings import StressContent, stress_findings
from pneumoscope.report.stress_page import stress_figures, write_stress_page
from pneumoscope.storage import claim_folder, path_text, write_json, writes_alone
from pneumoscope.workflows.evaluate import chosen_split
from pneumoscope.workflows.run_folder import announce, command_line, software_versions
from pneumoscope.workflows.seen import seen_by
from pneumoscope.workflows.stress_answers import answer_stressed, conditions_of
from pneumoscope.workflows.stress_files import (
    Stressed,
    StressJournal,
    stress_document,
    write_answers,
    write_rows,
)
from pneumoscope.workflows.stress_numbers import StressGiven, stress_content

_LOGGER = logging.getLogger(__name__)


@writes_alone
def stress(  # noqa: PLR0913 - a DATA, a model, and five ways to go about it
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
    """Stress `model` with one split of `data` into the folder `out`.

    Args:
        data: DATA by the contract. Where it names no splits at all, every image is used.
        out: folder for the files named above; made if need be.
        model: a bundle, a run, or `default`.
        split: which part of the data.
        config: how many images, what may be lost, whether shortcuts are looked for.
        interval: how uncertainty is stated.
        masks: folder of lung masks, PNG, named as the films are; `None`: lungs are looked for.
        resume: go on with the answers in `out`, if there are any.
        progress: is told of every image.

    Raises:
        DataError: the split is empty, or no image of one class had an answer.
        UsageError: no such model or masks, a setting out of its range, or the answers in `out` are
            of something else.

    Example:
        >>> config = StressConfig(limit=4, shortcuts=False)
        >>> found = stress(xrays, folder / "stressed", run.folder, config=config)
        >>> (folder / "stressed" / "stress.html").exists()
        True
    """
    data, out = Path(data), Path(out)
    config, interval = config or StressConfig(), interval or IntervalConfig()
    check_ranges(config, "stress")
    check_ranges(interval, "interval")
    started = time.monotonic()
    # What a change costs is asked of every film: refusing the changed ones would hide it.
    predictor = Predictor.load(model, input_check=False)
    given = _given(data, split, config, interval, masks, progress)
    seen_by(predictor, given.records, progress)
    claim_folder(out)
    stressed = _answered(given, predictor, out / "answers.jsonl", progress, resume=resume)
    content = stress_content(given, stressed, predictor.manifest, str(model), progress)
    warned = dict(count_warnings(each.warnings for each in stressed).most_common())
    content = replace(_with_run(content, config, time.monotonic() - started), warned=warned)
    _write(out, content, given, stressed)
    return content


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
    """`stress`, told as a document (`stress.json` and `out`) and a text."""
    content = stress(
        data, out, model, split, config, interval, masks=masks, resume=resume, progress=progress
    )
    findings = [f"{finding.severity:<8} {finding.text}" for finding in stress_findings(content)]
    warned = summary_lines(Counter(content.warned))
    text = "\n".join([*findings, "", *warned, f"page  {out / 'stress.html'}"])
    return stress_document(content) | {"out": str(out)}, text


def _given(
    data: Path,
    split: EvaluatedSplit,
    config: StressConfig,
    interval: IntervalConfig,
    masks: Path | str | None,
    progress: Progress,
) -> StressGiven:
    dataset, split = chosen_split(index(data, progress=progress), split, data)
    announce(dataset)
    require_both_classes(dataset.records, f"{data}, split {split}")
    records = sample_patients(dataset.records, config.limit, config.seed)
    if len(records) < len(dataset.records):
        _LOGGER.info(
            "%d of %d images are used, whole patients drawn by class (--limit)",
            len(records),
            len(dataset.records),
        )
    return StressGiven(
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
        raise UsageError("--masks: found together with --no-shortcuts, which need none. Drop one.")
    folder = MaskFolder(Path(masks), root)
    if not any(folder.path_of(record.path) for record in records):
        wanted = records[0].path.with_suffix(".png").name
        raise UsageError(
            f"--masks {masks}: holds no mask of any of {len(records)} films; wanted PNG files "
            f"named as the films are, such as {wanted}."
        )
    return folder


def _answered(
    given: StressGiven, predictor: Predictor, path: Path, progress: Progress, *, resume: bool
) -> tuple[Stressed, ...]:
    """Every image's answers; those that are there already are not asked for again."""
    journal = StressJournal(path, _origin(given, predictor.manifest), resume=resume)
    done = len(journal.done)
    title = f"stressing, {len(conditions_of(given.config))} ways each"
    try:
        with progress.task(title, len(given.records), "images") as task:
            task.advance(done)
            for stressed in answer_stressed(
                given.records, predictor, given.config, given.masks, done
            ):
                journal.add(stressed)
                task.advance()
    finally:
        journal.close()
    return tuple(journal.done)


def _origin(given: StressGiven, manifest: BundleManifest) -> str:
    """What decides the answers: this version, the model, the settings, the images in order."""
    names = [condition.name for condition in conditions_of(given.config)]
    strengths = [step.perturbation.strength for sweep in SWEEPS for step in sweep.steps]
    told: list[Any] = [metadata.version("pneumoscope"), asdict(manifest), names, strengths]
    # The limits judge the answers, they don't change them.
    told.append(asdict(given.config) | {"largest_fall": None, "folds": None, "limit": None})
    told.append(None if given.masks is None else str(given.masks.folder))
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for record in given.records:
        digest.update(f"{path_text(record.path)}\0{record.sha256}\0".encode())
    return digest.hexdigest()


def _write(
    out: Path, content: StressContent, given: StressGiven, stressed: Sequence[Stressed]
) -> None:
    write_json(out / "stress.json", stress_document(content))
    write_rows(out / "stress.csv", content)
    names = [condition.name for condition in conditions_of(given.config)]
    write_answers(out / "answers.csv", given.records, stressed, names)
    for figure in stress_figures(content):
        figure.save(out / "figures" / f"{figure.name}.svg")
    write_stress_page(out / "stress.html", content)


def _with_run(content: StressContent, config: StressConfig, seconds: float) -> StressContent:
    started = datetime.now(UTC) - timedelta(seconds=seconds)
    facts = RunFacts(
        command_line(),
        {"stress": round(seconds, 2)},
        software_versions(),
        started.isoformat(timespec="seconds"),
        config,
    )
    return replace(content, run=facts)
