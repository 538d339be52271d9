"""`MODEL_CARD.md`, in the form that Hugging Face reads: YAML front matter, then prose.

Comes in: `ModelCardContent`. Goes out: Markdown text, the same for the same input.
Loads no model and writes no file: the bundle's writer does.
Form: Mitchell et al. 2019, Model Cards for Model Reporting (doi:10.1145/3287560.3287596).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pneumoscope.records import Estimate
from pneumoscope.report.content import SplitCount
from pneumoscope.report.formatting import (
    METRICS,
    count,
    interval,
    metric_text,
    number,
    percent,
)
from pneumoscope.report.page import markdown_environment

_HUB_NAMES = {
    "auc": "roc_auc",
    "sensitivity": "recall",
    "specificity": "specificity",
    "accuracy": "accuracy",
    "f1": "f1",
}
"""What model hubs call our metrics; the others stay out of the front matter."""


@dataclass(frozen=True, slots=True)
class ModelCardContent:
    """What a model card states; what the workflow does not know stays empty and is left out.

    Attributes:
        name: of the model (`pneumoscope-frozen`).
        version: of pneumoscope that wrote it.
        architecture: one sentence (`DenseNet121 without its top, frozen, …`).
        weights_origin: where the initial weights come from, one sentence.
        preprocessing: steps from file to network input, in order, one sentence each.
        training: steps of training, in order, one sentence each.
        data_name: the data set's name.
        kermany: whether it is the Kermany data set (then with its licence, DOI and known limits).
        fingerprint: hex digest of the training data, `""` if not taken.
        counts: images and patients per split.
        evaluated_on: which images the metrics are from, in words (`the validation split, …`).
        n: images evaluated.
        patients: patients evaluated.
        threshold: PNEUMONIA is called from this probability up.
        threshold_rule: how it was chosen, in words.
        level: of the intervals, in (0, 1).
        metrics: as in `metrics.json`.
        limitations: further ones, one sentence each.
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


def model_card(content: ModelCardContent) -> str:
    """The model card as Markdown, ending in a line break."""
    template = markdown_environment().get_template("model_card.md.j2")
    return template.render(
        card=content,
        results=_index_entries(content),
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


def _index_entries(content: ModelCardContent) -> list[tuple[str, str, str]]:
    """Metrics for the front matter: type, label and value, the latter two ready for YAML."""
    return [
        (hub_name, json.dumps(metric_text(name).label), f"{value:.4f}")
        for name, hub_name in _HUB_NAMES.items()
        if (value := content.metrics.get(name, Estimate(None)).value) is not None
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
