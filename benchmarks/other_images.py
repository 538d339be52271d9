"""Images that are no frontal chest X-rays, drawn here or found in installed packages.

Comes in: a seed and a number. Goes out: `Other`s, each with its category and the code that is right
for it. Shows no patient: what is made of X-rays (turned, inverted) is made in `input_check.py`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pneumoscope.errors import Reason

Pixels = NDArray[np.uint8]

SIDE = 320
"""Pixels of what is drawn here, about."""

_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


@dataclass(frozen=True, slots=True)
class Other:
    """One image: uint8 (h, w) or (h, w, 3), or the path of a file; and the code that is right."""

    category: str
    content: Pixels | Path
    right: Reason = Reason.NOT_A_CHEST_XRAY


def white_noise(stream: np.random.Generator) -> Pixels:
    """Independent pixels, uniform or normal."""
    if stream.random() < 0.5:
        return stream.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    grey = stream.normal(stream.uniform(80, 180), stream.uniform(20, 80), (SIDE, SIDE))
    return _bytes(grey)


def coloured_noise(stream: np.random.Generator) -> Pixels:
    """Noise whose amplitude falls as a power of the frequency: clouds, where the power is high."""
    power = stream.uniform(0.5, 2.5)
    spectrum = np.fft.rfft2(stream.standard_normal((SIDE, SIDE)))
    rows, columns = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    radius = np.hypot(rows, columns)
    radius[0, 0] = 1.0
    spectrum[0, 0] = 0.0
    return _full_range(np.fft.irfft2(spectrum / radius**power, (SIDE, SIDE)))


def gradient(stream: np.random.Generator) -> Pixels:
    """A slope of grey, straight or round."""
    rows, columns = _grid()
    if stream.random() < 0.5:
        angle = stream.uniform(0, 2 * np.pi)
        return _full_range(rows * np.sin(angle) + columns * np.cos(angle))
    centre = stream.uniform(0.2, 0.8, 2)
    return _full_range(np.hypot(rows - centre[0], columns - centre[1]) * stream.choice([-1, 1]))


def texture(stream: np.random.Generator) -> Pixels:
    """Stripes, checks, bricks, rings, cells or weave."""
    rows, columns = _grid()
    angle, period = stream.uniform(0, np.pi), stream.uniform(0.02, 0.2)
    across = rows * np.sin(angle) + columns * np.cos(angle)
    along = rows * np.cos(angle) - columns * np.sin(angle)
    kind = stream.integers(6)
    if kind == 0:
        values = np.sin(2 * np.pi * across / period)
    elif kind == 1:
        values = np.sign(np.sin(2 * np.pi * across / period) * np.sin(2 * np.pi * along / period))
    elif kind == 2:
        shifted = columns + np.floor(rows / period) % 2 * period
        mortar = np.minimum(rows % period, shifted % (2 * period)) < 0.1 * period
        values = np.where(mortar, 0.2, 0.7) + 0.08 * stream.standard_normal(rows.shape)
    elif kind == 3:
        centre = stream.uniform(0, 1, 2)
        values = np.sin(2 * np.pi * np.hypot(rows - centre[0], columns - centre[1]) / period)
    elif kind == 4:
        seeds = stream.uniform(0, 1, (int(stream.integers(15, 120)), 2))
        near = np.stack([np.hypot(rows - r, columns - c) for r, c in seeds])
        values = np.partition(near, 1, axis=0)[1] - near.min(axis=0)
    else:
        values = np.maximum(np.sin(2 * np.pi * across / period), np.sin(2 * np.pi * along / period))
    return _full_range(values)


def screenshot(stream: np.random.Generator) -> Pixels:
    """A desktop with windows, title bars, buttons and lines of text."""
    width, height = int(stream.integers(400, 900)), int(stream.integers(300, 600))
    page = Image.new("RGB", (width, height), _colour(stream))
    draw = ImageDraw.Draw(page)
    dark = stream.random() < 0.4
    for _ in range(int(stream.integers(1, 4))):
        left, top = int(stream.integers(0, width // 2)), int(stream.integers(0, height // 2))
        right = int(stream.integers(left + width // 4, width + width // 4))
        bottom = int(stream.integers(top + height // 4, height + height // 4))
        grey = int(stream.integers(10, 60) if dark else stream.integers(225, 256))
        draw.rectangle((left, top, right, bottom), fill=(grey, grey, grey), outline=(120, 120, 120))
        draw.rectangle((left, top, right, top + 22), fill=_colour(stream))
        _write(draw, stream, (left + 8, top + 30, right - 8, bottom - 30), 230 if dark else 30)
        for k in range(int(stream.integers(0, 4))):
            x = left + 10 + 80 * k
            draw.rectangle((x, bottom - 26, x + 60, bottom - 8), fill=_colour(stream))
    return np.asarray(page)


def text_page(stream: np.random.Generator) -> Pixels:
    """A page of words, black on white or the other way round, perhaps with a table."""
    width, height = int(stream.integers(300, 600)), int(stream.integers(300, 800))
    ink, paper = (20, int(stream.integers(225, 256)))
    if stream.random() < 0.25:
        ink, paper = paper, ink
    page = Image.new("L", (width, height), paper)
    draw = ImageDraw.Draw(page)
    margin = int(stream.integers(5, 50))
    _write(draw, stream, (margin, margin, width - margin, height - margin), ink)
    if stream.random() < 0.3:
        for y in range(height // 2, height - margin, 24):
            draw.line((margin, y, width - margin, y), fill=ink)
    return np.asarray(page)


def shapes(stream: np.random.Generator) -> Pixels:
    """Discs, boxes and polygons of any grey: a drawing, a chart, a logo."""
    page = Image.new("L", (SIDE, SIDE), int(stream.integers(0, 256)))
    draw = ImageDraw.Draw(page)
    for _ in range(int(stream.integers(2, 15))):
        grey = int(stream.integers(0, 256))
        x, y = stream.uniform(0, SIDE, 2)
        a, b = stream.uniform(10, SIDE / 2, 2)
        kind = stream.integers(3)
        if kind == 0:
            draw.ellipse((x - a / 2, y - b / 2, x + a / 2, y + b / 2), fill=grey)
        elif kind == 1:
            draw.rectangle((x - a / 2, y - b / 2, x + a / 2, y + b / 2), fill=grey)
        else:
            draw.polygon([tuple(stream.uniform(0, SIDE, 2)) for _ in range(4)], fill=grey)
    return np.asarray(page)


def hand(stream: np.random.Generator) -> Pixels:
    """An X-ray of a hand as a drawing: four fingers and a thumb, bones within soft tissue."""
    side = 2 * SIDE
    tissue, bones = (Image.new("L", (side, side), 0) for _ in range(2))
    flesh, bone = ImageDraw.Draw(tissue), ImageDraw.Draw(bones)
    palm = np.array([stream.uniform(0.46, 0.54), stream.uniform(0.6, 0.68)]) * side
    spread, scale = stream.uniform(0.75, 1.25), stream.uniform(0.85, 1.1) * side
    flesh.ellipse(_box(palm, 0.17 * scale, 0.19 * scale), fill=255)
    _limb(flesh, palm, _at(palm, 0, 0.5 * scale), 0.2 * scale)
    for offset in (-0.035, 0.035):
        start = _at(palm, offset * scale, 0.22 * scale)
        _limb(bone, start, _at(start, 0, 0.4 * scale), 0.05 * scale)
    for _ in range(8):
        _dot(bone, palm + stream.uniform([-0.08, 0.09], [0.08, 0.17]) * scale, 0.025 * scale)
    angles = np.array([-55, -22, -6, 8, 24]) * spread
    for angle, length in zip(angles, (0.72, 0.95, 1.05, 1.0, 0.8), strict=True):
        way = np.array([np.sin(np.radians(angle)), -np.cos(np.radians(angle))])
        start, step = palm + way * 0.04 * scale + [0, 0.04 * scale], 0.115 * scale * length
        width = stream.uniform(0.065, 0.075) * scale
        _limb(flesh, start, start + way * 4.1 * step, width)
        for k in range(4):
            shaft = start + way * step * (k + 0.1), start + way * step * (k + 0.85)
            _limb(bone, *shaft, 0.028 * scale * (1 - 0.12 * k))
            for end in shaft:
                _dot(bone, end, 0.02 * scale * (1 - 0.12 * k))
    turned = float(stream.uniform(-25, 25))
    return _xray(stream, [(tissue, 0.3), (bones, 0.45)], turned)


def skull(stream: np.random.Generator) -> Pixels:
    """An X-ray of a skull from the front, or the side, as a drawing."""
    side = 2 * SIDE
    tissue, bones, holes = (Image.new("L", (side, side), 0) for _ in range(3))
    flesh, bone, hole = map(ImageDraw.Draw, (tissue, bones, holes))
    middle = np.array([stream.uniform(0.47, 0.53), stream.uniform(0.4, 0.46)]) * side
    wide, high = stream.uniform(0.26, 0.34) * side, stream.uniform(0.32, 0.38) * side
    flesh.ellipse(_box(middle, wide, high), fill=255)
    flesh.rectangle(
        (*(_at(middle, -0.13 * side, 0.2 * side)), *(_at(middle, 0.13 * side, side))), 255
    )
    rim = int(stream.uniform(0.02, 0.04) * side)
    bone.ellipse(_box(middle, 0.95 * wide, 0.95 * high), outline=255, width=rim)
    if stream.random() < 0.6:
        for way in (-1, 1):
            orbit = _at(middle, way * 0.4 * wide, 0.3 * high)
            hole.ellipse(_box(orbit, 0.24 * wide, 0.17 * high), fill=255)
        corners = ((0, 0.4), (-0.13, 0.75), (0.13, 0.75))
        hole.polygon([tuple(_at(middle, x * wide, y * high)) for x, y in corners], fill=255)
        jaw = _at(middle, 0, 0.75 * high)
        bone.ellipse(_box(jaw, 0.5 * wide, 0.33 * high), outline=255, width=2 * rim)
        for k in range(-4, 5):
            tooth = _at(middle, 0.09 * k * wide, 0.86 * high)
            bone.rectangle(_box(tooth, 0.038 * wide, 0.07 * high), fill=255)
    else:
        hole.ellipse(_box(_at(middle, -0.6 * wide, 0.35 * high), 0.2 * wide, 0.16 * high), fill=255)
        _limb(
            bone, _at(middle, 0.1 * wide, 0.6 * high), _at(middle, -0.7 * wide, high), 0.15 * wide
        )
    for k in range(5):
        vertebra = _at(middle, 0.05 * wide, (1.1 + 0.19 * k) * high)
        bone.rectangle(_box(vertebra, 0.2 * wide, 0.075 * high), fill=255)
    return _xray(
        stream, [(tissue, 0.4), (bones, 0.4), (holes, -0.2)], float(stream.uniform(-10, 10))
    )


DRAWN: dict[str, Callable[[np.random.Generator], Pixels]] = {
    "white noise": white_noise,
    "1/f noise": coloured_noise,
    "gradients": gradient,
    "textures": texture,
    "screenshots": screenshot,
    "text": text_page,
    "shapes": shapes,
    "hand phantoms": hand,
    "skull phantoms": skull,
}


def drawn(each: int, seed: int = 0) -> Iterator[Other]:
    """`each` images of every category that is drawn here."""
    for number, (category, draw) in enumerate(DRAWN.items()):
        for k in range(each):
            yield Other(category, draw(np.random.default_rng([seed, number, k])))


def photographs(count: int, seed: int = 0) -> Iterator[Other]:
    """Crops of the photographs that scikit-learn and Matplotlib bring, in colour and in grey."""
    from matplotlib import cbook
    from sklearn.datasets import load_sample_images

    whole = [np.asarray(image) for image in load_sample_images().images]
    portrait = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    whole.append(np.asarray(Image.open(str(portrait)).convert("RGB")))
    for k in range(count):
        stream = np.random.default_rng([seed, 100, k])
        photo = whole[k % len(whole)]
        height, width = photo.shape[:2]
        share = stream.uniform(0.4, 1.0)
        rows, columns = int(share * height), int(share * width)
        top, left = (
            int(stream.integers(height - rows + 1)),
            int(stream.integers(width - columns + 1)),
        )
        part = photo[top : top + rows, left : left + columns]
        grey = np.asarray(Image.fromarray(part).convert("L"))
        yield Other("grey photographs", grey) if k % 2 else Other("colour photographs", part)


def slices() -> Iterator[Other]:
    """CT and MR of pydicom's own test files: as DICOM, and their pixels as pictures."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.ERROR)  # it warns of its own broken test files
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in (".gz", ".json", ".txt", ".dump", ".icc"):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                dataset = pydicom.dcmread(path, force=True)
                values = dataset.pixel_array if dataset.get("Modality") in ("CT", "MR") else None
        except (AttributeError, KeyError, ValueError, TypeError, NotImplementedError):
            continue  # test files of pydicom are broken in every way; these have no pixels
        if values is not None and values.ndim == 2 and min(values.shape) >= 32:
            yield Other("CT and MR, DICOM", path, Reason.WRONG_MODALITY)
            yield Other("CT and MR, pictures", _full_range(values.astype(np.float64)))


