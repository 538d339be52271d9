"""Images of the spool to reports of the spool, through the `Predictor`.

Whatever is wrong with one image stays with it: it is set aside, or tried again a few times, and the
others are answered for. Files of strangers are read in processes that can be ended.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path
from threading import Event

from pneumoscope.delivery.dicom_node.audit import Audit
from pneumoscope.delivery.dicom_node.results import note_result
from pneumoscope.delivery.dicom_node.spool import Film, LostError, Spool
from pneumoscope.delivery.dicom_report.objects import Reporter, ReportObject
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.cautions import counted, joined
from pneumoscope.inference.overlay import shrunk
from pneumoscope.inference.predictor import BATCH, Answer, Predictor
from pneumoscope.inference.processes import CallError, EndedError, Processes, StoppedError

MOST_ATTEMPTS = 5
"""An image that ended the process, or failed, so often is set aside."""

_LOGGER = logging.getLogger(__name__)
_IDLE_SECONDS = 1.0

Made = tuple[ReportObject, ...] | Reason


class Answerer:
    """Answers until it is stopped.

    Args:
        spool: where images come from and reports go.
        predictor: the model.
        reporter: makes reports of its answers.
        audit: is told of every answer.
        processes: where files are read.
    """

    def __init__(
        self,
        spool: Spool,
        predictor: Predictor,
        reporter: Reporter,
        audit: Audit,
        processes: Processes,
    ) -> None:
        self._spool, self._audit = spool, audit
        self._predictor, self._reporter = predictor, reporter
        self._processes = processes
        self._works = False

    def run(self, stop: Event) -> None:
        """Work until `stop`; images that were begun are ended first."""
        while not stop.is_set():
            for number in self._spool.give_up(MOST_ATTEMPTS):
                self._audit.note("given up", film=number, why="ended the program")
            films = self._spool.take(BATCH)
            if films:
                self.answer(films)
            else:
                self._spool.wait(_IDLE_SECONDS)

    def answer(self, films: list[Film]) -> None:
        """Answer for images that were taken; if the disk refuses, the rest of them go back."""
        whole = [film for film in films if self._is_whole(film)]
        ended = 0
        began = time.monotonic()
        answers = self._predictor.predict_files([film.path for film in whole], keep=shrunk)
        try:
            for film, answer in zip(whole, answers, strict=True):
                self._finish(film, answer, began)
                self._works = True
                ended += 1
                began = time.monotonic()
        except StoppedError:  # they go on at the next start
            self._spool.put_back(whole[ended:])
        except (OSError, sqlite3.Error):
            self._spool.put_back(whole[ended:])
            raise
        except Exception as error:  # noqa: BLE001 - of whichever it was, it stays with that one
            self._failed(whole[ended:], error)
        finally:
            answers.close()

    def _is_whole(self, film: Film) -> bool:
        try:
            self._spool.check(film)
        except LostError as lost:
            self._set_aside(film, lost.why)
            return False
        return True

    def _failed(self, films: list[Film], error: Exception) -> None:
        """Images of which one, nobody knows which, raised: each is tried again by itself.

        They have been counted as begun, and what was begun is given alone from then on.

        Raises:
            Exception: `error`, if nothing was answered yet: then it may be the model's fault.
        """
        if not self._works:
            raise error
        _LOGGER.error("answering for images failed: %s", type(error).__name__)
        self._audit.note("failed", films=len(films), why=type(error).__name__)
        if len(films) == 1 and films[0].attempts >= MOST_ATTEMPTS:
            self._set_aside(films[0], f"failed {films[0].attempts} times: {type(error).__name__}")

    def _set_aside(self, film: Film, why: str) -> None:
        self._spool.set_aside(film, why)
        self._audit.note("set aside", film=film.number, why=why)

    def _finish(self, film: Film, answer: Answer, began: float) -> None:
        reports = self._reports(film, answer)
        if reports is None:
            return
        prediction = answer.prediction
        note_result(self._spool.folder, reports, prediction, self._reporter.author)
        new = self._spool.answered(film, reports)
        self._audit.note(
            "answered",
            film=film.number,
            status=prediction.status,
            reason=prediction.reason.value if prediction.reason else None,
            probability=prediction.probability,
            prediction=prediction.prediction,
            threshold=prediction.threshold,
            input_score=prediction.input_score,
            # Kinds only: what a header says may name the patient.
            warnings=joined(sorted(counted([prediction.warnings]))),
            reports=new,
            seconds=round(time.monotonic() - began, 3),
        )

    def _reports(self, film: Film, answer: Answer) -> tuple[ReportObject, ...] | None:
        """The reports of an answer, none if it can't be referred to; `None` if it is set aside."""
        try:
            made: Made = self._processes.call(
                made_reports, self._reporter, film.path, answer, film.variant
            )
        except (EndedError, CallError) as error:
            words = "took too long" if isinstance(error, EndedError) and error.late else "failed"
            self._set_aside(film, f"making its report {words}")
            return None
        if isinstance(made, Reason):
            self._audit.note("no report", film=film.number, why=made.value)
            return ()
        return made


def made_reports(reporter: Reporter, path: Path, answer: Answer, variant: str) -> Made:
    """In a process: the reports of an answer for the file `path`, or why there are none."""
    try:
        return reporter.objects(path.read_bytes(), answer, variant)
    except ImageRefusedError as refusal:
        return refusal.reason
