"""Every image as it is and as each changed copy, through the `Predictor`.

Comes in: records, a predictor, the settings. Goes out: one `Stressed` per image, in order. A film
is decoded once; its copies are made in a thread while those of the film before are answered for.
Knows nothing of metrics or pages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from PIL import Image

from pneumoscope.config import PreprocessConfig, StressConfig
from pneumoscope.errors import ImageRefusedError
from pneumoscope.images.framing import MATCHED_SHARES, USUAL_SHARE, lung_box, match_framing
from pneumoscope.images.grey import FloatArray
from pneumoscope.images.lungs import (
    Ink,
    LungFields,
    Mask,
    MaskFolder,
    box_around,
    centre_only,
    find_lungs,
    only,
    ring_of,
    ring_only,
    surroundings_of,
    without,
)
from pneumoscope.images.perturbation_sweeps import SWEEPS
from pneumoscope.images.read import read_image
from pneumoscope.inference.overlay import fit_map, shrunk
from pneumoscope.inference.predictor import Answer, Predictor
from pneumoscope.prefetching import prefetched
from pneumoscope.records import ImageRecord
from pneumoscope.workflows.stress_files import Said, Stressed

PLAIN = "plain"
_THUMBNAIL = 16
_DIGITS = 4

Class = Literal["same", "other"]
"""Whether a film that lends its surroundings is of the same class as the one it lends them to."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A film, its lungs if they are known, and the films that lend it surroundings."""

    film: FloatArray
    lungs: LungFields | None = None
    lenders: Mapping[Class, FloatArray] = field(default_factory=dict)


Change = Callable[[Shown], FloatArray | None]


