"""A bundle as one graph for other programs: from a film's grey pixels to its answer.

    model.onnx, or model.xml and model.bin    the graph
    export.json     labels, threshold, version, what goes in and comes out
    example.py      how to ask it, in Python
    example.html    how to ask it in a browser (ONNX)
    MODEL_CARD.md   the bundle's
    embedding.npz   of the bundle's input check: what embeddings of its training images are like
    certificate.json    how nearly it answers as the bundle does, where that was measured

Comes in: a bundle and a format. Goes out: that folder, or an `ExportedModel` that runs it. The
graph answers for whatever it is given: neither the bundle's input check nor `uncertain` is part of
it. Both are told, and one description of four of the check can be asked after: the distance of the
embedding, as `example.py` does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ExtraMissingError, UsageError
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.onnx import OnnxWriter
from pneumoscope.graph.openvino import OpenVinoWriter, compile_model
from pneumoscope.inference.answer_graph import OUTPUTS, write_answer
from pneumoscope.inference.bundle import Bundle, BundleManifest
from pneumoscope.inference.bundle_tables import save_table
from pneumoscope.inference.input_check import EMBEDDING, TABLE
from pneumoscope.inference.predictor import statistics_of
from pneumoscope.records import CLASS_NAMES
from pneumoscope.storage import folder_writer, sha256_of_file, write_json, write_text

Target = Literal["onnx", "openvino"]

ABOUT = "export.json"
CERTIFICATE = "certificate.json"
EMBEDDINGS = "embedding.npz"
INPUT = "pixels"
GRAPH_FILES = {"onnx": "model.onnx", "openvino": "model.xml"}

_EXAMPLES = {"onnx": ("example.py", "example.html"), "openvino": ("example.py",)}
_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ExportedAnswer:
    """Of one film: the calibrated probability, the heatmap (m, m), the embedding (c,)."""

    probability: float
    heatmap: NDArray[np.float32]
    embedding: NDArray[np.float32]


def write_export(folder: Path, bundle: Bundle, target: Target) -> None:
    """Write the graph of a bundle and what belongs to it, whole or not at all.

    Raises:
        UsageError: `folder` holds something else than an export.
        ExtraMissingError: the format's library is not installed.
        BundleError: the weights are damaged.
        OSError: the folder can't be written.
    """
    check_folder(folder)
    manifest = bundle.manifest
    networks = [read_network(path, manifest.architecture) for path in bundle.weights]
    about = describe(bundle, target, networks[0].width)
    with folder_writer(folder) as made:
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
    """Refuse a folder whose content an export would wipe out.

    Raises:
        UsageError: it is a file, or holds something else than an export.
    """
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).exists()
    ):
        raise UsageError(
            f"--out {folder}: found something there that is no export, wanted a new or empty "
            "folder, or an export to replace. Give another one."
        )


def describe(bundle: Bundle, target: Target, width: int) -> dict[str, Any]:
    """What a program must know that asks the graph: `export.json`, and inside an ONNX file.

    Args:
        bundle: what is exported.
        target: the format.
        width: of the embedding.
    """
    manifest = bundle.manifest
    return {
        "schema_version": _SCHEMA_VERSION,
        "pneumoscope_version": manifest.pneumoscope_version,
        "format": target,
        "labels": list(manifest.labels),
        "positive": CLASS_NAMES[1],
        "threshold": {"value": manifest.threshold.value, "rule": manifest.threshold.rule},
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
    """What the graph does not do that the bundle does, in words."""
    lines = []
    if about["input_check"]["method"] == "none":
        lines.append("it refuses nothing; nor does the model: all that can be read gets an answer")
    else:
        lines.append(
            "it refuses nothing, but the model does: what is no chest X-ray gets an answer here "
            f"({EMBEDDINGS} and example.py do a part of that check)"
        )
    if about["abstention"]["method"] != "none":
        low, high = (about["abstention"][end] for end in ("low", "high"))
        lines.append(
            f"it never says ‘uncertain’; the model does from {low:.4f} up to {high:.4f}: "
            "see abstention in export.json"
        )
    return lines


def _left_out(bundle: Bundle) -> dict[str, Any]:
    """The bundle's input check and abstention, which who asks the graph must see to."""
    check, band = bundle.manifest.input_check, bundle.manifest.abstention
    told: dict[str, Any] = {"method": check.method, "in_graph": False}
    if check.method != "none":
        told |= {
            "limits": dict(check.limits),
            "embedding": f"{EMBEDDINGS}: its distance over limits.{EMBEDDING}; above 1 is refused. "
            "The limits of thumbnails need pneumoscope itself.",
        }
    withheld: dict[str, Any] = {"method": band.method, "in_graph": False}
    if band.method != "none":
        withheld |= {
            "low": band.low,
            "high": band.high,
            "answer": "uncertain where low <= probability < high",
            "rule": band.rule,
        }
    return {"input_check": told, "abstention": withheld}


def _write_onnx(
    folder: Path, manifest: BundleManifest, networks: list[NetworkArrays], about: dict[str, Any]
) -> None:
    to = OnnxWriter()
    answer = write_answer(to, manifest, networks, INPUT)
    width, side = networks[0].width, answer.side
    shapes: tuple[list[int | str], ...] = (["n"], ["n", side, side], ["n", width])
    outputs = {n: (node, s) for n, node, s in zip(OUTPUTS, answer.nodes, shapes, strict=True)}
    metadata = {key: v if isinstance(v, str) else json.dumps(v) for key, v in about.items()}
    model = to.model(INPUT, outputs, metadata)
    (folder / GRAPH_FILES["onnx"]).write_bytes(model.SerializeToString())


def _write_openvino(
    folder: Path, manifest: BundleManifest, networks: list[NetworkArrays], about: dict[str, Any]
) -> None:
    to = OpenVinoWriter()
    pixels = to.parameter((-1, -1, -1), np.uint8, INPUT)
    answer = write_answer(to, manifest, networks, pixels)
    model = to.model(pixels, dict(zip(OUTPUTS, answer.nodes, strict=True)))
    for key, value in about.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.set_rt_info(text, ["pneumoscope", key])
    path = folder / GRAPH_FILES["openvino"]
    to.openvino.save_model(model, path, compress_to_fp16=False)


class ExportedModel:
    """An export, run by the engine of its format in float32.

    Raises:
        UsageError: the folder is no export.
        ExtraMissingError: the engine is not installed.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / ABOUT
        if not path.exists():
            raise UsageError(f"{folder}: holds no {ABOUT}. Make one: pneumoscope export --out DIR")
        self.about: dict[str, Any] = json.loads(path.read_text())
        target = self.about["format"]
        graph = folder / GRAPH_FILES[target]
        self._run = _onnx_runner(graph) if target == "onnx" else _openvino_runner(graph)

    def answer(self, pixels: NDArray[np.uint8]) -> ExportedAnswer:
        """The answer for one film, grey (h, w), 0 is black."""
        probability, heatmap, embedding = self._run(pixels[None])
        return ExportedAnswer(float(probability[0]), heatmap[0], embedding[0])


_Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]


def _onnx_runner(graph: Path) -> _Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise ExtraMissingError("running an ONNX export", "export") from error
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def run(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = session.run(list(OUTPUTS), {INPUT: pixels})
        return found

    return run


def _openvino_runner(graph: Path) -> _Run:
    compiled = compile_model(graph, "f32")

    def run(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        found = compiled({INPUT: pixels})
        return [np.array(found[name]) for name in OUTPUTS]

    return run
