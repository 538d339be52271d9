"""Model bundles: one folder with everything that a prediction depends on, verified by hashes.

    bundle.json         model, training and evaluation data; SHA-256 of every other file
    model.keras         the network in Keras' own format: layers and numbers, no code, no pickle;
                        for an ensemble model-0.keras, model-1.keras, …
    NAME.npz            further arrays, if there are any
    MODEL_CARD.md       the model card

`default` is the bundled model in the package.

Two models with the same `model_fingerprint` give the same probabilities, but may have different
thresholds. Two models with the same `manifest_digest` are identical.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from pneumoscope.config import PreprocessConfig, from_dict, option
from pneumoscope.errors import BundleError, MissingError, UsageError
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.graph import bundle_files
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.bundle_files import (
    CARD,
    LEAST_SIZE,
    MANIFEST,
    NETWORK_SUFFIX,
    OLD_SUFFIX,
    Architecture,
    network_names,
)
from pneumoscope.images.dicom.patient import check_ages
from pneumoscope.inference.certificates import PrecisionCertificate
from pneumoscope.inference.weights_store import (
    TABLE_SUFFIX,
    Precision,
    Table,
    read_table,
    save_network,
    save_table,
)
from pneumoscope.keras_loading import load_keras
from pneumoscope.records import CLASS_NAMES
from pneumoscope.storage import (
    check_replaceable,
    folder_writer,
    sha256_of_file,
    write_json,
    write_text,
)

_LOGGER = logging.getLogger(__name__)

SCHEMA_VERSION = 4
"""2 added `members`, `flip` and `store`; 3 added tables, certificates, abstention and the input
check; 4 stores the network as a `.keras` file instead of the weights of a DenseNet121."""

MOST_MEMBERS = 32

_KIND = "a bundle"

_MAX_WEIGHTS_BYTES = 1 << 30
_MOST_HIDDEN_UNITS = 65_536

_OPTIONAL: dict[str, Any] = {"ages": [], "teachers": []}
"""Keys that a bundle of any schema may omit, with their defaults."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The threshold on the calibrated probability, and how it was chosen."""

    value: float = option(0.5, "smallest probability that is predicted as PNEUMONIA", 0, 1)
    rule: str = "fixed at 0.5"
    chosen_on: str = ""


@dataclass(frozen=True, slots=True)
class Abstention:
    """Abstention: the prediction is `uncertain` if low <= probability < high; `none`: never."""

    method: Literal["none", "band", "conformal"] = "none"
    low: float = option(0.5, "NORMAL is predicted below it", 0, 1)
    high: float = option(0.5, "PNEUMONIA is predicted from it upwards", 0, 1)
    rule: str = ""
    chosen_on: str = ""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training data of the model."""

    fingerprint: str = ""
    images: int = 0
    patients: int = 0
    positives: int = 0


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """Origin of the backbone's initial weights."""

    origin: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class InputCheck:
    """Input check: how far an input may be from the training images; method `none` disables it.

    Attributes:
        method: `none`, or `gaussians` with their arrays in the table `input_check`.
        limits: descriptor → distance above which an input is rejected.
        images: number of training images behind the statistics.
        patients: number of held-out patients on whom the limits were chosen.
        refused: share of their images that is rejected.
        refused_changed: share of perturbed copies of their images that is rejected.
    """

    method: Literal["none", "gaussians"] = "none"
    limits: dict[str, float] = field(default_factory=dict)
    images: int = 0
    patients: int = 0
    refused: float = option(0.0, "share of held-out images that is rejected", 0, 1)
    refused_changed: float = option(0.0, "share of their perturbed copies that is rejected", 0, 1)


