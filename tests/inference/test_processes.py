"""Processes are replaced when a call takes too long, takes too much memory, or crashes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumoscope.config import LimitsConfig, PreprocessConfig
from pneumoscope.errors import Reason
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.inference import processes as module
from pneumoscope.inference.preparing import Decoder, Prepared
from pneumoscope.inference.processes import CallError, EndedError, Processes, StoppedError
from pneumoscope.records import Prediction
from support.dying import allocate, die, fail_without_result, slept, spin
from support.fake_service import xray_png

DECODER = Decoder(LimitsConfig(), Preprocessor(PreprocessConfig(size=32)))


@pytest.fixture
def one() -> Iterator[Processes]:
    made = Processes(1, seconds=1.0, memory=1 << 30)
    yield made
    made.close()


def test_a_call_that_takes_too_long_is_ended_and_the_next_one_works(one: Processes) -> None:
    with pytest.raises(EndedError) as caught:
        one.call(spin)
    assert caught.value.late
    assert one.call(os.getpid) != os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited there alone")
def test_memory_is_limited(one: Processes) -> None:
    with pytest.raises(CallError, match="MemoryError"):
        one.call(allocate, 4 << 30)
    assert one.call(allocate, 1 << 20) == 1 << 20


def test_a_process_that_dies_or_raises_is_reported(one: Processes) -> None:
    with pytest.raises(EndedError) as caught:
        one.call(die)
    assert not caught.value.late
    with pytest.raises(CallError, match="ValueError: wrong"):
        one.call(fail_without_result)


def test_files_that_end_processes_have_rows(one: Processes) -> None:
    late = one.prepared(spin, "a.png")  # type: ignore[arg-type]  # in place of a decoder
    assert isinstance(late, Prediction)
    assert (late.path, late.status, late.reason) == ("a.png", "refused", Reason.TOO_COMPLEX)
    good = one.prepared_content(DECODER, xray_png(), "b.png")
    assert isinstance(good, Prepared)
    assert good.source == "b.png"


def test_slow_calls_do_not_hold_up_others_while_spare_ones_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOW_SECONDS", 0.05)
    made = Processes(1, spare=1)
    ended: list[str] = []

    def wait() -> None:
        try:
            ended.append(made.call(slept, tmp_path / "a", 3600.0))
        except StoppedError:
            ended.append("with the others")

    slow = threading.Thread(target=wait)
    slow.start()
    while not (tmp_path / "a").exists():
        time.sleep(0.01)
    assert made.call(os.getpid)
    assert not ended
    made.close()
    slow.join()
    assert ended == ["with the others"]


def test_none_is_begun_after_the_end(one: Processes) -> None:
    assert one.call(os.getpid)
    one.close()
    with pytest.raises(StoppedError):
        one.call(os.getpid)
