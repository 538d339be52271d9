"""X-rays as displayed, pixel for pixel against dcmtk's own decoders and display pipeline.

dcmtk writes 16-bit greys; ours are rounded alike. What dcmtk's viewer has other rules for (padding)
is checked by hand in test_dicom_display.py; JPEG 2000, which it can't decode, against imagecodecs
in test_dicom.py.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pneumoscope.images.read import read_bytes
from support.dicom_images import GREY8, GREY12, GREY16, SIGNED, WHOLE, compressed, twelve
from support.dicom_reports import needs
from support.image_files import Array, dicom, encapsulated, encoded, xray

BITS = 16
TOP = (1 << BITS) - 1

pytestmark = needs("dcmj2pnm", "dcmdjpls")


def shown_by_dcmtk(content: bytes, folder: Path, *options: str) -> Array:
    """The grey that dcmtk shows, 0 to 65,535."""
    source, plain, out = folder / "image.dcm", folder / "plain.dcm", folder / "image.pgm"
    source.write_bytes(content)
    decoded = subprocess.run(["dcmdjpls", str(source), str(plain)], capture_output=True)
    used = plain if decoded.returncode == 0 else source
    subprocess.run(
        ["dcmj2pnm", "-O", *options, "+opn", str(BITS), str(used), str(out)],
        check=True,
        capture_output=True,
    )
    words = [line.split("#")[0] for line in out.read_text().splitlines()]
    kind, width, height, top, *values = " ".join(words).split()
    assert (kind, int(top)) == ("P2", TOP)
    return np.array(values, np.int64).reshape(int(height), int(width))


def agree(content: bytes, folder: Path, *options: str, within: int = 1) -> None:
    ours = read_bytes(content, "image").pixels
    theirs = shown_by_dcmtk(content, folder, *options)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.astype(np.float64) * TOP, theirs, atol=within)


WINDOW: dict[str, Any] = {"WindowCenter": 1900, "WindowWidth": 2500}


def lut(values: Array, first: int, bits: int, **more: Any) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.add_new(0x00283006, "US", [int(value) for value in values])
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return [item]


SQUARES = (np.arange(4096) ** 2 // 4095).astype(np.int64)
DISPLAYS: dict[str, tuple[Callable[[], Dataset], tuple[str, ...]]] = {
    "window": (lambda: twelve(**WINDOW), ("+Wi", "1")),
    "second window unused": (
        lambda: twelve(WindowCenter=[1900, 100], WindowWidth=[2500, 50]),
        ("+Wi", "1"),
    ),
    "odd window": (lambda: twelve(WindowCenter=2000.5, WindowWidth=2801), ("+Wi", "1")),
    "inverted": (
        lambda: twelve(PhotometricInterpretation="MONOCHROME1", **WINDOW),
        ("+Wi", "1"),
    ),
    "inverted with its shape": (
        lambda: twelve(
            PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **WINDOW
        ),
        ("+Wi", "1"),
    ),
    "sigmoid": (lambda: twelve(VOILUTFunction="SIGMOID", **WINDOW), ("+Wi", "1")),
    "rescale": (
        lambda: twelve(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1500, WindowWidth=4000),
        ("+Wi", "1"),
    ),
    "no window": (lambda: twelve(), ("+Wm",)),
    "no window, 16 bits": (lambda: xray(GREY16), ("+Wm",)),
    "signed": (lambda: xray(SIGNED, WindowCenter=500, WindowWidth=3000), ("+Wi", "1")),
    "high bit above": (
        lambda: xray(GREY12 << 4, BitsStored=12, HighBit=15, **WHOLE),
        ("+Wi", "1"),
    ),
    "overlay in unused bits": (lambda: twelve(GREY12 | 0x8000, **WHOLE), ("+Wi", "1")),
    "private creators": (lambda: with_private(twelve(**WHOLE)), ("+Wi", "1")),
    "modality LUT": (
        lambda: twelve(ModalityLUTSequence=lut(SQUARES, 0, 12, ModalityLUTType="US"), **WINDOW),
        ("+Wi", "1"),
    ),
}


def with_private(dataset: Dataset) -> Dataset:
    block = dataset.private_block(0x0029, "MAKER 1", create=True)
    block.add_new(0x01, "LO", "something")
    block.add_new(0x02, "OB", bytes(1001 + 1))
    other = dataset.private_block(0x0029, "MAKER 2", create=True)
    other.add_new(0x01, "SQ", [Dataset()])
    return dataset


@pytest.mark.parametrize("name", DISPLAYS)
def test_display(name: str, tmp_path: Path) -> None:
    made, options = DISPLAYS[name]
    agree(dicom(made()), tmp_path, *options, within=2)


def test_voi_lut(tmp_path: Path) -> None:
    # dcmtk shifts 12 bits up to 16, so that its white is 65,520; ours is white.
    dataset = twelve(VOILUTSequence=lut(SQUARES, 0, 12))
    agree(dicom(dataset), tmp_path, "+Wl", "1", within=16)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
def test_uncompressed(syntax: str, tmp_path: Path) -> None:
    samples = GREY12.astype(">u2") if syntax == ExplicitVRBigEndian else GREY12
    dataset = twelve(PixelData=samples.tobytes(), **WINDOW)
    dataset["PixelData"].VR = "OW"
    agree(dicom(dataset, syntax), tmp_path, "+Wi", "1")


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless(syntax: str, bits: int, tmp_path: Path) -> None:
    dataset = {8: xray(GREY8), 12: twelve(), 16: xray(GREY16)}[bits]
    agree(compressed(dataset, syntax), tmp_path, "+Wm")


def test_near_lossless_jpeg_ls(tmp_path: Path) -> None:
    whole = pydicom.dcmread(BytesIO(dicom(xray(GREY8, WindowCenter=128, WindowWidth=256))))
    whole.compress(JPEGLSNearLossless, jls_error=3, generate_instance_uid=False)
    stream = BytesIO()
    whole.save_as(stream)
    agree(stream.getvalue(), tmp_path, "+Wi", "1")


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg(syntax: str, bits: int, tmp_path: Path) -> None:
    images: dict[int, np.ndarray] = {8: GREY8, 12: GREY12, 16: GREY16}
    samples = images[bits]
    stream = imagecodecs.jpeg8_encode(samples, lossless=True, bitspersample=bits)
    dataset = xray(samples, BitsStored=bits, HighBit=bits - 1)
    agree(encapsulated(dataset, stream, syntax), tmp_path, "+Wm")


def test_lossy_jpeg(tmp_path: Path) -> None:
    # Two decoders of one lossy stream may round their transform differently, by a grey of 8 bits.
    stream = encoded(Image.fromarray(GREY8), "JPEG", quality=80)
    dataset = xray(GREY8, WindowCenter=128, WindowWidth=256)
    agree(encapsulated(dataset, stream, JPEGBaseline8Bit), tmp_path, "+Wi", "1", within=257)


def test_lossy_jpeg_of_12_bits(tmp_path: Path) -> None:
    stream = imagecodecs.jpeg8_encode(GREY12, level=90, bitspersample=12)
    content = encapsulated(twelve(**WHOLE), stream, JPEGExtended12Bit)
    agree(content, tmp_path, "+Wi", "1", within=17)


PYDICOM_FILES = (
    "CT_small.dcm",
    "JPEG-lossy.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_padded.dcm",
    "image_dfl.dcm",
    "liver_1frame.dcm",
    "examples_overlay.dcm",
)
"""The grey test files of pydicom that dcmtk decodes."""


@pytest.mark.parametrize("name", PYDICOM_FILES)
def test_files_of_pydicom(name: str, tmp_path: Path) -> None:
    found = sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob(name))
    if not found:
        pytest.skip(f"this pydicom comes without {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these files are kept because they are odd
        dataset = pydicom.dcmread(found[0])
        dataset.Modality = "CR"  # they have various modalities and classes, which would be rejected
        dataset.SOPClassUID = ComputedRadiographyImageStorage
        for told in ("BodyPartExamined", "StudyDescription", "SeriesDescription"):
            dataset.pop(told, None)
        stream = BytesIO()
        dataset.save_as(stream)
        options = ("+Wi", "1") if dataset.get("WindowWidth") else ("+Wm",)
        agree(stream.getvalue(), tmp_path, *options)
