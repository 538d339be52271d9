"""Photograph the page, light, dark and on a phone, with drawn images: never an X-ray of a patient.

    python docs/make_screenshots.py

Needs Chromium and the extras `serve` and `dev`. Writes page-light.png, page-dark.png and
page-phone.png beside itself.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

LOOKS = {
    "page-light": (1180, 1180, False, 1.0),
    "page-dark": (1180, 1180, True, 1.0),
    "page-phone": (390, 1000, False, 1.5),
}
"""Width, height, dark or not, pixels per point."""

_COLOURS = 160
"""Enough for a page with a grey image, and a third of the bytes."""


def draw_images(folder: Path) -> list[Path]:
    """A few images, with and without pneumonia, PNG and DICOM, and a file that is none."""
    from pneumoscope.images.phantom import draw
    from pneumoscope.images.phantom.folder import encode_dicom

    (folder / "letter.pdf").write_bytes(b"%PDF-1.7\n")
    made = [folder / "letter.pdf"]
    for number, label in enumerate((0, 1, 0, 1)):
        phantom = draw(3, f"child-{number}", number=1, label=label)
        path = folder / f"drawn-{number + 1}.{'dcm' if number == 2 else 'png'}"
        if path.suffix == ".dcm":
            path.write_bytes(encode_dicom(phantom, serial=number, seed=3))
        else:
            grey = Image.fromarray((phantom.pixels * 255).astype("uint8"))
            grey.resize((1024, 1024), Image.Resampling.BICUBIC).save(path)
        made.append(path)
    return made


def small_png(content: bytes) -> bytes:
    """The same picture in few colours."""
    stream = io.BytesIO()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(_COLOURS, kmeans=2, dither=Image.Dither.NONE).save(
        stream, "PNG", optimize=True
    )
    return stream.getvalue()


def main() -> None:
    """Take all pictures in one session."""
    from support.chromium import chromium_tab
    from support.serving import running_server

    with tempfile.TemporaryDirectory() as name:
        images = draw_images(Path(name))
        with running_server("default") as server, chromium_tab() as tab:
            tab.look(1180, 1180)
            tab.open(server.url)
            tab.give("#files", images)
            tab.wait("document.querySelectorAll('#rows tr').length === 5")
            tab.ask(
                "[...document.querySelectorAll('#rows button')]"
                ".find((button) => button.textContent === 'drawn-2.png').click()"
            )
            tab.wait("document.querySelector('#case-file').textContent === 'drawn-2.png'")
            tab.ask("document.activeElement.blur()")
            for look, (width, height, dark, scale) in LOOKS.items():
                tab.look(width, height, dark=dark, scale=scale)
                tab.ask("scrollTo(0, 0); new Promise((r) => setTimeout(r, 400))")
                (HERE / f"{look}.png").write_bytes(small_png(tab.photograph()))


if __name__ == "__main__":
    main()