def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    return rows, columns


def _bytes(values: NDArray[np.float64]) -> Pixels:
    rounded: Pixels = np.rint(values.clip(0, 255)).astype(np.uint8)
    return rounded


def _full_range(values: NDArray[np.float64]) -> Pixels:
    low, high = float(values.min()), float(values.max())
    return _bytes((values - low) / ((high - low) or 1.0) * 255)


def _colour(stream: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in stream.integers(30, 230, 3))
    return red, green, blue


def _write(
    draw: ImageDraw.ImageDraw, stream: np.random.Generator, box: tuple[int, ...], ink: int
) -> None:
    """Lines of made-up words from the top of a box to its bottom, or part of the way."""
    left, top, right, bottom = box
    size = int(stream.integers(9, 22))
    font = ImageFont.load_default(size)
    last = top + (bottom - top) * stream.uniform(0.4, 1.0)
    y = top
    while y + size < last:
        letters = max(int((right - left) / size * 1.7 * stream.uniform(0.3, 1.0)), 1)
        chosen = stream.choice(list(_LETTERS + "      "), letters)
        fill = ink if draw.mode == "L" else (ink, ink, ink)
        draw.text((left, y), "".join(chosen), fill=fill, font=font)
        y += int(size * stream.uniform(1.2, 2.0))


