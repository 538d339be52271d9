"""The REST contract around a fake model: rows, pictures, rejections, batches, pages, headers."""

from __future__ import annotations

import base64
import io
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pneumoscope.config import ServeConfig
from pneumoscope.delivery.rest import documents
from pneumoscope.delivery.rest.app import PAGE_FILES, build_app
from pneumoscope.errors import Reason
from pneumoscope.images.phantom import draw
from pneumoscope.images.phantom.folder import encode_dicom
from pneumoscope.inference.bundle import Abstention
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import COLUMNS, as_row
from support.bad_images import BAD_IMAGES, BadImage
from support.fake_service import LIMITS, MANIFEST, MeanBackend, fake_app, fake_predictor, xray_png

ONE = "/v1/predictions"
MANY = "/v1/predictions/batch"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(fake_app(max_upload=1 << 20, max_files=3)) as found:
        yield found


def post(client: TestClient, content: bytes, name: str = "image.png", **query: Any) -> Any:
    return client.post(ONE, files={"file": (name, content)}, params=query)


def dicom() -> bytes:
    return encode_dicom(draw(1, "guest", number=1, label=1), serial=1, seed=1)


@pytest.mark.parametrize("content", [xray_png(), xray_png(30), dicom()], ids=["a", "b", "dicom"])
def test_the_response_is_the_predictors_row_with_the_model(
    client: TestClient, content: bytes
) -> None:
    response = post(client, content)
    assert response.status_code == 200
    body = response.json()
    row = as_row(fake_predictor().predict_bytes(content, "image.png").prediction)
    assert {name: body[name] for name in COLUMNS} == row
    assert body["model"] == client.get("/v1/model").json()["id"]
    assert set(body) == {*COLUMNS, "model", "heatmap"}
    assert (body["heatmap"], body["detail"]) == (None, "")
    documents.Row.model_validate(body)


def png(text: str) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    assert picture.format == "PNG"
    return picture


def test_pictures_are_sent_where_asked_for(client: TestClient) -> None:
    body = post(client, xray_png(side=48), heatmap="true", preview="true").json()
    assert png(body["heatmap"]).size == png(body["preview"]).size == (40, 48)
    overlay = png(body["map"]).convert("RGBA")
    opacity = overlay.getchannel("A")
    assert opacity.getextrema()[1] == 255
    # The fake's map rises from the upper left to the lower right.
    levels = np.asarray(opacity)
    assert levels[0, 0] < 30 < 220 < levels[47, 39]
    sent = Image.open(io.BytesIO(xray_png()))
    assert png(body["preview"]).tobytes() == sent.tobytes()
    rejected = post(client, b"text", heatmap="true", preview="true").json()
    assert [rejected[name] for name in ("heatmap", "preview", "map")] == [None] * 3


SPECIAL = {Reason.NOT_AN_IMAGE: 415, Reason.FILE_TOO_LARGE: 413, Reason.TOO_MANY_PIXELS: 413}


SENDABLE = [case for case in BAD_IMAGES if case.name not in {"device", "deflated_bomb"}]
"""A device has no end; the bomb is quick to send and takes long to make."""


@pytest.mark.parametrize("case", SENDABLE, ids=lambda case: case.name)
def test_bad_images_are_rejected_with_their_reason(
    client: TestClient, case: BadImage, tmp_path: Path
) -> None:
    path = case.build(tmp_path)
    try:
        there = path.is_file() and path.stat().st_size <= 1 << 20
    except (OSError, ValueError):
        there = False
    if not there:
        assert case.reason in {
            *(Reason.NOT_FOUND, Reason.NOT_A_FILE, Reason.FILE_TOO_LARGE),
            *(Reason.PERMISSION_DENIED, Reason.TOO_MANY_PIXELS),
        }
        return
    response = post(client, path.read_bytes(), path.name)
    body = response.json()
    assert response.status_code == SPECIAL.get(Reason(body["reason"]), 422)
    assert body["status"] == Reason(body["reason"]).status
    assert body["reason"] == case.reason
    assert body["detail"]
    assert body["probability"] is None
    documents.Row.model_validate(body)


def raw(client: TestClient, content: bytes, kind: str = "multipart/form-data; boundary=x") -> Any:
    return client.post(ONE, content=content, headers={"Content-Type": kind})


PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "multipart/form-data; boundary=x", 400),
        (b"{}", "application/json", 415),
        (b"x", "multipart/form-data", 415),
        (b"no form at all", "multipart/form-data; boundary=x", 400),
        (PART + b"cut", "multipart/form-data; boundary=x", 400),
        (
            PART.replace(b"file", b"other") + b"a\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
            400,
        ),
        (b"--x\r\n" + b"A: " + b"b" * 9000 + b"\r\n\r\n", "multipart/form-data; boundary=x", 400),
        (b"a", f"multipart/form-data; boundary={'x' * 500}", 400),
        (PART + b"a\r\n" + PART + b"b\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
    ],
)
def test_what_is_no_form_with_a_file_is_rejected(
    client: TestClient, content: bytes, kind: str, status: int
) -> None:
    response = raw(client, content, kind)
    assert response.status_code == status
    body = response.json()
    assert (body["status"], body["reason"]) == ("error", "bad_request")
    documents.Failed.model_validate(body)


