"""What a user meets first: light imports, the public names and their examples, exit codes."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pneumoscope
from pneumoscope import config, errors
from pneumoscope.errors import Reason
from pneumoscope.images.phantom import write_phantoms
from support.small_network import small_network

HEAVY = ("tensorflow", "keras", "openvino", "matplotlib", "torch", "jax", "numpy", "scipy")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
CONSTANTS = {"RECIPES", "__version__"}
"""Public names that are no class or function, and so have no docstring."""

OBJECTS = {name: getattr(pneumoscope, name) for name in pneumoscope.__all__}
DOCUMENTED = sorted(set(OBJECTS) - CONSTANTS)
SOURCE = ast.parse(Path(pneumoscope.__file__).read_text(encoding="utf-8"))


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, pneumoscope, pneumoscope.cli.app as a\n"
        "assert a.run(['--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "predict" in done.stdout


def test_what_scores_an_image_file_loads_only_what_it_needs() -> None:
    """One image from a cold start takes a second: each of these would add a quarter to it."""
    code = (
        "import sys, pneumoscope.inference.predictor, pneumoscope.workflows.predict\n"
        "unused = ('pydicom', 'requests', 'scipy', 'polars', 'keras', 'pneumoscope.data.index')\n"
        "print([name for name in unused if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dir_shows_the_public_names_and_nothing_else() -> None:
    """In a process of its own, before and after names and modules are loaded."""
    code = (
        "import pneumoscope\n"
        "first = dir(pneumoscope)\n"
        "pneumoscope.Predictor, pneumoscope.load_dataset\n"
        "import pneumoscope.evaluation.metrics\n"
        "assert first == dir(pneumoscope) == sorted(pneumoscope.__all__)\n"
        "own = [n for n in vars(pneumoscope) if n[0] != '_']\n"
        "print(*own)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # What completion finds beside `dir`: names that were used, and folders that were imported.
    folders = {path.name for path in Path(pneumoscope.__file__).parent.iterdir() if path.is_dir()}
    modules = {path.stem for path in Path(pneumoscope.__file__).parent.glob("*.py")}
    assert set(done.stdout.split()) <= {"Predictor", "load_dataset", *folders, *modules}


def test_type_checkers_see_the_same_names_at_the_same_places() -> None:
    """The imports for type checkers, `__all__` and the names that are loaded on use agree."""
    (block,) = [node for node in SOURCE.body if isinstance(node, ast.If)]
    imported = {
        alias.asname or alias.name: str(node.module).removeprefix("pneumoscope.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == pneumoscope._MODULES
    assert {*imported, "__version__"} == set(pneumoscope.__all__)
    assert len(pneumoscope.__all__) == len(set(pneumoscope.__all__))


def test_no_public_name_hides_a_folder_or_module() -> None:
    """`import pneumoscope.x` would replace the name, depending on what ran before."""
    package = Path(pneumoscope.__file__).parent
    modules = {path.stem for path in package.iterdir()}
    assert modules & set(pneumoscope.__all__) == set()


def test_unknown_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pneumoscope.nothing
    with pytest.raises(ImportError):
        importlib.import_module("pneumoscope.nothing")
    assert pneumoscope.Answer is pneumoscope.Result  # of code that was written for it


def test_what_belongs_together_is_public_together() -> None:
    raised = {name for name, kind in vars(errors).items() if _is_error(kind)}
    settings = {name for name in config.__all__ if name.endswith(("Config", "Target"))}
    recipes = {"RECIPES", "training_config"}
    assert raised | settings | recipes | {"Reason"} <= set(pneumoscope.__all__)


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if inspect.isfunction(OBJECTS[name])])
def test_what_public_functions_return_is_public(name: str) -> None:
    """So that it can be looked up, and named in annotations."""
    text = str(inspect.signature(OBJECTS[name]).return_annotation)
    tree = ast.parse(text, mode="eval")
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    ours = {each for each in named if _is_ours(OBJECTS[name], each)}
    assert ours <= set(pneumoscope.__all__)


def _is_ours(function: Any, name: str) -> bool:
    found = vars(sys.modules[function.__module__]).get(name)
    return isinstance(found, type) and found.__module__.startswith("pneumoscope")


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.PneumoscopeError)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_name_explains_itself(name: str) -> None:
    """One line of what it is, an example, and for functions what they raise and return."""
    found = OBJECTS[name]
    text = inspect.getdoc(found)
    assert text
    assert text.splitlines()[0].endswith("."), text.splitlines()[0]
    assert re.search(r"^Examples:\n +>>>", text, re.MULTILINE), (
        "no example that the site shows as code"
    )
    assert "+SKIP" not in text
    if is_dataclass(found):
        assert not text.startswith(f"{name}("), "the docstring that dataclasses make"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that examples use: the public ones, a data set, an image, and a trained run."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch, small_network():
        patch.setenv("PNEUMOSCOPE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        stand_in = SimpleNamespace(log_metrics=lambda metrics, step: None)
        patch.setitem(sys.modules, "mlflow", stand_in)
        xrays = write_phantoms(folder / "xrays", 40, 1, size=64)
        small: dict[str, Any] = {
            "weights": "none",
            "views": 1,
            "keep_val": True,
            "preprocess": {"size": 32},
        }
        run = pneumoscope.train(xrays, folder / "run", epochs=2, **small)
        yield OBJECTS | {
            "pneumoscope": pneumoscope,
            "Path": Path,
            "folder": folder,
            "xrays": xrays,
            "image": min((xrays / "test" / "PNEUMONIA").glob("*.png")),
            "run": run,
            "predictor": pneumoscope.Predictor.load(run.folder, input_check=False),
            "small": small,
        }


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_in_docstrings_run(
    name: str, shown: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(shown["folder"] / "cache"))
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    finder = doctest.DocTestFinder()
    tests = [test for test in finder.find(OBJECTS[name], name, globs=shown) if test.examples]
    assert tests
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_every_error_has_an_exit_code_of_the_contract() -> None:
    kinds = [kind for kind in vars(errors).values() if _is_error(kind)]
    assert len(kinds) > 10
    assert {kind.exit_code for kind in kinds} == {1, 2, 3, 4, 130}
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or ""), kind


def test_every_reason_is_rejected_or_error() -> None:
    assert {reason.status for reason in Reason} == {"refused", "error"}
    assert Reason.TRUNCATED.status == "error"
    assert Reason.WRONG_MODALITY.status == "refused"
