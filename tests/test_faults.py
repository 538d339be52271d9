"""Files whose headers or types contradict their pixels, through the model that ships.

Each shows the same drawn chest X-ray, so each gets the probability of its clean twin, with a
warning that names the cause; or a rejection that does.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, RLELossless

from pneumoscope.errors import Reason
from pneumoscope.images.phantom import draw
from pneumoscope.inference.predictor import Predictor
from support.image_files import (
    Array,
    ByteOrder,
    dicom,
    encapsulated,
    encoded,
    png_chunk,
    tiff,
    xray,
)

SHARE = draw(5, "guest-3", number=1, label=1, size=320).pixels.astype(np.float64)
TWELVE = np.rint(SHARE * 4095).astype("u2")
SIXTEEN = np.rint(SHARE * 65535).astype("u2")
EIGHT = np.rint(SHARE * 255).astype("u1")
WHOLE = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
PLAIN = {"BitsStored": 12, "HighBit": 11}
BORDER = (slice(None), slice(0, 30))
AGED = {"PatientAge": "003Y"}
WITHIN = 0.001


@dataclass(frozen=True)
class Fault:
    """One file: its bytes, the grey (h, w) of its clean twin in 8 bits, a part of its warning."""

    name: str
    content: Callable[[], bytes]
    words: str = ""
    twin: Callable[[], Array] | None = None


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load("default")


def x_ray(samples: Array = TWELVE, **elements: Any) -> Dataset:
    wanted = {**WHOLE, **AGED, **elements}
    return xray(samples, **{word: value for word, value in wanted.items() if value is not None})


def table(data: Array, bits: int, first: int = 0) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data), first, bits])
    item.add_new("LUTData", "OW", np.asarray(data, "<u2").tobytes())
    return [item]


def filled(value: int, samples: Array = TWELVE) -> Array:
    padded = samples.astype("i4")
    padded[BORDER] = value
    return padded.astype("i2" if samples.dtype.kind == "i" else "u2")


def bordered() -> Array:
    twin = EIGHT.copy()
    twin[BORDER] = 0
    return twin


def hot(samples: Array, value: int, count: int = 40) -> Array:
    spoiled = samples.copy()
    places = np.random.default_rng(0).integers(0, samples.size, count)
    spoiled.flat[places] = value
    return spoiled


def overlaid(bit: int) -> Array:
    marked = TWELVE.copy()
    marked[40:90, 60:200] |= 1 << bit
    marked[::7, 200:260:3] |= 1 << bit
    return marked


def with_window(*windows: tuple[float, float]) -> dict[str, Any]:
    centres, widths = zip(*windows, strict=True)
    return {"WindowCenter": list(centres), "WindowWidth": list(widths)}


def stream(samples: Array, header: Array, bits: int, **elements: Any) -> bytes:
    lossless = imagecodecs.jpeg8_encode(samples, lossless=True, bitspersample=bits)
    return encapsulated(x_ray(header, **elements), lossless, JPEGLosslessSV1)


def j2k(samples: Array, **elements: Any) -> bytes:
    code = imagecodecs.jpeg2k_encode(samples, reversible=True, codecformat="J2K")
    return encapsulated(x_ray(**elements), code, JPEG2000Lossless)


def with_overlay_tags(samples: Array, bit: int) -> bytes:
    dataset = x_ray(samples)
    dataset.add_new(0x60000010, "US", samples.shape[0])
    dataset.add_new(0x60000011, "US", samples.shape[1])
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60000050, "SS", [1, 1])
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", bit)
    return dicom(dataset)


NO_WINDOW = {"WindowCenter": None, "WindowWidth": None}
FULL16 = {"BitsStored": 16, "HighBit": 15}
HEADERS = (
    # Bits above those that are stated.
    Fault(
        "16 bits, 12 stated",
        lambda: dicom(x_ray(SIXTEEN, **with_window((32768, 65536)))),
        "16 bits",
    ),
    Fault("16 bits, 12 stated, no window", lambda: dicom(x_ray(SIXTEEN, **NO_WINDOW)), "16 bits"),
    Fault(
        "16 bits, 10 stated",
        lambda: dicom(x_ray(SIXTEEN, **NO_WINDOW, BitsStored=10, HighBit=9)),
        "16 bits",
    ),
    Fault("14 bits, 12 stated", lambda: dicom(x_ray(SIXTEEN >> 2)), "14 bits"),
    Fault(
        "13 bits, 12 stated, window of 13",
        lambda: dicom(x_ray(TWELVE * 2, **with_window((4096, 8192)))),
        "13 bits",
    ),
    Fault("12 bits, 8 stated", lambda: dicom(x_ray(BitsStored=8, HighBit=7)), "12 bits"),
    Fault(
        "12 bits, 8 stated, window of 8",
        lambda: dicom(x_ray(BitsStored=8, HighBit=7, **with_window((128, 256)))),
        "12 bits",
    ),
    Fault(
        "hot pixels above",
        lambda: dicom(x_ray(hot(TWELVE, 65535))),
        "bits were ignored",
        lambda: hot(EIGHT, 255),
    ),
    Fault(
        "window of 16 bits on 12",
        lambda: dicom(x_ray(**with_window((32768, 65536)))),
        "of the greys",
    ),
    Fault(
        "window of 14 bits on 12",
        lambda: dicom(x_ray(**with_window((8192, 16384)))),
        "of the greys",
    ),
    Fault("overlay drawn, not stated", lambda: dicom(x_ray(overlaid(15))), "bits were ignored"),
    Fault("overlay drawn in bit 12", lambda: dicom(x_ray(overlaid(12))), "bits were ignored"),
    Fault("overlay stated", lambda: with_overlay_tags(overlaid(12), 12)),
    Fault("high bit says the top, values lie low", lambda: dicom(x_ray(HighBit=15)), "lowest 12"),
    Fault("high bit at the top", lambda: dicom(x_ray(TWELVE << 4, HighBit=15))),
    Fault("the other byte order", lambda: dicom(x_ray(TWELVE.byteswap())), "byte order"),
    # Signs.
    Fault(
        "unsigned, stated signed",
        lambda: dicom(x_ray(SIXTEEN, **NO_WINDOW, **FULL16, PixelRepresentation=1)),
        "unsigned",
    ),
    Fault(
        "unsigned of 12 bits, stated signed",
        lambda: dicom(x_ray(PixelRepresentation=1)),
        "unsigned",
    ),
    Fault(
        "signed, stated unsigned",
        lambda: dicom(
            x_ray(
                (TWELVE.astype("i4") - 1024).astype("i2"),
                **NO_WINDOW,
                **FULL16,
                PixelRepresentation=0,
            )
        ),
        "signed",
    ),
    Fault(
        "signed of 12 bits, stated unsigned",
        lambda: dicom(
            x_ray(
                (TWELVE.astype("i4") - 2048).astype("i2"),
                **with_window((0, 4096)),
                PixelRepresentation=0,
            )
        ),
        "signed",
    ),
    # Padding.
    Fault(
        "padding above", lambda: dicom(x_ray(filled(63536), PixelPaddingValue=63536)), "", bordered
    ),
    Fault(
        "padding above, range",
        lambda: dicom(x_ray(filled(63536), PixelPaddingValue=63000, PixelPaddingRangeLimit=64000)),
        "",
        bordered,
    ),
    Fault(
        "signed padding below",
        lambda: dicom(
            x_ray(
                filled(-32768, (TWELVE.astype("i4") - 2048).astype("i2")),
                **with_window((0, 4096)),
                PixelPaddingValue=-32768,
            )
        ),
        "",
        bordered,
    ),
    Fault("padding not stated", lambda: dicom(x_ray(filled(63536))), "padding", bordered),
    Fault(
        "padding not stated, all bits stored",
        lambda: dicom(x_ray(filled(-32768, TWELVE.astype("i2")), **NO_WINDOW, **FULL16)),
        "far beyond",
        bordered,
    ),
    Fault(
        "padding amid the picture",
        lambda: dicom(x_ray(PixelPaddingValue=int(TWELVE[160, 160]))),
        "padding value",
    ),
    Fault(
        "padding that blots out all",
        lambda: dicom(x_ray(PixelPaddingValue=0, PixelPaddingRangeLimit=4090)),
        "would hide",
    ),
    Fault("padding beyond its type", lambda: dicom(xray(EIGHT, PixelPaddingValue=63536, **AGED))),
    Fault(
        "padding range amid the picture",
        lambda: dicom(x_ray(PixelPaddingValue=1049, PixelPaddingRangeLimit=2322)),
        "within the values of the image",
    ),
    Fault(
        "padding range of the dark half",
        lambda: dicom(x_ray(PixelPaddingValue=0, PixelPaddingRangeLimit=1320)),
        "within the values of the image",
    ),
    Fault(
        "padding range of everything",
        lambda: dicom(x_ray(PixelPaddingValue=47583, PixelPaddingRangeLimit=0)),
        "would hide",
    ),
    Fault("3 bits at the top", lambda: dicom(x_ray(BitsStored=3, HighBit=15)), "lowest 12"),
    # Windows and tables.
    Fault("window of 8 bits on 12", lambda: dicom(x_ray(**with_window((128, 256)))), "clips"),
    Fault("window above all", lambda: dicom(x_ray(**with_window((60000, 100)))), "one grey"),
    Fault(
        "the second window is right",
        lambda: dicom(x_ray(**with_window((128, 256), (2048, 4096)))),
        "clips",
    ),
    Fault(
        "window before rescaling",
        lambda: dicom(x_ray(RescaleSlope=1, RescaleIntercept=-30000)),
        "one grey",
    ),
    Fault("endless slope", lambda: dicom(x_ray(RescaleSlope="1e308")), "rescale slope"),
    Fault("endless intercept", lambda: dicom(x_ray(RescaleIntercept="1e300")), "intercept"),
    Fault(
        "table of 12 bits, 16 stated",
        lambda: dicom(x_ray(VOILUTSequence=table(np.arange(4096), 16))),
        "16 bits and reaches 4095",
    ),
    Fault(
        "table of 14 bits, 16 stated",
        lambda: dicom(x_ray(VOILUTSequence=table(np.arange(4096) * 4, 16))),
        "16 bits",
    ),
    Fault(
        "table of 12 bits, 8 stated",
        lambda: dicom(x_ray(VOILUTSequence=table(np.arange(4096), 8))),
        "8 bits",
    ),
    Fault(
        "table of no bits", lambda: dicom(x_ray(VOILUTSequence=table(np.arange(4096), 0))), "0 bits"
    ),
    Fault(
        "table that begins beyond",
        lambda: dicom(x_ray(VOILUTSequence=table(np.arange(4096), 12, 5000))),
        "one grey",
    ),
    Fault(
        "table of few entries",
        lambda: dicom(x_ray(VOILUTSequence=table(np.arange(200), 8))),
        "clips",
    ),
    Fault(
        "no window, hot pixels",
        lambda: dicom(x_ray(hot(TWELVE, 65535), **NO_WINDOW, **FULL16)),
        "far beyond",
        lambda: hot(EIGHT, 255),
    ),
    Fault(
        "no window, dead pixels",
        lambda: dicom(x_ray(hot(TWELVE.astype("i2"), -30000), **NO_WINDOW, **FULL16)),
        "far beyond",
        lambda: hot(EIGHT, 0),
    ),
    Fault(
        "inverted, stated twice",
        lambda: dicom(
            x_ray(
                4095 - TWELVE,
                PhotometricInterpretation="MONOCHROME1",
                PresentationLUTShape="IDENTITY",
            )
        ),
        "IDENTITY",
    ),
    # Streams.
    Fault(
        "stream of 16 bits, 12 stated", lambda: stream(SIXTEEN, TWELVE, 16, **NO_WINDOW), "16 bits"
    ),
    Fault(
        "stream of 8 bits, 12 stated",
        lambda: encapsulated(
            x_ray(),
            encoded(Image.fromarray(EIGHT), "JPEG", quality=100, subsampling=0),
            JPEGBaseline8Bit,
        ),
        "8 bits per sample",
    ),
    Fault(
        "stream of 12 bits, 8 allocated",
        lambda: stream(TWELVE, EIGHT, 12, BitsStored=8, HighBit=7, **NO_WINDOW),
        "12 bits",
    ),
    Fault("JPEG 2000 of 8 bits, 12 stated", lambda: j2k(EIGHT), "8 bits per sample"),
    Fault(
        "JPEG 2000 unsigned, stated signed",
        lambda: j2k(SIXTEEN, PixelRepresentation=1, **NO_WINDOW, **FULL16),
        "unsigned",
    ),
    Fault(
        "JPEG 2000 signed, stated unsigned",
        lambda: j2k((TWELVE.astype("i4") - 1024).astype("i2"), **NO_WINDOW, **FULL16),
        "signed",
    ),
    Fault(
        "bytes after the pixels",
        lambda: dicom(x_ray(PixelData=TWELVE.tobytes() + bytes(100))),
        "100 bytes more",
    ),
)


def deep_png(samples: Array) -> bytes:
    """16-bit samples (h, w, channels) as a PNG: grey with alpha, RGB, RGBA."""
    height, width, channels = samples.shape
    header = np.array([width, height], ">u4").tobytes()
    header += bytes([16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png(samples: Array) -> bytes:
    return encoded(Image.fromarray(samples), "PNG")


def alpha(value: int) -> bytes:
    return png(np.dstack([EIGHT] * 3 + [np.full_like(EIGHT, value)]))


TYPES = (
    ("i1", lambda x: x * 255 - 128, 2, ""),
    ("i1", lambda x: x * 127, 2, ""),
    ("u2", lambda x: x * 65535, 1, ""),
    ("u2", lambda x: x * 4095, 1, "12 of 16"),
    ("u2", lambda x: x * 1023, 1, "10 of 16"),
    ("u2", lambda x: 30000 + x * 4095, 1, "16-bit integers of 30"),
    ("i2", lambda x: x * 65535 - 32768, 2, ""),
    ("i2", lambda x: x * 32767, 2, ""),
    ("i2", lambda x: x * 4095, 2, "12 of 16"),
    ("i2", lambda x: x * 4095 - 1024, 2, "16-bit signed"),
    ("u4", lambda x: x * 4294967295, 1, "32-bit"),
    ("u4", lambda x: x * 4095, 1, "32-bit"),
    ("i4", lambda x: x * 4294967295 - 2147483648, 2, "32-bit"),
    ("u8", lambda x: x * 4095, 1, "64-bit"),
    ("f2", lambda x: x, 3, ""),
    ("f4", lambda x: x, 3, ""),
    ("f4", lambda x: x * 255, 3, "outside 0 to 1"),
    ("f4", lambda x: x * 2 - 1, 3, "outside 0 to 1"),
    ("f4", lambda x: x * 0.05, 3, "floats of"),
    ("f8", lambda x: x, 3, ""),
)


def typed(
    dtype: str, scale: Callable[[Array], Array], form: int, order: ByteOrder, photometric: int
) -> Callable[[], bytes]:
    share = SHARE if photometric else 1 - SHARE
    values = scale(share)
    samples = (values if dtype[0] == "f" else np.rint(values)).astype(dtype)
    return lambda: tiff(samples, sample_format=form, order=order, photometric=photometric)


FORMS: tuple[tuple[ByteOrder, int], ...] = (("<", 1), (">", 0), (">", 1), ("<", 0))
NUMBERS = tuple(
    Fault(
        f"tiff {dtype} {number} {order} {photometric}",
        typed(dtype, scale, form, order, photometric),
        words,
    )
    for number, (dtype, scale, form, words) in enumerate(TYPES)
    for order, photometric in FORMS
    if number % 3 == 0 or (order, photometric) in (("<", 1), (">", 0))
)
PICTURES = (
    Fault("png of 12 bits in 16", lambda: png(TWELVE), "12 of 16"),
    Fault(
        "png of 12 bits in 16, hot pixels",
        lambda: png(hot(TWELVE, 65535)),
        "far beyond",
        lambda: hot(EIGHT, 255),
    ),
    Fault("png of 8 bits in 16", lambda: png(EIGHT.astype("u2")), "8 of 16"),
    Fault("png of 16 bits", lambda: png(SIXTEEN)),
    Fault("RGB png of 12 bits in 16", lambda: deep_png(np.dstack([TWELVE] * 3)), "12 of 16"),
    Fault(
        "grey and alpha of 16 bits",
        lambda: deep_png(np.dstack([SIXTEEN, np.full_like(SIXTEEN, 65535)])),
    ),
    Fault(
        "RGBA of 16 bits, all clear",
        lambda: deep_png(np.dstack([SIXTEEN] * 3 + [np.zeros_like(SIXTEEN)])),
        "alpha",
    ),
    Fault("alpha all zero", lambda: alpha(0), "alpha"),
    Fault("alpha all one", lambda: alpha(1), "alpha"),
    Fault("RGB tiff of 12 bits in 16", lambda: rgb_tiff(np.dstack([TWELVE] * 3)), "12 of 16"),
    Fault(
        "tiff floats with one value for no data",
        lambda: tiff(filled_float(), sample_format=3),
        "far beyond",
        bordered,
    ),
)


def filled_float() -> Array:
    values = SHARE.astype("f4")
    values[BORDER] = -9999
    return values


def rgb_tiff(samples: Array) -> bytes:
    return bytes(imagecodecs.tiff_encode(samples, photometric="rgb"))


@pytest.mark.parametrize("fault", HEADERS + NUMBERS + PICTURES, ids=lambda fault: fault.name)
def test_the_prediction_is_that_of_the_clean_twin(fault: Fault, predictor: Predictor) -> None:
    twin = EIGHT if fault.twin is None else fault.twin()
    clean = predictor.predict_bytes(png(twin), "twin").prediction
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of the odd values that are written here
        content = fault.content()
    found = predictor.predict_bytes(content, "file").prediction
    assert found.status == clean.status == "ok", found.detail
    assert found.probability == pytest.approx(clean.probability, abs=WITHIN)
    said = "; ".join(found.warnings)
    assert fault.words in said
    assert bool(said) == bool(fault.words), said


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (
            lambda: dicom(x_ray(PixelData=TWELVE.tobytes() * 2)),
            Reason.CORRUPT,
            ("409,600", "204,800"),
        ),
        (
            lambda: dicom(x_ray(PixelData=TWELVE.tobytes() * 3)),
            Reason.CORRUPT,
            ("614,400", "204,800"),
        ),
        (
            lambda: dicom(xray(EIGHT, PixelData=TWELVE.tobytes())),
            Reason.CORRUPT,
            ("204,800", "8 bits"),
        ),
        (lambda: dicom(x_ray(Columns=160)), Reason.CORRUPT, ("204,800", "102,400")),
        (
            lambda: dicom(x_ray(TWELVE[20:300], Rows=320, Columns=280)),
            Reason.CORRUPT,
            ("320 rows and 280 columns", "280 rows and 320 columns"),
        ),
        (lambda: dicom(x_ray(BitsStored=20)), Reason.CORRUPT, ("20 bits stored", "16 allocated")),
        (
            lambda: encapsulated(x_ray(), b"\x01" + bytes(63), RLELossless),
            Reason.CORRUPT,
            ("[1]", "expected 2"),
        ),
    ],
)
def test_what_can_not_be_is_rejected_with_both_numbers(
    content: Callable[[], bytes], reason: Reason, words: tuple[str, ...], predictor: Predictor
) -> None:
    found = predictor.predict_bytes(content(), "file").prediction
    assert found.reason is reason
    for word in words:
        assert word in found.detail


def test_a_rejection_as_inverted_names_what_the_header_states(predictor: Predictor) -> None:
    wrong = dicom(x_ray(PhotometricInterpretation="MONOCHROME1"))
    found = predictor.predict_bytes(wrong, "x").prediction
    assert found.reason is Reason.INVERTED
    assert "Its header states MONOCHROME1" in found.detail


def test_a_rejection_for_what_it_shows_names_the_header(predictor: Predictor) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (320, 320)).astype("u2")
    found = predictor.predict_bytes(dicom(x_ray(noise, **with_window((128, 256)))), "x").prediction
    assert found.reason is Reason.NOT_A_CHEST_XRAY
    assert "Its header may be the cause" in found.detail
    assert "centre 128, width 256" in found.detail
    assert found.warnings
