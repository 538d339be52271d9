"""Files to a table of answers: pneumoscope beside the stock way, end to end.

    python benchmarks/inference.py DATA [--model default] [--images 600] [--large 150]

The stock way is what one would write in an afternoon: `tf.data` reads, decodes and resizes, the
Keras model of the same weights predicts, a CSV is written; its answers are calibrated alike. Each
way runs in a process of its own, counted from start to end and, for the rates, less the time of
one image (start-up). Once on the files as they are, once on JPEGs of 2 megapixels made from them.
Prints Markdown: images/s, ratios, the largest difference between the answers, peak memory.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

BATCH = 32
LARGE = (1600, 1250)
"""Width and height of a film of 2 megapixels."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One way over some films."""

    seconds: float
    peak_mb: float
    table: Path


def predict_the_stock_way(films: Path, model: str, out: Path) -> None:
    """`tf.data` and Keras: paths and probabilities into a CSV."""
    import tensorflow as tf

    from pneumoscope.inference.bundle import load_bundle, load_networks

    bundle = load_bundle(model)
    (network,) = load_networks(bundle)
    size = bundle.manifest.preprocessing.size
    standardise = bundle.manifest.preprocessing.normalisation == "standardise"
    paths = films.read_text().splitlines()

    def read(path: tf.Tensor) -> tf.Tensor:
        grey = tf.io.decode_jpeg(tf.io.read_file(path), channels=1)
        grey = tf.image.resize(tf.cast(grey, tf.float32) / 255.0, (size, size), antialias=True)
        if standardise:
            mean, variance = tf.nn.moments(grey, (0, 1))
            return tf.repeat((grey - mean) / tf.sqrt(variance), 3, -1)
        return (grey - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)

    data = tf.data.Dataset.from_tensor_slices(paths).map(read, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.batch(BATCH).prefetch(tf.data.AUTOTUNE)
    found = network.predict(data, verbose=0)[:, 0]
    if bundle.manifest.flip:
        mirrored = network.predict(data.map(tf.image.flip_left_right), verbose=0)[:, 0]
        found = (found + mirrored) / 2
    odds = np.log(found.astype(np.float64)) - np.log1p(-found.astype(np.float64))
    with out.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "probability"))
        writer.writerows(zip(paths, bundle.manifest.calibration.apply(odds), strict=True))


def timed(command: Sequence[str], table: Path) -> Timed:
    """Run a command; wall time and the most memory of it and its children."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(done.returncode)\n"
    )
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    return Timed(time.perf_counter() - started, int(done.stdout) / 1024, table)


def run_both(films: Sequence[Path], model: str, folder: Path) -> dict[str, Timed]:
    """Both ways over the same films."""
    folder.mkdir()
    lists = folder / "films.txt"
    lists.write_text("\n".join(map(str, films)))
    with (folder / "films.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path",), *((path,) for path in films)])
    stock, ours = folder / "stock.csv", folder / "ours.csv"
    commands = {
        "stock": [sys.executable, __file__, "--stock", str(lists), str(stock), "--model", model],
        "pneumoscope": [
            *(sys.executable, "-m", "pneumoscope", "predict", str(folder / "films.csv")),
            *("--model", model, "--out", str(ours), "-q"),
        ],
    }
    tables = {"stock": stock, "pneumoscope": ours}
    return {way: timed(command, tables[way]) for way, command in commands.items()}


def furthest(one: Path, other: Path) -> float:
    """The largest difference of probability between two tables."""
    both = [list(csv.DictReader(path.open())) for path in (one, other)]
    pairs = zip(*both, strict=True)
    return max(abs(float(a["probability"]) - float(b["probability"])) for a, b in pairs)


def enlarged(films: Sequence[Path], folder: Path) -> list[Path]:
    """JPEGs of 2 megapixels made from films."""
    folder.mkdir()
    made = []
    for number, film in enumerate(films):
        path = folder / f"{number}.jpeg"
        large = Image.open(film).convert("L").resize(LARGE, Image.Resampling.BICUBIC)
        large.save(path, quality=92)
        made.append(path)
    return made


def report(name: str, images: int, alone: dict[str, Timed], many: dict[str, Timed]) -> str:
    """Both ways over one kind of film, as Markdown."""
    rates = {w: (images - 1) / (many[w].seconds - alone[w].seconds) for w in many}
    lines = [
        f"{name}, {images} films:",
        "",
        "| way | seconds, one film | seconds, all | images/s after start-up | peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for way, found in many.items():
        lines.append(
            f"| {way} | {alone[way].seconds:.1f} ({alone[way].seconds / alone['stock'].seconds:.2f}"
            f" ×) | {found.seconds:.1f} ({found.seconds / many['stock'].seconds:.2f} ×) | "
            f"{rates[way]:.1f} ({rates[way] / rates['stock']:.2f} ×) | {found.peak_mb:.0f} |"
        )
    apart = furthest(many["stock"].table, many["pneumoscope"].table)
    lines += ["", f"Largest difference of probability: {apart:.2g}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="a folder of JPEGs")
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--large", type=int, default=150, help="films of 2 megapixels")
    parser.add_argument("--stock", type=Path, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stock:
        predict_the_stock_way(asked.stock[0], asked.model, asked.stock[1])
        return
    found = sorted(p.resolve() for p in asked.data.rglob("*.jpeg"))
    films = [found[k] for k in np.linspace(0, len(found) - 1, asked.images).astype(int)]
    print(
        f"{date.today().isoformat()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}.\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = run_both(films[:1], asked.model, folder / "warm-up")  # fills caches on both sides
        small = run_both(films[:1], asked.model, folder / "one")
        many = run_both(films, asked.model, folder / "many")
        print(report("Files as they are", len(films), small, many))
        large = enlarged(films[: asked.large], folder / "large")
        one = run_both(large[:1], asked.model, folder / "one-large")
        many = run_both(large, asked.model, folder / "many-large")
        print(report("JPEGs of 2 megapixels", len(large), one, many))


if __name__ == "__main__":
    main()