@dataclass(frozen=True, slots=True)
class Condition:
    """One way of showing an image; `change` gives `None` where it needs what there is not."""

    name: str
    title: str
    change: Change


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two conditions: surroundings of a film of the same class, and of one of the other class."""

    name: str
    title: str
    same: Condition
    other: Condition


@dataclass(frozen=True, slots=True)
class _Film:
    """A decoded film: what is known of it, and the copies that could be made."""

    path: str
    known: Stressed
    lungs: LungFields | None
    copies: tuple[FloatArray | None, ...]

    @property
    def made(self) -> int:
        """How many answers it waits for."""
        return sum(copy is not None for copy in self.copies)


def shortcut_conditions(config: StressConfig) -> tuple[Condition, ...]:
    """The parts of a film that are shown alone, or not at all; each in black, then in grey.

    Then those that are taken from another film, of the same class and of the other one.
    """
    pairs = zip(_painted(config, "black"), _painted(config, "grey"), strict=True)
    painted = [condition for pair in pairs for condition in pair]
    lent = [condition for pair in exchanges(config) for condition in (pair.same, pair.other)]
    return (*painted, *lent)


def exchanges(config: StressConfig) -> tuple[Exchange, ...]:
    """What is taken from another film: its outer ring, what lies around the chest, around lungs."""

    def around(outline: Callable[[LungFields], Mask]) -> _Lending:
        return lambda film, lungs, lender: (
            None if lungs is None else surroundings_of(film, lender, outline(lungs))
        )

    return (
        _exchange(
            "ring_of",
            f"outer ring of {_width(config)}",
            "outer ring",
            lambda film, _, lender: ring_of(film, lender, config.ring),
        ),
        _exchange(
            "around_box_of",
            "all around a box about the lungs",
            "around a box",
            around(lambda lungs: box_around(lungs.wide)),
        ),
        _exchange(
            "around_lungs_of",
            "all around the lungs",
            "around the lungs",
            around(lambda lungs: lungs.wide),
        ),
    )


def framing_conditions(config: StressConfig) -> tuple[Condition, ...]:
    """Re-cut images in which the lungs fill one share of the frame, at several shares.

    An image whose lungs are not detected is re-cut by the median box.
    """

    def matched(share: float) -> Change:
        return lambda shown: match_framing(shown.film, lung_box(shown.lungs), share)

    if not config.shortcuts:
        return ()
    return tuple(
        Condition(
            f"matched_{100 * share:g}",
            f"lungs fill {100 * share:g}\N{NO-BREAK SPACE}% of each side",
            matched(share),
        )
        for share in MATCHED_SHARES
    )


_Lending = Callable[[FloatArray, LungFields | None, FloatArray], FloatArray | None]


def _exchange(name: str, title: str, short: str, lend: _Lending) -> Exchange:
    def condition(whose: Class) -> Condition:
        def change(shown: Shown) -> FloatArray | None:
            lender = shown.lenders.get(whose)
            return None if lender is None else lend(shown.film, shown.lungs, lender)

        return Condition(f"{name}_{whose}", f"{short} lent by the {whose} class", change)

    return Exchange(name, title, condition("same"), condition("other"))


def _width(config: StressConfig) -> str:
    return f"{100 * config.ring:g}\N{NO-BREAK SPACE}%"


def _painted(config: StressConfig, ink: Ink) -> tuple[Condition, ...]:
    width = _width(config)
    end = "" if ink == "black" else f"_{ink}"

    def on_lungs(change: Callable[[FloatArray, LungFields], FloatArray]) -> Change:
        return lambda shown: None if shown.lungs is None else change(shown.film, shown.lungs)

    return (
        Condition(
            f"lungs_removed{end}",
            f"lungs painted {ink}",
            on_lungs(lambda image, lungs: without(image, lungs.wide, ink)),
        ),
        Condition(
            f"box_removed{end}",
            f"a box about the lungs painted {ink}",
            on_lungs(lambda image, lungs: without(image, box_around(lungs.wide), ink)),
        ),
        Condition(
            f"lungs_only{end}",
            f"lungs alone, all else {ink}",
            on_lungs(lambda image, lungs: only(image, lungs.mask, ink)),
        ),
        Condition(
            f"ring_only{end}",
            f"outer ring of {width} alone, all else {ink}",
            lambda shown: ring_only(shown.film, config.ring, ink),
        ),
        Condition(
            f"centre_only{end}",
            f"outer ring of {width} painted {ink}",
            lambda shown: centre_only(shown.film, config.ring, ink),
        ),
    )


def conditions_of(config: StressConfig) -> tuple[Condition, ...]:
    """All ways, the image as it is first: sweeps in their order, shortcuts, matched framing."""

    def changed(step_change: Callable[..., FloatArray]) -> Change:
        return lambda shown: step_change(shown.film, config.seed)

    found = [Condition(PLAIN, "as they are", lambda shown: shown.film)]
    for sweep in SWEEPS:
        for step in sweep.steps:
            change = step.perturbation
            found.append(Condition(change.name, change.title, changed(change.apply)))
    shortcuts = shortcut_conditions(config) if config.shortcuts else ()
    return (*found, *shortcuts, *framing_conditions(config))


def answer_stressed(
    records: Sequence[ImageRecord],
    predictor: Predictor,
    config: StressConfig,
    masks: MaskFolder | None,
    begin: int = 0,
) -> Iterator[Stressed]:
    """One `Stressed` per record from `begin` on, in order.

    Args:
        records: labelled images.
        predictor: answers.
        config: longest side, shortcuts, seed.
        masks: a user's lung masks; `None`: lungs are looked for.
        begin: how many are left out; they lend their surroundings all the same.

    Raises:
        ImageRefusedError: a mask is there and can't be read.
    """
    conditions = conditions_of(config)
    preprocessing = predictor.manifest.preprocessing
    waiting: deque[_Film] = deque()

    def copies() -> Iterator[tuple[str, FloatArray]]:
        wanted = range(begin, len(records))
        for film in prefetched(_film(records, k, conditions, config, masks) for k in wanted):
            waiting.append(film)
            for condition, copy in zip(conditions, film.copies, strict=False):
                if copy is not None:
                    yield f"{film.path} ({condition.name})", copy

    collected: list[Answer] = []
    for answer in predictor.predict_images(copies()):
        collected.append(answer)
        while waiting and len(collected) >= waiting[0].made:
            film = waiting.popleft()
            yield _finished(film, collected[: film.made], preprocessing)
            del collected[: film.made]
    while waiting:  # what can't be read at the end of the list
        yield waiting.popleft().known


def read_film(record: ImageRecord, config: StressConfig) -> FloatArray:
    """The film's pixels, no longer than `config.longest_side`.

    Raises:
        ImageRefusedError: it can't be read.
    """
    return shrunk(read_image(record.path).pixels, config.longest_side)


def lenders_of(
    records: Sequence[ImageRecord], position: int, config: StressConfig
) -> dict[Class, FloatArray]:
    """The films that lend their surroundings to one of `records`: the next of other patients.

    Of a class there may be none, or none that can be read.
    """
    if not config.shortcuts:
        return {}
    own = records[position]
    others = [r for r in (*records[position:], *records[:position]) if r.patient != own.patient]
    found: dict[Class, FloatArray] = {}
    wanted: dict[Class, int] = {"same": own.label, "other": 1 - own.label}
    for whose, label in wanted.items():
        lender = next((record for record in others if record.label == label), None)
        if lender is not None:
            with suppress(ImageRefusedError):
                found[whose] = read_film(lender, config)
    return found


def lungs_of(
    record: ImageRecord, film: FloatArray, config: StressConfig, masks: MaskFolder | None
) -> LungFields | None:
    """The lungs of a film by its mask, or found; `None`: neither.

    Raises:
        ImageRefusedError: the mask can't be read.
    """
    if not config.shortcuts:
        return None
    height, width = film.shape
    return masks.lungs(record.path, (height, width)) if masks else find_lungs(film)


def _film(
    records: Sequence[ImageRecord],
    position: int,
    conditions: Sequence[Condition],
    config: StressConfig,
    masks: MaskFolder | None,
) -> _Film:
    record = records[position]
    try:
        image = read_image(record.path)
    except ImageRefusedError as error:
        refused = Stressed(reason=error.reason.value, warnings=error.warnings)
        return _Film(str(record.path), refused, None, ())
    pixels = image.pixels
    film = shrunk(pixels, config.longest_side)
    lungs = lungs_of(record, film, config, masks)
    known = Stressed(
        lung_quality=None if lungs is None else round(lungs.quality, _DIGITS),
        properties=_properties(record, pixels),
        thumbnail=_thumbnail(film),
        warnings=image.warnings,
    )
    if lungs is not None and lungs.quality < config.lung_quality:
        lungs = None
    if lungs is not None:
        share = round(float(lungs.mask.mean()), _DIGITS)
        outline = _thumbnail(lungs.wide.astype(np.float32))
        matched = find_lungs(match_framing(film, lung_box(lungs), USUAL_SHARE))
        known = replace(
            known,
            lung_share=share,
            outline=outline,
            box=_box(lungs),
            matched_box=_box(matched),
        )
    shown = Shown(film, lungs, lenders_of(records, position, config))
    made = tuple(condition.change(shown) for condition in conditions)
    return _Film(str(record.path), known, lungs, made)


def _finished(film: _Film, answers: list[Answer], config: PreprocessConfig) -> Stressed:
    given = iter(answers)
    said: list[Said] = []
    energy = peak = None
    for copy in film.copies:
        if copy is None:
            said.append(None)
            continue
        answer = next(given)
        prediction = answer.prediction
        said.append(prediction.reason if prediction.probability is None else prediction.probability)
        if len(said) == 1 and film.lungs is not None and answer.cam is not None:
            energy, peak = _localised(answer.cam, film.lungs, config)
    return replace(film.known, said=tuple(said), energy=energy, peak=peak)


def _localised(
    cam: FloatArray, lungs: LungFields, config: PreprocessConfig
) -> tuple[float | None, bool | None]:
    """The share of a heatmap inside the lungs, and whether it is hottest inside one of them.

    Both are `None` where nothing in the image speaks for pneumonia.
    """
    height, width = lungs.mask.shape
    heat = fit_map(cam, (height, width), config).astype(np.float64)
    total = float(heat.sum())
    if total <= 0:
        return None, None
    share = round(float(heat[lungs.mask].sum()) / total, _DIGITS)
    return share, bool(lungs.mask.flat[int(heat.argmax())])


def _box(lungs: LungFields) -> tuple[float, ...]:
    found = lung_box(lungs)
    return () if found is None else tuple(round(value, _DIGITS) for value in found.values())


def _properties(record: ImageRecord, pixels: FloatArray) -> tuple[float, ...]:
    height, width = pixels.shape
    size = float(record.path.stat().st_size)
    mean, deviation = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
    return (float(width), float(height), width / height, size, mean, deviation)


def _thumbnail(image: FloatArray) -> tuple[float, ...]:
    small = Image.fromarray(image).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return tuple(np.asarray(small, np.float64).ravel().round(_DIGITS).tolist())
