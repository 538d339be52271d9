"""Files to a table of predictions: pneumoscope beside the stock way, end to end.

    python benchmarks/inference.py DATA [--model default] [--images 600] [--large 150]
        [--precisions f32 bf16 int8] [--repeat 3]

The stock way is what one would write in an afternoon: `tf.data` reads, decodes and resizes, the
Keras model of the same weights predicts, a CSV is written; its predictions are calibrated alike;
its heatmaps are Grad-CAM by `tf.GradientTape`, blended and saved by Pillow. Ours runs in every
precision that the model is certified for and the processor has, with and without heatmaps. Each way
runs in a process of its own, counted from start to end and, for the rates, less the time of one
image (start-up). Once on the files as they are, once on JPEGs of 2 megapixels made from them.
Prints Markdown: images/s, ratios, what heatmaps cost, the largest difference of probability, peak
memory, and which share that is of the processor's peak: of a large matrix product in float32 (for
stock and f32) or bfloat16 (for bf16 and int8), measured by the same engine in the same run.
Processor time per image is printed too: on a machine that others use, it is the reliable number.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.errors import UsageError
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.openvino import (
    OpenVinoWriter,
    build_model,
    compile_model,
    convolutions_of,
    processor,
)
from pneumoscope.graph.writer import PRECISIONS, Floats, Precision
from pneumoscope.inference.bundle import load_bundle
from pneumoscope.inference.certificates import choose_precision
from pneumoscope.inference.engine import fast_precisions

BATCH = 32
LARGE = (1600, 1250)
"""Width and height of an image of 2 megapixels."""

HEATMAPS = ", heatmaps"


@dataclass(frozen=True, slots=True)
class Timed:
    """One way over some images."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    table: Path


def predict_the_stock_way(images: Path, model: str, out: Path, heatmaps: Path | None) -> None:
    """`tf.data` and Keras: paths and probabilities into a CSV, heatmaps into a folder."""
    import tensorflow as tf

    from pneumoscope.inference.bundle import load_networks

    bundle = load_bundle(model)
    (network,) = load_networks(bundle)
    size = bundle.manifest.preprocessing.size
    standardise = bundle.manifest.preprocessing.normalisation == "standardise"
    paths = images.read_text().splitlines()

    def read(path: tf.Tensor) -> tf.Tensor:
        grey = tf.io.decode_jpeg(tf.io.read_file(path), channels=1)
        grey = tf.image.resize(tf.cast(grey, tf.float32) / 255.0, (size, size), antialias=True)
        if standardise:
            mean, variance = tf.nn.moments(grey, (0, 1))
            return tf.repeat((grey - mean) / tf.sqrt(variance), 3, -1)
        return (grey - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)

    data = tf.data.Dataset.from_tensor_slices(paths).map(read, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.batch(BATCH).prefetch(tf.data.AUTOTUNE)
    if heatmaps is None:
        found = network.predict(data, verbose=0)[:, 0]
    else:
        found = _with_autodiff_heatmaps(network, data, paths, heatmaps)
    if bundle.manifest.flip:
        mirrored = network.predict(data.map(tf.image.flip_left_right), verbose=0)[:, 0]
        found = (found + mirrored) / 2
    odds = np.log(found.astype(np.float64)) - np.log1p(-found.astype(np.float64))
    with out.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "probability"))
        writer.writerows(zip(paths, bundle.manifest.calibration.apply(odds), strict=True))


