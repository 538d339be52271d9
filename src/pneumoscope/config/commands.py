"""Settings of the commands that are not part of a training run.

They cover prediction, stress tests, planning an operating point, comparing models,
cross-validation, adopting public data sets, the REST service, fetching from a PACS, and the DICOM
node. As in `stages.py`, each field carries its help text, range and units. The module does not
import NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pneumoscope.config.reading import option
from pneumoscope.config.stages import IntervalConfig

_MOST_SEED = 2**31 - 1
_MOST_PORT = 65_535
_DAY_SECONDS = 86_400
_ANY_AGE_HELP = "predict for patients outside the model's age range; every output notes it"
_DEVICE_HELP = "device of the network; auto: a GPU that OpenVINO supports, if there is one"

DeviceChoice = Literal["auto", "CPU", "GPU"]


@dataclass(frozen=True, slots=True)
class PlanTarget:
    """What an operating point must achieve; `None`: no requirement.

    Examples:
        >>> PlanTarget(prevalence=0.1, min_sensitivity=0.95).min_sensitivity
        0.95
    """

    prevalence: float | None = option(
        None, "prevalence of pneumonia where the model will be used; else that of the data", 0, 1
    )
    min_sensitivity: float | None = option(
        None, "choose the threshold that keeps this sensitivity with confidence", 0, 1
    )
    min_specificity: float | None = option(
        None, "choose the threshold that keeps this specificity with confidence", 0, 1
    )
    threshold: float | None = option(None, "use this threshold", 0, 1)
    band: float | None = option(
        None, "abstention band: withhold predictions so that at most this share is wrong", 0, 1
    )
    sets: float | None = option(
        None, "conformal prediction sets of this coverage: withhold if not exactly one class", 0, 1
    )
    costs: tuple[float, float] | None = option(
        None, "costs of a false negative and a false positive; choose the cheapest threshold"
    )


@dataclass(frozen=True, slots=True)
class ScoresConfig:
    """How `evaluate --scores` reads its table.

    Examples:
        >>> ScoresConfig(score_column="logit").score_column
        'logit'
    """

    score_column: str = option("", "score column of --scores; default: score, else probability")
    threshold: float | None = option(None, "threshold for --scores; default: column 'threshold'")


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """How an operating point is planned.

    Examples:
        >>> PlanConfig(level=0.9).intervals().level
        0.9
    """

    confidence: float = option(
        0.95, "one-sided confidence that the wanted rate holds at the chosen threshold", 0.5, 0.999
    )
    power: float = option(
        0.9, "power of a check on local patients if performance is as expected", 0.5, 0.999
    )
    margin: float = option(
        0.05,
        "if no rate is required: how far below the estimate the true rate may lie in a local check",
        0.001,
        0.5,
    )
    level: float = option(0.95, "confidence level of intervals", 0.01, 0.9999)
    resamples: int = option(2000, "bootstrap resamples of patients", 1)
    seed: int = option(0, "seed of the bootstrap", 0, _MOST_SEED)

    def intervals(self) -> IntervalConfig:
        """Settings of its confidence intervals."""
        return IntervalConfig(self.level, self.resamples, self.seed)


@dataclass(frozen=True, slots=True)
class CrossValidationConfig:
    """How a data set is divided for cross-validation.

    Examples:
        >>> CrossValidationConfig(folds=10).by
        'random'
    """

    folds: int = option(5, "number of folds; each is held out once", 2, 100)
    by: Literal["random", "block"] = option(
        "random", "random patients, or blocks of consecutive ids of each class or subtype"
    )


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """Non-inferiority margins: a new model may replace an old one if it is not worse by more.

    Examples:
        >>> CompareConfig(sensitivity_margin=0.01, resamples=500).intervals().resamples
        500
    """

    auc_margin: float = option(0.01, "non-inferiority margin of AUC", 0, 1)
    sensitivity_margin: float = option(0.02, "non-inferiority margin of sensitivity", 0, 1)
    specificity_margin: float = option(0.02, "non-inferiority margin of specificity", 0, 1)
    confidence: float = option(0.95, "one-sided confidence of the verdict", 0.5, 0.999)
    fewest: int = option(30, "patients of each class required for a verdict", 2)
    level: float = option(0.95, "confidence level of intervals", 0.01, 0.9999)
    resamples: int = option(2000, "bootstrap resamples of patients", 1)
    seed: int = option(0, "seed of the bootstrap", 0, _MOST_SEED)

    def intervals(self) -> IntervalConfig:
        """Settings of its confidence intervals."""
        return IntervalConfig(self.level, self.resamples, self.seed)


@dataclass(frozen=True, slots=True)
class AdoptConfig:
    """Which images of a public data set go into its manifest.

    Examples:
        >>> AdoptConfig(max_age=5, view="AP").others
        'exclude'
    """

    min_age: float = option(0.0, "minimum age, years", 0, 200)
    max_age: float = option(200.0, "maximum age, years", 0, 200)
    view: Literal["frontal", "AP", "PA", "all"] = option(
        "frontal", "view; frontal: all except known lateral views"
    )
    others: Literal["exclude", "normal"] = option(
        "exclude", "images with other findings: exclude them, or label them NORMAL"
    )
    uncertain: Literal["exclude", "pneumonia", "normal"] = option(
        "exclude", "chexpert: images with uncertain pneumonia"
    )
    splits: Literal["ignore", "keep"] = option(
        "ignore", "splits of the data set: ignore them and evaluate all images, or keep them"
    )
    table: str = option("", "csv: name of the table, if the folder has several")
    columns: str = option("", "csv: its columns, as in path=file,label=diagnosis")
    pneumonia: str = option("pneumonia,1,true,yes,positive", "csv: values for PNEUMONIA")
    normal: str = option("normal,no finding,0,false,no,negative", "csv: values for NORMAL")


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """How images are fetched from a PACS.

    Examples:
        >>> FetchConfig(modality="DX").aet
        'PNEUMOSCOPE'
    """

    modality: str = option("CR,DX", "modalities to fetch, separated by commas")
    aet: str = option("PNEUMOSCOPE", "own application entity title, registered at the PACS")
    move_port: int = option(
        0,
        "port for C-MOVE, if the PACS does not support C-GET; 0: C-GET",
        0,
        _MOST_PORT,
    )
    move_host: str = option("0.0.0.0", "address to listen on for C-MOVE")  # noqa: S104
    max_bytes: int = option(256 << 20, "largest image, bytes", 1 << 10)
    min_free: int = option(512 << 20, "stop fetching below this free disk space, bytes", 0)
    acse_timeout: float = option(10.0, "time-out of associations, seconds", 0.1, _DAY_SECONDS)
    dimse_timeout: float = option(120.0, "time-out of DIMSE messages, seconds", 0.1, _DAY_SECONDS)
    pseudonyms: bool = option(
        False, "write files and table under pseudonymous identifiers; the key is DIR.key"
    )
    mapping: str = option("", "CSV file for identifiers and pseudonyms, with --pseudonyms")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Settings of `pneumoscope node`; each one is a command-line option.

    Examples:
        >>> NodeConfig(forward="ARCHIVE@10.0.0.5:104").port
        11112
    """

    aet: str = option("PNEUMOSCOPE", "own application entity title, 1 to 16 characters")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: all addresses")
    port: int = option(11112, "port to listen on; 0: any free one", 0, _MOST_PORT)
    forward: str = option(
        "", "AET@HOST:PORT that reports are sent to; empty: they stay in the spool's outgoing/"
    )
    dicomweb: str = option(
        "", "URL of a DICOMweb service to fetch images from and store reports to"
    )
    dicomweb_silent: bool = option(False, "fetch images from it, but store no reports to it")
    dicomweb_token_file: str = option(
        "", "file with its token, or 'Basic …'; or set $PNEUMOSCOPE_DICOMWEB_TOKEN"
    )
    dicomweb_days: int = option(1, "maximum age of its studies, days; 0: any age", 0, 36_500)
    poll: float = option(30.0, "seconds between two searches", 0.01, _DAY_SECONDS)
    spool: str = option("pneumoscope-spool", "folder for the queue, images and unsent reports")
    segmentation: bool = option(False, "also write each heatmap as a DICOM Segmentation")
    device: DeviceChoice = option("CPU", _DEVICE_HELP)
    any_age: bool = option(False, _ANY_AGE_HELP)
    callers: tuple[str, ...] = option((), "calling AE titles to accept; empty: all")
    any_called: bool = option(False, "accept associations for other called AE titles")
    tls_cert: str = option("", "own certificate, PEM; if given, only TLS is accepted")
    tls_key: str = option("", "private key of the certificate, PEM")
    tls_ca: str = option("", "CA certificates for verifying callers, PEM")
    forward_tls: bool = option(False, "use TLS to the destination, verified by --tls-ca")
    associations: int = option(32, "maximum number of associations", 1, 1000)
    max_bytes: int = option(256 << 20, "largest image, bytes", 1 << 10)
    max_held: int = option(
        512 << 20, "memory for images being received from all callers, bytes", 1 << 10
    )
    max_waiting: int = option(20_000, "images in the queue; beyond it, images are rejected", 1)
    min_free: int = option(512 << 20, "reject images below this free disk space, bytes", 0)
    acse_timeout: float = option(5.0, "time-out of associations, seconds", 0.1, _DAY_SECONDS)
    network_timeout: float = option(
        30.0, "idle time before an association is aborted, seconds", 0.1, _DAY_SECONDS
    )
    dimse_timeout: float = option(
        60.0, "time-out of DIMSE messages to the destination, seconds", 0.1, _DAY_SECONDS
    )
    retry_first: float = option(2.0, "wait before the first retry, seconds", 0.01, _DAY_SECONDS)
    retry_most: float = option(
        300.0, "longest wait between retries, seconds; each wait doubles", 0.01, _DAY_SECONDS
    )
    most_refusals: int = option(
        20, "rejections of a report by the destination before it is set aside", 1
    )
    grace: float = option(
        20.0, "time for associations to end on shutdown, seconds", 0, _DAY_SECONDS
    )
    fhir: str = option(
        "", "URL of a FHIR R4 server that the Bundle of each result is posted to, beside reports"
    )
    fhir_token_file: str = option(
        "", "file with its token, or 'Basic …'; or $PNEUMOSCOPE_FHIR_TOKEN"
    )
    status_port: int = option(
        0, "port on 127.0.0.1 that serves /healthz and /metrics; 0: none", 0, _MOST_PORT
    )


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """How `predict` processes many files.

    Examples:
        >>> BatchConfig(workers=2).engine
        'local'
    """

    engine: Literal["local", "ray"] = option(
        "local", "where it runs: this machine, or a Ray cluster, which can also read URLs"
    )
    workers: int = option(0, "processes that read images, on each machine; 0 for threads", 0, 1024)
    precision: Literal["auto", "f32", "bf16", "int8"] = option(
        "auto", "arithmetic; auto: the fastest one certified for the model on this processor"
    )
    device: DeviceChoice = option("CPU", _DEVICE_HELP)
    input_check: bool = option(
        True, "reject images that differ from the training images of the model"
    )
    any_age: bool = option(False, _ANY_AGE_HELP)
    strict: bool = option(False, "exit with 3 if any input has no prediction")


