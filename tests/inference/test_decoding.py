"""Reading ahead in threads or processes: in order, within a window, after crashes too."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import LimitsConfig, PreprocessConfig
from pneumoscope.errors import MissingError, Reason
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.inference.overlay import LONGEST_SIDE, shrunk
from pneumoscope.inference.preparing import WINDOW, Decoder, Prepared, decoded
from pneumoscope.records import Prediction
from support.dying import Dying, NeverArrives

DECODER = Decoder(LimitsConfig(), Preprocessor(PreprocessConfig(size=32)))


def image_files(folder: Path, names: list[str]) -> list[Path]:
    for k, name in enumerate(names):
        grey = np.full((40, 48), 10 + k, np.uint8)
        grey[10:20] += 30
        Image.fromarray(grey).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in names]


def assert_same(found: Prepared | Prediction, wanted: Prepared | Prediction) -> None:
    if isinstance(wanted, Prediction):
        assert found == wanted
        return
    assert isinstance(found, Prepared)
    assert found.source == wanted.source
    np.testing.assert_array_equal(found.tensor, wanted.tensor)


def test_processes_give_what_threads_give_in_order(tmp_path: Path) -> None:
    paths: list[Path | str] = [*image_files(tmp_path, [f"{k:02}" for k in range(50)])]
    paths[7] = tmp_path / "gone.png"
    paths[8] = "null\0.png"
    in_threads = list(decoded(paths, DECODER))
    in_processes = list(decoded(paths, DECODER, workers=2))
    assert len(in_processes) == len(in_threads) == 50
    for found, wanted, path in zip(in_processes, in_threads, paths, strict=True):
        assert_same(found, wanted)
        assert wanted.source if isinstance(wanted, Prepared) else wanted.path == str(path)
    assert isinstance(in_processes[7], Prediction)
    assert in_processes[7].reason == Reason.NOT_FOUND


@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_kept_where_asked_for_and_shrunk(tmp_path: Path, workers: int) -> None:
    grey = np.zeros((300, 2 * LONGEST_SIDE), np.uint8)
    grey[100:200] = 120
    Image.fromarray(grey).save(tmp_path / "a.png")
    keeping = Decoder(DECODER.limits, DECODER.preprocess, keep=shrunk)
    (found,) = decoded([tmp_path / "a.png"], keeping, workers)
    assert isinstance(found, Prepared)
    assert found.image is not None
    assert found.image.pixels.shape == (150, LONGEST_SIDE)


@pytest.mark.parametrize("workers", [0, 1])
def test_names_are_taken_a_window_ahead_and_no_further(tmp_path: Path, workers: int) -> None:
    (path,) = image_files(tmp_path, ["image"])
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield path

    found = decoded(endless(), DECODER, workers)
    for _ in range(100):
        next(found)
    found.close()
    assert taken <= 100 + WINDOW + 4


def test_a_process_that_dies_loses_no_file_and_only_a_deadly_one_has_no_result(
    tmp_path: Path,
) -> None:
    names = [f"{k:02}" for k in range(24)]
    names[0], names[9], names[20] = "deadly", "once-a", "once-b"
    paths = image_files(tmp_path, names)
    (tmp_path / "marks").mkdir()
    dying: Any = Dying(DECODER, tmp_path / "marks")
    found = list(decoded(paths, dying, workers=2))
    assert len(found) == 24
    assert sorted(path.name for path in (tmp_path / "marks").iterdir()) == [
        "deadly.png",
        "once-a.png",
        "once-b.png",
    ]
    for item, path in zip(found[1:], paths[1:], strict=True):
        assert_same(item, DECODER(path))
    deadly = found[0]
    assert isinstance(deadly, Prediction)
    assert (deadly.path, deadly.status) == (str(paths[0]), "error")
    assert deadly.reason == Reason.INTERNAL_ERROR
    assert "killed or crashed" in deadly.detail


def test_processes_that_cant_start_end_the_run_with_the_way_out(tmp_path: Path) -> None:
    never: Any = NeverArrives()
    with pytest.raises(MissingError, match="Leave out --workers"):
        next(decoded(image_files(tmp_path, ["a"]), never, workers=1))


def test_all_processes_are_begun_before_any_reads(tmp_path: Path) -> None:
    """A process that starts while another dies must not be waited for forever."""
    before = set(multiprocessing.active_children())
    found = decoded(image_files(tmp_path, ["a"]), DECODER, workers=3)
    next(found)
    assert len(set(multiprocessing.active_children()) - before) == 3
    found.close()


ENDLESSLY = """
import sys
from itertools import repeat
from pneumoscope.config import LimitsConfig
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.inference.preparing import decoded
from pneumoscope.inference.preparing import Decoder
if __name__ == "__main__":
    for _ in decoded(repeat(sys.argv[1]), Decoder(LimitsConfig(), Preprocessor()), 2):
        print("read", flush=True)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Its output ends only when all processes that hold it have exited."""
    (path,) = image_files(tmp_path, ["image"])
    command = [sys.executable, "-c", ENDLESSLY, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"read\n"
        process.kill()
        assert process.communicate(timeout=30)[0].replace(b"read\n", b"") == b""


FAULTS = """
import resource, sys
from pneumoscope.config import LimitsConfig
from pneumoscope.images.budget import keep_freed_memory
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.inference.preparing import Decoder
if sys.argv[2] == "keep":
    keep_freed_memory()
decode = Decoder(LimitsConfig(), Preprocessor())
for _ in range(3):
    decode(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    decode(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there is anything set but Pillow's part")
def test_memory_that_decoding_frees_is_not_fetched_anew_for_each_image(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (20, 20), np.uint8))
    coarse.resize((1600, 1250)).save(tmp_path / "large.jpeg")

    def faults(what: str) -> int:
        command = [sys.executable, "-c", FAULTS, str(tmp_path / "large.jpeg"), what]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    assert faults("keep") < faults("as it is") / 4
