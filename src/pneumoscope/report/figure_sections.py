"""The sections of a report that consist of figures, one function each, and the learning curves.

A section function returns `None` if its section has no content. Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pneumoscope.evaluation.calibration import BrierParts
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.records import Estimate
from pneumoscope.report import plots
from pneumoscope.report.checklist import flow_diagram
from pneumoscope.report.content import LearningCurves, ReportContent
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
    """All defined figures of an evaluation: `confusion`, `scores`, `roc` and so on.

    Example:
        `for svg in evaluation_figures(found): svg.save(folder / f"{svg.name}.svg")`
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
    """The flow of participants, from the images found to the confusion matrix."""
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
    intro = f"{plural(len(curves.epochs), 'epoch')}. {_why_kept(curves)}"
    if curves.networks > 1:
        intro += f" The curves are those of the first of {curves.networks} networks."
    drawn = (learning_loss(curves), learning_auc(curves), learning_rate(curves))
    view = FiguresView(intro, tuple(Drawn("", svg) for svg in drawn), small=True)
    return Section(
        "learning", "Learning curves", "Learning", "sections/figures.html.j2", view, flows=True
    )


def _why_kept(curves: LearningCurves) -> str:
    """Which epoch's weights were kept, and whether it is the one with the highest AUC."""
    kept, highest = curves.kept, curves.highest
    if curves.keep == "last":
        text = f"The weights of the last epoch, {kept.epoch}, were kept, as fit.keep sets"
    elif kept == highest:
        return f"The weights of epoch {kept.epoch} were kept; it has the highest validation AUC."
    else:
        text = (
            f"The weights of epoch {kept.epoch} were kept: the validation AUC of no later one is "
            "higher by more than fit.min_delta"
        )
    if kept == highest:
        return f"{text}."
    return (
        f"{text}; its validation AUC is {number(kept.val_auc, 4)}, the highest "
        f"{number(highest.val_auc, 4)} in epoch {highest.epoch}."
    )


def decisions(content: ReportContent) -> Section:
    """The predictions at the threshold: confusion matrix and score histogram."""
    found = content.evaluation
    matrix, at, nouns = found.confusion_matrix, found.threshold, found.scale.nouns
    histogram = plots.score_histogram(found.histogram, at, matrix)
    view = FiguresView(
        f"The predicted classes, and the distribution of the predicted {nouns}.",
        (
            Drawn("Confusion matrix", plots.confusion(matrix)),
            Drawn(
                f"{nouns.capitalize()} by class",
                histogram,
                "Counts are on a square-root scale to keep rare errors visible.",
            ),
        ),
    )
    title = "Predictions at the threshold"
    return Section("calls", title, "Predictions", "sections/figures.html.j2", view)


def ranking(content: ReportContent) -> Section | None:
    """ROC and precision–recall curves: performance at every threshold."""
    found = content.evaluation
    level = found.interval.level
    curves = roc_and_precision_recall_figures(found)
    if not curves:
        return None
    titles = {"roc": "ROC curve", "precision-recall": "Precision–recall curve"}
    view = FiguresView(
        f"How well the {found.scale.nouns} separate the classes at every threshold. The bands are "
        f"pointwise {percent(level)} intervals.",
        tuple(Drawn(titles[svg.name], svg) for svg in curves),
    )
    title = "Performance at every threshold"
    return Section("curves", title, "Curves", "sections/figures.html.j2", view, flows=True)


