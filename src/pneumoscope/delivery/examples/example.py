"""Ask the exported model about films: python example.py FILM...

Wants Pillow and, by the export's format, onnxruntime or openvino. Reads what Pillow reads: for
DICOM, and for refusing what is no chest X-ray, use pneumoscope itself.
Research software, not a medical device.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

OUTPUTS = ["probability", "heatmap", "embedding"]

here = Path(__file__).parent
about = json.loads((here / "export.json").read_text())
threshold = about["threshold"]["value"]

if about["format"] == "onnx":
    import onnxruntime

    session = onnxruntime.InferenceSession(here / "model.onnx")

    def ask(pixels):
        """Outputs for films of one size, uint8 (n, height, width): grey, 0 is black."""
        return session.run(OUTPUTS, {"pixels": pixels})

else:
    import openvino

    # Else OpenVINO takes bfloat16 where the processor has it, and answers less exactly.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(here / "model.xml", "CPU", exact)

    def ask(pixels):
        """Outputs for films of one size, uint8 (n, height, width): grey, 0 is black."""
        found = model({"pixels": pixels})
        return [found[name] for name in OUTPUTS]


for film in sys.argv[1:]:
    pixels = np.asarray(Image.open(film).convert("L"))
    (probability,), (heatmap,), (embedding,) = ask(pixels[None])
    answer = about["labels"][int(probability >= threshold)]
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    print(
        f"{film}: {answer}, probability {probability:.4f} (threshold {threshold:.4f}), "
        f"strongest in row {row + 1}, column {column + 1} of {len(heatmap)}"
    )
