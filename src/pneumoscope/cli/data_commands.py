"""`pneumoscope data …`: download, adopt, audit, split, phantom."""

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
        typer.Option(metavar="huggingface|kaggle|URL|FILE.zip", help="where from"),
    ] = "huggingface",
    sha256: Annotated[
        str | None, typer.Option(help="expected SHA-256 of a zip, in hexadecimal")
    ] = None,
) -> Outcome:
    """Fetch a data set, check it and lay it out as train/ val/ test/. Resumes where it stopped.

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
    """Turn a public data set into a manifest that `evaluate` takes; says what is left out.

    Example: pneumoscope data adopt nih ChestX-ray14 --out ChestX-ray14/children.csv --max-age 5
    """
    from pneumoscope.workflows.data import run_adoption

    config = replace_from(AdoptConfig(), **options)
    return Outcome(*run_adoption(name, folder, out, config, TERMINAL.progress))


def audit(
    data: DataArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder for audit.html and audit.json")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="judge labels by a model's answers for these films"),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option("--pictures/--no-pictures", help="show doubtful films in the page"),
    ] = True,
) -> Outcome:
    """Look for what makes results wrong: duplicates, shared patients, shortcuts, shift, odd labels.

    Example: pneumoscope data audit chest_xray --out audit
    """
    from pneumoscope.workflows.data import run_audit

    found = run_audit(data, out, TERMINAL.progress, predictions, pictures=pictures)
    return Outcome(*found, alone=out is None)


@settings(SplitConfig, "val", "test", "by", "seed")
def split(
    data: DataArgument,
    out: Annotated[Path, typer.Option(metavar="split.csv", help="the manifest to write")],
    pneumonia: Annotated[
        str,
        typer.Option(metavar="NAMES", help="class folders or labels that mean PNEUMONIA, too"),
    ] = "",
    normal: Annotated[
        str, typer.Option(metavar="NAMES", help="class folders or labels that mean NORMAL, too")
    ] = "",
    **options: Any,
) -> Outcome:
    """Deal patients to train, val and test, so that none stands in two of them.

    Example: pneumoscope data split chest_xray --out split.csv --val 0.15 --test 0.1 --by block
    """
    from pneumoscope.workflows.data import run_split

    config = replace_from(SplitConfig(), **options)
    return Outcome(*run_split(data, out, config, TERMINAL.progress, pneumonia, normal))


def phantom(
    out: OutFolder,
    n: Annotated[int, typer.Option(min=4, help="how many images")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="the same seed draws the same images")] = 0,
    file_format: Annotated[
        PhantomFormat, typer.Option("--format", help="what to write")
    ] = PhantomFormat.png,
) -> Outcome:
    """Draw synthetic chest X-rays, to try everything without a patient's image.

    Example: pneumoscope data phantom --out phantoms --n 200
    """
    from pneumoscope.workflows.data import run_phantom

    chosen: Any = file_format.value
    return Outcome(*run_phantom(out, n, seed, chosen, TERMINAL.progress))
