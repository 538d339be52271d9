"""DICOM films against values worked out by hand or from the uncompressed samples."""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
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

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.read import DicomInfo, GreyImage, read_bytes
from support.image_files import Array, dicom, encapsulated, encoded, film, smooth_grey

GREY8 = smooth_grey().astype(np.uint8)
GREY12 = smooth_grey(top=4095).astype(np.uint16)
GREY16 = smooth_grey(top=65535).astype(np.uint16)
SIGNED = (smooth_grey(top=4095) - 1024).astype(np.int16)
TWELVE = {"BitsStored": 12, "HighBit": 11}
WHOLE = {"WindowCenter": 2048, "WindowWidth": 4096}
HEIGHT, WIDTH = GREY12.shape

NATIVE = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


def read(dataset: Dataset, syntax: str = ExplicitVRLittleEndian, **how: Any) -> GreyImage:
    content = dicom(dataset, syntax, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_bytes(content, "film")


def twelve(samples: Array = GREY12, **elements: Any) -> Dataset:
    return film(samples, **{**TWELVE, **elements})


def stretched(samples: Array) -> Array:
    values = samples.astype(np.float64)
    return (values - values.min()) / (values.max() - values.min())


def linear(samples: Array, centre: float, width: float) -> Array:
    """PS3.3 C.11.2.1.2.1, its three cases written out, for output 0 to 1."""
    result = np.empty(samples.shape)
    for position, x in np.ndenumerate(samples.astype(np.float64)):
        if x <= centre - 0.5 - (width - 1) / 2:
            result[position] = 0
        elif x > centre - 0.5 + (width - 1) / 2:
            result[position] = 1
        else:
            result[position] = (x - (centre - 0.5)) / (width - 1) + 0.5
    return result


def same(image: GreyImage, expected: Array) -> None:
    assert image.pixels.dtype == np.float32
    assert image.format == "dicom"
    np.testing.assert_allclose(image.pixels, expected, atol=2e-7)


def lut_item(values: list[int], first: int, bits: int, words: bool = False) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(values), first, bits])
    if words:
        item.add_new(0x00283006, "OW", np.array(values, "<u2").tobytes())
    else:
        item.add_new(0x00283006, "US", values)
    return item


# --- encodings ------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("samples", [GREY8, GREY16, SIGNED], ids=["u1", "u2", "i2"])
def test_uncompressed(samples: Array, syntax: str) -> None:
    wide = samples.astype(samples.dtype.newbyteorder(">")) if syntax == NATIVE[2] else samples
    dataset = film(samples, PixelData=wide.tobytes())
    dataset["PixelData"].VR = "OW" if samples.itemsize == 2 else "OB"
    image = read(dataset, syntax)
    same(image, stretched(samples))
    assert image.bit_depth == samples.itemsize * 8
    assert image.warnings == ()


@pytest.mark.parametrize("syntax", NATIVE[:3])
def test_without_preamble(syntax: str) -> None:
    samples = GREY16.astype(">u2") if syntax == ExplicitVRBigEndian else GREY16
    dataset = film(GREY16, PixelData=samples.tobytes())
    dataset["PixelData"].VR = "OW"
    image = read(dataset, syntax, preamble=False)
    same(image, stretched(GREY16))
    assert image.dicom is not None
    assert image.dicom.transfer_syntax == syntax
    assert "states no transfer syntax" in image.warnings[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("samples", [GREY8, GREY12, GREY16], ids=["8", "12", "16"])
def test_lossless_by_pydicom(samples: Array, syntax: str) -> None:
    dataset = film(samples, **(TWELVE if samples is GREY12 else {}))
    same(read_bytes(_compressed(dataset, syntax), "x"), stretched(samples))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_signed(syntax: str) -> None:
    same(read_bytes(_compressed(film(SIGNED), syntax), "x"), stretched(SIGNED))


def _compressed(dataset: Dataset, syntax: str) -> bytes:
    whole = dcmread(BytesIO(dicom(dataset)))
    whole.compress(syntax, generate_instance_uid=False)
    stream = BytesIO()
    whole.save_as(stream)
    return stream.getvalue()


def test_near_lossless_jpeg_ls() -> None:
    whole = dcmread(BytesIO(dicom(film(GREY8, WindowCenter=128, WindowWidth=256))))
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
    dataset = film(samples, **(TWELVE if bits == 12 else {}))
    same(read_bytes(encapsulated(dataset, stream, syntax), "x"), stretched(samples))


def test_lossless_jpeg_of_signed_samples() -> None:
    # The stream holds the 12 stored bits; the sign is the data set's affair.
    stream = imagecodecs.jpeg8_encode(
        (SIGNED & 0xFFF).astype(np.uint16), lossless=True, bitspersample=12
    )
    assert SIGNED.min() < 0
    clipped = SIGNED.clip(-2048, 2047)
    samples = (clipped & 0xFFF).astype(np.uint16)
    stream = imagecodecs.jpeg8_encode(samples, lossless=True, bitspersample=12)
    dataset = film(clipped, **TWELVE)
    same(read_bytes(encapsulated(dataset, stream, JPEGLosslessSV1), "x"), stretched(clipped))


def test_jpeg_baseline_is_decoded_as_by_libjpeg() -> None:
    stream = encoded(Image.fromarray(GREY8), "JPEG", quality=80)
    expected = np.asarray(Image.open(BytesIO(stream)))
    dataset = film(GREY8, WindowCenter=128, WindowWidth=256)
    same(read_bytes(encapsulated(dataset, stream, JPEGBaseline8Bit), "x"), expected / 255)


def test_jpeg_extended_of_12_bits() -> None:
    stream = imagecodecs.jpeg8_encode(GREY12, level=98, bitspersample=12)
    image = read_bytes(encapsulated(twelve(**WHOLE), stream, JPEGExtended12Bit), "x")
    np.testing.assert_allclose(image.pixels, GREY12 / 4095, atol=0.01)
    assert len(np.unique(image.pixels)) > 256


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2K])
def test_htj2k(syntax: str) -> None:
    stream = imagecodecs.htj2k_encode(GREY12, reversible=True)
    same(read_bytes(encapsulated(twelve(), stream, syntax), "x"), stretched(GREY12))


