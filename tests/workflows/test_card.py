"""The card states of training what was done, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from pneumoscope.config import TrainConfig
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.inference.bundle import BundleManifest, InputCheck, OperatingPoint
from pneumoscope.workflows.documentation import _architecture, _operating_point, _training

SCRATCH = TrainConfig(recipe="scratch")
MANIFEST = BundleManifest(threshold=OperatingPoint(0.5, "for the test", "4 images"))
FURTHER = (
    "unsharp masking",
    "the background outside the lungs swapped or masked (30% of images)",
    "the lungs masked, with the class average as target (10% of images)",
    "mixup",
    "sampled equally often",
    "by an auxiliary head",
)


def test_it_names_each_further_change_that_was_made() -> None:
    plain = " ".join(_training(SCRATCH, 7))
    assert "7 epochs with Adam" in plain
    assert not any(words in plain for words in FURTHER)
    changes = (
        replace(SCRATCH, distort=replace(SCRATCH.distort, enhance=0.5)),
        replace(SCRATCH, distort=replace(SCRATCH.distort, surround=0.3)),
        replace(SCRATCH, distort=replace(SCRATCH.distort, silence=0.1)),
        replace(SCRATCH, distort=replace(SCRATCH.distort, mix=0.4)),
        replace(SCRATCH, even_kinds=True),
        replace(SCRATCH, kinds=0.2),
    )
    for words, config in zip(FURTHER, changes, strict=True):
        said = " ".join(_training(config, 7))
        assert [each for each in FURTHER if each in said] == [words]


def test_it_names_the_layers_that_were_trained() -> None:
    whole = _training(SCRATCH, 7)[0]
    assert whole.startswith("All layers trained on images of 96 → 112 → 128 pixels, one size after")
    last = replace(SCRATCH.scratch, train_from="pool4_pool", sizes=(112,), shares=(1.0,))
    assert _training(replace(SCRATCH, scratch=last), 7)[0].startswith(
        "The layers behind pool4_pool trained, those before it kept, on images of 112 pixels, each"
    )


def test_it_names_all_layers_where_finetune_trained_them() -> None:
    config = TrainConfig(recipe="finetune")
    blocks = _training(config, 7)
    assert blocks[1].startswith("Then the unfrozen blocks: 7 epochs with Adam")
    assert "augmented anew" not in " ".join(blocks)
    changed = replace(config.distort, silence=0.1, mix=0.4)
    config = replace(config, finetune=replace(config.finetune, unfreeze="all"), distort=changed)
    head, layers, steps = _training(config, 7)
    assert head.startswith("The head on features of 4 views")
    assert layers.startswith("Then all layers on images of 224 pixels, each image augmented anew")
    assert "the lungs masked" in layers
    assert "mixup" in layers
    assert steps.startswith("7 epochs with Adam")
    assert "all layers trained, batch normalisation frozen" in _architecture(config)
    assert "block all" not in _architecture(config)


def test_it_names_what_was_left_out_when_the_threshold_was_chosen() -> None:
    labels, scores = [0, 1], [0.1, 0.9]
    plain, some = (evaluate(labels, scores, refused=refused) for refused in (0, 2))
    checked = replace(MANIFEST, input_check=InputCheck(method="gaussians"))
    matched = replace(SCRATCH, match_val=True)
    said = f"Calibration and threshold were chosen on {MANIFEST.threshold.chosen_on}"
    assert _operating_point(MANIFEST, matched, plain) == f"{said}."
    assert _operating_point(checked, SCRATCH, some) == (
        f"{said}; left out: 2 images without a prediction."
    )
    assert _operating_point(checked, matched, some) == (
        f"{said}; left out: 2 images without a prediction and copies that the input check rejects."
    )