def _box(centre: NDArray[np.float64], a: float, b: float) -> tuple[float, float, float, float]:
    return centre[0] - a, centre[1] - b, centre[0] + a, centre[1] + b


def _at(point: NDArray[np.float64], right: float, down: float) -> NDArray[np.float64]:
    return np.array([point[0] + right, point[1] + down])


def _limb(
    draw: ImageDraw.ImageDraw, start: NDArray[np.float64], end: NDArray[np.float64], width: float
) -> None:
    draw.line((*start, *end), fill=255, width=int(width))
    _dot(draw, start, width / 2)
    _dot(draw, end, width / 2)


def _dot(draw: ImageDraw.ImageDraw, centre: NDArray[np.float64], radius: float) -> None:
    draw.ellipse(_box(centre, radius, radius), fill=255)


def _xray(
    stream: np.random.Generator, layers: list[tuple[Image.Image, float]], turned: float
) -> Pixels:
    """Layers of thickness as an image: blurred edges, noise, exposure."""
    total = np.zeros((SIDE, SIDE))
    for layer, weight in layers:
        soft = layer.rotate(turned).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        blurred = soft.filter(ImageFilter.GaussianBlur(float(stream.uniform(0.8, 3.0))))
        total += weight * np.asarray(blurred) / 255
    total = stream.uniform(0.0, 0.12) + total * stream.uniform(0.8, 1.2)
    total += stream.uniform(0.0, 0.03) * stream.standard_normal(total.shape)
    return _bytes(255 * total.clip(0, 1) ** stream.uniform(0.7, 1.3))
