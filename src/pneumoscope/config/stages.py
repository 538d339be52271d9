"""Every default, in one frozen dataclass per stage; the command line is generated from these.

Each field carries its help text (`metadata["help"]`), range and units. Knows nothing of how a stage
uses its values, and imports no NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pneumoscope.config.reading import option

_MOST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """What an image file may cost before a pixel of it is decoded."""

    max_bytes: int = option(256 << 20, "largest file, bytes")
    max_pixels: int = option(50_000_000, "most pixels, read from the header", 1)
    max_side: int = option(16_384, "longest side, pixels")
    min_side: int = option(32, "shortest side, pixels")
    max_aspect: float = option(
        8.0, "longest side over shortest, at most (the most oblong Kermany film has 3.4)"
    )


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """From a decoded image to the network's input. Goes with the model, inside its bundle."""

    version: int = option(1, "version of the preprocessing code that this was written for")
    size: int = option(224, "side of the square network input, pixels", 0, 4096)
    fit: Literal["stretch", "pad"] = option(
        "stretch", "stretch to the square, or pad the short side with black"
    )
    normalisation: Literal["imagenet", "standardise"] = option(
        "imagenet", "ImageNet mean and deviation per channel, or each image to mean 0, deviation 1"
    )


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Ranges of the random changes that make further views of a training image. 0 turns one off."""

    rotation: float = option(10.0, "degrees, either way")
    shift: float = option(0.08, "share of the side, each axis, either way")
    zoom: float = option(0.15, "log-scale range: factors e^-zoom to e^zoom")
    crop: float = option(0.25, "share of the area that a random crop may take away, at most")
    flip: float = option(0.5, "chance of a left-right flip")
    brightness: float = option(0.12, "share of the grey range, either way")
    contrast: float = option(0.25, "log range: factors e^-contrast to e^contrast about the mean")
    gamma: float = option(0.25, "log range of the exponent")
    erasing: float = option(0.25, "chance that a random rectangle is painted in one grey")


@dataclass(frozen=True, slots=True)
class DistortConfig:
    """Random changes on the device while the whole network is trained. 0 turns one off."""

    crop_least: float = option(0.3, "random resized crop: least share of the area shown", 0.05, 2)
    crop_most: float = option(1.1, "most share; above 1 shows what lies beyond the edge", 0.05, 2)
    aspect: float = option(0.25, "log range of the crop's aspect ratio", 0, 1)
    rotation: float = option(14.0, "degrees, either way", 0, 180)
    flip: float = option(0.5, "chance of a left-right flip", 0, 1)
    contrast: float = option(0.8, "log range: factors about the mean", 0, 3)
    gamma: float = option(0.7, "log range of the exponent", 0, 3)
    brightness: float = option(0.2, "share of the grey range, either way", 0, 1)
    shading: float = option(0.1, "slope of brightness from the centre to each edge, at most", 0, 1)
    blur: float = option(0.5, "chance of blur or sharpening", 0, 1)
    sharpen: float = option(0.7, "strongest sharpening, in units of the strongest blur", 0, 3)
    enhance: float = option(
        0.0,
        "largest gain of differences from the surroundings; half of it is the largest loss",
        0,
        3,
    )
    jpeg: float = option(0.2, "chance of JPEG loss, quality about 10 to 90", 0, 1)
    noise: float = option(0.06, "largest standard deviation of noise, share of the range", 0, 1)
    frame: float = option(0.2, "chance of a painted border", 0, 1)
    frame_width: float = option(0.12, "widest border, share of the side", 0, 0.4)
    marker: float = option(0.2, "chance of a painted marker", 0, 1)
    erasing: float = option(0.5, "chance that a random rectangle is painted in one grey", 0, 1)
    surround: float = option(
        0.0, "chance that what lies around the lungs is another image's, or painted over", 0, 1
    )
    surround_frame: float = option(
        0.0,
        "of those, share where only a frame is: of any image, with lungs found or not; at 0 it is "
        "all of those without",
        0,
        1,
    )
    silence: float = option(
        0.0, "chance that the lungs are painted over, with no answer wanted but the average", 0, 1
    )
    reframe: float = option(
        0.0, "chance that the field is cut until the lungs fill a share of it drawn for all", 0, 1
    )
    mix: float = option(
        0.0, "lay each image over another, labels too, by shares from Beta(mix, mix)", 0, 10
    )


@dataclass(frozen=True, slots=True)
class GuidanceConfig:
    """What the whole network is taught besides the labels (`training/guidance.py`)."""

    lungs: float = option(
        0.0, "cost of heatmap energy outside the lungs, in images with pneumonia; 0: none", 0, 100
    )
    teacher: float = option(
        0.7, "with teachers: their share of the target, the label's is the rest", 0, 0.99
    )
    teacher_maps: float = option(
        0.5, "with teachers: cost of a heatmap that differs from theirs; 0: none", 0, 100
    )


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """How patients are dealt to the splits."""

    val: float = option(0.15, "share of patients for validation")
    test: float = option(0.0, "share of patients for an internal test")
    by: Literal["random", "block"] = option(
        "random", "random patients, or the last ids of each kind"
    )
    seed: int = option(0, "seed of the random deal", 0, _MOST_SEED)


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How weights are trained: the head, its part of the backbone, or the whole network."""

    epochs: int = option(60, "most epochs", 1)
    batch_size: int = option(64, "images per step", 1)
    accumulate: int = option(1, "steps whose gradients make one update", 1)
    learning_rate: float = option(1e-3, "Adam's largest step size", 0)
    schedule: Literal["constant", "cosine", "one-cycle", "plateau", "step"] = option(
        "plateau", "how the step size changes"
    )
    warmup: float = option(0.0, "share of all steps over which it rises from a 25th", 0, 0.9)
    plateau_patience: int = option(4, "plateau: epochs without a better validation AUC", 1)
    plateau_factor: float = option(0.3, "plateau, step: what it is multiplied by then", 0, 1)
    step_epochs: int = option(20, "step: epochs between two falls", 1)
    min_learning_rate: float = option(1e-6, "it falls no further", 0)
    stop_patience: int = option(
        12, "epochs without a better validation AUC before training stops", 1
    )
    min_delta: float = option(1e-4, "a gain in validation AUC below this is none", 0)
    keep: Literal["best", "last"] = option("best", "which epoch's weights the model gets")
    dropout: float = option(0.4, "share of pooled features dropped", 0, 0.99)
    hidden_units: int = option(256, "width of the hidden layer", 1, 65_536)
    class_weights: bool = option(True, "weigh the classes as if they were equally frequent")
    label_smoothing: float = option(0.0, "labels 0 and 1 become this/2 and 1 - this/2", 0, 0.9)
    weight_decay: float = option(0.0, "AdamW's, of kernels only; 0 is plain Adam", 0, 1)
    ema: float = option(
        0.0, "decay per step of the running average of weights; 0 is none", 0, 0.99999
    )
    precision: Literal["auto", "f32", "bf16"] = option(
        "f32", "arithmetic in float32, or mixed with bfloat16; auto: the faster one here"
    )


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """What `finetune` trains after the head, and how gently."""

    unfreeze: Literal["conv5", "conv4", "all"] = option(
        "conv5",
        "what is trained: the last stage of the backbone (conv5), the last two (conv4), or all",
    )
    head_epochs: int = option(30, "most epochs of the first stage, the head alone", 1)
    backbone_rate: float = option(0.1, "the last block's step size, as a share of the head's", 0, 1)
    depth_decay: float = option(0.5, "each block before it: its share of the next one's", 0, 1)


