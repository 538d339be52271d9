"""Does the exported ONNX graph give the same probabilities in a browser as `predict`?

    npm pack onnxruntime-web && tar xzf onnxruntime-web-*.tgz
    python benchmarks/browser_onnx.py package [--model default] [--images 6]

Drawn X-rays are scored by `predict` in float32 and by the exported page `example.html`, which runs
`model.onnx` with onnxruntime-web (WebAssembly, one thread) in a headless Chromium. Prints Markdown,
with the seconds from the choice of the file to the result; exits with 1 if a probability differs by
more than 0.001. Needs Chromium.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from support.chromium import chromium_tab  # noqa: E402

MOST_APART = 1e-3
_RESULT = re.compile(r"(\w+): probability ([\d.]+), ")


def main() -> int:
    """Score in both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="folder of the package onnxruntime-web")
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=6)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _pneumoscope("data", "phantom", "--out", folder / "drawn", "--n", asked.images)
        images = sorted((folder / "drawn").rglob("*.png"))[: asked.images]
        expected = _predicted(images, asked.model, folder / "rows.csv")
        page = folder / "export"
        _pneumoscope("export", "--to", "onnx", "--out", page, "--model", asked.model)
        for file in (asked.package / "dist").glob("ort*"):
            if file.name == "ort.min.js" or file.suffix in (".wasm", ".mjs"):
                shutil.copy(file, page)
        found = _in_the_browser(page, images)
    version = json.loads((asked.package / "package.json").read_text("utf-8"))["version"]
    print(f"onnxruntime-web {version}, {date.today()}\n")
    print("| image | predict | browser | apart | seconds |\n| --- | ---: | ---: | ---: | ---: |")
    apart = [abs(here - there) for here, (there, _) in zip(expected, found, strict=True)]
    for image, here, (there, seconds), far in zip(images, expected, found, apart, strict=True):
        print(f"| {image.name} | {here:.4f} | {there:.4f} | {far:.4f} | {seconds:.1f} |")
    return int(max(apart) > MOST_APART)


def _predicted(images: list[Path], model: str, table: Path) -> list[float]:
    ways = ["--out", table, "--model", model, "--precision", "f32", "--no-input-check"]
    _pneumoscope("predict", *images, *ways)
    with table.open(encoding="utf-8", newline="") as stream:
        return [float(row["probability"]) for row in csv.DictReader(stream)]


def _in_the_browser(folder: Path, images: list[Path]) -> list[tuple[float, float]]:
    """Probability of each image, and the seconds it took."""
    found = []
    with _served(folder) as address, chromium_tab() as tab:
        tab.open(f"{address}/example.html")
        tab.wait("document.getElementById('answer').textContent === 'Choose an image.'")
        for image in images:
            began = time.perf_counter()
            tab.ask("document.getElementById('answer').textContent = ''")
            tab.give("#file", [image])
            said = tab.wait("document.getElementById('answer').textContent.match(/: p|No/)?.input")
            result = _RESULT.match(said)
            if result is None:
                raise SystemExit(f"{image.name}: {said}")
            found.append((float(result[2]), time.perf_counter() - began))
    return found


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _pneumoscope(*words: object) -> None:
    command = [sys.executable, "-m", "pneumoscope", *map(str, words), "-q"]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
