"""Known-answer test of inference engines.

A bundle states the score of one synthetic X-ray. `doctor` compares every installed engine and
precision with it; `serve` and `node` test their engine at start and stop if it differs.
"""

from __future__ import annotations

import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.errors import BundleError, MissingError, PneumoscopeError
from pneumoscope.inference.bundle import Bundle, load_bundle, write_revised
from pneumoscope.inference.engine import OpenVinoBackend, fast_precisions
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

_LOGGER = logging.getLogger(__name__)


def confirm(predictor: Predictor) -> KnownAnswer | None:
    """Test that a predictor reproduces the known answer of its model.

    Returns:
        The comparison; `None`, with a warning, for a model without a known answer.

    Raises:
        MissingError: the score differs by more than the tolerance.
    """
    result = predictor.known_answer()
    if result is None:
        _LOGGER.warning(
            "this model has no known answer, so the engine was not tested; add one on a machine "
            "that you trust: pneumoscope doctor --model MODEL --state BUNDLE"
        )
        return None
    if not result.right:
        raise MissingError(
            f"known answer: {result.engine} in {result.precision} gives the phantom "
            f"{_probability(result.found)}; the model states {result.stated:.6f} (tolerance "
            f"{result.allowed:g}). This engine computes wrong results and is not used. Compare all "
            "engines: pneumoscope doctor; then reinstall the engine or use another machine."
        )
    _LOGGER.info(
        "known answer: %s in %s gives %s, stated %.6f",
        result.engine,
        result.precision,
        _probability(result.found),
        result.stated,
    )
    return result


def check_engines(model: str) -> list[KnownAnswer]:
    """Run the known-answer test with every installed engine and precision.

    Returns:
        One comparison each; empty for a model without a known answer.

    Raises:
        UsageError, MissingError, BundleError: as `load_bundle` does.
    """
    bundle = load_bundle(model)
    stated = stated_logit(bundle.table(TABLE))
    if stated is None:
        return []
    results = []
    for engine, precision, run in _engines(bundle):
        started = time.monotonic()
        try:
            logit = run()
        except PneumoscopeError as error:
            _LOGGER.warning("%s in %s can't run: %s", engine, precision, error)
            logit = None
        seconds = round(time.monotonic() - started, 2)
        results.append(
            compared(
                bundle.manifest,
                stated,
                logit,
                engine=engine,
                precision=precision,
                seconds=seconds,
            )
        )
    return results


def state(model: Path | str, out: Path) -> tuple[Bundle, float]:
    """Rewrite a model with its float32 score of the phantom as the known answer.

    Args:
        model: a bundle, a run, or `default`.
        out: folder of the new bundle.

    Returns:
        The bundle, and the logit of the phantom.

    Raises:
        UsageError, MissingError, BundleError: as `load_bundle` does; or the phantom has no score.
        OSError: the folder can't be written.
    """
    bundle = load_bundle(model)
    logit = Predictor(bundle.manifest, OpenVinoBackend.load(bundle, "f32")).phantom_logit()
    if logit is None:
        raise BundleError(f"{bundle.folder}: computes no score for the phantom. Train again.")
    card = bundle.card.read_text(encoding="utf-8")
    made = write_revised(out, bundle, bundle.manifest, card, {TABLE: known_table(logit)})
    return made, logit


def known_answer_lines(results: list[KnownAnswer]) -> list[str]:
    """The comparisons as lines for the terminal."""
    if not results:
        return ["known answer  none (add it: doctor --state BUNDLE)"]
    return [
        f"known answer  {'ok   ' if result.right else 'WRONG'} {result.engine}, "
        f"{result.precision}: {_probability(result.found)}, stated {result.stated:.6f}"
        for result in results
    ]


def _probability(value: float | None) -> str:
    return "no probability" if value is None else f"{value:.6f}"


def _engines(bundle: Bundle) -> Iterator[tuple[str, str, Callable[[], float | None]]]:
    """The installed engines: name, precision, and a function that returns the phantom's logit."""
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
    """The phantom's logit from the graph that `export` writes (grey pixels to probability)."""
    from PIL import Image

    from pneumoscope.delivery.export import ExportedModel, write_export

    pixels = np.asarray(Image.open(io.BytesIO(phantom_content())), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_export(Path(folder) / "onnx", bundle, "onnx")
        probability = ExportedModel(Path(folder) / "onnx").answer(pixels).probability
    calibration = bundle.manifest.calibration
    odds = float(np.log(probability) - np.log1p(-probability))
    return (odds - calibration.intercept) / calibration.slope
