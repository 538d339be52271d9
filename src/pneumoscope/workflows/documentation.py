"""Write the model card of a run, and fill in reporting checklists and the participant flow.

The checklists are CLAIM, TRIPOD+AI and STARD. Every statement comes from the files of the run;
what they don't contain stays empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from pneumoscope.config import IntervalConfig, TrainConfig
from pneumoscope.data.index import class_counts
from pneumoscope.data.public_tables import age_in_years
from pneumoscope.evaluation.evaluate import PROBABILITY_METRICS, Evaluation
from pneumoscope.evaluation.intervals import METRICS_METHOD
from pneumoscope.images.dicom.patient import describe_ages
from pneumoscope.inference.bundle import Abstention, BundleManifest
from pneumoscope.records import Dataset, Estimate, ImageRecord
from pneumoscope.report.checklist import Fact
from pneumoscope.report.content import Counted, Flow, Refusals
from pneumoscope.report.formatting import METRICS, in_words, interval, metric_text, number, plural
from pneumoscope.report.model_card import HeldOutTest, ModelCardContent, model_card
from pneumoscope.workflows.run_folder import (
    is_kermany,
    software_versions,
    split_counts,
    without_unused_subtypes,
)

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

_SHOWN_DIGITS = 16
"""Digits of a digest that are shown; the files hold all."""

_NORMALISED = {
    "imagenet": "normalised by ImageNet's mean and standard deviation per channel",
    "standardise": "each image normalised to mean 0 and standard deviation 1",
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
    """The text of `MODEL_CARD.md` of a run; `epochs` are those of the last stage."""
    size = config.preprocess.size
    config = without_unused_subtypes(config, dataset.subset("train").records)
    return model_card(
        ModelCardContent(
            name=f"pneumoscope-{config.recipe}",
            version=manifest.pneumoscope_version,
            architecture=_architecture(config),
            weights_origin=f"Initial weights: {manifest.initial_weights.origin}.",
            preprocessing=(
                "Decoded to grey; DICOM through its modality and VOI transformations.",
                f"{config.preprocess.fit.capitalize()} to {size}×{size} pixels, "
                f"{_NORMALISED[config.preprocess.normalisation]}.",
            ),
            training=(
                *_training(config, epochs),
                _operating_point(manifest, config, evaluation),
            ),
            data_name=data_name,
            kermany=is_kermany(dataset),
            counts=split_counts(dataset),
            evaluated_on="the validation patients, on whom calibration and threshold were chosen; "
            "expect lower values elsewhere",
            n=evaluation.n,
            patients=evaluation.patients,
            threshold=manifest.threshold.value,
            threshold_rule=manifest.threshold.rule,
            level=evaluation.interval.level,
            metrics=evaluation.metrics,
            fingerprint=manifest.training_data.fingerprint,
            held_out=held_out,
            backbone=config.backbone,
            made_for=describe_ages(manifest.ages) if manifest.ages else "",
        )
    )


def _operating_point(manifest: BundleManifest, config: TrainConfig, evaluation: Evaluation) -> str:
    """The images that calibration and threshold were chosen on, and those left out."""
    left_out = []
    if evaluation.refused:
        left_out.append(f"{plural(evaluation.refused, 'image')} without a prediction")
    if manifest.input_check.method != "none" and (config.match_val or config.perturb_val):
        left_out.append("copies that the input check rejects")
    text = f"Calibration and threshold were chosen on {manifest.threshold.chosen_on}"
    return f"{text}; left out: {' and '.join(left_out)}." if left_out else f"{text}."


def _architecture(config: TrainConfig) -> str:
    fit, backbone = config.fit, backbone_title(config.backbone)
    trained = _TRAINED[config.recipe].format(unfreeze=config.finetune.unfreeze)
    if config.recipe == "finetune" and config.finetune.unfreeze == "all":
        trained = "all layers trained, batch normalisation frozen"
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
    augmented = (
        "each image augmented anew in every epoch: random resized crop, rotation, flip, contrast, "
        f"gamma, brightness, shading, blur and sharpening, {_further(config)}."
    )
    if config.recipe == "scratch":
        first, several = config.scratch.train_from, len(config.scratch.sizes) > 1
        which = "All layers trained"
        if first:
            which = f"The layers behind {first} trained, those before it kept,"
        sizes = " → ".join(str(size) for size in config.scratch.sizes)
        after = ", one size after the other" if several else ""
        return f"{which} on images of {sizes} pixels{after}, {augmented}", steps
    views = f"{config.views} views per training image, the first un-augmented."
    if config.recipe == "frozen":
        return (f"The head only, on features of {views}", steps)
    head = f"The head on features of {views}"
    if config.finetune.unfreeze == "all":
        size = config.preprocess.size
        return (head, f"Then all layers on images of {size} pixels, {augmented}", steps)
    return (head, f"Then the unfrozen blocks: {steps}")


def _further(config: TrainConfig) -> str:
    """The optional augmentations and losses of training from pixels."""
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
            f"; cropped so that the lungs fill a random share of the frame ({share:.0%} of images)"
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


def flow_of(
    whole: Dataset,
    chosen: Dataset,
    split: str,
    data_name: str,
    evaluation: Evaluation,
    refusals: Sequence[Refusals],
    unlabelled: Sequence[ImageRecord] = (),
) -> Flow:
    """The flow of participants (STARD diagram).

    Args:
        whole: the whole data set.
        chosen: the evaluated records.
        split: the name of their split.
        data_name: name of the data in reports.
        evaluation: of the images with a prediction.
        refusals: counts of the images without one.
        unlabelled: images without a reference label, which are not in `whole`.
    """
    elsewhere = [
        Counted(f"split {c.split}" if c.split else "no split", c.images, c.patients)
        for c in class_counts(whole)
        if split not in ("all", c.split or "all")
    ]
    if unlabelled:
        elsewhere.append(_counted("no reference label", unlabelled))
    return Flow(
        found=_counted(data_name, (*whole.records, *unlabelled)),
        elsewhere=tuple(elsewhere),
        evaluated=_counted("all images" if split == "all" else f"split {split}", chosen.records),
        refused=tuple((r.reason.replace("_", " "), r.count) for r in refusals),
        scored=Counted("scored", evaluation.n, evaluation.patients),
        matrix=evaluation.confusion_matrix,
        threshold=evaluation.threshold,
    )


def _counted(name: str, records: Sequence[ImageRecord]) -> Counted:
    return Counted(name, len(records), len({record.patient for record in records}))


def checklist_facts(
    flow: Flow,
    whole: Dataset,
    chosen: Dataset,
    evaluation: Evaluation,
    manifest: BundleManifest | None,
    config: TrainConfig | IntervalConfig,
) -> dict[Fact, str]:
    """All facts that the files of a run contain, one or a few sentences each.

    Args:
        flow: the participant flow.
        whole: the whole data set.
        chosen: the evaluated records.
        evaluation: the results.
        manifest: of the model; `None` if the scores came from a table.
        config: the settings of the training or of the evaluation.
    """
    found: dict[Fact, str] = {
        **_on_data(flow, whole, chosen),
        **(_on_model(manifest, _chose(flow, config)) if manifest else {}),
        **(_on_training(config) if isinstance(config, TrainConfig) else {}),
        **_on_evaluation(flow, evaluation),
        **({} if manifest else _on_scores(flow, evaluation)),
    }
    return {fact: text for fact, text in found.items() if text}


def _chose(flow: Flow, config: TrainConfig | IntervalConfig) -> str:
    """That the evaluated images are those of the choice; empty if the run does not show it."""
    if isinstance(config, TrainConfig) and flow.evaluated.name == "split val":
        return " These are the evaluated images."
    return ""


def _on_data(flow: Flow, whole: Dataset, chosen: Dataset) -> dict[Fact, str]:
    known = "Kermany et al. 2018, doi:10.17632/rscbjbr9sj.2. " if is_kermany(whole) else ""
    parts = "; ".join(
        f"{c.split or 'no split'}: {c.normal:,} NORMAL and {c.pneumonia:,} PNEUMONIA X-rays of "
        f"{plural(c.patients, 'patient')}"
        for c in class_counts(whole)
    )
    refused = "; ".join(f"{name} ({count})" for name, count in flow.refused)
    several = len(class_counts(whole)) > 1
    return {
        "data": f"{flow.found.name}: {plural(flow.found.images, 'X-ray')} of "
        f"{plural(flow.found.patients, 'patient')}. {known}{' '.join(whole.warnings)}".strip(),
        "inputs": f"Evaluated: {flow.evaluated.name}, every image of it. The pixels alone are the "
        "predictor; the model has no other information about the patient.",
        "missing": "An image that is unreadable or rejected gets a reason instead of a prediction "
        f"and is excluded from all metrics. Here: {refused or 'none'}. The report counts them.",
        "partitions": f"{parts}. Listed image by image in split.csv or labels.csv."
        if several
        else "",
        "disjoint": "No patient is in two splits (checked on reading; otherwise the data are "
        "rejected). An image without a patient id counts as its own patient."
        if several
        else "",
        "characteristics": f"{parts}.{_patient_facts(chosen.records)}",
    }


def _patient_facts(records: Sequence[ImageRecord]) -> str:
    """Age, sex and view of the evaluated images, if the manifest has them."""
    parts = []
    stated = (age_in_years(record.extra.get("age", "")) for record in records)
    ages = [age for age in stated if age is not None]
    if ages:
        middle = f"{median(ages):.3g} ({min(ages):.3g} to {max(ages):.3g})"
        parts.append(f"age known for {len(ages):,}, median {middle}")
    for column in ("sex", "view"):
        counts = Counter(record.extra.get(column, "") for record in records)
        del counts[""]
        if counts:
            listed = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(4))
            parts.append(f"{column} {listed}")
    return f" Of the evaluated X-rays: {'; '.join(parts)}." if parts else ""


def _on_model(manifest: BundleManifest, chose: str = "") -> dict[Fact, str]:
    """Facts in a bundle; `chose`: a sentence about the images that calibration was chosen on."""
    net, seen = manifest.architecture, manifest.training_data
    backbone = backbone_title(net.name)
    point, calibration = manifest.threshold, manifest.calibration
    versions = ", ".join(f"{name} {version}" for name, version in software_versions().items())
    network = (
        f"{backbone} without its top, GlobalAveragePooling2D, Dropout({net.dropout:g}), Dense("
        f"{net.hidden_units}, ReLU), Dense(1, sigmoid); input {net.size}×{net.size} pixels"
    )
    mirrored = " Each prediction averages the image and its mirror image." if manifest.flip else ""
    chosen_on = f", chosen on {point.chosen_on}" if point.chosen_on else ""
    recalibrated = (
        "None."
        if calibration.method == "none"
        else f"Calibration by {calibration.method}: slope {calibration.slope:.3f}, intercept "
        f"{calibration.intercept:.3f} on the logit{chosen_on}.{chose}"
    )
    threshold = f"{point.value:.4g}: {point.rule}{chosen_on}."
    return {
        "technology": "Deep learning: a convolutional neural network "
        f"({backbone}) that classifies chest X-rays as pneumonia or normal.",
        "preprocessing": "Decoded to grey (DICOM through its modality and VOI transformations), "
        f"{manifest.preprocessing.fit} to {manifest.preprocessing.size}×"
        f"{manifest.preprocessing.size} pixels, "
        f"{_NORMALISED[manifest.preprocessing.normalisation]}.",
        "model": f"{network}.{mirrored}",
        "specification": f"{network}.{mirrored} All weights, preprocessing, calibration and "
        "threshold are in the bundle (bundle.json holds the SHA-256 of every file); made by "
        f"pneumoscope {manifest.pneumoscope_version}.",
        "software": f"{versions}.",
        "initial": f"{manifest.initial_weights.origin}; SHA-256 "
        f"{manifest.initial_weights.sha256[:_SHOWN_DIGITS]}…."
        if manifest.initial_weights.origin
        else "",
        "ensemble": f"{plural(manifest.members, 'network')}"
        f"{', probabilities averaged' if manifest.members > 1 else ''}.{mirrored}",
        "training": f"Trained on {plural(seen.images, 'X-ray')} ({seen.positives:,} PNEUMONIA) of "
        f"{plural(seen.patients, 'patient')}, fingerprint {seen.fingerprint[:_SHOWN_DIGITS]}…."
        if seen.images
        else "",
        "threshold": threshold,
        "output": "The calibrated probability of pneumonia; PNEUMONIA at or above the threshold "
        f"({threshold.rstrip('.')}).",
        "updating": recalibrated,
        "indeterminate": _abstention(manifest.abstention),
        "calculation": "By `pneumoscope predict` (or its Python and exported graphs) from the "
        "bundle; one image, one forward pass.",
    }


def _abstention(found: Abstention) -> str:
    if found.method == "none":
        return "The model does not abstain: every result is NORMAL or PNEUMONIA."
    chosen_on = f", chosen on {found.chosen_on}" if found.chosen_on else ""
    return (
        f"A result is indeterminate from {found.low:.4g} to below {found.high:.4g} ({found.rule}"
        f"{chosen_on}). All metrics apply the threshold, as if the model never abstained."
    )


def _on_scores(flow: Flow, evaluation: Evaluation) -> dict[Fact, str]:
    """Facts about a system of which only a table of scores is known; `""`: unknown."""
    scale, matrix = evaluation.scale, evaluation.confusion_matrix
    kind = (
        "a probability of pneumonia"
        if scale.probability
        else f"a score from {scale.low:g} to {scale.high:g}, higher for pneumonia"
    )
    at = f"{evaluation.threshold:.4g}: {evaluation.rule}"
    refused = "; ".join(f"{name} ({count})" for name, count in flow.refused)
    return {
        "inputs": "",
        "partitions": "",
        "disjoint": "",
        "explanation": "",
        "availability": "",
        "threshold": f"{at}.",
        "output": f"For each input {kind}, and PNEUMONIA at or above the threshold ({at}).",
        "missing": "A row without a score is excluded from all metrics and counted. Here: "
        f"{refused or 'none'}.",
        "errors": f"{plural(matrix.fn, 'missed case')} and {plural(matrix.fp, 'false alarm')}; "
        "predictions.csv names them.",
        "records": "predictions.csv holds every score with its label, metrics.json the results.",
        "software": f"Measured with pneumoscope {software_versions().get('pneumoscope', '')}.",
    }


def _on_training(config: TrainConfig) -> dict[Fact, str]:
    fit = config.fit
    kept = "last epoch" if fit.keep == "last" else "epoch with the best validation AUC"
    weighed = (
        "classes weighted to equal frequency in the loss; calibrated afterwards on validation"
        if fit.class_weights
        else "none"
    )
    seeds = ", ".join(str(seed) for seed in config.seeds or (config.seed,))
    return {
        "training": f"Recipe {config.recipe}, weights {config.weights}, views per image "
        f"{config.views}, at most {fit.epochs} epochs, batches of {fit.batch_size}, largest step "
        f"size {fit.learning_rate:g} ({fit.schedule}), weight decay {fit.weight_decay:g}, label "
        f"smoothing {fit.label_smoothing:g}, seed {seeds}. All settings: config.toml; every epoch: "
        "history.csv.",
        "selection": f"The weights of the {kept} were kept; calibration and threshold were "
        "chosen on validation. No test image took part.",
        "imbalance": f"{weighed[0].upper()}{weighed[1:]}.",
    }


def _on_evaluation(flow: Flow, evaluation: Evaluation) -> dict[Fact, str]:
    level, matrix = evaluation.interval.level, evaluation.confusion_matrix
    named = ", ".join(
        metric_text(name).label
        for name in METRICS
        if name in evaluation.metrics
        and (evaluation.scale.probability or name not in PROBABILITY_METRICS)
    )
    return {
        "sample": f"{plural(evaluation.n, 'X-ray')} of {plural(evaluation.patients, 'patient')}, "
        f"{evaluation.positives:,} with pneumonia "
        f"({100 * evaluation.positives / evaluation.n:.1f} %).",
        "measures": f"{named}; ROC and precision–recall curves"
        + (
            "; reliability curve, calibration slope and intercept."
            if evaluation.calibration
            else "."
        ),
        "uncertainty": f"{evaluation.interval.level:.0%} intervals: {METRICS_METHOD}, "
        f"{evaluation.interval.resamples:,} resamples, seed {evaluation.interval.seed}.",
        "internal": f"Evaluated on {flow.evaluated.name} of {flow.found.name}.",
        "flow": f"{flow.found.images:,} X-rays found, {flow.evaluated.images:,} evaluated, "
        f"{flow.scored.images:,} scored; see the diagram above and figures/flow.svg.",
        "performance": _listed(evaluation.metrics, level) + _calibrated(evaluation),
        "crosstab": f"Called PNEUMONIA: {matrix.tp} with it, {matrix.fp} without. Called NORMAL: "
        f"{matrix.tn} without, {matrix.fn} with it.",
        "subgroups": _subgroups(evaluation),
        "errors": f"{plural(matrix.fn, 'missed case')} and {plural(matrix.fp, 'false alarm')}; the "
        "largest are shown with heatmaps in the report. "
        f"{_subgroups(evaluation)}".strip(),
        "explanation": "Grad-CAM (Selvaraju et al. 2017), in closed form, for any image.",
        "records": "predictions.csv holds every prediction, labels.csv the reference labels, "
        "metrics.json the results.",
        "limits": "The numbers hold for these images; such a model also learns properties of the "
        "hospital that it was trained on. Intervals measure chance, not bias.",
        "availability": "pneumoscope (Apache-2.0); the bundle holds weights and card.",
    }


def _listed(metrics: Mapping[str, Estimate], level: float) -> str:
    names = ("auc", "sensitivity", "specificity", "ppv", "npv", "brier")
    return (
        "; ".join(
            f"{metric_text(name).label} {in_words(metrics[name], level, 3)}"
            for name in names
            if name in metrics
        )
        + "."
    )


def _calibrated(evaluation: Evaluation) -> str:
    if evaluation.calibration is None:
        return ""
    slope, ece = evaluation.calibration.slope, evaluation.metrics.get("ece", Estimate(None))
    return (
        f" Calibration: slope {number(slope.value)} ({interval(slope)}), error (ECE) "
        f"{number(ece.value)} ({interval(ece)})."
    )


def _subgroups(evaluation: Evaluation) -> str:
    if not evaluation.subgroups:
        return ""
    level = evaluation.interval.level
    parts = "; ".join(
        f"{name} {in_words(group.sensitivity, level, 3)} on {group.images:,}"
        for name, group in evaluation.subgroups.items()
    )
    return f"Sensitivity by subtype: {parts}."
