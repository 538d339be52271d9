"""A script that lies outside the package, as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_ROOT = Path(__file__).parents[2]


def load_script(path: str) -> ModuleType:
    """The script at a path from the repository's root, `benchmarks/coverage.py`.

    It finds scripts beside it, as it does when it is run.
    """
    name = f"{Path(path).stem}_script"
    specification = importlib.util.spec_from_file_location(name, _ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # where dataclasses look their annotations up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((_ROOT / path).parent))
        specification.loader.exec_module(module)
    return module
