"""A bundle's network as one Keras model, for those who go on in Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pneumoscope.inference.bundle import load_bundle, load_networks
from pneumoscope.keras_loading import load_keras


def load_model(model: Path | str = "default") -> Any:
    """The trained network as a Keras model.

    It maps preprocessed images, float32 (n, size, size, 3), to probabilities of pneumonia before
    calibration, (n, 1). `Predictor.preprocess` makes its input. The networks of an ensemble, and
    the mirror image of a bundle with `flip`, are averaged in it.

    Args:
        model: a bundle folder, a run folder, or `default`.

    Raises:
        UsageError, MissingError, BundleError: as `load_bundle` does.
        ExtraMissingError: Keras is not installed.

    Example:
        >>> model = load_model(run.folder)
        >>> model.predict(predictor.preprocess(image), verbose=0).shape
        (1, 1)
    """
    bundle = load_bundle(model)
    networks = load_networks(bundle)
    flip = bundle.manifest.flip
    if len(networks) == 1 and not flip:
        return networks[0]
    keras = load_keras()
    images = keras.Input(networks[0].input_shape[1:])
    # All networks have the same name, and the parts of a model may not.
    members = [
        keras.Model(network.input, network.output, name=f"member_{number}")
        for number, network in enumerate(networks)
    ]
    passes = [member(images) for member in members]
    if flip:
        mirrored = keras.ops.flip(images, axis=2)
        passes += [member(mirrored) for member in members]
    return keras.Model(images, keras.layers.Average()(passes), name="ensemble")
