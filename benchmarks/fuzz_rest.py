"""What the server makes of nonsense: made-up requests by its own description, and damaged images.

    python benchmarks/fuzz_rest.py [--cases 2000] [--images 5000] [--schemathesis PROGRAM]

Requests come from schemathesis (a program of its own: pip install it in an environment of its
own), from the OpenAPI document that the server gives. Images are drawn, written as JPEG, PNG, DICOM
and others, and damaged: bytes changed, cut, doubled. A 500, a hang of over 5 s or more than 1.5 GB
is a failure; so is a server that has gone. Prints Markdown.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from serve import listening, resident_mb

LONGEST_SECONDS = 5.0
MOST_MB = 1536.0


@dataclass(slots=True)
class Found:
    """What damaged images brought about."""

    statuses: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0
    most_mb: float = 0.0


def whole_images() -> list[bytes]:
    """A drawn image in several formats."""
    from pneumoscope.images.phantom import draw
    from pneumoscope.images.phantom.folder import encode_dicom

    phantom = draw(0, "guest", number=1, label=1)
    grey = Image.fromarray(np.round(phantom.pixels * 255).astype(np.uint8))
    made = [encode_dicom(phantom, serial=1, seed=0)]
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP"):
        stream = io.BytesIO()
        grey.save(stream, kind)
        made.append(stream.getvalue())
    return made


def damaged(content: bytes, generator: random.Random) -> bytes:
    """A few changes: mostly near the beginning, where the lengths stand."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        reach = len(changed) if generator.random() < 0.4 else min(len(changed), 600)
        place = generator.randrange(max(reach, 1))
        kind = generator.randrange(4)
        if kind == 0:
            changed[place : place + 1] = generator.randbytes(1)
        elif kind == 1:
            changed[place : place + 4] = generator.choice((b"\xff" * 4, bytes(4), b"\x7f\xff" * 2))
        elif kind == 2:
            del changed[place : place + generator.randint(1, 64)]
        else:
            changed[place:place] = changed[place : place + generator.randint(1, 64)]
    cut = generator.random() < 0.2
    return bytes(changed[: generator.randrange(1, len(changed) + 2)] if cut else changed)


def send_images(url: str, process: int, count: int) -> Found:
    """Damaged images, one after the other."""
    generator = random.Random(0)  # noqa: S311 - repeatable, no secret
    whole = whole_images()
    found = Found()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for number in range(count):
            image = damaged(whole[number % len(whole)], generator)
            began = time.perf_counter()
            response = client.post("v1/predictions?preview=true", files={"file": ("x", image)})
            found.longest = max(found.longest, time.perf_counter() - began)
            found.statuses[response.status_code] += 1
            found.most_mb = max(found.most_mb, resident_mb(process))
    return found


def make_requests(program: str, url: str, cases: int) -> tuple[int, str]:
    """Schemathesis' exit code and what it said at the end."""
    command = [
        str(Path(program).resolve()),
        "run",
        f"{url}openapi.json",
        "--checks",
        "not_a_server_error",
    ]
    command += ["--max-examples", str(cases), "--no-color"]
    with tempfile.TemporaryDirectory() as folder:  # it leaves files where it runs
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, "\n".join(done.stdout.splitlines()[-25:])


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="requests per operation, at most")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--schemathesis", default=shutil.which("schemathesis"))
    asked = parser.parse_args()
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL)
        try:
            while not (url := listening(log)) and server.poll() is None:
                time.sleep(0.1)
            found = send_images(url, server.pid, asked.images)
            print(
                f"{asked.images} damaged images: {json.dumps(found.statuses)}; the longest took "
                f"{found.longest:.1f} s; memory at most {found.most_mb:.0f} MB.\n"
            )
            code = 0
            if asked.schemathesis:
                code, said = make_requests(asked.schemathesis, url, asked.cases)
                print(f"schemathesis ended with {code}:\n\n```\n{said}\n```")
            else:
                print("schemathesis is not installed: no made-up requests.")
            gone = server.poll() is not None
        finally:
            server.terminate()
            server.wait(60)
    bad = found.statuses[500] or found.longest > LONGEST_SECONDS or found.most_mb > MOST_MB
    sys.exit(1 if bad or code or gone else 0)


if __name__ == "__main__":
    main()
