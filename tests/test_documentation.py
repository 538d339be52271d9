"""The documentation is true: links, paths, navigation, commands, options and exit codes exist.

Nothing here needs MkDocs: the site's navigation and links are checked as text.
"""

from __future__ import annotations

import re
import shlex
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import pneumoscope
from pneumoscope import cli, errors
from pneumoscope.cli.app import app, run
from pneumoscope.config import FitConfig, PreprocessConfig, TrainConfig, to_toml
from support.scripts import load_script

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pneumoscope"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
        *("models/README.md", "examples/pacs/README.md", "benchmarks/RESULTS.md"),
        *PAGES,
    )
}
WRITTEN = {
    name: text
    for name, text in DOCUMENTS.items()
    if name
    not in ("docs/commands.md", "docs/experiments.md", "benchmarks/RESULTS.md", "CHANGELOG.md")
}
"""Documents whose commands and options must be those of today: no logs, no printed help."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+?)$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*/?")
SUFFIXES = (".py", ".md", ".toml", ".txt", ".ipynb", ".cff")

MARK = "<!-- commands: run by tests/test_documentation.py -->"
MADE_BY_COMMANDS = ("demo/", "runs/", "xrays", "heatmaps")
"""What the documents name and only a run makes."""
OF_USERS = ("train/", "val/", "test/", "NORMAL/", "PNEUMONIA/", "RUN/", "config.toml", "FILE.toml")
"""What the documents name and only users have."""
OTHER_PROGRAMS = ("python", ".venv/bin/python", "pip")
"""Programs in inline code whose options are their own."""
OF_THE_SITE = ("site/", ".venv", "config.json", "bundle.json")
"""What the documents name and `make docs`, `make test` or a run makes."""


def fences(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return FENCE.findall(text)


def tree_of(text: str, first: str) -> str:
    """The fenced block that draws a tree beginning with `first`."""
    return next(block for _, block in fences(text) if block.startswith(first))


def modules() -> list[str]:
    """Every module of the package but `__init__` and `__main__`, relative, sorted."""
    found = (path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    return sorted(name for name in found if not Path(name).name.startswith("__"))


def folders() -> list[str]:
    """Every folder of the package that holds files, relative, sorted."""
    parents = {path.parent for path in PACKAGE.rglob("*") if path.is_file()}
    found = {parent.relative_to(PACKAGE).as_posix() for parent in parents}
    return sorted(name for name in found if name != "." and "__pycache__" not in name)


def packages() -> list[str]:
    """Folders that the tree of ARCHITECTURE.md names, relative to the package.

    A name stands in the first folder above it that is indented less.
    """
    inside: list[str] = []
    where: list[tuple[int, str]] = []
    for line in tree_of(ARCHITECTURE, "errors, storage").splitlines():
        indent = len(line) - len(line.lstrip())
        where = [(depth, name) for depth, name in where if depth < indent]
        if folder := re.match(r"(\w+)/", line.lstrip()):
            where.append((indent, folder[1]))
            inside.append("/".join(name for _, name in where))
    return inside


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as Python-Markdown makes them; repeats are left out."""
    found = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\](\([^)]*\))?", r"\1", heading)
        plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode("ascii")
        plain = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found


def nav_entries(entry: Any) -> Iterator[str]:
    """The pages that a part of the navigation names."""
    if isinstance(entry, str):
        yield entry
        return
    for part in entry.values() if isinstance(entry, dict) else entry:
        yield from nav_entries(part)


def command_lines(text: str) -> list[str]:
    """Every `pneumoscope …` in fenced blocks and in inline code, comments cut off."""
    lines = [line for _, block in fences(text) for line in block.splitlines()]
    lines += INLINE.findall(FENCE.sub("", text))
    # The tree of README names the package's folder, which is no command.
    return [line.split("  #")[0].strip() for line in lines if line.startswith("pneumoscope ")]