def _with_autodiff_heatmaps(
    network: Any, data: Any, paths: Sequence[str], folder: Path
) -> NDArray[np.float32]:
    """Probabilities (n,), and Grad-CAM as Keras' own example has it, blended in red over images."""
    import keras
    import tensorflow as tf

    folder.mkdir()
    inner = keras.Model(network.input, [network.get_layer("pool").input, network.output])

    @tf.function  # type: ignore[untyped-decorator]
    def ask(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            maps, probabilities = inner(images, training=False)
        weights = tf.reduce_mean(tape.gradient(probabilities, maps), (1, 2), keepdims=True)
        cams = tf.nn.relu(tf.reduce_sum(maps * weights, -1))
        return probabilities[:, 0], cams / tf.maximum(tf.reduce_max(cams, (1, 2), True), 1e-12)

    found = []
    names = iter(enumerate(paths))
    for images in data:
        probabilities, cams = ask(images)
        found.append(probabilities.numpy())
        for cam in cams.numpy():
            number, path = next(names)
            image = Image.open(path).convert("RGB")
            heat = Image.fromarray(np.uint8(128 * cam)).resize(image.size, Image.Resampling.BICUBIC)
            image.paste((255, 0, 0), mask=heat)
            image.save(folder / f"{number}.png")
    return np.concatenate(found)


def timed(command: Sequence[str], table: Path) -> Timed:
    """Run a command; wall and processor time and the most memory of it and its children."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_maxrss, used.ru_utime + used.ru_stime)\n"
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
    memory, cpu = done.stdout.split()
    return Timed(time.perf_counter() - started, float(cpu), int(memory) / 1024, table)


def run_all(
    images: Sequence[Path],
    model: str,
    folder: Path,
    precisions: Sequence[Precision],
    repeat: int = 1,
) -> dict[str, Timed]:
    """Every way over the same images: stock, then each precision; each without heatmaps and with.

    All are run so often, in turns, but stock with heatmaps, which takes minutes, once; the run of
    median time is returned.
    """
    folder.mkdir()
    lists = folder / "images.txt"
    lists.write_text("\n".join(map(str, images)))
    with (folder / "images.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path",), *((path,) for path in images)])
    runs: dict[str, list[Timed]] = {}
    for way in ("stock", *precisions):
        for number in range(repeat):
            for heatmaps in (False, True):
                if heatmaps and number and way == "stock":
                    continue
                name = f"{way}{HEATMAPS if heatmaps else ''}"
                table = folder / f"{name}.csv"
                command = [
                    *(sys.executable, "-m", "pneumoscope", "predict", str(folder / "images.csv")),
                    *("--model", model, "--out", str(table), "-q", "--precision", way),
                ]
                if way == "stock":
                    command = [sys.executable, __file__, "--stock", str(lists), str(table)]
                    command += ["--model", model]
                # A folder of its own: file systems are slow to use again what was just deleted.
                into = ["--heatmaps", str(folder / f"{name}-{number}.png")] * heatmaps
                runs.setdefault(name, []).append(timed(command + into, table))
    return {
        name: sorted(each, key=lambda run: run.seconds)[len(each) // 2]
        for name, each in runs.items()
    }


def furthest(one: Path, other: Path) -> float:
    """The largest difference of probability between two tables."""
    both = [list(csv.DictReader(path.open())) for path in (one, other)]
    pairs = zip(*both, strict=True)
    # What the input check rejected has no probability on our side.
    scored = [(a, b) for a, b in pairs if a["probability"] and b["probability"]]
    return max(abs(float(a["probability"]) - float(b["probability"])) for a, b in scored)


def enlarged(images: Sequence[Path], folder: Path) -> list[Path]:
    """JPEGs of 2 megapixels made from images."""
    folder.mkdir()
    made = []
    for number, image in enumerate(images):
        path = folder / f"{number}.jpeg"
        large = Image.open(image).convert("L").resize(LARGE, Image.Resampling.BICUBIC)
        large.save(path, quality=92)
        made.append(path)
    return made


def certified(model: str) -> list[Precision]:
    """The precisions in which the model can run on this processor."""
    certificates = load_bundle(model).manifest.certificates
    found = []
    for precision in PRECISIONS:
        try:
            found.append(choose_precision(precision, certificates, fast_precisions()))
        except UsageError as error:
            print(f"Not measured: {error}\n")
    return found


def gflop_per_image(model: str) -> float:
    """Of the convolutions, which are all but a thousandth; a product and a sum are two."""
    bundle = load_bundle(model)
    manifest = bundle.manifest
    networks = [read_network(path, manifest.architecture) for path in bundle.weights]
    graph = build_model(networks, manifest.architecture.size, 1, flip=manifest.flip)
    count = 0
    for node in convolutions_of(graph):
        inside = int(np.prod(node.input_value(1).get_shape()[1:]))
        count += 2 * inside * int(np.prod(node.output(0).get_shape()))
    return count / 1e9


def measured_peak(floats: Floats) -> float:
    """GFLOP/s of a large matrix product, the best of several."""
    side, to = 3072, OpenVinoWriter()
    given = to.parameter((side, side), np.float32, "a")
    kernel = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    product = to.product(given, to.constant(kernel))
    compiled = compile_model(to.model(given, {"b": to.reduce("max", product, (1,))}), floats)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        compiled(kernel)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times) / 1e9


@dataclass(frozen=True, slots=True)
class Work:
    """What an image costs, GFLOP, and what the processor does at most, GFLOP/s."""

    image: float
    peak: Mapping[str, float]

    def share(self, way: str, rate: float) -> float:
        """Of the peak, at so many images/s."""
        kind = "bf16" if way.startswith(("bf16", "int8")) else "f32"
        return rate * self.image / self.peak[kind]


def report(
    name: str, images: int, alone: dict[str, Timed], many: dict[str, Timed], work: Work
) -> str:
    """Every way over one kind of image, as Markdown."""
    more = max(images - 1, 1)
    rates = {w: more / (many[w].seconds - alone[w].seconds) for w in many}
    cpu = {w: 1000 * (many[w].cpu_seconds - alone[w].cpu_seconds) / more for w in many}
    lines = [
        f"{name}, {images} images:",
        "",
        "| way | seconds, one image | seconds, all | images/s after start-up | processor ms per "
        "image | share of peak | heatmaps cost | furthest from stock | peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, found in many.items():
        plain = way.removesuffix(HEATMAPS)
        cost = "" if plain == way else f"{rates[plain] / rates[way] - 1:+.0%}"
        apart = furthest(many["stock"].table, found.table)
        lines.append(
            f"| {way if plain == 'stock' else 'pneumoscope, ' + way} | {alone[way].seconds:.1f} "
            f"({alone[way].seconds / alone['stock'].seconds:.2f} ×) | {found.seconds:.1f} "
            f"({found.seconds / many['stock'].seconds:.2f} ×) | {rates[way]:.1f} "
            f"({rates[way] / rates['stock']:.2f} ×) | {cpu[way]:.1f} "
            f"({cpu['stock'] / cpu[way]:.2f} ×) | {work.share(way, rates[way]):.0%} | {cost} | "
            f"{apart:.2g} | {found.peak_mb:.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="a folder of JPEGs")
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--large", type=int, default=150, help="images of 2 megapixels; 0: none")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way")
    parser.add_argument("--stock", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--heatmaps", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stock:
        predict_the_stock_way(asked.stock[0], asked.model, asked.stock[1], asked.heatmaps)
        return
    found = sorted(p.resolve() for p in asked.data.rglob("*.jpeg"))
    images = [found[k] for k in np.linspace(0, len(found) - 1, asked.images).astype(int)]
    print(
        f"{date.today().isoformat()}, {os.cpu_count()} cores, {processor()}, "
        f"Python {platform.python_version()}.\n"
    )
    model = asked.model if asked.model == "default" else str(Path(asked.model).resolve())
    ways = [p for p in certified(model) if p in asked.precisions]
    kinds: tuple[Floats, ...] = ("f32", "bf16") if "bf16" in fast_precisions() else ("f32",)
    peak: dict[str, float] = {floats: measured_peak(floats) for floats in kinds}
    work = Work(gflop_per_image(model), {"bf16": peak["f32"]} | peak)
    told = ", ".join(f"{value:.0f} in {name}" for name, value in peak.items())
    print(f"{work.image:.1f} GFLOP an image; at most {told} GFLOP/s by a matrix product.\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_all(images[:1], model, folder / "warm-up", ways)  # fills caches on all sides
        one = run_all(images[:1], model, folder / "one", ways, asked.repeat)
        many = run_all(images, model, folder / "many", ways, asked.repeat)
        print(report("Files as they are", len(images), one, many, work))
        if not asked.large:
            return
        large = enlarged(images[: asked.large], folder / "large")
        one = run_all(large[:1], model, folder / "one-large", ways, asked.repeat)
        many = run_all(large, model, folder / "many-large", ways, asked.repeat)
        print(report("JPEGs of 2 megapixels", len(large), one, many, work))


if __name__ == "__main__":
    main()
