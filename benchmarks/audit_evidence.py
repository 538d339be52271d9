"""Whether the audit finds what was planted in real images: wrong labels, a leak, false patient ids.

    python benchmarks/audit_evidence.py DATA [--flips 0.02] [--seed 0]

Audits DATA four times: as it is; with a share of the labels flipped; with one image of every
patient who has several moved to `test`; with the images of other patients in `test` under the ids
of `train`. Prints Markdown: what the audit found of each, and how long it took.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from pneumoscope.data.audit import audit
from pneumoscope.data.audit_record import Audit
from pneumoscope.data.index import index
from pneumoscope.records import Dataset, ImageRecord

_SIDE_BY_SIDE = 300
"""Patients whose ids stand for others, in the last case."""


def flipped(data: Dataset, share: float, rng: np.random.Generator) -> tuple[Dataset, set[Path]]:
    """The data set with that share of labels wrong, and which images they are."""
    wrong = set(rng.choice(len(data.records), round(share * len(data.records)), replace=False))
    records = tuple(
        replace(record, label=1 - record.label) if place in wrong else record
        for place, record in enumerate(data.records)
    )
    return replace(data, records=records), {data.records[place].path for place in wrong}


def leaky(data: Dataset) -> Dataset:
    """One image of every patient with several in `test`, all else in `train`."""
    seen: set[tuple[str, int]] = set()
    images = by_patient(data)
    records = []
    for record in data.records:
        key = (record.patient, record.label)
        first = key not in seen and len(images[key]) > 1
        seen.add(key)
        records.append(replace(record, split="test" if first else "train"))
    return replace(data, records=tuple(records))


def renumbered(data: Dataset) -> Dataset:
    """Half of some PNEUMONIA patients in `test`, under the ids of the other half in `train`."""
    ids = sorted({patient for patient, label in by_patient(data) if label == 1})
    count = min(_SIDE_BY_SIDE, len(ids) // 2)
    alias = dict(zip(ids[-count:], ids[:count], strict=True))
    records = tuple(
        replace(record, patient=alias[record.patient], split="test")
        if record.patient in alias
        else replace(record, split="train")
        for record in data.records
    )
    return replace(data, records=records)


def by_patient(data: Dataset) -> dict[tuple[str, int], list[ImageRecord]]:
    """Images of each patient and label."""
    images = defaultdict(list)
    for record in data.records:
        images[record.patient, record.label].append(record)
    return images


def across(found: Audit) -> str:
    """What was found about ids in two splits."""
    codes = [f.code for f in found.findings if f.code.startswith("shared_patients_")]
    told = [
        f"{one.where}: {one.difference:.3f} ({one.low:.3f} to {one.high:.3f}), p {one.p_value:.3f}"
        for one in found.evidence.likeness
        if one.kind == "across"
    ]
    return f"{', '.join(codes) or 'nothing'}; {'; '.join(told)}"


def main() -> None:
    """Run the four and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--flips", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    data = index(asked.data, refuse_leaks=False)
    started = time.perf_counter()
    plain = audit(data)
    seconds = time.perf_counter() - started
    print(f"{len(data.records)} images, one audit {seconds:.1f} s.\n")
    print("| planted | what the audit found |\n| --- | --- |")
    review = plain.evidence.labels
    doubts = len(review.doubts) if review else 0
    print(f"| nothing | {doubts} doubtful labels; {across(plain)} |")
    wrong_data, wrong = flipped(data, asked.flips, np.random.default_rng(asked.seed))
    review = audit(wrong_data).evidence.labels
    named = [data.root / doubt.path for doubt in review.doubts] if review else []
    hits = len(wrong & set(named))
    first = len(wrong & set(named[: len(wrong)]))
    print(
        f"| {len(wrong)} flipped labels | {len(named)} doubtful, {hits} of them flipped "
        f"({first} of the first {len(wrong)}; by chance "
        f"{len(named) * len(wrong) / len(data.records):.1f}) |"
    )
    print(f"| an image of every patient with several in test | {across(audit(leaky(data)))} |")
    print(f"| other patients under the same ids in test | {across(audit(renumbered(data)))} |")


if __name__ == "__main__":
    main()
