"""Backbones side by side: frozen and fine-tuned from random weights, on drawn X-rays.

    python benchmarks/backbones.py OUT [--backbones NAME,NAME,…] [--images 1000] [--size 96]
        [--epochs 8]

Draws the X-rays once and splits them by patient. For each backbone and recipe one `pneumoscope
train` runs in a process of its own, from an empty cache to the bundle, and `pneumoscope evaluate`
scores the test split. Speed is that of the engine in float32 on batches of 32, the best of
five passes. A run that is in OUT already is not repeated. Prints Markdown; `OUT/heatmaps.png` shows
the heatmap of each fine-tuned network on the same four drawings.

Random weights show how a network of this kind is handled (time, speed, size, whether it learns from
800 images at all), not how good it is with ImageNet weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pneumoscope.inference.bundle import load_bundle
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.report.formatting import count

BACKBONES = (
    *("mobilenetv3small", "mobilenetv2", "efficientnetb0", "efficientnet-lite0"),
    *("densenet121", "resnet50v2", "convnexttiny"),
)
RECIPES = ("frozen", "finetune")
BATCH = 32
SHOWN = 4
_SIDE, _ROW = 192, 20


def command(*arguments: str | Path) -> float:
    """Run pneumoscope; returns the seconds that it took."""
    began = time.perf_counter()
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
    subprocess.run(
        [sys.executable, "-m", "pneumoscope", *map(str, arguments), "-q"],
        check=True,
        env=environment,
    )
    return time.perf_counter() - began


def trained(out: Path, split: Path, backbone: str, recipe: str, given: Any) -> dict[str, Any]:
    """The results of one backbone under one recipe; trains it unless it is there already."""
    run = out / f"{backbone}-{recipe}"
    done = run / "benchmark.json"
    if not done.exists():
        config = out / f"{backbone}-{recipe}.toml"
        config.write_text(
            f"[preprocess]\nsize = {given.size}\n\n[fit]\nepochs = {given.epochs}\n", "utf-8"
        )
        seconds = command(
            *("train", split, "--out", run, "--config", config, "--recipe", recipe),
            *("--backbone", backbone, "--weights", "none", "--views", "1", "--keep-val"),
        )
        tested = out / f"{backbone}-{recipe}-test"
        command("evaluate", split, "--model", run, "--out", tested)
        auc = json.loads((tested / "metrics.json").read_text("utf-8"))["metrics"]["auc"]
        done.write_text(json.dumps({"seconds": seconds, "auc": auc}), "utf-8")
    found: dict[str, Any] = json.loads(done.read_text("utf-8"))
    return found


def speed(run: Path, size: int) -> float:
    """Images per second of the engine in float32."""
    backend = OpenVinoBackend.load(load_bundle(run), "f32")
    images = np.random.default_rng(0).standard_normal((BATCH, size, size, 3)).astype(np.float32)
    backend.run(images)
    best = min(_seconds(backend, images) for _ in range(5))
    return BATCH / best


def _seconds(backend: OpenVinoBackend, images: np.ndarray) -> float:
    began = time.perf_counter()
    backend.run(images)
    return time.perf_counter() - began


def sheet(out: Path, drawings: list[Path], backbones: list[str]) -> Path:
    """One picture of the heatmaps of each fine-tuned network."""
    picture = Image.new("RGB", (SHOWN * _SIDE, len(backbones) * (_SIDE + _ROW)), "white")
    draw = ImageDraw.Draw(picture)
    for row, backbone in enumerate(backbones):
        folder = out / f"{backbone}-heatmaps"
        if not folder.exists():
            model = out / f"{backbone}-finetune"
            shown = map(str, drawings)
            command(
                *("predict", *shown, "--no-input-check", "--model", str(model)),
                *("--out", out / f"{backbone}.csv", "--heatmaps", folder),
            )
        top = row * (_SIDE + _ROW)
        draw.text((4, top + 4), backbone, fill="black")
        for column, path in enumerate(sorted(folder.glob("*.png"))[:SHOWN]):
            with Image.open(path) as heatmap:
                square = heatmap.convert("RGB").resize((_SIDE, _SIDE))
            picture.paste(square, (column * _SIDE, top + _ROW))
    picture.save(out / "heatmaps.png")
    return out / "heatmaps.png"


def main() -> None:
    """Train all, print the table, draw the heatmaps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    out, backbones = given.out, given.backbones.split(",")
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PNEUMOSCOPE_CACHE"] = str(out / "cache")
    drawn, split = out / "drawn", out / "split.csv"
    if not split.exists():
        command("data", "phantom", "--out", drawn, "--n", str(given.images))
        command("data", "split", drawn, "--out", split, "--val", "0.15", "--test", "0.2")
    print(f"{date.today()}, {count(given.images)} drawn X-rays, {given.size} px\n")
    print("| backbone | bundle | frozen: AUC | time | fine-tuned: AUC | time | images/s, float32 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for backbone in backbones:
        cells = [f"`{backbone}`"]
        rows = [trained(out, split, backbone, recipe, given) for recipe in RECIPES]
        network = next((out / f"{backbone}-finetune" / "model").glob("*.keras"))
        cells.append(f"{network.stat().st_size / 1e6:.1f} MB")
        for row in rows:
            auc = row["auc"]
            cells.append(f"{auc['value']:.3f} ({auc['low']:.3f}–{auc['high']:.3f})")
            cells.append(f"{row['seconds']:.0f} s")
        cells.append(f"{speed(out / f'{backbone}-finetune', given.size):.0f}")
        print("| " + " | ".join(cells) + " |", flush=True)
    drawings = sorted(drawn.rglob("PNEUMONIA/*.png"))[:SHOWN]
    print(f"\nheatmaps: {sheet(out, drawings, backbones)}")


if __name__ == "__main__":
    main()
