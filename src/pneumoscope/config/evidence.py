"""Defaults of planning an operating point and of comparing two models; no part of a run.

As in `stages`: each field carries its help text, range and units. Imports no NumPy.

The defaults of `data adopt`: which films of a public data set are kept, under which labels.

Settings of `fetch`: whom to ask, for what, and how long to wait.

Settings of the DICOM node: whom it listens to, whom it tells, what it may cost.

Knows nothing of how DICOM is spoken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pneumoscope.config.reading import option
from pneumoscope.config.stages import IntervalConfig

_MOST_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PlanTarget:
    """What is wanted of an operating point; `None`: nothing."""

    prevalence: float | None = option(
        None, "share of pneumonia where the model is to be used; else that of the images", 0, 1
    )
    min_sensitivity: float | None = option(
        None, "choose the threshold that keeps this sensitivity with confidence", 0, 1
    )
    min_specificity: float | None = option(None, "or the one that keeps this specificity", 0, 1)
    threshold: float | None = option(None, "or take this threshold", 0, 1)
    band: float | None = option(
        None, "answer 'uncertain' around it, so that at most this share of answers is wrong", 0, 1
    )
    sets: float | None = option(
        None, "or where the conformal set of this coverage is not one class", 0, 1
    )
    costs: tuple[float, float] | None = option(
        None, "what a missed case and a false alarm cost; chooses the cheapest threshold"
    )


@dataclass(frozen=True, slots=True)
class ScoresConfig:
    """How `evaluate --scores` reads its table."""

    score_column: str = option("", "column of --scores; else the first of score, probability")
    threshold: float | None = option(None, "of --scores; else its column 'threshold'")


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """How an operating point is planned."""

    confidence: float = option(
        0.95, "one-sided confidence that the wanted rate holds at the chosen threshold", 0.5, 0.999
    )
    power: float = option(
        0.9, "chance that a check on local patients succeeds if all is as expected", 0.5, 0.999
    )
    margin: float = option(
        0.05, "what a local check may find less than expected, where no rate is wanted", 0.001, 0.5
    )
    level: float = option(0.95, "confidence level of intervals", 0.01, 0.9999)
    resamples: int = option(2000, "bootstrap resamples of patients", 1)
    seed: int = option(0, "seed of the bootstrap", 0, _MOST_SEED)

    def intervals(self) -> IntervalConfig:
        """How its intervals are made."""
        return IntervalConfig(self.level, self.resamples, self.seed)


@dataclass(frozen=True, slots=True)
class CrossValidationConfig:
    """How a data set is divided for cross-validation."""

    folds: int = option(5, "parts; each is held out once", 2, 100)
    by: Literal["random", "block"] = option(
        "random", "random patients, or blocks of consecutive ids of each kind"
    )


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """When a new model may take the place of an old one: it must not be worse by more than this."""

    auc_margin: float = option(0.01, "AUC may be lower by less than this", 0, 1)
    sensitivity_margin: float = option(0.02, "sensitivity may be lower by less than this", 0, 1)
    specificity_margin: float = option(0.02, "specificity may be lower by less than this", 0, 1)
    confidence: float = option(0.95, "one-sided confidence of the verdict", 0.5, 0.999)
    fewest: int = option(30, "patients of each class below which nothing is passed", 2)
    level: float = option(0.95, "confidence level of intervals", 0.01, 0.9999)
    resamples: int = option(2000, "bootstrap resamples of patients", 1)
    seed: int = option(0, "seed of the bootstrap", 0, _MOST_SEED)

    def intervals(self) -> IntervalConfig:
        """How its intervals are made."""
        return IntervalConfig(self.level, self.resamples, self.seed)


@dataclass(frozen=True, slots=True)
class AdoptConfig:
    """Which films of a public data set go into its manifest."""

    min_age: float = option(0.0, "youngest, years", 0, 200)
    max_age: float = option(200.0, "oldest, years", 0, 200)
    view: Literal["frontal", "AP", "PA", "all"] = option(
        "frontal", "frontal: all but those known to be no frontal view"
    )
    others: Literal["exclude", "normal"] = option(
        "exclude", "films with other findings: left out, or NORMAL"
    )
    uncertain: Literal["exclude", "pneumonia", "normal"] = option(
        "exclude", "chexpert: films whose pneumonia is uncertain"
    )
    splits: Literal["ignore", "keep"] = option(
        "ignore", "the owner's splits: ignore, so that all films are evaluated; or keep"
    )
    table: str = option("", "csv: name of the table, if the folder holds several")
    columns: str = option("", "csv: its columns, as in path=file,label=diagnosis")
    pneumonia: str = option("pneumonia,1,true,yes,positive", "csv: words for PNEUMONIA")
    normal: str = option("normal,no finding,0,false,no,negative", "csv: words for NORMAL")


_MOST_PORT = 65_535
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """How images are had from a PACS."""

    modality: str = option("CR,DX", "modalities to fetch, separated by commas")
    aet: str = option("PNEUMOSCOPE", "own application entity title, which the PACS must know")
    move_port: int = option(
        0,
        "fetch by C-MOVE to this port here, where the PACS does no C-GET; 0: C-GET",
        0,
        _MOST_PORT,
    )
    move_host: str = option("0.0.0.0", "address that it listens on for C-MOVE")  # noqa: S104
    max_bytes: int = option(256 << 20, "largest image, bytes", 1 << 10)
    min_free: int = option(512 << 20, "free bytes below which nothing is fetched", 0)
    acse_timeout: float = option(10.0, "seconds for the PACS to say who it is", 0.1, _DAY_SECONDS)
    dimse_timeout: float = option(120.0, "seconds for it to answer a message", 0.1, _DAY_SECONDS)
    pseudonyms: bool = option(
        False, "write files and table under pseudonymous identifiers; the key is DIR.key"
    )
    mapping: str = option("", "CSV file for identifiers and pseudonyms, with --pseudonyms")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What `pneumoscope node` is told; every setting is an option of it."""

    aet: str = option("PNEUMOSCOPE", "own application entity title, 1 to 16 characters")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 is every one")
    port: int = option(11112, "port to listen on; 0: any free one", 0, _MOST_PORT)
    forward: str = option(
        "", "AET@HOST:PORT that reports are sent to; empty: they stay in the spool's outgoing/"
    )
    dicomweb: str = option(
        "", "URL of a DICOMweb service that films are fetched from and reports stored to"
    )
    dicomweb_silent: bool = option(False, "fetch films from it, store no report to it")
    dicomweb_token_file: str = option(
        "", "file with its token, or 'Basic …'; or $PNEUMOSCOPE_DICOMWEB_TOKEN"
    )
    dicomweb_days: int = option(1, "age of its studies, days; 0: of any age", 0, 36_500)
    poll: float = option(30.0, "seconds between two searches there", 0.01, _DAY_SECONDS)
    spool: str = option("pneumoscope-spool", "folder of queue, films and reports in transit")
    segmentation: bool = option(False, "each heatmap as a DICOM Segmentation as well")
    any_age: bool = option(
        False, "predict for patients of other ages than the model is for, with a warning"
    )
    callers: tuple[str, ...] = option((), "AE titles that may call; empty: every one")
    any_called: bool = option(False, "take associations for other AE titles than the own one")
    tls_cert: str = option("", "own certificate, PEM; with it only TLS is spoken")
    tls_key: str = option("", "its private key, PEM")
    tls_ca: str = option("", "certificates that callers must prove theirs by, PEM")
    forward_tls: bool = option(False, "speak TLS to the destination, which is checked by --tls-ca")
    associations: int = option(32, "most associations at a time", 1, 1000)
    max_bytes: int = option(256 << 20, "largest film, bytes", 1 << 10)
    max_held: int = option(
        512 << 20, "bytes that are being received from all callers together", 1 << 10
    )
    max_waiting: int = option(20_000, "most films that wait; beyond it films are turned away", 1)
    min_free: int = option(512 << 20, "free bytes below which films are turned away", 0)
    acse_timeout: float = option(5.0, "seconds for a caller to say who it is", 0.1, _DAY_SECONDS)
    network_timeout: float = option(
        30.0, "seconds of silence that end an association", 0.1, _DAY_SECONDS
    )
    dimse_timeout: float = option(
        60.0, "seconds for the destination to answer a message", 0.1, _DAY_SECONDS
    )
    retry_first: float = option(2.0, "seconds before a second try to send", 0.01, _DAY_SECONDS)
    retry_most: float = option(
        300.0, "seconds between two tries, at most; each wait is twice the last", 0.01, _DAY_SECONDS
    )
    most_refusals: int = option(
        20, "times that the destination may refuse a report before it is set aside", 1
    )
    grace: float = option(20.0, "seconds for associations to end when stopped", 0, _DAY_SECONDS)
    fhir: str = option(
        "", "URL of a FHIR R4 server that the Bundle of each result is posted to, beside reports"
    )
    fhir_token_file: str = option(
        "", "file with its token, or 'Basic …'; or $PNEUMOSCOPE_FHIR_TOKEN"
    )
    status_port: int = option(
        0, "port on 127.0.0.1 that serves /healthz and /metrics; 0: none", 0, _MOST_PORT
    )