@dataclass(frozen=True, slots=True)
class StressConfig:
    """Stress test: perturbations, shortcuts, and the largest accepted loss.

    Examples:
        >>> StressConfig(limit=100).shortcuts
        True
    """

    limit: int = option(500, "largest number of images: whole patients, sampled by class", 2)
    seed: int = option(0, "seed of the sample, of noise and of photographs", 0, _MOST_SEED)
    largest_fall: float = option(
        0.05,
        "largest accepted decrease of sensitivity or specificity at a plausible strength",
        0,
        1,
    )
    longest_side: int = option(
        512, "images longer than this are shrunk before they are perturbed, pixels", 32, 16_384
    )
    shortcuts: bool = option(True, "also test whether the prediction depends on the lungs")
    ring: float = option(0.125, "shortcuts: width of the outer ring, share of each side", 0, 0.49)
    lung_quality: float = option(
        0.5, "shortcuts: leave out images whose lungs are found with less quality", 0, 1
    )
    folds: int = option(5, "shortcuts: folds in which the baselines are trained", 2)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The REST service, and the limits on its requests.

    Examples:
        >>> ServeConfig(port=9000).host
        '127.0.0.1'
    """

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: all addresses of this machine")
    port: int = option(8000, "port to listen on; 0: a free one", 0, 65_535)
    allowed_host: tuple[str, ...] = option(
        (), "further host names accepted in requests, besides those of this machine; *: any"
    )
    allowed_origin: tuple[str, ...] = option(
        (), "other sites whose pages may send requests, as https://viewer.example; *: any"
    )
    root_path: str = option("", "path prefix behind a proxy, as /pneumoscope")
    device: DeviceChoice = option("CPU", _DEVICE_HELP)
    any_age: bool = option(False, _ANY_AGE_HELP)
    readers: int = option(0, "processes that read images; 0: half the cores, 2 to 8", 0, 64)
    requests: int = option(64, "concurrent requests; further ones get 503", 1)
    longest_wait: float = option(
        2.0, "a request that would wait longer for its prediction gets 503, seconds", 0
    )
    timeout: float = option(30.0, "time limit of a request, seconds", 0)
    connections: int = option(
        512, "open connections; a new one replaces the oldest one without a request", 8
    )
    header_timeout: float = option(5.0, "time limit for receiving the headers, seconds", 0.1)
    body_timeout: float = option(
        10.0, "time limit for receiving a body, seconds; longer at 8 KB a second or more", 0.1
    )
    write_timeout: float = option(
        20.0, "time limit for the client to read a response, seconds", 0.1
    )
    idle_timeout: float = option(15.0, "idle time before a connection is closed, seconds", 1)
    stop_timeout: float = option(30.0, "time for running requests after SIGTERM, seconds", 0)
    max_upload: int = option(64 << 20, "largest file, bytes", 1)
    max_files: int = option(200, "largest number of files in one request", 1)
    max_held: int = option(512 << 20, "memory for the uploads of all requests, bytes", 1)
    rate: float = option(0.0, "requests per second from one client address; 0: unlimited", 0)
    burst: int = option(20, "requests that a client may send at once before the rate limit", 1)
    api_key_file: str = option(
        "", "file with API keys for X-API-Key, one per line; or set $PNEUMOSCOPE_API_KEY"
    )
    no_api_key: bool = option(False, "listen beyond loopback even if there is no API key")
    tls_certificate: str = option("", "certificate chain, PEM; if given, only HTTPS is served")
    tls_key: str = option("", "private key of the certificate, PEM")
