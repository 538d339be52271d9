"""Derive the patient's age from a DICOM header.

PatientAge is a number of days, weeks, months or years (AS, PS3.5 6.2). If it is missing, the age
follows from birth date and study date. An age is an interval, since `003Y` is any age from 3 to
just below 4 years.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

_DAYS_PER_YEAR = 365.25

_AGE = re.compile(r"(\d{1,3})\s*([DWMY])")
_DATE = re.compile(r"(\d{4})[.\-]?(\d{2})[.\-]?(\d{2})")
_YEARS = {"D": 1 / _DAYS_PER_YEAR, "W": 7 / _DAYS_PER_YEAR, "M": 1 / 12, "Y": 1.0}
_NAMES = {"D": "day", "W": "week", "M": "month", "Y": "year"}
_OLDEST = 150
_IN_MONTHS = 24
"""Ages of fewer months than this are stated in months."""

_MAX_APART = 1.0
"""Maximum difference in years between PatientAge and the dates, which may be shifted to hide the
identity."""


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
    per = _YEARS[unit]
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
