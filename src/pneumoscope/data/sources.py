"""Download a data set of chest X-rays from Hugging Face, Kaggle, an address or a local zip file.

The input is a source and a folder that does not exist yet. The output is that folder as `DATA`
(`SPLIT/CLASS/image`, docs/researcher/data.md) with an `ATTRIBUTION.md` beside the splits, or
nothing: it is assembled under another name and renamed when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pneumoscope.data.archive import extract_zip
from pneumoscope.data.download import HUGGINGFACE_NAME, KAGGLE_NAME, Hubs, fetch, shown_url
from pneumoscope.data.folders import (
    SplitCount,
    count_images,
    export_parquet,
    files_in,
    find_data_folder,
    publish,
    staging_folder,
    take_images,
)
from pneumoscope.errors import DataError, MissingError, UsageError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.storage import cache_folder, sha256_of_file, write_text

KERMANY_LICENCE = "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)"
KERMANY_CITATION = (
    "Kermany D, Zhang K, Goldbaum M (2018): Labeled Optical Coherence Tomography (OCT) and Chest "
    "X-Ray Images for Classification. Mendeley Data, V2. doi:10.17632/rscbjbr9sj.2"
)
UNKNOWN_LICENCE = "not known to pneumoscope: ask the source before you pass the images on"
ATTRIBUTION_NAME = "ATTRIBUTION.md"
_NO_PATIENTS_WARNING = (
    "the Parquet files contain no file names, so patients are unknown: every image counts as a "
    "separate patient, and intervals and splits by patient are too optimistic. "
    "The zip file of Mendeley Data and Kaggle's copy have the names."
)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

KERMANY_COUNTS = (
    SplitCount("train", 1341, 3875),
    SplitCount("val", 8, 8),
    SplitCount("test", 234, 390),
)
"""The Kermany set on Kaggle and Hugging Face."""


@dataclass(frozen=True, slots=True)
class DownloadReport:
    """The result of `download`.

    Attributes:
        out: the new folder, absolute.
        source: the source of the images, without secrets.
        images: images per split and class, in the order train, val, test.
        bytes: size of the images.
        skipped: number of files left out: not an image, or not under a class folder.
        sha256: hex digests by name: of the archive, of each shard, or (Kaggle, which delivers a
            folder) of the sorted list of all images' paths and digests, under `images`.
        licence: licence of the images.
        citation: how to cite them; `""` if that is not known.
        warnings: limitations of the data.
    """

    out: Path
    source: str
    images: tuple[SplitCount, ...]
    bytes: int
    skipped: int
    sha256: Mapping[str, str]
    licence: str
    citation: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Origin:
    """The source of the images in a staging folder, and how they were changed."""

    source: str
    changes: str
    sha256: Mapping[str, str]
    is_kermany: bool = False
    skipped: int = 0
    warnings: tuple[str, ...] = ()
    used_up: Path | None = None
    """A downloaded file that is no longer needed once the folder is complete."""


def download(
    source: str,
    out: Path,
    progress: Progress = SILENT,
    sha256: str | None = None,
    hubs: Hubs | None = None,
) -> DownloadReport:
    """Download a data set to `out`, completely or not at all.

    Args:
        source: `huggingface`, `kaggle`, an http(s) address of a zip file, or the path of one.
        out: the folder to make; it may exist if it is empty.
        progress: reports bytes, files and images.
        sha256: expected hex digest of the zip file.
        hubs: the clients of Hugging Face and Kaggle; `None` takes the real ones.

    Returns:
        A report. An interrupted download resumes at the next call with the same source.

    Raises:
        UsageError: `source` is none of the above, `out` is not empty or can't be written to.
        DataError: the archive or the tables are damaged, contain no data set, have another digest,
            or (`huggingface`, `kaggle`) not the Kermany set's numbers of images.
        UnsafeArchiveError: the archive would write outside its folder, or is a bomb.
        ExtraMissingError: the clients of the extra `download` are not installed.
        NetworkError: the source can't be reached.
        MissingError: the disk is full.
    """
    _check_digest(source, sha256)
    out = out.resolve()
    try:
        _check_free(out)
        with staging_folder(out) as staging:
            data = staging / "data"
            data.mkdir()
            origin = _gather(source, staging, data, progress, sha256, hubs or Hubs())
            images = count_images(data)
            _check_counts(source, images, origin)
            size = sum(path.stat().st_size for path in files_in(data))
            report = _report(out, origin, images, size)
            write_text(data / ATTRIBUTION_NAME, _attribution(report, origin.changes))
            publish(data, out)
        if origin.used_up is not None:
            origin.used_up.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MissingError(
                f"no space left on the disk for {out}. Free some; the same command resumes the "
                "download."
            ) from error
        raise UsageError(f"{out} can't be made: {error}") from error
    return report


def _gather(
    source: str, staging: Path, data: Path, progress: Progress, sha256: str | None, hubs: Hubs
) -> _Origin:
    """Fill `data` from `source`."""
    if source == "huggingface":
        return _from_huggingface(data, progress, hubs)
    if source == "kaggle":
        return _from_kaggle(data, progress, hubs)
    if "://" in source:
        name = shown_url(source)
        archive = fetch(source, cache_folder() / "downloads", progress, sha256)
        try:
            return _from_zip(archive, name, staging, data, progress, used_up=archive)
        except DataError:
            # Resuming with this file would fail again.
            archive.unlink(missing_ok=True)
            raise
    archive = Path(source)
    _check_local(archive, sha256)
    return _from_zip(archive, archive.name, staging, data, progress, used_up=None)


def _from_zip(
    archive: Path, name: str, staging: Path, data: Path, progress: Progress, used_up: Path | None
) -> _Origin:
    tree = staging / "tree"
    tree.mkdir()
    unpacked = extract_zip(archive, tree, progress=progress, name=name)
    try:
        kept = take_images(find_data_folder(tree), data, move=True)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return _Origin(
        name,
        "Images were unpacked from the zip file unchanged; other files were left out.",
        {name: sha256_of_file(archive)},
        skipped=unpacked.skipped + unpacked.kept - kept,
        used_up=used_up,
    )


def _from_kaggle(data: Path, progress: Progress, hubs: Hubs) -> _Origin:
    tree = hubs.kaggle_folder(progress)
    try:
        kept = take_images(find_data_folder(tree), data, move=False, progress=progress)
    except DataError as error:
        raise DataError(f"{tree}: {error}") from error
    digest = hashlib.sha256()
    for path in sorted(files_in(data)):
        digest.update(f"{sha256_of_file(path)}  {path.relative_to(data).as_posix()}\n".encode())
    return _Origin(
        f"Kaggle, {KAGGLE_NAME}",
        "Images were copied unchanged; the second copy of the set in the download and files that "
        "are not images were left out.",
        {"images": digest.hexdigest()},
        is_kermany=True,
        skipped=sum(1 for _ in files_in(tree)) - kept,
    )


def _from_huggingface(data: Path, progress: Progress, hubs: Hubs) -> _Origin:
    snapshot = hubs.huggingface_folder(progress)
    shards = sorted(snapshot.rglob("*.parquet"))
    if not shards:
        raise DataError(f"{snapshot} has no Parquet files; wanted those of {HUGGINGFACE_NAME}")
    export_parquet(shards, data, progress)
    return _Origin(
        f"Hugging Face, {HUGGINGFACE_NAME}, revision {snapshot.name}",
        "Images were taken from the Parquet files unchanged and named by split, shard and row.",
        {shard.relative_to(snapshot).as_posix(): sha256_of_file(shard) for shard in shards},
        is_kermany=True,
        warnings=(_NO_PATIENTS_WARNING,),
    )


def _check_counts(source: str, images: tuple[SplitCount, ...], origin: _Origin) -> None:
    if origin.is_kermany and images != KERMANY_COUNTS:
        raise DataError(
            f"{source} delivered other images than the Kermany set has (NORMAL/PNEUMONIA): "
            f"found {_in_words(images)}; wanted {_in_words(KERMANY_COUNTS)}. "
            "Remove the client's cached copy and download again."
        )
    if sum(count.normal + count.pneumonia for count in images) == 0:
        raise DataError(f"{origin.source} has no image under a NORMAL/ or PNEUMONIA/ folder")


def _in_words(images: tuple[SplitCount, ...]) -> str:
    return ", ".join(f"{c.split or 'all'} {c.normal:,}/{c.pneumonia:,}" for c in images) or "none"


def _report(
    out: Path, origin: _Origin, images: tuple[SplitCount, ...], size: int
) -> DownloadReport:
    # If all six numbers agree, a zip file from elsewhere is the Kermany set too.
    known = origin.is_kermany or images == KERMANY_COUNTS
    return DownloadReport(
        out=out,
        source=origin.source,
        images=images,
        bytes=size,
        skipped=origin.skipped,
        sha256=origin.sha256,
        licence=KERMANY_LICENCE if known else UNKNOWN_LICENCE,
        citation=KERMANY_CITATION if known else "",
        warnings=origin.warnings,
    )


def _attribution(report: DownloadReport, changes: str) -> str:
    digests = "\n".join(f"- `{digest}` {name}" for name, digest in sorted(report.sha256.items()))
    citation = report.citation or (
        "not known to pneumoscope. If this is the Kermany set, it is under "
        f"{KERMANY_LICENCE} and cited as: {KERMANY_CITATION}"
    )
    return (
        "# Where these images come from\n\n"
        f"- Source: {report.source}\n"
        f"- Licence: {report.licence}\n"
        f"- Cite: {citation}\n"
        f"- Fetched: {datetime.now(UTC).date().isoformat()}, by pneumoscope\n"
        f"- Images (NORMAL/PNEUMONIA): {_in_words(report.images)}\n"
        f"- Changes: {changes}\n\n"
        f"SHA-256 of what was fetched:\n\n{digests}\n"
    )


def _check_digest(source: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    if source in ("huggingface", "kaggle"):
        raise UsageError(f"a SHA-256 can be checked for a zip file only, not for {source}")
    if not _SHA256.fullmatch(sha256):
        raise UsageError(f"{sha256!r} is not a SHA-256: wanted 64 hexadecimal digits")


def _check_local(archive: Path, sha256: str | None) -> None:
    if archive.is_dir():
        raise UsageError(f"{archive} is already a folder: give it as DATA, nothing to download")
    if not archive.is_file():
        raise UsageError(
            f"{archive} does not exist. Give huggingface, kaggle, an http(s) address or a zip file"
        )
    if sha256 is not None and (found := sha256_of_file(archive)) != sha256.lower():
        raise DataError(f"{archive} has the SHA-256 {found}, wanted {sha256.lower()}")


def _check_free(out: Path) -> None:
    if out.is_dir():
        if any(out.iterdir()):
            raise UsageError(f"{out} is not empty. Give a folder that does not exist yet")
    elif out.exists():
        raise UsageError(f"{out} is a file. Give a folder that does not exist yet")
