"""README.md and ARCHITECTURE.md are true: paths exist, commands run, exit codes are the code's."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from pneumoscope import cli, errors
from pneumoscope.cli.app import app, run
from pneumoscope.config import FitConfig, PreprocessConfig, TrainConfig, to_toml
from support.scripts import load_script

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pneumoscope"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
DOCUMENTS = {"README.md": README, "ARCHITECTURE.md": ARCHITECTURE, "docs/guide.md": GUIDE}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*/?")
SUFFIXES = (".py", ".md", ".toml", ".txt", ".ipynb", ".cff")

MARK = "<!-- commands: run by tests/test_documentation.py -->"
MADE_BY_COMMANDS = ("demo/", "runs/", "xrays", "heatmaps")
"""What the documents name and only a run makes."""
OF_USERS = ("train/", "val/", "test/", "NORMAL/", "PNEUMONIA/", "RUN/", "config.toml", "FILE.toml")
"""What the documents name and only users have."""


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


def architecture_tree() -> tuple[list[str], list[str]]:
    """Folders and modules (or patterns of them) that ARCHITECTURE.md names, relative.

    Names stand in the first folder to their left that is indented less.
    """
    named: list[str] = []
    inside: list[str] = []
    where: list[tuple[int, str]] = []
    for line in tree_of(ARCHITECTURE, "src/pneumoscope/").splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        where = [(depth, name) for depth, name in where if depth < indent]
        prefix = "".join(name for _, name in where)
        if folder := re.match(r"(\w+/)", line.lstrip()):
            where.append((indent, folder[1]))
            prefix += folder[1]
            inside.append(prefix.rstrip("/"))
        named += [prefix + name for name in re.findall(r"[\w*]+\.py\b", line)]
    return inside, named


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


@pytest.mark.parametrize("document", DOCUMENTS)
def test_link_targets_exist(document: str) -> None:
    targets = [target for target in LINK.findall(DOCUMENTS[document]) if "://" not in target]
    folder = (ROOT / document).parent
    missing = [t for t in targets if not (folder / t.split("#")[0]).exists()]
    missing += [
        f"{label} → {target}"
        for label, target in re.findall(r"\[`([^`]+)`\]\(([^)\s]+)\)", DOCUMENTS[document])
        if not target.endswith(label)
    ]
    assert missing == []


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md"])
def test_paths_in_prose_exist(document: str) -> None:
    prose = FENCE.sub("", DOCUMENTS[document])
    words = [word for text in INLINE.findall(prose) for word in text.split()]
    named = [w for w in words if PATH.fullmatch(w) and ("/" in w or w.endswith(SUFFIXES))]
    known = (*MADE_BY_COMMANDS, *OF_USERS)
    asked = [word for word in named if not word.startswith(known)]
    assert asked, "the pattern finds no path any more"
    everything = [path.name for path in PACKAGE.rglob("*.py")]
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


def test_architecture_names_what_exists() -> None:
    inside, named = architecture_tree()
    there = modules()
    assert [name for name in inside if name not in folders()] == []
    assert [name for name in named if not fnmatch.filter(there, name)] == []


def test_architecture_names_all_there_is() -> None:
    inside, named = architecture_tree()
    of_modules = {Path(name).parent.as_posix() for name in modules()} - {"."}
    assert of_modules - set(inside) == set()
    covered = {name for pattern in named for name in fnmatch.filter(modules(), pattern)}
    assert [name for name in modules() if name not in covered] == []


@pytest.mark.parametrize(
    "line", [line for text in DOCUMENTS.values() for line in command_lines(text)]
)
def test_commands_in_documents_parse(line: str) -> None:
    """Names, options, values and what is required, as the application itself reads them."""
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words, f"{line}: a group is no command"
        assert words[0] in command.commands
        command = command.commands[words.pop(0)]
    command.make_context(line, words)


def test_readme_and_guide_show_most_commands() -> None:
    shown = {tuple(shlex.split(line)[1:3]) for line in command_lines(README + GUIDE)}
    groups = {command[:2] if command[0] == "data" else command[:1] for command in commands()}
    first = {words if words[0] == "data" else words[:1] for words in shown}
    assert groups - first <= {("demo",)}, "`make demo` stands for demo"


def test_options_in_prose_exist(options: dict[tuple[str, ...], set[str]]) -> None:
    every = set().union(*options.values())
    for text in DOCUMENTS.values():
        for code in INLINE.findall(FENCE.sub("", text)):
            given = {word for word in code.split() if re.fullmatch(r"--?[a-z][\w-]*", word)}
            command = (code.split()[0],)
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
    words = {1: "defect", 2: "usage", 3: "input", 4: "missing", 130: "interrupted"}
    assert [code for code, word in words.items() if word not in said[code]] == []


def published() -> list[Path]:
    """Everything that people read: documents at the root, docs/, examples/, the notebooks."""
    found = [path for path in ROOT.iterdir() if path.suffix in {".md", ".cff"}]
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


def test_guide_commands_run(readme_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(readme_folder / "cache"))
    run_block(GUIDE, readme_folder, 12)
    made = ("audit/audit.html", "split.csv", "runs/a/model/bundle.json", "runs/a/report.html")
    for name in (*made, "evaluation/metrics.json", "evaluation/report.html", "predictions.csv"):
        assert (readme_folder / name).stat().st_size > 0, name
    films = len(list((readme_folder / "xrays" / "test").rglob("*.png")))
    assert films > 0
    assert len(list((readme_folder / "heatmaps").glob("*.png"))) == films


def test_readme_results_are_the_cards() -> None:
    module = load_script("docs/make_results.py")
    card = module.CARD.read_text(encoding="utf-8")
    assert module.with_table(README, card) == README
    assert module.table(card).count("\n") == 6
    changed = card.replace("| auc | 0.9926 ", "| auc | 0.1234 ")
    assert "| AUC | 0.123 |" in module.with_table(README, changed)


def test_readme_python_runs(
    readme_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pneumoscope.images.phantom import draw, write_phantoms
    from pneumoscope.images.phantom.folder import encode_dicom

    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(readme_folder / "cache"))
    if not (readme_folder / "xrays").exists():  # this test was run alone
        write_phantoms(readme_folder / "xrays", 120)
    phantom = draw(1, "guest", number=1, label=1)
    (readme_folder / "film.dcm").write_bytes(encode_dicom(phantom, serial=1, seed=1))
    source = next(block for _, block in fences(README) if "import pneumoscope" in block)
    small = source.replace("views=1)", "views=1, preprocess=SMALL.preprocess, fit=SMALL.fit)")
    assert small != source
    exec(compile(small, "README.md", "exec"), {"SMALL": SMALL})  # noqa: S102
    probability, answer, *shape = capsys.readouterr().out.split(maxsplit=2)
    assert 0.0 <= float(probability) <= 1.0
    assert answer in {"NORMAL", "PNEUMONIA"}
    assert "".join(shape).strip() == "(2, 2)"
