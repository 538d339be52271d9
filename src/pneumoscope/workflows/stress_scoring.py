"""Score every image and every modified copy of it, for a stress test.

Each image is decoded once. A thread makes the copies of the next image while the engine runs
inference on the copies of the current one. The results are one `Stressed` per image, in order;
`stress_numbers.py` turns them into metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from PIL import Image

from pneumoscope.arrays import Float32Array
from pneumoscope.config import PreprocessConfig, StressConfig
from pneumoscope.errors import ImageRefusedError
from pneumoscope.images.lungs import (
    MATCHED_SHARES,
    USUAL_SHARE,
    Ink,
    LungFields,
    Mask,
    MaskFolder,
    bounding_box,
    centre_only,
    find_lungs,
    keep_inside,
    lung_box,
    mask_out,
    match_framing,
    ring_only,
    swap_background,
    swap_ring,
)
from pneumoscope.images.perturbation_sweeps import SWEEPS
from pneumoscope.images.read import read_image
from pneumoscope.inference.overlay import fit_map, shrunk
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import Result
from pneumoscope.prefetching import prefetched
from pneumoscope.records import ImageRecord
from pneumoscope.workflows.stress_files import Output, Stressed

PLAIN = "plain"
_THUMBNAIL = 16
_DIGITS = 4

Class = Literal["same", "other"]
"""Whether the donor of a background has the same class as the image that receives it."""


@dataclass(frozen=True, slots=True)
class ChangeInput:
    """The inputs of a change.

    Attributes:
        pixels: the image, float32 (h, w) in [0, 1].
        lungs: its lung fields; `None` if there are none of sufficient quality.
        donors: other images, whose background can replace its own.
    """

    pixels: Float32Array
    lungs: LungFields | None = None
    donors: Mapping[Class, Float32Array] = field(default_factory=dict)


Change = Callable[[ChangeInput], Float32Array | None]


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to modify an image; `change` returns `None` where lungs or a donor are missing."""

    name: str
    title: str
    change: Change


