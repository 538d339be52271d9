"""The commands `data download`, `adopt`, `audit`, `split` and `phantom`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.options import TERMINAL, Outcome, command, settings
from pneumoscope.config import AdoptConfig, SplitConfig, replace_from

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="folder of train/ val/ test/, folder of NORMAL/ PNEUMONIA/, or CSV"
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder to write")]


class PhantomFormat(StrEnum):
    """File formats of phantoms."""

    png = "png"
    dicom = "dicom"


def register(app: typer.Typer) -> None:
    """Add the commands to the `data` group."""
    command(app, "download")(download)
    command(app, "adopt")(adopt)
    command(app, "audit")(audit)
    command(app, "split")(split)
    command(app, "phantom")(phantom)


def download(
    out: OutFolder,
    source: Annotated[
        str,
        typer.Option(metavar="huggingface|kaggle|URL|FILE.zip", help="source of the data set"),
    ] = "huggingface",
    sha256: Annotated[
        str | None, typer.Option(help="expected SHA-256 of a zip, in hexadecimal")
    ] = None,
) -> Outcome:
    """Download a data set, check it and arrange it as train/ val/ test/; resumes if interrupted.

    Example: pneumoscope data download --source archive.zip --out chest_xray
    """
    from pneumoscope.workflows.data import run_download

    return Outcome(*run_download(source, out, sha256, TERMINAL.progress))


@settings(AdoptConfig, "min_age", "max_age", "view", "others", "uncertain", "splits")
@settings(AdoptConfig, "table", "columns", "pneumonia", "normal")
def adopt(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="rsna, nih, chexpert, vindr-pcxr, padchest or csv"),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="the data set as its owner distributes it")
    ],
    out: Annotated[Path, typer.Option(metavar="manifest.csv", help="the manifest to write")],
    **options: Any,
) -> Outcome:
    """Convert a public data set into a manifest for `evaluate`; lists what it excludes.

    Example: pneumoscope data adopt nih ChestX-ray14 --out ChestX-ray14/children.csv --max-age 5
    """
    from pneumoscope.workflows.data import run_adoption

    config = replace_from(AdoptConfig(), **options)
    return Outcome(*run_adoption(name, folder, out, config, TERMINAL.progress))


def audit(
    data: DataArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="folder for audit.html and audit.json (default: print the findings only)",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="review labels by a model's predictions for these images"
        ),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option("--pictures/--no-pictures", help="show label-noise candidates in the page"),
    ] = True,
) -> Outcome:
    """Search for duplicates, shared patients, shortcuts, split shift and label-noise candidates.

    Example: pneumoscope data audit chest_xray --out audit
    """
    from pneumoscope.workflows.data import run_audit

    outcome = run_audit(data, out, TERMINAL.progress, predictions, pictures=pictures)
    return Outcome(*outcome, alone=out is None)


@settings(SplitConfig, "val", "test", "by", "seed")
def split(
    data: DataArgument,
    out: Annotated[Path, typer.Option(metavar="split.csv", help="the manifest to write")],
    pneumonia: Annotated[
        str,
        typer.Option(metavar="NAMES", help="further class folders or labels that mean PNEUMONIA"),
    ] = "",
    normal: Annotated[
        str, typer.Option(metavar="NAMES", help="further class folders or labels that mean NORMAL")
    ] = "",
    **options: Any,
) -> Outcome:
    """Split the data into train, val and test by patient, so that no patient is in two of them.

    Example: pneumoscope data split chest_xray --out split.csv --val 0.15 --test 0.1 --by block
    """
    from pneumoscope.workflows.data import run_split

    config = replace_from(SplitConfig(), **options)
    return Outcome(*run_split(data, out, config, TERMINAL.progress, pneumonia, normal))


def phantom(
    out: OutFolder,
    n: Annotated[int, typer.Option(min=4, help="how many images")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="seed; the same seed draws the same images")] = 0,
    file_format: Annotated[
        PhantomFormat, typer.Option("--format", help="file format")
    ] = PhantomFormat.png,
) -> Outcome:
    """Draw synthetic chest X-rays, to try the software without images of patients.

    Example: pneumoscope data phantom --out phantoms --n 200
    """
    from pneumoscope.workflows.data import run_phantom

    chosen: Any = file_format.value
    return Outcome(*run_phantom(out, n, seed, chosen, TERMINAL.progress))
