"""Training from pixels on each backend of Keras that is installed: images per second of a step.

    python benchmarks/backends.py [--sizes 112 128 160] [--batch 64] [--steps 5]
        [--backbone densenet121] [--quick]

A step is that of the `scratch` recipe: its phase's own model and batches (squares from disk,
distortion on the device, the backbone, the mission's head, AdamW), all layers trained. Each way
runs in a process of its own, the first two steps of each size (compilation) not counted, of the
others the median. The images are noise, which costs what X-rays cost. `--quick` only proves that
it runs. Prints Markdown, with ratios to TensorFlow in float32.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.config import RECIPES, ScratchConfig, TrainConfig
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.end_to_end import Squares, build_phase_schedule, stored_side
from pneumoscope.training.features import ArrayStore, FeatureTable
from pneumoscope.training.guidance import UNKNOWN
from pneumoscope.training.loop import PhaseSchedule
from pneumoscope.training.network import initialise_randomly, with_head, with_native_layers
from pneumoscope.training.optimizer import build_optimizer
from pneumoscope.training.recipes import architecture
from pneumoscope.training.runtime import arithmetic, describe_runtime, load_keras

_WARM_UP = 2
_BATCHES_STORED = 4


@dataclass(frozen=True, slots=True)
class Way:
    """A backend, its arithmetic, and whether our own layers take the place of Keras'."""

    backend: str
    precision: str
    native: bool = False

    @property
    def title(self) -> str:
        """For the table."""
        layers = ""
        if self.backend == "torch":
            layers = ", our native layers" if self.native else ", Keras' layers"
        return f"{self.backend} {self.precision}{layers}"


WAYS = (
    Way("tensorflow", "f32"),
    Way("torch", "f32"),
    Way("torch", "f32", native=True),
    Way("torch", "bf16"),
    Way("torch", "bf16", native=True),
    Way("jax", "f32"),
)


def measure(way: Way, sizes: list[int], batch: int, steps: int, backbone: str) -> dict[str, Any]:
    """Images per second of one way at each size; Keras runs on its backend already."""
    rates = []
    for size in sizes:
        base = RECIPES["scratch"]
        config = replace(
            base,
            backbone=backbone,
            preprocess=replace(base.preprocess, size=size),
            fit=replace(base.fit, batch_size=batch),
            scratch=ScratchConfig((size,), (1.0,)),
        )
        network = build_trained(way, config)
        with tempfile.TemporaryDirectory() as folder:
            squares = noise(Path(folder), stored_side(size), _BATCHES_STORED * batch)
            schedule = build_phase_schedule(network, (squares, squares), config, config.scratch, {})
            seconds = time_steps(schedule, config, _WARM_UP + steps)
        rates.append(batch / statistics.median(seconds[_WARM_UP:]))
        load_keras().backend.clear_session()
    return {"rates": rates, "runtime": describe_runtime()}


def build_trained(way: Way, config: TrainConfig) -> Any:
    """The network that `scratch` trains, in the layers and arithmetic of a way."""
    with arithmetic(way.precision):
        body = build_backbone(None, config.backbone)
        initialise_randomly(body, config.seed)
        body.trainable = True
        if way.native:
            body = with_native_layers(body)
        return with_head(body, architecture(config), config.seed)


def noise(folder: Path, side: int, images: int) -> Squares:
    """As many squares of noise on disk, of both classes."""
    store = ArrayStore(folder, "u1", (side, side))
    keys = [k.to_bytes(32, "little") for k in range(images)]
    store.add(keys, np.random.default_rng(0).integers(0, 256, (images, side, side), np.uint8))
    table = FeatureTable(store, tuple((key,) for key in keys), tuple(range(images)), ())
    labels = np.arange(images, dtype=np.int64) % 2
    return Squares(table, labels, np.full_like(labels, UNKNOWN))


def time_steps(schedule: PhaseSchedule, config: TrainConfig, steps: int) -> list[float]:
    """Seconds of each step: the next batch, and one update of all weights by it."""
    keras, phase = load_keras(), schedule.phase(0)
    phase.model.compile(
        optimizer=build_optimizer(schedule.trainable(), config.fit, schedule.factors),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        auto_scale_loss=False,
    )
    seconds = []
    batches = chain.from_iterable(phase.batches(epoch) for epoch in count())
    began = time.perf_counter()
    for inputs, labels in islice(batches, steps):
        phase.model.train_on_batch(inputs, labels[:, 1:])
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    return seconds


def in_its_own_process(way: Way, asked: argparse.Namespace) -> dict[str, Any]:
    """Run one way apart: Keras takes one backend per process."""
    command = [sys.executable, __file__, "--way", str(WAYS.index(way))]
    command += ["--batch", str(asked.batch), "--steps", str(asked.steps)]
    command += ["--backbone", asked.backbone]
    command += ["--sizes", *map(str, asked.sizes)]
    environment = os.environ | {"KERAS_BACKEND": way.backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(found: dict[Way, dict[str, Any]], absent: list[str], asked: argparse.Namespace) -> str:
    """The result as Markdown."""
    base = found.get(WAYS[0], {}).get("rates")
    runtimes = "; ".join(dict.fromkeys(each["runtime"] for each in found.values()))
    lines = [
        f"Training step of `scratch`, {asked.backbone}, batch {asked.batch}, "
        f"median of {asked.steps}, "
        f"{date.today().isoformat()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}: {runtimes}.",
        *(f"Not installed: {backend}." for backend in absent),
        "",
        "| images/s (ratio) | " + " | ".join(f"{size} px" for size in asked.sizes) + " |",
        "| --- " * (1 + len(asked.sizes)) + "|",
    ]
    for way, each in found.items():
        cells = [f"{rate:.1f}" for rate in each["rates"]]
        if base:
            pairs = zip(each["rates"], base, strict=True)
            ratios = [f"{rate / reference:.2f} ×" for rate, reference in pairs]
            cells = [f"{c} ({r})" for c, r in zip(cells, ratios, strict=True)]
        lines.append(f"| {way.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 128, 160])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="timed, per size")
    parser.add_argument("--backbone", default="densenet121")
    parser.add_argument("--quick", action="store_true", help="32 px, batch 4, one step")
    parser.add_argument("--way", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.quick:
        asked.sizes, asked.batch, asked.steps = [32], 4, 1
    if asked.way is not None:
        way = WAYS[asked.way]
        print(json.dumps(measure(way, asked.sizes, asked.batch, asked.steps, asked.backbone)))
        return
    backends = dict.fromkeys(way.backend for way in WAYS)
    absent = [name for name in backends if importlib.util.find_spec(name) is None]
    ways = [way for way in WAYS if way.backend not in absent]
    print(report({way: in_its_own_process(way, asked) for way in ways}, absent, asked))


if __name__ == "__main__":
    main()
