"""The chest anatomy of one imaginary small child: outlines and centre lines in its own coordinates.

The input is the random generator of one patient; the output is an `Anatomy` of points. The origin
is the centre of the thorax, the x axis points to the patient's left (the right of the image), the y
axis points to the feet, and the unit is half the width of the rib cage. The anatomy does not depend
on the class.

The proportions are those of a frontal X-ray of a child of 1–5 years: a rib cage about as wide as
high, ribs closer to horizontal than an adult's, a heart of about half the cage, often a thymus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""Shape (n, 2): x and y in units of half the rib cage."""

SIDES = (-1, 1)
"""The patient's right, which is on the left of the image, and the patient's left."""

RIB_PAIRS = 10
_RIB_TOP = -0.94
_VESSEL_LEVELS = 6


@dataclass(frozen=True, slots=True)
class Vessels:
    """Straight segments of the pulmonary arteries; thick ones near the hilum come last.

    `starts` and `ends` have shape (n, 2), `widths` and `levels` (0 at the hilum) shape (n,).
    """

    starts: Points
    ends: Points
    widths: Points
    levels: Points


@dataclass(frozen=True, slots=True)
class Rib:
    """Outlines of one rib: posterior part (spine to flank), anterior part (flank to cartilage)."""

    posterior: Points
    anterior: Points


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Everything that is the same on all images of a child.

    Outlines are closed polygons; `lungs` are in the order of `SIDES`. `stomach` holds the centre
    and the half axes of the gas bubble. `vertebrae` has shape (n, 4): x, y, width, height.
    The densities and `lung_air` scale the extra absorption of bones and vessels, and the reduced
    absorption of the lungs.
    """

    age_years: int
    trunk: Points
    lungs: tuple[Points, Points]
    heart: Points
    domes: tuple[float, float]
    ribs: tuple[Rib, ...]
    clavicles: tuple[Points, Points]
    scapulae: tuple[Points, Points]
    vertebrae: Points
    spine_line: Points
    trachea: Points
    vessels: Vessels
    stomach: tuple[float, float, float, float]
    bone_density: float
    vessel_density: float
    lung_air: float


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw the anatomy of one child from `rng`."""
    age = int(rng.integers(1, 6))
    taper = rng.uniform(-0.07, 0.07)
    height = rng.uniform(0.90, 1.12) + 0.015 * (age - 3)
    domes = _dome_heights(rng, height)
    heart_size = rng.uniform(0.84, 1.12) - 0.02 * (age - 3)
    spine_line = _spine_line(rng)
    return Anatomy(
        age_years=age,
        trunk=_trunk(rng, taper),
        lungs=(
            _lung(rng, -1, height, taper, domes[0]),
            _lung(rng, 1, height, taper, domes[1]),
        ),
        heart=_heart(rng, heart_size, domes),
        domes=domes,
        ribs=_ribs(rng, height, taper),
        clavicles=_clavicles(rng),
        scapulae=_scapulae(rng),
        vertebrae=_vertebrae(rng, spine_line),
        spine_line=spine_line,
        trachea=_trachea(rng),
        vessels=_vessels(rng, height),
        stomach=(
            rng.uniform(0.36, 0.56),
            domes[1] + rng.uniform(0.2, 0.28),
            rng.uniform(0.14, 0.27),
            rng.uniform(0.09, 0.16),
        ),
        bone_density=rng.uniform(0.75, 1.2),
        vessel_density=rng.uniform(0.7, 1.25),
        lung_air=rng.uniform(0.88, 1.08),
    )


