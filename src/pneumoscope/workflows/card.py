"""The model card of a freshly trained bundle, filled from the run's own records."""

from __future__ import annotations

from pneumoscope.config import TrainConfig
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.records import Dataset
from pneumoscope.report.formatting import plural
from pneumoscope.report.model_card import HeldOutTest, ModelCardContent, model_card
from pneumoscope.workflows.run_folder import is_kermany, split_counts

_NORMALISATION = {
    "imagenet": "per channel by ImageNet's mean and deviation",
    "standardise": "each image to mean 0 and deviation 1",
}

_NAMES = {"densenet121": "DenseNet121", "efficientnet-lite0": "EfficientNet-Lite0"}
"""Backbones with a name of their own; others are named as `--backbone` takes them."""

_TRAINED = {
    "frozen": "frozen",
    "finetune": "trained from block {unfreeze} on, batch normalisation kept as it was",
    "scratch": "trained whole",
}


def card_text(
    data_name: str,
    dataset: Dataset,
    manifest: BundleManifest,
    config: TrainConfig,
    evaluation: Evaluation,
    epochs: int,
    held_out: HeldOutTest | None = None,
) -> str:
    """`MODEL_CARD.md` of a run."""
    size = config.preprocess.size
    val = dataset.subset("val").records
    return model_card(
        ModelCardContent(
            name=f"pneumoscope-{config.recipe}",
            version=manifest.pneumoscope_version,
            architecture=_architecture(config),
            weights_origin=f"Initial weights: {manifest.initial_weights.origin}.",
            preprocessing=(
                "Decoded to grey; DICOM through its modality and VOI transformations.",
                f"{config.preprocess.fit.capitalize()} to {size}×{size} pixels.",
                f"Normalised {_NORMALISATION[config.preprocess.normalisation]}.",
            ),
            training=(
                *_training(config, epochs),
                f"Calibration and threshold were chosen on {manifest.threshold.chosen_on}.",
            ),
            data_name=data_name,
            kermany=is_kermany(dataset),
            counts=split_counts(dataset),
            evaluated_on="the validation patients, on whom calibration and threshold were chosen; "
            "expect less elsewhere",
            n=evaluation.n,
            patients=len({record.patient for record in val}),
            threshold=manifest.threshold.value,
            threshold_rule=manifest.threshold.rule,
            level=evaluation.interval.level,
            metrics=evaluation.metrics,
            fingerprint=manifest.training_data.fingerprint,
            held_out=held_out,
        )
    )


def _architecture(config: TrainConfig) -> str:
    fit, backbone = config.fit, _NAMES.get(config.backbone, config.backbone)
    trained = _TRAINED[config.recipe].format(unfreeze=config.finetune.unfreeze)
    text = (
        f"{backbone} without its top, {trained}, then GlobalAveragePooling2D, "
        f"Dropout({fit.dropout}), Dense({fit.hidden_units}, ReLU), Dense(1, sigmoid)."
    )
    if len(config.seeds) > 1:
        text += f" {len(config.seeds)} such networks; their probabilities are averaged."
    if config.flip:
        text += " Each image is answered together with its mirror image."
    return text


def _training(config: TrainConfig, epochs: int) -> tuple[str, ...]:
    """How it was trained, in order, one sentence each."""
    fit = config.fit
    kept = "the last epoch" if fit.keep == "last" else "the epoch of the best validation AUC"
    average = f", as a running average of weights (decay {fit.ema:g} per step)" if fit.ema else ""
    steps = (
        f"{epochs} epochs with Adam, largest step size {fit.learning_rate:g}, weight decay "
        f"{fit.weight_decay:g}, schedule {fit.schedule}; {kept} kept{average}."
    )
    if config.recipe == "scratch":
        sizes = " → ".join(str(size) for size in config.scratch.sizes)
        return (
            f"All layers from pixels, squares of {sizes} pixels one after the other, each image "
            "changed anew in every epoch: random resized crop, rotation, flip, contrast, gamma, "
            f"brightness, shading, blur and sharpening, {_further(config)}.",
            steps,
        )
    views = f"{config.views} views per training image, the first un-augmented."
    if config.recipe == "frozen":
        return (f"The head alone, on features of {views}", steps)
    return (f"The head on features of {views}", f"Then the blocks behind the boundary: {steps}")


def _further(config: TrainConfig) -> str:
    """What else is done to images and labels while every layer is trained; the rest is always."""
    said = "unsharp masking, " if config.distort.enhance else ""
    said += "JPEG, noise, borders, markers, erasing"
    if share := config.distort.surround:
        said += f"; what lies around the lungs another film's or painted over ({share:.0%} of them)"
    if share := config.distort.silence:
        said += f"; the lungs painted over, no answer wanted but the average ({share:.0%} of them)"
    if share := config.distort.reframe:
        said += f"; the field cut until the lungs fill a share drawn for all ({share:.0%} of them)"
    if config.distort.mix:
        said += "; then laid over another, labels too (mixup)"
    if weight := config.guidance.lungs:
        said += f"; heatmap energy outside the lungs penalised (weight {weight:g})"
    if config.teachers:
        said += (
            f"; distilled from {plural(len(config.teachers), 'teacher model')}: their predictions "
            f"are {config.guidance.teacher:.0%} of the target, the labels the rest"
        )
        if weight := config.guidance.teacher_maps:
            said += f", and its heatmaps are drawn towards theirs (weight {weight:g})"
    if config.even_kinds:
        said += "; each kind of pneumonia shown equally often"
    if config.kinds:
        said += "; the kind asked as a second question"
    return said
