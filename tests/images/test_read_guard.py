"""The decoders' exceptions and warnings are kept in, per thread, and filters are put back."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib

import pytest

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.budget import DECODER_ERRORS, decoding
from pneumoscope.images.read import read_bytes
from support.dicom_images import twelve
from support.image_files import dicom


def warn_as(module: str, text: str) -> None:
    warnings.warn_explicit(text, UserWarning, "x.py", 1, module=module)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("image file is truncated (5 bytes not processed)"), Reason.TRUNCATED),
        (EOFError(), Reason.TRUNCATED),
        (ValueError("not enough image data"), Reason.TRUNCATED),
        (SyntaxError("cannot handle 12-bit layers"), Reason.UNSUPPORTED_ENCODING),
        (NotImplementedError("no"), Reason.UNSUPPORTED_ENCODING),
        (struct.error("unpack requires a buffer of 4 bytes"), Reason.CORRUPT),
        (zlib.error("Error -3 while decompressing data"), Reason.CORRUPT),
        (KeyError(7), Reason.CORRUPT),
        (MemoryError(), Reason.CORRUPT),
    ],
)
def test_a_decoders_error_becomes_a_rejection(error: Exception, reason: Reason) -> None:
    assert isinstance(error, DECODER_ERRORS)
    with pytest.raises(ImageRefusedError, match="the PNG") as rejection, decoding("x", "the PNG"):
        raise error
    assert rejection.value.reason is reason
    assert rejection.value.source == "x"
    assert rejection.value.__cause__ is error


def test_long_messages_of_several_lines_become_one_short_line() -> None:
    with pytest.raises(ImageRefusedError) as rejection, decoding("x", "the PNG"):
        raise RuntimeError("first\n  second\n" + "x" * 5000)
    assert "first second" in rejection.value.detail
    assert len(rejection.value.detail) < 400


def test_our_own_rejection_and_an_interrupt_pass_through() -> None:
    own = ImageRefusedError("x", Reason.TOO_SMALL, "tiny")
    with pytest.raises(ImageRefusedError) as rejection, decoding("x", "the PNG"):
        raise own
    assert rejection.value is own
    with pytest.raises(KeyboardInterrupt), decoding("x", "the PNG"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("module", ["PIL.TiffImagePlugin", "pydicom.misc", "pneumoscope.images.x"])
def test_warnings_of_decoders_are_collected(module: str) -> None:
    with decoding("x", "the PNG") as messages:
        warn_as(module, "odd")
        warn_as(module, "odd")
    assert messages == ["odd", "odd"]


def test_warnings_of_other_modules_are_left_alone() -> None:
    with decoding("x", "the PNG") as messages:
        # The test run makes warnings errors, and this one must stay one.
        with pytest.raises(UserWarning, match="theirs"):
            warn_as("matplotlib.figure", "theirs")
        warn_as("PIL.Image", "ours")
    assert messages == ["ours"]


def test_a_thread_that_does_not_collect_still_warns() -> None:
    with warnings.catch_warnings(record=True) as log, decoding("x", "the PNG") as messages:
        thread = threading.Thread(target=warn_as, args=("PIL.Image", "elsewhere"))
        thread.start()
        thread.join()
    assert [str(entry.message) for entry in log] == ["elsewhere"]
    assert messages == []


def test_nested_blocks_collect_their_own() -> None:
    with decoding("x", "the outer") as outer:
        with decoding("x", "the inner") as inner:
            warn_as("PIL.Image", "inner")
        warn_as("PIL.Image", "outer")
    assert (inner, outer) == (["inner"], ["outer"])


def test_overlapping_threads_collect_their_own_and_restore_the_filters() -> None:
    before, show = list(warnings.filters), warnings.showwarning
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    collected: dict[str, list[str]] = {}

    def first() -> None:
        with decoding("x", "the PNG") as messages:
            first_in.set()
            second_in.wait(10)
            warn_as("PIL.Image", "of the first")
            collected["first"] = messages
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        with decoding("x", "the PNG") as messages:
            second_in.set()
            first_out.wait(10)
            # The first has left; the filters must still be in place for the second.
            warn_as("PIL.Image", "of the second")
            collected["second"] = messages

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collected == {"first": ["of the first"], "second": ["of the second"]}
    assert warnings.filters == before
    assert warnings.showwarning is show


def test_what_pydicom_alone_raises_becomes_a_rejection() -> None:
    # A number of two bytes, and by its type of eight: pydicom's own exception is no ValueError.
    content = dicom(twelve()).replace(b"\x28\x00\x01\x01US", b"\x28\x00\x01\x01FD")
    with pytest.raises(ImageRefusedError, match="Expected total bytes") as rejection:
        read_bytes(content, "x")
    assert rejection.value.reason is Reason.CORRUPT