def test_parameters_and_pages_that_are_none(client: TestClient) -> None:
    assert post(client, xray_png(), heatmap="maybe").status_code == 400
    assert client.get("/nothing").status_code == 404
    assert client.get("/app.py").status_code == 404
    assert client.get("/../app.py").status_code == 404
    wrong = client.get(ONE)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\x\\image.png", "image.png"),
        ("<script>alert(1)</script>.png", "script_.png"),
        ("a\x1b[31m.png", "a_[31m.png"),
        ("n" * 500 + ".png", "n" * 116 + ".png"),
        ("..", "upload"),
        ("ü肺.dcm", "ü肺.dcm"),
    ],
)
def test_file_names_are_text_alone(client: TestClient, name: str, shown: str) -> None:
    header = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = b"--x\r\n" + header.encode() + xray_png() + b"\r\n--x--\r\n"
    response = raw(client, body)
    assert response.status_code == 200
    assert response.json()["path"] == shown


def test_several_files_have_a_line_each_in_order(client: TestClient) -> None:
    large = bytes((1 << 20) + 1)
    files = [("file", (f"{k}", c)) for k, c in enumerate([xray_png(200), b"text", large])]
    response = client.post(MANY, files=files, params={"heatmap": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["path"] for line in lines] == ["0", "1", "2"]
    assert [line["reason"] for line in lines] == [None, "not_an_image", "file_too_large"]
    assert [(line["index"], line["done"], line["total"]) for line in lines] == [
        *((0, 1, 3), (1, 2, 3), (2, 3, 3))
    ]
    assert png(lines[0]["heatmap"]).size == (40, 48)
    alone = post(client, xray_png(200)).json()
    assert lines[0]["probability"] == alone["probability"]
    for line in lines:
        documents.Line.model_validate(line)
    assert client.post(MANY, files=[*files, files[0]]).status_code == 400


def test_images_of_one_request_are_scored_in_passes() -> None:
    backend = MeanBackend()
    levels = [40 + 3 * k for k in range(40)]
    with TestClient(fake_app(backend)) as client:
        before = backend.begun
        files = [("file", (f"{level}.png", xray_png(level))) for level in levels]
        response = client.post(MANY, files=files)
        passes = backend.begun - before
        alone = [post(client, xray_png(level)).json() for level in levels[:3]]
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["path"] for line in lines] == [f"{level}.png" for level in levels]
    assert [line["done"] for line in lines] == list(range(1, 41))
    assert [line["probability"] for line in lines[:3]] == [row["probability"] for row in alone]
    assert passes < len(levels) / 2


def test_no_image_touches_the_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def spooled(*_: object, **__: object) -> None:
        raise AssertionError("an upload went to a file")

    for name in ("SpooledTemporaryFile", "TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, spooled)
    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", spooled)
    content = xray_png() + bytes(1_000_000 - len(xray_png()))  # more than is kept from the disk
    assert post(client, content).status_code in {200, 422}


def test_every_page_is_kept_to_its_own_files(client: TestClient) -> None:
    for path in ("/", "/docs", *(f"/{name}" for name in PAGE_FILES)):
        response = client.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        outside = re.findall(r"(?:https?:)?//[\w.-]+", re.sub(r"(?m)^\s*//.*$", "", response.text))
        assert set(outside) <= {"http://www.w3.org", "http://127.0.0.1"}, path
        if "html" in response.headers["content-type"]:
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", response.text)
            assert "not a medical device" in response.text.lower()


def test_docs_tell_every_route(client: TestClient) -> None:
    page = client.get("/docs").text
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {ONE, MANY, "/v1/model", "/healthz", "/readyz", "/metrics"}
    for path in paths:
        assert path in page
    assert "not_a_file" in page
    assert "one or more: file" in page


def test_state_and_model(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}
    model = client.get("/v1/model").json()
    assert model["threshold"]["value"] == 0.5
    assert model["precision"] == "f32"
    assert model["abstention"]["method"] == "none"
    assert model["validation"]["curves"]["histogram"]["normal"] == [9, 1]
    assert re.fullmatch(r"[0-9a-f]{16}", model["id"])


def test_not_ready_before_the_engine_is_warm() -> None:
    response = TestClient(fake_app()).get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "starting"})


def test_an_uncertain_prediction_is_in_the_contract() -> None:
    band = Abstention("band", 0.0, 1.0, "for the test", "validation")
    model = Predictor(replace(MANIFEST, abstention=band), MeanBackend())
    with TestClient(build_app(model, ServeConfig(), LIMITS)) as client:
        body = post(client, xray_png()).json()
    assert body["prediction"] == "uncertain"
    assert 0 < body["probability"] < 1
    documents.Row.model_validate(body)


def test_an_image_rejected_by_the_input_check_has_no_number_and_no_heatmap() -> None:
    rejects: Any = SimpleNamespace(
        verdict=lambda look, embedding: SimpleNamespace(
            score=9.0, reason=Reason.NOT_A_CHEST_XRAY, detail="for the test"
        )
    )
    model = Predictor(MANIFEST, MeanBackend(), statistics=rejects)
    with TestClient(build_app(model, ServeConfig(), LIMITS)) as client:
        response = post(client, xray_png(), heatmap="true", preview="true")
    body = response.json()
    assert response.status_code == 422
    assert (body["status"], body["reason"]) == ("refused", "not_a_chest_xray")
    empty = ("probability", "prediction", "threshold", "heatmap", "map")
    assert [body[name] for name in empty] == [None] * 5
    assert body["input_score"] == 9.0
    documents.Row.model_validate(body)
