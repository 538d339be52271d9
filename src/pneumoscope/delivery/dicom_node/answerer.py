"""Films of the spool to reports of the spool, through the `Predictor`.

Comes in: films that wait. Goes out: their reports, in the spool. Knows nothing of the network.
"""

from __future__ import annotations

import sqlite3
import time
from threading import Event

from pneumoscope.delivery.dicom_node.audit import Audit
from pneumoscope.delivery.dicom_node.spool import Film, Spool
from pneumoscope.delivery.dicom_report.objects import Reporter, ReportObject
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.cautions import counted, joined
from pneumoscope.inference.overlay import shrunk
from pneumoscope.inference.predictor import BATCH, Answer, Predictor
from pneumoscope.records import Prediction

MOST_ATTEMPTS = 5
"""A film that ended the process so often is not tried again: its report says so."""

_IDLE_SECONDS = 1.0


class Answerer:
    """Answers until it is stopped.

    Args:
        spool: where films come from and reports go.
        predictor: the model.
        reporter: makes reports of its answers.
        audit: is told of every answer.
    """

    def __init__(
        self, spool: Spool, predictor: Predictor, reporter: Reporter, audit: Audit
    ) -> None:
        self._spool, self._audit = spool, audit
        self._predictor, self._reporter = predictor, reporter

    def run(self, stop: Event) -> None:
        """Work until `stop`; films that were begun are ended first."""
        while not stop.is_set():
            films = self._spool.take(BATCH)
            if films:
                self.answer(films)
            else:
                self._spool.wait(_IDLE_SECONDS)

    def answer(self, films: list[Film]) -> None:
        """Answer for films that were taken; if the disk refuses, the rest of them go back."""
        given_up = [film for film in films if film.attempts > MOST_ATTEMPTS]
        rest = [film for film in films if film not in given_up]
        ended = 0
        try:
            for film in given_up:
                self._finish(film, _gave_up(film), time.monotonic())
            began = time.monotonic()
            paths = [film.path for film in rest]
            for film, answer in zip(
                rest, self._predictor.predict_files(paths, keep=shrunk), strict=True
            ):
                self._finish(film, answer, began)
                ended += 1
                began = time.monotonic()
        except (OSError, sqlite3.Error):
            self._spool.put_back(rest[ended:])
            raise

    def _finish(self, film: Film, answer: Answer, began: float) -> None:
        reports = self._reports(film, answer)
        new = self._spool.answered(film, reports)
        prediction = answer.prediction
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

    def _reports(self, film: Film, answer: Answer) -> tuple[ReportObject, ...]:
        try:
            return self._reporter.objects(film.path.read_bytes(), answer)
        except ImageRefusedError as refusal:  # it can't even be referred to
            self._audit.note("no report", film=film.number, why=refusal.reason.value)
            return ()


def _gave_up(film: Film) -> Answer:
    detail = (
        f"answering for it ended the program {film.attempts - 1} times, so it is not tried again"
    )
    return Answer(Prediction(str(film.path), "error", Reason.INTERNAL_ERROR, detail=detail))
