"""Intervals for every metric: our vectorised bootstrap against a loop over scikit-learn.

    python benchmarks/bootstrap.py [--images 5000] [--resamples 2000] [--loop 50]

Both resample patients and compute all eleven metrics of `metrics.json`; the loop runs `--loop`
resamples and is scaled up. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from datetime import date
from typing import Any

import numpy as np
from sklearn import metrics as sk

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.intervals import bootstrap_metrics


def simulated(images: int) -> tuple[Any, Any, Any]:
    """Labels, probabilities and patients of 1 to 3 images each; AUC about 0.95."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, images)
    logits = generator.normal(2.3 * labels, 1.0)
    patients = np.repeat(np.arange(images), generator.integers(1, 4, images))[:images]
    return labels, 1 / (1 + np.exp(1.15 - logits)), patients


def loop(labels: Any, scores: Any, patients: Any, resamples: int) -> float:
    """Seconds of the way that a user would write it."""
    generator = np.random.default_rng(0)
    ids = np.unique(patients)
    rows = {patient: np.flatnonzero(patients == patient) for patient in ids}
    started = time.perf_counter()
    for _ in range(resamples):
        chosen = np.concatenate([rows[k] for k in generator.choice(ids, len(ids))])
        y, p = labels[chosen], scores[chosen]
        called = (p >= 0.5).astype(int)
        sk.accuracy_score(y, called)
        sk.balanced_accuracy_score(y, called)
        sk.recall_score(y, called)
        sk.recall_score(y, called, pos_label=0)
        sk.precision_score(y, called)
        sk.precision_score(y, called, pos_label=0)
        sk.f1_score(y, called)
        sk.roc_auc_score(y, p)
        sk.average_precision_score(y, p)
        sk.brier_score_loss(y, p)
        order = np.argsort(p)
        bins = np.array_split(order, 15)
        sum(abs(p[b].mean() - y[b].mean()) * len(b) for b in bins)
    return time.perf_counter() - started


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--loop", type=int, default=50)
    asked = parser.parse_args()
    labels, scores, patients = simulated(asked.images)
    names = patients.astype(str)
    started = time.perf_counter()
    bootstrap_metrics(labels, scores, names, 0.5, IntervalConfig(resamples=asked.resamples))
    ours = time.perf_counter() - started
    theirs = loop(labels, scores, patients, asked.loop) * asked.resamples / asked.loop
    print(
        f"{asked.resamples} resamples of {asked.images} images, all metrics, "
        f"{date.today().isoformat()}, {os.cpu_count()} cores, Python {platform.python_version()}.\n"
        "\n| way | seconds | ratio |\n| --- | --- | --- |\n"
        f"| loop over scikit-learn (from {asked.loop} resamples) | {theirs:.1f} | 1 × |\n"
        f"| pneumoscope | {ours:.2f} | {theirs / ours:.0f} × |"
    )


if __name__ == "__main__":
    main()
