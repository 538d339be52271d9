"""A pilot played through on loopback: Orthanc, fetch, node, reports, readings, the weekly page."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from sklearn.metrics import cohen_kappa_score

from support import pilot
from support.dicom_reports import MANIFEST, needs
from support.orthanc import in_isolation, isolated
from support.readings_by_hand import by_hand, rows_of

STUDIES = 150

THRESHOLD = MANIFEST.threshold.value


@needs("Orthanc", "unshare", "ip")
def test_a_pilot(tmp_path: Path) -> None:
    if not isolated():
        pytest.skip("no network namespace of its own is allowed here (unshare -n)")
    told = in_isolation(Path(pilot.__file__), str(tmp_path), str(STUDIES), timeout=280)
    counts = Counter(tuple(sorted(modalities)) for modalities in told["studies"])
    rejected = told["refused"]
    # The study of the image holds report, capture and segmentation; if rejected, a report alone.
    assert counts == {
        ("DX", "OT", "SEG", "SR"): STUDIES - rejected,
        ("DX", "SR"): rejected,
    }
    got = rows_of(tmp_path / "got" / "images.csv")
    scores = rows_of(tmp_path / "scores.csv")
    assert len(got) == len(scores) == STUDIES
    assert {row["image"] for row in got} == {row["image"] for row in scores}
    reasons = Counter(row["reason"] for row in scores if row["reason"])
    assert set(reasons) == {"lateral_view", "wrong_body_part", "outside_age_range"}
    assert reasons.total() == rejected
    unsure = [row["accession"] for row in scores if "age of this patient is not known" in str(row)]
    assert sorted(unsure) == ["A7", "A8"]
    document: dict[str, Any] = json.loads((tmp_path / "out" / "readings.json").read_text())
    cases = by_hand(tmp_path)
    matched = [c for c in cases if c["score"] is not None and c["label"] is not None]
    assert document["missing"]["matched"] == len(matched) > STUDIES / 2
    truth = np.array([c["label"] for c in matched])
    called = np.array([c["score"] >= THRESHOLD for c in matched])
    matrix = document["confusion_matrix"]
    assert matrix["tp"] == int((called & (truth == 1)).sum())
    assert matrix["fp"] == int((called & (truth == 0)).sum())
    assert document["agreement"]["kappa"]["value"] == pytest.approx(
        cohen_kappa_score(truth, called)
    )
    mondays = sorted({c["week"] for c in cases})
    assert [week["monday"] for week in document["weeks"]] == [m.isoformat() for m in mondays]
    for monday, week in zip(mondays, document["weeks"], strict=True):
        mine = [c for c in cases if c["week"] == monday]
        assert week["cases"] == len(mine)
        assert sum(week["refused"].values()) == sum(c["score"] is None for c in mine)
        so_far = [c for c in matched if c["week"] <= monday and c["label"] == 1]
        found = np.mean([c["score"] >= THRESHOLD for c in so_far])
        assert week["sensitivity"]["value"] == pytest.approx(found)
    page = (tmp_path / "out" / "readings.html").read_text()
    assert "lateral view" in page
