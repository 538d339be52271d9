"""Train the model that ships, test it, and put it into the package: the one documented command.

    make default-model DATA=chest_xray        (or: python models/build_default.py DATA)

Reads the Kermany training folder (a folder with `train/`) and writes
`src/pneumoscope/models/default/`, the bundle with its model card. The TOML files beside this
script, with the seeds in them, decide everything. Run folders are kept, and an interrupted training
goes on.

1. `data split`: patients by blocks of ids; the last 10 % of each class are the test block, the 10 %
   before them validation.
2. `train` on the rest, five times: from random weights; on from there, with stronger augmentation;
   a few epochs from the mean of both; on from there, with other backgrounds around the lungs; and
   the last block alone, at twice its resolution, guided to the lungs.
3. `evaluate` on the test block, as it is and with matched framing, and
   `benchmarks/perturbations.py`: what the card states, in float32.
4. `certify`: which lower precisions the model may run in, measured on validation.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from pneumoscope.config import training_config
from pneumoscope.data.index import index
from pneumoscope.evaluation.evaluate import Evaluation, from_metrics_json
from pneumoscope.graph.archive import MAX_BYTES, WEIGHTS_MEMBER, read_member
from pneumoscope.images.lungs import MATCHED_SHARES
from pneumoscope.inference.bundle import load_bundle, write_revised
from pneumoscope.report.formatting import interval, number
from pneumoscope.report.model_card import HeldOutTest
from pneumoscope.storage import write_bytes
from pneumoscope.workflows.documentation import card_text

HERE = Path(__file__).parent
TARGET = HERE.parent / "src" / "pneumoscope" / "models" / "default"
_DESCRIPTION = (
    "The last 10 % of patient ids of each class: {n} X-rays of {patients} patients, {positives} "
    "with pneumonia; the input check rejected {refused}. They were held out from training, "
    "calibration and threshold. But the model was selected among nineteen candidates with "
    "results on these images in view, so the AUC is slightly optimistic. Its threshold was chosen "
    "on validation images with matched framing, because a threshold chosen on images as they are "
    "counts on the framing of this hospital; on these images, which share it, that costs "
    "sensitivity. They are "
    "from the same hospital as the training images."
)


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the Kermany folder")
    parser.add_argument("--out", type=Path, default=Path("runs/default"), help="folder of the run")
    arguments = parser.parse_args()
    build(arguments.data, arguments.out)


def build(data: Path, out: Path) -> None:
    """Split, train, test and install; finished steps are not done again."""
    if found := [name for name in ("val", "test") if (data / name).exists()]:
        raise SystemExit(
            f"{data}: found {' and '.join(found)} beside train, wanted train alone: `data split "
            "--test` pools all splits, so the official test images would be trained on"
        )
    out.mkdir(parents=True, exist_ok=True)
    split, run = out / "split.csv", out / "run"
    if not split.exists():
        _pneumoscope("data", "split", data, "--out", split, "--val", 0.1, "--test", 0.1,
                     "--by", "block")  # fmt: skip
    first, second, third, fourth = (out / each for each in ("first", "second", "third", "fourth"))
    mean = out / "mean.weights.h5"
    _train(split, first, "first.toml")
    _train(split, second, "second.toml", "--weights", first)
    write_mean([_weights(load_bundle(each).weights[0]) for each in (first, second)], mean)
    _train(split, third, "third.toml", "--weights", mean)
    _train(split, fourth, "fourth.toml", "--weights", third)
    _train(split, run, "default.toml", "--weights", fourth)
    publish(split, run, out)


def publish(split: Path, run: Path, out: Path) -> None:
    """Test a finished run on the test block, write its card, and install it with certificates."""
    tested = out / "tested"
    write_tested(split, run, tested)
    _pneumoscope("certify", split, "--model", tested, "--out", TARGET)
    size = sum(path.stat().st_size for path in TARGET.iterdir()) / 1e6
    print(f"{TARGET}: {size:.1f} MB", file=sys.stderr)


def write_tested(split: Path, model: Path, target: Path) -> None:
    """A copy of a model, a run or a bundle, whose card states the results on the test block.

    The results lie beside `target`; those that are there already are taken.
    """
    out = target.parent
    _evaluate(split, model, out / "test")
    matched = {}
    for share in MATCHED_SHARES:
        folder = out / f"matched-{share:g}"
        _evaluate(split, model, folder, "--framing", "matched", "--framing-share", share)
        matched[share] = _read(folder)
    table = out / "perturbations.md"
    if not table.exists():
        script = HERE.parent / "benchmarks" / "perturbations.py"
        _run([sys.executable, str(script), str(split), "--model", str(model), "--out", str(table)])
    bundle, config = load_bundle(model), training_config(file=HERE / "default.toml")
    tested = _read(out / "test")
    changed = table.read_text(encoding="utf-8").strip()
    held_out = HeldOutTest(
        _DESCRIPTION.format(
            n=tested.n, patients=tested.patients, positives=tested.positives,
            refused=tested.refused or "none",
        ),
        tested.metrics,
        f"### The same X-rays with matched framing\n\n{_framing(tested, matched)}\n\n"
        f"### The same X-rays, changed\n\n{changed}",
        (HERE / "where_it_fails.md").read_text(encoding="utf-8").strip(),
        "training folder, last 10 % of patient ids",
    )  # fmt: skip
    card = card_text(
        "Official training folder, split by blocks of patient ids",
        index(split),
        bundle.manifest,
        config,
        from_metrics_json(bundle.manifest.validation),
        config.fit.epochs,
        held_out,
    )
    write_revised(target, bundle, bundle.manifest, card)


def _evaluate(split: Path, run: Path, out: Path, *options: object) -> None:
    if not (out / "metrics.json").exists():
        _pneumoscope("evaluate", split, "--model", run, "--out", out, *options)


def _read(folder: Path) -> Evaluation:
    return from_metrics_json(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


def _framing(tested: Evaluation, matched: dict[float, Evaluation]) -> str:
    """A table: how much of the discrimination is left where framing can't tell the classes."""
    rows = [("as they are", tested)]
    rows += [(f"lungs fill {share:g} of each side", each) for share, each in matched.items()]
    lines = ["| images | AUC | sensitivity | specificity |", "| --- | --- | --- | --- |"]
    for title, found in rows:
        cells = (found.metrics[name] for name in ("auc", "sensitivity", "specificity"))
        shown = " | ".join(f"{number(each.value)} ({interval(each)})" for each in cells)
        lines.append(f"| {title} | {shown} |")
    return "\n".join(lines)


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


if __name__ == "__main__":
    main()
