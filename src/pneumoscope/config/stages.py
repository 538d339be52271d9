"""Every default, in one frozen dataclass per stage; the command line is generated from them.

Each field carries its help text (`metadata["help"]`), range and units. The module does not import
NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from pneumoscope.config.reading import option

_MOST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Limits on an image file, checked before a pixel of it is decoded.

    Examples:
        >>> read_image(image, LimitsConfig(max_pixels=100))
        Traceback (most recent call last):
        ImageRefusedError: ...too_many_pixels...
    """

    max_bytes: int = option(256 << 20, "largest file, bytes")
    max_pixels: int = option(50_000_000, "largest image accepted, pixels", 1)
    max_side: int = option(16_384, "longest side, pixels")
    min_side: int = option(32, "shortest side, pixels")
    max_aspect: float = option(
        8.0, "largest ratio of longest to shortest side (the most oblong Kermany image has 3.4)"
    )


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """From a decoded image to the network's input; stored with the model in its bundle.

    Examples:
        >>> PreprocessConfig(size=128).fit
        'stretch'
        >>> predictor.manifest.preprocessing.size
        32
    """

    version: int = option(1, "version of the preprocessing code that the model was trained with")
    size: int = option(224, "side of the square network input, pixels", 0, 4096)
    fit: Literal["stretch", "pad"] = option(
        "stretch", "stretch to the square, or pad the short side with black"
    )
    normalisation: Literal["imagenet", "standardise"] = option(
        "imagenet", "ImageNet mean and deviation per channel, or each image to mean 0, deviation 1"
    )


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Ranges of the random changes that make further views of a training image; 0 disables one.

    Examples:
        >>> training_config(augment={"rotation": 5.0}).augment == AugmentConfig(rotation=5.0)
        True
    """

    rotation: float = option(10.0, "degrees, either way")
    shift: float = option(0.08, "share of the side, each axis, either way")
    zoom: float = option(0.15, "log-scale range: factors e^-zoom to e^zoom")
    crop: float = option(0.25, "largest share of the area that a random crop removes")
    flip: float = option(0.5, "probability of a left-right flip")
    brightness: float = option(0.12, "share of the grey range, either way")
    contrast: float = option(0.25, "log range: factors e^-contrast to e^contrast about the mean")
    gamma: float = option(0.25, "log range of the exponent")
    erasing: float = option(0.25, "probability that a random rectangle is filled with one grey")


@dataclass(frozen=True, slots=True)
class DistortConfig:
    """Batch augmentation on the device, for end-to-end training; 0 disables a change.

    Examples:
        >>> training_config("scratch", distort={"mix": 0.2}).distort == DistortConfig(mix=0.2)
        True
    """

    crop_least: float = option(0.3, "random resized crop: smallest share of the area", 0.05, 2)
    crop_most: float = option(
        1.1, "largest share; above 1 shows what lies beyond the edge", 0.05, 2
    )
    aspect: float = option(0.25, "log range of the crop's aspect ratio", 0, 1)
    rotation: float = option(14.0, "degrees, either way", 0, 180)
    flip: float = option(0.5, "probability of a left-right flip", 0, 1)
    contrast: float = option(0.8, "log range: factors about the mean", 0, 3)
    gamma: float = option(0.7, "log range of the exponent", 0, 3)
    brightness: float = option(0.2, "share of the grey range, either way", 0, 1)
    shading: float = option(0.1, "largest brightness gradient from the centre to an edge", 0, 1)
    blur: float = option(0.5, "probability of blur or sharpening", 0, 1)
    sharpen: float = option(0.7, "strongest sharpening, in units of the strongest blur", 0, 3)
    enhance: float = option(
        0.0,
        "unsharp masking: largest gain of local contrast; half of it is the largest loss",
        0,
        3,
    )
    jpeg: float = option(0.2, "probability of JPEG loss, quality about 10 to 90", 0, 1)
    noise: float = option(0.06, "largest standard deviation of noise, share of the range", 0, 1)
    frame: float = option(0.2, "probability of a painted border", 0, 1)
    frame_width: float = option(0.12, "widest border, share of the side", 0, 0.4)
    marker: float = option(0.2, "probability of a painted marker", 0, 1)
    erasing: float = option(
        0.5, "probability that a random rectangle is filled with one grey", 0, 1
    )
    surround: float = option(
        0.0, "background swap: probability that another image or one grey replaces it", 0, 1
    )
    surround_frame: float = option(
        0.0,
        "share of the background swaps that change only a frame, on images with and without "
        "detected lungs; at 0 all images without detected lungs get a frame",
        0,
        1,
    )
    silence: float = option(
        0.0, "lung masking: probability that the lungs are painted over; target: prevalence", 0, 1
    )
    reframe: float = option(
        0.0, "lung-based cropping: probability of a crop to a random share of lung", 0, 1
    )
    mix: float = option(
        0.0, "mixup of images and labels, with shares from Beta(mix, mix); 0: none", 0, 10
    )


@dataclass(frozen=True, slots=True)
class GuidanceConfig:
    """Guidance of end-to-end training beyond the labels (`training/guidance.py`).

    Examples:
        >>> config = training_config("scratch", guidance={"lungs": 0.1})
        >>> config.guidance == GuidanceConfig(lungs=0.1)
        True
    """

    lungs: float = option(
        0.0, "lung guidance: weight of heatmap energy outside the lungs; 0: none", 0, 100
    )
    teacher: float = option(
        0.7, "distillation: the teachers' share of the target; the label has the rest", 0, 0.99
    )
    teacher_maps: float = option(
        0.5, "attention transfer: weight of differences from the teachers' heatmaps", 0, 100
    )
    teach_swapped: bool = option(
        False, "distillation: teachers also judge views with a swapped background"
    )


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """How patients are assigned to the splits.

    Examples:
        >>> parts = split(load_dataset(xrays), SplitConfig(val=0.2, test=0.2, seed=1))
        >>> sorted({record.split for record in parts})
        ['test', 'train', 'val']
    """

    val: float = option(0.15, "share of patients for validation")
    test: float = option(0.0, "share of patients for an internal test")
    by: Literal["random", "block"] = option(
        "random", "random patients, or the last patient ids of each class or subtype"
    )
    seed: int = option(0, "seed of the random split", 0, _MOST_SEED)


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How weights are trained: of the head, the last blocks, or the whole network.

    Examples:
        >>> TrainConfig(fit=FitConfig(epochs=10, batch_size=32)).fit.schedule
        'plateau'
    """

    epochs: int = option(60, "largest number of epochs", 1)
    batch_size: int = option(64, "images per step", 1)
    accumulate: int = option(1, "steps whose gradients are accumulated per update", 1)
    learning_rate: float = option(1e-3, "Adam's peak learning rate", 0)
    schedule: Literal["constant", "cosine", "one-cycle", "plateau", "step"] = option(
        "plateau", "learning-rate schedule"
    )
    warmup: float = option(0.0, "share of all steps for a warm-up from 1/25 of the rate", 0, 0.9)
    plateau_patience: int = option(4, "plateau: epochs without a better validation AUC", 1)
    plateau_factor: float = option(0.3, "plateau, step: factor of the learning rate", 0, 1)
    step_epochs: int = option(20, "step: epochs between two reductions", 1)
    min_learning_rate: float = option(1e-6, "smallest learning rate", 0)
    stop_patience: int = option(
        12,
        "epochs without a better validation AUC before training stops; none with keep = 'last', "
        "which trains all epochs",
        1,
    )
    min_delta: float = option(1e-4, "smallest rise of validation AUC that counts as better", 0)
    keep: Literal["best", "last"] = option("best", "epoch whose weights are kept")
    dropout: float = option(0.4, "share of pooled features dropped", 0, 0.99)
    hidden_units: int = option(256, "width of the hidden layer", 1, 65_536)
    class_weights: bool = option(True, "weight the classes as if they were equally frequent")
    label_smoothing: float = option(0.0, "labels 0 and 1 become this/2 and 1 - this/2", 0, 0.9)
    weight_decay: float = option(0.0, "AdamW weight decay of kernels; 0 is plain Adam", 0, 1)
    ema: float = option(
        0.0, "decay per step of the running average of weights; 0 is none", 0, 0.99999
    )
    precision: Literal["auto", "f32", "bf16"] = option(
        "f32", "float32, or mixed precision with bfloat16; auto: the faster one on this machine"
    )


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """What `finetune` trains after the head, and at which learning rates.

    Examples:
        >>> config = training_config("finetune", finetune={"unfreeze": "conv4"})
        >>> config.finetune == FinetuneConfig(unfreeze="conv4")
        True
    """

    unfreeze: Literal["conv5", "conv4", "all"] = option(
        "conv5",
        "trained part: the backbone's last stage (conv5), its last two (conv4), or all",
    )
    head_epochs: int = option(
        30,
        "largest number of epochs for the head alone, before; batch_size, class_weights, dropout "
        "and hidden_units are those of [fit], the rest is as in frozen",
        1,
    )
    backbone_rate: float = option(
        0.1, "learning rate of the last stage, relative to the head", 0, 1
    )
    depth_decay: float = option(0.5, "learning rate of each stage, relative to the next", 0, 1)


