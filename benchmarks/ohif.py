"""Does the OHIF viewer show the image, the report and the segmentation that pneumoscope makes?

    npm pack @ohif/app@3.13.2 && tar xzf ohif-app-*.tgz
    python benchmarks/ohif.py package/dist --out shots

A drawn X-ray with pneumonia (never a real one) and what `predict --dicom-out --segmentation` makes
of it lie in an Orthanc on loopback. OHIF runs in a headless Chromium and reads them by DICOMweb.
Prints as Markdown which series it lists and the errors in its console when each is opened;
photographs of the viewer lie in the folder. Needs Linux, Chromium, and Orthanc with its DICOMweb
plugin.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from datetime import date
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

_orthanc: Any = importlib.import_module("support.orthanc")
_browser: Any = importlib.import_module("support.chromium")

# Segmentations are drawn with WebGL, here in software.
_browser.FLAGS = (
    *(flag for flag in _browser.FLAGS if flag != "--disable-gpu"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
)

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
SETTLED = 15.0
"""Seconds that the viewer gets to draw."""

_OPEN = """(kind => {
  const rows = [...document.querySelectorAll('[data-cy^="study-browser-thumbnail"]')];
  const row = rows.find(e => e.innerText.trim().startsWith(kind));
  if (!row) return false;
  (row.querySelector('div') ?? row).dispatchEvent(new MouseEvent('dblclick', { bubbles: true }));
  return true;
})(%s)"""
CONFIG = """window.config = {
  routerBasename: null, extensions: [], modes: [], customizationService: {}, showStudyList: true,
  genericViewports: { enabled: false }, maxNumberOfWebWorkers: 2,
  defaultDataSourceName: 'dicomweb',
  dataSources: [{
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'dicomweb',
    configuration: {
      friendlyName: 'Orthanc', name: 'orthanc', wadoUriRoot: '/dicom-web', qidoRoot: '/dicom-web',
      wadoRoot: '/dicom-web', qidoSupportsIncludeField: false, imageRendering: 'wadors',
      thumbnailRendering: 'wadors', enableStudyLazyLoad: true, supportsFuzzyMatching: false,
      supportsWildcard: true, omitQuotationForMultipartRequest: true,
    },
  }],
};"""


def main() -> None:
    """Show the objects and print what was seen, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path, help="folder `dist` of the package @ohif/app")
    parser.add_argument("--out", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dist, out = arguments.dist.resolve(), arguments.out.resolve()
    if arguments.inside:
        print(json.dumps(_shown(dist, out)))
        return
    out.mkdir(parents=True, exist_ok=True)
    # Orthanc listens on all addresses, so it runs where there is no network but loopback.
    words = [*_orthanc.isolated(), sys.executable, __file__, str(dist), "--out", str(out)]
    paths = [str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PATH": _orthanc.PATHS, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*words, "--inside"], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    _print(json.loads(done.stdout.splitlines()[-1]))


def _print(found: dict[str, Any]) -> None:
    print(f"OHIF {found['version']}, Orthanc {found['orthanc']}; {date.today()}\n")
    print("| series in Orthanc | listed by OHIF | errors when it is opened |\n| --- | --- | --- |")
    for kind in found["series"]:
        errors = "; ".join(dict.fromkeys(found["errors"][kind])) or "none"
        print(f"| {kind} | {'yes' if kind in found['listed'] else 'no'} | {errors} |")


def _shown(dist: Path, out: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = _objects(folder)
        with _orthanc.orthanc(folder, 11112, route=False, plugins=[PLUGIN]):
            for file in files:
                _orthanc.ask("/instances", file.read_bytes())
            series = _orthanc.get("/series?expand")
            study = _orthanc.get("/studies?expand")[0]["MainDicomTags"]["StudyInstanceUID"]
            server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(dist))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                seen = _viewed(f"http://127.0.0.1:{server.server_port}", study, out)
            finally:
                server.shutdown()
            version = _orthanc.get("/system")["Version"]
    listed = sorted(one["MainDicomTags"]["Modality"] for one in series)
    about = json.loads((dist.parent / "package.json").read_text())["version"]
    return {**seen, "series": listed, "orthanc": version, "version": about}


def _objects(folder: Path) -> list[Path]:
    """A drawn X-ray with pneumonia, its report, heatmap and segmentation."""
    drawn, made = folder / "drawn", folder / "made"
    _pneumoscope("data", "phantom", "--out", drawn, "--n", 4, "--format", "dicom")
    image = next(iter(sorted(drawn.rglob("PNEUMONIA/*.dcm"))))
    ways = ["--segmentation", "--no-input-check", "--any-age"]
    _pneumoscope("predict", image, "--out", folder / "rows.csv", "--dicom-out", made, *ways)
    return [image, *sorted((folder / "made").rglob("*.dcm"))]


def _pneumoscope(*words: object) -> None:
    command = [sys.executable, "-m", "pneumoscope", *map(str, words), "-q"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _handler(dist: Path) -> type[SimpleHTTPRequestHandler]:
    """The viewer's files, and behind `/dicom-web` what Orthanc has, on one origin."""
    basic = f"Basic {b64encode(':'.join(_orthanc.USER).encode()).decode()}"

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(dist))

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/dicom-web"):
                headers = {"Authorization": basic, "Accept": self.headers.get("Accept", "*/*")}
                got = httpx.get(f"{_orthanc.URL}{self.path}", headers=headers, timeout=60)
                self._send(got.content, got.headers.get("Content-Type", ""), got.status_code)
            elif path == "/app-config.js":
                self._send(CONFIG.encode(), "text/javascript")
            elif (dist / path.lstrip("/")).is_file():
                super().do_GET()
            else:  # a route of the application
                self._send((dist / "index.html").read_bytes(), "text/html")

        def _send(self, content: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

        def end_headers(self) -> None:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

    return Handler


def _viewed(address: str, study: str, out: Path) -> dict[str, Any]:
    """Open the study and each of its series; a photograph of each is written."""
    errors: dict[str, list[str]] = {}
    listed = []
    with _browser.chromium_tab() as tab:
        tab.look(1400, 900)
        tab.open(f"{address}/app-config.js")  # any page of this origin, to write its storage
        tab.ask("localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))")
        for kind in ("DX", "OT", "SEG", "SR"):
            tab.open("about:blank")
            tab.open(f"{address}/viewer?StudyInstanceUIDs={study}")
            tab.wait("document.querySelectorAll('[data-cy^=study-browser-thumbnail]').length > 3")
            time.sleep(SETTLED)
            tab.complaints.clear()
            if tab.ask(_OPEN % json.dumps(kind)):
                listed.append(kind)
            time.sleep(SETTLED)
            tab.ask("1")  # hear what happened meanwhile
            errors[kind] = [text.splitlines()[0] for text in tab.complaints]
            (out / f"{kind}.png").write_bytes(tab.photograph())
    return {"listed": listed, "errors": errors}


if __name__ == "__main__":
    main()
