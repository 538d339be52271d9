"""`models/build_default.py`: the mean of weights from which the model that ships was trained."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from support.scripts import load_script


def test_the_mean_is_of_each_weight_in_its_own_precision(tmp_path: Path) -> None:
    script = load_script("models/build_default.py")
    # Many means lie midway between two numbers of half precision, where HDF5 rounds otherwise.
    drawn = np.random.default_rng(0).normal(0, 1e-3, (2, 64)).astype(np.float16)
    for name, kernel, bias in zip("ab", drawn, (1.0, 4.0), strict=True):
        with h5py.File(tmp_path / name, "w") as file:
            file["layers/conv/vars/0"] = kernel
            file["layers/conv/vars/1"] = np.full(3, bias, np.float32)
    weights = [(tmp_path / name).read_bytes() for name in "ab"]
    script.write_mean(weights, tmp_path / "mean.h5")
    with h5py.File(tmp_path / "mean.h5") as file:
        kernel, bias = file["layers/conv/vars/0"][()], file["layers/conv/vars/1"][()]
    wanted = drawn.astype(np.float64).mean(0).astype(np.float16)
    assert kernel.dtype == np.float16
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(kernel, wanted)
    np.testing.assert_array_equal(bias, 2.5)