def smooth_closed(points: Points, per_piece: int = 10) -> Points:
    """A closed Catmull-Rom curve through `points` (Catmull & Rom 1974), `per_piece` per gap."""
    before, after, later = (np.roll(points, -k, axis=0) for k in (-1, 1, 2))
    t = np.linspace(0, 1, per_piece, endpoint=False)[:, None]
    weights = (
        0.5 * (-t + 2 * t**2 - t**3),
        0.5 * (2 - 5 * t**2 + 3 * t**3),
        0.5 * (t + 4 * t**2 - 3 * t**3),
        0.5 * (t**3 - t**2),
    )
    pieces = sum(
        weight[None] * point[:, None]
        for weight, point in zip(weights, (before, points, after, later), strict=True)
    )
    curve: Points = np.asarray(pieces).reshape(-1, 2)
    return curve


def band(line: Points, widths: Points | float) -> Points:
    """The outline of a strip about `line`, `widths` (scalar or one per point) wide.

    Many lines of as many points at once, shape (…, n, 2), give outlines of shape (…, 2n, 2).
    """
    ahead = np.concatenate([line[..., 1:, :], 2 * line[..., -1:, :] - line[..., -2:-1, :]], -2)
    behind = np.concatenate([2 * line[..., :1, :] - line[..., 1:2, :], line[..., :-1, :]], -2)
    along = ahead - behind
    normal = along[..., ::-1] * (-1, 1)
    normal /= np.maximum(np.hypot(along[..., :1], along[..., 1:]), 1e-9)
    half = normal * (np.asarray(widths)[..., None] / 2)
    return np.concatenate([line + half, (line - half)[..., ::-1, :]], axis=-2)


def cage_half_width(y: NDArray[np.float64] | float, taper: float) -> NDArray[np.float64]:
    """Half the inner width of the rib cage at height `y`: narrow at the apex, wide at the base."""
    heights = (-1.1, -0.95, -0.8, -0.6, -0.35, 0.0, 0.4, 0.8, 1.3)
    widths = (0.48, 0.62, 0.73, 0.83, 0.91, 0.97, 1.0, 1.0, 0.97)
    base = np.interp(y, heights, widths)
    return np.asarray(base * (1 + taper * (np.asarray(y) - 0.2)))


def _jitter(rng: np.random.Generator, points: list[tuple[float, float]], reach: float) -> Points:
    array = np.array(points)
    return array + rng.uniform(-reach, reach, array.shape)


def _dome_heights(rng: np.random.Generator, height: float) -> tuple[float, float]:
    right = 0.56 * height + rng.uniform(-0.06, 0.08)
    return right, right + rng.uniform(0.03, 0.11)


def _lung(rng: np.random.Generator, side: int, height: float, taper: float, dome: float) -> Points:
    lateral = np.array([-0.72, -0.45, -0.15, 0.15, 0.42]) * height
    outer = [(float(cage_half_width(y, taper)) - 0.02, float(y)) for y in lateral]
    floor = dome + rng.uniform(0.25, 0.36)
    corner = float(cage_half_width(floor, taper)) - 0.03
    points = [
        (0.17, -0.84 * height),
        (0.33, -0.93 * height),
        (0.53, -0.88 * height),
        *outer,
        (corner, floor - 0.1),
        (corner - 0.015, floor),
        (corner - 0.09, floor - 0.10),
        (0.66, dome + 0.055),
        (0.44, dome),
        (0.20, dome + 0.05),
        (0.10, dome + 0.02),
        (0.11, 0.2),
        (0.14, -0.3),
        (0.14, -0.6 * height),
    ]
    outline = smooth_closed(_jitter(rng, points, 0.012))
    return outline * (side, 1)


