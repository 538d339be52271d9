"""Input check: out-of-distribution detection for images other than frontal chest X-rays.

An image has four descriptors: three of its thumbnail, which do not depend on the network, and the
network's embedding. For each one the distance to the training images is measured
(`Gaussian`). The input score is the largest distance relative to its limit. Both kinds of
descriptor are needed: a network trained on chest X-rays only may map a hand close to them, and a
thumbnail does not show details.

An image that is closer to the training images after rotation by 90° or 180°, or after
inversion, is refused as `rotated` or `inverted`. An image that is close in no orientation is
refused as `not_a_chest_xray`.

`Gaussian` measures how far a vector is from the training vectors: the Mahalanobis distance to the
nearest class mean under a shared covariance (Lee et al. 2018, arXiv:1807.03888). The covariance is
that of probabilistic principal component analysis (Tipping and Bishop 1999,
doi:10.1111/1467-9868.00196): the residual outside the leading components counts too, with one
deviation for all its dimensions.

The descriptors of the thumbnail do not depend on the brightness and contrast of the image. A
quarter turn or an inversion only permutes their numbers or changes their signs, so the descriptors
of a rotated image can be computed without rotating it. The gradient histograms follow Dalal and
Triggs 2005 (Histograms of Oriented Gradients, doi:10.1109/CVPR.2005.177), with signed directions
and no overlapping blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.arrays import Float32Array
from pneumoscope.errors import BundleError, Reason
from pneumoscope.inference.bundle import InputCheck
from pneumoscope.inference.weights_store import Table

_FINE = 64
_COARSE = 32
_CELLS = 8
_DIRECTIONS = 8
_QUARTER = _DIRECTIONS // 4
_MIN_DEVIATION = 1e-3
_MIN_STRENGTH = 1e-9

THUMBNAIL, GRADIENTS, EDGES = "thumbnail", "gradients", "edges"

METHOD: Final = "gaussians"
TABLE = "input_check"
"""Name of the method in `bundle.json`, and of its table."""

EMBEDDING = "embedding"
DESCRIPTIONS = (THUMBNAIL, GRADIENTS, EDGES, EMBEDDING)
COMPONENTS = 32
"""Number of leading principal components of each descriptor's distribution."""

MOST_COLOUR = 0.15
"""Largest mean chroma (`GreyImage.colour`) of an X-ray; most photographs have more."""

_LEAST_LIMIT = 1e-6
"""Lower limit for degenerate cases where all held-out images are identical."""

_WORDS = {
    THUMBNAIL: "its brightness pattern",
    GRADIENTS: "its outlines",
    EDGES: "the sharpness of its outlines",
    EMBEDDING: "the network's features",
}
_TURNS = {1: "anticlockwise by 90°", 2: "by 180°", 3: "clockwise by 90°"}
_WAYS = tuple((quarters, inverted) for inverted in (False, True) for quarters in range(4))
_PER_COMPONENT = 4
"""Smallest number of vectors per component; with fewer, the last components would be random."""

