"""`demo`: the whole workflow offline, on synthetic X-rays: draw, train, evaluate, explain.

OUT/demo.html          open this: key numbers, predictions with heatmaps, links to the rest
OUT/phantoms/          the synthetic X-rays
OUT/run/               the training run with its report
OUT/evaluation/        the evaluation on the test split with its report
OUT/heatmaps/          heatmap overlays of some test images
OUT/predictions.csv    the predictions for the same images
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumoscope.config import FitConfig, IntervalConfig, PreprocessConfig, TrainConfig
from pneumoscope.errors import UsageError
from pneumoscope.graph import bundle_files
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.bundle import load_bundle
from pneumoscope.inference.overlay import heatmap_name
from pneumoscope.progress import Progress
from pneumoscope.records import CLASS_NAMES
from pneumoscope.report.demo_page import DemoContent, DemoImage, render_demo_page
from pneumoscope.storage import claim_folder, write_text
from pneumoscope.workflows.evaluate import evaluate_model, metrics_document
from pneumoscope.workflows.evaluation_folder import metrics_table
from pneumoscope.workflows.predict import run_prediction
from pneumoscope.workflows.train import run_training

PHANTOMS = 600
_SHOWN = 12
_MARK = ".pneumoscope-demo"
_LINKS = (
    ("evaluation/report.html", "every metric with its interval, curves, largest errors"),
    ("evaluation/checklist.html", "reporting checklists, filled in from the run"),
    ("run/report.html", "learning curves and validation results"),
    ("run/model/MODEL_CARD.md", "the model card"),
    ("predictions.csv", "the predictions of the gallery"),
)


def run_demo(out: Path, progress: Progress) -> tuple[dict[str, Any], str]:
    """Run the demonstration; an earlier one in `out` is replaced.

    Args:
        out: output folder.
        progress: receives every stage.

    Returns:
        A document and a text; the last line of the text names the page to open.

    Raises:
        UsageError: `out` holds something else.
        ExtraMissingError: the extra `train` is not installed.
    """
    claim_folder(out)
    if any(out.iterdir()) and not (out / _MARK).exists():
        raise UsageError(f"--out {out}: holds other files. Give an empty or a new folder.")
    shutil.rmtree(out)
    out.mkdir()
    (out / _MARK).touch()
    phantoms = write_phantoms(out / "phantoms", PHANTOMS, progress=progress)
    trained, _ = run_training(phantoms, out / "run", _config(), progress, given=["preprocess.size"])
    evaluated = evaluate_model(
        phantoms, out / "evaluation", str(out / "run"), "test", IntervalConfig(), progress
    )
    images = sorted((phantoms / "test").rglob("*.png"))
    images = images[:: max(len(images) // _SHOWN, 1)][:_SHOWN]
    predicted, _, _ = run_prediction(
        images, str(out / "run"), out / "predictions.csv", out / "heatmaps", progress
    )
    content = DemoContent(
        evaluated.evaluation,
        evaluated.manifest.training_data.images,
        _gallery(predicted["predictions"], out / "heatmaps"),
        _LINKS,
    )
    write_text(out / "demo.html", render_demo_page(content))
    document = {
        "run": trained,
        "evaluation": metrics_document(evaluated) | {"out": str(out / "evaluation")},
        "page": str(out / "demo.html"),
        "out": str(out),
    }
    text = (
        f"A model was trained on {evaluated.manifest.training_data.images} synthetic X-rays and "
        "tested on others.\nThe numbers show that the software works, not how well a model "
        f"performs on patients.\n\n{metrics_table(evaluated.evaluation)}\n\n"
        "next  pneumoscope train DATA --out runs/a    (with your own X-rays)\n"
        f"open  {out / 'demo.html'}"
    )
    return document, text


def _config() -> TrainConfig:
    """A quick recipe: the head on frozen features, of the bundled model if it is installed."""
    bundled = bundle_files.default_folder()
    fit = dataclasses.replace(FitConfig(), epochs=40)
    config = TrainConfig(weights="none", views=1, keep_val=True, fit=fit)
    if not (bundled / bundle_files.MANIFEST).is_file():
        return config
    theirs = load_bundle("default").manifest.preprocessing
    preprocess = dataclasses.replace(theirs, size=PreprocessConfig().size)
    return dataclasses.replace(config, weights="bundled", preprocess=preprocess)


def _gallery(rows: Sequence[dict[str, Any]], heatmaps: Path) -> list[DemoImage]:
    """The images of the gallery, pneumonia first; refused ones have no heatmap and are skipped."""
    images = []
    for row in rows:
        overlay = heatmaps / heatmap_name(row["path"])
        if row["status"] == "ok" and overlay.is_file():
            path = Path(row["path"])
            label = CLASS_NAMES.index(path.parent.name)
            images.append(
                DemoImage(
                    path.name,
                    label,
                    row["probability"],
                    row["prediction"],
                    path.read_bytes(),
                    overlay.read_bytes(),
                )
            )
    return sorted(images, key=lambda image: -image.label)
