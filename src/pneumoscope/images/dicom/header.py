"""Read and check a DICOM header: is it a frontal chest X-ray, and how are its pixels described.

The input is a pydicom data set. The output is `DicomInfo`, `PixelHeader` or `Display`; files that
are not chest X-rays are refused. No pixel is touched.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.budget import spend
from pneumoscope.images.dicom.grey import Display, Lut, Window
from pneumoscope.images.dicom.patient import LATERAL_WORDS
from pneumoscope.images.dicom.pixels import PixelHeader
from pneumoscope.images.grey import DicomInfo
from pneumoscope.images.structure import refuse_frames

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

_MODALITIES = frozenset({"CR", "DX", "RG", "DR", "OT", "SC"})
"""PS3.3 C.7.3.1.1.1; DR and SC are not defined terms there, but are used in practice."""

_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
_RADIOGRAPH_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # computed radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # digital X-ray, for presentation
    _FOR_PROCESSING,  # digital X-ray, for processing
)
_STANDARD_CLASSES = "1.2.840.10008."
_CAPTURE_CLASSES = "1.2.840.10008.5.1.4.1.1.7."  # secondary capture itself and .1 to .4

_CHEST_WORDS = ("CHEST", "THORAX", "LUNG", "HEART", "RIB", "STERNUM", "MEDIASTIN", "BODY", "TORSO")
_OTHER_PARTS = """
    ABDOMEN ABDOMENPELVIS ANKLE ARM BLADDER BRAIN BREAST CALCANEUS CERVICALSPINE CLAVICLE COCCYX
    CSPINE EAR ELBOW EXTREMITY EYE FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK
    HIP HUMERUS JAW KIDNEY KNEE LARYNX LEG LIVER LOWERARM LOWERLEG LOWERLIMB LSPINE LUMBARSPINE
    MANDIBLE MAXILLA NASALBONE NECK NOSE ORBIT PANCREAS PARANASALSINUS PAROTID PATELLA PELVIS
    PROSTATE RADIUS RECTUM SACRUM SCAPULA SHOULDER SIJOINT SINUS SKULL SPINE SSPINE STOMACH TEETH
    THIGH THORACICSPINE THUMB TIBIA TIBIAFIBULA TLSPINE TMJ TOE TOOTH TSPINE ULNA UPPERARM
    UPPERLIMB UTERUS WRIST ZYGOMA
