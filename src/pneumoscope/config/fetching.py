"""Settings of `fetch`: whom to ask, for what, and how long to wait."""

from __future__ import annotations

from dataclasses import dataclass

from pneumoscope.config.reading import option

_MOST_PORT = 65_535
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """How images are had from a PACS."""

    modality: str = option("CR,DX", "modalities to fetch, separated by commas")
    aet: str = option("PNEUMOSCOPE", "own application entity title, which the PACS must know")
    move_port: int = option(
        0,
        "fetch by C-MOVE to this port here, where the PACS does no C-GET; 0: C-GET",
        0,
        _MOST_PORT,
    )
    move_host: str = option("0.0.0.0", "address that it listens on for C-MOVE")  # noqa: S104
    max_bytes: int = option(256 << 20, "largest image, bytes", 1 << 10)
    min_free: int = option(512 << 20, "free bytes below which nothing is fetched", 0)
    acse_timeout: float = option(10.0, "seconds for the PACS to say who it is", 0.1, _DAY_SECONDS)
    dimse_timeout: float = option(120.0, "seconds for it to answer a message", 0.1, _DAY_SECONDS)
