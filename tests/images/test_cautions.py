"""Warnings in one cell, and counted without what they say of one file."""

from __future__ import annotations

from pneumoscope.images.cautions import closing_lines, counted, joined, kind_of, parted


def test_a_cell_comes_apart_as_it_was_put_together() -> None:
    assert joined(()) == ""
    assert parted("") == ()
    assert parted(joined(("one, two", "three; four"))) == ("one, two", "three, four")


def test_a_kind_has_no_numbers_and_no_quoted_text() -> None:
    assert kind_of("its body part 'SMITH^JOHN 1' is not known") == "its body part … is not known"
    assert kind_of('its body part "O\'HARA" is not known') == "its body part … is not known"
    assert kind_of("values -3.5e+09 to 1,234, MONOCHROME1") == "values … to …, MONOCHROME1"


def test_an_image_counts_once_for_a_kind() -> None:
    counts = counted([("3 bits", "4 bits"), ("5 bits", "odd"), ()])
    assert counts == {"… bits": 2, "odd": 1}
    assert closing_lines(counts) == ["warnings  2 × … bits; 1 × odd"]
    assert closing_lines(counted([()])) == []
    many = counted([[f"kind {letter}" for letter in "abcdefg"]])
    assert closing_lines(many)[0].endswith("2 kinds more")
