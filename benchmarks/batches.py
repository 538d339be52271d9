"""One batch in the engine at a time, or two, while `predict` reads files: which is faster?

    python benchmarks/batches.py DATA [--model default] [--images 1000] [--rounds 3] [--side 0]

The whole of `predict` on images of DATA, table included, in one process: in every precision that
the processor has instructions for, without and with heatmaps. Both ways take turns, and medians are
printed. With `--side` the images are first enlarged to so many pixels. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from unittest import mock

from PIL import Image

from pneumoscope.config import BatchConfig
from pneumoscope.graph.openvino import processor
from pneumoscope.graph.runner import batches_at_once
from pneumoscope.graph.writer import Precision
from pneumoscope.inference import predictor
from pneumoscope.inference.engine import fast_precisions
from pneumoscope.progress import SILENT
from pneumoscope.workflows.predict import run_prediction

WAYS = (1, 2)


def enlarged(images: Sequence[Path], side: int, folder: Path) -> list[Path]:
    """Copies of images, `side` pixels wide and high."""
    folder.mkdir()
    copies = [folder / f"{number}.jpeg" for number in range(len(images))]
    for image, copy in zip(images, copies, strict=True):
        Image.open(image).convert("L").resize((side, side)).save(copy, quality=90)
    return copies


def milliseconds(
    images: Sequence[Path], model: str, precision: Precision, rounds: int, *, heatmaps: bool
) -> dict[int, float]:
    """Milliseconds per image with one batch at once and with two, start of the model included."""
    seconds: dict[int, list[float]] = {way: [] for way in WAYS}
    batch = BatchConfig(precision=precision)
    for turn in range(rounds + 1):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as name:
                pictures = Path(name) / "heatmaps" if heatmaps else None
                with mock.patch.object(predictor, "batches_at_once", lambda _, way=way: way):
                    began = time.perf_counter()
                    run_prediction(
                        images, model, Path(name) / "p.csv", pictures, SILENT, batch=batch
                    )
                    if turn:  # the first makes graphs
                        seconds[way].append(time.perf_counter() - began)
    return {way: 1000 * statistics.median(each) / len(images) for way, each in seconds.items()}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder of JPEGs")
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=0, help="enlarge to so many pixels")
    asked = parser.parse_args()
    found = sorted(path.resolve() for path in asked.data.rglob("*.jpeg"))
    images = found[:: max(len(found) // asked.images, 1)][: asked.images]
    print(
        f"{date.today().isoformat()}, {os.cpu_count()} cores, {processor()}; {len(images)} images, "
        f"{asked.side or 'as stored'}; milliseconds per image.\n"
    )
    print("| precision | one batch at once | two | one / two | taken |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        if asked.side:
            images = enlarged(images, asked.side, Path(name) / "enlarged")
        for precision in fast_precisions():
            for heatmaps in (False, True):
                ms = milliseconds(images, asked.model, precision, asked.rounds, heatmaps=heatmaps)
                cells = [f"{ms[1]:.2f}", f"{ms[2]:.2f}", f"{ms[1] / ms[2]:.2f}"]
                label = f"{precision}{', heatmaps' if heatmaps else ''}"
                row = " | ".join([label, *cells, str(batches_at_once(precision))])
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