_SINCE: dict[int, dict[str, Any]] = {
    2: {"members": 1, "flip": False, "store": "float32"},
    3: {
        "abstention": {"method": "none", "low": 0.5, "high": 0.5, "rule": "", "chosen_on": ""},
        "certificates": [],
        "input_check": asdict(InputCheck()),
    },
    4: {},
}
"""Keys that each schema added or changed, with their values in earlier bundles."""


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """`bundle.json`.

    The `members` are networks of one architecture whose probabilities are averaged; with `flip`,
    also over the image and its left-right mirror image. `store` is the precision of their kernels
    on disk; inference runs in float32, or in a faster precision that `certificates` allow.
    `teachers` are the models that it was distilled from, with name and digest. `ages` are the
    youngest and oldest age, in completed years, that the model is for; empty: not stated.
    `validation` are the metrics on validation, as in `metrics.json`; of a model that was changed
    afterwards those on other images, which its key `on` names.

    Examples:
        >>> manifest = load_bundle("default").manifest
        >>> manifest.labels, manifest.preprocessing.size
        (('NORMAL', 'PNEUMONIA'), 112)
    """

    schema_version: int = SCHEMA_VERSION
    pneumoscope_version: str = ""
    created: str = ""
    labels: tuple[str, ...] = CLASS_NAMES
    architecture: Architecture = field(default_factory=Architecture)
    members: int = option(1, "networks whose probabilities are averaged", 1, MOST_MEMBERS)
    flip: bool = False
    store: Precision = "float32"
    preprocessing: PreprocessConfig = field(default_factory=PreprocessConfig)
    threshold: OperatingPoint = field(default_factory=OperatingPoint)
    abstention: Abstention = field(default_factory=Abstention)
    calibration: Calibration = field(default_factory=lambda: Calibration("none", 1.0, 0.0))
    input_check: InputCheck = field(default_factory=InputCheck)
    certificates: tuple[PrecisionCertificate, ...] = ()
    ages: tuple[int, ...] = ()
    training_data: TrainingData = field(default_factory=TrainingData)
    initial_weights: InitialWeights = field(default_factory=InitialWeights)
    teachers: tuple[str, ...] = ()
    validation: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose files were verified against its manifest.

    Examples:
        >>> bundle = load_bundle(run.folder)
        >>> [path.name for path in bundle.weights]
        ['model.keras']
    """

    folder: Path
    manifest: BundleManifest

    @property
    def weights(self) -> tuple[Path, ...]:
        """The network files, one per member."""
        return tuple(self.folder / name for name in _network_files(self.manifest))

    def table(self, name: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of `NAME.npz`; `None` if the bundle has no such table.

        Raises:
            BundleError: the file holds something other than arrays of numbers.
        """
        file = f"{name}{TABLE_SUFFIX}"
        return read_table(self.folder / file) if file in self.manifest.files else None

    def tables(self) -> dict[str, dict[str, NDArray[Any]]]:
        """All tables by name."""
        names = [f.removesuffix(TABLE_SUFFIX) for f in self.manifest.files if f.endswith(".npz")]
        return {name: read_table(self.folder / f"{name}{TABLE_SUFFIX}") for name in names}

    @property
    def card(self) -> Path:
        """The model card."""
        return self.folder / CARD


def check_bundle_target(folder: Path) -> None:
    """Reject a folder that a bundle must not replace; call it before long work.

    Raises:
        UsageError: it is a file, or a folder with content that is not a bundle.
    """
    check_replaceable(folder, MANIFEST, _KIND)


def write_bundle(
    folder: Path,
    networks: Any | Sequence[Any],
    manifest: BundleManifest,
    card: str,
    tables: Mapping[str, Table] | None = None,
) -> Bundle:
    """Write a bundle to a temporary folder and rename it, replacing an existing bundle.

    Args:
        folder: the bundle.
        networks: one network, or the members of an ensemble, all of `manifest.architecture`.
        manifest: `schema_version`, `members` and `files` are filled in here; `store` is the
            precision of the written weights.
        card: text of the model card.
        tables: file name without suffix → arrays by name.

    Raises:
        UsageError: there is no network, or more than `MOST_MEMBERS`; or the folder holds content
            that is not a bundle.
        OSError: the folder can't be written or the disk is full; the old bundle is unchanged.
    """
    members = networks if isinstance(networks, Sequence) else (networks,)
    if not 1 <= len(members) <= MOST_MEMBERS:
        raise UsageError(
            f"{folder}: found {len(members)} networks for a bundle, wanted 1 to {MOST_MEMBERS}. "
            "Give fewer seeds."
        )
    manifest = replace(manifest, schema_version=SCHEMA_VERSION, members=len(members))

    def put(path: Path, number: int) -> None:
        save_network(members[number], path, manifest.store)

    return _written(folder, manifest, card, tables or {}, put)


