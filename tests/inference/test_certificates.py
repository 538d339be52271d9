"""A precision is used only where it is certified and supported by the processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pneumoscope.errors import UsageError
from pneumoscope.graph.writer import PRECISIONS, fast_here
from pneumoscope.inference.certificates import (
    Agreement,
    PrecisionCertificate,
    choose_precision,
    floats_for,
    judged,
)

BF16 = PrecisionCertificate("bf16", "bf16")
INT8 = PrecisionCertificate("int8", "bf16")
ALIKE = Agreement(1000, 0.01, 0.001, 2, 0.95, 0.9505, 0.97)


def failed(certificate: PrecisionCertificate) -> PrecisionCertificate:
    return replace(certificate, failures=("AUC: found 0.1, wanted at most 0.001",))


def test_a_certificate_states_what_was_found() -> None:
    found = judged(replace(INT8, data="val, abc", calibrated_on=300), ALIKE)
    assert found.passed
    assert (found.images, found.decisions_changed, found.auc_after) == (1000, 2, 0.9505)
    assert (found.precision, found.floats, found.data) == ("int8", "bf16", "val, abc")


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"decisions_changed": 3}, "decisions changed in 1,000: found 3"),
        ({"auc_after": 0.9485}, "difference of AUC: found 0.0015"),
        ({"auc_after": 0.9515}, "difference of AUC: found 0.0015"),
        ({"auc_after": None}, "wanted both classes"),
        ({"images": 99, "decisions_changed": 0}, "found 99, wanted at least 100"),
    ],
)
def test_what_passes_a_limit_fails(change: dict[str, Any], failure: str) -> None:
    found = judged(BF16, replace(ALIKE, **change))
    assert not found.passed
    assert len(found.failures) == 1
    assert failure in found.failures[0]


@pytest.mark.parametrize(
    ("certificates", "fast", "wanted"),
    [
        ((), PRECISIONS, "f32"),
        ((BF16,), PRECISIONS, "bf16"),
        ((BF16, INT8), PRECISIONS, "int8"),
        ((INT8, BF16), ("f32", "bf16"), "bf16"),
        ((BF16, failed(INT8)), PRECISIONS, "bf16"),
        ((failed(BF16), INT8), PRECISIONS, "int8"),
        ((BF16, INT8), ("f32",), "f32"),
        ((BF16,), ("bf16", "f32", "int8"), "f32"),
        ((BF16, INT8), ("bf16", "f32", "int8"), "int8"),
        ((BF16, INT8), (), "f32"),
    ],
)
def test_auto_is_the_fastest_that_is_certified_and_here(
    certificates: Any, fast: Any, wanted: str
) -> None:
    assert choose_precision("auto", certificates, fast) == wanted


def test_what_is_asked_for_is_given_or_rejected() -> None:
    assert choose_precision("f32", (BF16,), PRECISIONS) == "f32"
    assert choose_precision("bf16", (BF16, INT8), PRECISIONS) == "bf16"
    with pytest.raises(UsageError, match="no certificate for it"):
        choose_precision("int8", (BF16,), PRECISIONS)
    with pytest.raises(UsageError, match=r"certificate failed \(AUC"):
        choose_precision("bf16", (failed(BF16),), PRECISIONS)
    with pytest.raises(UsageError, match="this processor has no instructions"):
        choose_precision("bf16", (BF16,), ("f32", "int8"))
    with pytest.raises(UsageError, match="wanted one of auto"):
        choose_precision("f16", (BF16,), PRECISIONS)  # type: ignore[arg-type]  # refused: unknown


def test_between_convolutions_is_what_was_certified_and_is_here() -> None:
    exact = replace(INT8, floats="f32")
    assert floats_for("int8", (BF16, INT8), PRECISIONS) == "bf16"
    assert floats_for("int8", (BF16, exact), PRECISIONS) == "f32"
    assert floats_for("int8", (BF16, INT8), ("f32", "int8")) == "f32"
    assert floats_for("f32", (BF16, INT8), PRECISIONS) == "f32"


@pytest.mark.parametrize(
    ("capabilities", "flags", "wanted"),
    [
        ({"FP32", "INT8"}, "flags: avx2", ("f32",)),
        ({"FP32", "INT8"}, "flags: avx512_vnni", ("f32", "int8")),
        ({"FP32", "INT8", "BF16"}, "flags: amx_bf16 amx_int8", PRECISIONS),
        ({"FP32", "INT8", "BF16"}, "GenuineIntel flags: amx_bf16 avx512_vnni", PRECISIONS),
        (
            {"FP32", "INT8", "BF16"},
            "GenuineIntel flags: avx512_bf16 avx512_vnni",
            ("bf16", "f32", "int8"),
        ),
        ({"FP32", "BF16"}, "AuthenticAMD flags: avx512_bf16", ("f32", "bf16")),
        ({"FP32", "INT8"}, "Features: asimd asimddp", ("f32", "int8")),
        ({"FP32", "INT8"}, "", ("f32", "int8")),
        ({"FP32"}, "flags: avx_vnni", ("f32",)),
    ],
)
def test_what_is_fast_is_what_the_processor_has(
    capabilities: set[str], flags: str, wanted: Any
) -> None:
    assert fast_here(frozenset(capabilities), flags) == wanted
