"""All public data sets that `data adopt` supports, by name."""

from __future__ import annotations

from collections.abc import Mapping

from pneumoscope.data.external import chexpert, nih, padchest, plain, rsna, vindr
from pneumoscope.data.external.table import Source

SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        rsna.SOURCE,
        nih.SOURCE,
        chexpert.SOURCE,
        vindr.SOURCE,
        padchest.SOURCE,
        plain.SOURCE,
    )
}