@dataclass(frozen=True, slots=True)
class Exchange:
    """A background swap as two conditions: donors of the same class and of the other class."""

    name: str
    title: str
    same: Condition
    other: Condition


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A decoded image: measurements, and its copies (`None` where a copy can't be made)."""

    path: str
    facts: Stressed
    lungs: LungFields | None
    copies: tuple[Float32Array | None, ...]

    @property
    def made(self) -> int:
        """Number of copies, hence of results to wait for."""
        return sum(copy is not None for copy in self.copies)


def shortcut_conditions(config: StressConfig) -> tuple[Condition, ...]:
    """Conditions that keep or mask one part of the image, in black and in grey; background swaps.

    Each background swap occurs twice: the donor is of the same class, then of the other class.
    """
    pairs = zip(_painted(config, "black"), _painted(config, "grey"), strict=True)
    painted = [condition for pair in pairs for condition in pair]
    lent = [condition for pair in exchanges(config) for condition in (pair.same, pair.other)]
    return (*painted, *lent)


def exchanges(config: StressConfig) -> tuple[Exchange, ...]:
    """Background swaps: the outer ring, all outside a box around the lungs, all but the lungs."""

    def around(outline: Callable[[LungFields], Mask]) -> _Swap:
        return lambda image, lungs, donor: (
            None if lungs is None else swap_background(image, donor, outline(lungs))
        )

    return (
        _exchange(
            "ring_of",
            f"outer ring of {_width(config)}",
            "outer ring",
            lambda image, _, donor: swap_ring(image, donor, config.ring),
        ),
        _exchange(
            "around_box_of",
            "everything outside a box around the lungs",
            "outside a box",
            around(lambda lungs: bounding_box(lungs.wide)),
        ),
        _exchange(
            "around_lungs_of",
            "everything outside the lungs",
            "outside the lungs",
            around(lambda lungs: lungs.wide),
        ),
    )


def framing_conditions(config: StressConfig) -> tuple[Condition, ...]:
    """Cropped images in which the lungs fill one share of the frame, at several shares.

    An image whose lungs are not detected is cropped by the median box.
    """

    def matched(share: float) -> Change:
        return lambda given: match_framing(given.pixels, lung_box(given.lungs), share)

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


_Swap = Callable[[Float32Array, LungFields | None, Float32Array], Float32Array | None]


def _exchange(name: str, title: str, short: str, swap: _Swap) -> Exchange:
    def condition(which: Class) -> Condition:
        def change(given: ChangeInput) -> Float32Array | None:
            donor = given.donors.get(which)
            return None if donor is None else swap(given.pixels, given.lungs, donor)

        return Condition(f"{name}_{which}", f"{short}, from the {which} class", change)

    return Exchange(name, title, condition("same"), condition("other"))


def _width(config: StressConfig) -> str:
    return f"{100 * config.ring:g}\N{NO-BREAK SPACE}%"


def _painted(config: StressConfig, ink: Ink) -> tuple[Condition, ...]:
    width = _width(config)
    end = "" if ink == "black" else f"_{ink}"

    def on_lungs(change: Callable[[Float32Array, LungFields], Float32Array]) -> Change:
        return lambda given: None if given.lungs is None else change(given.pixels, given.lungs)

    return (
        Condition(
            f"lungs_removed{end}",
            f"lungs painted {ink}",
            on_lungs(lambda image, lungs: mask_out(image, lungs.wide, ink)),
        ),
        Condition(
            f"box_removed{end}",
            f"a box around the lungs painted {ink}",
            on_lungs(lambda image, lungs: mask_out(image, bounding_box(lungs.wide), ink)),
        ),
        Condition(
            f"lungs_only{end}",
            f"lungs only, all else {ink}",
            on_lungs(lambda image, lungs: keep_inside(image, lungs.mask, ink)),
        ),
        Condition(
            f"ring_only{end}",
            f"outer ring of {width} only, all else {ink}",
            lambda given: ring_only(given.pixels, config.ring, ink),
        ),
        Condition(
            f"centre_only{end}",
            f"outer ring of {width} painted {ink}",
            lambda given: centre_only(given.pixels, config.ring, ink),
        ),
    )


def conditions_of(config: StressConfig) -> tuple[Condition, ...]:
    """All conditions: the unmodified image, the perturbation sweeps, shortcuts, matched framing."""

    def changed(step_change: Callable[..., Float32Array]) -> Change:
        return lambda given: step_change(given.pixels, config.seed)

    found = [Condition(PLAIN, "unmodified", lambda given: given.pixels)]
    for sweep in SWEEPS:
        for step in sweep.steps:
            change = step.perturbation
            found.append(Condition(change.name, change.title, changed(change.apply)))
    shortcuts = shortcut_conditions(config) if config.shortcuts else ()
    return (*found, *shortcuts, *framing_conditions(config))


def score_stressed(
    records: Sequence[ImageRecord],
    predictor: Predictor,
    config: StressConfig,
    masks: MaskFolder | None,
    begin: int = 0,
) -> Iterator[Stressed]:
    """Yield one `Stressed` per record from `begin` on, in order.

    Args:
        records: labelled images.
        predictor: the model.
        config: longest side, shortcuts, seed.
        masks: a user's lung masks; `None`: lungs are segmented.
        begin: number of records to skip; they still serve as background donors.

    Raises:
        DataError: a mask has no white.
        ImageRefusedError: a mask exists but can't be read.
    """
    conditions = conditions_of(config)
    preprocessing = predictor.manifest.preprocessing
    waiting: deque[_Prepared] = deque()

    def copies() -> Iterator[tuple[str, Float32Array]]:
        wanted = range(begin, len(records))
        for prepared in prefetched(
            _prepared(records, k, conditions, config, masks) for k in wanted
        ):
            waiting.append(prepared)
            for condition, copy in zip(conditions, prepared.copies, strict=False):
                if copy is not None:
                    yield f"{prepared.path} ({condition.name})", copy

    collected: list[Result] = []
    for result in predictor.predict_images(copies()):
        collected.append(result)
        while waiting and len(collected) >= waiting[0].made:
            prepared = waiting.popleft()
            yield _finished(prepared, collected[: prepared.made], preprocessing)
            del collected[: prepared.made]
    while waiting:  # unreadable images at the end of the list
        yield waiting.popleft().facts


def read_pixels(record: ImageRecord, config: StressConfig) -> Float32Array:
    """The image's pixels, (h, w) in [0, 1], shrunk to at most `config.longest_side` a side.

    Raises:
        ImageRefusedError: the image can't be read.
    """
    return shrunk(read_image(record.path).pixels, config.longest_side)


def donors_of(
    records: Sequence[ImageRecord], position: int, config: StressConfig
) -> dict[Class, Float32Array]:
    """The background donors of one of `records`: per class the next image of another patient.

    A class is absent if it has no other patient, or if its image can't be read.
    """
    if not config.shortcuts:
        return {}
    own = records[position]
    others = [r for r in (*records[position:], *records[:position]) if r.patient != own.patient]
    found: dict[Class, Float32Array] = {}
    wanted: dict[Class, int] = {"same": own.label, "other": 1 - own.label}
    for which, label in wanted.items():
        donor = next((record for record in others if record.label == label), None)
        if donor is not None:
            with suppress(ImageRefusedError):
                found[which] = read_pixels(donor, config)
    return found


def lungs_of(
    record: ImageRecord, pixels: Float32Array, config: StressConfig, masks: MaskFolder | None
) -> LungFields | None:
    """The lung fields of an image, from its mask or by segmentation; `None` without either.

    Raises:
        DataError: the mask has no white.
        ImageRefusedError: the mask can't be read.
    """
    if not config.shortcuts:
        return None
    height, width = pixels.shape
    return masks.lungs(record.path, (height, width)) if masks else find_lungs(pixels)


def _prepared(
    records: Sequence[ImageRecord],
    position: int,
    conditions: Sequence[Condition],
    config: StressConfig,
    masks: MaskFolder | None,
) -> _Prepared:
    record = records[position]
    try:
        image = read_image(record.path)
    except ImageRefusedError as error:
        refused = Stressed(reason=error.reason.value, warnings=error.warnings)
        return _Prepared(str(record.path), refused, None, ())
    pixels = shrunk(image.pixels, config.longest_side)
    lungs = lungs_of(record, pixels, config, masks)
    facts = Stressed(
        lung_quality=None if lungs is None else round(lungs.quality, _DIGITS),
        properties=_properties(record, image.pixels),
        thumbnail=_thumbnail(pixels),
        warnings=image.warnings,
    )
    if lungs is not None and lungs.quality < config.lung_quality:
        lungs = None
    if lungs is not None:
        share = round(float(lungs.mask.mean()), _DIGITS)
        outline = _thumbnail(lungs.wide.astype(np.float32))
        matched = find_lungs(match_framing(pixels, lung_box(lungs), USUAL_SHARE))
        facts = replace(
            facts,
            lung_share=share,
            outline=outline,
            box=_box(lungs),
            matched_box=_box(matched),
        )
    given = ChangeInput(pixels, lungs, donors_of(records, position, config))
    made = tuple(condition.change(given) for condition in conditions)
    return _Prepared(str(record.path), facts, lungs, made)


def _finished(prepared: _Prepared, results: list[Result], config: PreprocessConfig) -> Stressed:
    remaining = iter(results)
    outputs: list[Output] = []
    energy = peak = None
    for copy in prepared.copies:
        if copy is None:
            outputs.append(None)
            continue
        result = next(remaining)
        prediction = result.prediction
        outputs.append(
            prediction.reason if prediction.probability is None else prediction.probability
        )
        if len(outputs) == 1 and prepared.lungs is not None and result.cam is not None:
            energy, peak = _localised(result.cam, prepared.lungs, config)
    return replace(prepared.facts, outputs=tuple(outputs), energy=energy, peak=peak)


def _localised(
    cam: Float32Array, lungs: LungFields, config: PreprocessConfig
) -> tuple[float | None, bool | None]:
    """The fraction of a heatmap's energy inside the lungs, and whether its peak lies inside them.

    Both are `None` if the heatmap is zero everywhere.
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


def _properties(record: ImageRecord, pixels: Float32Array) -> tuple[float, ...]:
    height, width = pixels.shape
    size = float(record.path.stat().st_size)
    mean, deviation = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
    return (float(width), float(height), width / height, size, mean, deviation)


def _thumbnail(image: Float32Array) -> tuple[float, ...]:
    small = Image.fromarray(image).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return tuple(np.asarray(small, np.float64).ravel().round(_DIGITS).tolist())
