"""Score X-rays with the exported model: python example.py FILE...

Needs Pillow and, by the export's format, onnxruntime or openvino. Images of 8 bits a sample are
read as pneumoscope reads them: rotated by EXIF, colours weighted as in ITU-R BT.601. All others
(DICOM, 16 bits, floats, transparency, several frames) are rejected: use pneumoscope itself. The
graph scores any input. This example rejects images that differ from the training images, and
abstains near the threshold, by export.json and embedding.npz, if the model has them; pneumoscope
checks three more descriptors (thumbnails). Research software, not a medical device.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

OUTPUTS = ["probability", "heatmap", "embedding"]

here = Path(__file__).parent
about = json.loads((here / "export.json").read_text())
threshold = about["threshold"]["value"]

if about["format"] == "onnx":
    import onnxruntime

    session = onnxruntime.InferenceSession(here / "model.onnx")

    def ask(pixels):
        """Outputs for images of one size, uint8 (n, height, width): grey, 0 is black."""
        return session.run(OUTPUTS, {"pixels": pixels})

else:
    import openvino

    # Otherwise OpenVINO uses bfloat16 where the processor has it, which is less exact.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(here / "model.xml", "CPU", exact)

    def ask(pixels):
        """Outputs for images of one size, uint8 (n, height, width): grey, 0 is black."""
        found = model({"pixels": pixels})
        return [found[name] for name in OUTPUTS]


def distance(embedding):
    """How unlike the training images' embeddings, as a share of what is allowed; None: unknown."""
    if not (here / "embedding.npz").exists():
        return None
    told = np.load(here / "embedding.npz")
    parts = ("means", "axes", "deviations")
    means, axes, deviations = (told[f"embedding.{part}"].astype("float32") for part in parts)
    centred = embedding - means
    along = centred @ axes
    rest = np.maximum((centred**2).sum(1) - (along**2).sum(1), 0) / deviations[-1] ** 2
    nearest = (((along / deviations[:-1]) ** 2).sum(1) + rest).min() ** 0.5
    return nearest / about["input_check"]["limits"]["embedding"]


def read(path):
    """Grey pixels, uint8 (height, width), as pneumoscope reads them; ValueError for all else."""
    content = Path(path).read_bytes()
    with Image.open(io.BytesIO(content)) as image:  # of a path Pillow turns some TIFF files not
        if image.format not in ("JPEG", "PNG", "TIFF", "BMP", "WEBP"):
            raise ValueError(f"it is a {image.format} file; JPEG, PNG, TIFF, BMP or WebP is wanted")
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"it holds {image.n_frames} pictures; one is wanted")
        bits, numbers = 8, 1
        if image.format == "PNG":
            bits = content[24]
        elif image.format == "TIFF":
            bits = max(image.tag_v2.get(258, (1,)))
            numbers = max(image.tag_v2.get(339, (1,)))  # 1: unsigned integers
        if image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr") or bits > 8 or numbers != 1:
            raise ValueError(f"its pixels are of mode {image.mode}, {bits} bits; use pneumoscope")
        if "transparency" in image.info:
            raise ValueError("it is transparent in places; use pneumoscope")
        if min(image.size) < 32 or max(image.size) > 8 * min(image.size):
            raise ValueError(
                f"it has {image.width} × {image.height} pixels, so it is no whole X-ray"
            )
        image.load()  # turns TIFF files, and those alone
        upright = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
        pixels = np.asarray(upright.convert("L"))
    if pixels.min() == pixels.max():
        raise ValueError("all its pixels have one grey")
    return pixels


for file in sys.argv[1:]:
    try:
        pixels = read(file)
    except (OSError, ValueError, SyntaxError) as error:
        print(f"{file}: rejected, {error}")
        continue
    (probability,), (heatmap,), (embedding,) = ask(pixels[None])
    label = about["labels"][int(probability >= threshold)]
    band = about["abstention"]
    if band["method"] != "none" and band["low"] <= probability < band["high"]:
        label = "indeterminate"
    unlike = distance(embedding)
    if unlike is not None and unlike > 1:
        print(f"{file}: rejected, it differs from the training images (input score {unlike:.2f})")
        continue
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    print(
        f"{file}: {label}, probability {probability:.4f} (threshold {threshold:.4f}), "
        f"strongest in row {row + 1}, column {column + 1} of {len(heatmap)}"
    )
