"""Version, pins, workflow and release agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from pneumoscope.workflows.inspect import EXTRAS
from support.scripts import load_script

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def pins(name: str) -> dict[str, str]:
    """Package → version of a file in requirements/."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))


def test_one_version_everywhere() -> None:
    version = PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == version
    assert re.findall(r"^## \[([\d.]+)\] - ", CHANGELOG, re.MULTILINE)[0] == version


def test_changelog_keeps_its_form() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in headings[1:])
    kinds = set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_pins_of_the_site_are_those_of_the_extra() -> None:
    pinned = pins("docs.txt")
    for requirement in PROJECT["optional-dependencies"]["docs"]:
        name = re.match(r"[\w-]+", requirement)
        assert name
        assert name[0] in pinned
        if exact := re.search(r"==([\d.]+)$", requirement):
            assert pinned[name[0]] == exact[1]
    assert not set(pins("lock.txt")) & {"mkdocs", "mkdocs-material", "mkdocstrings"}


def test_every_pin_has_a_hash() -> None:
    for name in ("lock.txt", "docs.txt", "release.txt"):
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
        assert len(blocks) > 20
        assert [block for block in blocks if "--hash=sha256:" not in block] == []


def test_one_ruff_everywhere() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (ruff,) = [repo for repo in hooks["repos"] if repo["repo"].endswith("/ruff-pre-commit")]
    assert ruff["rev"] == f"v{pins('lock.txt')['ruff']}" == f"v{pins('docs.txt')['ruff']}"


def test_the_workflow_tests_every_python_and_system() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    promised = {
        name.rsplit(" ", 1)[1]
        for name in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
    }
    assert set(jobs["test"]["strategy"]["matrix"]["python"]) == promised
    assert {"run": "make test"} in jobs["test"]["steps"]
    assert set(jobs["core"]["strategy"]["matrix"]["os"]) == {"macos-latest", "windows-latest"}
    assert {"run": "pneumoscope --help"} in jobs["core"]["steps"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    run = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = [line.split()[1] for line in run if line.startswith("make ")]
    assert [name for name in targets if f"\n{name}:" not in makefile] == []


def test_actions_are_pinned_by_commit() -> None:
    """A tag may be moved to other code; a commit may not."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    assert len(used) > 5
    assert [name for name in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name)] == []


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_templates_are_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_strays_and_gaps_of_a_wheel_are_found() -> None:
    script = load_script("requirements/check_wheel.py")
    good = [*script.NEEDED, "pneumoscope-0.2.0.dist-info/METADATA"]
    assert script.wheel_problems(good) == []
    assert script.wheel_problems([*good, "tests/test_a.py", "benchmarks/b.py"]) == [
        "found benchmarks, expected only the package and its metadata",
        "found tests, expected only the package and its metadata",
    ]
    assert script.wheel_problems(good[1:]) == [f"{good[0]} is missing"]
    row = {"path": "a.png", "status": "ok", "reason": "", "probability": "0.5"}
    assert script.row_problems([row]) == []
    assert script.row_problems([]) == ["found no row, expected one per image"]
    rejected = {**row, "status": "refused", "reason": "corrupt", "probability": ""}
    assert script.row_problems([rejected]) == ["a.png: found status refused (corrupt), expected ok"]


def test_doctor_knows_every_extra_that_users_install() -> None:
    of_developers = {"dev", "docs", "gpu"}  # `gpu` holds the packages of `train`
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"]) - of_developers
