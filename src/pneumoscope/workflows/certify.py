"""Measure how engines and precisions reproduce a model: `certify`, and the known-answer test.

`certify` measures the agreement of bfloat16 and int8 with float32 and records it in the bundle. The
revised bundle holds a certificate for each measured precision, passed or not, and the int8 ranges
if int8 passed.

A bundle states the score of one synthetic X-ray. `doctor` compares every installed engine and
precision with it; `serve` and `node` test their engine at start and stop if it differs.
"""

from __future__ import annotations

import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.data.index import fingerprint, index
from pneumoscope.errors import (
    BundleError,
    DataError,
    ImageRefusedError,
    InputError,
    MissingError,
    PneumoscopeError,
    UsageError,
)
from pneumoscope.graph import bundle_files
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.openvino import processor
from pneumoscope.graph.writer import Floats, Precision, Ranges
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import Bundle, check_bundle_target, load_bundle, write_revised
from pneumoscope.inference.certificates import (
    MOST_IMAGES,
    Agreement,
    PrecisionCertificate,
    choose_precision,
    compare,
    correlation,
    judged,
    measure_ranges,
)
from pneumoscope.inference.engine import (
    INT8_TABLE,
    OpenVinoBackend,
    fast_precisions,
    writable_graph_cache,
)
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
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import Dataset, ImageRecord, evenly_spread
from pneumoscope.workflows.run_folder import announce
from pneumoscope.workflows.scoring import Scored, score_all

_LOGGER = logging.getLogger(__name__)

FAILED = InputError.exit_code


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
        UsageError, MissingError, BundleError: as `load_bundle` does; or the phantom has no score;
            or `out` holds content that is not a bundle.
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
        probability = ExportedModel(Path(folder) / "onnx").predict(pixels).probability
    calibration = bundle.manifest.calibration
    odds = float(np.log(probability) - np.log1p(-probability))
    return (odds - calibration.intercept) / calibration.slope


Lower = Literal["bf16", "int8"]
LOWER: tuple[Lower, ...] = ("bf16", "int8")


@dataclass(frozen=True, slots=True)
class Certified:
    """The result of a certification.

    Attributes:
        bundle: the revised bundle.
        certificates: those of this run.
        skipped: precisions that this processor has no instructions for.
        auto: the precision that `auto` selects on this processor from now on.
    """

    bundle: Bundle
    certificates: tuple[PrecisionCertificate, ...]
    skipped: tuple[Lower, ...]
    auto: Precision


def certify_model(
    data: Path | str,
    model: Path | str,
    out: Path | None = None,
    split: Literal["test", "val", "train", "all"] = "val",
    precisions: Sequence[Lower] = LOWER,
    progress: Progress = SILENT,
) -> Certified:
    """Certify precisions of a model on one split of `data` and write the revised bundle.

    Args:
        data: a folder with class folders, or a CSV manifest; int8 is calibrated on its training
            images.
        model: a bundle, a run, or `default`.
        out: folder of the revised bundle; `None` replaces the old one.
        split: the images to compare on.
        precisions: the precisions to certify.
        progress: advances by one for each image.

    Raises:
        UsageError: there is no such model, or `out` can't be written to.
        DataError: the split is empty or unreadable, or int8 has no training images.
        MissingError: the processor supports none of `precisions`, or NNCF is missing.
    """
    bundle = load_bundle(model)
    target = _target(bundle, out)
    possible = _possible(precisions)
    dataset = index(Path(data), progress=progress)
    records = dataset.subset(split).records
    if not records:
        raise DataError(
            f"{data}: has no {split} images. Give another --split, or split the data: pneumoscope "
            "data split DATA --out split.csv"
        )
    announce(dataset)
    before = _scores(bundle, records, OpenVinoBackend.load(bundle), "float32", progress)
    about = f"{split}, {fingerprint(records)}"
    found: list[PrecisionCertificate] = []
    ranges = None
    for precision in possible:
        blank = PrecisionCertificate(precision, data=about, processor=processor())
        if precision == "int8":
            images = _calibration_images(bundle, dataset, data, progress)
            ranges = _ranges(bundle, images)
            blank = replace(blank, calibrated_on=len(images))
        found.append(_certificate(bundle, blank, ranges, before, progress))
    return _written(
        target, bundle, found, ranges, tuple(p for p in precisions if p not in possible)
    )


def run_certify(
    data: Path,
    model: str,
    out: Path | None,
    split: Any,
    precisions: Sequence[Lower],
    progress: Progress,
) -> tuple[dict[str, Any], str, int]:
    """Run `certify_model`; returns document, text and exit code: 3 if no precision passed."""
    done = certify_model(data, model, out, split, precisions, progress)
    document = {
        "model": str(done.bundle.folder),
        "certificates": [asdict(c) | {"passed": c.passed} for c in done.certificates],
        "skipped": list(done.skipped),
        "auto": done.auto,
    }
    lines = [line for c in done.certificates for line in certificate_lines(c)]
    lines += [f"{p:<12}  not measured: this processor does not support it" for p in done.skipped]
    lines += [f"auto          {done.auto} on this processor", f"model         {done.bundle.folder}"]
    failed = not any(c.passed for c in done.certificates)
    return document, "\n".join(lines), FAILED if failed else 0


