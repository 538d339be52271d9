"""Training the frozen recipe: stock Keras `fit` against pneumoscope, same data, one run.

    python benchmarks/train_frozen.py DATA [--views 1 4] [--epochs 10] [--limit N] [--keep DIR]
        [--timed-epochs N]

Stock: what a user would write. A tf.data pipeline from files, augmentation layers, DenseNet121
frozen in the graph, GAP, Dropout, Dense, Dense; `fit` with class weights, early stopping off, so a
full forward pass of every image in every epoch. Ours: `pneumoscope train --recipe frozen`, from an
empty cache to bundle, evaluation and report. Both start from the same random backbone and split,
each in a process of its own on TensorFlow; wall time counts the whole process. With
`--timed-epochs` stock runs so many epochs alone, and each of the others counts what the last of
them took; the output states it. Prints Markdown, processor time beside wall time.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from pneumoscope.config import SplitConfig, TrainConfig
from pneumoscope.data.index import index
from pneumoscope.data.splits import with_usable_validation, write_split
from pneumoscope.records import Dataset

BATCH = 32

ON_TENSORFLOW = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
"""Both sides on the same backend, whatever else is installed."""


def stock(split_csv: Path, epochs: int) -> dict[str, Any]:
    """The recipe as a user would write it with Keras alone; returns the best validation AUC."""
    import keras
    import tensorflow as tf

    from pneumoscope.training.backbones import build_backbone
    from pneumoscope.training.network import initialise_randomly

    def load(path: Any, label: Any) -> tuple[Any, Any]:
        grey = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(grey, (224, 224)), label

    def dataset(name: str, shuffle: bool) -> tuple[Any, list[int]]:
        with split_csv.open() as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == name]
        paths = [str(split_csv.parent / row["path"]) for row in rows]
        labels = [int(row["label"] == "PNEUMONIA") for row in rows]
        files = tf.data.Dataset.from_tensor_slices((paths, labels))
        if shuffle:
            files = files.shuffle(len(paths), seed=0)
        mapped = files.map(load, num_parallel_calls=tf.data.AUTOTUNE)
        return mapped.batch(BATCH).prefetch(tf.data.AUTOTUNE), labels

    train, labels = dataset("train", True)
    val, _ = dataset("val", False)
    backbone = build_backbone(224)
    initialise_randomly(backbone, 0)
    layers = keras.layers
    image = keras.Input((224, 224, 3))
    x = image
    for change in (
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(10 / 360),
        layers.RandomTranslation(0.08, 0.08),
        layers.RandomZoom(0.15),
        layers.RandomContrast(0.2),
    ):
        x = change(x)
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.0524, 0.0502, 0.0506])(x)
    x = backbone(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.4)(x)
    x = layers.Dense(256, activation="relu")(x)
    model = keras.Model(image, layers.Dense(1, activation="sigmoid")(x))
    model.compile("adam", "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
    positive = sum(labels) / len(labels)
    weights = {0: 0.5 / (1 - positive), 1: 0.5 / positive}
    ends = [(time.monotonic(), time.process_time())]
    fitted = model.fit(
        train,
        validation_data=val,
        epochs=epochs,
        class_weight=weights,
        verbose=2,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: ends.append((time.monotonic(), time.process_time()))
            )
        ],
    )
    last = [after - before for before, after in zip(ends[-2], ends[-1], strict=True)]
    return {
        "val_auc": max(fitted.history["val_auc"]),
        "epochs": epochs,
        "last_epoch": {"seconds": last[0], "cpu_seconds": last[1]},
    }


def ours(split_csv: Path, views: int, folder: Path) -> dict[str, Any]:
    """`pneumoscope train` as a user runs it, from an empty cache."""
    command = [
        *(sys.executable, "-m", "pneumoscope", "train", str(split_csv), "--out", str(folder)),
        *("--recipe", "frozen", "--weights", "none", "--views", str(views), "--json"),
    ]
    environment = os.environ | ON_TENSORFLOW | {"PNEUMOSCOPE_CACHE": str(folder) + "-cache"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    document = json.loads(done.stdout)
    return {
        "val_auc": document["validation"]["metrics"]["auc"]["value"],
        "epochs": document["epochs"],
        "seconds_per_stage": document["seconds"],
        "peak_mb": document["peak_memory_mb"],
    }


def timed(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `run`, which waits for one child process, found, and what that cost altogether."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    found = run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.monotonic() - started, "cpu_seconds": used} | found


def lengthened(row: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Stock's cost if it had run so many epochs, each further one taking as long as its last."""
    more = epochs - row["epochs"]
    longer = {name: row[name] + more * each for name, each in row["last_epoch"].items()}
    return row | longer | {"epochs": f"{epochs}, of which {row['epochs']} ran" if more else epochs}


def stock_in_its_own_process(split_csv: Path, epochs: int) -> dict[str, Any]:
    """Run `stock` apart, so that its memory and its start-up count as ours do."""
    command = [sys.executable, __file__, str(split_csv), "--stock-only", "--epochs", str(epochs)]
    done = subprocess.run(
        command, env=os.environ | ON_TENSORFLOW, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def prepare(data: Path, limit: int, out: Path) -> int:
    """Write the split that both sides use; returns the number of images."""
    dataset = index(data)
    records = dataset.records
    if limit:
        step = max(len(records) // limit, 1)
        records = records[::step][:limit]
    dealt, _ = with_usable_validation(
        Dataset(dataset.root, records), SplitConfig(seed=TrainConfig().seed), keep_val=False
    )
    write_split(out, dealt)
    return len(records)


def report(rows: list[dict[str, Any]], images: int) -> str:
    """The result as Markdown."""
    base = rows[0]["seconds"]
    lines = [
        f"Frozen recipe, {images} images, {date.today().isoformat()}, {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}.",
        "",
        "| way | epochs | seconds | ratio | processor seconds | ratio | best validation AUC |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['way']} | {row['epochs']} | {row['seconds']:.0f} | "
            f"{base / row['seconds']:.1f} × | {row['cpu_seconds']:.0f} | "
            f"{rows[0]['cpu_seconds'] / row['cpu_seconds']:.1f} × | {row['val_auc']:.4f} |"
        )
    for row in rows[1:]:
        lines += ["", f"{row['way']}: stages {row['seconds_per_stage']}, peak {row['peak_mb']} MB"]
    return "\n".join(lines)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--timed-epochs", type=int, help="epochs of stock that are run; else all")
    parser.add_argument("--limit", type=int, default=0, help="images; 0 takes all")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in")
    parser.add_argument("--stock-only", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stock_only:
        print(json.dumps(stock(asked.data, asked.epochs)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = asked.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        split_csv = folder / "split.csv"
        images = prepare(asked.data, asked.limit, split_csv)
        rows = []
        for views in asked.views:
            run = partial(ours, split_csv, views, folder / f"ours-{views}")
            rows.append({"way": f"pneumoscope, K={views}"} | timed(run))
        timed_epochs = min(asked.timed_epochs or asked.epochs, asked.epochs)
        found = timed(partial(stock_in_its_own_process, split_csv, timed_epochs))
        rows.insert(0, {"way": "stock Keras"} | lengthened(found, asked.epochs))
        print(report(rows, images))


if __name__ == "__main__":
    main()
