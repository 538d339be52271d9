"""A node that is killed while images pour in: is anything lost or doubled, and how fast is it.

    python benchmarks/pacs.py [--images 500] [--associations 4] [--kills 3] [--model default]

Orthanc (as Debian has it), the node and the senders run where there is no network but loopback
(`unshare -n`), the node as its own command with a real model. Images are synthetic. Senders store
each image until it is acknowledged, and never again; every report ends in Orthanc, and a capture of
every image that the model does not reject (drawings are no X-rays). Prints Markdown; exits with 1
if a report or capture is missing or there is one too many.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from pydicom import dcmread  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402

from pneumoscope.images.phantom.folder import write_phantoms  # noqa: E402
from pneumoscope.inference.predictor import Predictor  # noqa: E402
from support import orthanc  # noqa: E402
from support.dicom_peers import (  # noqa: E402
    audited,
    modality,
    send_until_acknowledged,
)

NODE = 11112
PATTERNS = 20
KINDS = {"SR": "reports", "OT": "captures"}


def main() -> int:
    """Run everything, in a network of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--associations", type=int, default=4)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--model", default="default")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not asked.inside:
        isolated = orthanc.isolated()
        if not isolated:
            sys.exit("no network namespace of its own is allowed here (unshare -n)")
        environment = {**os.environ, "PATH": orthanc.PATHS}
        command = [*isolated, sys.executable, __file__, *sys.argv[1:], "--inside"]
        return subprocess.run(command, env=environment).returncode
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = made_images(folder, asked.images)
        wanted = {"SR": len(images), "OT": predicted(images, asked.model)}
        with orthanc.orthanc(folder, NODE, route=False):
            seconds, kills = storm(folder, images, sum(wanted.values()), asked)
            found = orthanc.instances()
        return told(folder, found, wanted, seconds, kills, asked)


def made_images(folder: Path, count: int) -> list[bytes]:
    """Images of as many patients, of a few patterns."""
    paths = sorted(
        write_phantoms(folder / "xrays", PATTERNS, format="dicom", size=640).rglob("*.dcm")
    )
    images = []
    for k in range(count):
        dataset = dcmread(paths[k % len(paths)])
        dataset.PatientID = f"XRAY-{k:05}"
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            dataset[keyword].value = generate_uid(entropy_srcs=[keyword, str(k)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        stream = BytesIO()
        dataset.save_as(stream)
        images.append(stream.getvalue())
    return images


def predicted(images: list[bytes], model: str) -> int:
    """How many of the images the model scores; the others get a report of their rejection."""
    predictor = Predictor.load(model)
    patterns = [predictor.predict_bytes(image).prediction.status for image in images[:PATTERNS]]
    return sum(patterns[k % PATTERNS] == "ok" for k in range(len(images)))


def start(folder: Path, model: str) -> subprocess.Popen[bytes]:
    """The node, by its command."""
    options = ["--port", str(NODE), "--forward", f"PACS@127.0.0.1:{orthanc.DICOM}", "-q"]
    options += ["--spool", str(folder / "spool"), "--model", model, "--min-free", "0"]
    command = [sys.executable, "-m", "pneumoscope", "node", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def storm(
    folder: Path, images: list[bytes], wanted: int, asked: argparse.Namespace
) -> tuple[float, int]:
    """Send all, kill now and then, wait for `wanted` objects in Orthanc; seconds and kills."""
    acknowledged: list[int] = []
    over = threading.Event()
    node = start(folder, asked.model)
    wait_until_it_listens()
    began = time.perf_counter()
    threads = [
        threading.Thread(
            target=send_until_acknowledged,
            args=(NODE, images[k :: asked.associations], acknowledged.append, over, f"SENDER{k}"),
        )
        for k in range(asked.associations)
    ]
    for thread in threads:
        thread.start()
    kills = 0
    for k in range(asked.kills):
        while len(acknowledged) < (k + 1) * len(images) // (asked.kills + 1):
            time.sleep(0.01)
        node.kill()
        node.wait()
        kills += 1
        node = start(folder, asked.model)
    for thread in threads:
        thread.join()
    while orthanc.get("/statistics")["CountInstances"] < wanted:
        if node.poll() is not None:
            sys.exit(f"the node ended with {node.returncode}")
        time.sleep(0.2)
    seconds = time.perf_counter() - began
    node.terminate()
    if node.wait(60):
        sys.exit(f"the node ended with {node.returncode}")
    return seconds, kills


def wait_until_it_listens() -> None:
    """Until the node takes an association."""
    while True:
        association = modality().associate("127.0.0.1", NODE, ae_title="PNEUMOSCOPE")
        if association.is_established:
            association.release()
            return
        time.sleep(0.1)


def told(
    folder: Path,
    found: list[dict[str, Any]],
    wanted: dict[str, int],
    seconds: float,
    kills: int,
    asked: argparse.Namespace,
) -> int:
    """Print the table; 1 if anything is missing or double."""
    images = wanted["SR"]
    of_patient = Counter((entry["PatientID"], entry["Modality"]) for entry in found)
    events = Counter(line["event"] for line in audited(folder / "spool"))
    print(
        f"{date.today().isoformat()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"model {asked.model}: {images} images by {asked.associations} associations, node killed "
        f"{kills} times.\n\n| | in Orthanc | missing | doubled |\n| --- | --- | --- | --- |"
    )
    wrong = 0
    for modality_word, name in KINDS.items():
        counts = [n for (_, word), n in of_patient.items() if word == modality_word]
        missing, doubled = wanted[modality_word] - len(counts), sum(n - 1 for n in counts)
        wrong += missing + doubled
        print(f"| {name} | {sum(counts)} | {missing} | {doubled} |")
    print(
        f"\n{images / seconds:.1f} images/s from first byte to last report in Orthanc, with "
        f"kills ({seconds:.0f} s). Audit: {json.dumps(dict(sorted(events.items())))}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
