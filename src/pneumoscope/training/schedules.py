"""Learning rate, stopping and the best epoch, as pure functions of what the epochs scored so far.

Comes in: the config and the validation AUC of each finished epoch. Goes out: a number or a
verdict. Nothing here has state, so a resumed run decides exactly as an unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pneumoscope.config import FitConfig


def learning_rate(config: FitConfig, scores: Sequence[float]) -> float:
    """The step size of the epoch that follows `scores` (validation AUC per finished epoch).

    `plateau` multiplies by `plateau_factor` after `plateau_patience` epochs without a gain of
    `min_delta`; `cosine` falls from `learning_rate` to `min_learning_rate` over `epochs`
    (Loshchilov & Hutter, SGDR, ICLR 2017, one cycle); `constant` stays.
    """
    first, last = config.learning_rate, config.min_learning_rate
    if config.schedule == "constant":
        return first
    if config.schedule == "cosine":
        progress = len(scores) / max(config.epochs - 1, 1)
        return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    drops, best, waited = 0, -math.inf, 0
    for score in scores:
        if score > best + config.min_delta:
            best, waited = score, 0
            continue
        waited += 1
        if waited >= config.plateau_patience:
            drops, waited = drops + 1, 0
    return float(max(first * config.plateau_factor**drops, last))


def best_epoch(config: FitConfig, scores: Sequence[float]) -> int:
    """Index of the epoch whose weights are kept: the first that none beats by `min_delta`."""
    best = 0
    for epoch, score in enumerate(scores):
        if score > scores[best] + config.min_delta:
            best = epoch
    return best


def should_stop(config: FitConfig, scores: Sequence[float]) -> bool:
    """Whether training ends now: all epochs done, or `stop_patience` of them without a gain."""
    if len(scores) >= config.epochs:
        return True
    return bool(scores) and len(scores) - 1 - best_epoch(config, scores) >= config.stop_patience
