"""Every error that pneumoscope raises, and every reason for which an input has no prediction.

    PneumoscopeError              exit 1   internal error (bug)
    ├── UsageError                exit 2   the command or configuration is not valid
    ├── InputError                exit 3   the given input can't be used
    │   ├── ImageRefusedError              one image; carries a `Reason`
    │   ├── DataError                      the images and labels as a whole
    │   │   ├── ManifestError                  a CSV that can't be parsed
    │   │   ├── SplitLeakError                 a patient in more than one split
    │   │   └── UnsafeArchiveError             an archive that leaves its folder, or a zip bomb
    │   └── BundleError                    a bundle that is damaged or was changed
    ├── MissingError              exit 4   something needed is not on this machine
    │   ├── WeightsMissingError            initial weights
    │   ├── ExtraMissingError              an optional dependency
    │   └── NetworkError                   a failed download
    └── InterruptedRunError       exit 130 stopped by the user

A message names what went wrong, where, what was found, what was wanted, and what to do.
This module imports nothing else of pneumoscope and no third-party library.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Status = Literal["ok", "refused", "error"]


class Reason(StrEnum):
    """Why an input has no prediction: the codes of the `reason` column of `predictions.csv`.

    Examples:
        >>> Reason.NOT_FOUND.value, Reason.NOT_FOUND.status
        ('not_found', 'error')
        >>> Reason("lateral_view").status
        'refused'
    """

    # The file could not be read: status "error".
    NOT_FOUND = "not_found"
    NOT_A_FILE = "not_a_file"
    PERMISSION_DENIED = "permission_denied"
    EMPTY_FILE = "empty_file"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    INTERNAL_ERROR = "internal_error"
    # The file could be read, but the image is not suitable: status "refused".
    NOT_AN_IMAGE = "not_an_image"
    FILE_TOO_LARGE = "file_too_large"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_COMPLEX = "too_complex"
    TOO_SMALL = "too_small"
    EXTREME_ASPECT = "extreme_aspect"
    MULTI_FRAME = "multi_frame"
    NO_PIXEL_DATA = "no_pixel_data"
    NON_FINITE_PIXELS = "non_finite_pixels"
    BLANK = "blank"
    WRONG_MODALITY = "wrong_modality"
    WRONG_BODY_PART = "wrong_body_part"
    LATERAL_VIEW = "lateral_view"
    NOT_A_CHEST_XRAY = "not_a_chest_xray"
    INVERTED = "inverted"
    ROTATED = "rotated"
    OUTSIDE_AGE_RANGE = "outside_age_range"

    @property
    def status(self) -> Literal["refused", "error"]:
        """`error` if the input could not be read, `refused` if it was read but not suitable."""
        return "error" if self in _UNREADABLE else "refused"


_UNREADABLE = frozenset(
    {
        Reason.NOT_FOUND,
        Reason.NOT_A_FILE,
        Reason.PERMISSION_DENIED,
        Reason.EMPTY_FILE,
        Reason.TRUNCATED,
        Reason.CORRUPT,
        Reason.UNSUPPORTED_ENCODING,
        Reason.INTERNAL_ERROR,
    }
)


class PneumoscopeError(Exception):
    """Base class of all errors that pneumoscope raises.

    Examples:
        >>> try:
        ...     Predictor.load("missing")
        ... except PneumoscopeError as error:
        ...     error.exit_code
        2
    """

    exit_code = 1


class UsageError(PneumoscopeError):
    """The command line or the configuration is not valid.

    Examples:
        >>> training_config("magic")
        Traceback (most recent call last):
        UsageError: --recipe: recipe: found 'magic', wanted one of 'frozen', 'finetune', 'scratch'
    """

    exit_code = 2


class InputError(PneumoscopeError):
    """The images, labels or model that were given can't be used.

    Examples:
        >>> InputError.exit_code, issubclass(DataError, InputError)
        (3, True)
    """

    exit_code = 3


class ImageRefusedError(InputError):
    """One image has no prediction; `reason` is the code, `detail` the explanation.

    `warnings` are further findings about its file, as far as it was read, and `sha256` is the hex
    digest of its bytes; `""` if they were not read.

    Examples:
        >>> try:
        ...     read_image("missing.png")
        ... except ImageRefusedError as error:
        ...     error.reason.value
        'not_found'
    """

    def __init__(
        self, source: str, reason: Reason, detail: str, warnings: tuple[str, ...] = ()
    ) -> None:
        super().__init__(f"{source}: {reason.value}: {detail}")
        self.source = source
        self.reason = reason
        self.detail = detail
        self.warnings = warnings
        self.sha256 = ""


class DataError(InputError):
    """A data set as a whole can't be used (no images, one class only, …).

    Examples:
        >>> load_dataset("missing")
        Traceback (most recent call last):
        DataError: missing: there is no such file or folder. ...
    """


class ManifestError(DataError):
    """A CSV manifest lacks columns, repeats rows, or holds values that can't be parsed.

    Examples:
        >>> _ = Path("wrong.csv").write_text("file,label")
        >>> load_dataset("wrong.csv")
        Traceback (most recent call last):
        ManifestError: wrong.csv: ...
    """


class SplitLeakError(DataError):
    """A patient is in more than one split.

    Examples:
        >>> one, other = sorted(xrays.rglob("*.png"))[:2]
        >>> rows = ["path,label,patient,split", f"{one},0,p1,train", f"{other},0,p1,test"]
        >>> _ = Path("leak.csv").write_text(chr(10).join(rows))
        >>> load_dataset("leak.csv")
        Traceback (most recent call last):
        SplitLeakError: ...'p1'...
    """


class UnsafeArchiveError(DataError):
    """An archive would write outside its folder or unpack to far more than expected.

    Examples:
        >>> UnsafeArchiveError.exit_code
        3
    """


class BundleError(InputError):
    """A model bundle is incomplete, was changed after it was written, or has another schema.

    Examples:
        >>> Path("broken").mkdir(exist_ok=True)
        >>> _ = Path("broken/bundle.json").write_text("{}")
        >>> load_bundle("broken")
        Traceback (most recent call last):
        BundleError: ...
    """


class MissingError(PneumoscopeError):
    """Something that the command needs is not on this machine.

    Examples:
        >>> MissingError.exit_code, issubclass(ExtraMissingError, MissingError)
        (4, True)
    """

    exit_code = 4


class WeightsMissingError(MissingError):
    """Initial weights are missing and can't be downloaded.

    Examples:
        >>> WeightsMissingError.exit_code
        4
    """


class ExtraMissingError(MissingError):
    """A command needs an optional dependency that is not installed.

    Examples:
        >>> ExtraMissingError("an export to ONNX", "export").extra
        'export'
    """

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs packages that are not installed. "
            f"Install them: pip install 'pneumoscope[{extra}]'"
        )
        self.extra = extra


class NetworkError(MissingError):
    """A download failed.

    Examples:
        >>> NetworkError.exit_code
        4
    """


class InterruptedRunError(PneumoscopeError):
    """The user stopped the run; results so far are kept.

    Examples:
        >>> InterruptedRunError.exit_code
        130
    """

    exit_code = 130