def write_revised(
    folder: Path,
    bundle: Bundle,
    manifest: BundleManifest,
    card: str,
    tables: Mapping[str, Table | None] | None = None,
) -> Bundle:
    """Write a bundle with the weights of another one, byte by byte, and new other content.

    Tables that are not given are copied from the other bundle; a table given as `None` is omitted.

    Raises:
        UsageError: the folder holds content that is not a bundle.
        OSError: as in `write_bundle`.
    """

    def put(path: Path, number: int) -> None:
        shutil.copyfile(bundle.weights[number], path)

    old = bundle.manifest
    kept = replace(manifest, schema_version=SCHEMA_VERSION, members=old.members, store=old.store)
    all_tables: dict[str, Table | None] = {**bundle.tables(), **(tables or {})}
    present = {name: table for name, table in all_tables.items() if table is not None}
    return _written(folder, kept, card, present, put)


def _written(
    folder: Path,
    manifest: BundleManifest,
    card: str,
    tables: Mapping[str, Table],
    put: Callable[[Path, int], None],
) -> Bundle:
    """Write the folder, with the weights that `put` writes by number, and rename it into place."""
    names = network_names(manifest.members)
    extra = {f"{name}{TABLE_SUFFIX}": table for name, table in tables.items()}
    with folder_writer(folder, MANIFEST, _KIND) as made:
        for number, name in enumerate(names):
            put(made / name, number)
        for name, table in extra.items():
            save_table(made / name, table)
        write_text(made / CARD, card)
        document = asdict(manifest)
        document["files"] = {name: sha256_of_file(made / name) for name in (*names, CARD, *extra)}
        write_json(made / MANIFEST, document)
    return load_bundle(folder)


def load_bundle(model: Path | str, *, oldest: int = SCHEMA_VERSION) -> Bundle:
    """Find a bundle (a bundle folder, a run folder, or `default`) and verify every hash in it.

    Args:
        model: path of the folder, or `default`.
        oldest: oldest schema version to accept. The manifest of an older bundle keeps its version
            number, because its networks are stored differently.

    Raises:
        UsageError: the folder does not exist.
        MissingError: `default` was requested and this installation has no bundled model.
        BundleError: it is not a bundle, has another schema, is incomplete, or was changed.

    Examples:
        >>> load_bundle(run.folder).manifest.architecture.name
        'densenet121'
    """
    folder = _find(model)
    path = folder / MANIFEST
    document = bundle_files.read_manifest(folder)
    found = document.get("schema_version") if isinstance(document, dict) else None
    if type(found) is not int or not 1 <= found <= SCHEMA_VERSION:
        raise BundleError(
            f"{path}: found schema version {found!r}; this pneumoscope reads {SCHEMA_VERSION} and "
            "converts 1 to 3. Use the version of pneumoscope that wrote it, or train again."
        )
    if found < oldest:
        raise BundleError(
            f"{path}: found schema version {found}, wanted {SCHEMA_VERSION}. Convert it: "
            f"pneumoscope upgrade --model {model} --out DIR"
        )
    for version in range(found + 1, SCHEMA_VERSION + 1):
        document = {**document, **_SINCE[version]}
    document = {**_OPTIONAL, **document}
    try:
        manifest = from_dict(BundleManifest, document, str(path), complete=True)
        check_ages(manifest.ages, f"{path}: ages")
    except UsageError as error:
        raise BundleError(f"{error}. Copy the bundle again or train again.") from error
    _check_model(manifest, path)
    _check_files(folder, manifest)
    _LOGGER.debug("model: %s, written by pneumoscope %s", folder, manifest.pneumoscope_version)
    return Bundle(folder, manifest)


def _network_files(manifest: BundleManifest) -> tuple[str, ...]:
    present = manifest.schema_version >= SCHEMA_VERSION
    return network_names(manifest.members, NETWORK_SUFFIX if present else OLD_SUFFIX)


def _find(model: Path | str) -> Path:
    if str(model) == "default":
        folder = bundle_files.default_folder()
        if not (folder / MANIFEST).exists():
            raise MissingError(
                "This installation has no default model. Train one: pneumoscope train DATA "
                "--out RUN, then give --model RUN."
            )
        return folder
    folder = Path(model)
    folder = folder.parent if folder.name == MANIFEST else folder
    if (found := bundle_files.bundle_in(folder)) is not None:
        return found
    if not folder.exists():
        raise UsageError(f"--model {folder}: no such folder. Give a bundle, a run, or 'default'.")
    raise BundleError(
        f"{folder}: holds no {MANIFEST}, nor does {folder / 'model'}. "
        "Give the folder of a finished run or a bundle."
    )


