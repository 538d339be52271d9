"""Results of a predictor: one for every image, and their table.

The table is a file (`.csv`, `.jsonl` or `.parquet`), made from a journal. Rows are written in the
order of the predictions. The table appears whole or not at all, and memory does not grow with the
number of rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import DataError, ImageRefusedError, Reason, Status, UsageError
from pneumoscope.images.grey import count_warnings, join_warnings, split_warnings
from pneumoscope.images.read import GreyImage, read_file
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.input_check import ImageDescriptors
from pneumoscope.reading import json_lines
from pneumoscope.records import CLASS_NAMES, UNCERTAIN, Prediction, make_frame
from pneumoscope.storage import (
    atomic_writer,
    open_alone,
    path_text,
    safe_cell,
    safe_path,
    temporary_beside,
)

COLUMNS = (
    "path",
    "status",
    "reason",
    "probability",
    "prediction",
    "threshold",
    "input_score",
    "warnings",
    "detail",
)
"""The columns of a predictions file, in order."""

FORMATS = (".csv", ".jsonl", ".parquet")

NUMBERS = frozenset({"probability", "threshold", "input_score"})
"""The columns that hold numbers; all others hold text."""

_CHUNK_ROWS = 512
_CHUNK_SECONDS = 2.0
"""An interruption loses at most the rows since the last flush."""


def check_format(out: Path) -> None:
    """Check the suffix of an output file before any work is done.

    Raises:
        UsageError: the suffix is none of `FORMATS`, or `out` is a folder.
    """
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder, wanted a file such as {out / 'p.csv'}")
    if out.suffix.lower() not in FORMATS:
        raise UsageError(
            f"--out {out}: found the suffix {out.suffix!r}, wanted one of {', '.join(FORMATS)}"
        )


def as_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction as a row of `predictions.csv`: JSON types, `None` for missing values."""
    row = {name: getattr(prediction, name) for name in COLUMNS}
    row["warnings"] = join_warnings(prediction.warnings)
    row["path"] = path_text(prediction.path)
    row["detail"] = path_text(" ".join(prediction.detail.split()))
    row["reason"] = prediction.reason.value if prediction.reason else None
    return row


def write_predictions(
    out: Path,
    predictions: Iterable[Prediction],
    further: Mapping[str, Sequence[str | float]] | None = None,
) -> None:
    """Write one row per prediction, in order, in the format of the suffix.

    Args:
        out: file to write.
        predictions: one per row.
        further: columns after `COLUMNS`, with one value per prediction; CSV only.

    Raises:
        UsageError: the suffix is unknown.
        OSError: the file can't be written; an existing file is unchanged.
    """
    check_format(out)
    rows = map(as_row, predictions)
    if not further:
        _write_rows(out, rows)
        return
    added = (
        dict(zip(further, values, strict=True)) for values in zip(*further.values(), strict=True)
    )
    with atomic_writer(out) as stream:
        merged = (row | more for row, more in zip(rows, added, strict=True))
        _write_csv(stream, merged, (*COLUMNS, *further))


def _write_rows(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_writer(out) as stream:
        if out.suffix.lower() == ".csv":
            _write_csv(stream, rows)
        elif out.suffix.lower() == ".jsonl":
            stream.writelines(map(_line, rows))
        else:
            _write_parquet(stream, rows, out)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _write_csv(
    stream: IO[bytes], rows: Iterable[dict[str, Any]], columns: Sequence[str] = COLUMNS
) -> None:
    text = io.TextIOWrapper(stream, "utf-8", newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_safe_row, rows))
    text.flush()
    text.detach()


