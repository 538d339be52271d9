"""A bundle: one folder with all that an answer depends on, checked against its hashes on loading.

    bundle.json         what the model is, how it was made, SHA-256 of every other file
    model.keras         the network, as plain Keras opens it: layers and numbers, no code, no
                        pickle; of an ensemble model-0.keras, model-1.keras, …
    NAME.npz            arrays beside the weights, if there are any
    MODEL_CARD.md       for people

`default`, the model that ships, is found in the package.
"""

from __future__ import annotations

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
from pneumoscope.inference.age_gate import check_ages
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
from pneumoscope.storage import folder_writer, sha256_of_file, write_json, write_text

_LOGGER = logging.getLogger(__name__)

SCHEMA_VERSION = 4
"""2 added `members`, `flip` and `store`; 3 tables, certificates, abstention, the input check; with
4 the network is a `.keras` file, where before there were the weights of a DenseNet121 alone."""

MOST_MEMBERS = 32

_MAX_WEIGHTS_BYTES = 1 << 30
_MOST_HIDDEN_UNITS = 65_536


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """The threshold on the calibrated probability, and how it was chosen."""

    value: float = option(0.5, "from this probability up the answer is PNEUMONIA", 0, 1)
    rule: str = "fixed at 0.5"
    chosen_on: str = ""


@dataclass(frozen=True, slots=True)
class Abstention:
    """Where the answer is `uncertain`: low <= probability < high; `none`: nowhere."""

    method: Literal["none", "band", "conformal"] = "none"
    low: float = option(0.5, "NORMAL is answered below it", 0, 1)
    high: float = option(0.5, "PNEUMONIA is answered from there up", 0, 1)
    rule: str = ""
    chosen_on: str = ""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What the model saw."""

    fingerprint: str = ""
    images: int = 0
    patients: int = 0
    positives: int = 0


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """Where the backbone came from."""

    origin: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class InputCheck:
    """How unlike the training images an input may be; method `none`: that is not measured.

    Attributes:
        method: `none`, or `gaussians` with their arrays in the table `input_check`.
        limits: the distance at which an input is refused, by what is described.
        images: training images that the statistics are of.
        patients: held-out patients whom the limits were chosen on.
        refused: share of their images that is refused.
        refused_changed: share of perturbed copies of their images that is refused.
    """

    method: Literal["none", "gaussians"] = "none"
    limits: dict[str, float] = field(default_factory=dict)
    images: int = 0
    patients: int = 0
    refused: float = option(0.0, "share of held-out images", 0, 1)
    refused_changed: float = option(0.0, "share of their perturbed copies", 0, 1)


_SINCE: dict[int, dict[str, Any]] = {
    2: {"members": 1, "flip": False, "store": "float32"},
    3: {
        "abstention": {"method": "none", "low": 0.5, "high": 0.5, "rule": "", "chosen_on": ""},
        "certificates": [],
        "input_check": asdict(InputCheck()),
    },
    4: {},
}
"""The keys that each schema added or changed, with what every bundle before it was."""


_OPTIONAL: dict[str, Any] = {"ages": [], "teachers": []}
"""What a bundle of any schema may leave out."""


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """`bundle.json`.

    `members` networks of one architecture answer together by their mean probability, with `flip`
    each for an image and its left-right mirror image. `store` is the precision of their kernels on
    disk; everything is computed in float32, or faster where `certificates` allow it. `teachers` are
    the models that it was distilled from: name and digest of each. `ages` are the
    youngest and the oldest, in completed years, that the model is for; empty: nobody said.

    Example:
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
    """A bundle on disk whose files were found to be those that its manifest names.

    Example:
        >>> bundle = load_bundle(run.folder)
        >>> [path.name for path in bundle.weights]
        ['model.keras']
    """

    folder: Path
    manifest: BundleManifest

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files of the networks, one per member."""
        return tuple(self.folder / name for name in _network_files(self.manifest))

    def table(self, name: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of `NAME.npz`; `None` if the bundle has no such table.

        Raises:
            BundleError: the file holds no arrays of numbers.
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


def write_bundle(
    folder: Path,
    networks: Any | Sequence[Any],
    manifest: BundleManifest,
    card: str,
    tables: Mapping[str, Table] | None = None,
) -> Bundle:
    """Write a bundle whole: made beside, then renamed over whatever bundle was there.

    Args:
        folder: the bundle.
        networks: one network, or the members of an ensemble, all of `manifest.architecture`.
        manifest: all but `schema_version`, `members` and `files`, which are filled in here; its
            `store` says in which precision weights are written.
        card: the text of the model card.
        tables: arrays by name, by the name of their file without its suffix.

    Raises:
        UsageError: no network, or more than `MOST_MEMBERS`.
        OSError: the folder can't be written or the disk is full; the old bundle is untouched.
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
    """Write a bundle with the weights of another one, byte for byte, and all else as given.

    Tables that are not given are those of the other one; one that is given as `None` is left out.

    Raises:
        OSError: as `write_bundle` does.
    """

    def put(path: Path, number: int) -> None:
        shutil.copyfile(bundle.weights[number], path)

    theirs = bundle.manifest
    kept = replace(
        manifest, schema_version=SCHEMA_VERSION, members=theirs.members, store=theirs.store
    )
    all_tables: dict[str, Table | None] = {**bundle.tables(), **(tables or {})}
    there = {name: table for name, table in all_tables.items() if table is not None}
    return _written(folder, kept, card, there, put)


