"""Draw one phantom: absorption, scatter, noise, lesion, then tone curve, frame and marker.

`draw` takes a seed, a patient's name, the number of an image and a class, and returns a `Phantom`.
Separate random streams control anatomy, disease and image. The stream of the image does not depend
on the class, and no step after the lesion mixes neighbouring pixels. Outside the lungs the image of
a child with pneumonia is therefore identical to that of the same child without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import UsageError
from pneumoscope.images.augment import random_stream
from pneumoscope.images.phantom.anatomy import SIDES, Anatomy, Points, band, draw_anatomy
from pneumoscope.images.phantom.lesion import (
    Chest,
    Lesion,
    Picture,
    Pose,
    Shape,
    Subtype,
    blurred,
    chord,
    consolidation,
    fill,
    interstitial,
    no_lesion,
    strokes,
)

LesionDrawer = Callable[[Pose, Chest], Lesion]

# Absorption (logarithm of the attenuation) relative to the thickest soft tissue of the chest.
_TRUNK, _ARM, _HEART, _ABDOMEN, _AIR = 0.74, 0.42, 0.17, 0.15, 0.47
_POSTERIOR_RIB, _ANTERIOR_RIB, _LONG_BONE, _SCAPULA = 0.125, 0.07, 0.2, 0.06
_VERTEBRA, _VESSEL, _WINDPIPE, _GAS = 0.12, 0.15, 0.11, 0.3
_LUNG_EDGE = 0.22

SMALLEST_SIZE = 64
"""Below this many pixels per side, ribs and vessels are thinner than a pixel."""


@dataclass(frozen=True, slots=True)
class Radiograph:
    """`pixels`, float32 (h, w) in [0, 1]; `lungs` and `lesion`, bool (h, w)."""

    pixels: Picture
    lungs: NDArray[np.bool_]
    lesion: NDArray[np.bool_]


def expose(
    anatomy: Anatomy, rng: np.random.Generator, size: int, draw_lesion: LesionDrawer
) -> Radiograph:
    """Expose one X-ray; `rng` decides pose, arms, dose, scatter, noise, frame and marker."""
    pose = _draw_pose(rng, size)
    absorbed, chest = _absorption(anatomy, pose, rng)
    absorbed = _scattered(absorbed, pose, rng)
    absorbed = _with_noise(absorbed, pose, rng)
    lesion = draw_lesion(pose, chest)
    pixels = _developed(absorbed + lesion.absorbed, rng)
    pixels = _framed(pixels, rng)
    return Radiograph(pixels, chest.lungs, lesion.mask)


def _draw_pose(rng: np.random.Generator, size: int) -> Pose:
    return Pose(
        size=size,
        scale=size * rng.uniform(0.345, 0.46),
        angle=math.radians(float(np.clip(rng.normal(0, 2.2), -6, 6))),
        x=size * (0.5 + float(np.clip(rng.normal(0, 0.022), -0.06, 0.06))),
        y=size * (0.485 + float(np.clip(rng.normal(0, 0.03), -0.07, 0.07))),
        breath=rng.uniform(-0.06, 0.06),
        turn=rng.normal(0, 0.03),
    )


def _absorption(anatomy: Anatomy, pose: Pose, rng: np.random.Generator) -> tuple[Picture, Chest]:
    size, unit = pose.size, pose.scale
    arms, humeri = _arms(rng, pose)
    trunk = fill([(pose.place(anatomy.trunk), 1.0), *_head(rng, pose)], size)
    soft = np.maximum(_TRUNK * chord(trunk, 0.2 * unit), _ARM * chord(fill(arms, size), 0.1 * unit))
    lungs = fill([(pose.place(lung), 1.0) for lung in anatomy.lungs], size, 0.007 * unit)
    heart = fill([(pose.place(anatomy.heart, 0.8), 1.0)], size, 0.016 * unit)
    open_lung = lungs * (1 - 0.84 * heart)
    depth = (0.42 + 0.58 * chord(lungs, 0.13 * unit)) * open_lung
    air = np.float32(_AIR * anatomy.lung_air) * depth
    vessels, bronchi = _vessel_pictures(anatomy, pose, rng)
    haze = np.clip(0.05 + rng.uniform(0.0, 0.05) * pose.cloud(rng, 0.35), 0, 0.3)
    markings = np.float32(_VESSEL * anatomy.vessel_density * rng.uniform(0.85, 1.15))
    inside = (1 - haze) * air - markings * vessels * depth
    _, y = pose.coordinates()
    muscle = 0.025 * pose.cloud(rng, 0.3) + 0.012 * pose.cloud(rng, 0.12)
    total = soft * (1 + 0.06 * np.clip(y, -1, 1) + muscle) - inside
    # Below the domes liver, stomach and heart absorb equally: no edge appears between them.
    below = np.clip((y - np.float32(min(anatomy.domes) + pose.breath)) / 0.35, 0, 1)
    below *= 1 - lungs
    total += np.maximum(_HEART * chord(heart, 0.16 * unit), _ABDOMEN * below) * trunk
    total += _bones(anatomy, pose, humeri, open_lung)
    total -= _gas(anatomy, pose, rng)
    mask = open_lung > _LUNG_EDGE
    return total.astype(np.float32), Chest(np.clip(inside, 0, None), mask, vessels, bronchi)


def _arms(rng: np.random.Generator, pose: Pose) -> tuple[list[Shape], list[Shape]]:
    """Outlines of both upper arms and their bones: raised beside the head, or at the sides."""
    raised = rng.random() < 0.45
    arms, humeri = [], []
    for side in SIDES:
        shoulder = np.array([1.10, -0.86])
        to_elbow = (0.55, -1.1) if raised else (0.42, 1.15)
        elbow = shoulder + np.array(to_elbow) + rng.uniform(-0.14, 0.14, 2)
        t = np.linspace(0, 1, 16)[:, None]
        line = (shoulder + (elbow - shoulder) * t) * (side, 1)
        flesh = np.linspace(0.46, 0.36, 16) * rng.uniform(0.9, 1.15)
        bone = 0.10 + 0.085 * np.exp(-((t[:, 0] / 0.09) ** 2))
        arms.append((pose.place(band(line, flesh)), 1.0))
        shaft = line[1:] if raised else line
        humeri.append((pose.place(band(shaft, bone[-len(shaft) :])), 1.0))
        humeri.append((pose.place(band(shaft, bone[-len(shaft) :] * 0.5)), 0.7))
    return arms, humeri


def _head(rng: np.random.Generator, pose: Pose) -> list[Shape]:
    angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    centre = np.array([rng.normal(0, 0.08), -2.0 + rng.uniform(-0.2, 0.06)])
    outline = centre + np.stack([0.62 * np.cos(angle), 0.55 * np.sin(angle)], axis=1)
    return [(pose.place(outline), 1.0)]


def _vessel_pictures(
    anatomy: Anatomy, pose: Pose, rng: np.random.Generator
) -> tuple[Picture, Picture]:
    """The arteries, and the bronchi beside the larger ones."""
    vessels = anatomy.vessels
    starts, ends = pose.place(vessels.starts, 0.2), pose.place(vessels.ends, 0.2)
    widths = vessels.widths * pose.scale
    greys = np.clip(0.08 + 15 * vessels.widths, 0, 1)
    sharpness = rng.uniform(0.5, 1.0)
    pictured = strokes(starts, ends, widths, greys, pose.size, sharpness)
    large = (vessels.levels >= 1) & (vessels.levels <= 2)
    offset = np.array([0.018, 0.012]) * pose.scale
    bronchi = strokes(
        starts[large] + offset,
        ends[large] + offset,
        widths[large] * 0.55,
        np.ones(int(large.sum())),
        pose.size,
        1.2,
    )
    return pictured, bronchi


def _bones(anatomy: Anatomy, pose: Pose, humeri: list[Shape], open_lung: Picture) -> Picture:
    size = pose.size
    behind = [rib.posterior for rib in anatomy.ribs]
    posterior = pose.place_shapes([s for rib in behind for s in _tube(rib, 0.74)], -0.7)
    anterior = pose.place_shapes([(rib.anterior, 0.9) for rib in anatomy.ribs], 0.7)
    # One picture serves all long bones: they hardly overlap.
    clavicles = [(s, 0.7 * g) for bone in anatomy.clavicles for s, g in _tube(bone, 0.7)]
    long_bones = humeri + pose.place_shapes(clavicles, 0.8)
    # Ribs have less contrast against the mediastinum and below the domes than against air.
    shown = 0.45 + 0.55 * open_lung
    bones = shown * _POSTERIOR_RIB * fill(posterior, size, 0.9)
    bones += shown * _ANTERIOR_RIB * fill(anterior, size, 1.5)
    bones += _SCAPULA * fill([(pose.place(s, -0.7), 1.0) for s in anatomy.scapulae], size, 1.6)
    bones += _LONG_BONE * fill(long_bones, size, 0.9)
    bones += _VERTEBRA * _spine(anatomy, pose)
    return bones * np.float32(anatomy.bone_density)


def _tube(outline: Points, marrow: float) -> list[Shape]:
    """A bone from the outline of its `band`: compact at both edges, `marrow` is the grey inside."""
    across = outline[::-1]
    return [(outline, 1.0), (0.75 * outline + 0.25 * across, marrow)]


def _spine(anatomy: Anatomy, pose: Pose) -> Picture:
    corners = np.array([[-0.5, -0.5], [0, -0.44], [0.5, -0.5], [0.44, 0], [0.5, 0.5]])
    corners = np.concatenate([corners, [[0, 0.44], [-0.5, 0.5], [-0.44, 0]]])
    process = np.array([[-0.06, 0.1], [0.06, 0.1], [0.08, 0.6], [-0.08, 0.6]])
    centres, sizes = anatomy.vertebrae[:, None, :2], anatomy.vertebrae[:, None, 2:]
    shapes: list[Shape] = [(band(anatomy.spine_line, 0.20), 0.3)]
    shapes += [(body, 0.85) for body in centres + corners * sizes]
    shapes += [(body, 0.72) for body in centres + 0.8 * corners * sizes]
    for side in SIDES:
        pedicle = 0.18 * corners * (1, 1.5) + (0.33 * side, -0.1)
        shapes += [(spot, 1.0) for spot in centres + pedicle * sizes]
    shapes += [(spine, 0.95) for spine in centres + process * sizes]
    return fill(pose.place_shapes(shapes, -0.5), pose.size, 1.25)


def _gas(anatomy: Anatomy, pose: Pose, rng: np.random.Generator) -> Picture:
    """Air in the trachea, in the stomach (often) and in bowel loops (sometimes)."""
    unit = pose.scale
    main = anatomy.trachea
    forks = [main[-1] + np.array([[0, -0.03], [0.12 * s, 0.12], [0.26 * s, 0.22]]) for s in SIDES]
    pipes = [(pose.place(band(main, 0.085), 0.2), 1.0)]
    pipes += [(pose.place(band(fork, 0.055), 0.2), 0.7) for fork in forks]
    gas = _WINDPIPE * fill(pipes, pose.size, 0.02 * unit)
    angle = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    bubbles: list[Shape] = []
    if rng.random() < 0.65:
        x, y, a, b = anatomy.stomach
        fullness = rng.uniform(0.7, 1.1)
        bubbles.append((pose.place(circle * (a * fullness, b * fullness) + (x, y)), 1.0))
    for _ in range(int(rng.integers(0, 5))):
        centre = (rng.uniform(-0.7, 0.7), rng.uniform(1.05, 1.5))
        loop = circle * rng.uniform(0.06, 0.14, 2) + centre
        bubbles.append((pose.place(loop), rng.uniform(0.3, 0.7)))
    if bubbles:
        gas = gas + rng.uniform(0.6, 1) * _GAS * chord(fill(bubbles, pose.size, 1.6), 0.06 * unit)
    return gas


def _scattered(absorbed: Picture, pose: Pose, rng: np.random.Generator) -> Picture:
    """Add scattered radiation: a smooth veil over the image."""
    share = rng.uniform(0.06, 0.2)
    veil = blurred(absorbed, 0.35 * pose.scale)
    return (1 - share) * absorbed + share * veil


def _with_noise(absorbed: Picture, pose: Pose, rng: np.random.Generator) -> Picture:
    """Add quantum noise, stronger where fewer photons arrive, and slightly blurred."""
    grain = rng.standard_normal(absorbed.shape, dtype=np.float32)
    smear = rng.uniform(0.15, 0.4)
    grain[:, 1:] += smear * grain[:, :-1]
    grain[1:] += smear * grain[:-1]
    amount = math.exp(rng.uniform(math.log(0.004), math.log(0.013)))
    heel_x, heel_y = rng.normal(0, 0.02), rng.normal(0, 0.02)
    x, y = pose.coordinates()
    noisy: Picture = absorbed + amount * np.exp(0.8 * absorbed) * grain + heel_x * x + heel_y * y
    return noisy


def _developed(absorbed: Picture, rng: np.random.Generator) -> Picture:
    """Apply window, gamma and an S-shaped characteristic curve."""
    low = rng.uniform(-0.02, 0.16)
    high = rng.uniform(0.98, 1.3)
    gamma = math.exp(rng.uniform(-0.28, 0.28))
    curve = rng.uniform(0.0, 0.8)
    level = np.clip((absorbed - low) / np.float32(high - low), 0, 1) ** np.float32(gamma)
    curved = level * level * (3 - 2 * level)
    black, white = rng.uniform(0.0, 0.07), rng.uniform(0.88, 1.0)
    pixels: Picture = black + (white - black) * ((1 - curve) * level + curve * curved)
    return pixels


def _framed(pixels: Picture, rng: np.random.Generator) -> Picture:
    """Add collimator blades, some slightly tilted, and the lead letter of a side."""
    size = pixels.shape[0]
    steps = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    column, row = steps[None, :], steps[:, None]
    light = np.ones_like(pixels)
    inner = np.zeros(4)
    tilt = rng.normal(0, 0.012)
    blades = ((column, row), (row, column), (1 - column, row), (1 - row, column))
    for blade, (x, y) in enumerate(blades):
        closed, depth = rng.random() < 0.4, rng.uniform(0.005, 0.07)
        if closed:
            inner[blade] = depth
            edge = x - np.float32(depth) + np.float32(tilt) * (y - np.float32(0.5))
            light *= np.clip(edge * (size / 1.5), 0, 1)
    shade = np.float32(rng.uniform(0.0, 0.05))
    framed = shade + (pixels - shade) * light
    letter, glow = _letter(rng, size, inner)
    return np.clip(framed * (1 - letter) + np.float32(glow) * letter, 0, 1)


def _letter(
    rng: np.random.Generator, size: int, inner: NDArray[np.float64]
) -> tuple[Picture, float]:
    """An R at the patient's right, an L at the left, or no letter; and its brightness."""
    right = rng.random() < 0.4
    shown, height = rng.random() < 0.85, size * rng.uniform(0.04, 0.068)
    glow, tilt = rng.uniform(0.85, 1.0), rng.normal(0, 0.12)
    margin, drop = size * rng.uniform(0.02, 0.06), size * rng.uniform(0.02, 0.14)
    if not shown:
        return np.zeros((size, size), dtype=np.float32), float(glow)
    if right:
        path = [(0, 1), (0, 0), (0.42, 0), (0.6, 0.13), (0.6, 0.36), (0.42, 0.5), (0, 0.5)]
        path += [(0.28, 0.5), (0.62, 1)]
        left = inner[0] * size + margin
    else:
        path = [(0, 0), (0, 1), (0.55, 1)]
        left = size * (1 - inner[2]) - margin - 0.6 * height
    cos, sin = math.cos(tilt), math.sin(tilt)
    points = np.array(path) * height @ np.array([[cos, sin], [-sin, cos]])
    points += (left, inner[1] * size + drop)
    count = len(points) - 1
    widths, greys = np.full(count, max(1.0, 0.16 * height)), np.ones(count)
    return strokes(points[:-1], points[1:], widths, greys, size, 0.5), float(glow)


