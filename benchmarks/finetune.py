"""An epoch of fine-tuning from conv5: stock Keras against cached activations, same data, one run.

    python benchmarks/finetune.py DATA [--images N] [--views 1] [--epochs 1]

Stock: what a user would write. keras.applications' DenseNet121 with the layers before conv5 frozen
in the graph, batch normalisation in inference mode, the mission's head, `fit` on a tf.data pipeline
that keeps its decoded images in memory. Ours: the `finetune` recipe, `train_network` itself, from
an empty cache. Both train the same weights from the same random backbone on the same images in the
same batches, each in a process of its own on TensorFlow. The first epoch of each, in which
everything is compiled, does not count; of those after it the median does. An epoch of ours has
validation, the average of weights and the checkpoint in it, one of stock's validation. Prints
Markdown, and whether the ratio that issue 3 wants is reached.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from pneumoscope.config import RECIPES, TrainConfig
from pneumoscope.data.index import index
from pneumoscope.evaluation.metrics import auc
from pneumoscope.progress import SilentProgress
from pneumoscope.records import ImageRecord, Split
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.network import initialise_randomly
from pneumoscope.training.recipes import Job, train_network
from pneumoscope.training.runtime import describe_runtime, load_keras
from train_frozen import ON_TENSORFLOW, prepare

WANTED_RATIO = 3.0
"""Issue 3: what an epoch of stock Keras takes, over what one of ours does, at least."""

_SEED = 0


@dataclass
class Timed:
    """A task that a `Clock` watched: what it counted, and when it began, advanced and ended."""

    title: str
    unit: str
    marks: list[float] = field(default_factory=lambda: [time.perf_counter()])
    done: int = 0
    ended: float = math.nan

    def advance(self, count: int = 1, note: str = "") -> None:
        """Note the time, if anything was done."""
        if count:
            self.done += count
            self.marks.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds from each mark to the next one."""
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]


class Clock(SilentProgress):
    """A progress that shows nothing and remembers the times."""

    def __init__(self) -> None:
        self.tasks: list[Timed] = []

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Timed]:
        """Watch a task."""
        timed = Timed(title, unit)
        self.tasks.append(timed)
        yield timed
        timed.ended = time.perf_counter()

    def filling(self, title: str) -> tuple[int, float]:
        """How many images the tasks of this title computed, and in how many seconds."""
        found = [t for t in self.tasks if t.title.startswith(title)]
        return sum(t.done for t in found), sum(t.ended - t.marks[0] for t in found)


def recipe(asked: argparse.Namespace) -> TrainConfig:
    """`finetune`, with as many epochs as are timed and one before them; the head is not timed."""
    base = RECIPES["finetune"]
    return replace(
        base,
        weights="none",
        seed=_SEED,
        views=asked.views,
        preprocess=replace(base.preprocess, size=asked.size),
        fit=replace(base.fit, epochs=1 + asked.epochs, batch_size=asked.batch),
        finetune=replace(base.finetune, unfreeze="conv5", head_epochs=1),
    )


def split_of(split_csv: Path, name: Split) -> tuple[ImageRecord, ...]:
    """The images of one split."""
    return index(split_csv).subset(name).records