"""
"""Body parts of PS3.16 annex L (and their full names) that show little or no lung."""

_FRONTAL_WORDS = frozenset(
    {"PA", "AP", "POSTERO", "ANTERO", "ANTERIOR", "POSTERIOR", "FRONTAL", "ERECT", "UPRIGHT"}
)
_SEVERAL_VIEWS = frozenset(
    {"PA", "AP", "FRONTAL", "AND", "VIEWS", "2V", "3V", "2VW", "TWO", "BILATERAL", "EBENEN"}
)
_NOT_UPRIGHT = frozenset({"DECUBITUS", "DECUB", "OBLIQUE"})
"""Words of view positions (PS3.3 C.8.1.1.1.2), of coded views (PS3.16 CID 4010), and of the
descriptions of series and studies, which are free text (PS3.3 C.7.3.1)."""
DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
"""Any of these dates the X-ray precisely enough for an age; the first that is stated counts."""
_MOST_WINDOWS = 8
"""Each is applied to up to 65,536 values; writers state one to three."""
_VALUES = "values of one element"
_SAMPLES_TO_PHOTOMETRIC = {
    1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
}
_ALLOCATED = (1, 8, 16)
_HIGHEST_UNSIGNED = 0xFFFF
_MAX_LUT_BITS = 16
_OVERLAYS = 0x6000


def dicom_info(dataset: Dataset, transfer_syntax: str) -> DicomInfo:
    """The header elements that later stages and reports use, as text."""
    return DicomInfo(
        modality=_text(dataset, "Modality"),
        body_part=_text(dataset, "BodyPartExamined"),
        view_position=_text(dataset, "ViewPosition") or _view_meaning(dataset),
        patient_id=_text(dataset, "PatientID"),
        photometric=_text(dataset, "PhotometricInterpretation"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        study_date=next(filter(None, (_text(dataset, word) for word in DATES)), ""),
        study_description=_text(dataset, "StudyDescription"),
        series_description=_text(dataset, "SeriesDescription"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        sop_uid=_text(dataset, "SOPInstanceUID"),
        patient_age=_text(dataset, "PatientAge"),
        patient_birth_date=_text(dataset, "PatientBirthDate"),
        patient_sex=_text(dataset, "PatientSex"),
        manufacturer=_text(dataset, "Manufacturer"),
        transfer_syntax=transfer_syntax,
    )


def check_is_chest_radiograph(info: DicomInfo, dataset: Dataset, source: str) -> list[str]:
    """Reject objects that are not X-rays or clearly not of the chest; warn in unclear cases.

    Args:
        info: the header.
        dataset: the data set that it was read from.
        source: the file's name, for errors.

    Returns:
        Warnings.

    Raises:
        ImageRefusedError: `wrong_modality`, `wrong_body_part` or `lateral_view`.
    """
    warnings = []
    modality = info.modality.upper()
    if modality and modality not in _MODALITIES:
        raise ImageRefusedError(
            source,
            Reason.WRONG_MODALITY,
            f"its modality is {info.modality!r}; expected a chest X-ray (CR, DX, RG or OT)",
        )
    sop_class = _text(dataset, "SOPClassUID")
    _check_class(sop_class, modality, source)
    if not modality:
        warnings.append("it states no modality; it was accepted as an X-ray")
    intent = _text(dataset, "PresentationIntentType").upper()  # PS3.3 C.8.11.1
    if intent == "FOR PROCESSING" or (sop_class == _FOR_PROCESSING and not intent):
        warnings.append(
            "it is FOR PROCESSING: the values of the detector, whose contrast differs from that of "
            "displayed X-rays; give the FOR PRESENTATION image of the same study"
        )
    part = "".join(letter for letter in info.body_part.upper() if letter.isalpha())
    shown = info.body_part if part in _OTHER_PARTS.split() else ""
    if not part:
        shown = _described_part(info)[1]
    if shown:
        raise ImageRefusedError(
            source,
            Reason.WRONG_BODY_PART,
            f"it shows {shown!r} according to its header; expected a chest X-ray",
        )
    if part and not any(word in part for word in _CHEST_WORDS):
        warnings.append(
            f"its body part {info.body_part!r} is not known; it was accepted as a chest X-ray"
        )
    view = set(_words(info.view_position))
    if _is_lateral(view) or (not view and described_as_lateral(info)):
        stated = info.view_position or info.series_description or info.study_description
        raise ImageRefusedError(
            source,
            Reason.LATERAL_VIEW,
            f"its view is {stated!r} according to its header; expected a frontal view (PA or AP). "
            "Give the frontal image of the same study",
        )
    if view - _FRONTAL_WORDS:
        warnings.append(f"its view is {info.view_position!r}; upright frontal images are expected")
    return warnings


def fixed_terms(dataset: Dataset) -> dict[str, str]:
    """BodyPartExamined and ViewPosition in words of this module, where free text stands for them.

    A header with these elements and without its descriptions and unknown codes is refused for the
    same reason as the whole one. What it states itself, or by a known code, is not in the result.
    """
    info = dicom_info(dataset, "")
    terms = {}
    if not any(map(str.isalpha, info.body_part)) and (part := _described_part(info)[0]):
        terms["BodyPartExamined"] = part
    stated = _text(dataset, "ViewPosition") or coded_view(dataset)
    words = set(_words(info.view_position))
    if not stated and (_is_lateral(words) or (not words and described_as_lateral(info))):
        terms["ViewPosition"] = "LATERAL"
    return terms


def _described_part(info: DicomInfo) -> tuple[str, str]:
    """A body part other than the chest and the description that names it; both may be `""`.

    The description of the series comes first, since a study may cover several parts.
    """
    for description in (info.series_description, info.study_description):
        words = _words(description)
        if any(sign in word for word in words for sign in _CHEST_WORDS):
            break
        joined = {first + second for first, second in pairwise(words)}
        if named := joined.union(words) & set(_OTHER_PARTS.split()):
            return min(named), description
    return "", ""


def described_as_lateral(info: DicomInfo) -> bool:
    """Whether the series or study description names a lateral view and no other view."""
    for description in (info.series_description, info.study_description):
        words = set(_words(description))
        if words & (_SEVERAL_VIEWS | LATERAL_WORDS):
            return _is_lateral(words)
    return False


def _words(description: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in description.upper()).split()


def _is_lateral(words: set[str]) -> bool:
    return bool(words & LATERAL_WORDS) and not words & (_SEVERAL_VIEWS | _NOT_UPRIGHT)


def _check_class(sop_class: str, modality: str, source: str) -> None:
    """Reject another class; private ones, of older detectors, say nothing against a modality."""
    radiograph = sop_class in _RADIOGRAPH_CLASSES or f"{sop_class}.".startswith(_CAPTURE_CLASSES)
    private = bool(modality) and not sop_class.startswith(_STANDARD_CLASSES)
    if sop_class and not radiograph and not private:
        raise ImageRefusedError(
            source,
            Reason.WRONG_MODALITY,
            f"it is an object of class {UID(sop_class).name!r}; expected a chest X-ray",
        )


def pixel_header(dataset: Dataset, source: str, warnings: list[str]) -> PixelHeader:
    """Check the image pixel description (PS3.3 C.7.6.3); missing elements get defaults.

    The defaults are also written back to `dataset`, for pydicom's decoders.

    Raises:
        ImageRefusedError: `multi_frame`, `unsupported_encoding` or `corrupt`.
    """
    refuse_frames(source, _integer(dataset, "NumberOfFrames", 1), "DICOM object")
    dataset.pop("NumberOfFrames", None)
    samples = _integer(dataset, "SamplesPerPixel", 1)
    photometric = _text(dataset, "PhotometricInterpretation").upper()
    if not photometric:
        photometric = "MONOCHROME2" if samples == 1 else "RGB"
        warnings.append(f"it states no photometric interpretation; {photometric} was assumed")
    if photometric not in _SAMPLES_TO_PHOTOMETRIC.get(samples, ()):
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"{samples} samples per pixel of photometric interpretation {photometric!r} can't be "
            "decoded; expected MONOCHROME, RGB, YBR or PALETTE COLOR",
        )
    allocated = _integer(dataset, "BitsAllocated", 0)
    if allocated not in _ALLOCATED:
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"it has {allocated} bits allocated; expected 8 or 16",
        )
    stored = _integer(dataset, "BitsStored", allocated)
    if not 1 <= stored <= allocated:
        raise ImageRefusedError(
            source, Reason.CORRUPT, f"it states {stored} bits stored of {allocated} allocated"
        )
    high_bit = _integer(dataset, "HighBit", stored - 1)
    if not stored - 1 <= high_bit < allocated:
        warnings.append(f"its high bit {high_bit} is impossible; {stored - 1} was assumed")
        high_bit = stored - 1
    header = PixelHeader(
        rows=_integer(dataset, "Rows", 0),
        columns=_integer(dataset, "Columns", 0),
        samples=samples,
        allocated=allocated,
        stored=stored,
        high_bit=high_bit,
        signed=_integer(dataset, "PixelRepresentation", 0) == 1 and allocated > 1,
        photometric=photometric,
    )
    dataset.SamplesPerPixel = samples
    dataset.PhotometricInterpretation = photometric
    dataset.BitsStored = stored
    dataset.HighBit = high_bit
    dataset.PixelRepresentation = int(header.signed)
    if samples == 3:
        dataset.PlanarConfiguration = _integer(dataset, "PlanarConfiguration", 0)
    return header


def pixel_ratio(dataset: Dataset, warnings: list[str]) -> float:
    """Height over width of one pixel (PS3.3 10.7.1.3, C.7.6.3.1.7); 1 if it is not stated."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        values = _numbers(dataset, keyword, warnings)
        if len(values) == 2:
            vertical, horizontal = values
            if vertical > 0 and horizontal > 0:
                return vertical / horizontal
            warnings.append(
                f"its {keyword} {vertical:g}, {horizontal:g} is impossible and was not used"
            )
    return 1.0