def commands(group: object = None, *above: str) -> Iterator[tuple[str, ...]]:
    """Every command of the application, as words."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from commands(command, *above, name)
        else:
            yield (*above, name)


@pytest.fixture(scope="module")
def options() -> dict[tuple[str, ...], set[str]]:
    """What `--help` of each command offers."""
    import contextlib
    import io

    offered = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        for command in commands():
            stream = io.StringIO()
            with contextlib.redirect_stdout(stream):
                assert run([*command, "--help"]) == 0
            offered[command] = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", stream.getvalue()))
    return offered


@pytest.fixture(scope="module")
def hooks() -> Any:
    """`docs/site_hooks.py`, which the site calls for each page."""
    return load_script("docs/site_hooks.py")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_link_targets_exist(document: str, hooks: Any) -> None:
    text = FENCE.sub("", DOCUMENTS[document])
    targets = [t for t in LINK.findall(text) if "://" not in t and not t.startswith("mailto:")]
    folder = (ROOT / document).parent
    missing = [t for t in targets if not (folder / t.split("#")[0]).exists()]
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else ROOT / document
        if anchor and file.suffix == ".md" and file.exists():
            shown = file.read_text(encoding="utf-8")
            if file.is_relative_to(hooks.DOCS):
                shown = hooks.with_includes(shown, file)
            missing += [] if anchor in anchors(shown) else [target]
    missing += [
        f"{label} → {target}"
        for label, target in re.findall(r"\[`([^`]+)`\]\(([^)\s]+)\)", DOCUMENTS[document])
        if ("/" in label or label.endswith(SUFFIXES)) and not target.endswith(label)
    ]
    assert missing == []


def test_every_page_is_in_the_navigation_once() -> None:
    named = Counter(f"docs/{entry}" for entry in nav_entries(SITE["nav"]))
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert [name for name in PAGES if named[name] != 1] == []


def test_the_site_takes_nothing_from_elsewhere() -> None:
    assert SITE["strict"] is True
    assert SITE["theme"]["font"] is False
    assert "extra_javascript" not in SITE
    assert [name for name in SITE["extra_css"] if not (ROOT / "docs" / name).is_file()] == []
    assert [name for name in SITE["hooks"] if not (ROOT / name).is_file()] == []


def test_files_outside_docs_are_shown_with_links_of_the_site(hooks: Any) -> None:
    page = ROOT / "docs" / "developer" / "architecture.md"
    shown = hooks.with_includes(page.read_text(encoding="utf-8"), page)
    assert shown.startswith("# Architecture\n")
    assert "](../experiments.md)" in shown
    source = ROOT / "README.md"
    text = "[a](ARCHITECTURE.md#x) [`b`](docs/guide.md) [NOTICE](NOTICE) [c](https://d.e) [f](#g)"
    assert hooks.relink(text, source, page) == (
        "[a](architecture.md#x) [`b`](../guide.md) NOTICE [c](https://d.e) [f](#g)"
    )
    assert hooks.relink("[all](NOTICE)", source, page) == "all (`NOTICE`)"
    assert hooks.relink("```\n[a](b)\n```", source, page) == "```\n[a](b)\n```"


@pytest.mark.parametrize("page", PAGES)
def test_includes_exist_and_no_page_is_a_stub(page: str, hooks: Any) -> None:
    path = ROOT / page
    for name in hooks.INCLUDE.findall(DOCUMENTS[page]):
        assert (path.parent / name).is_file(), name
    shown = hooks.with_includes(DOCUMENTS[page], path)
    assert shown.startswith(("# ", "\n# "))
    assert len(shown) > 400


def test_the_api_page_has_every_public_name() -> None:
    shown = re.findall(
        r"^::: pneumoscope\.(\w+)$", DOCUMENTS["docs/reference/api.md"], re.MULTILINE
    )
    assert "`RECIPES`" in DOCUMENTS["docs/reference/api.md"]
    assert sorted(shown) == sorted({*pneumoscope.__all__} - {"__version__", "RECIPES"})


@pytest.mark.parametrize("document", WRITTEN)
def test_code_in_documents_is_code(document: str) -> None:
    for language, block in fences(WRITTEN[document]):
        if language == "python":
            compile(block, document, "exec")
            used = set(re.findall(r"\bpneumoscope\.(\w+)", block)) - {"progress"}
            assert used <= set(pneumoscope.__all__), document
        if language == "toml":
            tomllib.loads(block)


@pytest.mark.parametrize(
    "document",
    [
        *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/researcher/statistics.md"),
        *(f"docs/developer/{name}.md" for name in ("recipe", "backbone", "page", "reader")),
    ],
)
def test_paths_in_prose_exist(document: str) -> None:
    prose = FENCE.sub("", DOCUMENTS[document])
    words = [word for text in INLINE.findall(prose) for word in text.split()]
    named = [w for w in words if PATH.fullmatch(w) and ("/" in w or w.endswith(SUFFIXES))]
    known = (*MADE_BY_COMMANDS, *OF_USERS, *OF_THE_SITE)
    asked = [word for word in named if not word.startswith(known)]
    assert asked, "the pattern finds no path any more"
    everything = [path.name for path in PACKAGE.rglob("*.py")]
    everything += [path.name for path in (ROOT / "tests").rglob("*.py")]
    missing = [
        word
        for word in asked
        if not any((base / word).exists() for base in (ROOT, PACKAGE)) and word not in everything
    ]
    assert missing == []


def test_readme_tree_exists() -> None:
    missing = []
    for line in tree_of(README, "src/pneumoscope/").splitlines():
        folder, said = line.split(maxsplit=1)
        names = re.findall(r"[\w./-]+(?:\.md|\.txt|\.toml)\b|\w+/\w+", said)
        bases = (ROOT, ROOT / folder)
        missing += [] if (ROOT / folder).is_dir() else [folder]
        missing += [name for name in names if not any((base / name).exists() for base in bases)]
    assert missing == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert targets >= {"demo", "test"}
    assert [name for name in targets if f"\n{name}:" not in makefile] == []


def test_architecture_names_every_package_folder() -> None:
    assert sorted(packages()) == folders()


def test_architecture_names_modules_that_exist() -> None:
    top = tree_of(ARCHITECTURE, "errors, storage").splitlines()[:2]
    named = re.findall(r"\w+", " ".join(re.split(r"\s{2,}", line)[0] for line in top))
    assert [name for name in named if not (PACKAGE / f"{name}.py").is_file()] == []
    assert {f"{name}.py" for name in named} == {name for name in modules() if "/" not in name}


@pytest.mark.parametrize(
    "line", sorted({line for text in WRITTEN.values() for line in command_lines(text)})
)
def test_commands_in_documents_parse(line: str) -> None:
    """Names, options, values and what is required, as the application itself reads them."""
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    if words[0] in {name for option in command.params for name in option.opts}:
        return  # an option of the program itself
    while hasattr(command, "commands"):
        assert words, f"{line}: a group is no command"
        assert words[0] in command.commands
        command = command.commands[words.pop(0)]
    command.make_context(line, words)


def test_the_guide_shows_every_command() -> None:
    shown = {tuple(shlex.split(line)[1:3]) for line in command_lines(GUIDE)}
    groups = {command[:2] if command[0] == "data" else command[:1] for command in commands()}
    first = {words if words[0] == "data" else words[:1] for words in shown}
    assert groups - first == set()


def test_the_guide_lists_every_extra_and_chooses_no_threshold_on_a_test_set() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = re.findall(r"^pip install '\.\[(\w+)\]'", GUIDE, re.MULTILINE)
    assert sorted(listed) == sorted({*project["optional-dependencies"]} - {"dev", "docs"})
    assert "plan evaluation" not in GUIDE
    assert "--val 0.2 --test" not in "".join(WRITTEN.values())


def test_options_in_prose_exist(options: dict[tuple[str, ...], set[str]]) -> None:
    every = set().union(*options.values(), *(p.opts for p in typer.main.get_command(app).params))
    for text in WRITTEN.values():
        for code in INLINE.findall(FENCE.sub("", text)):
            given = {word for word in code.split() if re.fullmatch(r"--?[a-z][\w-]*", word)}
            command = (code.split()[0],)
            if command[0] in OTHER_PROGRAMS:
                continue
            assert given <= options.get(command, every), code


def test_every_command_takes_what_the_readme_says(
    options: dict[tuple[str, ...], set[str]],
) -> None:
    said = re.search(r"Every command takes (.+?)\.", README)
    assert said
    shared = set(INLINE.findall(said[1]))
    assert shared == {"--json", "-q", "-v"}
    assert {name: shared - offered for name, offered in options.items() if shared - offered} == {}


def described_exit_codes(text: str) -> dict[int, str]:
    """`Exit codes: 0 done · 1 …` as a table."""
    said = re.search(r"Exit codes: (.+?)\.", " ".join(text.split()))
    assert said
    parts = [part.strip().split(" ", 1) for part in said[1].split("·")]
    return {int(code): words for code, words in parts}


def test_exit_codes_are_those_of_the_errors() -> None:
    raised: dict[int, type[errors.PneumoscopeError]] = {}
    waiting = [errors.PneumoscopeError]
    while waiting:
        kind = waiting.pop(0)
        raised.setdefault(kind.exit_code, kind)
        waiting += kind.__subclasses__()
    said = described_exit_codes(README)
    assert set(said) == {0, *raised}
    assert said == described_exit_codes(cli.__doc__ or "")
    names = {1: "PneumoscopeError", 2: "UsageError", 3: "InputError", 4: "MissingError"}
    assert {code: raised[code].__name__ for code in names} == names
    words = {1: "internal", 2: "usage", 3: "input", 4: "missing", 130: "interrupted"}
    assert [code for code, word in words.items() if word not in said[code]] == []


def published() -> list[Path]:
    """Everything that people read: documents at the root, docs/, examples/, the notebooks."""
    found = [path for path in ROOT.iterdir() if path.suffix in {".md", ".cff", ".yml"}]
    found += sorted((ROOT / ".github").rglob("*.*"))
    found += [ROOT / "NOTICE", ROOT / "Makefile"]
    for folder in ("docs", "examples", "notebooks"):
        found += [path for path in (ROOT / folder).rglob("*") if path.suffix in {".md", ".ipynb"}]
    return sorted(found)


@pytest.mark.parametrize("path", published(), ids=lambda path: path.name)
def test_documents_name_no_path_of_this_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    absolute = re.findall(r"(?<![\w.:/~)>])/(?:[\w.-]+/)*[\w.-]+", text)
    here = [name for name in absolute if Path("/", name.split("/")[1]).exists()]
    here += re.findall(r"/home/\S+|/Users/\S+|\b[A-Z]:\\\S+", text)
    here += [name for name in (str(ROOT), str(Path.home())) if len(name) > 1 and name in text]
    assert here == []


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder with a cache of its own, in which README's blocks are run in order."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


SMALL = TrainConfig(preprocess=PreprocessConfig(size=64), fit=FitConfig(epochs=3))
"""All that is changed in what README shows: smaller pictures and fewer epochs, to be quick."""


def run_block(text: str, folder: Path, least: int) -> None:
    """Run the commands of the marked block in the current folder, which is `folder`."""
    (folder / "small.toml").write_text(to_toml(SMALL), encoding="utf-8")
    block = FENCE.match(text.split(MARK + "\n", 1)[1])
    assert block
    lines = block[2].splitlines()
    assert len(lines) >= least
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "pneumoscope"
        small = ["--config", "small.toml"] if words[1] in ("train", "crossvalidate") else []
        assert run([*words[1:], *small]) == 0, line


def test_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    run_block(README, tmp_path, 5)
    for name in ("runs/a/report.html", "evaluation/report.html", "stress/stress.html"):
        assert (tmp_path / name).stat().st_size > 0, name


@pytest.mark.long
def test_guide_commands_run(readme_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(readme_folder / "cache"))
    run_block(GUIDE, readme_folder, 12)
    made = ("audit/audit.html", "split.csv", "runs/a/model/bundle.json", "runs/a/report.html")
    for name in (*made, "evaluation/metrics.json", "evaluation/report.html", "predictions.csv"):
        assert (readme_folder / name).stat().st_size > 0, name
    images = len(list((readme_folder / "xrays" / "test").rglob("*.png")))
    assert images > 0
    assert len(list((readme_folder / "heatmaps").glob("*.png"))) == images


def test_readme_results_are_the_cards() -> None:
    module = load_script("docs/make_results.py")
    card = module.CARD.read_text(encoding="utf-8")
    for page in module.PAGES:
        text = page.read_text(encoding="utf-8")
        assert module.with_results(text, card) == text, page
    assert module.table(card).count("\n") == 6
    changed = re.sub(r"\| AUC \| [\d.]+ ", "| AUC | 0.123 ", card)
    assert "| AUC | 0.123 |" in module.with_results(README, changed)
    assert module.selection(card) in (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


def test_readme_states_the_official_folder_as_the_card_does() -> None:
    card = load_script("docs/make_results.py").CARD.read_text(encoding="utf-8")
    of_readme = README.split("on the official test folder. Its predecessor")[1].split("\n\n")[0]
    of_card = card.split("On the official test folder")[1].split("In the training folder")[0]
    stated = re.findall(r"0\.\d{3}", of_readme)
    assert len(stated) == 5
    assert stated == re.findall(r"0\.\d{3}", of_card)


def test_readme_python_runs(
    readme_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pneumoscope.images.phantom import write_phantoms

    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(readme_folder / "cache"))
    if not (readme_folder / "xrays").exists():  # this test was run alone
        write_phantoms(readme_folder / "xrays", 120)
    source = next(block for _, block in fences(README) if "import pneumoscope" in block)
    small = source.replace("views=1)", "views=1, preprocess=SMALL.preprocess, fit=SMALL.fit)")
    assert small != source
    exec(compile(small, "README.md", "exec"), {"SMALL": SMALL})  # noqa: S102
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    for line in lines:
        path, label, probability, shape = line.split(maxsplit=3)
        assert (readme_folder / path).is_file()
        assert label in {"NORMAL", "PNEUMONIA"}
        assert 0.0 <= float(probability) <= 1.0
        assert shape == "(2, 2)"
