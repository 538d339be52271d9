"""Train the model that ships, test it, and put it into the package: the one documented command.

    make default-model DATA=chest_xray        (or: python models/build_default.py DATA)

Reads the Kermany training folder (a folder with `train/`) and writes
`src/pneumoscope/models/default/`, the bundle with its model card. The TOML files beside this
script, with the seeds in them, decide everything. Run folders are kept, and an interrupted training
goes on.

1. `data split`: patients by blocks of ids; the last 10 % of each class are the test block, the 10 %
   before them validation.
2. The initial weights: four trainings of DenseNet121 (`first.toml` to `fourth.toml`), from random
   weights to stronger augmentation to other backgrounds.
3. The teachers: `crossvalidate` with EfficientNet-Lite0 from ImageNet weights, three folds by block
   (`teacher.toml`). The teacher of fold 1, which holds the last ids, has seen neither validation
   nor test; it teaches the student.
4. The student, which ships: DenseNet121 at 160 pixels (`student.toml`).
5. `evaluate` on the test block, as it is and with matched framing, and
   `benchmarks/perturbations.py`: what the card states, in float32.
6. `certify`: which lower precisions the model may run in, measured on validation.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pneumoscope.config import training_config
from pneumoscope.graph.archive import MAX_BYTES, WEIGHTS_MEMBER, read_member
from pneumoscope.inference.bundle import load_bundle, write_revised
from pneumoscope.storage import write_bytes

HERE = Path(__file__).parent
TARGET = HERE.parent / "src" / "pneumoscope" / "models" / "default"
_INDEXED = {
    "auc": "AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
    "f1": "F1",
}
_TRAINED = "## Training procedure"
_SHOWN = ("auc", "accuracy", "sensitivity", "specificity", "ppv", "npv", "brier", "ece")


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the Kermany folder")
    parser.add_argument("--out", type=Path, default=Path("runs/default"), help="folder of the run")
    arguments = parser.parse_args()
    build(arguments.data, arguments.out)


def build(data: Path, out: Path) -> None:
    """Split, train, test and install; finished steps are not done again."""
    out.mkdir(parents=True, exist_ok=True)
    split, run = out / "split.csv", out / "run"
    if not split.exists():
        _pneumoscope("data", "split", data, "--out", split, "--val", 0.1, "--test", 0.1,
                     "--by", "block")  # fmt: skip
    networks = [out / name for name in ("first", "second", "third", "fourth")]
    first, second, third, fourth = networks
    mean = out / "mean.weights.h5"
    _train(split, first, "first.toml")
    _train(split, second, "second.toml", "--weights", first)
    write_mean([_weights(load_bundle(each).weights[0]) for each in (first, second)], mean)
    _train(split, third, "third.toml", "--weights", mean)
    _train(split, fourth, "fourth.toml", "--weights", third)
    teachers = out / "teachers"
    if not (teachers / "report.html").exists():
        resume = ["--resume"] if (teachers / "folds.csv").exists() else []
        _pneumoscope("crossvalidate", data, "--folds", 3, "--by", "block", "--out", teachers,
                     "--config", HERE / "teacher.toml", *resume)  # fmt: skip
    _train(split, run, "student.toml", "--weights", fourth, "--teacher", teachers / "fold-1")
    _pneumoscope("evaluate", split, "--model", run, "--out", out / "test")
    script = HERE.parent / "benchmarks" / "perturbations.py"
    table = out / "perturbations.md"
    _run([sys.executable, str(script), str(split), "--model", str(run), "--out", str(table)])
    bundle = load_bundle(run)
    card = bundle.card.read_text(encoding="utf-8")
    metrics = json.loads((out / "test" / "metrics.json").read_text(encoding="utf-8"))
    told = _told(card, metrics, table.read_text(encoding="utf-8"))
    write_revised(out / "told", bundle, bundle.manifest, told)
    _pneumoscope("certify", split, "--model", out / "told", "--out", TARGET)
    size = sum(path.stat().st_size for path in TARGET.iterdir()) / 1e6
    print(f"{TARGET}: {size:.1f} MB", file=sys.stderr)


def write_mean(weights: Sequence[bytes], target: Path) -> None:
    """The mean of each weight of networks of one architecture, stored as the first one's are.

    It is worth something where the networks lie in one valley, as one does that was trained on from
    the other: Wortsman et al., "Model soups", arXiv:2203.05482.
    """
    content = io.BytesIO(weights[0])
    with ExitStack() as opened:
        mean = opened.enter_context(h5py.File(content, "r+"))
        others = [opened.enter_context(h5py.File(io.BytesIO(each))) for each in weights[1:]]

        def average(name: str, found: object) -> None:
            if isinstance(found, h5py.Dataset):
                arrays = [each[name][()].astype(np.float64) for each in (mean, *others)]
                # NumPy rounds: HDF5 errs where a number lies midway between two of half precision.
                found[...] = np.mean(arrays, axis=0).astype(found.dtype)

        mean.visititems(average)
    write_bytes(target, content.getvalue())


def _weights(network: Path) -> bytes:
    """The HDF5 file inside a bundle's network."""
    return read_member(network, WEIGHTS_MEMBER, MAX_BYTES)


