"""What a DICOM header says of the patient: the age, and attributes for subgroup analysis.

PatientAge is a number of days, weeks, months or years (AS, PS3.5 6.2). If it is missing, the age
follows from birth date and study date. An age is an interval, since `003Y` is any age from 3 to
just below 4 years.

`image_attributes` reads age band, sex, view and manufacturer, as the reader of images does. Nothing
that identifies a patient is kept, and no pixel is decoded. Unreadable headers give no attributes
instead of an error.

`AgeGate` checks the patient's age against the age range of a model.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pneumoscope.errors import ImageRefusedError, Reason, UsageError
from pneumoscope.images.budget import decoding
from pneumoscope.images.grey import DicomInfo
from pneumoscope.images.read import GreyImage, dicom_head

_DAYS_PER_YEAR = 365.25

_AGE = re.compile(r"(\d{1,3})\s*([DWMY])")
_DATE = re.compile(r"(\d{4})[.\-]?(\d{2})[.\-]?(\d{2})")
YEARS_PER_UNIT = {"D": 1 / _DAYS_PER_YEAR, "W": 7 / _DAYS_PER_YEAR, "M": 1 / 12, "Y": 1.0}
_NAMES = {"D": "day", "W": "week", "M": "month", "Y": "year"}
_OLDEST = 150
_IN_MONTHS = 24
"""Ages of fewer months than this are stated in months."""

_MAX_APART = 1.0
"""Maximum difference in years between PatientAge and the dates, which may be shifted to hide the
identity."""

AGE_BANDS = ((1, "under 1"), (5, "1 to 4"), (18, "5 to 17"), (40, "18 to 39"), (65, "40 to 64"))
"""Upper limit of each band in years (exclusive), and its name; above is `65 or older`."""

_OLDEST_BAND = "65 or older"
VIEWS = {"POSTERO-ANTERIOR": "PA", "ANTERO-POSTERIOR": "AP"}
"""ViewPosition (PS3.3 C.8.1.1.1.2) for the meanings of coded views (PS3.16 CID 4010)."""

LATERAL_WORDS = frozenset(
    {"LL", "RL", "LAT", "LLAT", "RLAT", "LATERAL", "MEDIOLATERAL", "LATEROMEDIAL"}
    | {"LATERALE", "LATERALIS", "SEITLICH", "PROFIL"}
)
"""Words for a lateral view in headers and tables, in capitals."""

_SEXES = {"F": "female", "M": "male", "O": "other"}  # PatientSex, PS3.3 C.7.1.1
_MAX_TEXT = 64
MOST_AGE = 120


@dataclass(frozen=True, slots=True)
class Age:
    """An age interval from `low` to just below `high` years; `words` for messages: `18 months`."""

    low: float
    high: float
    words: str


def patient_age(stated: str, birth: str, study: str) -> tuple[Age | None, tuple[str, ...]]:
    """The patient's age according to the header, `None` if it states none; and warnings.

    Args:
        stated: PatientAge.
        birth: PatientBirthDate.
        study: the date of the study.
    """
    by_words, by_dates = _stated(stated), _between(birth, study)
    odd: list[str] = []
    if stated and by_words is None:
        odd.append(f"its PatientAge {stated!r} is not a valid age and was not used")
    if by_dates is not None and by_dates.low < 0:
        odd.append("its birth date is after its study date; neither was used")
        by_dates = None
    if by_words is not None and by_dates is not None:
        apart = max(by_dates.low - by_words.high, by_words.low - by_dates.high)
        if apart > _MAX_APART:
            odd.append(
                f"its PatientAge ({by_words.words}) and its dates ({by_dates.words}) contradict "
                "each other; PatientAge was used"
            )
    return by_words or by_dates, tuple(odd)


def age_string(birth: str, study: str) -> str:
    """The age between two dates as PatientAge states it (AS), such as `018M`; `""` if unknown.

    Args:
        birth: PatientBirthDate.
        study: the date of the study.
    """
    found = _between(birth, study)
    if found is None or found.low < 0:
        return ""
    months = round(found.low * 12)
    return f"{months:03}M" if months < _IN_MONTHS else f"{months // 12:03}Y"


def _stated(text: str) -> Age | None:
    match = _AGE.fullmatch(text.strip().upper())
    if not match:
        return None
    number, unit = int(match[1]), match[2]
    per = YEARS_PER_UNIT[unit]
    age = Age(number * per, (number + 1) * per, _plural(number, _NAMES[unit]))
    return age if age.low <= _OLDEST else None


def _between(birth: str, study: str) -> Age | None:
    born, taken = _day(birth), _day(study)
    if born is None or taken is None:
        return None
    days = (taken - born).days
    months = (taken.year - born.year) * 12 + taken.month - born.month - (taken.day < born.day)
    years = months / 12
    if days < 0:
        return Age(-1.0, 0.0, "below 0")
    if years > _OLDEST:
        return None
    words = _plural(months, "month") if months < _IN_MONTHS else _plural(months // 12, "year")
    return Age(years, years + 1 / 12, words)


def _day(text: str) -> date | None:
    match = _DATE.fullmatch(text.strip())
    try:
        return date(int(match[1]), int(match[2]), int(match[3])) if match else None
    except ValueError:
        return None


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def dicom_texts(path: Path, keywords: Collection[str]) -> dict[str, str]:
    """The values of elements in a DICOM header, as `file.header_texts` reads them.

    Only the beginning of the file is read, and no pixel is decoded.

    Returns:
        Text by keyword; empty for other and for unreadable files, which `read_image` reports.
    """
    head = dicom_head(path)
    if not head:
        return {}
    # pydicom takes 0.2 s to import, and most data sets have no DICOM.
    from pneumoscope.images.dicom.file import header_texts

    try:
        return header_texts(head, str(path), keywords)
    except ImageRefusedError:
        return {}


def image_attributes(path: Path) -> dict[str, str]:
    """`age_band`, `sex`, `view` and `manufacturer` of a DICOM file, as far as it states them.

    Returns:
        Values by name; empty for files other than DICOM with a preamble (PS3.10 section 7.1).
    """
    info = _info(path)
    age, _ = patient_age(info.patient_age, info.patient_birth_date, info.study_date)
    view = _text(info.view_position).upper()
    found = {
        "age_band": age_band(age) if age else "",
        "sex": _SEXES.get(info.patient_sex.upper(), ""),
        "view": VIEWS.get(view, view),
        "manufacturer": _text(info.manufacturer),
    }
    return {name: value for name, value in found.items() if value}


def _info(path: Path) -> DicomInfo:
    """The header's elements about patient, equipment and view; empty for unreadable files."""
    head = dicom_head(path)
    if not head:
        return DicomInfo()
    from pneumoscope.images.dicom.file import header_elements
    from pneumoscope.images.dicom.header import DATES, dicom_info

    age = ("PatientAge", "PatientBirthDate", *DATES)
    keywords = (*age, "PatientSex", "ViewPosition", "ViewCodeSequence", "Manufacturer")
    try:
        elements = header_elements(head, str(path), keywords)
        with decoding(str(path), "the DICOM header"):
            return dicom_info(elements, "")
    except ImageRefusedError:
        return DicomInfo()


def age_band(age: Age) -> str:
    """The band of an age, by the youngest that the patient may be."""
    return next((name for below, name in AGE_BANDS if age.low < below), _OLDEST_BAND)


def _text(value: object) -> str:
    """A header's text on one line, without characters that break a page or a CSV."""
    printable = "".join(c if c.isprintable() else " " for c in str(value or ""))
    return " ".join(printable.split())[:_MAX_TEXT]


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
