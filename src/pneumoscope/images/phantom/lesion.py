"""What pneumonia adds to a film: the opacity of a lobe, or lines and nodules in both lungs.

Comes in: the pose, the air in the lungs, the bronchi, the random stream of one patient's illness.
Goes out: how much more is absorbed at each pixel, exactly 0 outside the lungs, and the mask of
what can be seen of it. Knows nothing of exposure, noise or frames: those never see the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.images.phantom.anatomy import SIDES, Anatomy
from pneumoscope.images.phantom.raster import Picture, Pose

Subtype = Literal["bacteria", "virus", ""]


@dataclass(frozen=True, slots=True)
class Lobe:
    """A lobe as a frontal film shows it: u from mediastinum 0 to flank 1, v from apex 0 to dome 1.

    `centre` is (u, v) of its middle; `v_range` and `u_range` bound it, one end may lie open.
    """

    side: int
    centre: tuple[float, float]
    u_range: tuple[float, float]
    v_range: tuple[float, float]


LOBES = (
    Lobe(SIDES[0], (0.45, 0.30), (-1.0, 2.0), (-1.0, 0.50)),  # right upper, above the fissure
    Lobe(SIDES[0], (0.26, 0.78), (-1.0, 0.70), (0.52, 2.0)),  # right middle, beside the heart
    Lobe(SIDES[0], (0.60, 0.84), (-1.0, 2.0), (0.44, 2.0)),  # right lower
    Lobe(SIDES[1], (0.48, 0.32), (-1.0, 2.0), (-1.0, 0.60)),  # left upper
    Lobe(SIDES[1], (0.48, 0.70), (-1.0, 0.85), (0.48, 2.0)),  # lingula
    Lobe(SIDES[1], (0.68, 0.88), (-1.0, 2.0), (0.50, 2.0)),  # left lower
)

_VISIBLE = 0.3


@dataclass(frozen=True, slots=True)
class Lesion:
    """`absorbed`: what is added, float32 (h, w); `mask`: where it is seen, bool (h, w)."""

    absorbed: Picture
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Chest:
    """What a lesion is drawn into.

    `air` is how much less the lungs absorb than soft tissue, 0 outside; `lungs` the mask that a
    lesion may not leave; `vessels` and `bronchi` are pictures of lines in [0, 1].
    """

    air: Picture
    lungs: NDArray[np.bool_]
    vessels: Picture
    bronchi: Picture


def no_lesion(chest: Chest) -> Lesion:
    """A healthy child's: nothing, nowhere."""
    return Lesion(np.zeros_like(chest.air), np.zeros_like(chest.lungs))


def consolidation(
    rng: np.random.Generator, anatomy: Anatomy, pose: Pose, chest: Chest, strength: float
) -> Lesion:
    """Alveoli of a part of one lobe full of fluid, as bacteria cause: a soft-edged opacity.

    Air left in the bronchi shows as dark branches (air bronchograms). `strength` multiplies the
    share of the air that is gone; 1 for the typical film of the patient.
    """
    lobe = LOBES[int(rng.integers(len(LOBES)))]
    share = rng.uniform(0.6, 0.95)
    radius = math.exp(rng.uniform(math.log(0.34), math.log(0.75)))
    stretch = math.exp(rng.uniform(-0.3, 0.3))
    softness = rng.uniform(0.15, 0.38)
    u, v = (middle + rng.uniform(-0.13, 0.13) for middle in lobe.centre)
    x, y = pose.coordinates()
    top, width = -0.95, 0.82
    dome = anatomy.domes[0 if lobe.side < 0 else 1]
    across = (lobe.side * x - 0.15) / np.float32(width)
    along = (y - top) / np.float32(dome - top)
    distance = np.hypot(
        (across - u) * (width / (radius * stretch)),
        (along - v) * ((dome - top) * stretch / radius),
    )
    distance += 0.14 * pose.cloud(rng, 0.22)
    gate = _between(across, lobe.u_range, 0.05) * _between(along, lobe.v_range, 0.022)
    weight = _logistic((1 - distance) / np.float32(softness)) * gate
    weight *= lobe.side * x > 0
    filled = weight * (0.9 + 0.1 * np.clip(pose.cloud(rng, 0.09), -2, 2))
    filled *= 1 - rng.uniform(0.1, 0.4) * chest.bronchi
    absorbed = chest.air * np.clip(share * strength * filled, 0, 0.9) * chest.lungs
    return Lesion(absorbed.astype(np.float32), (weight > _VISIBLE) & chest.lungs)


def interstitial(rng: np.random.Generator, pose: Pose, chest: Chest, strength: float) -> Lesion:
    """Swollen walls between alveoli and about bronchi, as viruses cause: nets, nodules, cuffs.

    On both sides, most about the hila; `strength` as for `consolidation`.
    """
    share = rng.uniform(0.45, 0.85) * strength
    reach = rng.uniform(0.4, 0.8)
    nets, nodules, cuffs, haze = (2.2 * rng.dirichlet((2.5, 1.5, 2.0, 3.5))).tolist()
    x, y = pose.coordinates()
    to_hilum = np.hypot(np.abs(x) - 0.3, y - 0.05) / np.float32(reach)
    weight = 0.25 + 0.75 * np.exp(-(to_hilum**2))
    weight *= np.clip(0.8 + 0.25 * pose.cloud(rng, 0.3), 0.2, 1.3)
    mesh = rng.uniform(0.036, 0.056)
    net = _net(pose.cloud(rng, mesh)) + _net(pose.cloud(rng, 0.62 * mesh))
    spots = np.clip(pose.cloud(rng, 0.045) - 0.8, 0, 1)
    pattern = nets * 0.5 * net + nodules * 1.2 * spots + cuffs * chest.vessels + haze * 0.6
    absorbed = chest.air * np.clip(share * weight * pattern, 0, 0.9) * chest.lungs
    return Lesion(absorbed.astype(np.float32), (weight > _VISIBLE) & chest.lungs)


def _net(cloud: Picture) -> Picture:
    """Where fine noise crosses zero are thin winding lines that meet."""
    result: Picture = np.clip(1 - np.abs(cloud), 0, 1)
    return result


def _logistic(value: Picture) -> Picture:
    result: Picture = np.reciprocal(1 + np.exp(-np.clip(value, -30, 30)))
    return result


def _between(value: Picture, limits: tuple[float, float], softness: float) -> Picture:
    low, high = limits
    return _logistic((value - low) / np.float32(softness)) * _logistic(
        (high - value) / np.float32(softness)
    )
