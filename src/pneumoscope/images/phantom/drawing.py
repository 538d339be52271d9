"""One phantom: which streams of chance decide what, and what a film of a patient is.

Comes in: a seed, a patient's name, the number of a film, a class. Goes out: a `Phantom`.
Knows nothing of files, splits or how a shape becomes pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import UsageError
from pneumoscope.images.augment import random_stream
from pneumoscope.images.phantom.anatomy import Anatomy, draw_anatomy
from pneumoscope.images.phantom.film import expose
from pneumoscope.images.phantom.lesion import (
    Chest,
    Lesion,
    Subtype,
    consolidation,
    interstitial,
    no_lesion,
)
from pneumoscope.images.phantom.raster import Pose

SMALLEST_SIZE = 64
"""Below this many pixels a side ribs and vessels are thinner than a pixel."""


@dataclass(frozen=True)
class Phantom:
    """One film of an imaginary child.

    Attributes:
        pixels: float32 (h, w) in [0, 1]; 1 is white, where most was absorbed.
        lungs: bool (h, w), the lung fields beside heart and mediastinum, above the domes.
        lesion: bool (h, w), where pneumonia is seen; inside `lungs`; empty for NORMAL.
        label: 0 for NORMAL, 1 for PNEUMONIA.
        subtype: `bacteria` (a lobar consolidation), `virus` (interstitial change) or `""`.
        patient: the name that was given.
        film: the number that was given.
        age_years: 1 to 5.
    """

    pixels: NDArray[np.float32]
    lungs: NDArray[np.bool_]
    lesion: NDArray[np.bool_]
    label: int
    subtype: Subtype
    patient: str
    film: int
    age_years: int


def draw(
    seed: int, patient: str, film: int, label: int, size: int = 320, subtype: Subtype | None = None
) -> Phantom:
    """Draw one film; equal arguments give equal pixels.

    A patient keeps anatomy and illness from film to film; pose, breath, dose, noise, frame and
    marker are the film's own, as is (somewhat) how dense the lesion looks.

    Args:
        seed: of the whole collection.
        patient: any name.
        film: which film of the patient.
        label: 0 for NORMAL, 1 for PNEUMONIA.
        size: side in pixels, at least `SMALLEST_SIZE`.
        subtype: which pneumonia; by default the patient's stream decides. `""` for NORMAL.

    Raises:
        UsageError: a label other than 0 or 1, a subtype that does not fit it, or too small a size.
    """
    if label not in (0, 1):
        raise UsageError(f"phantom: label is {label!r}, wanted 0 (NORMAL) or 1 (PNEUMONIA).")
    if size < SMALLEST_SIZE:
        raise UsageError(f"phantom: size is {size} pixels, wanted at least {SMALLEST_SIZE}.")
    if subtype not in ((None, "") if label == 0 else (None, "bacteria", "virus")):
        raise UsageError(
            f"phantom: subtype {subtype!r} does not go with label {label}. "
            "Wanted 'bacteria' or 'virus' with 1, none with 0."
        )
    illness = random_stream("illness", seed, patient)
    by_chance: Subtype = "bacteria" if illness.random() < 0.5 else "virus"
    kind: Subtype = (subtype or by_chance) if label else ""
    anatomy = draw_anatomy(random_stream("anatomy", seed, patient))
    strength = float(random_stream("course", seed, patient, film).uniform(0.85, 1.15))

    def draw_lesion(pose: Pose, chest: Chest) -> Lesion:
        return _lesion(kind, illness, anatomy, pose, chest, strength)

    taken = expose(anatomy, random_stream("film", seed, patient, film), size, draw_lesion)
    return Phantom(
        taken.pixels, taken.lungs, taken.lesion, label, kind, patient, film, anatomy.age_years
    )


def _lesion(
    kind: Subtype,
    rng: np.random.Generator,
    anatomy: Anatomy,
    pose: Pose,
    chest: Chest,
    strength: float,
) -> Lesion:
    if kind == "bacteria":
        return consolidation(rng, anatomy, pose, chest, strength)
    if kind == "virus":
        return interstitial(rng, pose, chest, strength)
    return no_lesion(chest)
