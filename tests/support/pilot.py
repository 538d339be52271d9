"""A pilot where there is no network but loopback: run by test_pilot.py.

Orthanc has many drawn studies; they are fetched, sent to the node, its reports and segmentations go
into the same studies, its results are joined with readings. Prints what Orthanc has in the end, as
JSON on the last line; the tables stay in the folder.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.cli.app import run
from support import node_process
from support.dicom_peers import send, until
from support.dicom_reports import xray_bytes
from support.orthanc import DICOM, ask, get, orthanc

NODE = 11112
FIRST = date(2026, 9, 7)
LAST = FIRST + timedelta(days=29)


AGES = (2, 60)
"""Ages that the node's model is for; those of the patients go from 0 to 79."""


def rejected(k: int, count: int) -> bool:
    """Whether image `k` of `count` is a lateral view, a knee, or of a patient of another age."""
    age = None if k in (7, 8) else k * 80 // count
    other = age is not None and not AGES[0] <= age <= AGES[1]
    return k % 23 == 4 or k % 31 == 9 or other


def studies(count: int) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The images, and what two readers said of most of them."""
    rng = np.random.default_rng(24)
    images, readings = [], []
    ramp = np.linspace(0, 1, 64)[:, None] * np.ones((1, 56))
    for k in range(count):
        positive = int(rng.random() < 0.35)
        bright = float(np.clip(rng.normal(0.35 + 0.3 * positive, 0.15), 0.05, 0.95))
        samples = (4095 * ramp ** (1 / bright - 1)).astype(np.uint16)  # whose mean is `bright`
        elements: dict[str, Any] = {
            "StudyDate": f"{FIRST + timedelta(days=k // 10):%Y%m%d}",
            "PatientAge": f"{k * 80 // count:03d}Y",
            "Modality": "DX",
            "PatientID": f"P{k // 2}",
        }
        if k in (7, 8):
            elements |= {"PatientAge": None, "PatientBirthDate": None}
        if k % 23 == 4:
            elements["ViewPosition"] = "LL"
        if k % 31 == 9:
            elements["BodyPartExamined"] = "KNEE"
        images.append(xray_bytes(k, samples=samples, **elements))
        if k % 9:
            readings.append({"accession": f"A{k}", "reading": positive, "reader": "R1"})
        if k % 5 == 0:
            other = positive if k % 20 else 1 - positive
            readings.append({"accession": f"A{k}", "reading": other, "reader": "R2"})
    return images, readings


def main(folder: Path, count: int) -> dict[str, Any]:
    images, readings = studies(count)
    with (folder / "read.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, readings[0])
        writer.writeheader()
        writer.writerows(readings)
    without = sum(rejected(k, count) for k in range(count))
    wanted = 2 * count + 2 * (count - without)
    with orthanc(folder, NODE, route=False):
        for content in images:
            ask("/instances", content)
        pacs = f"PACS@127.0.0.1:{DICOM}"
        days = ["--from", FIRST.isoformat(), "--to", LAST.isoformat()]
        _do("fetch", "--pacs", pacs, *days, "--out", folder / "got", "--min-free", 0)
        spool = folder / "spool"
        settings = {"forward": pacs, "spool": str(spool), "segmentation": True}
        node = node_process.start(port=NODE, ages=AGES, **settings)
        try:
            until(lambda: _sent(folder, count), "the node taking all images")
            while get("/statistics")["CountInstances"] < wanted:  # the test's time-out ends it
                time.sleep(0.5)
            _do("node", "results", "--spool", spool, "--out", folder / "scores.csv")
        finally:
            node.terminate()
            node.wait(60)
        series = get("/series?expand")
    _do(
        *("readings", folder / "scores.csv", folder / "read.csv", "--out", folder / "out"),
        *("--resamples", 200),
    )
    found: dict[str, list[str]] = {}
    for one in series:
        found.setdefault(one["ParentStudy"], []).append(one["MainDicomTags"]["Modality"])
    return {"studies": list(found.values()), "refused": without}


def _do(*words: Any) -> None:
    code = run([*map(str, words), "-q"])
    if code:
        raise SystemExit(code)


def _sent(folder: Path, count: int) -> bool:
    files = sorted((folder / "got" / "images").glob("*.dcm"))
    try:
        return send(NODE, [path.read_bytes() for path in files]) == [0] * count
    except (OSError, AssertionError, RuntimeError):
        return False


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