def _check_files(folder: Path, manifest: BundleManifest) -> None:
    """Check that the bundle holds exactly the files of its manifest, unchanged."""
    listed, weights = manifest.files, _network_files(manifest)
    present = {p.name for p in folder.iterdir() if not p.name.startswith(".")} - {MANIFEST}
    unexpected = sorted((present ^ set(listed)) - {*weights, CARD})
    if unexpected:
        where = "is listed in bundle.json but not" if unexpected[0] in listed else "is"
        raise BundleError(
            f"{folder}: {unexpected[0]!r} {where} in the bundle; wanted exactly the files of "
            "bundle.json. Copy the whole folder again, or remove what was added."
        )
    unused = sorted(
        n for n in listed if n.endswith((NETWORK_SUFFIX, OLD_SUFFIX)) and n not in weights
    )
    if unused:
        raise BundleError(
            f"{folder}: bundle.json lists {unused[0]!r} and {manifest.members} members; wanted "
            f"{', '.join(weights)}. Copy the whole folder again."
        )
    for name in dict.fromkeys((*weights, CARD, *listed)):
        _check_file(folder / name, listed.get(name))


def _check_model(manifest: BundleManifest, path: Path) -> None:
    """Check that this version supports the model that the manifest describes."""
    architecture = manifest.architecture
    found = (
        bool(architecture.name),
        architecture.size >= LEAST_SIZE and architecture.size,
        1 <= architecture.hidden_units <= _MOST_HIDDEN_UNITS,
        0.0 <= architecture.dropout < 1.0,
        manifest.labels,
    )
    if found != (True, manifest.preprocessing.size, True, True, CLASS_NAMES):
        raise BundleError(
            f"{path}: found {architecture} for {manifest.preprocessing.size} pixels and the labels "
            f"{', '.join(manifest.labels)}; wanted a backbone of the same size, 1 to "
            f"{_MOST_HIDDEN_UNITS} hidden units, and {', '.join(CLASS_NAMES)}. Train again."
        )
    try:
        Calibration.from_dict(manifest.calibration.to_dict())
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    band, threshold = manifest.abstention, manifest.threshold.value
    if band.method != "none" and not band.low <= threshold <= band.high:
        raise BundleError(
            f"{path}: found the threshold {threshold} and abstention from {band.low} to "
            f"{band.high}; wanted the threshold in between. Plan again: pneumoscope plan"
        )


def _check_file(path: Path, wanted: str | None) -> None:
    if not path.is_file():
        raise BundleError(f"{path}: is missing from the bundle. Copy the whole folder again.")
    if path.stat().st_size > _MAX_WEIGHTS_BYTES:
        raise BundleError(
            f"{path}: found {path.stat().st_size} bytes, wanted at most {_MAX_WEIGHTS_BYTES}. Copy "
            "the whole folder again."
        )
    found = sha256_of_file(path)
    if found != wanted:
        raise BundleError(
            f"{path}: SHA-256 is {found[:16]}…, bundle.json states {str(wanted)[:16]}…. The file "
            "was changed or damaged after it was written; copy the bundle again or train again."
        )


def load_networks(bundle: Bundle) -> tuple[Any, ...]:
    """Load the Keras networks of a bundle, one per member.

    Raises:
        ExtraMissingError: Keras is not installed.
        BundleError: a network has another architecture than the manifest states, names code other
            than Keras' own layers, would exhaust memory, or holds non-finite numbers.
    """
    architecture = bundle.manifest.architecture
    for path in bundle.weights:
        read_network(path, architecture)  # all checks, before Keras reads the file
    keras = load_keras()
    return tuple(keras.saving.load_model(path, compile=False) for path in bundle.weights)


def model_fingerprint(manifest: BundleManifest) -> str:
    """SHA-256 over weights' hashes, preprocessing, architecture, flip and calibration."""
    weights = {n: h for n, h in manifest.files.items() if n.endswith(NETWORK_SUFFIX)}
    decisive = {
        "weights": weights,
        "preprocessing": asdict(manifest.preprocessing),
        "architecture": asdict(manifest.architecture),
        "flip": manifest.flip,
        "calibration": manifest.calibration.to_dict(),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def manifest_digest(manifest: BundleManifest) -> str:
    """Hex SHA-256 over the whole manifest, including threshold, input check and abstention."""
    text = json.dumps(asdict(manifest), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
