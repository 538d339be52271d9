"""Every bad input is rejected quickly with its code and a message; no other error is raised."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.read import read_bytes, read_image
from support.bad_images import BAD_IMAGES, BadImage
from support.image_files import encoded, smooth_grey


@pytest.mark.parametrize("case", BAD_IMAGES, ids=lambda case: case.name)
def test_bad_image_is_rejected_with_its_reason(case: BadImage, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    with pytest.raises(ImageRefusedError) as rejection:
        read_image(path)
    assert rejection.value.reason == case.reason, str(rejection.value)
    assert case.fragment in rejection.value.detail, str(rejection.value)
    assert rejection.value.source == str(path)
    assert "\n" not in rejection.value.detail
    assert str(tmp_path) not in rejection.value.detail


def test_the_table_is_long_and_names_are_unique() -> None:
    assert len(BAD_IMAGES) >= 40
    assert len({case.name for case in BAD_IMAGES}) == len(BAD_IMAGES)


# These have no bytes, or more than a test should hold.
WITHOUT_BYTES = (Reason.NOT_FOUND, Reason.NOT_A_FILE, Reason.FILE_TOO_LARGE)


@pytest.mark.parametrize(
    "case", [c for c in BAD_IMAGES if c.reason not in WITHOUT_BYTES], ids=lambda case: case.name
)
def test_bytes_get_the_reason_that_the_file_gets(case: BadImage, tmp_path: Path) -> None:
    path = case.build(tmp_path)
    with pytest.raises(ImageRefusedError) as rejection:
        read_bytes(path.read_bytes(), "upload")
    assert rejection.value.reason is case.reason
    assert rejection.value.source == "upload"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(1, "No")])
def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    # Root may read everything, so the rejection is simulated.
    path = tmp_path / "secret.png"
    path.write_bytes(b"x")

    def reject(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", reject)
    with pytest.raises(ImageRefusedError, match="may not read") as rejection:
        read_image(path)
    assert rejection.value.reason is Reason.PERMISSION_DENIED


def test_a_file_too_large_is_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"x" * 100)

    def fail(*_: object) -> int:
        raise AssertionError("opened")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ImageRefusedError) as rejection:
        read_image(path, LimitsConfig(max_bytes=99))
    assert rejection.value.reason is Reason.FILE_TOO_LARGE


def test_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"x")

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ImageRefusedError, match="Input/output error") as rejection:
        read_image(path)
    assert rejection.value.reason is Reason.CORRUPT


def test_bytes_are_bounded() -> None:
    content = encoded(Image.fromarray(smooth_grey().astype("u1")), "PNG")
    with pytest.raises(ImageRefusedError) as rejection:
        read_bytes(content, "x", LimitsConfig(max_bytes=len(content) - 1))
    assert rejection.value.reason is Reason.FILE_TOO_LARGE
    assert read_bytes(content, "x", LimitsConfig(max_bytes=len(content))).format == "png"