@dataclass(frozen=True, slots=True)
class ScratchConfig:
    """The image sizes of `scratch`, one after the other."""

    sizes: tuple[int, ...] = option((96, 112, 128), "sides of the square input, pixels")
    shares: tuple[float, ...] = option((0.3, 0.4, 0.3), "share of the epochs at each size")


@dataclass(frozen=True, slots=True)
class ThresholdConfig:
    """How the operating point is chosen, always on validation."""

    rule: Literal["balanced_accuracy", "worst_case", "sensitivity", "specificity", "fixed"] = (
        option(
            "balanced_accuracy",
            "maximise balanced accuracy, or the least of sensitivity and specificity over films "
            "and perturbed copies; or reach at least the target; or take the target itself",
        )
    )
    target: float = option(
        0.5, "the wanted sensitivity or specificity, or the fixed threshold", 0, 1
    )


@dataclass(frozen=True, slots=True)
class IntervalConfig:
    """How uncertainty is stated."""

    level: float = option(0.95, "confidence level", 0.01, 0.9999)
    resamples: int = option(2000, "bootstrap resamples of patients", 1)
    seed: int = option(0, "seed of the bootstrap", 0, _MOST_SEED)


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """How `predict` goes through many files."""

    engine: Literal["local", "ray"] = option(
        "local", "what does the work: this machine, or a Ray cluster, which reads URLs too"
    )
    workers: int = option(0, "processes that read images, on each machine; 0 for threads", 0, 1024)
    precision: Literal["auto", "f32", "bf16", "int8"] = option(
        "auto", "what is computed in; auto: the fastest that is certified for the model, here"
    )
    device: Literal["auto", "CPU", "GPU"] = option(
        "CPU", "what runs the network; auto: graphics that OpenVINO runs on, if there are any"
    )
    input_check: bool = option(True, "refuse what is no chest X-ray, where the model can tell")
    any_age: bool = option(
        False, "predict for patients of other ages than the model is for, with a warning"
    )
    strict: bool = option(False, "exit with 3 if any input had no answer")


