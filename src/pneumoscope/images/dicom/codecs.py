"""The codecs that pydicom lacks or that are unsafe there, as one plugin of pydicom's.

Comes in: one compressed frame and pydicom's runner. Goes out: its samples as bytes.
Knows nothing of data sets or of what samples mean.

JPEG of every process goes to libjpeg-turbo, RLE to a PackBits decoder, both by imagecodecs.
pydicom's other JPEG plugins stop at 8 bits or are under the GPL; its quick RLE plugin panics on
damaged data with a `BaseException` that no one can name.
"""

from __future__ import annotations

import numpy as np
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders import (
    JPEGBaseline8BitDecoder,
    JPEGExtended12BitDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
    RLELosslessDecoder,
)
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import (
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

PLUGIN = "imagecodecs"
JPEG = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1})
DECODER_DEPENDENCIES = {uid: ("numpy", "imagecodecs>=2024.12") for uid in {*JPEG, RLELossless}}
"""Read by pydicom when a plugin is added."""

_RLE_HEADER_BYTES = 64
_RLE_MOST_SEGMENTS = 15
_RLE_SLACK_BYTES = 4096
"""By how much a segment may decode to more than its pixels: some writers pad them."""


def is_available(uid: str) -> bool:
    """Whether the plugin decodes `uid`; called by pydicom."""
    return uid in DECODER_DEPENDENCIES


def decode_jpeg(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode one JPEG frame of 8 to 16 bits; colour becomes RGB."""
    from imagecodecs import jpeg8_decode

    space, wanted = None, None
    if runner.samples_per_pixel == 3:
        is_rgb = runner.photometric_interpretation == PhotometricInterpretation.RGB
        space, wanted = "RGB" if is_rgb else "YCBCR", "RGB"
        runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
        runner.set_option("planar_configuration", 0)
    samples = jpeg8_decode(stream, colorspace=space, outcolorspace=wanted)
    runner.set_option("bits_allocated", samples.dtype.itemsize * 8)
    return bytes(samples.tobytes())


def decode_rle(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode one RLE frame (PS3.5 annex G): a segment per byte of each sample, highest first."""
    from imagecodecs import packbits_decode

    header = np.frombuffer(stream[:_RLE_HEADER_BYTES], dtype="<u4").tolist()
    width = runner.bits_allocated // 8
    count = runner.samples_per_pixel * width
    if len(header) <= _RLE_MOST_SEGMENTS or header[0] != count:
        raise ValueError(f"the RLE header states {header[:1]} segments; {count} are wanted")
    pixels = runner.rows * runner.columns
    ends = [*header[2 : count + 1], len(stream)]
    # Planes of little-endian samples: (sample, pixel, byte).
    planes = np.empty((runner.samples_per_pixel, pixels, width), dtype=np.uint8)
    for index, (start, end) in enumerate(zip(header[1 : count + 1], ends, strict=True)):
        room = bytearray(pixels + _RLE_SLACK_BYTES)
        segment = packbits_decode(stream[start:end], out=room)
        if len(segment) < pixels:
            raise ValueError(f"RLE segment {index} is truncated: {len(segment)} of {pixels} bytes")
        sample, byte = divmod(index, width)
        planes[sample, :, width - 1 - byte] = np.frombuffer(segment, np.uint8, pixels)
    runner.set_option("planar_configuration", 1)
    return planes.tobytes()


def _add_plugin() -> None:
    # pydicom keeps one table of decoders per process, and adding to it is not thread-safe; so it
    # is done on import, which is.
    for decoder, function in (
        (JPEGBaseline8BitDecoder, decode_jpeg),
        (JPEGExtended12BitDecoder, decode_jpeg),
        (JPEGLosslessDecoder, decode_jpeg),
        (JPEGLosslessSV1Decoder, decode_jpeg),
        (RLELosslessDecoder, decode_rle),
    ):
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, function.__name__))


_add_plugin()