def _heart(rng: np.random.Generator, size: float, domes: tuple[float, float]) -> Points:
    thymus = rng.uniform(0.0, 0.12) * (rng.random() < 0.5)
    drop = rng.uniform(-0.04, 0.06)
    left = [
        (0.14, -1.2),
        (0.15, -0.85),
        (0.18 + thymus, -0.62),
        (0.24 + thymus, -0.42),
        (0.27 * size, -0.22),
        (0.33 * size, -0.04 + drop),
        (0.47 * size, 0.16 + drop),
        (0.60 * size, 0.38 + drop),
        (0.63 * size, 0.54 + drop),
        (0.52 * size, domes[1] + 0.12),
        (0.2, domes[1] + 0.25),
    ]
    right = [
        (-0.15, domes[0] + 0.25),
        (-0.26 * size, domes[0] + 0.10),
        (-0.34 * size, 0.42 + drop),
        (-0.34 * size, 0.22 + drop),
        (-0.27 * size, 0.02 + drop),
        (-0.19 - 0.5 * thymus, -0.25),
        (-0.18 - 0.7 * thymus, -0.55),
        (-0.15, -0.85),
        (-0.14, -1.2),
    ]
    return smooth_closed(_jitter(rng, left + right, 0.012))


def _trunk(rng: np.random.Generator, taper: float) -> Points:
    wall = rng.uniform(0.07, 0.17)
    neck = rng.uniform(0.30, 0.38)
    shoulder = rng.uniform(-1.16, -1.02)
    half = [
        (neck + 0.05, -2.6),
        (neck, -1.5),
        (neck + 0.04, -1.32),
        (0.62, shoulder - 0.06),
        (0.98, shoulder + 0.03),
        (1.18, shoulder + 0.22),
        (1.12 + wall, -0.52),
        (1.03 + wall, -0.2),
        (float(cage_half_width(0.3, taper)) + wall, 0.3),
        (float(cage_half_width(0.9, taper)) + wall, 0.9),
        (0.98 + wall, 1.4),
        (1.02 + wall, 2.2),
        (1.05 + wall, 3.0),
    ]
    left = _jitter(rng, half, 0.015)
    right = _jitter(rng, half, 0.015) * (-1, 1)
    return smooth_closed(np.concatenate([left, right[::-1]]))


def _ribs(rng: np.random.Generator, height: float, taper: float) -> tuple[Rib, ...]:
    """Each rib runs from the spine to the flank and forwards further down, as a half ellipse."""
    slope = rng.uniform(0.8, 1.25)
    width = rng.uniform(0.044, 0.062)
    spacing = rng.uniform(0.165, 0.182) * height
    number = np.tile(np.arange(RIB_PAIRS), len(SIDES))[:, None]
    side = np.repeat(SIDES, RIB_PAIRS)[:, None]
    start = _RIB_TOP * height + spacing * number + rng.uniform(-0.012, 0.012, number.shape)
    drop = slope * (0.26 + 0.26 * np.minimum(number, 6) / 6) * np.where(number == 0, 0.75, 1)
    reach = cage_half_width(start + 0.5 * drop, taper) + 0.02
    end = 0.76 * math.pi - 0.03 * np.maximum(number - 6, 0)
    angle = end * np.linspace(0, 1, 48)
    x = side * (0.09 + (reach - 0.09) * np.sin(angle) ** 0.92)
    y = start + drop * (1 - np.cos(angle)) / 2 - 0.035 * np.sin(2 * angle)
    lines = np.stack([x, y], axis=-1)
    behind, front = lines[:, :32], lines[:, 28:]
    flare = width * np.linspace(1.0, 1.45, front.shape[1])
    pairs = zip(band(behind, width), band(front, flare), strict=True)
    return tuple(Rib(posterior, anterior) for posterior, anterior in pairs)


def _clavicles(rng: np.random.Generator) -> tuple[Points, Points]:
    bones = []
    lift = rng.uniform(-0.08, 0.06)
    t = np.linspace(0, 1, 24)
    for side in SIDES:
        x = 0.10 + 0.86 * t
        y = -0.76 + lift * t - 0.055 * np.sin(2 * math.pi * t) - 0.20 * np.sqrt(t)
        y += rng.uniform(-0.02, 0.02)
        widths = 0.075 - 0.032 * np.sin(math.pi * t) + 0.01 * t
        bones.append(band(np.stack([x, y], axis=1), widths) * (side, 1))
    return bones[0], bones[1]


