"""The `Predictor`: the one way from an image to its prediction, in every command and service.

It takes a bundle, an engine, and images as files, bytes, arrays or Pillow images. It returns one
`Result` for every input, in input order.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import DeviceChoice, LimitsConfig
from pneumoscope.errors import Reason, UsageError
from pneumoscope.graph.bundle_files import SEEN_TABLE
from pneumoscope.graph.runner import batches_at_once
from pneumoscope.graph.writer import Precision
from pneumoscope.images.dicom.patient import AgeGate
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import GreyImage, header_note, read_image
from pneumoscope.inference.bundle import BundleManifest, load_bundle
from pneumoscope.inference.certificates import Choice
from pneumoscope.inference.engine import Backend, OpenVinoBackend, Outputs
from pneumoscope.inference.input_check import TABLE, Statistics, statistics_of
from pneumoscope.inference.known_answer import (
    NAME,
    KnownAnswer,
    compared,
    phantom_content,
    stated_logit,
)
from pneumoscope.inference.known_answer import TABLE as KNOWN
from pneumoscope.inference.overlay import shrunk
from pneumoscope.inference.preparing import (
    Decoder,
    Keep,
    Prepared,
    Reader,
    count_of,
    decode_any,
    decoded,
    named_images,
    network_inputs,
    prepared,
    seen,
)
from pneumoscope.inference.processes import Processes
from pneumoscope.inference.results import Result, Results, decide
from pneumoscope.inference.weights_store import Table
from pneumoscope.prefetching import overlapped
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import Prediction

BATCH = 16
"""Images per forward pass."""

_PASSES = (1, BATCH)
"""Batch sizes; engines compile one graph for each of them."""


class Predictor:
    """One model, ready to predict: preprocessing, input check, network, calibration, threshold.

    Attributes:
        known_logit: logit that the bundle states for the known-answer test, or `None`.

    Args:
        manifest: preprocessing, calibration and threshold of the model.
        backend: the engine, with the model's weights loaded.
        limits: limits on an image file.
        precision: precision of the backend, for reports.
        statistics: distribution of the training images; without it there is no input check.
        looks: keep the descriptors for the input check in the results, to fit one from them.
            Pictures in colour are rejected then.
        any_age: predict for patients of other ages than the model is for, with a warning.

    Examples:
        >>> predictor = Predictor.load(run.folder, input_check=False)
        >>> results = predictor.predict([image, "missing.png"])
        >>> [result.status for result in results]
        ['ok', 'error']
        >>> predictor.embed(image).shape
        (1, 1024)
    """

    def __init__(
        self,
        manifest: BundleManifest,
        backend: Backend,
        limits: LimitsConfig | None = None,
        *,
        precision: Precision = "f32",
        statistics: Statistics | None = None,
        looks: bool = False,
        any_age: bool = False,
    ) -> None:
        self.manifest = manifest
        self.precision: Precision = precision
        self._backend = backend
        self._preprocess = Preprocessor(manifest.preprocessing)
        self._limits = limits or LimitsConfig()
        self._statistics = statistics
        self._looks = looks or statistics is not None
        self._gate = AgeGate(manifest.ages, any_age)
        self._passes: tuple[int, ...] = _PASSES
        self._processes: Processes | None = None
        self.known_logit: float | None = None
        self.seen: Table | None = None
        """Salted hashes of the images of its training images (`data.training_overlap`), if any."""

    @classmethod
    def load(
        cls,
        model: Path | str = "default",
        precision: Choice = "auto",
        *,
        input_check: bool = True,
        any_age: bool = False,
        device: DeviceChoice = "CPU",
    ) -> Predictor:
        """A predictor for a bundle folder, a run folder or `default`.

        Args:
            model: the bundle.
            precision: `f32`, `bf16` or `int8`; `auto` is the fastest that the bundle's
                certificates allow on this processor.
            input_check: reject images that differ from the training images, if the model has an
                input check; without it every readable image has a prediction, for research.
            any_age: predict for patients outside the model's age range, with a warning.
            device: `CPU`, `GPU`, or `auto`: a GPU that OpenVINO supports, if there is one.

        Raises:
            UsageError, MissingError, BundleError: as `load_bundle` does.
            UsageError: the bundle or the device does not allow the precision.
        """
        bundle = load_bundle(model)
        backend = OpenVinoBackend.load(bundle, precision, device)
        check, table = bundle.manifest.input_check, bundle.table(TABLE) or {}
        statistics = statistics_of(check, table) if input_check else None
        made = cls(
            bundle.manifest,
            backend,
            precision=backend.precision,
            statistics=statistics,
            any_age=any_age,
        )
        made.known_logit = stated_logit(bundle.table(KNOWN))
        made.seen = bundle.table(SEEN_TABLE)
        return made

    @property
    def checks_inputs(self) -> bool:
        """Whether the input check is active."""
        return self._statistics is not None

    @property
    def any_age(self) -> bool:
        """Whether patients outside the model's age range get predictions."""
        return self._gate.any_age

    def adapted(
        self,
        limits: LimitsConfig,
        passes: Sequence[int] = _PASSES,
        processes: Processes | None = None,
    ) -> Predictor:
        """The same model with other limits.

        Args:
            limits: limits on an image file.
            passes: batch sizes, ascending; the smallest that holds all requested images is used.
            processes: worker processes for untrusted files; `None` reads files in threads.
        """
        other = copy.copy(self)
        other._limits, other._passes = limits, tuple(passes)
        other._processes = processes
        return other

    def known_answer(self, engine: str = "") -> KnownAnswer | None:
        """Run the known-answer test on this engine; `None` if the bundle states no logit."""
        if self.known_logit is None:
            return None
        began = time.monotonic()
        return compared(
            self.manifest,
            self.known_logit,
            self.phantom_logit(),
            engine=engine or type(self._backend).__name__,
            precision=self.precision,
            seconds=round(time.monotonic() - began, 3),
        )

    def phantom_logit(self) -> float | None:
        """The logit of the phantom of the known-answer test, without input check."""
        plain = copy.copy(self)
        plain._statistics, plain._looks, plain._processes = None, False, None
        return plain.predict_bytes(phantom_content(), NAME, keep_image=False).logit

    def warm_up(self) -> None:
        """Let the engine compile its graphs for all batch sizes."""
        side = self.manifest.preprocessing.size
        for images in reversed(self._passes):  # smaller ones share the graphs of larger ones
            self._backend.run(np.zeros((images, side, side, 3), np.float32))

    def predict(self, images: Any, progress: Progress = SILENT) -> Results:
        """Predict for images of any form.

        Decoded images are not kept, so memory grows by about 5 KB an image.

        Args:
            images: a path (a file, a folder, a CSV with a column `path`, or a pattern), an array,
                a Pillow image, the bytes of a file, a DataFrame with a column `path`, a `Dataset`,
                or a list of any of these. An array is one image, (h, w) or (h, w, 3), or a batch,
                (n, h, w) or (n, h, w, 3): uint8, uint16, or floats in [0, 1] in one channel.
            progress: receives the number of images done.

        Returns:
            One result for every image, in order. An image without a prediction has a reason.

        Raises:
            UsageError: something that is no image, or an array of other values.

        Examples:
            >>> predictor.predict(image)[0].status
            'ok'
            >>> import numpy as np
            >>> len(predictor.predict(np.random.default_rng(0).random((3, 64, 64))))
            3
        """
        results: list[Result] = []
        with progress.task("Predicting", count_of(images), "images") as task:
            for found in self._predicted(images):
                results.append(found)
                task.advance()
        return Results(results)

    def embed(self, images: Any) -> NDArray[np.float32]:
        """The pooled features of images, as the head of the network receives them.

        Args:
            images: as of `predict`.

        Returns:
            float32 (n, c), in order. The row of an image that can't be read is NaN.

        Raises:
            UsageError: as `predict` does.
            DataError: no image could be read.

        Examples:
            >>> predictor.embed([image, image]).dtype
            dtype('float32')
        """
        return self.predict(images).embeddings

    def preprocess(self, images: Any) -> NDArray[np.float32]:
        """The network's input for images: what `load_model(...).predict` takes.

        Args:
            images: as of `predict`.

        Returns:
            float32 (n, size, size, 3), in order.

        Raises:
            UsageError: as `predict` does, or there is no image.
            ImageRefusedError: an image can't be read.

        Examples:
            >>> predictor.preprocess(image).shape
            (1, 32, 32, 3)
        """
        decode = Decoder(self._limits, self._preprocess)
        return network_inputs(images, decode, self._preprocess)

    def _predicted(self, images: Any) -> Generator[Result]:
        decode = Decoder(self._limits, self._preprocess, looks=self._looks, gate=self._gate)
        work = partial(decode_any, decode=decode, preprocess=self._preprocess)
        # `decoded` hands each entry to its second argument, whatever the entry is.
        with closing(decoded(named_images(images), work)) as items:  # type: ignore[arg-type]
            yield from self._by_batches(items)

    def predict_file(self, path: Path | str) -> Result:
        """The prediction for one file; without one, the result has a status and a reason.

        Raises:
            UsageError: something else than a path.

        Examples:
            >>> predictor.predict_file("missing.png").reason.value
            'not_found'
        """
        if not isinstance(path, str | Path):
            raise UsageError(
                f"predict_file takes a path, found {type(path).__name__}; use predict for arrays."
            )
        name = str(path)
        return next(self.results([self._prepared(lambda: read_image(name, self._limits), name)]))

    def predict_bytes(
        self, content: bytes, name: str = "upload", *, keep_image: bool = True
    ) -> Result:
        """Predict for one file's content, held in memory.

        Args:
            content: bytes of a file in any format that `read_image` supports.
            name: name for the row.
            keep_image: keep the pixels in the result, reduced to the size of overlays.
        """
        return next(self.results([self.prepare_bytes(content, name, keep_image=keep_image)]))

    def prepare_bytes(
        self, content: bytes, name: str, *, keep_image: bool = False
    ) -> Prepared | Prediction:
        """The network's input for one file's content, or the row with the reason for its refusal.

        For callers that read images in one thread and run inference in another; see `results`.
        The arguments are those of `predict_bytes`.
        """
        decode = Decoder(
            self._limits,
            self._preprocess,
            shrunk if keep_image else None,
            looks=self._looks,
            gate=self._gate,
        )
        if self._processes is None:
            return decode.content(content, name)
        return self._processes.prepared_content(decode, content, name)

    def results(self, items: Sequence[Prepared | Prediction]) -> Iterator[Result]:
        """One result for every item, in order, from one forward pass; at most a batch of items."""
        readable = [item for item in items if isinstance(item, Prepared)]
        computed = iter(self._run(readable)) if readable else iter(())
        for item in items:
            yield Result(item) if isinstance(item, Prediction) else next(computed)

    def _prepared(self, read: Callable[[], GreyImage], name: str) -> Prepared | Prediction:
        return prepared(read, name, self._preprocess, looks=self._looks, gate=self._gate)

    def predict_files(
        self,
        paths: Iterable[Path | str],
        *,
        keep: Keep | None = None,
        each: Callable[[Result], None] | None = None,
        workers: int = 0,
        read: Reader | None = None,
    ) -> Generator[Result]:
        """One result for every path, in order; files are read ahead of the engine.

        Memory does not grow with the number of paths or the size of the images.

        Args:
            paths: files in any format that `read_image` supports; consumed as needed.
            keep: reduces an image's pixels to those kept in its result.
            each: called with every result before it is yielded, in the threads that wait for the
                engine, because further threads would compete with them for Python's lock.
            workers: reader processes; 0 for threads of this process.
            read: reads a file; `None` means `read_image`.

        Raises:
            MissingError: processes can't be started.
        """
        decode = Decoder(
            self._limits, self._preprocess, keep, read, looks=self._looks, gate=self._gate
        )
        reading = decode if self._processes is None else partial(self._processes.prepared, decode)
        with closing(decoded(paths, reading, workers)) as items:
            yield from self._by_batches(items, each)

    def predict_image(self, image: NDArray[np.float32], name: str = "image") -> Result:
        """Predict for one decoded image, float32 (h, w) in [0, 1]; see `predict_images`."""
        return next(self.predict_images([(name, image)]))

    def predict_images(self, images: Iterable[tuple[str, NDArray[np.float32]]]) -> Iterator[Result]:
        """One result for every name and decoded image, float32 (h, w) in [0, 1], in order.

        Raises:
            UsageError: an array has another shape, type or range.
        """
        looks = self._looks
        items = (seen(n, _checked(n, i), self._preprocess, looks=looks) for n, i in images)
        yield from self._by_batches(items)

    def _by_batches(
        self,
        items: Iterator[Prepared] | Iterator[Prepared | Prediction],
        each: Callable[[Result], None] | None = None,
    ) -> Generator[Result]:
        """One result for every item, in order, from full batches; `each` as of `predict_files`."""

        def work(chunk: Sequence[Prepared | Prediction]) -> list[Result]:
            results = list(self.results(chunk))
            if each is not None:
                for result in results:
                    each(result)
            return results

        most = batches_at_once(self.precision)
        for _, results in overlapped(work, _chunks(items, BATCH), most=most):
            yield from results

    def _run(self, items: Sequence[Prepared]) -> list[Result]:
        # Few sizes only: engines compile a graph for each.
        images = next(size for size in self._passes if size >= len(items))
        batch = np.zeros((images, *items[0].tensor.shape), np.float32)
        for row, item in enumerate(items):
            batch[row] = item.tensor
        outputs = self._backend.run(batch)
        return [self._result(item, outputs, row) for row, item in enumerate(items)]

    def _result(self, item: Prepared, outputs: Outputs, row: int) -> Result:
        logit = float(outputs.logits[row])
        if not math.isfinite(logit):
            detail = (
                f"the model's output is {logit}, not finite. Its weights are damaged: train again"
            )
            failed = Prediction(item.source, "error", Reason.INTERNAL_ERROR, detail=detail)
            return Result(replace(failed, warnings=item.warnings))
        return self.checked(
            Result(
                Prediction(item.source, "ok", warnings=item.warnings),
                logit=logit,
                cam=outputs.cams[row],
                embedding=outputs.embeddings[row],
                image=item.image,
                look=item.look,
                photometric=item.photometric,
            )
        )

    def checked(self, result: Result) -> Result:
        """Apply the input check and the decision threshold to a result of this model's network.

        Without a logit, descriptors or statistics nothing is checked.
        """
        look, embedding = result.look, result.embedding
        if result.logit is None:
            return result
        if self._statistics is not None and look is not None and embedding is not None:
            verdict = self._statistics.verdict(look, embedding)
            prediction = replace(result.prediction, input_score=verdict.score)
            if verdict.reason is not None:
                warnings = result.prediction.warnings
                polarity = ""
                if verdict.reason is Reason.INVERTED and result.photometric:
                    polarity = f". Its header states {result.photometric}, which may be wrong"
                refusal = Prediction(
                    result.prediction.path,
                    "refused",
                    verdict.reason,
                    input_score=verdict.score,
                    detail=verdict.detail + polarity + header_note(warnings),
                    warnings=warnings,
                )
                return replace(result, prediction=refusal, logit=None, cam=None)
            result = replace(result, prediction=prediction)
        return decide(result, self.manifest)


def mark_of(predictor: Predictor) -> str:
    """SHA-256, hex, over all that affects results: version, model, precision and checks."""
    decisive = [
        asdict(predictor.manifest),
        predictor.precision,
        predictor.checks_inputs,
        predictor.any_age,
    ]
    text = f"{metadata.version('pneumoscope')} {json.dumps(decisive, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(name: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
    if image.ndim != 2 or image.dtype != np.float32 or not np.array_equal(image, image.clip(0, 1)):
        raise UsageError(
            f"{name}: found an array of shape {image.shape} and type {image.dtype}, wanted grey, "
            "float32 (height, width) in [0, 1]. Give the pixels of `read_image`"
        )
    return image


def _chunks(
    items: Iterator[Prepared] | Iterator[Prepared | Prediction], size: int
) -> Iterator[list[Prepared | Prediction]]:
    while chunk := list(islice(items, size)):
        yield chunk
