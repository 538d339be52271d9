"""Age, sex and view from a DICOM header, for data sets whose tables lack them.

Comes in: a file. Goes out: the case with what the header adds. No pixel is decoded.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import replace

from pneumoscope.data.external.record import Case, age_in_years, sex_of, view_of

_TAGS = ["PatientAge", "PatientSex", "ViewPosition"]


def with_header(case: Case) -> Case:
    """The case with age, sex and view from its file; as it was if the header can't be read.

    PatientAge (0010,1010), PatientSex (0010,0040), ViewPosition (0018,5101).
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    if case.path is None:
        return case
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd headers are for the reader of pixels to report
            header = dcmread(case.path, stop_before_pixels=True, specific_tags=_TAGS)
            age, sex, view = (str(header.get(tag, "") or "") for tag in _TAGS)
    # What a broken header makes pydicom raise; the reader of pixels refuses the file later.
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, TypeError):
        return case
    except (AttributeError, NotImplementedError, RecursionError, struct.error, zlib.error):
        return case
    return replace(case, age=age_in_years(age), sex=sex_of(sex), view=view_of(view))
