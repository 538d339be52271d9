"""The Python API in one script: data set, training, prediction, features, evaluation, Keras.

    python examples/python_api.py XRAYS OUT

XRAYS is a folder of labelled X-rays (`pneumoscope data phantom --out xrays` draws one), OUT a new
folder. Research software, not a medical device.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pneumoscope


def main(data: Path, out: Path, **settings: Any) -> None:
    """Train on `data` into `out`, and use the model in every way that Python offers.

    Args:
        data: a folder of `train/`, `val/`, `test/`, or a CSV with the columns `path,label`.
        out: a new folder.
        settings: single settings of the training, such as `epochs=3`.
    """
    dataset = pneumoscope.load_dataset(data)
    print(f"{len(dataset)} images")
    print(dataset.to_frame().head(3))

    # Train. `recipe` means what `--recipe` means; a callback receives every epoch.
    run = pneumoscope.train(
        data,
        out / "run",
        recipe="frozen",
        callbacks=[
            lambda epoch: print(f"epoch {epoch.epoch + 1}: validation AUC {epoch.val_auc:.3f}"),
            pneumoscope.TensorBoard(out / "logs"),
        ],
        **settings,
    )
    print(run.history_frame().tail(3))

    # Predict: paths, folders, arrays, Pillow images, DataFrames and data sets are all accepted.
    predictor = pneumoscope.Predictor.load(run.folder, input_check=False)
    test = dataset.subset("test")
    results = predictor.predict(test)
    print(results.to_frame().select("path", "status", "probability", "prediction").head(3))
    features = predictor.embed(test)
    print("features", features.shape, features.dtype)

    # Evaluate: labels and probabilities of any model; intervals come from resampling patients.
    evaluation = pneumoscope.evaluate(
        labels=[record.label for record in test],
        probabilities=results.probabilities,
        patients=[record.patient for record in test],
        threshold=predictor.manifest.threshold.value,
        rule="chosen on validation",
    )
    auc = evaluation.metrics["auc"]
    print(f"AUC {auc.value}, 95 % interval {auc.low} to {auc.high}")
    print(evaluation.classification_report)

    # Go on in Keras: the network, and its input.
    model = pneumoscope.load_model(run.folder)
    print(model.predict(predictor.preprocess(test), verbose=0).shape)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
