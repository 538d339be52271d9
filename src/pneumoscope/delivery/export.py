"""A bundle as one graph for other programs, from grey pixels to probability and heatmap.

    model.onnx, or model.xml and model.bin    the graph
    export.json     labels, threshold, version, inputs and outputs
    example.py      how to run it in Python
    example.html    how to run it in a browser (ONNX)
    MODEL_CARD.md   the model card of the bundle
    embedding.npz   statistics of the training images' embeddings, for the input check
    certificate.json    agreement with the bundle, where it was measured

The graph scores any input: neither the input check, the abstention nor the age range of the bundle
is part of it. `export.json` states all three, and `example.py` computes one of the four descriptors
of the input check, the distance of the embedding.

`certify` compares an export with its bundle on every image of a data set.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import DataError, ExtraMissingError, ImageRefusedError, UsageError
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.onnx import OnnxWriter
from pneumoscope.graph.openvino import OpenVinoWriter, compile_model
from pneumoscope.images.dicom.patient import describe_ages
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import Bundle, BundleManifest
from pneumoscope.inference.certificates import compare, correlation, differences, exceeded_limits
from pneumoscope.inference.engine import EXPORTED_OUTPUTS, write_prediction
from pneumoscope.inference.input_check import EMBEDDING, TABLE, statistics_of
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import Result
from pneumoscope.inference.weights_store import save_table
from pneumoscope.progress import SILENT, Progress
from pneumoscope.reading import read_json
from pneumoscope.records import CLASS_NAMES, ImageRecord
from pneumoscope.storage import (
    check_replaceable,
    folder_writer,
    sha256_of_file,
    write_json,
    write_text,
)

Target = Literal["onnx", "openvino"]

ABOUT = "export.json"
CERTIFICATE = "certificate.json"
EMBEDDINGS = "embedding.npz"
INPUT = "pixels"
GRAPH_FILES = {"onnx": "model.onnx", "openvino": "model.xml"}

_KIND = "an export"
_EXAMPLES = {"onnx": ("example.py", "example.html"), "openvino": ("example.py",)}
_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ExportedResult:
    """The result of one image: calibrated probability, heatmap (m, m), embedding (c,)."""

    probability: float
    heatmap: NDArray[np.float32]
    embedding: NDArray[np.float32]


def write_export(folder: Path, bundle: Bundle, target: Target) -> None:
    """Write the graph of a bundle and its files, as a whole or not at all.

    Raises:
        UsageError: `folder` has content that is not an export.
        ExtraMissingError: the format's library is not installed.
        BundleError: the weights are damaged.
        OSError: the folder can't be written.
    """
    check_folder(folder)
    manifest = bundle.manifest
    networks = [read_network(path, manifest.architecture) for path in bundle.weights]
    about = describe(bundle, target, networks[0].width)
    with folder_writer(folder, ABOUT, _KIND) as made:
        write = _write_onnx if target == "onnx" else _write_openvino
        write(made, manifest, networks, about)
        write_json(made / ABOUT, about)
        statistics = statistics_of(manifest.input_check, bundle.table(TABLE) or {})
        if statistics is not None:
            arrays = statistics.gaussians[EMBEDDING].to_arrays(EMBEDDING)
            save_table(made / EMBEDDINGS, arrays)
        shutil.copyfile(bundle.card, made / bundle.card.name)
        for name in _EXAMPLES[target]:
            text = resources.files("pneumoscope.delivery").joinpath("examples", name).read_text()
            write_text(made / name, text)


def check_folder(folder: Path) -> None:
    """Reject a folder whose content an export would delete.

    Raises:
        UsageError: it is a file, or has content that is not an export.
    """
    check_replaceable(folder, ABOUT, _KIND)


def describe(bundle: Bundle, target: Target, width: int) -> dict[str, Any]:
    """Metadata for programs that run the graph: `export.json`, also inside an ONNX file.

    Args:
        bundle: the bundle to export.
        target: the format.
        width: length of the embedding.
    """
    manifest = bundle.manifest
    return {
        "schema_version": _SCHEMA_VERSION,
        "pneumoscope_version": manifest.pneumoscope_version,
        "format": target,
        "labels": list(manifest.labels),
        "positive": CLASS_NAMES[1],
        "threshold": {"value": manifest.threshold.value, "rule": manifest.threshold.rule},
        "ages": list(manifest.ages),
        "input": {INPUT: "uint8 (n, height, width): grey, 0 is black, any height and width"},
        "outputs": {
            "probability": "float32 (n,): calibrated probability of pneumonia",
            "heatmap": "float32 (n, m, m): Grad-CAM on the network's grid, 1 at its peak; it "
            f"covers the image as it was fitted into the square ({manifest.preprocessing.fit})",
            "embedding": f"float32 (n, {width}): pooled features",
        },
        "model": {"bundle_sha256": sha256_of_file(bundle.folder / "bundle.json")},
        **_left_out(bundle),
        "use": "Research software, not a medical device.",
    }


def missing_parts(about: Mapping[str, Any]) -> list[str]:
    """What the graph lacks in comparison with the bundle, one sentence each."""
    lines = []
    if about["input_check"]["method"] == "none":
        lines.append(
            "the graph rejects no image, and neither does the model: every readable image is scored"
        )
    else:
        lines.append(
            "the graph rejects no image, unlike the model: it also scores other than chest X-rays "
            f"({EMBEDDINGS} and example.py do a part of the input check)"
        )
    if about["abstention"]["method"] != "none":
        low, high = (about["abstention"][end] for end in ("low", "high"))
        lines.append(
            f"the graph does not abstain; the model does from {low:.4g} to {high:.4g}: "
            "see abstention in export.json"
        )
    if about["ages"]:
        lines.append(
            f"the graph does not know the patient's age; the model is for "
            f"{describe_ages(tuple(about['ages']))}: see ages in export.json"
        )
    return lines


def _left_out(bundle: Bundle) -> dict[str, Any]:
    """Input check and abstention of the bundle, which programs must apply themselves."""
    check, band = bundle.manifest.input_check, bundle.manifest.abstention
    told: dict[str, Any] = {"method": check.method, "in_graph": False}
    if check.method != "none":
        told |= {
            "limits": dict(check.limits),
            "embedding": f"{EMBEDDINGS}: its distance over limits.{EMBEDDING}; above 1 is "
            "rejected. The limits of thumbnails need pneumoscope itself.",
        }
    withheld: dict[str, Any] = {"method": band.method, "in_graph": False}
    if band.method != "none":
        withheld |= {
            "low": band.low,
            "high": band.high,
            "answer": "indeterminate (`uncertain` in files) where low <= probability < high",
            "rule": band.rule,
        }
    return {"input_check": told, "abstention": withheld}


def _write_onnx(
    folder: Path, manifest: BundleManifest, networks: list[NetworkArrays], about: dict[str, Any]
) -> None:
    to = OnnxWriter()
    written = write_prediction(to, manifest, networks, INPUT)
    width, side = networks[0].width, written.side
    shapes: tuple[list[int | str], ...] = (["n"], ["n", side, side], ["n", width])
    outputs = {
        n: (node, s) for n, node, s in zip(EXPORTED_OUTPUTS, written.nodes, shapes, strict=True)
    }
    metadata = {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
    model = to.model(INPUT, outputs, metadata)
    (folder / GRAPH_FILES["onnx"]).write_bytes(model.SerializeToString())


def _write_openvino(
    folder: Path, manifest: BundleManifest, networks: list[NetworkArrays], about: dict[str, Any]
) -> None:
    to = OpenVinoWriter()
    pixels = to.parameter((-1, -1, -1), np.uint8, INPUT)
    written = write_prediction(to, manifest, networks, pixels)
    model = to.model(pixels, dict(zip(EXPORTED_OUTPUTS, written.nodes, strict=True)))
    for key, value in about.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.set_rt_info(text, ["pneumoscope", key])
    path = folder / GRAPH_FILES["openvino"]
    to.openvino.save_model(model, path, compress_to_fp16=False)


class ExportedModel:
    """An export, run by the engine of its format in float32.

    Raises:
        UsageError: the folder is not an export.
        InputError: its description can't be read.
        ExtraMissingError: the engine is not installed.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / ABOUT
        if not path.exists():
            raise UsageError(f"{folder}: holds no {ABOUT}. Make one: pneumoscope export --out DIR")
        self.about: dict[str, Any] = read_json(path)
        target = self.about["format"]
        graph = folder / GRAPH_FILES[target]
        self._run = _onnx_runner(graph) if target == "onnx" else _openvino_runner(graph)

    def predict(self, pixels: NDArray[np.uint8]) -> ExportedResult:
        """Score one image, grey (h, w), 0 is black."""
        probability, heatmap, embedding = self._run(pixels[None])
        return ExportedResult(float(probability[0]), heatmap[0], embedding[0])


_Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]


def _onnx_runner(graph: Path) -> _Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise ExtraMissingError("running an ONNX export", "export") from error
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def run(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = session.run(list(EXPORTED_OUTPUTS), {INPUT: pixels})
        return found

    return run


def _openvino_runner(graph: Path) -> _Run:
    compiled = compile_model(graph, "f32")

    def run(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        found = compiled({INPUT: pixels})
        return [np.array(found[name]) for name in EXPORTED_OUTPUTS]

    return run


@dataclass(frozen=True, slots=True)
class Limits:
    """Allowed differences of an export. Images above 8 bits are rounded to 8 for the graph."""

    probability: float = 1e-4
    rounded_probability: float = 0.02
    decisions_per_thousand: float = 2.0
    auc: float = 0.001
    heatmap_correlation: float = 0.99


@dataclass(frozen=True, slots=True)
class Certificate:
    """Differences between the results of a bundle and of its export.

    Attributes:
        images: number of images compared; `refused`: number that could not be read.
        rounded: number of images that 8 bits hold only rounded; counted separately.
        largest_difference: of the probability, over the images that 8 bits hold; `None` if there
            are none.
        mean_difference: of the same.
        largest_rounded_difference: over the others; `None` if there are none.
        decisions_changed: predictions on the other side of the threshold.
        auc_before: the bundle's; `None` if one class is missing.
        auc_after: the export's.
        heatmap_correlation: the least over images (Pearson); `None` if all maps are flat.
        limits: the allowed differences.
        failures: exceeded limits, in words; empty if none.
    """

    images: int
    refused: int
    rounded: int
    largest_difference: float | None
    mean_difference: float | None
    largest_rounded_difference: float | None
    decisions_changed: int
    auc_before: float | None
    auc_after: float | None
    heatmap_correlation: float | None
    limits: Limits = field(default_factory=Limits)
    failures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """`certificate.json`."""
        return {"schema_version": 1, "passed": not self.failures, **asdict(self)}


@dataclass(frozen=True, slots=True)
class _Pair:
    """One image scored by bundle and export."""

    label: int
    before: float
    after: float
    exact: bool
    correlation: float | None


def certify(
    records: Sequence[ImageRecord],
    predictor: Predictor,
    exported: ExportedModel,
    limits: Limits | None = None,
    progress: Progress = SILENT,
) -> Certificate:
    """Score every image with bundle and export, and compare.

    Raises:
        DataError: no image could be read.
    """
    pairs: list[_Pair] = []
    with progress.task("certificate", len(records), "images") as task:
        for record in records:
            try:
                grey = read_image(record.path).pixels
            except ImageRefusedError:
                task.advance()
                continue
            pixels = np.rint(grey * 255.0).astype(np.uint8)
            exact = np.array_equal(pixels.astype(np.float32) / np.float32(255.0), grey)
            pairs.append(_asked(record.label, predictor, exported, grey, pixels, exact))
            task.advance()
    if not pairs:
        raise DataError(
            f"none of {len(records)} images could be read; expected some to compare results on. "
            "Look at the data: pneumoscope data audit DATA"
        )
    return _judged(pairs, len(records), predictor.manifest.threshold.value, limits or Limits())


def _asked(
    label: int,
    predictor: Predictor,
    exported: ExportedModel,
    grey: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    exact: bool,
) -> _Pair:
    result: Result = predictor.predict_image(grey)
    other = exported.predict(pixels)
    before = result.prediction.probability
    same = None if result.cam is None else correlation(result.cam, other.heatmap)
    return _Pair(label, float("nan") if before is None else before, other.probability, exact, same)


def _judged(pairs: Sequence[_Pair], asked: int, threshold: float, limits: Limits) -> Certificate:
    labels = np.array([p.label for p in pairs])
    before, after = (np.array([getattr(p, n) for p in pairs]) for n in ("before", "after"))
    exact = np.array([p.exact for p in pairs])
    apart = differences(before, after)
    agreed = compare(labels, before, after, threshold, [p.correlation for p in pairs])
    found: dict[str, Any] = {
        "images": len(pairs),
        "refused": asked - len(pairs),
        "rounded": int((~exact).sum()),
        "largest_difference": float(apart[exact].max()) if exact.any() else None,
        "mean_difference": float(apart[exact].mean()) if exact.any() else None,
        "largest_rounded_difference": None if exact.all() else float(apart[~exact].max()),
        "decisions_changed": agreed.decisions_changed,
        "auc_before": agreed.auc_before,
        "auc_after": agreed.auc_after,
        "heatmap_correlation": agreed.heatmap_correlation,
    }
    same = agreed.heatmap_correlation
    tests = (
        ("largest difference of probability", found["largest_difference"], limits.probability),
        (
            "largest difference of probability where images were rounded to 8 bits",
            found["largest_rounded_difference"],
            limits.rounded_probability,
        ),
        (
            "decisions changed in 1,000",
            agreed.decisions_per_thousand,
            limits.decisions_per_thousand,
        ),
        ("difference of AUC", agreed.auc_difference, limits.auc),
        (
            "heatmaps' distance from correlation 1",
            None if same is None else 1 - same,
            1 - limits.heatmap_correlation,
        ),
    )
    return Certificate(**found, limits=limits, failures=exceeded_limits(tests))


@contextmanager
def told_by_place(logger: logging.Logger) -> Iterator[None]:
    """Log warnings by kind, file and line of code only: their text may hold file content."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        logger.warning("%s at %s:%d", category.__name__, Path(filename).name, lineno)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