def read_display(
    dataset: Dataset, header: PixelHeader, big_endian: bool, warnings: list[str]
) -> Display:
    """Read how the header asks for values to be displayed (PS3.3 C.11)."""
    slope = _numbers(dataset, "RescaleSlope", warnings)
    intercept = _numbers(dataset, "RescaleIntercept", warnings)
    if slope and slope[0] == 0.0:
        warnings.append("its rescale slope is 0 and was not used")
        slope = ()
    inverted = header.photometric == "MONOCHROME1"
    shape = _text(dataset, "PresentationLUTShape").upper()
    if inverted and shape == "IDENTITY":
        warnings.append(
            "it is MONOCHROME1 with PresentationLUTShape IDENTITY, which contradict each other; "
            "it was inverted"
        )
    elif not inverted and shape == "INVERSE":
        warnings.append(
            "it is MONOCHROME2 with PresentationLUTShape INVERSE, which contradict each other; "
            "it was not inverted"
        )
    table = _lut(dataset, "VOILUTSequence", header, big_endian, warnings)
    return Display(
        modality=_lut(dataset, "ModalityLUTSequence", header, big_endian, warnings),
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        voi=(*([] if table is None else [table]), *_windows(dataset, warnings)),
        inverted=inverted,
    )


def _windows(dataset: Dataset, warnings: list[str]) -> list[Window]:
    """The valid windows, in the header's order."""
    centres = _numbers(dataset, "WindowCenter", warnings)
    widths = _numbers(dataset, "WindowWidth", warnings)
    stated = _text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if (centres or widths) and stated not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        warnings.append(f"its VOI LUT function {stated!r} is not known; LINEAR was assumed")
        stated = "LINEAR"
    found = []
    if len(widths) > _MOST_WINDOWS:
        warnings.append(
            f"its header states {len(widths):,} windows; the first {_MOST_WINDOWS} were read"
        )
    for centre, width in list(zip(centres, widths, strict=False))[:_MOST_WINDOWS]:
        function = stated
        if width <= 0:
            warnings.append(f"its window width is {width:g}, so the window was not used")
            continue
        if function == "LINEAR" and width < 1:
            warnings.append(
                f"its window width {width:g} is too narrow for LINEAR; LINEAR_EXACT was used"
            )
            function = "LINEAR_EXACT"
        found.append(Window(centre, width, function))
    return found


