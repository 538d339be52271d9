"""Words that data sets use for splits, for masks beside images, and for a patient who is not named.

Letter case never counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from pneumoscope.records import Split

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
}
_SET = re.compile(r"[ _-]?(set|data|split|images)$")

_MASKS = re.compile(
    r"(?<!un)mask|segmentation|annotation|overlay|heatmap|saliency|grad[ _-]?cam|thumbnail|"
    r"(^|[ _-])(seg|segs|roi|rois|contour|contours|gt|groundtruth|ground[ _-]truth)([ _-]|$)"
)

_NOBODY = re.compile(
    r"anon(ym(e|ous|us|i[sz]ed)?)?|de-?ident(ified)?|nan|none|null|nil|na|n/a|unknown|unk|unnamed|"
    r"no(name|id|patient)|notavailable|missing|empty|removed|redacted|withheld|hidden|"
    r"confidential|undefined|default|dummy"
)
_FILLERS = re.compile(r"patient|name|id|pat|subject|person|case|no|not|available|de|identified")
_WORD = re.compile(r"[^\W_]+")
_ONE_CHARACTER = re.compile(r"([x*#?.-])\1*", re.IGNORECASE)
_ZERO = re.compile(r"[-+]?0+(\.0+)?|-1|-?9{3,}")
_NUMBER = re.compile(r"[0-9]+(\.0+)?")


def split_named(text: str) -> Split | None:
    """The split that a word means (`valid`, `Training`, `test_set`), `None` for any other word."""
    word = text.strip().lower()
    return _SPLITS.get(word) or _SPLITS.get(_SET.sub("", word))


def split_words() -> str:
    """The words understood, for messages."""
    return ", ".join(_SPLITS)


def is_mask_folder(name: str) -> bool:
    """Whether a folder inside a class is named for masks or drawings, not for X-rays."""
    return bool(_MASKS.search(name.lower()))


def placeholders(ids: Iterable[str]) -> frozenset[str]:
    """Those of the patient ids of a data set that name nobody, as `ANONYMOUS`, `nan` or `0`.

    Words for "nobody" always are. `0`, `-1` and `999…` are only where the other ids are no numbers
    or where they stand on most images: in a numbered series 0 is a patient like any other.

    Args:
        ids: the id of each image, as found; empty ones are left out.
    """
    counts = Counter(text for text in (each.strip() for each in ids) if text)
    found = {text for text in counts if _names_nobody(text)}
    zeros = {text for text in counts if _ZERO.fullmatch(text)}
    numbers = sum(1 for text in counts if text not in zeros and _NUMBER.fullmatch(text))
    total = counts.total()
    found |= {text for text in zeros if not numbers or (total >= 4 and 2 * counts[text] > total)}
    return frozenset(found)


def _names_nobody(text: str) -> bool:
    words = _WORD.findall(text.lower())
    if not words or (len(text) > 1 and _ONE_CHARACTER.fullmatch(text)):
        return True
    if _NOBODY.fullmatch("".join(words)):
        return True
    named = [word for word in words if not _NOBODY.fullmatch(word)]
    return len(named) < len(words) and all(_FILLERS.fullmatch(word) for word in named)
