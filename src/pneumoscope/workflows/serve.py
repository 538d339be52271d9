"""`serve`: run a model as an HTTP service until it is stopped."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib import util
from typing import Any

from pneumoscope.config import LimitsConfig, ServeConfig, check_ranges
from pneumoscope.errors import ExtraMissingError
from pneumoscope.inference.predictor import Predictor
from pneumoscope.workflows.inspect import EXTRAS
from pneumoscope.workflows.known_answer import confirm


def run_serve(model: str, config: ServeConfig, limits: LimitsConfig) -> tuple[dict[str, Any], str]:
    """Serve predictions over HTTP until SIGTERM.

    Args:
        model: a bundle, a run, or `default`.
        config: address, capacity, timeouts, access control.
        limits: limits on the size of an image; `config.max_upload` limits its bytes.

    Returns:
        A document and a text, after the server has stopped.

    Raises:
        ExtraMissingError: the extra `serve` is not installed.
        UsageError: no such model, a setting is out of range, the port is in use, or a file of keys
            or certificates does not exist.
        MissingError, BundleError: as `load_bundle` raises; or the engine fails the known-answer
            test.
        KeyboardInterrupt: Ctrl-C; requests in progress were completed.
    """
    if not all(util.find_spec(name) for name in EXTRAS["serve"]):
        raise ExtraMissingError("serve", "serve")
    from pneumoscope.delivery.rest import server

    check_ranges(config)
    check_ranges(limits)
    server.api_keys(config)
    server.allowed_hosts(config)
    bound = server.bind(config)
    with bound.socket:
        predictor = Predictor.load(model, any_age=config.any_age)
        confirm(predictor)
        level = logging.getLogger("pneumoscope").level or logging.INFO
        server.serve(predictor, config, replace(limits, max_bytes=config.max_upload), bound, level)
    return {"url": bound.url, "stopped": True}, f"stopped serving on {bound.url}"