def _lut(
    dataset: Dataset, keyword: str, header: PixelHeader, big_endian: bool, warnings: list[str]
) -> Lut | None:
    """The first table of a LUT sequence (PS3.3 C.11.1.1.1)."""
    sequence = dataset.get(keyword)
    if not sequence:
        return None
    item = sequence[0]
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries or 1 << 16
    # The first input has the sign of the pixels; some writers and readers forget that.
    if header.signed and first > _HIGHEST_UNSIGNED // 2:
        first -= _HIGHEST_UNSIGNED + 1
    data: Any = item.LUTData
    if isinstance(data, bytes):
        if len(data) < 2 * entries:  # two 8-bit entries to a word
            values = np.frombuffer(data, dtype=np.uint8)
        else:
            values = np.frombuffer(data, dtype=">u2" if big_endian else "<u2")
    else:
        values = np.atleast_1d(np.asarray(data))
    if len(values) < entries:
        raise ValueError(f"{keyword} has {len(values)} of {entries} entries")
    table = values[:entries].astype(np.float64)
    name = "VOI LUT" if keyword == "VOILUTSequence" else "modality LUT"
    top = max(float(table.max()), 1.0)
    white = float((1 << bits) - 1) if 1 <= bits <= _MAX_LUT_BITS else 0.0
    if not white / 2 < top <= white:
        # The table ends a bit below the stated maximum, or above it: its own maximum is white.
        if keyword == "VOILUTSequence":
            warnings.append(
                f"its {name} states {bits} bits and reaches {top:g}; that was used as white"
            )
        white = top
    return Lut(first, table, white, name)


def overlay_bits(dataset: Dataset) -> int:
    """A mask of the bits in each cell that hold overlays (PS3.5 8.1.2, retired but in use)."""
    mask = 0
    for group in range(_OVERLAYS, _OVERLAYS + 0x20, 2):
        allocated = _number_at(dataset, group << 16 | 0x0100)
        position = _number_at(dataset, group << 16 | 0x0102)
        if allocated is not None and allocated > 1 and position is not None:
            mask |= 1 << position if 0 <= position < _MAX_LUT_BITS else 0
    return mask