@dataclass(frozen=True, slots=True)
class ScratchConfig:
    """The image sizes of `scratch`, in order.

    Examples:
        >>> config = training_config("scratch", scratch={"sizes": [64, 96], "shares": [0.5, 0.5]})
        >>> config.scratch == ScratchConfig(sizes=(64, 96), shares=(0.5, 0.5))
        True
    """

    sizes: tuple[int, ...] = option((96, 112, 128), "sides of the square input, pixels")
    shares: tuple[float, ...] = option((0.3, 0.4, 0.3), "share of the epochs at each size")
    keep_head: bool = option(
        False, "start from the head of the bundle that --weights names, not from a new one"
    )
    train_from: str = option(
        "",
        "name of the backbone's layer behind which training begins (densenet121: pool4_pool); "
        "layers before it stay as they are; empty: train all",
    )


@dataclass(frozen=True, slots=True)
class ThresholdConfig:
    """How the operating point is chosen, always on the validation split.

    Examples:
        >>> config = training_config(threshold={"rule": "sensitivity", "target": 0.95})
        >>> config.threshold == ThresholdConfig("sensitivity", 0.95)
        True
    """

    rule: Literal["balanced_accuracy", "worst_case", "sensitivity", "specificity", "fixed"] = (
        option(
            "balanced_accuracy",
            "maximise balanced accuracy, or the smaller of sensitivity and specificity on images "
            "and perturbed copies; or reach at least the target; or use the target itself",
        )
    )
    target: float = option(
        0.5, "target of sensitivity or specificity, or the fixed threshold", 0, 1
    )


