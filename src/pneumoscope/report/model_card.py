"""`MODEL_CARD.md` in the format of the Hugging Face Hub: YAML front matter, then Markdown.

The sections follow Mitchell et al. 2019, Model Cards for Model Reporting
(doi:10.1145/3287560.3287596). Equal contents give equal text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pneumoscope.records import Estimate
from pneumoscope.report.content import SplitCount
from pneumoscope.report.formatting import METRICS, count, interval, metric_text, number, percent
from pneumoscope.report.page import markdown_environment

_HUB_NAMES = {
    "auc": "roc_auc",
    "sensitivity": "recall",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "f1": "f1",
}
"""Names of the metrics on model hubs; other metrics are not in the front matter."""


@dataclass(frozen=True, slots=True)
class HeldOutTest:
    """An evaluation on images that took no part in training, calibration or threshold.

    Attributes:
        description: which images they are and what limits the test, one paragraph of Markdown.
        metrics: as in `metrics.json`.
        details: further Markdown, such as tables of changed images.
        limitations: Markdown list items on where the model is known to fail.
        data_name: of the images, for the index of model hubs.
    """

    description: str
    metrics: Mapping[str, Estimate]
    details: str = ""
    limitations: str = ""
    data_name: str = "held-out test"


@dataclass(frozen=True, slots=True)
class ModelCardContent:
    """The content of a model card; empty fields are left out.

    Attributes:
        name: of the model (`pneumoscope-frozen`).
        version: of pneumoscope that wrote it.
        architecture: one sentence (`DenseNet121 without its top, frozen, …`).
        weights_origin: origin of the initial weights, one sentence.
        preprocessing: steps from file to network input, in order, one sentence each.
        training: steps of training, in order, one sentence each.
        data_name: the data set's name.
        kermany: whether it is the Kermany data set; then its licence, DOI and limitations are
            stated.
        fingerprint: hex digest of the training data, `""` if it was not computed.
        counts: images and patients per split.
        evaluated_on: the images that the metrics were measured on, in words
            (`the validation split, …`).
        n: images evaluated.
        patients: patients evaluated.
        threshold: PNEUMONIA is predicted if the probability is at least this.
        threshold_rule: how the threshold was chosen, in words.
        level: confidence level of the intervals, in (0, 1).
        metrics: as in `metrics.json`.
        limitations: further limitations, one sentence each.
        backbone: as `--backbone` takes it; tags and citation follow it.
        made_for: patients of the age range in words, empty without one.
        held_out: a test on other images, if there was one; model hubs then show its metrics.
    """

    name: str
    version: str
    architecture: str
    weights_origin: str
    preprocessing: tuple[str, ...]
    training: tuple[str, ...]
    data_name: str
    kermany: bool
    counts: tuple[SplitCount, ...]
    evaluated_on: str
    n: int
    patients: int
    threshold: float
    threshold_rule: str
    level: float
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    fingerprint: str = ""
    limitations: tuple[str, ...] = ()
    held_out: HeldOutTest | None = None
    backbone: str = "densenet121"
    made_for: str = ""


def model_card(content: ModelCardContent) -> str:
    """Render the model card as Markdown, ending in a line break."""
    shown = content.held_out or content
    template = markdown_environment().get_template("model_card.md.j2")
    return template.render(
        card=content,
        results=_index_entries(shown.metrics),
        indexed_data=shown.data_name,
        held_out_rows=_metric_rows(content.held_out.metrics) if content.held_out else [],
        rows=_metric_rows(content.metrics),
        counts=[
            (c.name, count(c.normal), count(c.pneumonia), count(c.patients)) for c in content.counts
        ],
        headline=_headline(content),
        level=percent(content.level),
        images=count(content.n),
        patients=count(content.patients),
        threshold=number(content.threshold),
    )


def _index_entries(metrics: Mapping[str, Estimate]) -> list[tuple[str, str, str]]:
    """Metrics for the front matter: type, label and value, with label and value quoted for YAML."""
    return [
        (hub_name, json.dumps(metric_text(name).label), f"{value:.4f}")
        for name, hub_name in _HUB_NAMES.items()
        if (value := metrics.get(name, Estimate(None)).value) is not None
    ]


def _metric_rows(metrics: Mapping[str, Estimate]) -> list[tuple[str, str, str]]:
    known = [name for name in METRICS if name in metrics]
    other = [name for name in metrics if name not in METRICS]
    rows = []
    for name in known + other:
        estimate, text = metrics[name], metric_text(name)
        value = number(estimate.value)
        if estimate.value is None:
            value = f"{value} ({text.undefined})"
        rows.append((text.label, value, interval(estimate)))
    return rows


def _headline(content: ModelCardContent) -> str:
    parts = [
        f"{metric_text(name).label} {number(estimate.value)} ({interval(estimate)})"
        for name in ("auc", "sensitivity", "specificity")
        if (estimate := content.metrics.get(name, Estimate(None))).value is not None
    ]
    return ", ".join(parts)
