"""Warnings in one cell, and counted without what they say of one file."""

from __future__ import annotations

from pneumoscope.images.grey import (
    count_warnings,
    join_warnings,
    split_warnings,
    summary_lines,
    warning_type,
)


def test_a_cell_comes_apart_as_it_was_put_together() -> None:
    assert join_warnings(()) == ""
    assert split_warnings("") == ()
    assert split_warnings(join_warnings(("one, two", "three; four"))) == ("one, two", "three, four")


def test_a_warning_type_has_no_numbers_and_no_quoted_text() -> None:
    assert (
        warning_type("its body part 'SMITH^JOHN 1' is not known") == "its body part … is not known"
    )
    assert warning_type('its body part "O\'HARA" is not known') == "its body part … is not known"
    assert warning_type("values -3.5e+09 to 1,234, MONOCHROME1") == "values … to …, MONOCHROME1"


def test_an_image_counts_once_per_warning_type() -> None:
    counts = count_warnings([("3 bits", "4 bits"), ("5 bits", "odd"), ()])
    assert counts == {"… bits": 2, "odd": 1}
    assert summary_lines(counts) == ["warnings  2 × … bits; 1 × odd"]
    assert summary_lines(count_warnings([()])) == []
    many = count_warnings([[f"kind {letter}" for letter in "abcdefg"]])
    assert summary_lines(many)[0].endswith("2 more types")