def _written(
    folder: Path,
    manifest: BundleManifest,
    card: str,
    tables: Mapping[str, Table],
    put: Callable[[Path, int], None],
) -> Bundle:
    """Make the folder beside with the weights that `put` gives by number, and rename it."""
    names = network_names(manifest.members)
    extra = {f"{name}{TABLE_SUFFIX}": table for name, table in tables.items()}
    with folder_writer(folder) as made:
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
    """Find a bundle (a bundle folder, a run folder, or `default`) and check every hash in it.

    Args:
        model: where it lies.
        oldest: schema version that is taken; of one before the present its manifest keeps the
            number, since its networks are stored otherwise.

    Raises:
        UsageError: there is no such folder.
        MissingError: `default` was asked for and this installation ships none.
        BundleError: no bundle, of another schema, incomplete, or changed since it was written.

    Example:
        >>> load_bundle(run.folder).manifest.architecture.name
        'densenet121'
    """
    folder = _find(model)
    path = folder / MANIFEST
    document = bundle_files.read_manifest(folder)
    found = document.get("schema_version") if isinstance(document, dict) else None
    if type(found) is not int or not 1 <= found <= SCHEMA_VERSION:
        raise BundleError(
            f"{path}: found schema version {found!r}, this pneumoscope reads {SCHEMA_VERSION} and "
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
                "This installation ships no default model. Train one: pneumoscope train DATA "
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
    """See that the bundle holds the files of its manifest, as they were written, and no others."""
    listed, weights = manifest.files, _network_files(manifest)
    present = {p.name for p in folder.iterdir() if not p.name.startswith(".")} - {MANIFEST}
    strange = sorted((present ^ set(listed)) - {*weights, CARD})
    if strange:
        where = "is listed in bundle.json and not" if strange[0] in listed else "is"
        raise BundleError(
            f"{folder}: {strange[0]!r} {where} in the bundle; wanted the files of bundle.json and "
            "no others. Copy the whole folder again, or take out what was added."
        )
    idle = sorted(
        n for n in listed if n.endswith((NETWORK_SUFFIX, OLD_SUFFIX)) and n not in weights
    )
    if idle:
        raise BundleError(
            f"{folder}: bundle.json lists {idle[0]!r} and {manifest.members} members; wanted "
            f"{', '.join(weights)}. Copy the whole folder again."
        )
    for name in dict.fromkeys((*weights, CARD, *listed)):
        _check_file(folder / name, listed.get(name))


def _check_model(manifest: BundleManifest, path: Path) -> None:
    """See that the manifest describes a model that this version can build."""
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
            f"{path}: found the threshold {threshold} and answers withheld from {band.low} to "
            f"{band.high}; wanted the threshold in between. Plan again: pneumoscope plan"
        )


def _check_file(path: Path, wanted: str | None) -> None:
    if not path.is_file():
        raise BundleError(f"{path}: is missing from the bundle. Copy the whole folder again.")
    if path.stat().st_size > _MAX_WEIGHTS_BYTES:
        raise BundleError(f"{path}: {path.stat().st_size} bytes are more than any bundle of ours.")
    found = sha256_of_file(path)
    if found != wanted:
        raise BundleError(
            f"{path}: SHA-256 is {found[:16]}…, bundle.json says {str(wanted)[:16]}…. The file was "
            "changed or damaged since it was written; copy the bundle again or train again."
        )


def load_networks(bundle: Bundle) -> tuple[Any, ...]:
    """The Keras networks of a bundle, one per member.

    Raises:
        ExtraMissingError: Keras is not installed.
        BundleError: a network is not of the architecture that the manifest states, names other
            code than Keras' own layers, would fill the memory, or holds what is no finite number.
    """
    architecture = bundle.manifest.architecture
    for path in bundle.weights:
        read_network(path, architecture)  # every check, before Keras reads it
    keras = load_keras()
    return tuple(keras.saving.load_model(path, compile=False) for path in bundle.weights)