def _scapulae(rng: np.random.Generator) -> tuple[Points, Points]:
    outward = rng.uniform(-0.02, 0.14)
    blades = []
    for side in SIDES:
        blade = [(0.74, -0.80), (1.0, -0.78), (1.08, -0.66), (0.98, -0.42), (0.86, -0.06)]
        blade += [(0.80, -0.05), (0.74, -0.4)]
        points = _jitter(rng, [(x + outward, y) for x, y in blade], 0.02)
        blades.append(smooth_closed(points) * (side, 1))
    return blades[0], blades[1]


def _spine_line(rng: np.random.Generator) -> Points:
    y = np.linspace(-2.2, 2.6, 60)
    bend = rng.uniform(-0.03, 0.03) * np.sin(1.3 * y + rng.uniform(0, 6))
    return np.stack([bend, y], axis=1)


def _vertebrae(rng: np.random.Generator, spine_line: Points) -> Points:
    """Centre x, centre y, width and height of each vertebral body, larger towards the feet."""
    top, scale = -2.0 + rng.uniform(0, 0.1), rng.uniform(0.92, 1.08)
    levels = [top]
    while levels[-1] < 2.4:
        levels.append(levels[-1] + scale * (0.165 + 0.02 * (levels[-1] + 1)))
    y = np.array(levels)
    x = np.interp(y, spine_line[:, 1], spine_line[:, 0])
    width = scale * (0.20 + 0.018 * (y + 1))
    height = 0.76 * scale * (0.165 + 0.02 * (y + 1))
    return np.stack([x, y, width, height], axis=1)


def _trachea(rng: np.random.Generator) -> Points:
    """Centre line from the larynx to the bifurcation; in children it bends to the right."""
    y = np.linspace(-1.5, -0.36, 12)
    bend = -0.02 - 0.03 * rng.random() * np.sin((y + 1.5) * 2.2)
    return np.stack([bend, y], axis=1)


def _vessels(rng: np.random.Generator, height: float) -> Vessels:
    """Arteries that leave each hilum as a fan, branch repeatedly and taper.

    By Murray's law equal branches have 0.5^(1/3) = 0.79 of their parent's width
    (Murray 1926, doi:10.1073/pnas.12.3.207); here one branch is wider than the other.
    """
    starts, ends, widths, levels = [], [], [], []
    for side in SIDES:
        angles = np.linspace(-1.35, 1.45, 8) + rng.uniform(-0.13, 0.13, 8)
        start = np.stack([np.full(8, 0.24), np.linspace(-0.16, 0.14, 8) * height], axis=1)
        start += rng.uniform(-0.03, 0.03, start.shape) - ((0, 0.04) if side > 0 else (0, 0))
        width = rng.uniform(0.040, 0.066, 8)
        length = rng.uniform(0.10, 0.17, 8)
        for level in range(_VESSEL_LEVELS):
            step = np.stack([np.cos(angles), np.sin(angles) * height], axis=1)
            end = start + step * length[:, None]
            starts.append(start * (side, 1))
            ends.append(end * (side, 1))
            widths.append(width)
            levels.append(np.full(len(width), float(level)))
            turn = rng.uniform(0.15, 0.62, len(angles)) * rng.choice((-1, 1), len(angles))
            angles = np.concatenate([angles + turn, angles - 0.8 * turn])
            width = np.concatenate([width * 0.80, width * 0.68])
            length = np.tile(length, 2) * rng.uniform(0.72, 1.12, len(angles))
            start = np.tile(end, (2, 1))
    tips = np.concatenate(ends)
    inside = np.flatnonzero((np.abs(tips[:, 0]) < 1.02) & (np.abs(tips[:, 1]) < 1.02 * height))
    order = inside[np.argsort(np.concatenate(widths)[inside], kind="stable")]
    return Vessels(
        np.concatenate(starts)[order],
        tips[order],
        np.concatenate(widths)[order],
        np.concatenate(levels)[order],
    )
