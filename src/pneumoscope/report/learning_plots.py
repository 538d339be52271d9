"""How training went, epoch by epoch, as three small figures.

Comes in: `LearningCurves`. Goes out: `Svg`, the same bytes for the same input.
Knows nothing of pages or of how training works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pneumoscope.report.axes import SMALL_HEIGHT, SMALL_WIDTH, grid, name_axes, new_axes, spread
from pneumoscope.report.content import LearningCurves
from pneumoscope.report.formatting import number, plural
from pneumoscope.report.svg import INK, MUTED, Colour, Svg, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning_loss(curves: LearningCurves) -> Svg:
    """Training and validation loss per epoch."""
    best = curves.epochs[_best(curves)]
    series = {
        "training": (MUTED, [e.loss for e in curves.epochs]),
        "validation": (INK, [e.val_loss for e in curves.epochs]),
    }
    reading = (
        f"Validation loss is {number(best.val_loss)} in the best epoch, {best.epoch}, and training "
        f"loss {number(best.loss)}."
    )
    return _learning("learning-loss", "Loss", series, curves, reading)


def learning_auc(curves: LearningCurves) -> Svg:
    """Validation AUC per epoch: what the best epoch was chosen by."""
    best = curves.epochs[_best(curves)]
    series = {"validation": (INK, [e.val_auc for e in curves.epochs])}
    reading = f"Validation AUC peaks at {number(best.val_auc, 4)} in epoch {best.epoch}."
    return _learning("learning-auc", "AUC", series, curves, reading)


def learning_rate(curves: LearningCurves) -> Svg:
    """The optimiser's step size per epoch, on a logarithmic axis."""
    rates = [e.learning_rate for e in curves.epochs]
    first, last = (f"{rate:.8f}".rstrip("0").rstrip(".") for rate in (rates[0], rates[-1]))
    reading = f"The learning rate goes from {first} to {last} over {plural(len(rates), 'epoch')}."
    return _learning("learning-rate", "Learning rate", {"": (INK, rates)}, curves, reading)


def _learning(
    name: str,
    y_label: str,
    series: dict[str, tuple[Colour, list[float]]],
    curves: LearningCurves,
    reading: str,
) -> Svg:
    epochs = [e.epoch for e in curves.epochs]
    rates = not all(series)
    with drawing():
        right = 58 if len(series) > 1 else 12
        figure, axes = new_axes(SMALL_WIDTH, SMALL_HEIGHT, margins=(44, 34, right, 46))
        grid(axes)
        for colour, values in series.values():
            axes.plot(
                epochs, values, color=colour.light, drawstyle="steps-mid" if rates else "default"
            )
        if rates and min(series[""][1]) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.8f}".rstrip("0").rstrip("."))
        if len(series) > 1:
            _end_labels(axes, epochs[-1], series)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.set_xticks(_epoch_ticks(epochs))
        axes.axvline(curves.best_epoch, color=INK.light, linewidth=0.8, dashes=(2, 2))
        near_end = curves.best_epoch > (epochs[0] + epochs[-1]) / 2
        axes.text(
            curves.best_epoch,
            1.03,
            f"best: epoch {curves.best_epoch}",
            transform=axes.get_xaxis_transform(),
            ha="right" if near_end else "left",
            va="bottom",
            fontsize=9,
            color=INK.light,
        )
        name_axes(axes, "Epoch", y_label, pad=24)

        return to_svg(figure, name, reading)


def _end_labels(axes: Axes, last: int, series: dict[str, tuple[Colour, list[float]]]) -> None:
    low, high = axes.get_ylim()
    heights = spread([values[-1] for _, values in series.values()], 0.09 * (high - low))
    for (label, (colour, _)), height in zip(series.items(), heights, strict=True):
        axes.annotate(
            label,
            (last, height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour.light,
            annotation_clip=False,
        )


def _epoch_ticks(epochs: Sequence[int]) -> list[int]:
    step = max(1, -(-len(epochs) // 5))
    nice = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10_000) if s >= step)
    return [e for e in epochs if e % nice == 0] or [epochs[0]]


def _best(curves: LearningCurves) -> int:
    numbers = [e.epoch for e in curves.epochs]
    return numbers.index(curves.best_epoch)
