"""Images other than frontal chest X-rays are rejected with the right code on every path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import BundleError, Reason
from pneumoscope.inference.bundle import InputCheck, write_revised
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.inference.input_check import (
    DESCRIPTIONS,
    METHOD,
    TABLE,
    Statistics,
    Verdict,
    choose_limits,
    describe_image,
    statistics_of,
)
from pneumoscope.inference.predictor import Predictor
from support.known_images import KNOWN, SIDE, CoarseBackend, drawn_images, known_images
from support.small_bundle import manifest_for, small_bundle

FIRST_UNSEEN = 500


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    return known_images()


@pytest.fixture(scope="module")
def unseen() -> list[np.ndarray]:
    return list(drawn_images(20, FIRST_UNSEEN))


@pytest.fixture
def predictor(statistics: Statistics) -> Predictor:
    return Predictor(KNOWN, CoarseBackend(), statistics=statistics)


def verdict_on(image: np.ndarray, statistics: Statistics) -> Verdict:
    image = np.ascontiguousarray(image, dtype=np.float32)
    result = Predictor(KNOWN, CoarseBackend()).predict_image(image)
    assert result.embedding is not None
    return statistics.verdict(describe_image(image), result.embedding)


def strange() -> dict[str, np.ndarray]:
    stream = np.random.default_rng(0)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    page = np.ones((SIDE, SIDE))
    page[6:-6:4, 6:-20] = stream.integers(0, 2, page[6:-6:4, 6:-20].shape)
    return {
        "noise": stream.uniform(size=(SIDE, SIDE)),
        "gradient": columns,
        "checks": (np.sin(40 * rows) * np.sin(40 * columns) > 0).astype(float),
        "text": page,
        "disc": (np.hypot(rows - 0.5, columns - 0.5) < 0.3).astype(float),
    }


def test_images_like_the_training_images_pass(
    statistics: Statistics, unseen: list[np.ndarray]
) -> None:
    verdicts = [verdict_on(image, statistics) for image in unseen]
    assert sum(v.reason is None for v in verdicts) >= 19
    for verdict in verdicts:
        assert (verdict.score <= 1) == (verdict.reason is None)
        assert verdict.score > 0


@pytest.mark.parametrize("name", strange())
def test_what_is_no_image_is_rejected(statistics: Statistics, name: str) -> None:
    verdict = verdict_on(strange()[name], statistics)
    assert verdict.reason is Reason.NOT_A_CHEST_XRAY
    assert verdict.score > 1
    assert f"{verdict.score:.2f}" in verdict.detail


@pytest.mark.parametrize(
    ("quarters", "way_back"),
    [(1, "clockwise by 90°"), (2, "by 180°"), (3, "anticlockwise by 90°")],
)
@pytest.mark.parametrize("inverted", [False, True])
def test_turned_and_inverted_images_are_reported_with_the_way_back(
    statistics: Statistics,
    unseen: list[np.ndarray],
    quarters: int,
    way_back: str,
    inverted: bool,
) -> None:
    wanted = Reason.INVERTED if inverted else Reason.ROTATED
    hits = 0
    for image in unseen[:10]:
        turned = np.rot90(1 - image if inverted else image, quarters)
        verdict = verdict_on(turned, statistics)
        assert verdict.score > 1
        if verdict.reason is wanted:
            hits += 1
            assert f"rotate it {way_back}" in verdict.detail
            assert ("invert it" in verdict.detail) == inverted
    assert hits >= 9


def test_inverted_images_are_reported(statistics: Statistics, unseen: list[np.ndarray]) -> None:
    verdicts = [verdict_on(1 - image, statistics) for image in unseen]
    assert sum(v.reason is Reason.INVERTED and "rotate it" not in v.detail for v in verdicts) >= 19


def test_mirrored_images_pass(statistics: Statistics, unseen: list[np.ndarray]) -> None:
    verdicts = [verdict_on(image[:, ::-1], statistics) for image in unseen]
    assert sum(v.reason is Reason.ROTATED for v in verdicts) == 0


def test_what_the_network_alone_finds_strange_is_rejected(
    statistics: Statistics, unseen: list[np.ndarray]
) -> None:
    look = describe_image(unseen[0])
    verdict = statistics.verdict(look, np.full(16, 50, np.float32))
    assert verdict.reason is Reason.NOT_A_CHEST_XRAY
    assert "network" in verdict.detail


def test_limits_reject_the_share_that_was_asked_for() -> None:
    stream = np.random.default_rng(1)
    distances = {name: stream.gamma(20, size=20_000) for name in DESCRIPTIONS}
    limits = choose_limits(distances, 0.01, 10**12)
    scores = np.max([distances[name] / limits[name] for name in DESCRIPTIONS], axis=0)
    assert np.mean(scores > 1) == pytest.approx(0.01, abs=2e-4)
    wider = choose_limits(distances, 0.01, 25)
    assert wider == {name: pytest.approx(1.2 * limits[name]) for name in DESCRIPTIONS}


def test_statistics_are_the_same_after_being_stored(
    statistics: Statistics, unseen: list[np.ndarray]
) -> None:
    again = Statistics.from_table(statistics.to_table(), statistics.limits)
    for image in unseen[:3]:
        assert verdict_on(image, again) == verdict_on(image, statistics)


def test_a_check_that_can_not_be_used_is_rejected(statistics: Statistics) -> None:
    table, limits = statistics.to_table(), dict(statistics.limits)
    check = InputCheck(METHOD, limits)
    assert statistics_of(InputCheck(), {}) is None
    assert statistics_of(check, table) is not None
    broken = [
        (check, {}),
        (replace(check, method="magic"), table),  # type: ignore[arg-type]  # refused: unknown
        (replace(check, limits={}), table),
        (replace(check, limits=limits | {"edges": 0.0}), table),
    ]
    for found, arrays in broken:
        with pytest.raises(BundleError, match="input check can't be used"):
            statistics_of(found, arrays)


def test_every_path_rejects_alike(
    predictor: Predictor, unseen: list[np.ndarray], tmp_path: Path
) -> None:
    images = [unseen[0], np.rot90(unseen[1]), 1 - unseen[2], strange()["noise"]]
    paths, decoded = [], []
    for number, image in enumerate(images):
        grey = np.rint(np.ascontiguousarray(image) * 255).astype(np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(grey).save(paths[-1])
        decoded.append((str(paths[-1]), (grey / np.float32(255)).astype(np.float32)))
    together = [result.prediction for result in predictor.predict_files(paths)]
    wanted = [None, Reason.ROTATED, Reason.INVERTED, Reason.NOT_A_CHEST_XRAY]
    assert [p.reason for p in together] == wanted
    assert [p.status for p in together] == ["ok", "refused", "refused", "refused"]
    for path, name_and_image, prediction in zip(paths, decoded, together, strict=True):
        for other in (
            predictor.predict_file(path),
            predictor.predict_bytes(path.read_bytes(), str(path)),
            next(predictor.predict_images([name_and_image])),
        ):
            assert replace(other.prediction, input_score=None) == replace(
                prediction, input_score=None
            )
            assert other.prediction.input_score == pytest.approx(prediction.input_score, rel=1e-3)
            assert (other.logit is None) == (prediction.reason is not None)
        assert prediction.input_score is not None
        assert (prediction.probability is None) == (prediction.reason is not None)


def test_without_statistics_everything_has_a_prediction_and_no_score(
    unseen: list[np.ndarray],
) -> None:
    lenient = Predictor(KNOWN, CoarseBackend())
    for image in (unseen[0], strange()["noise"].astype(np.float32)):
        prediction = lenient.predict_image(image).prediction
        assert (prediction.status, prediction.input_score) == ("ok", None)


def test_pictures_in_colour_are_rejected_before_the_network_sees_them(
    predictor: Predictor, unseen: list[np.ndarray], tmp_path: Path
) -> None:
    grey = np.rint(unseen[0] * 255).astype(np.uint8)
    plain, coloured = tmp_path / "plain.png", tmp_path / "coloured.png"
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(plain)
    Image.fromarray(np.stack([grey, grey // 3, grey // 3], axis=-1)).save(coloured)
    assert predictor.predict_file(plain).prediction.status == "ok"
    result = predictor.predict_file(coloured)
    assert result.prediction.reason is Reason.NOT_A_CHEST_XRAY
    assert "in colour" in result.prediction.detail
    assert result.embedding is None
    assert Predictor(KNOWN, CoarseBackend()).predict_file(coloured).prediction.status == "ok"


def test_a_bundle_brings_its_check_and_can_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statistics: Statistics
) -> None:
    monkeypatch.setattr(OpenVinoBackend, "load", lambda *_: CoarseBackend())
    first = small_bundle(tmp_path / "a", size=SIDE)
    check = InputCheck(METHOD, dict(statistics.limits), 80, 40)
    manifest = manifest_for(SIDE, input_check=check)
    checked = write_revised(tmp_path / "b", first, manifest, "c", {TABLE: statistics.to_table()})
    noise = strange()["noise"].astype(np.float32)
    assert Predictor.load(first.folder).predict_image(noise).prediction.status == "ok"
    rejected = Predictor.load(checked.folder).predict_image(noise).prediction
    assert rejected.reason is Reason.NOT_A_CHEST_XRAY
    lenient = Predictor.load(checked.folder, input_check=False)
    assert lenient.predict_image(noise).prediction.status == "ok"
    bare = write_revised(tmp_path / "c", first, manifest, "c")
    with pytest.raises(BundleError, match="missing"):
        Predictor.load(bare.folder)
