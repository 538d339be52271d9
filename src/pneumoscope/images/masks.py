"""A user's lung masks: PNG files that bear the names of the films, in a folder of their own.

Comes in: the folder, and a film's path. Goes out: `LungFields`, or nothing where there is no mask.
Knows nothing of labels or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.lungs import LungFields, resized_mask
from pneumoscope.images.read import read_image

_WHITE = 0.5


@dataclass(frozen=True, slots=True)
class MaskFolder:
    """Masks by the names of films.

    Attributes:
        folder: holds `NAME.png` at the film's place relative to `root`, or right inside.
        root: the folder of the films.
    """

    folder: Path
    root: Path

    def path_of(self, film: Path) -> Path | None:
        """The mask's file; `None` if there is none."""
        names = [Path(film.name).with_suffix(".png")]
        if film.is_relative_to(self.root):
            names.insert(0, film.relative_to(self.root).with_suffix(".png"))
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)

    def lungs(self, film: Path, shape: tuple[int, int]) -> LungFields | None:
        """The mask of a film, stretched to its shape: lung is what is brighter than half.

        Raises:
            ImageRefusedError: the file is there and is no image; an empty mask is none.
        """
        path = self.path_of(film)
        if path is None:
            return None
        try:
            pixels = read_image(path).pixels
        except ImageRefusedError as error:
            if error.reason is Reason.BLANK:
                return None
            raise
        mask = resized_mask(pixels > _WHITE, shape)
        return LungFields(mask, mask, 1.0)
