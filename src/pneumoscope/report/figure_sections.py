"""The sections of a report that are figures, one function each; `None`: nothing to show.

Comes in: `ReportContent`. Goes out: `Section`s that hold drawn figures and tables of words.
Knows nothing of HTML, and measures nothing.

How training went, epoch by epoch, as three small figures.

Comes in: `LearningCurves`. Goes out: `Svg`, the same bytes for the same input.
Knows nothing of pages or of how training works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pneumoscope.evaluation.calibration import BrierParts
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.records import Estimate
from pneumoscope.report import figure_sections, plots
from pneumoscope.report.content import LearningCurves, ReportContent
from pneumoscope.report.flow import flow_diagram
from pneumoscope.report.formatting import ABSENT, count, interval, number, percent, plural
from pneumoscope.report.page import Column, Drawn, FiguresView, Head, Section, Table
from pneumoscope.report.svg import (
    INK,
    MUTED,
    SMALL_HEIGHT,
    SMALL_WIDTH,
    Colour,
    Svg,
    drawing,
    grid,
    name_axes,
    new_axes,
    spread,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def evaluation_figures(found: Evaluation) -> tuple[Svg, ...]:
    """Every figure of an evaluation that is defined: `confusion`, `scores`, `roc` and so on.

    `evaluate` writes them as files: `for svg in …: svg.save(folder / f"{svg.name}.svg")`.
    """
    figures = [
        plots.confusion(found.confusion_matrix),
        plots.score_histogram(found.histogram, found.threshold, found.confusion_matrix),
        *roc_and_precision_recall_figures(found),
    ]
    if found.reliability.images:
        figures.append(plots.reliability(found.reliability, found.metrics["ece"]))
    if found.subgroups:
        figures.append(_subgroup_figure(found))
    return tuple(figures)


def flow(content: ReportContent) -> Section | None:
    """From the images that were found to the cells of the result."""
    if content.flow is None:
        return None
    view = FiguresView(
        "Index test: the model. Reference standard: the labels of the data set.",
        (Drawn("", flow_diagram(content.flow)),),
    )
    title = "Flow of participants"
    return Section("flow", title, "Flow", "sections/figures.html.j2", view, flows=True)


def learning(content: ReportContent) -> Section | None:
    """Loss, AUC and learning rate per epoch."""
    curves = content.learning
    if curves is None or not curves.epochs:
        return None
    intro = (
        f"{plural(len(curves.epochs), 'epoch')}; the weights of epoch {curves.best_epoch} were "
        "kept, the one with the highest AUC on validation."
    )
    drawn = (
        figure_sections.learning_loss(curves),
        figure_sections.learning_auc(curves),
        figure_sections.learning_rate(curves),
    )
    view = FiguresView(intro, tuple(Drawn("", svg) for svg in drawn), small=True)
    return Section(
        "learning", "Learning curves", "Learning", "sections/figures.html.j2", view, flows=True
    )


def decisions(content: ReportContent) -> Section:
    """The calls at the threshold: confusion matrix and score histogram."""
    found = content.evaluation
    matrix, at = found.confusion_matrix, found.threshold
    histogram = plots.score_histogram(found.histogram, at, matrix)
    view = FiguresView(
        "What the model called, and how sure it was.",
        (
            Drawn("Confusion matrix", plots.confusion(matrix)),
            Drawn(
                "Probabilities by class",
                histogram,
                "Counts are on a square-root scale, so that rare errors stay visible.",
            ),
        ),
    )
    return Section("calls", "Calls at the threshold", "Calls", "sections/figures.html.j2", view)


def ranking(content: ReportContent) -> Section | None:
    """ROC and precision–recall: what other thresholds would give."""
    found = content.evaluation
    level = found.interval.level
    curves = roc_and_precision_recall_figures(found)
    if not curves:
        return None
    titles = {"roc": "ROC curve", "precision-recall": "Precision–recall curve"}
    view = FiguresView(
        "How well the probabilities part the classes at every threshold. The bands are pointwise "
        f"{percent(level)} intervals.",
        tuple(Drawn(titles[svg.name], svg) for svg in curves),
    )
    title = "Performance at every threshold"
    return Section("curves", title, "Curves", "sections/figures.html.j2", view, flows=True)


def roc_and_precision_recall_figures(found: Evaluation) -> tuple[Svg, ...]:
    """Those of the two that are defined, with the operating point."""
    matrix, level, at = found.confusion_matrix, found.interval.level, found.threshold
    positives, negatives = matrix.tp + matrix.fn, matrix.tn + matrix.fp
    called = matrix.tp + matrix.fp
    drawn = []
    if found.roc is not None and positives and negatives:
        point = plots.OperatingPoint(matrix.fp / negatives, matrix.tp / positives, at)
        drawn.append(plots.roc(found.roc, point, found.metrics["auc"], level))
    if found.precision_recall is not None and positives:
        on_curve = (
            plots.OperatingPoint(matrix.tp / positives, matrix.tp / called, at) if called else None
        )
        drawn.append(
            plots.precision_recall(
                found.precision_recall,
                on_curve,
                found.metrics["average_precision"],
                level,
                found.positives / found.n,
            )
        )
    return tuple(drawn)


def probabilities(content: ReportContent) -> Section | None:
    """Whether the probabilities can be taken at their word."""
    found = content.evaluation
    assessed = found.calibration
    if not found.reliability.images or assessed is None:
        return None
    observed = f"the observed share of pneumonia is {number(assessed.prevalence)}"
    rows = (
        (Head("Mean stated probability", observed), number(assessed.mean_probability), ABSENT),
        _calibration_row("Slope", assessed.slope, "1 is best; below 1, too extreme"),
        _calibration_row("Intercept", assessed.intercept, "of the line with that slope; best is 0"),
        _calibration_row(
            "In the large", assessed.in_the_large, "0 is best; below 0, too high on the whole"
        ),
        *_brier_rows(assessed.brier),
    )
    columns = (
        Column("Quantity"),
        Column("Value", numeric=True),
        Column(f"{percent(found.interval.level)} interval", numeric=True),
    )
    note = "Slope to ‘in the large’ on the logit scale; then the Brier score taken apart: "
    note += "reliability − resolution + uncertainty + within bins."
    table = Table("Calibration in numbers", columns, rows, note)
    figure = plots.reliability(found.reliability, found.metrics["ece"])
    view = FiguresView(
        "Whether a stated probability means what it says: of the X-rays given 0.8, eight in ten "
        "should show pneumonia.",
        (Drawn("Reliability", figure, "Vertical lines are Wilson intervals."),),
        beside=table,
    )
    return Section(
        "calibration", "Calibration", "Calibration", "sections/figures.html.j2", view, flows=True
    )


def _brier_rows(parts: BrierParts) -> tuple[tuple[Head, str, str], ...]:
    """Murphy's parts of the Brier score."""
    named = (
        ("Reliability", parts.reliability, "gap of probability and share, squared; 0 is best"),
        ("Resolution", parts.resolution, "how far the shares differ; higher is better"),
        ("Uncertainty", parts.uncertainty, "of the mix of classes; no merit of the model"),
        ("Within bins", parts.within_bin, "what taking bins as one leaves over"),
    )
    return tuple((Head(name, meaning), number(value, 4), ABSENT) for name, value, meaning in named)