def ours(split_csv: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The recipe's own code, watched by a clock."""
    config, clock = recipe(asked), Clock()
    backbone = build_backbone(config.preprocess.size)
    initialise_randomly(backbone, _SEED)
    train, val = split_of(split_csv, "train"), split_of(split_csv, "val")
    folder = split_csv.parent
    job = Job(train, val, config, backbone, folder / "cache", folder, auc, clock)
    train_network(job)
    epochs = clock.tasks[-1]  # the second stage's: the recipe ends with it
    views, seconds = clock.filling("activations")
    return {
        "epochs": epochs.steps()[1:],
        "cached": views,
        "cache_seconds": seconds,
        "feature_seconds": clock.filling("features")[1],
        "images": [len(train), len(val)],
        "runtime": describe_runtime(),
    }


def stock(split_csv: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The same training as a user would write it with Keras alone."""
    keras = load_keras()
    config = recipe(asked)
    model = stock_model(config)
    model.compile("adam", "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
    train, val = split_of(split_csv, "train"), split_of(split_csv, "val")
    positive = sum(record.label for record in train) / len(train)
    clock = stock_clock()
    model.fit(
        stock_data(train, config, training=True),
        validation_data=stock_data(val, config, training=False),
        epochs=config.fit.epochs,
        class_weight={0: 0.5 / (1 - positive), 1: 0.5 / positive},
        callbacks=[clock],
        shuffle=False,  # the pipeline does
        verbose=0,
    )
    return {"epochs": clock.whole[1:], "training": clock.training[1:]}


def stock_model(config: TrainConfig) -> Any:
    """DenseNet121 of which conv5's convolutions train, and the mission's head."""
    keras = load_keras()
    layers, size = keras.layers, config.preprocess.size
    backbone = keras.applications.DenseNet121(
        include_top=False, weights=None, input_shape=(size, size, 3)
    )
    initialise_randomly(backbone, _SEED)
    reached = False
    for layer in backbone.layers:
        reached = reached or layer.name.startswith("conv5")
        layer.trainable = reached and not isinstance(layer, layers.BatchNormalization)
    image = keras.Input((size, size, 1))
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Concatenate()([x, x, x])
    x = layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.0524, 0.0502, 0.0506])(x)
    x = backbone(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(config.fit.dropout)(x)
    x = layers.Dense(config.fit.hidden_units, activation="relu")(x)
    return keras.Model(image, layers.Dense(1, activation="sigmoid")(x))


def stock_data(records: Sequence[ImageRecord], config: TrainConfig, *, training: bool) -> Any:
    """Decoded once and kept in memory; in training whole batches in a new order each epoch."""
    import tensorflow as tf

    size, batch = config.preprocess.size, config.fit.batch_size

    def load(path: Any, label: Any) -> tuple[Any, Any]:
        grey = tf.io.decode_jpeg(tf.io.read_file(path), channels=1)
        return tf.cast(tf.image.resize(grey, (size, size)), tf.uint8), label

    paths = [str(record.path) for record in records]
    labels = [record.label for record in records]
    files = tf.data.Dataset.from_tensor_slices((paths, labels))
    images = files.map(load, num_parallel_calls=tf.data.AUTOTUNE).cache()
    if training:
        images = images.shuffle(len(paths), seed=_SEED)
    return images.batch(batch, drop_remainder=training).prefetch(tf.data.AUTOTUNE)


def stock_clock() -> Any:
    """A callback that times each epoch, and the part of it before validation begins."""
    keras = load_keras()

    class EpochClock(keras.callbacks.Callback):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.whole: list[float] = []
            self.training: list[float] = []
            self._began = 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._began = time.perf_counter()

        def on_test_begin(self, logs: Any = None) -> None:
            self.training.append(time.perf_counter() - self._began)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.whole.append(time.perf_counter() - self._began)

    return EpochClock()


def report(mine: dict[str, Any], theirs: dict[str, Any], asked: argparse.Namespace) -> str:
    """The result as Markdown, the table last."""
    one, stock_one = statistics.median(mine["epochs"]), statistics.median(theirs["epochs"])
    stock_training = statistics.median(theirs["training"])
    ratio, strict = stock_one / one, stock_training / one
    verdict = "reached" if strict >= WANTED_RATIO else "NOT reached"
    fill = mine["cache_seconds"]
    gain = stock_one - one
    even = f"epoch {max(math.ceil(fill / gain), 1)}" if gain > 0 else "no epoch"
    trained, validated = mine["images"]
    return "\n".join(
        [
            f"Fine-tuning from conv5, {trained:,} images to train on and {validated:,} to validate "
            f"on, {asked.size} px, batch {asked.batch}, {date.today().isoformat()}, "
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"{mine['runtime']}.",
            "",
            f"Filling the cache once: {fill:.0f} s for {mine['cached']:,} activations, made up for "
            f"by {even}; the pooled features of the recipe's first stage: "
            f"{mine['feature_seconds']:.0f} s.",
            f"Against stock's epoch without its validation ({stock_training:.1f} s) the ratio is "
            f"{strict:.1f}; wanted {WANTED_RATIO:g} or more: {verdict}.",
            "",
            "| way | seconds per epoch | ratio |",
            "| --- | --- | --- |",
            f"| stock Keras (frozen layers in the graph) | {stock_one:.1f} | 1.0 × |",
            f"| pneumoscope, K={asked.views} | {one:.1f} | {ratio:.1f} × |",
        ]
    )


def in_its_own_process(part: str, split_csv: Path) -> dict[str, Any]:
    """Run one side apart, with the arguments of this process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--split", str(split_csv)]
    done = subprocess.run(
        command, env=os.environ | ON_TENSORFLOW, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=0, help="how many; 0 takes all")
    parser.add_argument("--views", type=int, default=1, help="of ours; stock has one")
    parser.add_argument("--epochs", type=int, default=1, help="timed, after the first one")
    parser.add_argument("--size", type=int, default=224, help="less only to try the script")
    parser.add_argument("--batch", type=int, default=RECIPES["finetune"].fit.batch_size)
    parser.add_argument("--part", choices=("ours", "stock"), help=argparse.SUPPRESS)
    parser.add_argument("--split", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        part = {"ours": ours, "stock": stock}[asked.part]
        print(json.dumps(part(asked.split, asked)))
        return
    with tempfile.TemporaryDirectory() as name:
        split_csv = Path(name) / "split.csv"
        prepare(asked.data, asked.images, split_csv)
        found = len(split_of(split_csv, "train"))
        if found < asked.batch:
            parser.error(f"--images: found {found} to train on, wanted a batch of {asked.batch}")
        mine = in_its_own_process("ours", split_csv)
        theirs = in_its_own_process("stock", split_csv)
        print(report(mine, theirs, asked))


if __name__ == "__main__":
    main()
