"""`predict`: run inference on images; print a table, or write it to a file.

Heatmap overlays, DICOM reports and FHIR resources are written along the way. An interrupted run
with `--out` resumes from its journal.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pneumoscope.config import BatchConfig, PreprocessConfig, check_ranges
from pneumoscope.delivery.dicom_report.objects import ReportFolder
from pneumoscope.delivery.dicom_report.source import checks_of
from pneumoscope.delivery.fhir import FhirFolder
from pneumoscope.errors import InputError, UsageError
from pneumoscope.images.grey import count_warnings, summary_lines
from pneumoscope.inference.inputs import FileList, expand, is_url
from pneumoscope.inference.overlay import heatmap_name, indexed_overlay_png, shrunk, thinned
from pneumoscope.inference.predictor import BATCH, Predictor, mark_of
from pneumoscope.inference.results import Journal, Result, as_row, check_format, journal_of
from pneumoscope.progress import Progress, Task
from pneumoscope.records import Prediction
from pneumoscope.storage import claim_folder, full_path, path_text, temporary_beside

_LOGGER = logging.getLogger(__name__)

REFUSED = InputError.exit_code
MOST_LISTED = 10_000
"""Largest number of rows in the JSON document if there is also a table; beyond, none."""

_EXPLAINED = 10
"""Number of rejected or unreadable inputs that the text lists."""


def overlay_writer(folder: Path, config: PreprocessConfig) -> Callable[[Result], None]:
    """Return a function that writes the heatmap overlay of a result.

    `Predictor.predict_files` calls it before it yields the result, so the picture exists before
    the row of the table. Results without image or heatmap are skipped.

    Args:
        folder: for the PNG files.
        config: the preprocessing of the model.
    """

    def write(result: Result) -> None:
        if result.image is not None and result.cam is not None:
            png = indexed_overlay_png(result.image.pixels, result.cam, config)
            _put(folder / heatmap_name(result.prediction.path), png)

    return write


def _put(path: Path, content: bytes) -> None:
    """Write a file atomically with respect to process termination.

    The file is not flushed to disk, which would take as long as drawing it: after a power failure
    the last pictures may be missing.
    """
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


Engine = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class ResultFolders:
    """Output folders besides the table.

    Attributes:
        dicom: folder for a DICOM report and secondary capture of every DICOM input.
        fhir: folder for a FHIR R4 Bundle of every readable input.
        segmentation: also write heatmaps to `dicom` as DICOM Segmentations.
    """

    dicom: Path | None = None
    fhir: Path | None = None
    segmentation: bool = False


def run_prediction(
    paths: Sequence[Path | str],
    model: str,
    out: Path | None,
    heatmaps: Path | None,
    progress: Progress,
    *,
    resume: bool = False,
    folders: ResultFolders | None = None,
    batch: BatchConfig | None = None,
) -> tuple[dict[str, Any], str, int]:
    """Run inference on every input; one row each, in the order of the inputs.

    Args:
        paths: files, folders, CSVs, patterns.
        model: a bundle, a run, or `default`.
        out: the table; its rows are in `OUT.partial` until it is complete.
        heatmaps: folder for heatmap overlays.
        progress: advances by one for each image.
        resume: continue from `OUT.partial`, if it exists.
        folders: folders for DICOM and FHIR objects.
        batch: engine, workers, precision, checks; with the engine `ray` paths may be URLs.

    Returns:
        A document, a text, and the exit code: 3 if no input has a prediction, or with
        `batch.strict` if any input has none; else 0.

    Raises:
        UsageError: no such model, the suffix of `out` is unknown, a file is in the place of a
            folder, `out` is one of `paths`, `OUT.partial` belongs to another command, or another
            process writes to `out`.
        ExtraMissingError: the packages for one of `folders` are not installed.
        InputError: `paths` match no file.
    """
    if any(not str(path).strip() for path in paths):
        raise UsageError("found an empty PATH, wanted a file, folder, pattern or CSV.")
    _check(paths, out, heatmaps, resume)
    folders = folders or ResultFolders()
    if folders.segmentation and folders.dicom is None:
        raise UsageError("--segmentation: wanted --dicom-out DIR, the folder to write them to")
    batch = batch or BatchConfig()
    check_ranges(batch)
    if batch.engine == "ray" and batch.device != "CPU":
        raise UsageError(
            f"--device {batch.device}: --engine ray runs on CPUs only. Use --engine local."
        )
    _check_engine(batch.engine, paths, pictures=bool(heatmaps or folders.dicom or folders.fhir))
    # What this command writes, or wrote before, may lie in a folder of images: it is no input.
    with FileList(
        _expanded(batch.engine, paths),
        without=(out, journal_of(out)) if out else (),
        folders=_inside(paths, (heatmaps, folders.dicom, folders.fhir)),
    ) as files:
        if files.in_folders:
            _LOGGER.warning(
                "%d files in the folders for results are not taken as inputs.", files.in_folders
            )
        if not len(files):
            named = ", ".join(map(str, paths))
            raise InputError(f"{named}: found no file. Give images, folders of images, or a CSV.")
        predictor = Predictor.load(
            model,
            batch.precision,
            input_check=batch.input_check,
            any_age=batch.any_age,
            device=batch.device,
        )
        if batch.input_check and not predictor.checks_inputs:
            _LOGGER.warning("%s has no input check: it predicts for any picture.", model)
        reports, resources = _writers(folders, predictor)
        writers = [writer for writer in (reports, resources) if writer is not None]
        journal = None
        if out:
            outputs = _outputs(heatmaps, folders)
            journal = Journal(out, _origin(predictor, files), resume=resume, outputs=outputs)
        before = journal.rows if journal else 0
        reading = _Reading(files, before, batch.workers)
        if batch.engine == "ray":
            predictions = _by_cluster(reading, predictor, model, progress)
        else:
            predictions = _predictions(reading, predictor, heatmaps, writers, progress)
        collected = _to_journal(predictions, journal) if journal else _collect(predictions)
    document = {
        "counts": {status: collected.counts[status] for status in ("ok", "refused", "error")},
        "warnings": dict(collected.warned.most_common()),
        "precision": predictor.precision,
        "resumed_after": before,
        "predictions": collected.rows,
        "out": None if out is None else str(out),
        "heatmaps": None if heatmaps is None else str(heatmaps),
        "dicom_out": reports.document() if reports else None,
        "fhir": resources.document() if resources else None,
    }
    without_result = collected.counts.total() - collected.counts["ok"]
    failed = not collected.counts["ok"] or (batch.strict and without_result)
    text = "\n".join(
        [
            *collected.table,
            *_summary(collected, out, heatmaps),
            *(line for writer in writers for line in writer.lines()),
        ]
    )
    return document, text, REFUSED if failed else 0


def _writers(
    folders: ResultFolders, predictor: Predictor
) -> tuple[ReportFolder | None, FhirFolder | None]:
    """The writers of DICOM objects and of FHIR resources; `None` for what is not requested."""
    manifest, precision = predictor.manifest, predictor.precision
    checks = checks_of(predictor)
    reports = resources = None
    if folders.dicom:
        reports = ReportFolder(
            folders.dicom,
            manifest,
            precision=precision,
            segmentation=folders.segmentation,
            checks=checks,
        )
    if folders.fhir:
        resources = FhirFolder(folders.fhir, manifest, precision=precision, checks=checks)
    return reports, resources


@dataclass(frozen=True, slots=True)
class _Collected:
    """Summary of a run, of bounded size.

    Attributes:
        counts: number of rows per status.
        warned: number of rows per warning.
        rows: all rows; `None` if a table has them and there are more than `MOST_LISTED`.
        without_result: the first inputs of this run that were refused or unreadable.
        table: lines for the terminal, if no file is written.
    """

    counts: Counter[str]
    warned: Counter[str]
    rows: list[dict[str, Any]] | None
    without_result: list[Prediction]
    table: list[str]


def _to_journal(predictions: Iterator[Prediction], journal: Journal) -> _Collected:
    """Append every prediction to the journal, then write the table."""
    without_result: list[Prediction] = []
    try:
        for prediction in predictions:
            journal.add(prediction)
            if prediction.reason and len(without_result) < _EXPLAINED:
                without_result.append(prediction)
        journal.flush()
        rows = list(journal.read()) if journal.rows <= MOST_LISTED else None
        journal.finish()
    finally:
        journal.close()
    return _Collected(journal.counts, journal.warned, rows, without_result, [])


def _collect(predictions: Iterator[Prediction]) -> _Collected:
    """Collect all predictions for the terminal."""
    rows = list(predictions)
    counts = Counter[str](prediction.status for prediction in rows)
    warned = count_warnings(prediction.warnings for prediction in rows)
    return _Collected(counts, warned, [as_row(p) for p in rows], [], _table(rows))


def _check(
    paths: Sequence[Path | str], out: Path | None, heatmaps: Path | None, resume: bool
) -> None:
    if resume and out is None:
        raise UsageError("--resume: wanted --out FILE, the table to continue. Add it.")
    if out is not None:
        check_format(out)
        if any(full_path(path) == full_path(out) for path in paths):
            raise UsageError(
                f"--out {out}: is one of the inputs, which the table would overwrite. Give another "
                "file."
            )
        claim_folder(out.parent)
    if heatmaps is not None:
        claim_folder(heatmaps)


def _inside(paths: Sequence[Path | str], written: Sequence[Path | None]) -> list[Path]:
    """The folders for results that lie in a folder of images, and in which no input was given."""
    given = [Path(full_path(path)) for path in paths]
    named = [(folder, Path(full_path(folder))) for folder in written if folder is not None]
    return [
        folder
        for folder, full in named
        if any(path in full.parents and path.is_dir() for path in given)
        and not any(path.is_relative_to(full) for path in given)
    ]


def _origin(predictor: Predictor, files: FileList) -> str:
    """Digest of what determines the rows: the model and the inputs in order."""
    return hashlib.sha256(f"{mark_of(predictor)} {files.digest}".encode()).hexdigest()


def _outputs(heatmaps: Path | None, folders: ResultFolders) -> list[str]:
    """The options for further files; resumed with others, the rows before would have none."""
    given = {
        "--heatmaps": heatmaps,
        "--dicom-out": folders.dicom,
        "--segmentation": folders.segmentation,
        "--fhir": folders.fhir,
    }
    return [option for option, value in given.items() if value]


@dataclass(frozen=True, slots=True)
class _Reading:
    """The files to read: those after the `done` first ones, with `workers` processes or threads."""

    files: FileList
    done: int
    workers: int

    @property
    def again(self) -> int:
        """Number of earlier files to read again, so that batches have the same members as before.

        In another batch the last bit of a probability may differ.
        """
        return self.done % BATCH if self.done < len(self.files) else 0

    @property
    def names(self) -> Iterator[str]:
        return self.files.after(self.done - self.again)

    @contextmanager
    def shown(self, progress: Progress) -> Iterator[Task]:
        title = f"predicting, after {self.done}" if self.done else "predicting"
        with progress.task(title, len(self.files) - self.done, "images") as task:
            yield task


def _predictions(
    reading: _Reading,
    predictor: Predictor,
    heatmaps: Path | None,
    writers: Sequence[ReportFolder | FhirFolder],
    progress: Progress,
) -> Iterator[Prediction]:
    """Yield the remaining predictions; overlays and reports are written along the way."""
    results = predictor.predict_files(
        reading.names,
        keep=shrunk if writers else thinned if heatmaps else None,
        each=overlay_writer(heatmaps, predictor.manifest.preprocessing) if heatmaps else None,
        workers=reading.workers,
    )
    remaining = islice(results, reading.again, None)
    with closing(results), reading.shown(progress) as task:
        for result in remaining:
            for writer in writers:
                writer.add(result)
            yield result.prediction
            task.advance()


def _by_cluster(
    reading: _Reading, predictor: Predictor, model: str, progress: Progress
) -> Iterator[Prediction]:
    """Yield the remaining predictions from a Ray cluster."""
    from pneumoscope.inference.cluster import predicted_on_cluster

    location = str(Path(model).absolute()) if Path(model).is_dir() else model
    rows = predicted_on_cluster(
        reading.names,
        len(reading.files) - reading.done,
        partial(
            Predictor.load,
            location,
            predictor.precision,
            input_check=predictor.checks_inputs,
            any_age=predictor.any_age,
        ),
        mark_of(predictor),
        reading.workers,
    )
    with closing(rows), reading.shown(progress) as task:
        for prediction in islice(rows, reading.again, None):
            yield prediction
            task.advance()


def _check_engine(engine: Engine, paths: Sequence[Path | str], *, pictures: bool) -> None:
    if engine == "ray" and pictures:
        raise UsageError(
            "--heatmaps, --dicom-out, --fhir: --engine ray writes tables only. Use --engine local."
        )
    url = next((path for path in map(str, paths) if is_url(path)), None)
    if engine == "local" and url is not None:
        raise UsageError(f"{url}: found a URL, wanted a path. Use --engine ray, which reads URLs.")


def _expanded(engine: Engine, paths: Sequence[Path | str]) -> Iterator[str]:
    if engine == "local":
        return expand(map(Path, paths))
    from pneumoscope.inference.cluster import expand_anywhere

    return expand_anywhere(paths)


def _summary(collected: _Collected, out: Path | None, heatmaps: Path | None) -> list[str]:
    counts = collected.counts
    lines = [
        f"{counts['ok']} predicted, {counts['refused']} rejected, {counts['error']} unreadable"
    ]
    for prediction in collected.without_result:
        lines.append(_shown(f"  {prediction.path}: {prediction.reason}: {prediction.detail}"))
    lines += map(_shown, summary_lines(collected.warned))
    lines += [f"table     {out}"] if out else []
    lines += [f"heatmaps  {heatmaps}"] if heatmaps else []
    return lines


def _shown(text: str) -> str:
    """Escape text for a terminal: a file name must not break the line or control the terminal."""
    kept = path_text(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)


def _table(predictions: Sequence[Prediction]) -> list[str]:
    width = min(max(len(_shown(prediction.path)) for prediction in predictions), 60)
    lines = [f"{'path':<{width}}  {'probability':>11}  prediction"]
    for p in predictions:
        path = _shown(p.path)
        path = path if len(path) <= width else "…" + path[1 - width :]
        if p.probability is None:
            lines.append(f"{path:<{width}}  {'–':>11}  {p.status}: {p.reason} ({_shown(p.detail)})")
        else:
            lines.append(f"{path:<{width}}  {p.probability:>11.4f}  {p.prediction}")
    return [*lines, ""]
