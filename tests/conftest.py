"""Every test has a cache of its own, and the shared models are made once per run."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two processes run tests: with as many threads as cores in each, these would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

LONG = (
    *("workflows/test_pilot.py", "workflows/test_kill.py", "workflows/test_backbones.py"),
    *("notebooks/test_notebook.py", "notebooks/test_cross_validation.py"),
    *("benchmarks/test_backends.py", "delivery/dicom_node/test_real_pacs.py"),
    "training/test_backbones.py",
)
"""Files that take longest, and have the marker `long`: `make long`. They come first where all tests
run: last, they would leave one of two cores idle."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if any test is skipped")


@pytest.hookimpl(tryfirst=True)  # before -m chooses by the marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.as_posix().endswith(LONG):
            item.add_marker("long")
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped") if reporter else None
    if skipped and session.config.getoption("--no-skips"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def log_as_it_starts() -> None:
    """A command with `-q`, or the server, changes how all of this process logs."""
    logger = logging.getLogger("pneumoscope")
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logger.handlers.clear()
