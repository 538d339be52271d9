"""Learning rate, stopping and the best epoch, as pure functions of what the epochs scored so far.

Comes in: the config, the validation AUC of each finished epoch, the share of the present epoch
that is done. Goes out: a number or a verdict. Nothing here has state, so a resumed run decides
exactly as an unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pneumoscope.config import FitConfig

_START = 1 / 25
"""Where a warm-up begins, as a share of the rate it rises to (as one-cycle has it)."""

_ONE_CYCLE_WARMUP = 0.3


def learning_rate(config: FitConfig, scores: Sequence[float], within: float = 0.0) -> float:
    """The step size after `scores` (validation AUC per finished epoch) and `within` of an epoch.

    `constant` stays; `cosine` falls to `min_learning_rate` at the end (Loshchilov & Hutter, SGDR,
    ICLR 2017, one cycle); `one-cycle` rises and falls along a cosine (Smith & Topin,
    arXiv:1708.07120), over 30 % of the steps where no `warmup` is given; `plateau` multiplies by
    `plateau_factor` after `plateau_patience` epochs without a gain of `min_delta`; `step` does so
    every `step_epochs`. With `warmup`, each begins by rising from a 25th.

    Args:
        config: the schedule and its numbers.
        scores: one per finished epoch.
        within: share of the present epoch's steps that are done, 0 to 1.
    """
    warmup = config.warmup
    if config.schedule == "one-cycle" and not warmup:
        warmup = _ONE_CYCLE_WARMUP
    done = min((len(scores) + within) / config.epochs, 1.0)
    if done < warmup:
        risen = done / warmup
        if config.schedule == "one-cycle":
            risen = 0.5 * (1.0 - math.cos(math.pi * risen))
        return config.learning_rate * (_START + (1.0 - _START) * risen)
    return _after_warmup(config, scores, (done - warmup) / (1.0 - warmup))


def _after_warmup(config: FitConfig, scores: Sequence[float], progress: float) -> float:
    first, last = config.learning_rate, min(config.min_learning_rate, config.learning_rate)
    if config.schedule == "constant":
        return first
    if config.schedule == "step":
        return max(first * config.plateau_factor ** (len(scores) // config.step_epochs), last)
    if config.schedule == "plateau":
        return max(first * config.plateau_factor ** _plateaus(config, scores), last)
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _plateaus(config: FitConfig, scores: Sequence[float]) -> int:
    """How often `plateau_patience` epochs passed without a gain."""
    falls, best, waited = 0, -math.inf, 0
    for score in scores:
        if score > best + config.min_delta:
            best, waited = score, 0
            continue
        waited += 1
        if waited >= config.plateau_patience:
            falls, waited = falls + 1, 0
    return falls


def best_epoch(config: FitConfig, scores: Sequence[float]) -> int:
    """Index of the epoch whose weights are kept.

    The last one if `config.keep` says so, else the first that none beats by `min_delta`.
    """
    if config.keep == "last":
        return len(scores) - 1
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
