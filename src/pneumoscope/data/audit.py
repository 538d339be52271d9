"""Audit a data set for defects that would bias results: duplicates, leaks, shortcuts, label noise.

The input is an indexed data set and optionally a model's probabilities; the output is an `Audit` of
frozen records. Each image is decoded once. Only a few numbers, a 64-bit perceptual hash and a
32×32 thumbnail (1 KiB) are kept of it.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.config import LimitsConfig
from pneumoscope.data import duplicates
from pneumoscope.data.audit_record import (
    Audit,
    DuplicateGroup,
    Evidence,
    Finding,
    Group,
    Member,
    SharedPatient,
    Unreadable,
)
from pneumoscope.data.duplicates import NearPair, connected_groups, near_pairs
from pneumoscope.data.findings import evidence_findings, findings_of, flat_findings
from pneumoscope.data.patient_similarity import patient_similarities
from pneumoscope.data.patients import natural_key
from pneumoscope.data.thumbnails import (
    THUMBNAIL_SIDE,
    ThumbnailSet,
    comparisons,
    review_labels,
    split_tests,
)
from pneumoscope.data.tree import FlatKind, flat_kind
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import CLASS_NAMES, SPLITS, Dataset, ImageRecord
from pneumoscope.storage import path_text

NO_SPLIT = "none"

_THREADS = 2
_HASH_SIDE = 8

_LIMITS = LimitsConfig()


@dataclass(frozen=True, slots=True)
class NearConfig:
    """When two images count as near duplicates.

    The defaults were measured on the 5,216 training images of the Kermany data set at 224×224.
    None of 13.5 million pairs is matched by chance (the closest pair of different patients: 10 bits
    with r 0.973). At least 99 % of copies are matched after saving again as JPEG, downscaling by
    half, rotation by 1°, or a change in gamma (1.4) or contrast (1.3). A third of copies cropped by
    2 % per side is matched; mirrored or inverted copies are not.

    Attributes:
        max_distance: maximum number of differing bits of the 64-bit perceptual hashes.
        min_correlation: minimum Pearson's r of the 32×32 thumbnails.
        max_pairs: number of pairs at which the search stops.
    """

    max_distance: int = 8
    min_correlation: float = 0.98
    max_pairs: int = 10_000


_NEAR = NearConfig()


@dataclass(frozen=True, slots=True)
class _Readable:
    sha256: str
    format: str
    numbers: tuple[float, ...]  # one per duplicates.QUANTITIES
    flat: FlatKind
    hash: int
    thumbnail: npt.NDArray[np.uint8]


def audit(
    dataset: Dataset,
    limits: LimitsConfig = _LIMITS,
    progress: Progress = SILENT,
    near: NearConfig = _NEAR,
    predictions: Mapping[Path, float] | None = None,
) -> Audit:
    """Audit all images of a data set.

    Near duplicates: perceptual hash by the discrete cosine transform (Zauner 2010, "Implementation
    and benchmarking of perceptual image hash functions"), confirmed by the correlation of
    thumbnails.

    Args:
        dataset: indexed, best with `refuse_leaks=False`, so that shared patients are reported.
        limits: limits of the image reader.
        progress: reports images.
        near: when two images count as near duplicates.
        predictions: a model's probability of pneumonia by path, for the label review; without them
            classifiers on thumbnails are used.

    Returns:
        The findings; unreadable images are listed and do not raise.

    Examples:
        >>> found = audit(index(xrays))
        >>> len(found.unreadable), len(found.findings) > 0
        (0, True)
    """
    records = dataset.records
    measured = _measure_all(records, limits, progress)
    members = [member_of(record, dataset.root) for record in records]
    identical = _identical_groups(records, measured, members)
    close, stopped = _near_groups(measured, members, near)
    numbers = _table(measured)
    cells = [(member.split, member.label) for member in members]
    spread = duplicates.describe(numbers, cells)
    unreadable = tuple(
        Unreadable(member.path, member.split, member.label, m.reason.value, path_text(m.detail))
        for member, m in zip(members, measured, strict=True)
        if isinstance(m, ImageRefusedError)
    )
    groups = _groups(records, members, measured)
    shared = _shared_patients(members)
    separations = duplicates.separations(numbers, cells)
    per_patient = Counter(Counter(record.patient for record in records).values())
    odd = tuple(Finding("warning", "index", path_text(text)) for text in dataset.warnings)
    flat = [(m.path, f) for m, f in zip(members, map(_flat, measured), strict=True) if f]
    images, readable = _thumbnails(records, members, measured)
    given = predicted = None
    if predictions is not None:
        given = np.array([predictions.get(records[k].path, np.nan) for k in readable], np.float64)
        counted = np.bincount(images.labels[~np.isnan(given)], minlength=len(CLASS_NAMES))
        predicted = dict(zip(CLASS_NAMES, counted.tolist(), strict=True))
    evidence = gather_evidence(images, given, progress)
    return Audit(
        root=path_text(dataset.root),
        images=len(records),
        patients=len({record.patient for record in records}),
        findings=findings_of(
            groups,
            unreadable,
            (*identical, *close),
            stopped,
            shared,
            separations,
            (*odd, *flat_findings(flat, len(records)), *evidence_findings(evidence, predicted)),
        ),
        groups=groups,
        unreadable=unreadable,
        identical=identical,
        near=close,
        near_search_stopped=stopped,
        shared_patients=shared,
        images_per_patient=tuple(sorted(per_patient.items())),
        quantile_levels=duplicates.QUANTILE_LEVELS,
        edges=spread.edges,
        distributions=spread.distributions,
        separations=separations,
        evidence=evidence,
    )


def _measure_all(
    records: Sequence[ImageRecord], limits: LimitsConfig, progress: Progress
) -> list[_Readable | ImageRefusedError]:
    """One result per record, in order; files are decoded in parallel."""
    measured: list[_Readable | ImageRefusedError] = []
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress.task("Auditing", len(records), "images") as task,
    ):
        for result in pool.map(lambda record: _measure(record, limits), records):
            measured.append(result)
            task.advance()
    return measured


def _table(measured: Sequence[_Readable | ImageRefusedError]) -> npt.NDArray[np.float64]:
    """The numbers of all images, (n, quantities) float64; a row of NaN if unreadable."""
    columns = len(duplicates.QUANTITIES)
    rows = [m.numbers if isinstance(m, _Readable) else (np.nan,) * columns for m in measured]
    return np.array(rows, dtype=np.float64).reshape(len(measured), columns)


def _flat(result: _Readable | ImageRefusedError) -> FlatKind:
    return result.flat if isinstance(result, _Readable) else ""


def _thumbnails(
    records: Sequence[ImageRecord],
    members: Sequence[Member],
    measured: Sequence[_Readable | ImageRefusedError],
) -> tuple[ThumbnailSet, list[int]]:
    """The readable images, and their positions among `records`."""
    found = [(place, m) for place, m in enumerate(measured) if isinstance(m, _Readable)]
    places = [place for place, _ in found]
    pixels = THUMBNAIL_SIDE * THUMBNAIL_SIDE
    images = ThumbnailSet(
        thumbnails=np.array([m.thumbnail for _, m in found], np.uint8).reshape(-1, pixels),
        numbers=_table([m for _, m in found]),
        labels=np.array([records[place].label for place in places], np.int64),
        patients=np.array([records[place].patient for place in places], np.str_),
        splits=np.array([members[place].split for place in places], np.str_),
        digests=tuple(m.sha256 for _, m in found),
        members=tuple(members[place] for place in places),
    )
    return images, places


def _measure(record: ImageRecord, limits: LimitsConfig) -> _Readable | ImageRefusedError:
    from imagehash import phash
    from PIL import Image

    from pneumoscope.images.read import read_image

    try:
        image = read_image(record.path, limits)
        file_bytes = record.path.stat().st_size
    except ImageRefusedError as refused:
        return refused
    except OSError as error:
        return ImageRefusedError(str(record.path), Reason.NOT_FOUND, str(error.strerror))
    pixels = image.pixels
    grey = np.clip(pixels * np.float32(255.0) + np.float32(0.5), 0, 255).astype(np.uint8)
    small = Image.fromarray(grey).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    # imagehash resizes to 32×32 itself: the thumbnail already has that size and stays unchanged.
    bits = np.packbits(phash(small, hash_size=_HASH_SIDE).hash.ravel())
    height, width = pixels.shape
    return _Readable(
        sha256=image.sha256,
        format=image.format,
        numbers=(
            float(width),
            float(height),
            width / height,
            float(file_bytes),
            float(pixels.mean(dtype=np.float64)),
            float(pixels.std(dtype=np.float64)),
        ),
        flat=flat_kind(grey),
        hash=int.from_bytes(bits.tobytes(), "big"),
        thumbnail=np.asarray(small).ravel(),
    )


def member_of(record: ImageRecord, root: Path) -> Member:
    """An image as the audit names it; bytes of its path that are not UTF-8 are escaped."""
    inside = record.path.is_relative_to(root)
    path = record.path.relative_to(root) if inside else record.path
    return Member(
        path_text(path.as_posix()),
        record.split or NO_SPLIT,
        CLASS_NAMES[record.label],
        path_text(record.patient),
    )


def _identical_groups(
    records: Sequence[ImageRecord],
    measured: Sequence[_Readable | ImageRefusedError],
    members: Sequence[Member],
) -> tuple[DuplicateGroup, ...]:
    """Groups of equal bytes; unreadable files count too if the index hashed them."""
    by_hash: dict[str, list[Member]] = defaultdict(list)
    for record, result, member in zip(records, measured, members, strict=True):
        digest = result.sha256 if isinstance(result, _Readable) else record.sha256
        if digest:
            by_hash[digest].append(member)
    return tuple(
        _duplicates("identical", group, 0, 1.0) for group in by_hash.values() if len(group) > 1
    )


def _near_groups(
    measured: Sequence[_Readable | ImageRefusedError],
    members: Sequence[Member],
    near: NearConfig,
) -> tuple[tuple[DuplicateGroup, ...], bool]:
    """Groups of near duplicates; only the first of byte-equal files takes part."""
    first: dict[str, int] = {}
    for place, result in enumerate(measured):
        if isinstance(result, _Readable):
            first.setdefault(result.sha256, place)
    places = list(first.values())
    readable = [m for m in (measured[place] for place in places) if isinstance(m, _Readable)]
    if not readable:
        return (), False
    pairs, stopped = near_pairs(
        np.array([m.hash for m in readable], dtype=np.uint64),
        np.stack([m.thumbnail for m in readable]),
        near.max_distance,
        near.min_correlation,
        near.max_pairs,
    )
    groups = connected_groups(len(places), [(pair.first, pair.second) for pair in pairs])
    of_first: dict[int, list[NearPair]] = defaultdict(list)
    for pair in pairs:
        of_first[pair.first].append(pair)
    found = []
    for group in groups:
        if len(group) < 2:
            continue
        joined = list(itertools.chain.from_iterable(of_first[item] for item in group))
        found.append(
            _duplicates(
                "near",
                [members[places[item]] for item in group],
                max(pair.distance for pair in joined),
                min(pair.correlation for pair in joined),
            )
        )
    return tuple(found), stopped


def _duplicates(
    kind: Literal["identical", "near"],
    members: Sequence[Member],
    distance: int,
    correlation: float,
) -> DuplicateGroup:
    return DuplicateGroup(
        kind=kind,
        members=tuple(members),
        distance=distance,
        correlation=round(correlation, 4),
        across_splits=len({member.split for member in members}) > 1,
        across_patients=len({member.patient for member in members}) > 1,
        label_conflict=len({member.label for member in members}) > 1,
    )


def _groups(
    records: Sequence[ImageRecord],
    members: Sequence[Member],
    measured: Sequence[_Readable | ImageRefusedError],
) -> tuple[Group, ...]:
    cells: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, member in enumerate(members):
        cells[member.split, member.label].append(place)
    groups = []
    for split, label in itertools.product((*SPLITS, NO_SPLIT), CLASS_NAMES):
        places = cells.get((split, label))
        if not places:
            continue
        results = [measured[place] for place in places]
        formats = Counter(m.format for m in results if isinstance(m, _Readable))
        subtypes = Counter(records[p].subtype for p in places if records[p].subtype)
        groups.append(
            Group(
                split=split,
                label=label,
                images=len(places),
                patients=len({members[place].patient for place in places}),
                unreadable=len(places) - formats.total(),
                subtypes=tuple(sorted(subtypes.items())),
                formats=tuple(sorted(formats.items())),
            )
        )
    return tuple(groups)


def _shared_patients(members: Sequence[Member]) -> tuple[SharedPatient, ...]:
    images: dict[str, Counter[str]] = defaultdict(Counter)
    for member in members:
        if member.split != NO_SPLIT:
            images[member.patient][member.split] += 1
    return tuple(
        SharedPatient(patient, tuple((s, images[patient][s]) for s in SPLITS if images[patient][s]))
        for patient in sorted(images, key=natural_key)
        if len(images[patient]) > 1
    )


def gather_evidence(
    images: ThumbnailSet,
    predictions: npt.NDArray[np.float64] | None = None,
    progress: Progress = SILENT,
    seed: int = 0,
) -> Evidence:
    """Run the three analyses: patient similarity, split shift, label review.

    Args:
        images: readable images.
        predictions: (n,) a model's probabilities for the label review, NaN where there is none.
        progress: reports each comparison.
        seed: of everything random in it.
    """
    with progress.task("Comparing", comparisons() + 2, "analyses") as task:
        similarities = patient_similarities(images, seed)
        task.advance()
        shift = split_tests(images, seed, task)
        reviewed = review_labels(images, seed, predictions)
        task.advance()
    return Evidence(similarities, shift, reviewed)
