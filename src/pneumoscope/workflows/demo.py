"""`demo`: the whole workflow offline, on synthetic X-rays: draw, train, evaluate, explain.

Its page is one HTML file that opens from disk.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.config import FitConfig, IntervalConfig, PreprocessConfig, TrainConfig
from pneumoscope.errors import UsageError
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.graph import bundle_files
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference.bundle import load_bundle
from pneumoscope.inference.overlay import heatmap_name
from pneumoscope.progress import Progress
from pneumoscope.records import CLASS_NAMES
from pneumoscope.report.formatting import interval, metric_text, number, percent, plural
from pneumoscope.report.page import Section, data_uri, render_page
from pneumoscope.report.report_page import KeyNumber, ReportHead
from pneumoscope.storage import claim_folder, write_text
from pneumoscope.workflows.evaluate import evaluate_model, metrics_document
from pneumoscope.workflows.evaluation_folder import metrics_table
from pneumoscope.workflows.predict import run_prediction
from pneumoscope.workflows.train import run_training

PHANTOMS = 600
_SHOWN = 12
_KEYS = ("auc", "sensitivity", "specificity")
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
        "next  pneumoscope train DATA --out runs/a --weights bundled    (with your own X-rays)\n"
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


@dataclass(frozen=True, slots=True)
class DemoImage:
    """One synthetic X-ray of the test split and its result.

    Attributes:
        file: its name.
        label: 0 for NORMAL, 1 for PNEUMONIA.
        probability: of pneumonia, from 0 to 1.
        prediction: the class, `NORMAL` or `PNEUMONIA`.
        picture: the image, PNG bytes.
        overlay: the image under its Grad-CAM heatmap, PNG bytes.
    """

    file: str
    label: int
    probability: float
    prediction: str
    picture: bytes
    overlay: bytes


@dataclass(frozen=True, slots=True)
class DemoContent:
    """Everything on the page.

    Attributes:
        evaluation: of the trained model on the test split.
        trained_on: number of training images.
        images: the images of the gallery.
        links: paths relative to the page, each with a description.
    """

    evaluation: Evaluation
    trained_on: int
    images: Sequence[DemoImage]
    links: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _ImageView:
    """An image of the gallery, as text and data URIs."""

    file: str
    label: str
    css: str
    result: str
    picture: str
    overlay: str


@dataclass(frozen=True, slots=True)
class _GalleryView:
    """The gallery."""

    intro: str
    images: tuple[_ImageView, ...]


@dataclass(frozen=True, slots=True)
class _LinksView:
    """Links to further files."""

    intro: str
    links: tuple[tuple[str, str], ...]


def render_demo_page(content: DemoContent) -> str:
    """The page as HTML."""
    return render_page(
        "report.html.j2", _head(content), (_gallery_section(content), _links_section(content))
    )


def _head(content: DemoContent) -> ReportHead:
    found = content.evaluation
    level = percent(found.interval.level)
    return ReportHead(
        title="Demonstration",
        eyebrow="pneumoscope · synthetic X-rays",
        summary=(
            f"A model was trained on {plural(content.trained_on, 'synthetic X-ray')} and tested on "
            f"{found.n} others of {plural(found.patients, 'simulated patient')}."
        ),
        banner=(
            "All images are drawings. The numbers show that the software works, not how well a "
            "model performs on patients."
        ),
        keys=tuple(
            KeyNumber(
                metric_text(name).label,
                number(found.metrics[name].value),
                f"{level}: {interval(found.metrics[name])}",
            )
            for name in _KEYS
        ),
    )


def _gallery_section(content: DemoContent) -> Section:
    threshold = number(content.evaluation.threshold, 2)
    view = _GalleryView(
        f"{plural(len(content.images), 'test image')}, evenly sampled and not selected by result. "
        "Each is shown alone and under its Grad-CAM heatmap, which marks the regions that raise "
        f"the probability of pneumonia. Each heatmap has its own scale, and only the head of this "
        f"network was trained, so heatmaps are coarse. The threshold is {threshold}.",
        tuple(_image(image) for image in content.images),
    )
    return Section("gallery", "Predictions and heatmaps", "Gallery", "sections/gallery.html.j2",
                   view)  # fmt: skip


def _image(image: DemoImage) -> _ImageView:
    label = CLASS_NAMES[image.label]
    verdict = "correct" if image.prediction == label else "wrong"
    return _ImageView(
        image.file,
        label.lower(),
        label.lower(),
        f"{number(image.probability, 2)} → {image.prediction.lower()}, {verdict}",
        data_uri(image.picture),
        data_uri(image.overlay),
    )


def _links_section(content: DemoContent) -> Section:
    view = _LinksView(
        "The same files result from a training and an evaluation on your own images.",
        tuple(content.links),
    )
    return Section("files", "Reports of this model", "Reports", "sections/links.html.j2", view)
