"""What storing weights in half precision changes of the predictions.

    python benchmarks/half_precision.py SPLIT_CSV --exact RUN --stored MODEL [--split test]

Two bundles of one training, written with `store = "float32"` and `"float16"`. Both run in
float32, with the calibration and threshold of the stored one and without an input check, so that
nothing but the rounding of weights differs. Prints Markdown; leaves with 1 if a probability differs
by more than `--limit` or a decision is changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from pneumoscope.data.index import index
from pneumoscope.errors import PneumoscopeError
from pneumoscope.inference.bundle import Bundle, load_bundle
from pneumoscope.inference.certificates import Agreement, compare
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import TerminalProgress
from pneumoscope.records import SPLITS, ImageRecord, Split
from pneumoscope.workflows.scoring import Scored, score_all

LIMIT = 2e-3
"""Largest difference of a probability that the shipped model may show (issue 3)."""


def scored(bundle: Bundle, under: Bundle, records: Sequence[ImageRecord], name: str) -> Scored:
    """What the weights of one bundle predict under the manifest of another."""
    told = replace(bundle, manifest=replace(under.manifest, files=bundle.manifest.files))
    predictor = Predictor(told.manifest, OpenVinoBackend.load(told, "f32"))
    return score_all(records, predictor, name, TerminalProgress())


def agreement(data: Path, split: Split, exact: Bundle, stored: Bundle) -> Agreement:
    """Of both, over the images of a split that can be read."""
    records = index(data).subset(split).records
    before = scored(exact, stored, records, "float32 weights")
    after = scored(stored, stored, records, "float16 weights")
    threshold = stored.manifest.threshold.value
    return compare(before.labels(), before.probabilities(), after.probabilities(), threshold, ())


def report(found: Agreement, split: str) -> str:
    """The result as Markdown."""
    return (
        f"Weights in float32 and as stored, both run in float32, split {split}, "
        f"{date.today().isoformat()}.\n\n"
        "| images | largest difference of a probability | mean | decisions changed | AUC |\n"
        "| ---: | ---: | ---: | ---: | ---: |\n"
        f"| {found.images} | {found.largest_difference:.6f} | {found.mean_difference:.7f} "
        f"| {found.decisions_changed} | {found.auc_before:.5f} → {found.auc_after:.5f} |"
    )


def main() -> int:
    """Compare from the command line; the exit code is 1 past the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a split.csv or a folder")
    parser.add_argument("--exact", type=Path, required=True, help="run or bundle in float32")
    parser.add_argument("--stored", default="default", help="run or bundle in float16")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--limit", type=float, default=LIMIT)
    asked = parser.parse_args()
    try:
        exact, stored = load_bundle(asked.exact), load_bundle(asked.stored)
        found = agreement(asked.data, asked.split, exact, stored)
    except PneumoscopeError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(report(found, asked.split))
    return int(found.largest_difference > asked.limit or found.decisions_changed > 0)


if __name__ == "__main__":
    sys.exit(main())