@dataclass(frozen=True, slots=True)
class IntervalConfig:
    """Confidence intervals.

    Examples:
        >>> found = evaluate([0, 0, 1, 1], [0.1, 0.4, 0.6, 0.9], interval=IntervalConfig(level=0.9))
        >>> found.interval.level
        0.9
    """

    level: float = option(0.95, "confidence level", 0.01, 0.9999)
    resamples: int = option(2000, "bootstrap resamples of patients", 1)
    seed: int = option(0, "seed of the bootstrap", 0, _MOST_SEED)


@dataclass(frozen=True, slots=True)
class FramingConfig:
    """How images are cropped so that all have the same framing (`images/lungs.py`).

    Examples:
        >>> FramingConfig(framing_share=0.8).framing_share
        0.8
    """

    framing_share: float = option(
        0.71, "with --framing matched: share of each side that the lungs fill", 0.3, 1.2
    )


@dataclass(frozen=True, slots=True)
class ProvenanceConfig:
    """Data that a run was made from; written by `train`, checked by `--resume`.

    Examples:
        >>> TrainConfig().provenance == ProvenanceConfig()
        True
    """

    data: str = option("", "value of DATA")
    fingerprint: str = option("", "SHA-256 over the content, label and patient of every image")
    pneumoscope: str = option("", "version of pneumoscope")


