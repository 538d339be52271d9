"""`serve`: load a model once and serve predictions over HTTP until stopped."""

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
        config: address and limits of requests.
        limits: limits for reading one image; its bytes are those of `config`.

    Returns:
        A document and a text, after the server has stopped.

    Raises:
        ExtraMissingError: the extra `serve` is not installed.
        UsageError: no such model, a setting out of its range, a port that is taken, or a missing
            file of keys or TLS.
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