@dataclass(frozen=True, slots=True)
class FramingConfig:
    """How images are re-cut where their framing must not count (`images/framing.py`)."""

    framing_share: float = option(
        0.71, "with --framing matched: share of each side that the lungs fill", 0.3, 1.2
    )


@dataclass(frozen=True, slots=True)
class StressConfig:
    """How a model is stressed, and what it may lose."""

    limit: int = option(500, "most images: whole patients, drawn by class", 2)
    seed: int = option(0, "seed of the draw, of noise and of photographs", 0, _MOST_SEED)
    largest_fall: float = option(
        0.05, "largest fall of sensitivity or specificity at a plausible strength", 0, 1
    )
    longest_side: int = option(
        512, "films longer than this are shrunk before they are changed, pixels", 32, 16_384
    )
    shortcuts: bool = option(True, "ask as well whether it reads the lungs at all")
    ring: float = option(0.125, "shortcuts: width of the outer ring, share of each side", 0, 0.49)
    lung_quality: float = option(
        0.5, "shortcuts: films whose lungs are found less surely than this are left out", 0, 1
    )
    folds: int = option(5, "shortcuts: folds in which the controls are trained", 2)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """How a model answers over HTTP, and what a request may cost."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: all of this machine's")
    port: int = option(8000, "port to listen on; 0: a free one", 0, 65_535)
    allowed_host: tuple[str, ...] = option(
        (), "further names that it may be asked by, beside those of this machine; *: any"
    )
    allowed_origin: tuple[str, ...] = option(
        (), "other sites whose pages may ask, as https://viewer.example; *: any"
    )
    root_path: str = option("", "path under which a proxy offers it, as /pneumoscope")
    any_age: bool = option(
        False, "predict for patients of other ages than the model is for, with a warning"
    )
    readers: int = option(0, "processes that read images; 0: half the cores, 2 to 8", 0, 64)
    requests: int = option(64, "requests under way at once; more get 503", 1)
    longest_wait: float = option(
        2.0, "a request that would have to wait longer for its answer gets 503, seconds", 0
    )
    timeout: float = option(30.0, "a request may take, seconds", 0)
    connections: int = option(
        512, "connections at once; a new one takes the place of the oldest without a request", 8
    )
    header_timeout: float = option(5.0, "a client may take to say what it wants, seconds", 0.1)
    body_timeout: float = option(
        10.0, "a body may take to come in, seconds; more at 8 KB a second or faster", 0.1
    )
    write_timeout: float = option(20.0, "a client may take to read what is there, seconds", 0.1)
    idle_timeout: float = option(15.0, "a connection may be silent between requests, seconds", 1)
    stop_timeout: float = option(30.0, "requests under way may take after SIGTERM, seconds", 0)
    max_upload: int = option(64 << 20, "largest file, bytes", 1)
    max_files: int = option(200, "most files of one request", 1)
    max_held: int = option(512 << 20, "all requests under way together, bytes", 1)
    rate: float = option(0.0, "requests per second of one client address; 0: any number", 0)
    burst: int = option(20, "requests at once before the rate counts", 1)
    api_key_file: str = option(
        "", "keys that requests must bring in X-API-Key, one per line; or $PNEUMOSCOPE_API_KEY"
    )
    tls_certificate: str = option("", "certificate chain, PEM: answers over HTTPS alone")
    tls_key: str = option("", "its private key, PEM")


@dataclass(frozen=True, slots=True)
class ProvenanceConfig:
    """Which data a run was made from; filled in by `train`, checked by `--resume`."""

    data: str = option("", "the DATA that was given")
    fingerprint: str = option("", "SHA-256 over the content, label and patient of every image")
    pneumoscope: str = option("", "version that ran")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything needed to train again; written to `RUN/config.toml`."""

    recipe: Literal["frozen", "finetune", "scratch"] = option(
        "frozen", "what is trained: the head; the head, then the last blocks too; everything"
    )
    backbone: str = option(
        "densenet121",
        "convolutional network in front of the head: a model of keras.applications in lower case "
        "(mobilenetv2, efficientnetb0, resnet50v2), efficientnet-lite0 or -lite2, or "
        "module:function of a Keras model of your own",
    )
    weights: str = option(
        "imagenet",
        "initial backbone weights: imagenet, bundled or default (the shipped model), none, a "
        "bundle, or a .h5 file",
    )
    views: int = option(4, "views per training image, the first un-augmented; 1 is that alone", 1)
    seed: int = option(0, "seed of initialisation, views and order", 0, _MOST_SEED)
    seeds: tuple[int, ...] = option(
        (), "one network per seed, probabilities averaged; empty: one", 0, _MOST_SEED
    )
    teachers: tuple[str, ...] = option(
        (), "scratch: runs or bundles whose predictions the network learns from"
    )
    kinds: float = option(
        0.0, "scratch: weight of asking for the kind of pneumonia too, where data tell; 0: not", 0
    )
    even_kinds: bool = option(
        False, "scratch: show each kind of pneumonia equally often, where data tell"
    )
    features: Literal["auto", "f32", "bf16", "int8"] = option(
        "auto",
        "what the frozen part computes in; auto: the fastest here; int8: pooled features alone",
    )
    flip: bool = option(False, "answer for image and mirror image, probabilities averaged")
    backend: Literal["auto", "tensorflow", "torch", "jax"] = option(
        "auto", "what Keras runs on; auto: $KERAS_BACKEND, else the fastest installed"
    )
    keep_val: bool = option(False, "use the given val/ even if it is too small to choose by")
    perturb_val: bool = option(
        False, "choose calibration and threshold on copies of val as well, changed as `stress` does"
    )
    match_val: bool = option(
        False,
        "choose calibration and threshold on copies of val in which the lungs fill the same share "
        "of all images, so that framing can't decide (images/framing.py)",
    )
    store: Literal["float32", "float16"] = option("float32", "precision of the weights on disk")
    ages: tuple[int, ...] = option(
        (), "youngest and oldest that the model is for, in years; empty: of every age", 0, 120
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