def _calibration_row(name: str, estimate: Estimate, meaning: str) -> tuple[Head, str, str]:
    if estimate.value is None:
        meaning = "not defined: the scores part the classes without error, or one class is missing"
    return Head(name, meaning), number(estimate.value), interval(estimate)


def subgroups(content: ReportContent) -> Section | None:
    """Sensitivity by subtype, and specificity beside it for comparison."""
    found = content.evaluation
    if not found.subgroups:
        return None
    table = Table(
        "Sensitivity by subtype",
        (
            Column("Subtype"),
            *(
                Column(title, numeric=True)
                for title in (
                    "X-rays",
                    "Patients",
                    "Sensitivity",
                    f"{percent(found.interval.level)} interval",
                )
            ),
        ),
        tuple(
            (
                name.capitalize(),
                count(group.images),
                count(group.patients),
                number(group.sensitivity.value),
                interval(group.sensitivity),
            )
            for name, group in found.subgroups.items()
        ),
    )
    view = FiguresView(
        "Whether one kind of pneumonia is missed more often than another. Subtypes come from "
        "the data set.",
        (Drawn("", _subgroup_figure(found)),),
        tables=(table,),
    )
    return Section(
        "subgroups", "Subgroups", "Subgroups", "sections/figures.html.j2", view, flows=True
    )


def _subgroup_figure(found: Evaluation) -> Svg:
    groups = [
        plots.Group(name.capitalize(), group.sensitivity, group.images)
        for name, group in found.subgroups.items()
    ]
    return plots.group_rates(groups, "Sensitivity", found.interval.level)


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