# --- bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_bits_above_those_stored_are_ignored(syntax: str) -> None:
    overlaid = twelve(GREY12 | 0x8000)
    same(read(overlaid, syntax), stretched(GREY12))


def test_signed_values_of_12_stored_bits_are_extended() -> None:
    clipped = SIGNED.clip(-2048, 2047)
    dataset = film((clipped & 0xFFF).astype(np.uint16), PixelRepresentation=1, **TWELVE)
    same(read(dataset), stretched(clipped))


def test_high_bit_at_the_top() -> None:
    same(read(film(GREY12 << 4, BitsStored=12, HighBit=15)), stretched(GREY12))


def test_impossible_high_bit_is_taken_for_the_usual_one() -> None:
    image = read(twelve(HighBit=3))
    same(image, stretched(GREY12))
    assert "high bit 3" in image.warnings[0]


def test_missing_optional_pixel_elements_get_their_only_sense() -> None:
    absent = dict.fromkeys(("BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"))
    same(read(film(GREY16, **absent)), stretched(GREY16))
    image = read(film(GREY16, PhotometricInterpretation=None))
    same(image, stretched(GREY16))
    assert "MONOCHROME2 was taken" in image.warnings[0]


# --- modality, VOI, polarity, padding --------------------------------------------------------


@pytest.mark.parametrize("function", ["", "LINEAR"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1000, 500), (700.5, 1), (300, 2)])
def test_linear_window(centre: float, width: float, function: str) -> None:
    dataset = twelve(WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    same(read(dataset), linear(GREY12, centre, width))


def test_linear_window_by_hand() -> None:
    # The standard's own example: c=2048, w=4096 maps 0 to the lowest and 4095 to the highest.
    samples = np.full((40, 40), 0, np.uint16)
    samples[0, :4] = (1, 2047, 2048, 4095)
    grey = read(twelve(samples, **WHOLE)).pixels
    np.testing.assert_allclose(grey[0, :5], [1 / 4095, 2047 / 4095, 2048 / 4095, 1, 0], rtol=1e-6)


def test_linear_exact_window() -> None:
    dataset = twelve(WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    expected = ((GREY12.astype(float) - 2000) / 1000 + 0.5).clip(0, 1)
    same(read(dataset), expected)


def test_sigmoid_window() -> None:
    dataset = twelve(WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    same(read(dataset), 1 / (1 + np.exp(-4 * (GREY12.astype(float) - 2000) / 1000)))


def test_the_first_of_several_windows_is_used() -> None:
    dataset = twelve(WindowCenter=[1000, 3000], WindowWidth=[500, 100])
    same(read(dataset), linear(GREY12, 1000, 500))


@pytest.mark.parametrize("width", [0, -5])
def test_impossible_window_is_not_used(width: float) -> None:
    image = read(twelve(WindowCenter=1000, WindowWidth=width))
    same(image, stretched(GREY12))
    assert f"window width is {width}" in image.warnings[0]


def test_narrow_window_becomes_linear_exact() -> None:
    dataset = twelve(WindowCenter=0.25, WindowWidth=0.5, RescaleSlope=1 / 4095, RescaleIntercept=0)
    image = read(dataset)
    np.testing.assert_allclose(image.pixels, (GREY12 / 4095 / 0.5).clip(0, 1), atol=1e-5)
    assert "too narrow" in image.warnings[0]


def test_window_beside_all_values_is_not_used() -> None:
    image = read(twelve(WindowCenter=60000, WindowWidth=10))
    same(image, stretched(GREY12))
    assert "one grey only" in image.warnings[0]


@pytest.mark.parametrize("text", ["abc", "nan", "1e999"])
def test_a_window_that_is_no_number_is_not_used(text: str) -> None:
    dataset = twelve(WindowCenter=100, WindowWidth=100)
    content = dicom(dataset)
    bad = text.encode().ljust(8)
    start = content.index(struct.pack("<HH2s", 0x28, 0x1050, b"DS"))
    length = struct.unpack_from("<H", content, start + 6)[0]
    head = content[: start + 6] + struct.pack("<H", len(bad)) + bad
    image = read_bytes(head + content[start + 8 + length :], "x")
    same(image, stretched(GREY12))
    assert "WindowCenter" in image.warnings[0]


def test_rescale_comes_before_the_window() -> None:
    dataset = twelve(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=500, WindowWidth=900)
    same(read(dataset), linear(GREY12.astype(float) * 2 - 1000, 500, 900))


def test_negative_slope_turns_black_and_white() -> None:
    same(read(twelve(RescaleSlope=-1, RescaleIntercept=4095)), 1 - stretched(GREY12))


@pytest.mark.parametrize("syntax", NATIVE[:2])
@pytest.mark.parametrize("words", [False, True])
def test_modality_lut(words: bool, syntax: str) -> None:
    squares = [v * v // 256 for v in range(256)]
    dataset = film(GREY8, ModalityLUTSequence=[lut_item(squares, 0, 8, words)])
    same(read(dataset, syntax), stretched(np.array(squares)[GREY8]))


@pytest.mark.parametrize("syntax", NATIVE[:2])
@pytest.mark.parametrize("words", [False, True])
def test_voi_lut_clamps_at_both_ends(words: bool, syntax: str) -> None:
    values = [10, 200, 400, 900, 1023]
    dataset = film(GREY8, VOILUTSequence=[lut_item(values, 100, 10, words)], **WHOLE)
    expected = np.array(values)[(GREY8.astype(int) - 100).clip(0, 4)] / 1023
    same(read(dataset, syntax), expected)


@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_voi_lut_of_signed_values(syntax: str) -> None:
    values = list(range(0, 4096, 2))
    dataset = film(SIGNED, VOILUTSequence=[lut_item(values, -1024, 12)])
    expected = np.array(values)[(SIGNED.astype(int) + 1024).clip(0, 2047)] / 4095
    same(read(dataset, syntax), expected)


def test_voi_lut_of_8_bit_entries_packed_in_words() -> None:
    item = lut_item(list(range(255, -1, -1)), 0, 8)
    item.add_new(0x00283006, "OW", bytes(range(255, -1, -1)))
    same(read(film(GREY8, VOILUTSequence=[item])), 1 - GREY8 / 255)


def test_too_short_lut_is_corrupt() -> None:
    item = lut_item([1, 2, 3], 0, 8)
    item.add_new(0x00283002, "US", [200, 0, 8])
    with pytest.raises(ImageRefusedError, match="3 of 200 entries") as refusal:
        read(film(GREY8, VOILUTSequence=[item]))
    assert refusal.value.reason is Reason.CORRUPT


def test_monochrome1_is_inverted_after_the_window() -> None:
    dataset = twelve(PhotometricInterpretation="MONOCHROME1", WindowCenter=900, WindowWidth=700)
    image = read(dataset)
    same(image, 1 - linear(GREY12, 900, 700))
    assert image.warnings == ()


def test_monochrome1_is_inverted_against_a_wrong_presentation_shape() -> None:
    wrong = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"}
    image = read(twelve(**wrong))
    same(image, 1 - stretched(GREY12))
    assert "IDENTITY" in image.warnings[0]
    right = read(twelve(**{**wrong, "PresentationLUTShape": "INVERSE"}))
    same(right, 1 - stretched(GREY12))
    assert right.warnings == ()


def test_monochrome2_with_inverse_shape_is_not_inverted() -> None:
    image = read(twelve(PresentationLUTShape="INVERSE"))
    same(image, stretched(GREY12))
    assert "INVERSE" in image.warnings[0]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_padding_is_black_and_does_not_stretch(syntax: str, photometric: str) -> None:
    samples = (GREY12 // 2 + 1000).astype(np.uint16)
    samples[:, :9] = 4000
    dataset = twelve(samples, PixelPaddingValue=4000, PhotometricInterpretation=photometric)
    film_only = stretched(samples[:, 9:])
    if photometric == "MONOCHROME1":
        film_only = 1 - film_only
    grey = read(dataset, syntax).pixels
    np.testing.assert_allclose(grey[:, 9:], film_only, atol=2e-7)
    assert not grey[:, :9].any()


@pytest.mark.parametrize("syntax", NATIVE[:2])
def test_signed_padding_range(syntax: str) -> None:
    samples = SIGNED.copy()
    samples[:5], samples[5:9] = -2000, -1990
    dataset = film(samples, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1980)
    grey = read(dataset, syntax).pixels
    np.testing.assert_allclose(grey[9:], stretched(samples[9:]), atol=2e-7)
    assert not grey[:9].any()


def test_nothing_but_padding_is_blank() -> None:
    with pytest.raises(ImageRefusedError) as refusal:
        read(film(np.full((40, 40), 5, np.uint16), PixelPaddingValue=5))
    assert refusal.value.reason is Reason.BLANK


# --- colour ---------------------------------------------------------------------------------


def colour() -> Array:
    planes = [smooth_grey(seed=seed) for seed in (1, 2, 3)]
    return np.stack([planes[0], 255 - planes[1], planes[2] // 2], axis=-1).astype(np.uint8)


def grey_of(rgb: Array) -> Array:
    return np.asarray(Image.fromarray(rgb).convert("L")) / 255


def test_rgb_capture_by_pixel_and_by_plane() -> None:
    expected = grey_of(colour())
    same(read(film(colour(), Modality="OT")), expected)
    planes = np.moveaxis(colour(), -1, 0).copy()
    by_plane = film(colour(), PlanarConfiguration=1, PixelData=planes.tobytes())
    by_plane["PixelData"].VR = "OB"
    same(read(by_plane), expected)


def test_ybr_full_capture() -> None:
    ybr = np.asarray(Image.fromarray(colour()).convert("YCbCr"))
    image = read(film(ybr, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_allclose(image.pixels, grey_of(colour()), atol=2 / 255)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_colour_jpeg(photometric: str) -> None:
    stream = encoded(Image.fromarray(colour()), "JPEG", quality=95)
    expected = grey_of(np.asarray(Image.open(BytesIO(stream))))
    dataset = film(colour(), PhotometricInterpretation=photometric)
    image = read_bytes(encapsulated(dataset, stream, JPEGBaseline8Bit), "x")
    np.testing.assert_allclose(image.pixels, expected, atol=1.01 / 255)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_lossless_colour(syntax: str) -> None:
    same(read_bytes(_compressed(film(colour()), syntax), "x"), grey_of(colour()))


def test_16_bit_rgb() -> None:
    wide = colour().astype(np.uint16) * 257
    dataset = film(wide)
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(read(dataset).pixels, colour() / 255 @ weights, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_capture(bits: int) -> None:
    top = (1 << bits) - 1
    table = (np.arange(256) * top // 255).astype(np.uint16 if bits == 16 else np.uint8)
    dataset = film(GREY8, PhotometricInterpretation="PALETTE COLOR")
    for name, values in (("Red", table), ("Green", table[::-1]), ("Blue", table)):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(dataset, f"{name}PaletteColorLookupTableData", values.tobytes())
    ramp = GREY8 / 255
    image = read(dataset)
    expected = 0.299 * ramp + 0.587 * (1 - ramp) + 0.114 * ramp
    np.testing.assert_allclose(image.pixels, expected, atol=0.6 / 255)


# --- geometry, header -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (2 * HEIGHT, WIDTH)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (HEIGHT, 2 * WIDTH)),
        ({"PixelAspectRatio": [3, 2]}, (HEIGHT * 3 // 2, WIDTH)),
        ({"PixelSpacing": [0.1005, 0.1]}, (HEIGHT, WIDTH)),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [3, 2]}, (HEIGHT, WIDTH)),
    ],
)
def test_pixels_are_made_square(elements: dict[str, Any], shape: tuple[int, int]) -> None:
    image = read(twelve(**elements))
    assert image.pixels.shape == shape
    resampled = shape != (HEIGHT, WIDTH)
    assert any("not square" in text for text in image.warnings) == resampled
    whole = np.asarray(Image.fromarray(stretched(GREY12).astype(np.float32)).resize(shape[::-1], 2))
    np.testing.assert_allclose(image.pixels, whole, atol=1e-6)


def test_resampling_keeps_to_the_limits() -> None:
    content = dicom(twelve(PixelSpacing=[0.8, 0.1]))
    with pytest.raises(ImageRefusedError) as refusal:
        read_bytes(content, "x", LimitsConfig(max_side=8 * HEIGHT - 1))
    assert refusal.value.reason is Reason.TOO_MANY_PIXELS


def test_impossible_spacing_is_not_used() -> None:
    image = read(twelve(PixelSpacing=[0, 0.1]))
    assert image.pixels.shape == (HEIGHT, WIDTH)
    assert "PixelSpacing" in image.warnings[0]


def test_header_is_handed_on() -> None:
    dataset = twelve(PatientAge="004Y", PatientSex="F", Manufacturer="Maker")
    assert read(dataset).dicom == DicomInfo(
        modality="DX",
        body_part="CHEST",
        view_position="AP",
        patient_id="phantom-7",
        photometric="MONOCHROME2",
        study_uid=str(dataset.StudyInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        sop_uid=str(dataset.SOPInstanceUID),
        patient_age="004Y",
        patient_sex="F",
        manufacturer="Maker",
        transfer_syntax=ExplicitVRLittleEndian,
    )


def test_absent_header_elements_are_empty_text() -> None:
    absent = ("PatientID", "ViewPosition", "BodyPartExamined", "StudyInstanceUID")
    info = read(twelve(**dict.fromkeys(absent))).dicom
    assert info is not None
    assert (info.patient_id, info.view_position, info.body_part, info.study_uid) == ("",) * 4
    assert (info.patient_age, info.patient_sex, info.manufacturer) == ("",) * 3


@pytest.mark.parametrize("modality", ["CR", "DX", "RG", "OT", "cr"])
def test_film_modalities_pass(modality: str) -> None:
    assert read(twelve(Modality=modality)).warnings == ()


@pytest.mark.parametrize("modality", ["CT", "US", "MG", "NM", "PT", "XA", "PR", "SEG", "ECG"])
def test_other_modalities_do_not(modality: str) -> None:
    with pytest.raises(ImageRefusedError, match=modality) as refusal:
        read(twelve(Modality=modality))
    assert refusal.value.reason is Reason.WRONG_MODALITY


def test_missing_modality_passes_by_its_class_with_a_warning() -> None:
    assert "no modality" in read(twelve(Modality=None)).warnings[0]


@pytest.mark.parametrize("part", ["chest", "CHEST/ABDOMEN", "THORAX", "LUNG", "WHOLEBODY", "RIBS"])
def test_parts_with_lungs_pass(part: str) -> None:
    assert read(twelve(BodyPartExamined=part)).warnings == ()


@pytest.mark.parametrize("part", ["HAND", "Skull", "ABDOMEN", "KNEE", "C SPINE", "FOOT"])
def test_parts_without_lungs_do_not(part: str) -> None:
    with pytest.raises(ImageRefusedError) as refusal:
        read(twelve(BodyPartExamined=part))
    assert refusal.value.reason is Reason.WRONG_BODY_PART


def test_odd_part_and_lateral_view_are_warned_of() -> None:
    image = read(twelve(BodyPartExamined="PORT", ViewPosition="LL"))
    assert "PORT" in image.warnings[0]
    assert "lateral" in image.warnings[1]


def test_values_that_pydicom_warns_of_stay_quiet() -> None:
    dataset = twelve(PatientAge="four", StudyInstanceUID="1.02.x")
    assert read(dataset).dicom.patient_age == "four"  # type: ignore[union-attr]


# --- never anything else ----------------------------------------------------------------------


def test_mutated_files_never_raise_anything_else() -> None:
    lossless = imagecodecs.jpeg8_encode(GREY12, lossless=True, bitspersample=12)
    contents = [
        dicom(twelve(**WHOLE)),
        dicom(film(GREY16), ImplicitVRLittleEndian),
        dicom(twelve(), preamble=False),
        _compressed(film(GREY16), RLELossless),
        _compressed(film(GREY16), JPEGLSLossless),
        _compressed(film(GREY16), JPEG2000Lossless),
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
            except ImageRefusedError as refusal:
                outcomes.add(refusal.reason.value)
    assert "corrupt" in outcomes
