"""A sample of patients: whole, in the classes' shares, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pneumoscope.data.index import sample_patients
from pneumoscope.records import ImageRecord


def records(normal: int = 100, pneumonia: int = 300, each: int = 3) -> list[ImageRecord]:
    made = [ImageRecord(Path(f"/n{k}.png"), 0, f"n{k // each}") for k in range(normal)]
    return made + [ImageRecord(Path(f"/i{k}.png"), 1, f"i{k // each}") for k in range(pneumonia)]


def test_small_data_sets_are_kept_whole() -> None:
    assert sample_patients(records(4, 6), 10, 0) == tuple(records(4, 6))


def test_patients_come_in_whole_and_classes_keep_their_share() -> None:
    everything = records()
    chosen = sample_patients(everything, 80, 0)
    assert len(chosen) == 80
    assert Counter(record.label for record in chosen) == {0: 20, 1: 60}
    whole = Counter(record.patient for record in everything)
    cut = [p for p, n in Counter(r.patient for r in chosen).items() if n < whole[p]]
    assert len(cut) <= 2  # the last patient of each class
    assert [r for r in everything if r in set_of(chosen)] == list(chosen)  # in their order


def set_of(chosen: tuple[ImageRecord, ...]) -> list[ImageRecord]:
    return list(chosen)


def test_the_sample_depends_on_the_seed_not_on_the_order() -> None:
    everything = records()
    first = sample_patients(everything, 50, 1)
    assert sample_patients(everything, 50, 1) == first
    assert sample_patients(everything, 50, 2) != first
    shuffled = sample_patients(everything[::-1], 50, 1)
    assert sorted(r.path for r in shuffled) == sorted(r.path for r in first)


def test_a_rare_class_is_never_left_out() -> None:
    chosen = sample_patients(records(1, 400), 20, 0)
    assert Counter(record.label for record in chosen) == {0: 1, 1: 19}