def _number_at(dataset: Dataset, tag: int) -> int | None:
    element = dataset.get(tag)
    try:
        return None if element is None else int(element.value)
    except (ValueError, TypeError):
        return None


def padding_values(
    dataset: Dataset, header: PixelHeader, warnings: list[str]
) -> tuple[int, int] | None:
    """Lowest and highest padding value (PS3.3 C.7.5.1.1.2)."""
    values = _numbers(dataset, "PixelPaddingValue", warnings)
    if not values:
        return None
    limits = _numbers(dataset, "PixelPaddingRangeLimit", warnings) or values
    low, high = sorted((int(values[0]), int(limits[0])))
    if header.signed and low > _HIGHEST_UNSIGNED // 2:
        low, high = low - _HIGHEST_UNSIGNED - 1, high - _HIGHEST_UNSIGNED - 1
    if not header.signed and high < 0:
        low, high = low & _HIGHEST_UNSIGNED, high & _HIGHEST_UNSIGNED
    return low, high


def _view_meaning(dataset: Dataset) -> str:
    """The coded view of a digital X-ray in words (PS3.3 C.8.11.5), `""` if there is none.

    A known code counts, whatever its Code Meaning, which may be in any language (PS3.3 8.3).
    """
    known, views = coded_view(dataset), dataset.get("ViewCodeSequence")
    if known is not None:
        return str(known.meaning)
    return _text(views[0], "CodeMeaning") if isinstance(views, Sequence) and views else ""


def coded_view(dataset: Dataset) -> Code | None:
    """The coded view (PS3.3 C.8.11.5) as PS3.16 CID 4010 lists it; `None` if it is not there."""
    return _known_code(dataset, "ViewCodeSequence", "cid4010")


def coded_region(dataset: Dataset) -> Code | None:
    """The coded anatomic region (PS3.3 10.5) as PS3.16 CID 4009 lists or listed it, likewise."""
    return _known_code(dataset, "AnatomicRegionSequence", "cid4009")


def _known_code(dataset: Dataset, keyword: str, context: str) -> Code | None:
    items = dataset.get(keyword)
    if not isinstance(items, Sequence) or not items:
        return None
    from pydicom.sr.coding import Code

    stated = Code(_text(items[0], "CodeValue"), _text(items[0], "CodingSchemeDesignator"), "")
    return next((code for code in _codes(context) if code == stated), None)


@cache
def _codes(context: str) -> tuple[Code, ...]:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    group = getattr(codes, context)
    former = [Code("51185008", "SCT", "Chest")] if context == "cid4009" else []  # T-D3000 in SRT
    return (*(getattr(group, name) for name in group.dir()), *former)


def _value(dataset: Dataset, keyword: str) -> Any:
    """The value of an element; its parts are counted before pydicom converts each of them."""
    raw = dataset.get_item(keyword).value if keyword in dataset else None
    if isinstance(raw, bytes):
        spend(raw.count(b"\\"), _VALUES)
    return dataset.get(keyword)


def _text(dataset: Dataset, keyword: str) -> str:
    value = _value(dataset, keyword)
    return "" if value is None else str(value).strip()


def _integer(dataset: Dataset, keyword: str, default: int) -> int:
    value = dataset.get(keyword)
    return default if value is None or value == "" else int(value)


def _numbers(dataset: Dataset, keyword: str, warnings: list[str]) -> tuple[float, ...]:
    """The finite numbers of an optional element; `()` if it is missing or invalid."""
    try:
        value: Any = _value(dataset, keyword)
        values = value if isinstance(value, (MultiValue, list)) else [value]
        spend(len(values), _VALUES)
        numbers = tuple(float(number) for number in values if number not in (None, ""))
    except (ValueError, TypeError, OverflowError, ArithmeticError):
        warnings.append(f"its {keyword} is not a number and was not used")
        return ()
    if not all(math.isfinite(number) for number in numbers):
        warnings.append(f"its {keyword} is not finite and was not used")
        return ()
    return numbers
