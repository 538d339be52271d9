"""The page of the demonstration: key numbers, a gallery of heatmaps, links to the other files.

The page is one HTML file that opens from disk. It shows synthetic X-rays only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.records import CLASS_NAMES
from pneumoscope.report.formatting import interval, metric_text, number, percent, plural
from pneumoscope.report.page import Section, data_uri, render_page
from pneumoscope.report.report_page import KeyNumber, ReportHead

_KEYS = ("auc", "sensitivity", "specificity")


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
    return render_page("report.html.j2", _head(content), (_gallery(content), _links(content)))


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


def _gallery(content: DemoContent) -> Section:
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


def _links(content: DemoContent) -> Section:
    view = _LinksView(
        "The same files result from a training and an evaluation on your own images.",
        tuple(content.links),
    )
    return Section("files", "Reports of this model", "Reports", "sections/links.html.j2", view)