def _train(split: Path, out: Path, config: str, *others: object) -> None:
    """Train, go on with what was interrupted, or leave what is finished."""
    if (out / "report.html").exists():
        return
    resume = ["--resume"] if (out / "config.toml").exists() else []
    _pneumoscope("train", split, "--out", out, "--config", HERE / config, *others, *resume)


def _pneumoscope(*arguments: object) -> None:
    _run([sys.executable, "-m", "pneumoscope", *map(str, arguments)])


def _run(command: list[str]) -> None:
    print("+", shlex.join(command), file=sys.stderr)
    subprocess.run(command, check=True)


def _told(card: str, metrics: dict[str, Any], table: str) -> str:
    """The run's card with what the test block and its changed copies scored, and the limits."""
    fragment = (HERE / "where_it_fails.md").read_text(encoding="utf-8")
    rows = "\n".join(
        f"| {name} | {each['value']:.4f} | {each['low']:.4f} to {each['high']:.4f} |"
        for name in _SHOWN
        if (each := metrics["metrics"][name])["value"] is not None
    )
    counts = metrics["confusion_matrix"]
    tested = (
        "## Tested on patients that it never saw\n\n"
        f"The last 10 % of patient ids of each kind: {metrics['n']} X-rays of "
        f"{metrics['patients']} patients, {metrics['positives']} with pneumonia; "
        f"the input check rejected {metrics['refused'] or 'none'}. They were held out from "
        "training, calibration and threshold. But the model was selected among ten candidates, and "
        "the rule of its threshold among two, with these results in view, so they are slightly "
        "optimistic. They are of the same hospital as the training images.\n\n"
        f"| Metric | Value | 95 % interval |\n| --- | ---: | ---: |\n{rows}\n\n"
        f"True negatives {counts['tn']}, false positives {counts['fp']}, false negatives "
        f"{counts['fn']}, true positives {counts['tp']}.\n\n"
        f"### The same X-rays, changed\n\n{table.strip()}\n\n{fragment.strip()}\n\n"
    )
    first, second, third = (
        training_config(file=HERE / f"{name}.toml").fit.epochs
        for name in ("first", "second", "third")
    )
    beginning = (
        "Its initial weights are those of the model that shipped before it, which was trained on "
        f"the same patients: {third} epochs from the mean of two networks, the second of which was "
        f"trained on from the first ({first} and {second} epochs; `models/` in the repository)."
    )
    card = card.replace(_TRAINED, f"{_TRAINED}\n\n{beginning}", 1)
    before, heading, after = _indexed(card, metrics).partition("## Limitations")
    return before + tested + heading + after


def _indexed(card: str, metrics: dict[str, Any]) -> str:
    """The card with the test's numbers in its front matter: what lists of models show of it."""
    card = card.replace('name: "split.csv"', 'name: "training folder, last 10 % of patient ids"')
    for name, shown in _INDEXED.items():
        value = f"{metrics['metrics'][name]['value']:.4f}"
        card, found = re.subn(rf'(name: "{shown}"\n +value: )[\d.]+', rf"\g<1>{value}", card)
        if found != 1:
            raise ValueError(f"the card's front matter names {shown} {found} times, wanted once")
    return card


if __name__ == "__main__":
    main()
