"""`data adopt`: a public data set in its owner's layout → a manifest, and what was left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pneumoscope.config import AdoptConfig, check_ranges
from pneumoscope.data.external.adopt import Adopted, adopt, write_manifest
from pneumoscope.data.external.registry import SOURCES
from pneumoscope.errors import UsageError
from pneumoscope.progress import Progress
from pneumoscope.records import CLASS_NAMES
from pneumoscope.storage import claim_folder


def run_adoption(
    name: str, folder: Path, out: Path, config: AdoptConfig, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Write the manifest `out` of the data set `name` in `folder`.

    Raises:
        UsageError: no such data set, or `out` is a folder.
        DataError: its tables can't be read, or no film is kept.
    """
    check_ranges(config)
    source = SOURCES.get(name)
    if source is None:
        raise UsageError(f"found the data set {name!r}, wanted one of {', '.join(SOURCES)}")
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder, wanted a file such as {out / f'{name}.csv'}")
    claim_folder(out.parent)
    adopted = adopt(source, folder, config, progress)
    write_manifest(out, adopted)
    return _document(adopted, out), _text(adopted, out)


def _document(adopted: Adopted, out: Path) -> dict[str, Any]:
    counts = _counts(adopted)
    return {
        "out": str(out),
        "source": adopted.source.name,
        "title": adopted.source.title,
        "paper": adopted.source.paper,
        "labels": adopted.source.labels,
        "images": {name: counts[label] for label, name in enumerate(CLASS_NAMES)},
        "patients": _patients(adopted),
        "left_out": dict(adopted.left_out),
        "notes": list(adopted.source.notes),
    }


def _counts(adopted: Adopted) -> Counter[int | None]:
    return Counter(case.label for case in adopted.cases)


def _patients(adopted: Adopted) -> int:
    """Patients named, and one for each film that names none."""
    named = {case.patient for case in adopted.cases if case.patient}
    return len(named) + sum(not case.patient for case in adopted.cases)


def _text(adopted: Adopted, out: Path) -> str:
    source, counts = adopted.source, _counts(adopted)
    lines = [
        f"{source.title}{f' ({source.paper})' if source.paper else ''}",
        f"labels    {source.labels}",
        *(f"{name:<10}{counts[label]}" for label, name in enumerate(CLASS_NAMES)),
        f"patients  {_patients(adopted)}",
        *(f"left out  {count}: {why}" for why, count in adopted.left_out),
        *(f"note      {note}" for note in source.notes),
    ]
    absent = [name for label, name in enumerate(CLASS_NAMES) if not counts[label]]
    if absent:
        lines.append(f"note      No {absent[0]} film is left: neither AUC nor both rates exist.")
    split = " --split all" if adopted.keeps_splits else ""
    lines += [f"manifest  {out}", f"next      pneumoscope evaluate {out}{split} --out evaluation"]
    return "\n".join(lines)
