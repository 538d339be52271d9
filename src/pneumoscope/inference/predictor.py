"""The `Predictor`: the one way from an image to an answer, whoever asks.

Comes in: a bundle, a backend, and images as paths, bytes or decoded. Goes out: one `Answer` for
every input, in input order. Knows nothing of labels, output files or pages.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import BundleError, ImageRefusedError, Reason, UsageError
from pneumoscope.images.look import Look, look_at
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import GreyImage, read_bytes, read_image
from pneumoscope.inference.backends import Backend, Outputs
from pneumoscope.inference.bundle import BundleManifest, InputCheck, load_bundle
from pneumoscope.inference.bundle_tables import Table
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.inference.input_check import METHOD, MOST_COLOUR, TABLE, Statistics
from pneumoscope.inference.overlay import shrunk
from pneumoscope.records import CLASS_NAMES, Prediction

BATCH = 16
"""Images per forward pass."""

_DECODERS = 2
"""Threads that read and preprocess ahead of the engine."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A prediction with what it was made from.

    Attributes:
        prediction: the row for `predictions.csv`.
        logit: the network's raw output, before calibration; `None` unless the status is `ok`.
        cam: Grad-CAM map of pneumonia, float32 (h, w) ≥ 0 on the network's coarse grid, unscaled;
            `None` as the logit is.
        embedding: pooled features, float32 (c,), of every input that the network saw.
        image: the decoded image, kept only where asked for; of many, no larger than overlays.
    """

    prediction: Prediction
    logit: float | None = None
    cam: NDArray[np.float32] | None = None
    embedding: NDArray[np.float32] | None = None
    image: GreyImage | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    source: str
    image: GreyImage | None
    tensor: NDArray[np.float32]
    look: Look | None


class Predictor:
    """Answers for images with one model.

    Args:
        manifest: preprocessing, calibration and threshold of the model.
        backend: the engine, with the model's weights loaded.
        limits: what an image file may cost.
        statistics: what the model's training images look like; without them nothing is refused
            for what it shows.
    """

    def __init__(
        self,
        manifest: BundleManifest,
        backend: Backend,
        limits: LimitsConfig | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self.manifest = manifest
        self._backend = backend
        self._preprocess = Preprocessor(manifest.preprocessing)
        self._limits = limits or LimitsConfig()
        self._statistics = statistics

    @classmethod
    def load(cls, model: Path | str = "default", *, input_check: bool = True) -> Predictor:
        """A predictor for a bundle folder, a run folder or `default`.

        Args:
            model: the model.
            input_check: refuse what is unlike the training images, if the model can tell; without
                it every image that can be read has an answer, for research.

        Raises:
            UsageError, MissingError, BundleError: as `load_bundle` does.
        """
        bundle = load_bundle(model)
        check, table = bundle.manifest.input_check, bundle.table(TABLE) or {}
        statistics = statistics_of(check, table) if input_check else None
        return cls(bundle.manifest, OpenVinoBackend.load(bundle), statistics=statistics)

    def predict_file(self, path: Path | str) -> Answer:
        """The answer for one file; a file that can't be answered for has a status and a reason."""
        name = str(path)
        prepared = self._prepare(lambda: read_image(name, self._limits), name)
        return next(self._answer([prepared]))

    def predict_bytes(self, content: bytes, name: str = "upload") -> Answer:
        """The answer for one file's content, held in memory."""
        prepared = self._prepare(lambda: read_bytes(content, name, self._limits), name)
        return next(self._answer([prepared]))

    def predict_files(
        self, paths: Iterable[Path | str], *, keep_images: bool = False
    ) -> Iterator[Answer]:
        """One answer for every path, in order; reading runs ahead of the engine in threads.

        Args:
            paths: files of any format that `read_image` knows.
            keep_images: keep the pixels in each answer, shrunk to the size of overlays, so that
                memory stays flat however large the films.
        """

        def work(path: Path | str) -> _Prepared | Answer:
            item = self._prepare(lambda: read_image(path, self._limits), str(path))
            if isinstance(item, Answer) or item.image is None:
                return item
            small = replace(item.image, pixels=shrunk(item.image.pixels)) if keep_images else None
            return replace(item, image=small)

        pool = ThreadPoolExecutor(_DECODERS)
        try:
            for chunk in _chunks(_ahead(pool, work, paths), BATCH):
                yield from self._answer(chunk)
        finally:  # after Ctrl-C, or when nobody wants the rest, what waits is not read any more
            pool.shutdown(cancel_futures=True)

    def predict_image(self, image: NDArray[np.float32], name: str = "image") -> Answer:
        """The answer for one decoded image, float32 (h, w) in [0, 1]; see `predict_images`."""
        return next(self.predict_images([(name, image)]))

    def predict_images(self, images: Iterable[tuple[str, NDArray[np.float32]]]) -> Iterator[Answer]:
        """One answer for every name and decoded image, float32 (h, w) in [0, 1], in order.

        Raises:
            UsageError: an array of another form.
        """
        prepared = (self._seen(name, _checked(name, image)) for name, image in images)
        for chunk in _chunks(prepared, BATCH):
            yield from self._answer(chunk)

    def _prepare(self, read: Callable[[], GreyImage], source: str) -> _Prepared | Answer:
        try:
            image = read()
        except ImageRefusedError as error:
            return Answer(
                Prediction(source, error.reason.status, error.reason, detail=error.detail)
            )
        if self._statistics is not None and image.colour > MOST_COLOUR:
            detail = (
                f"it is a picture in colour (mean chroma {image.colour:.2f}, at most "
                f"{MOST_COLOUR} is taken for a film). Give the X-ray itself, in grey"
            )
            return Answer(Prediction(source, "refused", Reason.NOT_A_CHEST_XRAY, detail=detail))
        return replace(self._seen(source, image.pixels), image=image)

    def _seen(self, source: str, pixels: NDArray[np.float32]) -> _Prepared:
        """What the network and the input check see of a decoded image."""
        square = self._preprocess.grey(pixels)
        look = look_at(square) if self._statistics is not None else None
        return _Prepared(source, None, self._preprocess.normalise(square), look)

    def _answer(self, prepared: list[_Prepared | Answer]) -> Iterator[Answer]:
        readable = [item for item in prepared if isinstance(item, _Prepared)]
        answered = iter(self._run(readable)) if readable else iter(())
        for item in prepared:
            yield item if isinstance(item, Answer) else next(answered)

    def _run(self, prepared: list[_Prepared]) -> list[Answer]:
        # One batch size only: engines compile once, and results don't depend on the company.
        batch = np.zeros((BATCH if len(prepared) > 1 else 1, *prepared[0].tensor.shape), np.float32)
        for row, item in enumerate(prepared):
            batch[row] = item.tensor
        outputs = self._backend.run(batch)
        return [self._answered(item, outputs, row) for row, item in enumerate(prepared)]

    def _answered(self, item: _Prepared, outputs: Outputs, row: int) -> Answer:
        logit = float(outputs.logits[row])
        if not math.isfinite(logit):
            detail = (
                f"the model's answer is {logit}, no number. Its weights are damaged: train again"
            )
            return Answer(Prediction(item.source, "error", Reason.INTERNAL_ERROR, detail=detail))
        embedding = outputs.embeddings[row]
        score = None
        if self._statistics is not None and item.look is not None:
            verdict = self._statistics.verdict(item.look, embedding)
            score, reason = verdict.score, verdict.reason
            if reason is not None:
                refusal = Prediction(
                    item.source, "refused", reason, input_score=score, detail=verdict.detail
                )
                return Answer(refusal, embedding=embedding, image=item.image)
        answer = Answer(
            Prediction(item.source, "ok", input_score=score),
            logit=logit,
            cam=outputs.cams[row],
            embedding=embedding,
            image=item.image,
        )
        return decide(answer, self.manifest)