def _safe_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose texts are not evaluated as formulas by a spreadsheet."""
    safe = {k: safe_cell(value) if isinstance(value, str) else value for k, value in row.items()}
    return safe | {"path": safe_path(row["path"])}


def _write_parquet(stream: IO[bytes], rows: Iterable[dict[str, Any]], out: Path) -> None:
    """Write lines to disk first; polars converts them to Parquet without holding them all."""
    import polars

    schema = {n: polars.Float64 if n in NUMBERS else polars.String for n in COLUMNS}
    lines = temporary_beside(out)
    try:
        with lines.open("xb") as target:
            target.writelines(map(_line, rows))
        if lines.stat().st_size:
            polars.scan_ndjson(lines, schema=schema).sink_parquet(stream)
        else:
            polars.DataFrame(schema=schema).write_parquet(stream)
    finally:
        lines.unlink(missing_ok=True)


def journal_of(out: Path) -> Path:
    """Path of the rows of an incomplete table."""
    return out.with_name(f"{out.name}.partial")


class Journal:
    """Rows written to `OUT.partial` as they come; `finish` turns them into the table `OUT`.

    The first line states what the rows were computed from; every other line is a row. Rows are
    flushed to disk in chunks, so that after an interruption they need not be computed again.

    Args:
        out: path of the table.
        origin: digest of the model and the inputs.
        resume: continue with the existing rows; otherwise they are discarded.
        outputs: options that request further files for every row.

    Attributes:
        rows: number of rows.
        counts: number of rows per status.
        warned: number of rows per kind of warning.

    Raises:
        UsageError: another process writes the same table; or `resume`, and the existing rows have
            another origin, other columns or other outputs.
        OSError: the folder can't be written.
    """

    def __init__(
        self, out: Path, origin: str, *, resume: bool, outputs: Sequence[str] = ()
    ) -> None:
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.warned: Counter[str] = Counter()
        self._out = out
        self._path = journal_of(out)
        self._outputs = list(outputs)
        self._waiting: list[bytes] = []
        self._flushed = time.monotonic()
        self._stream = _opened(self._path, out)
        try:
            self._end = self._whole_bytes(origin) if resume else 0
            self._stream.truncate(self._end)
            if not self._end:
                self._waiting.append(_line(self._header(origin)))
                self.flush()
        except BaseException:
            self._stream.close()
            raise

    def _whole_bytes(self, origin: str) -> int:
        """Count the existing rows; returns the end of the last complete one."""
        whole = 0
        for number, (document, end) in enumerate(json_lines(self._path)):
            if document is None:  # cut off by an interruption
                break
            if number == 0:
                self._check_header(document, origin)
            else:
                self.rows += 1
                self.counts[document["status"]] += 1
                self.warned.update(count_warnings([split_warnings(document["warnings"])]))
            whole = end
        return whole

    def _header(self, origin: str) -> dict[str, Any]:
        return {"origin": origin, "columns": COLUMNS, "outputs": self._outputs}

    def _check_header(self, header: dict[str, Any], origin: str) -> None:
        if header.get("columns") != list(COLUMNS):
            found = header.get("columns") or COLUMNS[: COLUMNS.index("warnings")]
            raise UsageError(
                f"{self._path}: holds rows of another release, with the columns "
                f"{', '.join(found)}; wanted {', '.join(COLUMNS)}. Leave out --resume to "
                "start again, or continue with the release that wrote them."
            )
        if header.get("origin") != origin:
            raise UsageError(
                f"{self._path}: holds rows of another model, version or list of images; "
                "wanted those of this command. Leave out --resume to start again."
            )
        # Rows of a release that did not note the outputs are continued as before.
        started = header.get("outputs", self._outputs)
        if started != self._outputs:
            raise UsageError(
                f"{self._path}: was started with {_options(started)}, and this command has "
                f"{_options(self._outputs)}: the files of some rows would be missing. Give the "
                "same options as at the start, leave out --resume to start again, or give "
                "another --out."
            )

    def add(self, prediction: Prediction) -> None:
        """Add a row."""
        self._waiting.append(_line(as_row(prediction)))
        self.rows += 1
        self.counts[prediction.status] += 1
        self.warned.update(count_warnings([prediction.warnings]))
        late = time.monotonic() - self._flushed > _CHUNK_SECONDS
        if late or len(self._waiting) >= _CHUNK_ROWS:
            self.flush()

    def close(self) -> None:
        """Flush the waiting rows; they stay on disk for `resume`."""
        if not self._stream.closed:
            try:
                self.flush()
            finally:
                self._stream.close()

    def finish(self) -> None:
        """Write the table, remove the journal and release the lock."""
        self.flush()
        _write_rows(self._out, self.read())
        self._path.unlink()
        self._stream.close()

    def flush(self) -> None:
        """Write the waiting rows to disk."""
        # Always from the last complete row, to overwrite one that a full disk cut off.
        self._stream.seek(self._end)
        content = memoryview(b"".join(self._waiting))
        while content:
            content = content[self._stream.write(content) :]
        os.fsync(self._stream.fileno())
        self._end = self._stream.tell()
        self._waiting, self._flushed = [], time.monotonic()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the rows on disk, including those of an earlier run.

        Raises:
            DataError: a row was damaged since it was written.
        """
        for document, end in islice(json_lines(self._path), 1, None):
            if document is None:
                raise DataError(
                    f"{self._path}: the row that ends at byte {end} was damaged on disk, wanted a "
                    "JSON object. Give the same command with --resume: the rows from there on are "
                    "computed again."
                )
            yield document


def _options(outputs: Sequence[str]) -> str:
    return ", ".join(outputs) or "no option for further files"


def _opened(path: Path, out: Path) -> IO[bytes]:
    try:
        return open_alone(path)
    except BlockingIOError as error:
        raise UsageError(
            f"{path}: another process is writing it. Wait for that process, stop it, or give "
            f"another file than --out {out}."
        ) from error


