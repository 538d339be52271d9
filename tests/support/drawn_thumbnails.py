"""`ThumbnailSet` drawn at random, with what an audit must find in them planted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumoscope.arrays import Float64Array
from pneumoscope.data.audit_record import Member
from pneumoscope.data.thumbnails import THUMBNAIL_SIDE, ThumbnailSet
from pneumoscope.records import CLASS_NAMES

PIXELS = THUMBNAIL_SIDE * THUMBNAIL_SIDE


def draw_thumbnails(
    rng: np.random.Generator,
    labels: npt.NDArray[np.int64],
    splits: list[str],
    patients: list[str],
    *,
    person: float = 0.0,
    disease: float = 0.0,
    pattern: Float64Array | None = None,
) -> ThumbnailSet:
    """One image per row: smooth noise, a picture of its person, and a picture of its class.

    Args:
        rng: draws everything.
        labels: (n,) 0 or 1.
        splits: n names.
        patients: n ids.
        person: share of the picture that all images of one patient have in common.
        disease: strength of the picture that class 1 has.
        pattern: (n, 1024) further pictures, in standard deviations.
    """
    names, codes = np.unique(patients, return_inverse=True)
    own = smooth(rng, len(labels))
    of_person = smooth(rng, len(names))[codes]
    of_class = smooth(rng, 1)
    grey = np.sqrt(1 - person) * own + np.sqrt(person) * of_person
    grey += disease * labels[:, None] * of_class
    if pattern is not None:
        grey += pattern
    pixels = np.clip(128 + 30 * grey, 0, 255)
    numbers = np.column_stack(
        [
            np.full(len(labels), 64.0),
            np.full(len(labels), 64.0),
            np.ones(len(labels)),
            rng.normal(5000, 200, len(labels)),
            pixels.mean(axis=1) / 255,
            pixels.std(axis=1) / 255,
        ]
    )
    members = tuple(
        Member(f"{split}/{CLASS_NAMES[label]}/{place}.png", split, CLASS_NAMES[label], patient)
        for place, (split, label, patient) in enumerate(zip(splits, labels, patients, strict=True))
    )
    return ThumbnailSet(
        thumbnails=pixels.astype(np.uint8),
        numbers=numbers,
        labels=labels,
        patients=np.array(patients),
        splits=np.array(splits),
        digests=tuple(str(place) for place in range(len(labels))),
        members=members,
    )


def smooth(rng: np.random.Generator, count: int) -> Float64Array:
    """(count, 1024) pictures of 8×8 coarse greys, mean 0, deviation 1 over all pictures."""
    coarse = rng.normal(size=(count, 8, 8))
    return np.asarray(np.kron(coarse, np.ones((4, 4))), np.float64).reshape(count, PIXELS)
