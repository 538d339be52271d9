"""DICOM encodings, bits and colour against the uncompressed samples."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, get_frame
from pydicom.uid import (
    HTJ2K,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.dicom.file import image_digest
from pneumoscope.images.read import read_bytes
from support.dicom_images import (
    GREY8,
    GREY12,
    GREY16,
    NATIVE,
    SIGNED,
    TWELVE,
    WHOLE,
    colour,
    compressed,
    grey_of,
    read,
    same,
    stretched,
    twelve,
)
from support.image_files import Array, dicom, encapsulated, encoded, xray


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("samples", [GREY8, GREY16, SIGNED], ids=["u1", "u2", "i2"])
def test_uncompressed(samples: Array, syntax: str) -> None:
    wide = samples.astype(samples.dtype.newbyteorder(">")) if syntax == NATIVE[2] else samples
    dataset = xray(samples, PixelData=wide.tobytes())
    dataset["PixelData"].VR = "OW" if samples.itemsize == 2 else "OB"
    image = read(dataset, syntax)
    same(image, stretched(samples))
    assert image.bit_depth == samples.itemsize * 8
    assert image.warnings == ()


@pytest.mark.parametrize("samples", [GREY8, GREY16, SIGNED], ids=["u1", "u2", "i2"])
def test_the_digest_of_an_image_is_that_of_its_content(samples: Array) -> None:
    item = Dataset()
    item.LUTDescriptor = [2, 0, 16]
    item.LUTData = b"\x00\x01\x00\x02"
    item["LUTData"].VR = "OW"
    padding = {"PixelPaddingValue": 0, "PatientName": "Müller^Jörg", "WindowCenter": "40.0"}
    text = {"SpecificCharacterSet": "ISO_IR 100", **padding}

    def content(syntax: str, **elements: Any) -> bytes:
        wide = samples.astype(samples.dtype.newbyteorder(">")) if syntax == NATIVE[2] else samples
        dataset = xray(samples, **{**text, "PixelData": wide.tobytes(), **elements})
        dataset["PixelData"].VR = "OW" if samples.itemsize == 2 else "OB"
        return dicom(dataset, syntax)

    little = content(ExplicitVRLittleEndian)
    digest = image_digest(little)
    assert {image_digest(content(syntax)) for syntax in NATIVE[:3]} == {digest}
    assert image_digest(little.replace(b"PYDICOM", b"ANOTHER")) == digest
    assert image_digest(content(NATIVE[0], StationName="ROOM 3")) == digest
    lut = {"VOILUTSequence": [item]}
    assert len({image_digest(content(syntax, **lut)) for syntax in NATIVE[:2]}) == 1
    others = [
        content(NATIVE[0], **{keyword: value})
        for keyword, value in {
            "SOPInstanceUID": "1.2.3",
            "PatientID": "other",
            "PatientAge": "003Y",
            "AccessionNumber": "7",
            "BodyPartExamined": "HAND",
            "PixelData": samples[::-1].tobytes(),
            **lut,
        }.items()
    ]
    assert len({digest, *map(image_digest, others)}) == len(others) + 1


def test_the_digest_of_what_can_not_be_read_is_that_of_its_bytes() -> None:
    whole = dicom(xray(GREY16))
    found = [b"", b"image", b"other", whole[:-9], whole[:300], b"\x08\x00" * 99]
    assert len({image_digest(content) for content in [whole, *found]}) == len(found) + 1


def test_the_digest_of_a_compressed_image_does_not_depend_on_its_meta_information() -> None:
    content = compressed(xray(GREY16), RLELossless)
    digest = image_digest(content)
    assert image_digest(content.replace(b"PYDICOM", b"ANOTHER")) == digest
    assert image_digest(compressed(xray(GREY8), RLELossless)) != digest


@pytest.mark.parametrize("syntax", NATIVE[:3])
def test_without_preamble(syntax: str) -> None:
    samples = GREY16.astype(">u2") if syntax == ExplicitVRBigEndian else GREY16
    dataset = xray(GREY16, PixelData=samples.tobytes())
    dataset["PixelData"].VR = "OW"
    image = read(dataset, syntax, preamble=False)
    same(image, stretched(GREY16))
    assert image.dicom is not None
    assert image.dicom.transfer_syntax == syntax
    assert "states no transfer syntax" in image.warnings[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("samples", [GREY8, GREY12, GREY16], ids=["8", "12", "16"])
def test_lossless_by_pydicom(samples: Array, syntax: str) -> None:
    dataset = xray(samples, **(TWELVE if samples is GREY12 else {}))
    same(read_bytes(compressed(dataset, syntax), "x"), stretched(samples))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_signed(syntax: str) -> None:
    same(read_bytes(compressed(xray(SIGNED), syntax), "x"), stretched(SIGNED))


def test_near_lossless_jpeg_ls() -> None:
    whole = dcmread(BytesIO(dicom(xray(GREY8, WindowCenter=128, WindowWidth=256))))
    whole.compress(JPEGLSNearLossless, jls_error=2, generate_instance_uid=False)
    stream = BytesIO()
    whole.save_as(stream)
    image = read_bytes(stream.getvalue(), "x")
    np.testing.assert_allclose(image.pixels, GREY8 / 255, atol=2.01 / 255)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
@pytest.mark.parametrize("samples", [GREY8, GREY12, GREY16], ids=["8", "12", "16"])
@pytest.mark.parametrize("encoder", ["libjpeg", "liblj92"])
def test_lossless_jpeg(encoder: str, samples: Array, syntax: str) -> None:
    bits = 12 if samples is GREY12 else samples.itemsize * 8
    if encoder == "libjpeg":
        stream = imagecodecs.jpeg8_encode(samples, lossless=True, bitspersample=bits)
    else:
        stream = imagecodecs.ljpeg_encode(samples, bitspersample=bits)
    dataset = xray(samples, **(TWELVE if bits == 12 else {}))
    same(read_bytes(encapsulated(dataset, stream, syntax), "x"), stretched(samples))


def test_lossless_jpeg_of_signed_samples() -> None:
    # The stream has the 12 stored bits; the sign is in the data set.
    clipped = SIGNED.clip(-2048, 2047)
    samples = (clipped & 0xFFF).astype(np.uint16)
    stream = imagecodecs.jpeg8_encode(samples, lossless=True, bitspersample=12)
    dataset = xray(clipped, **TWELVE)
    same(read_bytes(encapsulated(dataset, stream, JPEGLosslessSV1), "x"), stretched(clipped))


def test_jpeg_baseline_is_decoded_as_by_libjpeg() -> None:
    stream = encoded(Image.fromarray(GREY8), "JPEG", quality=80)
    expected = np.asarray(Image.open(BytesIO(stream)))
    dataset = xray(GREY8, WindowCenter=128, WindowWidth=256)
    same(read_bytes(encapsulated(dataset, stream, JPEGBaseline8Bit), "x"), expected / 255)


@pytest.mark.parametrize("filling", [b"", b"\x00", b"\xff", b"\xff\x00\x00"])
def test_padding_after_a_stream_is_ignored(filling: bytes) -> None:
    # PS3.5 A.4: fragments are of even length.
    stream = imagecodecs.jpeg8_encode(GREY12, lossless=True, bitspersample=12)
    content = encapsulated(twelve(), stream + filling, JPEGLosslessSV1)
    same(read_bytes(content, "x"), stretched(GREY12))


def test_a_preamble_may_be_a_tiff_header() -> None:
    # PS3.10 7.1; the file is both.
    content = dicom(twelve())
    both = b"II*\x00" + (1 << 20).to_bytes(4, "little") + content[8:]
    same(read_bytes(both, "x"), stretched(GREY12))


def test_jpeg_extended_of_12_bits() -> None:
    stream = imagecodecs.jpeg8_encode(GREY12, level=98, bitspersample=12)
    image = read_bytes(encapsulated(twelve(**WHOLE), stream, JPEGExtended12Bit), "x")
    np.testing.assert_allclose(image.pixels, GREY12 / 4095, atol=0.01)
    assert len(np.unique(image.pixels)) > 256


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2K])
def test_htj2k(syntax: str) -> None:
    stream = imagecodecs.htj2k_encode(GREY12, reversible=True)
    same(read_bytes(encapsulated(twelve(), stream, syntax), "x"), stretched(GREY12))


@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_bits_above_those_stored_are_ignored(syntax: str) -> None:
    overlaid = twelve(GREY12 | 0x8000)
    same(read(overlaid, syntax), stretched(GREY12))


def test_signed_values_of_12_stored_bits_are_extended() -> None:
    clipped = SIGNED.clip(-2048, 2047)
    dataset = xray((clipped & 0xFFF).astype(np.uint16), PixelRepresentation=1, **TWELVE)
    same(read(dataset), stretched(clipped))


def test_high_bit_at_the_top() -> None:
    same(read(xray(GREY12 << 4, BitsStored=12, HighBit=15)), stretched(GREY12))


def test_bits_below_the_stated_ones_are_noted() -> None:
    image = read(xray(GREY12, BitsStored=5, HighBit=15))
    assert "use 11 bits below the 5 bits from bit 11 up, unsigned" in image.warnings[0]
    overlay = xray((GREY12 << 4) | (GREY12 & 1), BitsStored=12, HighBit=15)
    overlay.add_new(0x60000100, "US", 16)
    overlay.add_new(0x60000102, "US", 0)  # the overlay's bit, and what it holds is no mistake
    assert not any("bits below" in words for words in read(overlay).warnings)


def test_an_impossible_high_bit_is_replaced_by_the_usual_one() -> None:
    image = read(twelve(HighBit=3))
    same(image, stretched(GREY12))
    assert "high bit 3" in image.warnings[0]


def test_missing_optional_pixel_elements_get_defaults() -> None:
    absent = dict.fromkeys(("BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"))
    same(read(xray(GREY16, **absent)), stretched(GREY16))
    image = read(xray(GREY16, PhotometricInterpretation=None))
    same(image, stretched(GREY16))
    assert "MONOCHROME2 was assumed" in image.warnings[0]


def test_rgb_capture_by_pixel_and_by_plane() -> None:
    expected = grey_of(colour())
    same(read(xray(colour(), Modality="OT")), expected)
    planes = np.moveaxis(colour(), -1, 0).copy()
    by_plane = xray(colour(), PlanarConfiguration=1, PixelData=planes.tobytes())
    by_plane["PixelData"].VR = "OB"
    same(read(by_plane), expected)


def test_ybr_full_capture() -> None:
    ybr = np.asarray(Image.fromarray(colour()).convert("YCbCr"))
    image = read(xray(ybr, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_allclose(image.pixels, grey_of(colour()), atol=2 / 255)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_colour_jpeg(photometric: str) -> None:
    stream = encoded(Image.fromarray(colour()), "JPEG", quality=95)
    expected = grey_of(np.asarray(Image.open(BytesIO(stream))))
    dataset = xray(colour(), PhotometricInterpretation=photometric)
    image = read_bytes(encapsulated(dataset, stream, JPEGBaseline8Bit), "x")
    np.testing.assert_allclose(image.pixels, expected, atol=1.01 / 255)


def test_colour_jpeg_that_holds_rgb() -> None:
    stream = encoded(Image.fromarray(colour()), "JPEG", quality=98, keep_rgb=True)
    image = read_bytes(encapsulated(xray(colour()), stream, JPEGBaseline8Bit), "x")
    np.testing.assert_allclose(image.pixels, grey_of(colour()), atol=8 / 255)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_lossless_colour(syntax: str) -> None:
    same(read_bytes(compressed(xray(colour()), syntax), "x"), grey_of(colour()))


def test_16_bit_rgb() -> None:
    wide = colour().astype(np.uint16) * 257
    dataset = xray(wide)
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read(dataset).pixels, colour() / 255 @ weights, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_capture(bits: int) -> None:
    top = (1 << bits) - 1
    table = (np.arange(256) * top // 255).astype(np.uint16 if bits == 16 else np.uint8)
    dataset = xray(GREY8, PhotometricInterpretation="PALETTE COLOR")
    for name, values in (("Red", table), ("Green", table[::-1]), ("Blue", table)):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(dataset, f"{name}PaletteColorLookupTableData", values.tobytes())
    ramp = GREY8 / 255
    image = read(dataset)
    expected = 0.299 * ramp + 0.587 * (1 - ramp) + 0.114 * ramp
    np.testing.assert_allclose(image.pixels, expected, atol=0.6 / 255)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, RLELossless])
def test_offsets_of_several_frames_are_rejected_whatever_the_header_states(
    syntax: str, extended: bool
) -> None:
    dataset = dcmread(BytesIO(compressed(xray(GREY8), RLELossless)))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == JPEGBaseline8Bit:
        frame = encoded(Image.fromarray(GREY8), "JPEG")
    if extended:
        dataset.PixelData, *tables = encapsulate_extended([frame, frame])
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = tables
    else:
        dataset.PixelData = encapsulate([frame, frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(ImageRefusedError, match="2 images") as rejection:
        read_bytes(dicom(dataset, syntax), "x")
    assert rejection.value.reason is Reason.MULTI_FRAME


def test_mutated_files_never_raise_anything_else() -> None:
    lossless = imagecodecs.jpeg8_encode(GREY12, lossless=True, bitspersample=12)
    contents = [
        dicom(twelve(**WHOLE)),
        dicom(xray(GREY16), ImplicitVRLittleEndian),
        dicom(twelve(), preamble=False),
        compressed(xray(GREY16), RLELossless),
        compressed(xray(GREY16), JPEGLSLossless),
        compressed(xray(GREY16), JPEG2000Lossless),
        encapsulated(twelve(), lossless, JPEGLosslessSV1),
    ]
    rng = np.random.default_rng(0)
    outcomes = set()
    for content in contents:
        for _ in range(40):
            mutated = bytearray(content)
            for position in rng.integers(132, min(len(content), 1500), size=4):
                mutated[position] = rng.integers(256)
            try:
                outcomes.add(read_bytes(bytes(mutated), "x").format)
            except ImageRefusedError as rejection:
                outcomes.add(rejection.reason.value)
    assert "corrupt" in outcomes
