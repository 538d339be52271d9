"""The command line: exit codes, JSON, help with an example for every command."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pneumoscope
from pneumoscope.cli import app as application
from pneumoscope.cli.app import run
from pneumoscope.cli.options import TERMINAL
from pneumoscope.config import RECIPES

COMMANDS = [
    ["demo"],
    ["info"],
    ["doctor"],
    ["train"],
    ["evaluate"],
    ["predict"],
    ["stress"],
    ["data", "download"],
    ["data", "audit"],
    ["data", "split"],
    ["data", "phantom"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example_and_the_shared_options(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: pneumoscope {' '.join(command)}" in text
    for option in ("--json", "--quiet", "--verbose"):
        assert option in text


def test_help_tells_defaults_from_the_config(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("train", "crossvalidate"):
        run([command, "--help"])
        lines = capsys.readouterr().out.splitlines()
        text = " ".join(" ".join(line.strip("│ ") for line in lines).split())
        assert "or module:function of your own Keras model (default densenet121)" in text
        for name, values in (
            ("largest number of epochs", {n: c.fit.epochs for n, c in RECIPES.items()}),
            ("or a .h5 file", {n: c.weights for n, c in RECIPES.items()}),
            ("the first one is not augmented", {n: c.views for n, c in RECIPES.items()}),
        ):
            each = ", ".join(f"{recipe} {value}" for recipe, value in values.items())
            assert f"{name} (default: {each})" in text


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["predict"], 2, "Missing argument"),
        (["nonsense"], 2, "See: pneumoscope --help"),
        (["data", "split", "x"], 2, "See: pneumoscope data split --help"),
        (["train", "x", "--out", "y", "--views", "three"], 2, "--views"),
        (["train", "x", "--out", "y", "--seed", "-1"], 2, "seed: found -1, wanted 0 to"),
        (["train", "x", "--out", "y", "--epochs", "0"], 2, "epochs: found 0, wanted 1 or more"),
        (["info", "--model", "nowhere"], 2, "no such folder"),
        (["train", "nowhere", "--out", "run", "--weights", "none"], 3, "nowhere"),
        (["data", "audit", "nowhere"], 3, "nowhere"),
        (["train", "x", "--out", "y", "--config", "none.toml"], 2, "Give an existing TOML"),
        (["train", "x", "--out", "run", "--resume"], 2, "holds no run"),
        (["predict", "x.png", "--out", "x.docx"], 2, "wanted one of .csv"),
    ],
)
def test_exit_codes(
    arguments: list[str],
    code: int,
    fragment: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    assert fragment in capsys.readouterr().err


def test_errors_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--model", "nowhere", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["type"] == "UsageError"
    assert document["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["predict", "--json"], 2),
        (["nonsense", "--json"], 2),
        (["train", "--views", "x", "--json"], 2),
    ],
)
def test_a_command_line_that_cant_be_parsed_is_json_too(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == code
    assert run(arguments[:-1]) == code  # and the command after it is not
    assert capsys.readouterr().out == ""


def test_a_defect_is_json_and_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(application, "app", broken)
    with pytest.raises(ZeroDivisionError):
        run(["doctor", "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {"type": "ZeroDivisionError", "message": "ours", "exit_code": 1}


def test_an_exit_code_does_not_outlive_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    TERMINAL.exit_code = 3
    assert run(["--help"]) == 0
    assert "predict" in capsys.readouterr().out


def test_ctrl_c_ends_a_real_prediction_promptly(tmp_path: Path) -> None:
    """The process, its threads and all: 130, one line on stderr, soon."""
    (tmp_path / "images").mkdir()
    for k in range(400):
        (tmp_path / "images" / f"{k}.png").write_bytes(b"slow")
    code = (
        "import os, sys, time\n"
        "from pneumoscope.inference import predictor as p, preparing\n"
        "real = preparing.read_image\n"
        "def slow(*a):\n"
        "    os.write(1, b'reading\\n')\n"
        "    time.sleep(0.2)\n"
        "    return real(*a)\n"
        "preparing.read_image = slow\n"
        "p.Predictor.load = lambda model, *_, **__: p.Predictor(p.BundleManifest(), None)\n"
        "sys.argv = ['pneumoscope', 'predict', 'images', '--out', 'p.csv']\n"
        "from pneumoscope.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out.count("reading") < 20  # of 400
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "p.csv").exists()


def test_phantom_split_and_audit_work_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "phantoms", tmp_path / "split.csv"
    assert run(["data", "phantom", "--out", str(data), "--n", "24", "--json", "-q"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert sum(row["normal"] + row["pneumonia"] for row in drawn["splits"]) == 24
    assert run(["data", "split", str(data), "--out", str(out), "--val", "0.3", "--json", "-q"]) == 0
    dealt = json.loads(capsys.readouterr().out)
    assert sum(row["normal"] + row["pneumonia"] for row in dealt["splits"]) == 24
    assert run(["data", "audit", str(out), "--out", str(tmp_path / "audit"), "-q"]) == 0
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["findings"]
    assert (tmp_path / "audit" / "audit.html").exists()


def test_split_keeps_further_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "phantom", "--out", str(tmp_path), "--n", "8", "-q"]) == 0
    images = sorted(tmp_path.rglob("*.png"))
    rows = [f"{p.relative_to(tmp_path)},{int('PNEUMONIA' in str(p))},female" for p in images]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,sex", *rows]))
    elsewhere = tmp_path / "other" / "s.csv"  # paths are absolute there, beside a further column
    assert run(["data", "split", str(tmp_path / "m.csv"), "--out", str(elsewhere)]) == 0
    capsys.readouterr()
    assert run(["data", "split", str(elsewhere), "--out", str(tmp_path / "t.csv"), "--json"]) == 0
    header, first = (tmp_path / "t.csv").read_text().splitlines()[:2]
    assert header == "path,label,patient,split,sex"
    assert first.endswith(",female")


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", ""],
        ["predict", "  "],
        ["predict", "x.png", ""],
        ["evaluate", "", "--out", "e"],
        ["data", "audit", ""],
        ["data", "split", ".", "--out", ""],
        ["train", ".", "--out="],
        ["predict", "x.png", "--model", ""],
    ],
)
def test_an_empty_argument_is_not_this_folder(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert "found an empty argument" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_choice_that_is_none_names_the_choices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "x", "--out", str(tmp_path), "--recipe", "magic"]) == 2
    assert "'--recipe': 'magic' is not one of 'frozen'" in capsys.readouterr().err


def test_the_version_is_that_of_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"pneumoscope {pneumoscope.__version__}\n"
    assert run([]) == 2
    assert "--version" in capsys.readouterr().out


def test_doctor_reports_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["core_missing"] == []
    assert document["cache"]["writable"] is True


def test_interruption_and_full_disk_have_their_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(application, "app", interrupted)
    assert run(["train", "x"]) == 130
    assert run(["predict", "x"]) == 130
    assert "--resume" not in capsys.readouterr().err
    (tmp_path / "config.toml").touch()
    for out in (["--out", str(tmp_path)], [f"--out={tmp_path}"]):
        assert run(["train", "x", *out]) == 130
        assert "Continue: the same command with --resume" in capsys.readouterr().err

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a/model")

    monkeypatch.setattr(application, "app", full)
    assert run([]) == 4
    assert "runs/a/model: No space left" in capsys.readouterr().err


def test_missing_weights_leave_no_run_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "phantoms", tmp_path / "run"
    assert run(["data", "phantom", "--out", str(data), "--n", "24", "-q"]) == 0
    asked = ["train", str(data), "--out", str(out), "--keep-val", "-q"]
    assert run([*asked, "--weights", str(tmp_path / "none.h5")]) == 4
    assert "none.h5" in capsys.readouterr().err
    assert not out.exists()


def test_outputs_that_cannot_be_are_reported_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert run(["data", "split", "nowhere", "--out", str(tmp_path)]) == 2
    assert "is a folder, wanted a file" in capsys.readouterr().err
    assert run(["data", "split", "nowhere", "--out", "x.csv", "--val", "1.5"]) == 2
    assert run(["data", "audit", "nowhere", "--out", str(file)]) == 2
    assert "wanted a folder" in capsys.readouterr().err


def test_a_reader_that_has_heard_enough_is_no_failure() -> None:
    command = [sys.executable, "-m", "pneumoscope", "info", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")


def test_resume_is_recommended_only_where_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(application, "app", interrupted)
    asked = ["train", "data", "--out", str(tmp_path)]
    assert run(asked) == 130
    assert "Run it again" in capsys.readouterr().err
    (tmp_path / "config.toml").touch()
    assert run(asked) == 130
    assert "--resume" in capsys.readouterr().err
    asked = ["predict", "images", "--out", str(tmp_path / "p.csv")]
    assert run(asked) == 130
    assert "Run it again" in capsys.readouterr().err
    (tmp_path / "p.csv.partial").touch()
    assert run(asked) == 130
    assert "--resume" in capsys.readouterr().err


def test_a_process_ends_without_taking_itself_apart() -> None:
    """What is printed arrives, what is to be done at the end is done, and the code is kept."""
    code = """
import atexit, sys
from pneumoscope import cli
class Large:
    def __del__(self):
        print("taken apart")
kept = Large()
atexit.register(print, "at the end")
print("told", end=", ")
cli._leave(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "told, at the end\n", "")


@pytest.mark.parametrize(
    ("arguments", "prints"),
    [
        (["data", "phantom", "--out", "p2", "--n", "4"], False),
        (["data", "split", "p", "--out", "s.csv", "--test", "0.2"], False),
        (["data", "audit", "p", "--out", "a"], False),
        (["data", "audit", "p"], True),  # nothing else is made
        (["info"], True),
    ],
)
def test_quiet_prints_no_results_that_lie_in_files(
    arguments: list[str],
    prints: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["data", "phantom", "--out", "p", "--n", "12", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert run([*arguments, "-q"]) == 0
    assert bool(capsys.readouterr().out) == prints
