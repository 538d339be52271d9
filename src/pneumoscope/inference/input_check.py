"""Is this a frontal chest X-ray like those that the model knows?

Comes in: what a film looks like at a glance, the network's embedding of it, and statistics of the
training images. Goes out: a `Verdict`. Knows nothing of files, of labels or of probabilities.

A film is described in four ways: three of its thumbnail, which no network has a part in, and the
embedding. In each its distance to the training images is measured (`gaussian.py`); the largest,
as a share of what is allowed, is the input score. A network that saw chest films alone may take
a hand for one, and a thumbnail can't tell what only details show: neither is asked alone.

A film that fits better turned by a quarter or half a circle, or inverted, and fits well so, is
refused as `rotated` or `inverted`; one that fits in no way as `not_a_chest_xray`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Reason
from pneumoscope.images.framing import EDGES, GRADIENTS, THUMBNAIL, ImageDescriptors
from pneumoscope.inference.overlay import Gaussian, fit_gaussian

METHOD: Final = "gaussians"
TABLE = "input_check"
"""Names of the method in `bundle.json`, and of its table."""

EMBEDDING = "embedding"
DESCRIPTIONS = (THUMBNAIL, GRADIENTS, EDGES, EMBEDDING)

COMPONENTS = 32
"""Leading components of each description's distribution."""

MOST_COLOUR = 0.15
"""Mean chroma (`GreyImage.colour`) of a film: a tinted scan has less, a photograph mostly more."""

_LEAST_LIMIT = 1e-6
"""Where held-out films are all the same, as of a network that sees nothing."""

_WORDS = {
    THUMBNAIL: "where it is bright and dark",
    GRADIENTS: "the outlines in it",
    EDGES: "how sharp its outlines are",
    EMBEDDING: "what the network sees in it",
}
_TURNS = {1: "anticlockwise by 90°", 2: "by 180°", 3: "clockwise by 90°"}
_WAYS = tuple((quarters, inverted) for inverted in (False, True) for quarters in range(4))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one input: its score, ≥ 0, refused above 1; and why it is refused, if it is."""

    score: float
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What training images look like.

    Attributes:
        gaussians: one for each of `DESCRIPTIONS`.
        limits: the distance in each at which the score is 1.
    """

    gaussians: Mapping[str, Gaussian]
    limits: Mapping[str, float]

    def to_table(self) -> dict[str, NDArray[Any]]:
        """The arrays of a bundle's table `input_check`; the limits go into its manifest."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, gaussian in self.gaussians.items():
            arrays |= gaussian.to_arrays(name)
        return arrays

    @classmethod
    def from_table(
        cls, table: Mapping[str, NDArray[Any]], limits: Mapping[str, float]
    ) -> Statistics:
        """What `to_table` gave, with the limits.

        Raises:
            ValueError: arrays or limits are missing or can't be used.
        """
        if set(limits) != set(DESCRIPTIONS) or not all(limit > 0 for limit in limits.values()):
            raise ValueError(
                f"found limits {dict(limits)}, wanted one for {', '.join(DESCRIPTIONS)}"
            )
        return cls({name: Gaussian.from_arrays(table, name) for name in DESCRIPTIONS}, limits)

    def shares(
        self, looks: list[ImageDescriptors], embeddings: NDArray[np.float32] | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Distances of n films by description, each (n,), as shares of the limits."""
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
        """What to think of one film.

        Args:
            look: of its square.
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
            f"it is unlike the frontal chest X-rays that the model knows, most of all in "
            f"{_WORDS[most]}: input score {score:.2f}, above 1 is refused. Give a frontal chest "
            "X-ray, upright, uncut and alone; if it is one, the model does not know its kind"
        )
        return Verdict(score, Reason.NOT_A_CHEST_XRAY, detail)


def _turned_words(quarters: int, inverted: bool) -> tuple[Reason, str]:
    """Reason and words for a film that fits once turned anticlockwise so often, and inverted."""
    turn = f"turn it {_TURNS[quarters]}" if quarters else ""
    if not inverted:
        return Reason.ROTATED, f"it fits the training images only if turned: {turn}"
    both = f", and {turn}" if turn else ""
    return (
        Reason.INVERTED,
        f"its black and white seem to be exchanged: invert it, so that air is black{both}",
    )


def fit_statistics(
    looks: list[ImageDescriptors], embeddings: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Gaussian]:
    """The distributions of n training images, the embeddings' by class."""
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
    """The distances that are allowed, so that of held-out films the share `refusals` is refused.

    Each description gets its own quantile, at half of `refusals`; then all are stretched alike. Few
    patients tell little of what is rare, so the limits are raised by one part in √patients.

    Args:
        distances: of n held-out films, (n,) by description.
        refusals: the share of them that may be refused.
        patients: how many they are of.
    """
    limits = {
        name: max(float(np.quantile(each, 1.0 - refusals / 2)), _LEAST_LIMIT)
        for name, each in distances.items()
    }
    scores = np.max([each / limits[name] for name, each in distances.items()], axis=0)
    stretched = float(np.quantile(scores, 1.0 - refusals)) * (1.0 + patients**-0.5)
    return {name: limit * stretched for name, limit in limits.items()}
