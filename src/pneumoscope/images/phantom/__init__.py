"""Synthetic frontal chest X-rays of imaginary small children, drawn procedurally from a seed.

The input is a seed, a patient's name, the number of an image and a class. `draw` returns a
`Phantom`; `write_phantoms` writes a whole DATA folder. No real X-ray was used.

The class determines only the content of the lungs: outside the lung mask the pixels are identical
for both labels. A model can therefore separate the classes only by the lungs.

    anatomy.py     the anatomy of a child, the same on all its images
    lesion.py      the pose; drawing of shapes; what pneumonia adds inside the lungs
    radiograph.py  absorption, scatter, noise, tone curve, frame, marker; `draw`
    folder.py      phantoms as PNG or DX files; `write_phantoms`: patients, splits, file names
"""

from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.images.phantom.lesion import Subtype
from pneumoscope.images.phantom.radiograph import SMALLEST_SIZE, Phantom, draw

__all__ = ["SMALLEST_SIZE", "Phantom", "Subtype", "draw", "write_phantoms"]