def statistics_of(check: InputCheck, table: Table) -> Statistics | None:
    """What a model's training images look like; `None` if it doesn't know.

    Args:
        check: of the bundle's manifest.
        table: the bundle's table `input_check`, empty if it has none.

    Raises:
        BundleError: another method than ours, or arrays that can't be used.
    """
    if check == InputCheck():
        return None
    try:
        if check.method != METHOD:
            raise ValueError(f"found the method {check.method!r}, wanted {METHOD!r}")
        return Statistics.from_table(table, check.limits)
    except ValueError as error:
        raise BundleError(
            f"the model's input check can't be used: {error}. Copy the bundle again, make it anew "
            "(pneumoscope input-check), or do without it (--no-input-check)."
        ) from error


def decide(answer: Answer, manifest: BundleManifest) -> Answer:
    """The answer with probability and prediction as `manifest` calibrates and decides.

    An answer without a logit (refused, unreadable) stays as it is.
    """
    if answer.logit is None:
        return answer
    probability = float(manifest.calibration.apply(np.array([answer.logit]))[0])
    threshold = manifest.threshold.value
    prediction = replace(
        answer.prediction,
        probability=probability,
        prediction=CLASS_NAMES[int(probability >= threshold)],
        threshold=threshold,
    )
    return replace(answer, prediction=prediction)


def _checked(name: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
    if image.ndim != 2 or image.dtype != np.float32 or not np.array_equal(image, image.clip(0, 1)):
        raise UsageError(
            f"{name}: found an array of shape {image.shape} and type {image.dtype}, wanted grey, "
            "float32 (height, width) in [0, 1]. Give the pixels of `read_image`"
        )
    return image


def _ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[Path | str], _Prepared | Answer],
    paths: Iterable[Path | str],
) -> Iterator[_Prepared | Answer]:
    """Apply `work` in order, keeping at most two batches in flight so that memory stays flat."""
    remaining = iter(paths)
    flying: deque[Future[_Prepared | Answer]] = deque(
        pool.submit(work, path) for path in islice(remaining, 2 * BATCH)
    )
    while flying:
        done = flying.popleft().result()
        for path in islice(remaining, 1):
            flying.append(pool.submit(work, path))
        yield done


def _chunks(items: Iterator[_Prepared | Answer], size: int) -> Iterator[list[_Prepared | Answer]]:
    while chunk := list(islice(items, size)):
        yield chunk
