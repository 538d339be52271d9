"""The figures of a plan: decision curve, risk against coverage.

Comes in: curves as tuples. Goes out: `Svg`. Knows nothing of pages or of how they were measured.
"""

from __future__ import annotations

import numpy as np

from pneumoscope.evaluation.abstention import RiskCoverage
from pneumoscope.evaluation.decision import DecisionCurve
from pneumoscope.report.axes import grid, name_axes, new_axes, say
from pneumoscope.report.formatting import in_words, number, percent
from pneumoscope.report.svg import INK, MUTED, NORMAL, PNEUMONIA, Svg, drawing, to_svg


def decision(curve: DecisionCurve) -> Svg:
    """Net benefit of the model, of acting for all and for none."""
    x = np.asarray(curve.probability)
    with drawing():
        figure, axes = new_axes(margins=(46, 34, 14, 26))
        name_axes(axes, "Who acts, acts from this probability up", "Net benefit per patient")
        most = max(curve.prevalence, 0.01)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.25 * most, 1.12 * most)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        grid(axes)
        axes.axhline(0, color=MUTED.light, linewidth=0.9)
        axes.plot(x, curve.treat_all, color=NORMAL.light, linewidth=1.2, dashes=(4, 2))
        if curve.low:
            axes.fill_between(
                x, curve.low, curve.high, color=PNEUMONIA.light, alpha=0.18, linewidth=0
            )
        axes.plot(x, curve.model, color=PNEUMONIA.light)
        say(axes, 0.98, 0.06, "act for none", MUTED, ha="right", in_axes=True)
        say(axes, 0.3, 1.03 * most, "by the model", PNEUMONIA, bold=True)
        say(axes, 0.98, 0.97, "dashes: act for all", NORMAL, ha="right", in_axes=True)
        half = curve.model[int(np.abs(x - 0.5).argmin())]
        reading = (
            f"Net benefit at a prevalence of {percent(curve.prevalence, 1)}: who acts from 0.5 up "
            f"gains {number(half)} per patient by the model."
        )
        return to_svg(figure, "decision", reading)


def risk_coverage(curve: RiskCoverage, level: float) -> Svg:
    """Share of wrong answers if only the surest images are answered."""
    with drawing():
        figure, axes = new_axes(margins=(46, 34, 14, 26))
        name_axes(axes, "Coverage: share answered, the surest first", "Risk: share of these wrong")
        axes.set_xlim(0, 1.01)
        axes.set_ylim(0, max(1.15 * max(curve.risk), 0.01))
        grid(axes)
        axes.plot(curve.coverage, curve.risk, color=INK.light)
        say(axes, 0.03, 0.93, f"Area {number(curve.area.value, 4)}", bold=True, in_axes=True)
        reading = (
            f"If all are answered {percent(curve.risk[-1], 1)} of answers are wrong; the area "
            f"under the curve is {in_words(curve.area, level, 4)}."
        )
        return to_svg(figure, "risk-coverage", reading)
