"""`predict`: answers for files, as a table on the terminal or a file, with overlays if wanted.

Overlays of many answers into a folder, beside the engine and not in its way.

Comes in: answers with their images, one at a time. Goes out: PNG files. Knows nothing of tables.
"""

from __future__ import annotations

import hashlib
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
from pneumoscope.delivery.fhir.bundle import FhirFolder
from pneumoscope.errors import InputError, UsageError
from pneumoscope.images.warning_summary import count_warnings, summary_lines
from pneumoscope.inference.inputs import FileList, expand, is_url
from pneumoscope.inference.overlay import heatmap_name, indexed_overlay_png, shrunk, thinned
from pneumoscope.inference.predictor import BATCH, Answer, Predictor, mark_of
from pneumoscope.inference.table import Journal, as_row, check_format, journal_of
from pneumoscope.progress import Progress, Task
from pneumoscope.records import Prediction
from pneumoscope.storage import claim_folder, path_text, temporary_beside


def overlay_writer(folder: Path, config: PreprocessConfig) -> Callable[[Answer], None]:
    """What writes the overlay of an answer, if it has an image and a map.

    For `Predictor.predict_files`, which calls it before it yields the answer: so a row of a table
    is never without its picture.

    Args:
        folder: for the PNG files.
        config: how the images were preprocessed.
    """

    def write(result: Answer) -> None:
        if result.image is not None and result.cam is not None:
            png = indexed_overlay_png(result.image.pixels, result.cam, config)
            _put(folder / heatmap_name(result.prediction.path), png)

    return write


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, as far as kills go.

    It is not flushed by itself, which takes as long as making the picture: where the power fails,
    the last pictures may have to be made again.
    """
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


Engine = Literal["local", "ray"]

REFUSED = InputError.exit_code

MOST_LISTED = 10_000
"""Rows that the JSON document holds where there is a table too; of more it names the table only."""

_EXPLAINED = 10
"""Inputs without an answer that the text explains."""


@dataclass(frozen=True, slots=True)
class ResultFolders:
    """Where results go besides the table.

    Attributes:
        dicom: folder for a DICOM report and capture of every DICOM input.
        fhir: folder for a FHIR R4 Bundle of every input that can be read.
        segmentation: write heatmaps into `dicom` as DICOM Segmentations, too.
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
    """Answer for every input of `paths`, one row each, in their order.

    Args:
        paths: files, folders, CSVs, patterns.
        model: a bundle, a run, or `default`.
        out: the table; until it is whole its rows are in `OUT.partial`.
        heatmaps: folder for overlays.
        progress: is told of every image.
        resume: go on with the rows of `OUT.partial`, if there are any.
        folders: where DICOM and FHIR objects go, if they are wanted.
        batch: how to go through them; with the engine `ray` paths may be URLs.

    Returns:
        A document, a text, and the exit code: 3 if nothing had an answer, or with `batch.strict` if
        anything had none; else 0.

    Raises:
        UsageError: no such model, `out` has a suffix of no format, a file is where a folder for
            `out`, `heatmaps` or one of `folders` should be, there is nothing of this command to
            resume, or another process writes the same `out`.
        ExtraMissingError: one of `folders` without the packages that it needs.
        InputError: `paths` mean no file at all.
    """
    if any(not str(path).strip() for path in paths):
        raise UsageError("found an empty PATH, wanted a file, folder, pattern or CSV.")
    _check(out, heatmaps, resume)
    folders = folders or ResultFolders()
    if folders.segmentation and folders.dicom is None:
        raise UsageError("--segmentation: wanted --dicom-out DIR, the folder to write them to")
    batch = batch or BatchConfig()
    check_ranges(batch)
    if batch.engine == "ray" and batch.device != "CPU":
        raise UsageError(
            f"--device {batch.device}: --engine ray runs on processors. Take --engine local."
        )
    _check_engine(batch.engine, paths, pictures=bool(heatmaps or folders.dicom or folders.fhir))
    # The rows of this very command may lie in a folder of films.
    with FileList(
        _expanded(batch.engine, paths), without=journal_of(out) if out else None
    ) as files:
        if not len(files):
            named = ", ".join(map(str, paths))
            raise InputError(f"{named}: holds no file. Give images, folders of images, or a CSV.")
        predictor = Predictor.load(
            model,
            batch.precision,
            input_check=batch.input_check,
            any_age=batch.any_age,
            device=batch.device,
        )
        reports, resources = _writers(folders, predictor)
        writers = [writer for writer in (reports, resources) if writer is not None]
        journal = Journal(out, _origin(predictor, files), resume=resume) if out else None
        before = journal.rows if journal else 0
        reading = _Reading(files, before, batch.workers)
        if batch.engine == "ray":
            predictions = _by_cluster(reading, predictor, model, progress)
        else:
            predictions = _predictions(reading, predictor, heatmaps, writers, progress)
        told = _to_journal(predictions, journal) if journal else _listed(predictions)
    document = {
        "counts": {status: told.counts[status] for status in ("ok", "refused", "error")},
        "warnings": dict(told.warned.most_common()),
        "precision": predictor.precision,
        "resumed_after": before,
        "predictions": told.rows,
        "out": None if out is None else str(out),
        "heatmaps": None if heatmaps is None else str(heatmaps),
        "dicom_out": reports.document() if reports else None,
        "fhir": resources.document() if resources else None,
    }
    without_result = told.counts.total() - told.counts["ok"]
    failed = not told.counts["ok"] or (batch.strict and without_result)
    text = "\n".join(
        [
            *told.table,
            *_summary(told, out, heatmaps),
            *(line for writer in writers for line in writer.lines()),
        ]
    )
    return document, text, REFUSED if failed else 0


