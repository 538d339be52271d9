"""Results of a predictor: one for every image, and their table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError, Reason, Status
from pneumoscope.frames import make_frame
from pneumoscope.images.read import GreyImage
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.input_check import ImageDescriptors
from pneumoscope.inference.table import COLUMNS, NUMBERS, as_row
from pneumoscope.records import CLASS_NAMES, UNCERTAIN, Prediction


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

    Example:
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

    Example:
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
