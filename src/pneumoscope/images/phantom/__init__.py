"""Seeded, procedurally drawn frontal chest X-rays of small children who do not exist.

Comes in: a seed, a patient's name, the number of a film, a class. Goes out: a `Phantom` (`draw`),
or a whole DATA folder (`write_phantoms`). No real X-ray went into any of it. Knows nothing of
preprocessing, models or training.

The class decides what stands in the lungs and nothing else: outside the lung mask a film is the
same, bit by bit, whatever the label. Whoever would tell the classes apart must look at the lungs.

    anatomy.py     what stays the same on all films of a child: outlines in its own coordinates
    raster.py      outlines and clouds → smooth pictures, through the pose of a film
    lesion.py      what pneumonia adds inside the lungs
    film.py        absorption, scatter, noise, development, frame, marker
    drawing.py     `draw`: which stream of chance decides what
    dicom_file.py  a phantom → the bytes of a DX file
    folder.py      `write_phantoms`: patients, splits, names, files
"""

from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.images.phantom.lesion import Subtype
from pneumoscope.images.phantom.radiograph import SMALLEST_SIZE, Phantom, draw

__all__ = ["SMALLEST_SIZE", "Phantom", "Subtype", "draw", "write_phantoms"]