RECIPE_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "frozen": {},
        "finetune": {
            "fit": FitConfig(
                epochs=20,
                learning_rate=1e-3,
                schedule="cosine",
                warmup=0.1,
                stop_patience=6,
                label_smoothing=0.05,
                weight_decay=0.01,
                ema=0.99,
            )
        },
        "scratch": {
            "weights": "none",
            "views": 1,
            "preprocess": PreprocessConfig(size=128, normalisation="standardise"),
            "fit": FitConfig(
                epochs=50,
                learning_rate=2.5e-3,
                schedule="one-cycle",
                warmup=0.25,
                min_learning_rate=2.5e-6,
                stop_patience=50,
                keep="last",
                label_smoothing=0.06,
                weight_decay=0.02,
                ema=0.995,
                precision="auto",
            ),
        },
    }
)
"""What each recipe sets differently from the defaults of `TrainConfig`'s fields, which are those of
`frozen`. How these numbers were found is in `docs/experiments.md`."""

_ConfigT = TypeVar("_ConfigT")


def _defaults_by_recipe(kind: type[_ConfigT]) -> type[_ConfigT]:
    """Let the argument `recipe` choose the defaults of the arguments that are left out."""
    plain = kind.__init__
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **given: Any) -> None:
        given |= dict(zip(names, args, strict=False))
        # An unknown name gets those of `frozen`; `check_ranges` and `from_dict` reject it later.
        plain(self, **{**RECIPE_DEFAULTS.get(str(given.get("recipe")), {}), **given})

    kind.__init__ = init  # type: ignore[method-assign]
    return kind


@_defaults_by_recipe
@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything needed to train again; written to `RUN/config.toml`.

    `recipe` also chooses the defaults of all other arguments, as `--recipe` does:
    `TrainConfig(recipe="scratch")` is `RECIPES["scratch"]`. A nested configuration that is given
    replaces the recipe's whole; `training_config("scratch", fit={"epochs": 3})` changes one value.

    Examples:
        >>> TrainConfig(recipe="scratch") == RECIPES["scratch"]
        True
        >>> TrainConfig(weights="none", views=2).fit.epochs
        60
    """

    recipe: Literal["frozen", "finetune", "scratch"] = option(
        "frozen", "what is trained: the head; the head and the last blocks; everything"
    )
    backbone: str = option(
        "densenet121",
        "convolutional backbone: a model of keras.applications in lower case (mobilenetv2, "
        "efficientnetb0, resnet50v2), efficientnet-lite0 or -lite2, or module:function of your own "
        "Keras model",
    )
    weights: str = option(
        "imagenet",
        "initial backbone weights: imagenet, bundled or default (the model that ships), none, a "
        "bundle, or a .h5 file",
    )
    views: int = option(4, "views per training image; the first one is not augmented", 1)
    seed: int = option(0, "seed of initialisation, views and order", 0, _MOST_SEED)
    seeds: tuple[int, ...] = option(
        (), "ensemble: one network per seed, probabilities averaged; empty: one", 0, _MOST_SEED
    )
    teachers: tuple[str, ...] = option(
        (), "scratch: runs or bundles that the network is distilled from"
    )
    kinds: float = option(
        0.0, "scratch: weight of the auxiliary head for the pneumonia subtype; 0: none", 0
    )
    even_kinds: bool = option(False, "scratch: show each pneumonia subtype equally often")
    features: Literal["auto", "f32", "bf16", "int8"] = option(
        "auto",
        "precision of the frozen part; auto: the fastest one here; int8: pooled features only",
    )
    flip: bool = option(
        False,
        "average the probabilities of image and mirror image (doubles the time of a prediction)",
    )
    backend: Literal["auto", "tensorflow", "torch", "jax"] = option(
        "auto", "Keras backend; auto: $KERAS_BACKEND, else the fastest one installed"
    )
    keep_val: bool = option(False, "use the given val/ even if it is too small for model selection")
    perturb_val: bool = option(
        False, "fit calibration and threshold also on perturbed copies of val, as in `stress`"
    )
    match_val: bool = option(
        False,
        "fit calibration and threshold on copies of val with matched framing: the lungs fill the "
        "same share of every image (images/lungs.py)",
    )
    store: Literal["float32", "float16"] = option("float32", "precision of the weights on disk")
    ages: tuple[int, ...] = option(
        (), "youngest and oldest age that the model is for, years; empty: any", 0, 120
    )
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    distort: DistortConfig = field(default_factory=DistortConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    interval: IntervalConfig = field(default_factory=IntervalConfig)
    provenance: ProvenanceConfig = field(default_factory=ProvenanceConfig)
