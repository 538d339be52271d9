"""Headers of a DICOM image changed at random: rejected, unchanged, warned of, or silently other?

    python benchmarks/fuzz_headers.py [--cases 10000] [--seed 0] [--model default]

Half of the cases change values of the elements that state how pixels are to be read (bits, sign,
padding, windows, look-up tables, rescaling, polarity); half change bytes of the header between the
rows' element and the pixels. The pixels stay the same, so a prediction that differs from the
unchanged file's by more than 0.01 must come with a warning, and a rejection for what the image
shows must name its header. An exception, a silent difference or a silent rejection is a failure.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from pneumoscope.errors import PneumoscopeError, Reason
from pneumoscope.images.phantom import draw
from pneumoscope.inference.predictor import Predictor
from pneumoscope.progress import TerminalProgress
from pneumoscope.records import Prediction
from pneumoscope.report.formatting import count

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

_files: Any = importlib.import_module("support.image_files")  # the tests' writer of DICOM files

MOST_APART = 0.01
_SHOWS = (Reason.NOT_A_CHEST_XRAY, Reason.ROTATED, Reason.INVERTED)
_ROWS, _PIXELS = b"\x28\x00\x10\x00US", b"\xe0\x7f\x10\x00"
_BITS = 12
_MOST_SIGNED = 32_767
_BEFORE: dict[str, Any] = {
    "PatientAge": "003Y",
    "BitsStored": _BITS,
    "HighBit": _BITS - 1,
    "WindowCenter": "2048",
    "WindowWidth": "4096",
}

Change = tuple[bytes, str]
"""A changed file, and what was changed in words."""


def image(**elements: Any) -> Dataset:
    """A drawn X-ray of 12 bits as a data set; an element of `None` is left out.

    One of which the model that ships is not sure (0.46), so that a change of its pixels shows.
    """
    pixels = draw(2, "g8", number=1, label=0, size=224).pixels
    samples = np.rint(pixels * (2**_BITS - 1)).astype(np.uint16)
    wanted = {**_BEFORE, **elements}
    if wanted.get("PixelRepresentation") == 1:  # padding is then written as a signed number, too
        for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            if wanted.get(name, 0) > _MOST_SIGNED:
                wanted[name] -= 1 << 16
    found: Dataset = _files.xray(
        samples, **{name: value for name, value in wanted.items() if value is not None}
    )
    return found


def look_up_table(generator: np.random.Generator) -> list[Dataset]:
    """A VOI LUT whose descriptor may contradict its data."""
    item = Dataset()
    bits, first = int(generator.integers(1, 17)), int(abs(_number(generator))) % 65536
    steps = np.arange(4096) * float(generator.choice([0.1, 0.5, 1.0, 2.0]))
    item.add_new("LUTDescriptor", "US", [4096, first, bits])
    item.add_new("LUTData", "OW", steps.clip(0, 65535).astype("<u2").tobytes())
    return [item]


def _number(generator: np.random.Generator) -> float:
    """A value as headers have it: usual, at an edge of a type, or anything."""
    usual = (0, 1, 2, 8, 12, 16, 255, 256, 4095, 4096, 32768, 65535)
    choices = (
        float(generator.integers(0, 5000)),
        float(generator.integers(-70_000, 70_000)),
        float(generator.choice(usual)),
        1000 * float(generator.normal()),
    )
    return choices[int(generator.integers(len(choices)))]


def _elements(generator: np.random.Generator) -> dict[str, Any]:
    """One or two elements with other values."""

    def text() -> str:
        return f"{_number(generator):.6g}"

    def word() -> int:
        return int(abs(_number(generator))) % 65536

    kinds: tuple[dict[str, Any], ...] = (
        {"WindowCenter": text(), "WindowWidth": text().lstrip("-")},
        {"WindowWidth": text().lstrip("-")},
        {"WindowCenter": text()},
        {"RescaleSlope": text(), "RescaleIntercept": "0"},
        {"RescaleIntercept": text(), "RescaleSlope": "1"},
        {"BitsStored": int(generator.integers(1, 17)), "HighBit": None},
        {"HighBit": int(generator.integers(0, 16))},
        {"PixelRepresentation": 1},
        {"PixelPaddingValue": word()},
        {"PixelPaddingValue": word(), "PixelPaddingRangeLimit": word()},
        {"VOILUTSequence": look_up_table(generator)},
        {"PhotometricInterpretation": "MONOCHROME1"},
    )
    found = dict(kinds[int(generator.integers(len(kinds)))])
    if generator.random() < 0.3:
        found |= kinds[int(generator.integers(len(kinds)))]
    return found


def by_value(generator: np.random.Generator) -> Change:
    """A file with other values."""
    elements = _elements(generator)
    told = ", ".join(
        f"{name}={value[0].LUTDescriptor if isinstance(value, list) else value}"
        for name, value in elements.items()
    )
    return _files.dicom(image(**elements)), told


def by_byte(generator: np.random.Generator, whole: bytes) -> Change:
    """The file with one or two other bytes in its header."""
    begin, end = whole.index(_ROWS), whole.index(_PIXELS)
    changed, told = bytearray(whole), []
    for _ in range(int(generator.integers(1, 3))):
        at = int(generator.integers(begin, end))
        flipped = changed[at] ^ (1 << int(generator.integers(8)))
        changed[at] = flipped if generator.random() < 0.5 else int(generator.integers(256))
        told.append(f"byte {at - begin}: {whole[at]} to {changed[at]}")
    return bytes(changed), ", ".join(told)


def changes(cases: int, seed: int, whole: bytes) -> Iterator[Change]:
    """Changed files, by value and by byte in turn."""
    for case in range(cases):
        generator = np.random.default_rng([seed, case])
        yield by_byte(generator, whole) if case % 2 else by_value(generator)


def judged(prediction: Prediction, before: float) -> tuple[str, bool]:
    """What became of a changed file, and whether that is a failure."""
    warned = bool(prediction.warnings)
    if prediction.probability is not None:
        if abs(prediction.probability - before) <= MOST_APART:
            return "the same probability", False
        return ("another, with a warning", False) if warned else ("another, silently", True)
    if prediction.reason in _SHOWS:
        named = warned or "header" in prediction.detail
        return ("rejected for what it shows, header named", False) if named else (
            "rejected for what it shows, silently", True)  # fmt: skip
    return f"rejected: {prediction.reason.value if prediction.reason else '?'}", False


def run(cases: int, seed: int, model: str) -> tuple[Counter[str], list[str]]:
    """All cases; what became of them, and the failures in words."""
    predictor = Predictor.load(model)
    whole = _files.dicom(image())
    before = predictor.predict_bytes(whole, "unchanged").prediction.probability
    if before is None:
        raise PneumoscopeError("the unchanged image has no prediction")
    found: Counter[str] = Counter()
    failures: list[str] = []
    with TerminalProgress().task("Changed headers", cases, "files") as task:
        for content, told in changes(cases, seed, whole):
            try:
                prediction = predictor.predict_bytes(content, "changed").prediction
            except Exception as error:  # noqa: BLE001 - any of them is a finding
                found["an exception"] += 1
                failures.append(f"{type(error).__name__}: {error}: {told}")
            else:
                outcome, failed = judged(prediction, before)
                found[outcome] += 1
                if failed:
                    failures.append(f"{outcome} ({prediction.probability}): {told}")
            task.advance()
    return found, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="default")
    asked = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of what was broken on purpose
        found, failures = run(asked.cases, asked.seed, asked.model)
    print(f"{count(asked.cases)} changed headers, seed {asked.seed}; {date.today().isoformat()}.\n")
    print("| what became of them | files |\n| --- | ---: |")
    for outcome, number in found.most_common():
        print(f"| {outcome} | {count(number)} |")
    print(f"\n**{'Fails' if failures else 'Holds'}**: {count(len(failures))} failures.")
    for failure in failures[:30]:
        print(f"- {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
