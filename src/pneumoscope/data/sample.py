"""Some of the images, where all are too many: whole patients, each class in its share.

Comes in: labelled records. Goes out: some of them, in their order. Knows nothing of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pneumoscope.records import ImageRecord


def sample_patients(
    records: Sequence[ImageRecord], limit: int, seed: int
) -> tuple[ImageRecord, ...]:
    """At most `limit` records, patients drawn at random within each class.

    A class keeps its share of the images, at least one. Patients come in whole; only the last one
    that is drawn of a class may lose the images that would be too many. A patient with images of
    both classes may be drawn for either.

    Args:
        records: n labelled images.
        limit: 2 or more.
        seed: the same gives the same images, in whatever order the records stand.
    """
    if len(records) <= limit:
        return tuple(records)
    places = sorted(range(len(records)), key=lambda k: (records[k].patient, str(records[k].path)))
    kept: list[int] = []
    positives = sum(record.label for record in records)
    of_positives = min(max(round(limit * positives / len(records)), 1), limit - 1)
    rng = np.random.default_rng(seed)
    for label, quota in ((0, limit - of_positives), (1, of_positives)):
        by_patient: dict[str, list[int]] = {}
        for place in places:
            if records[place].label == label:
                by_patient.setdefault(records[place].patient, []).append(place)
        patients = list(by_patient.values())
        drawn = [place for k in rng.permutation(len(patients)) for place in patients[k]]
        kept += drawn[:quota]
    return tuple(records[place] for place in sorted(kept))
