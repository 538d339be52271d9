"""The page of the demonstration: key numbers, gallery, links."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from pneumoscope.config import IntervalConfig
from pneumoscope.evaluation.evaluate import evaluate
from pneumoscope.workflows.demo import DemoContent, DemoImage, render_demo_page


def png() -> bytes:
    stream = BytesIO()
    Image.new("L", (8, 8)).save(stream, format="PNG")
    return stream.getvalue()


def test_it_shows_numbers_images_and_links() -> None:
    labels = np.arange(40) % 2
    scores = np.clip(0.3 + 0.4 * labels + 0.01 * (np.arange(40) % 7), 0, 1)
    patients = [f"p{k}" for k in range(40)]
    found = evaluate(labels, scores, patients, 0.5, "for the test", IntervalConfig(resamples=50))
    images = (
        DemoImage("a.png", 1, 0.83, "PNEUMONIA", png(), png()),
        DemoImage("b.png", 0, 0.61, "PNEUMONIA", png(), png()),
    )
    links = (("evaluation/report.html", "all metrics"),)
    page = render_demo_page(DemoContent(found, 400, images, links))
    assert "trained on 400 synthetic X-rays and tested on 40 others" in page
    assert page.count("data:image/png;base64,") == 4
    assert "0.83 → pneumonia, correct" in page
    assert "0.61 → pneumonia, wrong" in page
    assert '<a href="evaluation/report.html">' in page
    assert "All images are drawings" in page