@dataclass(frozen=True, slots=True)
class Result:
    """The prediction for one image, with what it was computed from.

    Attributes:
        prediction: the row of `predictions.csv`.
        logit: the network's raw output, before calibration; `None` unless the status is `ok`.
        cam: Grad-CAM map of pneumonia, float32 (h, w) ≥ 0, on the network's coarse grid, not
            scaled; `None` unless the status is `ok`.
        embedding: pooled features, float32 (c,), of every image that the network was run on.
        image: the decoded image. `predict_file` keeps it whole; other methods keep it only on
            request, shrunk to the size of overlays.
        look: the descriptors that the input check uses; `None` where nothing is checked.
        photometric: the photometric interpretation in the DICOM header.

    Examples:
        >>> result = predictor.predict_file(image)
        >>> result.status, result.label in ("NORMAL", "PNEUMONIA"), 0 <= result.probability <= 1
        ('ok', True, True)
    """

    prediction: Prediction
    logit: float | None = None
    cam: NDArray[np.float32] | None = None
    embedding: NDArray[np.float32] | None = None
    image: GreyImage | None = None
    look: ImageDescriptors | None = None
    photometric: str = ""

    @property
    def path(self) -> str:
        """The file, or the name that was given to an image in memory."""
        return self.prediction.path

    def content(self, limits: LimitsConfig) -> bytes:
        """Read the file of the result again; it must be the one that was scored or refused.

        Raises:
            ImageRefusedError: it can't be read, or was changed.
        """
        content = read_file(self.path, limits)
        was = self.prediction.sha256 if self.image is None else self.image.sha256
        if was and hashlib.sha256(content).hexdigest() != was:
            detail = "the file was changed while it was scored"
            raise ImageRefusedError(self.path, Reason.CORRUPT, detail)
        return content

    @property
    def status(self) -> Status:
        """`ok`, `refused` or `error`."""
        return self.prediction.status

    @property
    def reason(self) -> Reason | None:
        """The code of why there is no prediction; `None` if the status is `ok`."""
        return self.prediction.reason

    @property
    def label(self) -> str | None:
        """`NORMAL`, `PNEUMONIA` or `uncertain`; `None` unless the status is `ok`."""
        return self.prediction.prediction

    @property
    def probability(self) -> float | None:
        """The calibrated probability of pneumonia, in [0, 1]; `None` unless the status is `ok`."""
        return self.prediction.probability

    @property
    def threshold(self) -> float | None:
        """The probability from which the label is `PNEUMONIA`; `None` unless the status is `ok`."""
        return self.prediction.threshold


class Results(Sequence[Result]):
    """The results of `Predictor.predict`: one for every image, in the order of the input.

    Examples:
        >>> results = predictor.predict([image, "missing.png"])
        >>> len(results), results[0].status, results[1].reason.value
        (2, 'ok', 'not_found')
        >>> results.to_frame().columns[:4]
        ['path', 'status', 'reason', 'probability']
    """

    def __init__(self, results: Iterable[Result]) -> None:
        self._results = tuple(results)

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, place: int) -> Result: ...
    @overload
    def __getitem__(self, place: slice) -> Results: ...
    def __getitem__(self, place: int | slice) -> Result | Results:
        found = self._results[place]
        return found if isinstance(found, Result) else Results(found)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    def __repr__(self) -> str:
        ok = sum(result.status == "ok" for result in self._results)
        return f"<Results: {len(self)} images, {ok} with a prediction>"

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Calibrated probabilities of pneumonia, float64 (n,); NaN where there is none."""
        found = (result.probability for result in self._results)
        return np.array([np.nan if each is None else each for each in found], np.float64)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """Pooled features, float32 (n, c); the row of an image that can't be read is NaN.

        Raises:
            DataError: no image could be read.
        """
        rows = [result.embedding for result in self._results]
        width = next((len(row) for row in rows if row is not None), 0)
        if not width:
            first = f": {self[0].path}: {self[0].prediction.detail}" if rows else ""
            raise DataError(
                f"embeddings: found no image that can be read among {len(rows)}, wanted at least "
                f"one{first}"
            )
        empty = np.full(width, np.nan, np.float32)
        return np.stack([empty if row is None else row for row in rows])

    def to_frame(self) -> Any:
        """A DataFrame with the columns of `predictions.csv`: polars, else pandas.

        Raises:
            MissingError: neither is installed.
        """
        rows = [as_row(result.prediction) for result in self._results]
        return make_frame({name: [row[name] for row in rows] for name in COLUMNS}, NUMBERS)


def decide(result: Result, manifest: BundleManifest) -> Result:
    """Add the calibrated probability and the prediction by the threshold of `manifest`.

    The prediction is `uncertain` where the manifest's `abstention` applies.
    A result without a logit (refused or unreadable) stays unchanged.
    """
    if result.logit is None:
        return result
    probability = float(manifest.calibration.apply(np.array([result.logit]))[0])
    threshold, band = manifest.threshold.value, manifest.abstention
    withheld = band.method != "none" and band.low <= probability < band.high
    prediction = replace(
        result.prediction,
        probability=probability,
        prediction=UNCERTAIN if withheld else CLASS_NAMES[int(probability >= threshold)],
        threshold=threshold,
    )
    return replace(result, prediction=prediction)
