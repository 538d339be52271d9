"""`serve`: predictions over HTTP; `node`: a model as a DICOM node. Both run until stopped.

`node` also shows its spool, retries items, and writes the table of results.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from importlib import util
from pathlib import Path
from typing import Any

from pneumoscope.config import LimitsConfig, NodeConfig, ServeConfig, check_ranges
from pneumoscope.errors import ExtraMissingError, UsageError
from pneumoscope.inference.predictor import Predictor
from pneumoscope.storage import csv_text, write_text
from pneumoscope.workflows.certify import confirm
from pneumoscope.workflows.inspect import EXTRAS

_LOGGER = logging.getLogger(__name__)
_PACKAGES = ("pynetdicom", "highdicom")
_MOST_LISTED = 200


def run_serve(model: str, config: ServeConfig, limits: LimitsConfig) -> tuple[dict[str, Any], str]:
    """Serve predictions over HTTP until SIGTERM.

    Args:
        model: a bundle, a run, or `default`.
        config: address and limits of requests.
        limits: limits for reading one image; its bytes are those of `config`.

    Returns:
        A document and a text, after the server has stopped.

    Raises:
        ExtraMissingError: the extra `serve` is not installed.
        UsageError: no such model, a setting out of its range, a port that is taken, a missing file
            of keys or TLS, or no key beyond loopback.
        MissingError, BundleError: as `load_bundle` raises; or the engine scores the known phantom
            wrongly.
        KeyboardInterrupt: Ctrl-C; requests under way were completed.
    """
    if not all(util.find_spec(name) for name in EXTRAS["serve"]):
        raise ExtraMissingError("serve", "serve")
    from pneumoscope.delivery.rest import logs, server

    check_ranges(config)
    check_ranges(limits)
    server.api_keys(config)
    server.allowed_hosts(config)
    bound = server.bind(config)
    with bound.socket:
        # Before the model is loaded, so that what is noticed then is a line of JSON as well.
        logs.write_json_lines(logging.getLogger("pneumoscope").level or logging.INFO)
        predictor = Predictor.load(model, any_age=config.any_age, device=config.device)
        confirm(predictor)
        server.serve(predictor, config, replace(limits, max_bytes=config.max_upload), bound)
    return {"url": bound.url, "stopped": True}, f"stopped serving on {bound.url}"


def run_node(
    config: NodeConfig, model: str, stop: threading.Event | None = None
) -> tuple[dict[str, Any], str]:
    """Run a node until SIGTERM, Ctrl-C or `stop`; work under way is finished first.

    Args:
        config: its settings.
        model: a bundle, a run, or `default`.
        stop: event that ends the node.

    Returns:
        The counts of items by state, as a document and as text.

    Raises:
        ExtraMissingError: a package is not installed.
        UsageError: a setting is invalid, or there is no such model.
        MissingError: the engine scores the known phantom wrongly.
        KeyboardInterrupt: Ctrl-C, after everything was closed.
    """
    check_ranges(config, "node")
    _check_installed()
    from pneumoscope.delivery.dicom_node.node import Node
    from pneumoscope.delivery.dicom_node.peers import is_loopback
    from pneumoscope.delivery.export import told_by_place

    if not config.callers and not is_loopback(config.host):
        _LOGGER.warning(
            "--host %s without --callers: anyone who reaches the port may send images. Give the AE "
            "titles that may call, and TLS where the network is shared.",
            config.host,
        )
    stop = stop or threading.Event()
    with _ended_by_sigterm(stop), told_by_place(_LOGGER):
        predictor = Predictor.load(model, any_age=config.any_age, device=config.device)
        confirm(predictor)
        node = Node(config, predictor)
        try:
            node.run(stop)
        finally:
            counts = node.stop()
    return {"spool": config.spool, **counts}, "\n".join(_lines(counts))


def node_status(spool: Path) -> tuple[dict[str, Any], str]:
    """Show the counts of a spool, and the items that were set aside, with reasons.

    Raises:
        UsageError: there is no spool, or its queue is damaged.
    """
    _check_installed()
    from pneumoscope.delivery.dicom_node import status

    with closing(status.opened(spool)) as queue:
        counts, items = status.counted(queue), status.aside(queue)
    lines = _lines(counts)
    for item in items[:_MOST_LISTED]:
        origin = f" of image {item.film}" if item.kind in ("report", "FHIR bundle") else ""
        lines.append(
            f"{item.state}: {item.kind} {item.number}{origin}, {item.failures} failures: {item.why}"
        )
    if len(items) > _MOST_LISTED:
        lines.append(f"and {len(items) - _MOST_LISTED} more")
    if any(item.state == "set aside" for item in items):
        lines.append("Retry them: pneumoscope node retry --spool DIR")
    document = {"spool": str(spool), **counts, "items": [asdict(item) for item in items]}
    return document, "\n".join(lines)


def node_retry(spool: Path) -> tuple[dict[str, Any], str]:
    """Queue items that were set aside again, for the running node or the next one.

    Raises:
        UsageError: there is no spool, or its queue is damaged.
    """
    _check_installed()
    from pneumoscope.delivery.dicom_node import status

    with closing(status.opened(spool)) as queue:
        again = status.try_again(queue, spool)
        left = status.counted(queue)
    lost = left["films_set_aside"] + left["reports_set_aside"] + left["fhir_set_aside"]
    lines = [
        f"queued again: {again['films']} images, {again['reports']} reports, "
        f"{again['fhir']} FHIR bundles, {again['fetches']} fetches"
    ]
    if lost:
        lines.append(f"{lost} have lost their file: send their images again")
    return {"spool": str(spool), "tried_again": again, "lost": lost}, "\n".join(lines)


def node_results(spool: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Write the results of a node as a table; works beside a running node.

    Raises:
        UsageError: there are no results, or `out` is not a CSV file.
    """
    _check_installed()
    from pneumoscope.delivery.dicom_node.status import COLUMNS, read_results

    if out.suffix.lower() != ".csv":
        raise UsageError(f"--out {out}: found the suffix {out.suffix!r}, wanted .csv")
    rows = read_results(spool)
    write_text(out, csv_text(COLUMNS, ([row[name] for name in COLUMNS] for row in rows)))
    counts = Counter(row["status"] for row in rows)
    lines = [f"{len(rows)} images: " + ", ".join(f"{n} {name}" for name, n in counts.items())]
    lines += [f"table  {out} (names patients: keep it as carefully as the images)"]
    return {"out": str(out), "images": len(rows), "counts": dict(counts)}, "\n".join(lines)


def _lines(counts: dict[str, int]) -> list[str]:
    return [f"{_in_words(name):<18} {count}" for name, count in counts.items()]


def _in_words(name: str) -> str:
    """A count as a person reads it: `films_answered` is `images scored`."""
    return name.replace("films", "images").replace("answered", "scored").replace("_", " ")


def _check_installed() -> None:
    if any(util.find_spec(name) is None for name in _PACKAGES):
        raise ExtraMissingError("The DICOM node", "dicom")


@contextmanager
def _ended_by_sigterm(stop: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