def roc_and_precision_recall_figures(found: Evaluation) -> tuple[Svg, ...]:
    """The ROC and precision–recall curves that are defined, with the operating point."""
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
    """The calibration of the probabilities."""
    found = content.evaluation
    assessed = found.calibration
    if not found.reliability.images or assessed is None:
        return None
    observed = f"the observed frequency of pneumonia is {number(assessed.prevalence)}"
    rows = (
        (Head("Mean predicted probability", observed), number(assessed.mean_probability), ABSENT),
        _calibration_row(
            "Calibration slope", assessed.slope, "ideal: 1; below 1, probabilities are too extreme"
        ),
        _calibration_row(
            "Calibration intercept", assessed.intercept, "ideal: 0; fitted together with the slope"
        ),
        _calibration_row(
            "Calibration in the large",
            assessed.in_the_large,
            "ideal: 0; below 0, probabilities are too high on average",
        ),
        *_brier_rows(assessed.brier),
    )
    columns = (
        Column("Quantity"),
        Column("Value", numeric=True),
        Column(f"{percent(found.interval.level)} interval", numeric=True),
    )
    note = "Slope, intercept and calibration in the large are on the logit scale. The last rows "
    note += "decompose the Brier score: reliability − resolution + uncertainty + within bins."
    table = Table("Calibration in numbers", columns, rows, note)
    figure = plots.reliability(found.reliability, found.metrics["ece"])
    view = FiguresView(
        "Whether predicted probabilities agree with observed frequencies: of the X-rays with a "
        "predicted probability of 0.8, eight in ten should show pneumonia.",
        (Drawn("Reliability diagram", figure, "Vertical lines are Wilson intervals."),),
        beside=table,
    )
    return Section(
        "calibration", "Calibration", "Calibration", "sections/figures.html.j2", view, flows=True
    )


def _brier_rows(parts: BrierParts) -> tuple[tuple[Head, str, str], ...]:
    """Murphy's decomposition of the Brier score."""
    named = (
        (
            "Reliability",
            parts.reliability,
            "mean squared gap between probability and observed frequency; 0 is best",
        ),
        (
            "Resolution",
            parts.resolution,
            "variance of the observed frequency between bins; higher is better",
        ),
        ("Uncertainty", parts.uncertainty, "depends on the prevalence only, not on the model"),
        ("Within bins", parts.within_bin, "remainder from grouping the probabilities into bins"),
    )
    return tuple((Head(name, meaning), number(value, 4), ABSENT) for name, value, meaning in named)


def _calibration_row(name: str, estimate: Estimate, meaning: str) -> tuple[Head, str, str]:
    if estimate.value is None:
        meaning = "not defined: perfect separation of the classes, or one class is missing"
    return Head(name, meaning), number(estimate.value), interval(estimate)


def subgroups(content: ReportContent) -> Section | None:
    """Sensitivity by subtype of pneumonia."""
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
        "Whether one subtype of pneumonia is missed more often than another. The data set states "
        "the subtypes.",
        (Drawn("", _subgroup_figure(found)),),
        tables=(table,),
    )
    return Section(
        "subgroups", "Subtypes", "Subtypes", "sections/figures.html.j2", view, flows=True
    )


def _subgroup_figure(found: Evaluation) -> Svg:
    groups = [
        plots.Group(name.capitalize(), group.sensitivity, group.images)
        for name, group in found.subgroups.items()
    ]
    return plots.group_rates(groups, "Sensitivity", found.interval.level)


def learning_loss(curves: LearningCurves) -> Svg:
    """Draw training and validation loss per epoch."""
    kept = curves.kept
    series = {
        "training": (MUTED, [e.loss for e in curves.epochs]),
        "validation": (INK, [e.val_loss for e in curves.epochs]),
    }
    reading = (
        f"In the kept epoch, {kept.epoch}, the validation loss is {number(kept.val_loss)} and the "
        f"training loss {number(kept.loss)}."
    )
    return _learning("learning-loss", "Loss", series, curves, reading)


def learning_auc(curves: LearningCurves) -> Svg:
    """Draw the validation AUC per epoch."""
    kept, highest = curves.kept, curves.highest
    series = {"validation": (INK, [e.val_auc for e in curves.epochs])}
    reading = f"Validation AUC peaks at {number(highest.val_auc, 4)} in epoch {highest.epoch}"
    reading += (
        ", which was kept."
        if kept == highest
        else f"; it is {number(kept.val_auc, 4)} in the kept epoch, {kept.epoch}."
    )
    return _learning("learning-auc", "AUC", series, curves, reading)


def learning_rate(curves: LearningCurves) -> Svg:
    """Draw the learning rate per epoch, on a logarithmic axis."""
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
        axes.axvline(curves.kept_epoch, color=INK.light, linewidth=0.8, dashes=(2, 2))
        near_end = curves.kept_epoch > (epochs[0] + epochs[-1]) / 2
        axes.text(
            curves.kept_epoch,
            1.03,
            f"kept: epoch {curves.kept_epoch}",
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
