"""How far the calibration error would move with other patients.

Comes in: scores sorted once, and the weights of resamples of them. Goes out: an interval. Does not
know of patients, metrics or files.

Percentiles will not do. A calibration error is a mean of absolute gaps, and noise only adds to
those: resamples of a perfect forecast all lie above 0, so that their percentiles never hold the
truth, and those of a bad one lie too high or, with noise taken off, too low. Here the sample's mean
absolute gap is set right bin by bin, by what noise adds to it: the mean of a folded normal variable
(Leone, Nelson & Nottingham 1961, doi:10.1080/00401706.1961.10489974) less its location, with the
noise that resampling patients shows. What is set right so is resampled as well. And the interval
reaches down to 0 where a perfect forecast would often show as much (consistency, Bröcker & Smith
2007, doi:10.1175/WAF993.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pneumoscope.evaluation.ranked_metrics import FloatArray, IntArray, RankedScores, bin_index

_LEAST = 1e-12


@dataclass(slots=True)
class GapResamples:
    """The gaps of a sample's bins, and those of resamples in the same bins.

    Attributes:
        starts: (k,), where each bin's images begin in the ranking.
        excess: (n,), probability less label of each image, in the order of the ranking.
        own: (k,), expected variance of the gaps if the probabilities were true.
        mass: (b, k) blocks, weight of each bin in each resample.
        sums: (b, k) blocks, sum of the excess.
    """

    starts: IntArray
    excess: FloatArray
    own: FloatArray
    mass: list[FloatArray] = field(default_factory=list)
    sums: list[FloatArray] = field(default_factory=list)

    @classmethod
    def of(cls, ranked: RankedScores) -> GapResamples:
        """A sample without resamples so far."""
        images = np.diff(np.append(ranked.starts, ranked.labels.size))
        scores = np.repeat(ranked.scores, images)
        bins = np.repeat(bin_index(ranked.counts_once())[0], images)
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        mass = np.diff(np.append(starts, scores.size))
        own = np.add.reduceat(scores * (1.0 - scores), starts) / mass**2 if scores.size else scores
        return cls(starts, scores - ranked.labels, own)

    def add(self, weights: FloatArray) -> None:
        """Resamples: (b, n), columns in the order of the ranking."""
        self.mass.append(np.add.reduceat(weights, self.starts, axis=1))
        self.sums.append(np.add.reduceat(weights * self.excess, self.starts, axis=1))

    def interval(self, point: float, reach: float) -> tuple[float, float]:
        """The interval of the calibration error.

        Args:
            point: its value, which the interval holds in any case.
            reach: standard normal quantile, as 1.96 for an interval at 0.95.
        """
        mass, images = np.concatenate(self.mass), np.diff(np.append(self.starts, self.excess.size))
        gaps = np.concatenate(self.sums) / np.maximum(mass, 1.0)
        gap, share = np.add.reduceat(self.excess, self.starts) / images, images / images.sum()
        noise = gaps.std(axis=0)
        centre = float(share @ _unfolded(gap, noise))
        shares = mass / mass.sum(axis=1, keepdims=True)
        moved = np.einsum("bk,bk->b", shares, _unfolded(gaps, noise))
        tail = 0.5 * math.erfc(reach / math.sqrt(2.0))
        low, high = np.quantile(moved, [tail, 1.0 - tail], method="weibull") - moved.mean()
        low, high = centre + float(low), centre + float(high)
        if float(share @ np.abs(gap)) <= self._usual(share, noise, reach):
            low = 0.0
        return min(max(low, 0.0), point), min(max(high, point), 1.0)

    def _usual(self, share: FloatArray, noise: FloatArray, reach: float) -> float:
        """The mean absolute gap that true probabilities exceed as rarely as `reach` says.

        The sum of folded normal gaps is taken for normal. A bin's noise is what resampling shows,
        which is 0 where all labels agree, or what the probabilities expect, if that is more.
        """
        spread = np.sqrt(np.maximum(noise**2, self.own))
        mean = math.sqrt(2.0 / math.pi) * float(share @ spread)
        variance = (1.0 - 2.0 / math.pi) * float(share**2 @ spread**2)
        return mean + reach * math.sqrt(variance)


def _unfolded(gaps: FloatArray, noise: FloatArray) -> FloatArray:
    """Absolute gaps (…, k) less what noise of deviation (k,) adds to them on average."""
    from scipy.special import ndtr

    sizes = np.abs(gaps)
    ratio = sizes / np.maximum(noise, _LEAST)
    density = np.exp(-0.5 * ratio**2) * math.sqrt(2.0 / math.pi)
    folded = sizes * (2.0 * ndtr(ratio) - 1.0) + noise * density
    less: FloatArray = 2.0 * sizes - folded
    return less
