"""Every change of a film at growing strengths: what `stress` tries, in the order of its tables.

Comes in: nothing. Goes out: `SWEEPS`. Knows nothing of models, of labels, or of how far an answer
may move; which strengths are plausible is said here, since it is said of films.

A strength is called plausible where films of another site or scanner, read by the same program,
look like that: a verdict goes by these. The stronger ones show where an answer breaks down. All of
`perturb.PERTURBATIONS` are among the plausible ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pneumoscope.images.grey import FloatArray
from pneumoscope.images.perturbations import (
    Perturbation,
    blur,
    border,
    brightness,
    collimation,
    contrast,
    crop,
    enhancement,
    gamma,
    inversion,
    jpeg,
    marker,
    noise,
    resolution,
    rotation,
    zoom,
)
from pneumoscope.images.photograph import photograph


@dataclass(frozen=True, slots=True)
class Step:
    """One strength of a sweep: the change, and whether films look like that."""

    perturbation: Perturbation
    plausible: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """One change at several strengths.

    Attributes:
        name: a key, or part of a file's name.
        title: for headings.
        axis: what the strength is, with its unit.
        neutral: the strength that changes nothing, `None` if there is none on the axis.
        steps: rising strength.
    """

    name: str
    title: str
    axis: str
    neutral: float | None
    steps: tuple[Step, ...]


def _sweep(  # noqa: PLR0913 - a row of the table below
    change: Callable[..., FloatArray],
    title: str,
    axis: str,
    neutral: float | None,
    wording: str,
    strengths: tuple[float, ...],
    plausible: tuple[float, ...],
    *,
    scale: float = 1.0,
    seeded: bool = False,
    below: str = "",
) -> Sweep:
    """One row of the table; `plausible` are ends of a range.

    `wording`, or `below` for negative strengths, is formatted with the strength times `scale`.
    """
    name = change.__name__
    steps = []
    for number, strength in enumerate(strengths, start=1):
        likely = bool(plausible) and plausible[0] <= strength <= plausible[-1]
        said = (
            below.format(-scale * strength)
            if below and strength < 0
            else (wording.format(scale * strength))
        )
        words = said.replace("-", "−").replace(" %", "\N{NO-BREAK SPACE}%")
        changed = Perturbation(f"{name}_{number}", words, change, strength, seeded)
        steps.append(Step(changed, likely))
    return Sweep(name, title, axis, neutral, tuple(steps))


_40 = 40 / 255

SWEEPS: tuple[Sweep, ...] = (
    _sweep(brightness, "Brightness", "shift, share of the range", 0.0, "brightness {:+.2f}",
           (-0.3, -_40, _40, 0.3), (-_40, _40)),
    _sweep(contrast, "Contrast", "factor about the mean", 1.0, "contrast × {:g}",
           (0.3, 0.5, 2.0, 3.0), (0.5, 2.0)),
    _sweep(gamma, "Gamma", "exponent", 1.0, "gamma {:g}", (0.4, 0.6, 1.6, 2.5), (0.6, 1.6)),
    _sweep(noise, "Noise", "deviation, share of the range", 0.0, "noise {:g}",
           (0.02, 0.05, 0.1, 0.2), (0.02, 0.05), seeded=True),
    _sweep(blur, "Blur", "deviation, % of the side", 0.0, "blur {:g} % of the side",
           (0.005, 0.01, 0.02, 0.04), (0.005, 0.01), scale=100),
    _sweep(enhancement, "Enhancement", "gain of what is finer than 5 % of the side", 0.0,
           "enhancement {:+g}", (-0.5, -0.25, 0.25, 0.5, 1.0), (-0.25, 0.5)),
    _sweep(jpeg, "JPEG", "quality", 100.0, "JPEG quality {:g}",
           (5.0, 10.0, 30.0, 70.0), (30.0, 70.0)),
    _sweep(resolution, "Resolution", "pixels on the longer side", None, "{:g} pixels",
           (32.0, 64.0, 96.0, 128.0), (96.0, 128.0)),
    _sweep(rotation, "Rotation", "degrees, anticlockwise", 0.0, "rotation {:+g}°",
           (-20.0, -10.0, 10.0, 20.0), (-10.0, 10.0)),
    _sweep(crop, "Crop", "% of the side cut off each edge", 0.0, "{:g} % cropped off each edge",
           (0.05, 0.1, 0.15, 0.2), (0.05, 0.1), scale=100),
    _sweep(collimation, "Collimation", "% cut off left and right; negative: top and bottom", 0.0,
           "{:g} % cut off left and right", (-0.2, -0.1, 0.1, 0.2), (-0.1, 0.1), scale=100,
           below="{:g} % cut off top and bottom"),
    _sweep(zoom, "Zoom", "factor", 1.0, "zoom × {:g}", (0.75, 0.9, 1.1, 1.3), (0.9, 1.1)),
    _sweep(border, "Border", "% of the side added at each edge", 0.0, "{:g} % black border",
           (0.05, 0.1, 0.2), (0.05, 0.1), scale=100),
    _sweep(inversion, "Inversion", "share of the way to the negative", 0.0,
           "the negative", (1.0,), ()),
    _sweep(marker, "Marker", "height of the letter, % of the side", 0.0,
           "a letter {:g} % high", (0.06, 0.12, 0.25), (0.06, 0.12), scale=100),
    _sweep(photograph, "Photograph", "strength, 0 to 1", 0.0, "photographed, strength {:g}",
           (0.25, 0.5, 1.0), (), seeded=True),
)  # fmt: skip
"""Negatives and photographs are shown and never judged: a model should refuse them instead."""


PLAUSIBLE: tuple[Perturbation, ...] = tuple(
    step.perturbation for sweep in SWEEPS for step in sweep.steps if step.plausible
)
"""What films of other sites and scanners look like: one copy of each is a film of many of them."""
