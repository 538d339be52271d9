"""A day at a PACS, where there is no network but loopback: run by test_real_pacs.py.

Orthanc gets an image and routes it to the node; dcmtk sends another one to the node directly, and
Orthanc sends both again. Goes out: what Orthanc has in the end, as JSON on the last line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import node_process
from support.dicom_peers import audited, until
from support.dicom_reports import judged_by_dciodvfy, xray_bytes
from support.orthanc import DICOM, ask, instances, orthanc

NODE = 11112
OURS = ("SR", "OT")
CT = "1.2.840.10008.5.1.4.1.1.2"


def main(folder: Path) -> dict[str, Any]:
    settings = {
        "port": NODE,
        "forward": f"PACS@127.0.0.1:{DICOM}",
        "spool": str(folder / "spool"),
        "callers": ["PACS", "MODALITY"],
    }
    with orthanc(folder, NODE):
        node = node_process.start(**settings)
        try:
            until(lambda: _echo(folder), "the response to dcmtk's echo")
            ask("/instances", xray_bytes(1))  # which its rule sends to the node
            direct = _storescu(folder, xray_bytes(2))
            ask("/instances", xray_bytes(2))
            ask("/instances", xray_bytes(3, Modality="CT", SOPClassUID=CT))
            until(lambda: _count(OURS) >= 4, "Orthanc having two reports and two captures")
            for name in _names(instances(), "DX"):
                ask("/modalities/pneumoscope/store", name.encode())
            until(lambda: _known(folder) >= 3, "the node recognising images")
        finally:
            node.terminate()
            stopped = node.wait(60)
        found = instances()
        reports = [ask(f"/instances/{name}/file").content for name in _names(found, *OURS)]
    return {
        "instances": found,
        "direct": direct,
        "stopped": stopped,
        "judged": [judged_by_dciodvfy(content, folder) for content in reports],
    }


def _echo(folder: Path) -> bool:
    command = ["echoscu", "-aet", "MODALITY", "-aec", "PNEUMOSCOPE", "127.0.0.1", str(NODE)]
    return subprocess.run(command, capture_output=True, cwd=folder).returncode == 0


def _storescu(folder: Path, content: bytes) -> int:
    (folder / "image.dcm").write_bytes(content)
    command = ["storescu", "-aet", "MODALITY", "-aec", "PNEUMOSCOPE", "127.0.0.1", str(NODE)]
    return subprocess.run([*command, "image.dcm"], capture_output=True, cwd=folder).returncode


def _count(modalities: tuple[str, ...]) -> int:
    return sum(entry["Modality"] in modalities for entry in instances())


def _known(folder: Path) -> int:
    return [line["event"] for line in audited(folder / "spool")].count("known already")


def _names(found: list[dict[str, str]], *modalities: str) -> list[str]:
    return [entry["name"] for entry in found if entry["Modality"] in modalities]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