def _writers(
    folders: ResultFolders, predictor: Predictor
) -> tuple[ReportFolder | None, FhirFolder | None]:
    """What writes DICOM objects, and what FHIR resources."""
    manifest, precision = predictor.manifest, predictor.precision
    reports = resources = None
    if folders.dicom:
        reports = ReportFolder(
            folders.dicom, manifest, precision=precision, segmentation=folders.segmentation
        )
    if folders.fhir:
        resources = FhirFolder(folders.fhir, manifest, precision=precision)
    return reports, resources


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told at the end, however many rows there are.

    Attributes:
        counts: rows of each status.
        warned: rows with each kind of warning.
        rows: of the contract; `None` if there are more than `MOST_LISTED` and a table has them.
        unanswered: the first inputs of this run without an answer.
        table: lines for the terminal, where no file is written.
    """

    counts: Counter[str]
    warned: Counter[str]
    rows: list[dict[str, Any]] | None
    without_result: list[Prediction]
    table: list[str]


def _to_journal(predictions: Iterator[Prediction], journal: Journal) -> _Told:
    """Every prediction into the journal as it comes, and at the end the table."""
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
    return _Told(journal.counts, journal.warned, rows, without_result, [])


def _listed(predictions: Iterator[Prediction]) -> _Told:
    """Every prediction at once, for the terminal."""
    rows = list(predictions)
    counts = Counter[str](prediction.status for prediction in rows)
    warned = count_warnings(prediction.warnings for prediction in rows)
    return _Told(counts, warned, [as_row(p) for p in rows], [], _table(rows))


def _check(out: Path | None, heatmaps: Path | None, resume: bool) -> None:
    if resume and out is None:
        raise UsageError("--resume: wanted --out FILE, the table to go on with. Give it too.")
    if out is not None:
        check_format(out)
        claim_folder(out.parent)
    if heatmaps is not None:
        claim_folder(heatmaps)


def _origin(predictor: Predictor, files: FileList) -> str:
    """What decides the rows: the model, the inputs in their order."""
    return hashlib.sha256(f"{mark_of(predictor)} {files.digest}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is to be read: the files after those that are done, by threads or so many processes."""

    files: FileList
    done: int
    workers: int

    @property
    def again(self) -> int:
        """Files before these that are read again, to begin where a batch does.

        In other company an answer may differ in its last bit.
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
    """The predictions of what is not done yet; overlays are written on the way."""
    results = predictor.predict_files(
        reading.names,
        keep=shrunk if writers else thinned if heatmaps else None,
        each=overlay_writer(heatmaps, predictor.manifest.preprocessing) if heatmaps else None,
        workers=reading.workers,
    )
    wanted = islice(results, reading.again, None)
    with closing(results), reading.shown(progress) as task:
        for result in wanted:
            for writer in writers:
                writer.add(result)
            yield result.prediction
            task.advance()


def _by_cluster(
    reading: _Reading, predictor: Predictor, model: str, progress: Progress
) -> Iterator[Prediction]:
    """The predictions of what is not done yet, made by a cluster."""
    from pneumoscope.inference.cluster import predicted_on_cluster

    place = str(Path(model).absolute()) if Path(model).is_dir() else model
    rows = predicted_on_cluster(
        reading.names,
        len(reading.files) - reading.done,
        partial(
            Predictor.load,
            place,
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
            "--heatmaps, --dicom-out, --fhir: a cluster makes tables alone. Leave out --engine ray."
        )
    url = next((path for path in map(str, paths) if is_url(path)), None)
    if engine == "local" and url is not None:
        raise UsageError(f"{url}: found a URL, wanted a path. Give --engine ray, which reads URLs.")


def _expanded(engine: Engine, paths: Sequence[Path | str]) -> Iterator[str]:
    if engine == "local":
        return expand(map(Path, paths))
    from pneumoscope.inference.cluster import expand_anywhere

    return expand_anywhere(paths)


def _summary(told: _Told, out: Path | None, heatmaps: Path | None) -> list[str]:
    counts = told.counts
    lines = [f"{counts['ok']} answered, {counts['refused']} refused, {counts['error']} unreadable"]
    for prediction in told.without_result:
        lines.append(_shown(f"  {prediction.path}: {prediction.reason}: {prediction.detail}"))
    lines += map(_shown, summary_lines(told.warned))
    lines += [f"table     {out}"] if out else []
    lines += [f"heatmaps  {heatmaps}"] if heatmaps else []
    return lines


def _shown(text: str) -> str:
    """Text for a terminal: a file's name must not break the line, nor command the terminal."""
    kept = path_text(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)


def _table(predictions: Sequence[Prediction]) -> list[str]:
    width = min(max(len(_shown(prediction.path)) for prediction in predictions), 60)
    lines = [f"{'path':<{width}}  {'probability':>11}  answer"]
    for p in predictions:
        path = _shown(p.path)
        path = path if len(path) <= width else "…" + path[1 - width :]
        if p.probability is None:
            lines.append(f"{path:<{width}}  {'–':>11}  {p.status}: {p.reason} ({_shown(p.detail)})")
        else:
            lines.append(f"{path:<{width}}  {p.probability:>11.4f}  {p.prediction}")
    return [*lines, ""]
