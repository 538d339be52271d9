"""Settings of the DICOM node: whom it listens to, whom it tells, what it may cost.

Knows nothing of how DICOM is spoken.
"""

from __future__ import annotations

from dataclasses import dataclass

from pneumoscope.config.reading import option

_MOST_PORT = 65_535
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What `pneumoscope node` is told; every setting is an option of it."""

    aet: str = option("PNEUMOSCOPE", "own application entity title, 1 to 16 characters")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 is every one")
    port: int = option(11112, "port to listen on; 0: any free one", 0, _MOST_PORT)
    forward: str = option(
        "", "AET@HOST:PORT that reports are sent to; empty: they stay in the spool's outgoing/"
    )
    dicomweb: str = option(
        "", "URL of a DICOMweb service that films are fetched from and reports stored to"
    )
    dicomweb_silent: bool = option(False, "fetch films from it, store no report to it")
    dicomweb_token_file: str = option(
        "", "file with its token, or 'Basic …'; or $PNEUMOSCOPE_DICOMWEB_TOKEN"
    )
    dicomweb_days: int = option(1, "age of its studies, days; 0: of any age", 0, 36_500)
    poll: float = option(30.0, "seconds between two searches there", 0.01, _DAY_SECONDS)
    spool: str = option("pneumoscope-spool", "folder of queue, films and reports in transit")
    segmentation: bool = option(False, "each heatmap as a DICOM Segmentation as well")
    any_age: bool = option(
        False, "predict for patients of other ages than the model is for, with a warning"
    )
    callers: tuple[str, ...] = option((), "AE titles that may call; empty: every one")
    any_called: bool = option(False, "take associations for other AE titles than the own one")
    tls_cert: str = option("", "own certificate, PEM; with it only TLS is spoken")
    tls_key: str = option("", "its private key, PEM")
    tls_ca: str = option("", "certificates that callers must prove theirs by, PEM")
    forward_tls: bool = option(False, "speak TLS to the destination, which is checked by --tls-ca")
    associations: int = option(32, "most associations at a time", 1, 1000)
    max_bytes: int = option(256 << 20, "largest film, bytes", 1 << 10)
    max_held: int = option(
        512 << 20, "bytes that are being received from all callers together", 1 << 10
    )
    max_waiting: int = option(20_000, "most films that wait; beyond it films are turned away", 1)
    min_free: int = option(512 << 20, "free bytes below which films are turned away", 0)
    acse_timeout: float = option(5.0, "seconds for a caller to say who it is", 0.1, _DAY_SECONDS)
    network_timeout: float = option(
        30.0, "seconds of silence that end an association", 0.1, _DAY_SECONDS
    )
    dimse_timeout: float = option(
        60.0, "seconds for the destination to answer a message", 0.1, _DAY_SECONDS
    )
    retry_first: float = option(2.0, "seconds before a second try to send", 0.01, _DAY_SECONDS)
    retry_most: float = option(
        300.0, "seconds between two tries, at most; each wait is twice the last", 0.01, _DAY_SECONDS
    )
    most_refusals: int = option(
        20, "times that the destination may refuse a report before it is set aside", 1
    )
    grace: float = option(20.0, "seconds for associations to end when stopped", 0, _DAY_SECONDS)