def certificate_lines(certificate: PrecisionCertificate) -> list[str]:
    """A certificate as lines for the terminal."""
    c = certificate
    between = ", the rest in bfloat16" if (c.precision, c.floats) == ("int8", "bf16") else ""
    return [
        f"{c.precision:<12}  {'passed' if c.passed else 'FAILED'} on {c.images} images{between}",
        f"  largest, mean difference  {c.largest_difference:.2g}, {c.mean_difference:.2g}",
        f"  decisions changed         {c.decisions_changed}",
        f"  AUC before, after         {_shown(c.auc_before)}, {_shown(c.auc_after)}",
        f"  heatmap correlation       {_shown(c.heatmap_correlation)} at least",
        *(f"  {failure}" for failure in c.failures),
    ]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def _target(bundle: Bundle, out: Path | None) -> Path:
    """The folder of the revised bundle.

    Raises:
        UsageError: the shipped model without `out`, or `out` holds something else than a bundle.
    """
    if out is None:
        if bundle.folder == bundle_files.default_folder():
            raise UsageError(
                "--model default: is part of the installation and is never changed. Give --out DIR "
                "for a copy with certificates."
            )
        return bundle.folder
    check_bundle_target(out)
    return out


def _possible(precisions: Sequence[Lower]) -> tuple[Lower, ...]:
    fast = fast_precisions()
    possible = tuple(p for p in LOWER if p in precisions and p in fast)
    if not possible:
        raise MissingError(
            f"--precision: found a processor with {', '.join(fast)}, wanted one with "
            f"{', '.join(precisions)}. Certify on such a machine; the bundle can be copied."
        )
    return possible


def _calibration_images(
    bundle: Bundle, dataset: Dataset, data: Path | str, progress: Progress
) -> NDArray[np.float32]:
    """Preprocessed training images (n, size, size, 3), evenly spread over all of them."""
    records = evenly_spread(dataset.subset("train").records, MOST_IMAGES)
    preprocess = Preprocessor(bundle.manifest.preprocessing)
    images = []
    with progress.task("reading training images", len(records), "images") as task:
        for record in records:
            task.advance()
            try:
                images.append(preprocess(read_image(record.path).pixels))
            except ImageRefusedError as error:
                _LOGGER.warning("skipped: %s", error)
    if not images:
        raise DataError(
            f"{data}: found no readable training images, wanted some to calibrate int8 on. "
            "Give data with a train split, or --precision bf16."
        )
    return np.stack(images)


def _ranges(bundle: Bundle, images: NDArray[np.float32]) -> Ranges:
    manifest = bundle.manifest
    networks = [read_network(path, manifest.architecture) for path in bundle.weights]
    _LOGGER.info("int8: measuring ranges on %d training images", len(images))
    return measure_ranges(networks, manifest.architecture.size, images, flip=manifest.flip)


def _certificate(
    bundle: Bundle,
    blank: PrecisionCertificate,
    ranges: Ranges | None,
    before: Scored,
    progress: Progress,
) -> PrecisionCertificate:
    """Measure one precision; int8 combines with bfloat16 if that passes, else with float32."""
    ways: tuple[Floats, ...] = ("bf16",)
    if blank.precision == "int8":
        ways = ("bf16", "f32") if "bf16" in fast_precisions() else ("f32",)
    for floats in ways:
        backend = _backend(bundle, floats, ranges if blank.precision == "int8" else None)
        after = _scores(bundle, before.records, backend, blank.precision, progress)
        agreed = _agreement(before, after, bundle.manifest.threshold.value)
        found = judged(replace(blank, floats=floats), agreed)
        if found.passed:
            break
    return found


def _backend(bundle: Bundle, floats: Floats, ranges: Ranges | None) -> OpenVinoBackend:
    manifest = bundle.manifest
    return OpenVinoBackend(
        [read_network(path, manifest.architecture) for path in bundle.weights],
        manifest.architecture.size,
        flip=manifest.flip,
        cache=writable_graph_cache(),
        floats=floats,
        ranges=ranges,
    )


def _scores(
    bundle: Bundle,
    records: Sequence[ImageRecord],
    backend: OpenVinoBackend,
    name: str,
    progress: Progress,
) -> Scored:
    predictor = Predictor(bundle.manifest, backend)
    return score_all(records, predictor, f"inference in {name}", progress)


def _agreement(before: Scored, after: Scored, threshold: float) -> Agreement:
    """Agreement on images with a float32 prediction; a missing one counts as maximal difference."""
    pairs = [(before.results[k], after.results[k]) for k in before.ok]
    others = [a.prediction.probability for _, a in pairs]
    scored = np.array([float("nan") if p is None else p for p in others])
    same = [0.0 if b.cam is None or a.cam is None else correlation(b.cam, a.cam) for b, a in pairs]
    return compare(before.labels(), before.probabilities(), scored, threshold, same)


def _written(
    target: Path,
    bundle: Bundle,
    found: Sequence[PrecisionCertificate],
    ranges: Ranges | None,
    skipped: tuple[Lower, ...],
) -> Certified:
    """Write the bundle; new certificates replace older ones of the same precisions."""
    measured = {c.precision for c in found}
    kept = [c for c in bundle.manifest.certificates if c.precision not in measured]
    manifest = replace(bundle.manifest, certificates=(*kept, *found))
    tables = {}
    if "int8" in measured:
        passed = any(c.passed for c in found if c.precision == "int8")
        tables[INT8_TABLE] = ranges.as_table() if passed and ranges else None
    card = bundle.card.read_text(encoding="utf-8")
    revised = write_revised(target, bundle, manifest, card, tables)
    auto = choose_precision("auto", manifest.certificates, fast_precisions())
    return Certified(revised, tuple(found), skipped, auto)
