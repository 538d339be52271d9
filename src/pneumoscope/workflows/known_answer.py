"""The known answer: every engine is asked for a phantom whose score the model states.

`doctor` asks all engines and precisions that are present; the node and the service ask theirs at
start, and do not run where it is wrong.

What training worked out already and what comes after it needs again.

Comes in: pooled features from the store, answers. Goes out: what they hold, by record or as a
`Backend`. Knows nothing of labels or thresholds.
"""

from __future__ import annotations

import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import BundleError, MissingError, PneumoscopeError
from pneumoscope.inference.bundle import Bundle, load_bundle, write_revised
from pneumoscope.inference.engine import OpenVinoBackend, Outputs, fast_precisions
from pneumoscope.inference.known_answer import (
    EXPORTED,
    TABLE,
    KnownAnswer,
    compared,
    known_table,
    phantom_content,
    stated_logit,
)
from pneumoscope.inference.predictor import Predictor
from pneumoscope.records import ImageRecord
from pneumoscope.training.features import Extractor
from pneumoscope.training.recipes import Pooled
from pneumoscope.workflows.input_check import Glimpse, Known
from pneumoscope.workflows.scoring import Scored

_LOGGER = logging.getLogger(__name__)


def confirm(predictor: Predictor) -> KnownAnswer | None:
    """See that a predictor scores the known phantom as its model states, before it is relied on.

    Returns:
        What was compared; `None` for a model that states no score, which is said.

    Raises:
        MissingError: it does not.
    """
    found = predictor.known_answer()
    if found is None:
        _LOGGER.warning(
            "this model states no known answer, so the engine was not checked against one; state "
            "it once, on a machine you trust: pneumoscope doctor --model MODEL --state BUNDLE"
        )
        return None
    if not found.right:
        raise MissingError(
            f"known answer: {found.engine} in {found.precision} gives the phantom the probability "
            f"{_probability(found.found)}, the model states {found.stated:.6f} (may differ by "
            f"{found.allowed:g}). Nothing is scored with an engine that is wrong. Look for what "
            "changed: pneumoscope doctor; then install the engine again or use another machine."
        )
    _LOGGER.info(
        "known answer: %s in %s gives %s, stated %.6f",
        found.engine,
        found.precision,
        _probability(found.found),
        found.stated,
    )
    return found


def check_engines(model: str) -> list[KnownAnswer]:
    """The known answer by every engine and precision that is present, of a model that states one.

    Raises:
        UsageError, MissingError, BundleError: as `load_bundle` does.
    """
    bundle = load_bundle(model)
    stated = stated_logit(bundle.table(TABLE))
    if stated is None:
        return []
    found = []
    for engine, precision, ask in _engines(bundle):
        began = time.monotonic()
        try:
            logit = ask()
        except PneumoscopeError as error:
            _LOGGER.warning("%s in %s can't be asked: %s", engine, precision, error)
            logit = None
        seconds = round(time.monotonic() - began, 2)
        found.append(
            compared(
                bundle.manifest,
                stated,
                logit,
                engine=engine,
                precision=precision,
                seconds=seconds,
            )
        )
    return found


def state(model: Path | str, out: Path) -> tuple[Bundle, float]:
    """Write the model again with its float32 score of the phantom as the known answer.

    Raises:
        UsageError, MissingError, BundleError: as `load_bundle` does; or the phantom has no score.
        OSError: the folder can't be written.
    """
    bundle = load_bundle(model)
    logit = Predictor(bundle.manifest, OpenVinoBackend.load(bundle, "f32")).phantom_logit()
    if logit is None:
        raise BundleError(f"{bundle.folder}: gives the phantom no score. Train again.")
    card = bundle.card.read_text(encoding="utf-8")
    made = write_revised(out, bundle, bundle.manifest, card, {TABLE: known_table(logit)})
    return made, logit


def known_answer_lines(found: list[KnownAnswer]) -> list[str]:
    """The answers for people, a line each."""
    if not found:
        return ["known answer  this model states none (pneumoscope doctor --state BUNDLE)"]
    return [
        f"known answer  {'ok   ' if one.right else 'WRONG'} {one.engine}, {one.precision}: "
        f"{_probability(one.found)}, stated {one.stated:.6f}"
        for one in found
    ]


def _probability(found: float | None) -> str:
    return "no probability" if found is None else f"{found:.6f}"


def _engines(bundle: Bundle) -> Iterator[tuple[str, str, Callable[[], float | None]]]:
    """What can be asked here: name, precision, and how."""
    certified = [c.precision for c in bundle.manifest.certificates if c.passed]
    for precision in fast_precisions():
        if precision == "f32" or precision in certified:
            yield "OpenVINO", precision, partial(_openvino, bundle, precision)
    if util.find_spec("keras"):
        yield "Keras", "f32", partial(_keras, bundle)
    if util.find_spec("onnx") and util.find_spec("onnxruntime"):
        yield "ONNX export", EXPORTED, partial(_onnx, bundle)


def _openvino(bundle: Bundle, precision: Any) -> float | None:
    return Predictor(bundle.manifest, OpenVinoBackend.load(bundle, precision)).phantom_logit()


def _keras(bundle: Bundle) -> float | None:
    from pneumoscope.inference.bundle import load_networks
    from pneumoscope.inference.engine import KerasBackend

    backend = KerasBackend(load_networks(bundle), flip=bundle.manifest.flip)
    return Predictor(bundle.manifest, backend).phantom_logit()


def _onnx(bundle: Bundle) -> float | None:
    """By the graph that `export` writes, from grey pixels to the calibrated probability."""
    from PIL import Image

    from pneumoscope.delivery.export import ExportedModel, write_export

    pixels = np.asarray(Image.open(io.BytesIO(phantom_content())), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_export(Path(folder) / "onnx", bundle, "onnx")
        probability = ExportedModel(Path(folder) / "onnx").answer(pixels).probability
    calibration = bundle.manifest.calibration
    odds = float(np.log(probability) - np.log1p(-probability))
    return (odds - calibration.intercept) / calibration.slope


class EmbeddingBackend:
    """What makes the pooled features as an engine that can tell embeddings alone.

    Args:
        extractor: of pooled features.
    """

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """Embeddings (n, c) of preprocessed images; logits and maps are 0."""
        rows, count = self._extractor(batch), len(batch)
        return Outputs(np.zeros(count, np.float32), np.zeros((count, 1, 1), np.float32), rows)


def pooled_by_record(pooled: Pooled, records: Sequence[ImageRecord]) -> Known:
    """The features of `records`, which the rows of `pooled` are of, in order."""
    rows = {record.path: row for row, record in enumerate(records)}

    def known(record: ImageRecord) -> Glimpse | None:
        row = rows.get(record.path)
        if row is None:
            return None
        return Glimpse(pooled.table.take(np.array([row]), np.array([0]))[0])

    return known


def scored_by_record(scored: Scored) -> Known:
    """What answers hold of their films; made with `looks`, all that the input check wants."""
    found = {
        record.path: Glimpse(result.embedding, result.look)
        for record, result in zip(scored.records, scored.results, strict=True)
        if result.embedding is not None
    }
    return lambda record: found.get(record.path)


def either(first: Known, second: Known) -> Known:
    """What `first` knows of a film, else what `second` does."""
    return lambda record: first(record) or second(record)
