"""Write the model card of a newly trained model from the records of its run."""

from __future__ import annotations

from pneumoscope.config import TrainConfig
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.records import Dataset
from pneumoscope.report.formatting import plural
from pneumoscope.report.model_card import HeldOutTest, ModelCardContent, model_card
from pneumoscope.workflows.run_folder import is_kermany, split_counts

_NORMALISATION = {
    "imagenet": "per channel by ImageNet's mean and standard deviation",
    "standardise": "each image to mean 0 and standard deviation 1",
}

_NAMES = {
    "densenet121": "DenseNet121",
    "densenet121-stride16": "DenseNet121 (last block at stride 16)",
    "efficientnet-lite0": "EfficientNet-Lite0",
}

_TRAINED = {
    "frozen": "frozen",
    "finetune": "trained from block {unfreeze} on, batch normalisation frozen",
    "scratch": "all layers trained",
}


def backbone_title(name: str) -> str:
    """A backbone as people write it; a rare one as `--backbone` takes it."""
    return _NAMES.get(name, name)


def card_text(
    data_name: str,
    dataset: Dataset,
    manifest: BundleManifest,
    config: TrainConfig,
    evaluation: Evaluation,
    epochs: int,
    held_out: HeldOutTest | None = None,
) -> str:
    """The text of `MODEL_CARD.md` of a run."""
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
            "expect lower values elsewhere",
            n=evaluation.n,
            patients=len({record.patient for record in val}),
            threshold=manifest.threshold.value,
            threshold_rule=manifest.threshold.rule,
            level=evaluation.interval.level,
            metrics=evaluation.metrics,
            fingerprint=manifest.training_data.fingerprint,
            held_out=held_out,
            backbone=config.backbone,
        )
    )


def _architecture(config: TrainConfig) -> str:
    fit, backbone = config.fit, backbone_title(config.backbone)
    trained = _TRAINED[config.recipe].format(unfreeze=config.finetune.unfreeze)
    if config.recipe == "scratch" and config.scratch.train_from:
        trained = f"trained behind the layer {config.scratch.train_from}"
    text = (
        f"{backbone} without its top, {trained}, then GlobalAveragePooling2D, "
        f"Dropout({fit.dropout}), Dense({fit.hidden_units}, ReLU), Dense(1, sigmoid)."
    )
    if len(config.seeds) > 1:
        text += f" {len(config.seeds)} such networks; their probabilities are averaged."
    if config.flip:
        text += " The prediction averages the image and its mirror image."
    return text


def _training(config: TrainConfig, epochs: int) -> tuple[str, ...]:
    """The steps of the training in order, one sentence each."""
    fit = config.fit
    kept = "the last epoch" if fit.keep == "last" else "the epoch of the best validation AUC"
    average = f", as a running average of weights (decay {fit.ema:g} per step)" if fit.ema else ""
    steps = (
        f"{epochs} epochs with Adam, largest step size {fit.learning_rate:g}, weight decay "
        f"{fit.weight_decay:g}, schedule {fit.schedule}; {kept} kept{average}."
    )
    if config.recipe == "scratch":
        first, several = config.scratch.train_from, len(config.scratch.sizes) > 1
        which = "All layers trained"
        if first:
            which = f"The layers behind {first} trained, those before it kept,"
        sizes = " → ".join(str(size) for size in config.scratch.sizes)
        after = ", one size after the other" if several else ""
        return (
            f"{which} on images of {sizes} pixels{after}, each image augmented "
            "anew in every epoch: random resized crop, rotation, flip, contrast, gamma, "
            f"brightness, shading, blur and sharpening, {_further(config)}.",
            steps,
        )
    views = f"{config.views} views per training image, the first un-augmented."
    if config.recipe == "frozen":
        return (f"The head only, on features of {views}", steps)
    return (f"The head on features of {views}", f"Then the unfrozen blocks: {steps}")


def _further(config: TrainConfig) -> str:
    """The optional augmentations and losses of `scratch`."""
    steps_text = "unsharp masking, " if config.distort.enhance else ""
    steps_text += "JPEG, noise, borders, markers, erasing"
    if share := config.distort.surround:
        steps_text += (
            f"; the background outside the lungs swapped or masked ({share:.0%} of images)"
        )
    if share := config.distort.silence:
        steps_text += (
            f"; the lungs masked, with the class average as target ({share:.0%} of images)"
        )
    if share := config.distort.reframe:
        steps_text += (
            f"; re-cut so that the lungs fill a random share of the frame ({share:.0%} of images)"
        )
    if config.distort.mix:
        steps_text += "; then mixup of images and labels"
    if weight := config.guidance.lungs:
        steps_text += f"; heatmap energy outside the lungs penalised (weight {weight:g})"
    if config.teachers:
        steps_text += (
            f"; distilled from {plural(len(config.teachers), 'teacher model')}: their predictions "
            f"are {config.guidance.teacher:.0%} of the target, the labels the rest"
        )
        if weight := config.guidance.teacher_maps:
            steps_text += f", and the heatmaps are matched to theirs (weight {weight:g})"
    if config.even_kinds:
        steps_text += "; subtypes of pneumonia sampled equally often"
    if config.kinds:
        steps_text += "; the subtype predicted by an auxiliary head"
    return steps_text
