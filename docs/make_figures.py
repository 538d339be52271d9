"""Draw docs/figures/ and write docs/evidence.md from results on held-out patients.

    python docs/make_figures.py FOLDER

FOLDER holds the outputs of `evaluate` (evaluation/), `plan` (plan/), `compare` (compare/), `data
audit` (audit/) and `stress` (stress/), all of the same images. Curves and numbers alone are taken
from them: a figure with a picture in it stops the script, so that no X-ray gets here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

from make_results import CARD, selection

from pneumoscope.records import Estimate
from pneumoscope.report.formatting import interval, metric_text, number, percent
from pneumoscope.report.svg import (
    INK,
    MUTED,
    PALETTE,
    PAPER,
    Svg,
    draw_text,
    drawing,
    grid,
    mark_point,
    new_axes,
    to_svg,
)
from pneumoscope.storage import write_text

HERE = Path(__file__).parent
FIGURES = HERE / "figures"
SWEEPS_SHOWN = 4
_WIDTH, _ROW = 480, 30
_SVG = re.compile(r"<svg [^>]*?aria-label=\"([^\"]*)\"[^>]*>.*?</svg>", re.DOTALL)


def on_paper(source: str) -> str:
    """A stand-alone figure on a light ground, in a light page and in a dark one alike."""
    if "<image" in source or "data:image" in source:
        raise SystemExit("a figure holds a picture: only curves and numbers may be shown here")
    start = source.index("<svg")
    head, rest = source[start:].split(">", 1)
    rest = re.sub(r"\s*<style>.*?</style>", "", rest, count=1, flags=re.DOTALL)
    colours = ";".join(f"{colour.variable}:{colour.light}" for colour in PALETTE)
    style = f"<style>svg{{{colours};font-family:system-ui,sans-serif}}</style>"
    ground = f'<rect width="100%" height="100%" fill="{PAPER.light}"/>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}>\n{style}{ground}{rest.strip()}\n'


def reading(source: str) -> str:
    """The sentence that says what a figure shows."""
    found = _SVG.search(source)
    return unescape(found[1]) if found else ""


def from_page(page: Path, begins: str) -> str:
    """The figure of a page whose sentence begins so."""
    for found in _SVG.finditer(page.read_text(encoding="utf-8")):
        if unescape(found[1]).startswith(begins):
            return found[0]
    raise SystemExit(f"{page}: has no figure that begins with {begins!r}")


def changes(document: Mapping[str, Any]) -> Svg:
    """New minus old of the three metrics that the verdict goes by, and their margins."""
    found = document["differences"]["two_sided"]
    with drawing():
        checks = document["checks"]
        figure, axes = new_axes(_WIDTH, 74 + _ROW * len(checks), margins=(110, 38, 62, 24))
        for place, check in enumerate(checks):
            one = Estimate(**found[check["name"]])
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [place, place], color=INK.light, linewidth=2)
            mark_point(axes, one.value or 0.0, place)
            margin = [-check["margin"]] * 2
            axes.plot(margin, [place - 0.3, place + 0.3], color=MUTED.light, dashes=(2, 2))
            told = f"{one.value:+.3f}".replace("-", "−")
            draw_text(
                axes, 1.03, 1 - (place + 0.6) / (len(checks) + 0.2), told, bold=True, in_axes=True
            )
        axes.set_ylim(len(checks) - 0.4, -0.6)
        names = [metric_text(check["name"]).label for check in checks]
        axes.set_yticks(range(len(checks)), names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=MUTED.light, linewidth=0.8)
        grid(axes, "x")
        axes.set_xlabel("New minus old; dashes: the margin", labelpad=5)
        axes.locator_params(axis="x", nbins=5)
        parts = "; ".join(f"{c['name']} {found[c['name']]['value']:+.3f}" for c in checks)
        parts = parts.replace("-", "−")
        return to_svg(figure, "changes", f"New minus old: {parts}.")


def worst_sweeps(document: Mapping[str, Any]) -> list[str]:
    """The kinds of change that cost most at a plausible strength."""
    rows = [row for row in document["rows"] if row["plausible"]]
    return list(dict.fromkeys(row["sweep"] for row in rows))[:SWEEPS_SHOWN]


def sources(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and SVG of every figure."""
    for name in ("roc", "reliability"):
        path = folder / "evaluation" / "figures" / f"{name}.svg"
        yield name, path.read_text(encoding="utf-8")
    yield "decision", from_page(folder / "plan" / "plan.html", "Net benefit at")
    yield (
        "risk-coverage",
        from_page(folder / "plan" / "plan.html", "At the prevalence of these images"),
    )
    yield "changes", changes(_read(folder / "compare" / "compare.json")).standalone
    stress = folder / "stress"
    for sweep in worst_sweeps(_read(stress / "stress.json")):
        name = f"sweep-{sweep}"
        yield name, (stress / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    yield "shortcuts", (stress / "figures" / "shortcuts.svg").read_text(encoding="utf-8")
    yield "likeness", from_page(folder / "audit" / "audit.html", "Excess similarity")
    yield "split-tests", from_page(folder / "audit" / "audit.html", "AUC between splits")


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _told(found: Mapping[str, Any], digits: int = 3) -> str:
    one = Estimate(found["value"], found["low"], found["high"])
    return f"{number(one.value, digits)} ({interval(one, digits)})"


def checks_in_words(checks: Sequence[Mapping[str, Any]]) -> str:
    """The verdicts of `compare` on each metric."""
    names = {"auc": "AUC"}
    return "; ".join(
        f"lower limit of the change in {names.get(c['name'], c['name'])} {number(c['lower'])} "
        f"(margin {c['margin']:g}): "
        + ("passed" if c["passed"] else f"not passed, since it {c['reason']}")
        for c in checks
    )


def costs_in_words(stress: Mapping[str, Any]) -> str:
    """The plausible changes that cost more than the limit, or may, from `stress.json`."""
    limit = f"more than {number(stress['largest_fall'], 2)} of sensitivity or specificity"
    fails = [row for row in stress["rows"] if row["judgement"] == "fails"]
    if not fails:
        unsure = sum(row["judgement"] == "unsure" for row in stress["rows"])
        may = f" On so few images a larger cost is not excluded for {unsure} of them: the interval"
        return f"No plausible change costs {limit}." + f"{may} reaches beyond it." * bool(unsure)
    named = "; ".join(f"{row['title']} ({number(row['fall'])})" for row in fails)
    return f"Plausible changes that cost {limit}: {named}."


def page(folder: Path, readings: Mapping[str, str]) -> str:
    """`evidence.md`."""
    found, plan = _read(folder / "evaluation/metrics.json"), _read(folder / "plan/plan.json")
    compared, stress = _read(folder / "compare/compare.json"), _read(folder / "stress/stress.json")
    metrics, fitted = found["metrics"], found["calibration"]
    chosen = plan["chosen"] or plan["current"]
    share = percent(plan["prevalence"]["value"])
    shown = {row["name"]: row for row in (stress["shortcuts"] or {}).get("parts", [])}
    lent = (stress["shortcuts"] or {}).get("exchanges", [])
    parts = "; ".join(
        f"{row['title']}: {number(row['changed']['auc']['value'])}"
        for name, row in shown.items()
        if not name.endswith(("_same", "_other"))
    )
    exchanged = "; ".join(
        f"{row['title']}: {number(row['same_class']['auc']['value'])} and "
        f"{number(row['other_class']['auc']['value'])}, "
        f"a change of {_told(row['difference']['auc'])}"
        for row in lent
    )

    def figure(name: str) -> str:
        return f"![{readings[name]}](figures/{name}.svg)"

    def section(title: str, text: str, *names: str) -> list[str]:
        return [f"## {title}", text, "", *map(figure, names), ""]

    lines = [
        "# Results on held-out patients",
        "",
        "Made by `python docs/make_figures.py`; do not edit. Curves and numbers only: no X-ray is "
        "shown.",
        "",
        f"{found['n']} X-rays of {found['patients']} patients, {found['positives']} images with "
        f"pneumonia, {found['refused']} rejected by the input check: the last tenth of patient ids "
        "of each subtype in the training folder. They were held out from training, threshold and "
        f"calibration. {selection(CARD.read_text(encoding='utf-8'))} Intervals "
        f"are at {percent(found['interval']['level'])}. The images are of the same hospital as the "
        "training images: another site will differ. Research software, not a medical device.",
        "",
        *section(
            "Discrimination: `evaluate`",
            f"AUC {_told(metrics['auc'])}. At the model's threshold sensitivity is "
            f"{_told(metrics['sensitivity'])} and specificity {_told(metrics['specificity'])}: "
            "the threshold was chosen on validation images with matched framing, so it does not "
            "rely on the framing that these images share with the training images "
            "(`experiments.md`).",
            "roc",
        ),
        *section(
            "Calibration: `evaluate`",
            f"Debiased calibration error {_told(metrics['ece'])}, slope {_told(fitted['slope'])}, "
            f"calibration in the large {_told(fitted['in_the_large'])} (in logits; above 0: "
            "probabilities are too low). Dots above the line: more pneumonia than stated. The goal "
            "was an error of at most 0.02 and a slope of 0.9 to 1.1; `experiments.md` describes "
            "what was tried.",
            "reliability",
        ),
        *section(
            "Threshold: `plan`",
            f"At a prevalence of {share} and the threshold {number(chosen['threshold'], 4)} "
            f"sensitivity is {_told(chosen['sensitivity'])}, specificity "
            f"{_told(chosen['specificity'])}; among 1,000 patients "
            f"{_told(chosen['missed'], 0)} are missed and {_told(chosen['false_alarms'], 0)} "
            "are false alarms. The decision curve weighs one against the other; the model is "
            "useful where its band is above both alternatives. The second figure shows how many "
            "results are wrong if only the most certain images get one.",
            "decision",
            "risk-coverage",
        ),
        *section(
            "Against the model before it: `compare`",
            "The model that ships (new) against the one that shipped before it (old: the same "
            "network before its last block was trained again, with heatmaps of 3 × 3 cells), "
            f"{compared['n']} images: {checks_in_words(compared['checks'])}. "
            + (
                "Non-inferiority is shown."
                if compared["passed"]
                else "Non-inferiority is not shown for all three, on images that are framed as "
                "those of the training; `experiments.md` has the rule by which the new one "
                "replaced it, for its heatmap."
            ),
            "changes",
        ),
        *section(
            "Robustness: `stress`",
            f"{len(stress['rows'])} changes of the images, {stress['n']} images each. Grey: "
            f"strengths that images of another site may have. {costs_in_words(stress)}",
            *[name for name in readings if name.startswith("sweep-")],
        ),
        *section(
            "Shortcuts: `stress`",
            f"AUC of the model with parts of the image masked: {parts}. Shortcut baselines that "
            "use no model stand beside it. A model that uses only the lungs scores 0.5 with the "
            "lungs masked, and loses nothing with the rest masked. Black alone would prove too "
            "little, since it may suppress the output of a model that uses the remaining region. "
            "AUC with a part of another image, of the same class and of the other class (equal, if "
            f"only the lungs were used): {exchanged}.",
            "shortcuts",
        ),
        *section(
            "Patients and splits: `data audit`",
            "Images of one patient should look more alike than those of strangers (above 0), or "
            "the ids do not mean persons. A classifier on thumbnails should not tell one split "
            "from another (0.5): where it does, the images of the last ids differ from the earlier "
            "ones, and so may the patients that the model will meet.",
            "likeness",
            "split-tests",
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the figures, then the page."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    readings = {}
    for name, source in sources(folder):
        write_text(FIGURES / f"{name}.svg", on_paper(source))
        readings[name] = reading(source)
    for figure in FIGURES.glob("*.svg"):
        if figure.stem not in readings:  # a sweep that is none of the worst any more
            figure.unlink()
    write_text(HERE / "evidence.md", page(folder, readings))


if __name__ == "__main__":
    main()