@dataclass(frozen=True)
class Phantom:
    """One X-ray of an imaginary child.

    Attributes:
        pixels: float32 (h, w) in [0, 1]; 1 is white, where absorption is highest.
        lungs: bool (h, w), the lung fields beside heart and mediastinum, above the domes.
        lesion: bool (h, w), visible pneumonia; inside `lungs`; empty for NORMAL.
        label: 0 for NORMAL, 1 for PNEUMONIA.
        subtype: `bacteria` (a lobar consolidation), `virus` (interstitial change) or `""`.
        patient: the patient's name, as passed to `draw`.
        number: the number of the image, as passed to `draw`.
        age_years: 1 to 5.
    """

    pixels: NDArray[np.float32]
    lungs: NDArray[np.bool_]
    lesion: NDArray[np.bool_]
    label: int
    subtype: Subtype
    patient: str
    number: int
    age_years: int


def draw(
    seed: int,
    patient: str,
    number: int,
    label: int,
    size: int = 320,
    subtype: Subtype | None = None,
) -> Phantom:
    """Draw one X-ray; equal arguments give equal pixels.

    Anatomy and disease are the same on all images of a patient. Pose, breath, dose, noise, frame
    and marker differ between images, and so does (somewhat) the density of the lesion.

    Args:
        seed: seed of the whole collection.
        patient: any name.
        number: number of the image among those of the patient.
        label: 0 for NORMAL, 1 for PNEUMONIA.
        size: side in pixels, at least `SMALLEST_SIZE`.
        subtype: type of pneumonia; by default the patient's random stream decides. `""` for NORMAL.

    Raises:
        UsageError: a label other than 0 or 1, a subtype that does not fit it, or too small a size.
    """
    if label not in (0, 1):
        raise UsageError(f"phantom: label is {label!r}; expected 0 (NORMAL) or 1 (PNEUMONIA).")
    if size < SMALLEST_SIZE:
        raise UsageError(f"phantom: size is {size} pixels; expected at least {SMALLEST_SIZE}.")
    if subtype not in ((None, "") if label == 0 else (None, "bacteria", "virus")):
        raise UsageError(
            f"phantom: subtype {subtype!r} does not fit label {label}. "
            "Expected 'bacteria' or 'virus' with 1, none with 0."
        )
    disease = random_stream("illness", seed, patient)
    by_chance: Subtype = "bacteria" if disease.random() < 0.5 else "virus"
    kind: Subtype = (subtype or by_chance) if label else ""
    anatomy = draw_anatomy(random_stream("anatomy", seed, patient))
    strength = float(random_stream("course", seed, patient, number).uniform(0.85, 1.15))

    def draw_lesion(pose: Pose, chest: Chest) -> Lesion:
        return _lesion(kind, disease, anatomy, pose, chest, strength)

    taken = expose(anatomy, random_stream("film", seed, patient, number), size, draw_lesion)
    return Phantom(
        taken.pixels, taken.lungs, taken.lesion, label, kind, patient, number, anatomy.age_years
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
