"""The model card of a freshly trained bundle, filled from the run's own records."""

from __future__ import annotations

from pneumoscope.config import TrainConfig
from pneumoscope.evaluation.evaluate import Evaluation
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.records import Dataset
from pneumoscope.report.model_card import ModelCardContent, model_card
from pneumoscope.workflows.facts import is_kermany, split_counts

_NORMALISATION = {
    "imagenet": "per channel by ImageNet's mean and deviation",
    "standardise": "each image to mean 0 and deviation 1",
}


def card_text(
    data_name: str,
    dataset: Dataset,
    manifest: BundleManifest,
    config: TrainConfig,
    evaluation: Evaluation,
    epochs: int,
) -> str:
    """`MODEL_CARD.md` of a run."""
    size, fit = config.preprocess.size, config.fit
    val = dataset.subset("val").records
    return model_card(
        ModelCardContent(
            name=f"pneumoscope-{config.recipe}",
            version=manifest.pneumoscope_version,
            architecture=(
                "DenseNet121 without its top, frozen, then GlobalAveragePooling2D, "
                f"Dropout({fit.dropout}), Dense({fit.hidden_units}, ReLU), Dense(1, sigmoid)."
            ),
            weights_origin=f"Initial weights: {manifest.initial_weights.origin}.",
            preprocessing=(
                "Decoded to grey; DICOM through its modality and VOI transformations.",
                f"{config.preprocess.fit.capitalize()} to {size}×{size} pixels.",
                f"Normalised {_NORMALISATION[config.preprocess.normalisation]}.",
            ),
            training=(
                f"Features of {config.views} views per training image, the first un-augmented.",
                f"The head trained for {epochs} epochs with Adam, step size {fit.learning_rate:g}, "
                f"schedule {fit.schedule}; the epoch of the best validation AUC kept.",
                "Calibration and threshold were chosen on the validation patients alone.",
            ),
            data_name=data_name,
            kermany=is_kermany(dataset),
            counts=split_counts(dataset),
            evaluated_on="the validation patients, on whom epoch, calibration and threshold were "
            "chosen; expect less elsewhere",
            n=evaluation.n,
            patients=len({record.patient for record in val}),
            threshold=manifest.threshold.value,
            threshold_rule=manifest.threshold.rule,
            level=evaluation.interval.level,
            metrics=evaluation.metrics,
            fingerprint=manifest.training_data.fingerprint,
        )
    )
