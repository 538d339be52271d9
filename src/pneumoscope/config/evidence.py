"""Defaults of planning an operating point and of comparing two models; no part of a run.

As in `stages`: each field carries its help text, range and units. Imports no NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pneumoscope.config.reading import option
from pneumoscope.config.stages import IntervalConfig

_MOST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PlanTarget:
    """What is wanted of an operating point; `None`: nothing."""

    prevalence: float | None = option(
        None, "share of pneumonia where the model is to be used; else that of the images", 0, 1
    )
    min_sensitivity: float | None = option(
        None, "choose the threshold that keeps this sensitivity with confidence", 0, 1
    )
    min_specificity: float | None = option(None, "or the one that keeps this specificity", 0, 1)
    threshold: float | None = option(None, "or take this threshold", 0, 1)
    band: float | None = option(
        None, "answer 'uncertain' around it, so that at most this share of answers is wrong", 0, 1
    )
    sets: float | None = option(
        None, "or where the conformal set of this coverage is not one class", 0, 1
    )
    costs: tuple[float, float] | None = option(
        None, "what a missed case and a false alarm cost; chooses the cheapest threshold"
    )


@dataclass(frozen=True, slots=True)
class ScoresConfig:
    """How `evaluate --scores` reads its table."""

    score_column: str = option("", "column of --scores; else the first of score, probability")
    threshold: float | None = option(None, "of --scores; else its column 'threshold'")


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """How an operating point is planned."""

    confidence: float = option(
        0.95, "one-sided confidence that the wanted rate holds at the chosen threshold", 0.5, 0.999
    )
    power: float = option(
        0.9, "chance that a check on local patients succeeds if all is as expected", 0.5, 0.999
    )
    margin: float = option(
        0.05, "what a local check may find less than expected, where no rate is wanted", 0.001, 0.5
    )
    level: float = option(0.95, "confidence level of intervals", 0.01, 0.9999)
    resamples: int = option(2000, "bootstrap resamples of patients", 1)
    seed: int = option(0, "seed of the bootstrap", 0, _MOST_SEED)

    def intervals(self) -> IntervalConfig:
        """How its intervals are made."""
        return IntervalConfig(self.level, self.resamples, self.seed)


@dataclass(frozen=True, slots=True)
class CrossValidationConfig:
    """How a data set is divided for cross-validation."""

    folds: int = option(5, "parts; each is held out once", 2, 100)
    by: Literal["random", "block"] = option(
        "random", "random patients, or blocks of consecutive ids of each kind"
    )


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """When a new model may take the place of an old one: it must not be worse by more than this."""

    auc_margin: float = option(0.01, "AUC may be lower by less than this", 0, 1)
    sensitivity_margin: float = option(0.02, "sensitivity may be lower by less than this", 0, 1)
    specificity_margin: float = option(0.02, "specificity may be lower by less than this", 0, 1)
    confidence: float = option(0.95, "one-sided confidence of the verdict", 0.5, 0.999)
    fewest: int = option(30, "patients of each class below which nothing is passed", 2)
    level: float = option(0.95, "confidence level of intervals", 0.01, 0.9999)
    resamples: int = option(2000, "bootstrap resamples of patients", 1)
    seed: int = option(0, "seed of the bootstrap", 0, _MOST_SEED)

    def intervals(self) -> IntervalConfig:
        """How its intervals are made."""
        return IntervalConfig(self.level, self.resamples, self.seed)
