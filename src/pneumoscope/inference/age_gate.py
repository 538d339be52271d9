"""Age gate: checks the patient's age in the DICOM header against the model's age range."""

from __future__ import annotations

from dataclasses import dataclass

from pneumoscope.errors import ImageRefusedError, Reason, UsageError
from pneumoscope.images.dicom.patient import patient_age
from pneumoscope.images.read import GreyImage

MOST_AGE = 120


@dataclass(frozen=True, slots=True)
class AgeGate:
    """Rejects patients outside the age range of a model.

    Attributes:
        ages: youngest and oldest age in completed years, both included; empty: any age.
        any_age: predict for other ages too, with a warning.
    """

    ages: tuple[int, ...] = ()
    any_age: bool = False

    def warnings(self, image: GreyImage) -> tuple[str, ...]:
        """Warnings about the patient's age; images without a DICOM header have none.

        Raises:
            ImageRefusedError: `outside_age_range`.
        """
        if not self.ages or image.dicom is None:
            return ()
        info = image.dicom
        age, odd = patient_age(info.patient_age, info.patient_birth_date, info.study_date)
        least, most = self.ages
        if age is None:
            words = f"for {describe_ages(self.ages)}, the age of this patient is not known"
            return (*odd, words)
        if age.low < most + 1 and age.high > least:
            return odd
        if not self.any_age:
            raise ImageRefusedError(
                image.source,
                Reason.OUTSIDE_AGE_RANGE,
                f"the patient is {age.words} old by the header; the model is for "
                f"{describe_ages(self.ages)}. Use a model for that age, or predict all the "
                "same (--any-age)",
                (*image.warnings, *odd),
            )
        words = (
            f"the patient is {age.words} old, the model is for {describe_ages(self.ages)}, and it "
            "predicted all the same (--any-age)"
        )
        return (*odd, words)


NO_AGE_LIMIT = AgeGate()
"""Accepts patients of any age."""


def describe_ages(ages: tuple[int, ...]) -> str:
    """The age range in words: `children aged 1–5 years`."""
    least, most = ages
    who = "children" if most < 18 else "adults" if least >= 18 else "patients"
    return f"{who} aged {least}–{most} years"


def parse_ages(text: str) -> tuple[int, ...]:
    """Parse youngest and oldest age, as in `1-5`.

    Raises:
        UsageError: the text is not two ages in ascending order.
    """
    parts = text.replace("–", "-").split("-")
    try:
        ages = tuple(int(part) for part in parts)
    except ValueError:
        ages = ()
    check_ages(ages, f"--ages {text!r}")
    return ages


def check_ages(ages: tuple[int, ...], where: str) -> None:
    """Check that ages are either empty or youngest and oldest.

    Raises:
        UsageError: they are neither.
    """
    if ages and (len(ages) != 2 or not 0 <= ages[0] <= ages[1] <= MOST_AGE):
        raise UsageError(
            f"{where}: found {list(ages)}, wanted the youngest and the oldest in completed years, "
            f"0 to {MOST_AGE}, as in 1-5"
        )
    if where.startswith("--") and not ages:
        raise UsageError(f"{where}: wanted the youngest and the oldest in years, as in 1-5")
