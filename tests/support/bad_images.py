"""A table of image inputs for which there is no result, each with the reason that it must get.

Comes in: an empty folder. Goes out: the path of one bad input in it.
Used by the tests of reading and by those of batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from pneumoscope.errors import Reason
from support.bad_image_builders import (
    GREY8,
    GREY16,
    PICTURE,
    animation,
    archive,
    bomb,
    cut,
    damaged_png,
    dangling,
    file,
    float_tiff,
    folder,
    grey_of,
    huge,
    jpeg,
    jpeg_dicom,
    jpeg_of_claimed_size,
    jpeg_of_many_scans,
    loop,
    noise,
    of_modality,
    pipe,
    png,
    report,
    webp_of_claimed_size,
)
from support.image_files import dicom, encapsulated, encoded, png_header_only, tiff, xray


@dataclass(frozen=True, slots=True)
class BadImage:
    """One bad input: how to make it, and what must be said of it.

    Attributes:
        name: of the case.
        build: makes the input in a folder and returns its path.
        reason: the code that it must get.
        fragment: must stand in the message.
    """

    name: str
    build: Callable[[Path], Path]
    reason: Reason
    fragment: str


BAD_IMAGES: tuple[BadImage, ...] = (
    # No file, or none that can be read.
    BadImage("missing", lambda f: f / "no.png", Reason.NOT_FOUND, "no such file. Check the path"),
    BadImage("dangling_link", dangling, Reason.NOT_FOUND, "gone.png, which does not exist"),
    BadImage("link_loop", loop, Reason.NOT_FOUND, "form a loop"),
    BadImage("null_in_name", lambda f: f / "a\0b.png", Reason.NOT_FOUND, "null"),
    BadImage("name_too_long", lambda f: f / ("x" * 300), Reason.NOT_FOUND, "too long"),
    BadImage("file_as_folder", lambda f: huge(f) / "x.png", Reason.NOT_FOUND, "no such file"),
    BadImage("folder_named_png", folder, Reason.NOT_A_FILE, "a folder"),
    BadImage("pipe", pipe, Reason.NOT_A_FILE, "named pipe"),
    BadImage("device", lambda _: Path("/dev/zero"), Reason.NOT_A_FILE, "a device"),
    BadImage("empty", file("empty.png", bytes), Reason.EMPTY_FILE, "no bytes"),
    BadImage("huge_file", huge, Reason.FILE_TOO_LARGE, "at most 268,435,456"),
    # No image.
    BadImage(
        "text_named_jpeg",
        file("notes.jpeg", lambda: b"The lungs are clear.\n" * 9),
        Reason.NOT_AN_IMAGE,
        "text",
    ),
    BadImage("web_page", file("x.jpg", lambda: b"<!DOCTYPE html>"), Reason.NOT_AN_IMAGE, "web"),
    BadImage("gif", file("x.gif", lambda: encoded(PICTURE, "GIF")), Reason.NOT_AN_IMAGE, "GIF"),
    BadImage("pdf", file("x.png", lambda: b"%PDF-1.7\n%\xe2\xe3"), Reason.NOT_AN_IMAGE, "PDF"),
    BadImage("zip", archive, Reason.NOT_AN_IMAGE, "ZIP"),
    BadImage("noise", file("x.png", lambda: noise(999)), Reason.NOT_AN_IMAGE, "binary"),
    BadImage("zeros", file("x.dcm", lambda: bytes(999)), Reason.NOT_AN_IMAGE, "zero bytes"),
    # Cut short.
    BadImage("half_jpeg", file("x.jpg", cut(jpeg, 0.5)), Reason.TRUNCATED, "JPEG"),
    BadImage("nearly_whole_jpeg", file("x.jpg", cut(jpeg, 0.99)), Reason.TRUNCATED, "JPEG"),
    BadImage("half_png", file("x.png", cut(png, 0.5)), Reason.TRUNCATED, "end chunk"),
    BadImage("png_without_end", file("x.png", lambda: png()[:-12]), Reason.TRUNCATED, "end"),
    BadImage(
        "half_tiff", file("x.tif", cut(lambda: tiff(GREY16), 0.5)), Reason.TRUNCATED, "reach"
    ),
    BadImage(
        "half_deflated_tiff",
        file("x.tif", cut(lambda: tiff(GREY16, deflate=True), 0.8)),
        Reason.TRUNCATED,
        "reach",
    ),
    BadImage(
        "tiff_cut_before_its_directory",
        file("x.tif", cut(lambda: encoded(PICTURE, "TIFF", compression="tiff_lzw"), 0.5)),
        Reason.TRUNCATED,
        "directory",
    ),
    BadImage(
        "half_bmp",
        file("x.bmp", cut(lambda: encoded(PICTURE, "BMP"), 0.6)),
        Reason.TRUNCATED,
        "BMP",
    ),
    BadImage(
        "half_webp",
        file("x.webp", cut(lambda: encoded(PICTURE, "WEBP"), 0.5)),
        Reason.TRUNCATED,
        "WebP states",
    ),
    BadImage(
        "half_dicom",
        file("x.dcm", cut(lambda: dicom(xray(GREY16)), 0.6)),
        Reason.TRUNCATED,
        "pixel data have",
    ),
    BadImage(
        "half_jpeg_dicom",
        file("x.dcm", cut(lambda: jpeg_dicom(jpeg()), 0.7)),
        Reason.TRUNCATED,
        "data end",
    ),
    BadImage(
        "dicom_cut_in_header",
        file("x.dcm", lambda: (c := dicom(xray(GREY16)))[: c.index(b"phantom-7") + 4]),
        Reason.TRUNCATED,
        "data end",
    ),
    BadImage(
        "half_deflated_dicom",
        file("x.dcm", cut(lambda: dicom(xray(GREY16), DeflatedExplicitVRLittleEndian), 0.6)),
        Reason.TRUNCATED,
        "deflated",
    ),
    BadImage(
        "dicom_pixels_too_short",
        file("x.dcm", lambda: dicom(xray(GREY16, PixelData=b"\x01\x00" * 99))),
        Reason.TRUNCATED,
        "198 bytes",
    ),
    BadImage(
        "jpeg_dicom_without_end",
        file("x.dcm", lambda: jpeg_dicom(jpeg()[:-400])),
        Reason.TRUNCATED,
        "end marker",
    ),
    # Damaged, or encoded as nothing here reads.
    BadImage("damaged_png", file("x.png", damaged_png), Reason.CORRUPT, "checksum"),
    BadImage(
        "noise_after_jpeg_magic",
        file("x.jpg", lambda: b"\xff\xd8\xff\xe0" + noise(99_999)),
        Reason.CORRUPT,
        "JPEG",
    ),
    BadImage(
        "jpeg_of_many_scans", file("x.jpg", jpeg_of_many_scans), Reason.CORRUPT, "at most 200"
    ),
    BadImage(
        "noise_after_preamble",
        file("x.dcm", lambda: bytes(128) + b"DICM" + noise(999)),
        Reason.CORRUPT,
        "DICOM",
    ),
    BadImage(
        "jpeg_dicom_of_other_size",
        file("x.dcm", lambda: jpeg_dicom(jpeg_of_claimed_size(60000, 60000))),
        Reason.CORRUPT,
        "60000 × 60000",
    ),
    BadImage(
        "jpeg_said_to_be_jpeg_2000",
        file("x.dcm", lambda: encapsulated(xray(GREY8), jpeg(), JPEG2000Lossless)),
        Reason.CORRUPT,
        "JPEG 2000",
    ),
    BadImage(
        "unknown_transfer_syntax",
        file("x.dcm", lambda: dicom(xray(GREY16), "1.2.826.0.1.3680043.2.1143.9.9")),
        Reason.UNSUPPORTED_ENCODING,
        "transfer syntax '1.2.826",
    ),
    BadImage(
        "mpeg_dicom",
        file("x.dcm", lambda: encapsulated(xray(GREY8), b"\0\0", "1.2.840.10008.1.2.4.100")),
        Reason.UNSUPPORTED_ENCODING,
        "MPEG2",
    ),
    BadImage(
        "complex_tiff",
        file("x.tif", lambda: tiff((GREY8 / 255.0).astype(np.complex64), sample_format=6)),
        Reason.UNSUPPORTED_ENCODING,
        "complex64",
    ),
    # Too much, too little, too long.
    BadImage(
        "png_bomb",
        file("x.png", lambda: png_header_only(60000, 60000)),
        Reason.TOO_MANY_PIXELS,
        "60000 × 60000",
    ),
    BadImage(
        "400_megapixels",
        file("x.png", lambda: png_header_only(20000, 20000)),
        Reason.TOO_MANY_PIXELS,
        "at most 50,000,000",
    ),
    BadImage(
        "long_side",
        file("x.png", lambda: png_header_only(20000, 2500)),
        Reason.TOO_MANY_PIXELS,
        "16,384 a side",
    ),
    BadImage(
        "jpeg_bomb",
        file("x.jpg", lambda: jpeg_of_claimed_size(65000, 65000)),
        Reason.TOO_MANY_PIXELS,
        "65000 × 65000",
    ),
    BadImage(
        "webp_bomb", file("x.webp", webp_of_claimed_size), Reason.TOO_MANY_PIXELS, "16384 × 16384"
    ),
    BadImage(
        "dicom_bomb",
        file("x.dcm", lambda: dicom(xray(GREY16, Rows=60000, Columns=60000))),
        Reason.TOO_MANY_PIXELS,
        "60000 × 60000",
    ),
    BadImage("deflated_bomb", file("x.dcm", bomb), Reason.FILE_TOO_LARGE, "inflate to more"),
    BadImage(
        "one_pixel",
        file("x.png", lambda: encoded(Image.new("L", (1, 1), 9), "PNG")),
        Reason.TOO_SMALL,
        "1 × 1",
    ),
    BadImage("thumbnail", file("x.png", lambda: grey_of(31, 40)), Reason.TOO_SMALL, "40 × 31"),
    BadImage("strip", file("x.png", lambda: grey_of(40, 400)), Reason.EXTREME_ASPECT, "8 times"),
    # More than one picture.
    BadImage("animated_png", file("x.png", lambda: animation("PNG")), Reason.MULTI_FRAME, "PNG"),
    BadImage(
        "animated_webp", file("x.webp", lambda: animation("WEBP")), Reason.MULTI_FRAME, "WebP"
    ),
    BadImage("tiff_pages", file("x.tif", lambda: animation("TIFF")), Reason.MULTI_FRAME, "TIFF"),
    BadImage(
        "dicom_frames",
        file(
            "x.dcm",
            lambda: dicom(xray(GREY16, NumberOfFrames=2, PixelData=GREY16.tobytes() * 2)),
        ),
        Reason.MULTI_FRAME,
        "2 images",
    ),
    # Pixels that show nothing.
    BadImage("nan", file("x.tif", lambda: float_tiff(np.nan)), Reason.NON_FINITE_PIXELS, "1 of"),
    BadImage("inf", file("x.tif", lambda: float_tiff(np.inf)), Reason.NON_FINITE_PIXELS, "1 of"),
    BadImage(
        "blank",
        file("x.png", lambda: encoded(Image.new("L", (64, 64), 128), "PNG")),
        Reason.BLANK,
        "0.502",
    ),
    BadImage(
        "blank_dicom",
        file("x.dcm", lambda: dicom(xray(np.full((64, 64), 7, np.uint16)))),
        Reason.BLANK,
        "one grey",
    ),
    # DICOM that is no chest image.
    BadImage("ct", file("x.dcm", lambda: of_modality("CT")), Reason.WRONG_MODALITY, "'CT'"),
    BadImage("mr", file("x.dcm", lambda: of_modality("MR")), Reason.WRONG_MODALITY, "'MR'"),
    BadImage("report", file("x.dcm", report), Reason.WRONG_MODALITY, "'SR'"),
    BadImage(
        "ct_class_without_modality",
        file(
            "x.dcm",
            lambda: dicom(
                xray(GREY16, Modality=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
            ),
        ),
        Reason.WRONG_MODALITY,
        "CT Image Storage",
    ),
    BadImage(
        "hand",
        file("x.dcm", lambda: dicom(xray(GREY16, BodyPartExamined="HAND"))),
        Reason.WRONG_BODY_PART,
        "'HAND'",
    ),
    BadImage(
        "dicom_without_pixels",
        file("x.dcm", lambda: dicom(xray(GREY16, PixelData=b""))),
        Reason.NO_PIXEL_DATA,
        "without pixel data",
    ),
)  # fmt: skip
"""The inputs that need no special user: each is rejected wherever the tests run."""