_LEAST_DEVIATION = 1e-6
"""Smallest standard deviation, for the case that all vectors are equal."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageDescriptors:
    """Descriptors of one image for the out-of-distribution check.

    Attributes:
        thumbnail: float32 (32, 32), mean 0, standard deviation 1.
        energy: mean gradient magnitude of the thumbnail, float32 (8, 8, 8) ≥ 0: by row and column
            of cells from the top left, and by direction in steps of 45° clockwise; the first
            direction gets brighter to the right.
    """

    thumbnail: Float32Array
    energy: Float32Array

    def rotated(self, quarters: int, *, inverted: bool = False) -> ImageDescriptors:
        """The descriptors of the image rotated anticlockwise by quarter turns, then inverted."""
        shift = -_QUARTER * quarters + (_DIRECTIONS // 2 if inverted else 0)
        thumbnail = np.rot90(self.thumbnail, quarters)
        energy = np.roll(np.rot90(self.energy, quarters), shift, axis=2)
        return ImageDescriptors(-thumbnail if inverted else thumbnail, energy)

    def vectors(self) -> Mapping[str, Float32Array]:
        """The vectors of the three fitted distributions, by name: flat float32 arrays."""
        strength = max(float(self.energy.mean()), _MIN_STRENGTH)
        edges: Float32Array = np.sqrt(self.energy).ravel()
        return {
            THUMBNAIL: self.thumbnail.ravel(),
            GRADIENTS: (edges / np.sqrt(strength)).astype(np.float32),
            EDGES: edges,
        }


def describe_image(square: Float32Array) -> ImageDescriptors:
    """Compute the descriptors of one image, float32 (s, s) in [0, 1]."""
    source = Image.fromarray(np.ascontiguousarray(square, dtype=np.float32))
    fine = np.asarray(source.resize((_FINE, _FINE), Image.Resampling.BILINEAR))
    fine = fine - fine.mean(dtype=np.float64).astype(np.float32)
    fine = fine / np.float32(max(float(fine.std(dtype=np.float64)), _MIN_DEVIATION))
    step = _FINE // _COARSE
    coarse = fine.reshape(_COARSE, step, _COARSE, step).mean((1, 3))
    return ImageDescriptors(coarse, _energy(fine))


def _energy(image: Float32Array) -> Float32Array:
    """Gradients (n, n) to (8, 8, 8); each is shared between the two nearest directions."""
    down, right = np.gradient(image)
    strength = np.hypot(right, down)
    direction = np.arctan2(down, right) * np.float32(_DIRECTIONS / (2 * np.pi))
    floor = np.floor(direction)
    upper = strength * (direction - floor)
    first = floor.astype(np.intp) % _DIRECTIONS
    cell = _FINE // _CELLS
    rows, columns = np.arange(_FINE)[:, None] // cell, np.arange(_FINE)[None] // cell
    start = (rows * _CELLS + columns) * _DIRECTIONS
    size = _CELLS * _CELLS * _DIRECTIONS
    counted = np.bincount((start + first).ravel(), (strength - upper).ravel(), size)
    following = start + (first + 1) % _DIRECTIONS
    counted += np.bincount(following.ravel(), upper.ravel(), size)
    shape = (_CELLS, _CELLS, _DIRECTIONS)
    return (counted / cell**2).astype(np.float32).reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """A distribution of vectors (d,).

    Attributes:
        means: one per class, float32 (classes, d).
        axes: leading components, orthonormal up to rounding to float16, float32 (d, k).
        deviations: standard deviation along each of them, and of every other dimension, float32
            (k + 1,).
    """

    means: Float32Array
    axes: Float32Array
    deviations: Float32Array

    def distances(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Distances (n,) of vectors (n, d) to the nearest mean; typical values are about √d."""
        leading, rest = self.deviations[:-1], float(self.deviations[-1])
        nearest = np.full(len(vectors), np.inf)
        for mean in self.means:
            centred = (vectors - mean).astype(np.float32)
            along = centred @ self.axes
            left = _squared(centred) - _squared(along)
            square = _squared(along / leading) + np.maximum(left, 0.0) / rest**2
            nearest = np.minimum(nearest, square)
        distances: NDArray[np.float64] = np.sqrt(nearest)
        return distances

    def to_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays for a bundle's table."""
        return {
            f"{name}.means": self.means,
            f"{name}.axes": self.axes.astype(np.float16),
            f"{name}.deviations": self.deviations,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Gaussian:
        """Restore a distribution from the arrays of `to_arrays`.

        Raises:
            ValueError: arrays are missing, have wrong shapes, or hold invalid numbers.
        """
        parts = [arrays.get(f"{name}.{part}") for part in ("means", "axes", "deviations")]
        means, axes, deviations = (np.empty(0) if part is None else part for part in parts)
        if means.ndim != 2 or axes.ndim != 2 or deviations.shape != (axes.shape[1] + 1,):
            raise ValueError(f"the arrays of {name!r} are missing or have wrong shapes")
        if means.shape[1] != axes.shape[0] or not len(means):
            raise ValueError(f"{name!r} has means {means.shape} for axes {axes.shape}")
        if not all(np.isfinite(part).all() for part in (means, axes)) or not (deviations > 0).all():
            raise ValueError(f"{name!r} holds non-finite numbers or a deviation of 0")
        return cls(*(part.astype(np.float32) for part in (means, axes, deviations)))


def _squared(vectors: Float32Array) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.square(vectors, dtype=np.float64).sum(1)
    return lengths


def fit_gaussian(
    vectors: NDArray[np.floating[Any]], components: int, classes: NDArray[np.int64] | None = None
) -> Gaussian:
    """Fit the distribution of vectors (n, d), n ≥ 8, with at most `components` components.

    Args:
        vectors: the training vectors.
        components: largest number of components; never more than a quarter of the vectors.
        classes: class of each vector, (n,) from 0; without it all belong to one class.
    """
    vectors = vectors.astype(np.float64)
    of_class = np.zeros(len(vectors), np.int64) if classes is None else classes
    means = np.stack([vectors[of_class == each].mean(0) for each in np.unique(of_class)])
    centred = vectors - means[np.searchsorted(np.unique(of_class), of_class)]
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = min(components, len(vectors) // _PER_COMPONENT, vectors.shape[1] - 1)
    leading = variances[::-1][:kept]
    rest = (variances.sum() - leading.sum()) / (vectors.shape[1] - kept)
    deviations = np.sqrt(np.maximum([*leading, rest], _LEAST_DEVIATION**2))
    return Gaussian(
        means.astype(np.float32),
        axes[:, ::-1][:, :kept].astype(np.float16).astype(np.float32),
        deviations.astype(np.float32),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result for one input: its score (≥ 0, refused above 1), and the reason if it is refused."""

    score: float
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Distribution of the training images.

    Attributes:
        gaussians: one for each of `DESCRIPTIONS`.
        limits: descriptor → distance at which the score is 1.
    """

    gaussians: Mapping[str, Gaussian]
    limits: Mapping[str, float]

    def to_table(self) -> dict[str, NDArray[Any]]:
        """The arrays of a bundle's table `input_check`; the limits are stored in its manifest."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, gaussian in self.gaussians.items():
            arrays |= gaussian.to_arrays(name)
        return arrays

    @classmethod
    def from_table(
        cls, table: Mapping[str, NDArray[Any]], limits: Mapping[str, float]
    ) -> Statistics:
        """Restore the statistics from the table and the limits.

        Raises:
            ValueError: arrays or limits are missing or invalid.
        """
        if set(limits) != set(DESCRIPTIONS) or not all(limit > 0 for limit in limits.values()):
            raise ValueError(
                f"found limits {dict(limits)}, wanted one for {', '.join(DESCRIPTIONS)}"
            )
        return cls({name: Gaussian.from_arrays(table, name) for name in DESCRIPTIONS}, limits)

    def shares(
        self, looks: list[ImageDescriptors], embeddings: NDArray[np.float32] | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Distances of n images by descriptor, each (n,), relative to the limits."""
        described = [look.vectors() for look in looks]
        found = {
            name: self._share(name, np.stack([each[name] for each in described]))
            for name in (THUMBNAIL, GRADIENTS, EDGES)
        }
        if embeddings is not None:
            found[EMBEDDING] = self._share(EMBEDDING, embeddings)
        return found

    def _share(self, name: str, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.gaussians[name].distances(vectors) / self.limits[name]

    def verdict(self, look: ImageDescriptors, embedding: NDArray[np.float32]) -> Verdict:
        """Check one image.

        Args:
            look: descriptors of its square.
            embedding: of the model's first network, float32 (c,).
        """
        ways = [look.rotated(quarters, inverted=inverted) for quarters, inverted in _WAYS]
        shares = self.shares(ways)
        turned = np.max(list(shares.values()), axis=0)
        as_given = {name: float(share[0]) for name, share in shares.items()}
        as_given[EMBEDDING] = float(self._share(EMBEDDING, embedding[None])[0])
        most = max(as_given, key=lambda name: as_given[name])
        score, best = as_given[most], int(turned.argmin())
        if best and turned[best] <= 1.0:
            quarters, inverted = _WAYS[best]
            score = max(score, float(turned[0] / turned[best]))
            return Verdict(score, *_turned_words(quarters, inverted))
        if score <= 1.0:
            return Verdict(score)
        detail = (
            "it differs from the frontal chest X-rays that the model was trained on, most in "
            f"{_WORDS[most]}: input score {score:.2f} (limit 1.00). Give a single upright, "
            "uncropped frontal chest X-ray. If it is one, the training data had no images like it"
        )
        return Verdict(score, Reason.NOT_A_CHEST_XRAY, detail)


def _turned_words(quarters: int, inverted: bool) -> tuple[Reason, str]:
    """Reason and explanation for an image that fits better after rotation or inversion."""
    turn = f"rotate it {_TURNS[quarters]}" if quarters else ""
    if not inverted:
        return Reason.ROTATED, f"it fits the training images better after rotation: {turn}"
    both = f", and {turn}" if turn else ""
    return (
        Reason.INVERTED,
        f"black and white seem to be exchanged: invert it, so that air is black{both}",
    )


def fit_statistics(
    looks: list[ImageDescriptors], embeddings: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Gaussian]:
    """Fit the distributions of n training images, those of the embeddings by class."""
    described = [look.vectors() for look in looks]
    found = {}
    for name in DESCRIPTIONS:
        if name == EMBEDDING:
            found[name] = fit_gaussian(embeddings, COMPONENTS, labels)
        else:
            found[name] = fit_gaussian(np.stack([each[name] for each in described]), COMPONENTS)
    return found


def choose_limits(
    distances: Mapping[str, NDArray[np.float64]], refusals: float, patients: int
) -> dict[str, float]:
    """Choose the limits so that the share `refusals` of held-out images is refused.

    Each descriptor gets its own quantile, at half of `refusals`. Then all limits are scaled by one
    factor. A small sample says little about rare distances, so the limits are raised by a share of
    1/√patients.

    Args:
        distances: of n held-out images, (n,) by descriptor.
        refusals: accepted share of refused images.
        patients: number of patients with these images.
    """
    limits = {
        name: max(float(np.quantile(each, 1.0 - refusals / 2)), _LEAST_LIMIT)
        for name, each in distances.items()
    }
    scores = np.max([each / limits[name] for name, each in distances.items()], axis=0)
    stretched = float(np.quantile(scores, 1.0 - refusals)) * (1.0 + patients**-0.5)
    return {name: limit * stretched for name, limit in limits.items()}


def statistics_of(check: InputCheck, table: Table) -> Statistics | None:
    """The distribution of a model's training images; `None` if the bundle has none.

    Args:
        check: entry of the bundle's manifest.
        table: the bundle's table `input_check`, empty if it has none.

    Raises:
        BundleError: the method is unknown, or the arrays can't be used.
    """
    if check == InputCheck():
        return None
    try:
        if check.method != METHOD:
            raise ValueError(f"found the method {check.method!r}, wanted {METHOD!r}")
        return Statistics.from_table(table, check.limits)
    except ValueError as error:
        raise BundleError(
            f"the model's input check can't be used: {error}. Copy the bundle again, fit it again "
            "(pneumoscope input-check), or disable it (--no-input-check)."
        ) from error
