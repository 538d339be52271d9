"""How the engine is best fed: images per request, and one batch after the other or two at a time.

    python benchmarks/engine.py [--model default] [--sides 112 224] [--images 384] [--rounds 3]

The networks of the model over drawn images, at its own size and at others, in every precision that
the processor has instructions for, without mirror images; their output is not used. First
batches that are there already, dealt into requests of 4, 2 and 1 images: processor caches decide.
Then batches that a thread decodes meanwhile, as `train` does: each batch for itself, and two of
them under way. All ways take turns; medians are printed. Prints Markdown.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.config import PreprocessConfig
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import OUTPUTS, build_model, processor
from pneumoscope.graph.runner import PART, Runner, images_per_request
from pneumoscope.graph.writer import Floats, Precision, Ranges
from pneumoscope.images.phantom import draw
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import read_bytes
from pneumoscope.inference.bundle import Bundle, load_bundle
from pneumoscope.inference.engine import INT8_TABLE, fast_precisions
from pneumoscope.prefetching import overlapped, prefetched

BATCH = 32
PARTS = (PART, PART // 2, 1)

Batch = NDArray[np.float32]


def runner(bundle: Bundle, side: int, precision: Precision, part: int) -> Runner:
    """The bundle's networks at another size."""
    networks = [read_network(path, bundle.manifest.architecture) for path in bundle.weights]
    table = bundle.table(INT8_TABLE) if precision == "int8" else None
    ranges = Ranges.from_table(table) if table else None
    floats: Floats = "f32" if precision == "f32" else "bf16"
    build = partial(_built, networks, side, ranges)
    return Runner(build, OUTPUTS, floats, part=part)


def _built(
    networks: Sequence[NetworkArrays], side: int, ranges: Ranges | None, images: int
) -> object:
    return build_model(networks, side, images, ranges=ranges)


@cache
def jpegs() -> list[bytes]:
    """Drawn images of 224 pixels."""
    contents = []
    for number in range(8):
        grey = np.round(draw(0, f"guest-{number}", number=1, label=number % 2).pixels * 255)
        stream = io.BytesIO()
        Image.fromarray(grey.astype(np.uint8)).resize((224, 224)).save(stream, "JPEG")
        contents.append(stream.getvalue())
    return contents


def xrays(side: int, images: int) -> Iterator[Batch]:
    """Batches, decoded as they are taken."""
    preprocess, contents = Preprocessor(PreprocessConfig(size=side)), jpegs()
    for first in range(0, images, BATCH):
        names = range(first, first + BATCH)
        yield np.stack([preprocess(read_bytes(contents[n % 8], "image").pixels) for n in names])


def in_turns(ways: dict[str, Callable[[], object]], images: int, rounds: int) -> dict[str, float]:
    """Milliseconds per image of each way, the median of its rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if turn:  # the first makes graphs
                seconds[name].append(time.perf_counter() - began)
    return {name: 1000 * statistics.median(each) / images for name, each in seconds.items()}


def measure(bundle: Bundle, side: int, precision: Precision, images: int, rounds: int) -> str:
    """One row of the table."""
    ready = list(xrays(side, images))

    def one_by_one(engine: Runner, batches: Iterator[Batch]) -> None:
        for batch in batches:
            engine(batch)

    def two_at_a_time(engine: Runner, batches: Iterator[Batch]) -> None:
        for _ in overlapped(engine, batches):
            pass

    engines = {part: runner(bundle, side, precision, part) for part in PARTS}
    dealt = in_turns(
        {f"{part}": partial(lambda e: one_by_one(e, iter(ready)), engines[part]) for part in PARTS},
        images,
        rounds,
    )
    chosen = engines[images_per_request(side, precision)]
    fed = in_turns(
        {
            "one": lambda: one_by_one(chosen, prefetched(xrays(side, images))),
            "two": lambda: two_at_a_time(chosen, prefetched(xrays(side, images))),
        },
        images,
        rounds,
    )
    most = dealt[f"{PART}"]
    cells = [f"{ms:.2f} ({most / ms:.2f} ×)" for ms in dealt.values()]
    cells += [f"{fed['one']:.2f}", f"{fed['two']:.2f} ({fed['one'] / fed['two']:.2f} ×)"]
    return f"| {side}, {precision} | {' | '.join(cells)} |"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--sides", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    bundle = load_bundle(asked.model)
    print(f"{date.today().isoformat()}, {os.cpu_count()} cores, {processor()}.\n")
    print("Milliseconds per image:\n")
    requests = " | ".join(f"requests of {part}" for part in PARTS)
    print(f"| pixels, precision | {requests} | read meanwhile, one batch | two at a time |")
    print("| --- " + "| ---: " * (len(PARTS) + 2) + "|")
    for side in asked.sides:
        for precision in fast_precisions():
            print(measure(bundle, side, precision, asked.images, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
