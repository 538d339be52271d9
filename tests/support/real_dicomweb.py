"""A day at a PACS that speaks DICOMweb, where there is no network but loopback.

Run by test_real_pacs.py: Orthanc has images before and after the node starts, which looks for them
itself. Goes out: what Orthanc has in the end, as JSON on the last line.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

from support import node_process
from support.dicom_peers import audited, until
from support.dicom_reports import judged_by_dciodvfy, xray_bytes
from support.orthanc import URL, USER, ask, instances, orthanc

NODE = 11112
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
OURS = ("SR", "OT")


def main(folder: Path) -> dict[str, Any]:
    token = folder / "token"
    token.write_text(f"Basic {b64encode(':'.join(USER).encode()).decode()}")
    settings = {
        "port": NODE,
        "dicomweb": f"{URL}/dicom-web",
        "dicomweb_token_file": str(token),
        "dicomweb_days": 0,
        "poll": 0.3,
        "spool": str(folder / "spool"),
    }
    with orthanc(folder, NODE, route=False, plugins=[PLUGIN]):
        ask("/instances", xray_bytes(1))
        node = node_process.start(**settings)
        try:
            until(lambda: _ours() >= 2, "Orthanc having a report and a capture")
            ask("/instances", xray_bytes(2))
            until(lambda: _ours() >= 4, "Orthanc having two of each")
        finally:
            node.terminate()
            stopped = node.wait(60)
        found = instances()
        names = [entry["name"] for entry in found if entry["Modality"] in OURS]
        reports = [ask(f"/instances/{name}/file").content for name in names]
    return {
        "instances": found,
        "stopped": stopped,
        "events": [line["event"] for line in audited(folder / "spool")],
        "judged": [judged_by_dciodvfy(content, folder) for content in reports],
    }


def _ours() -> int:
    return sum(entry["Modality"] in OURS for entry in instances())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
