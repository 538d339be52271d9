from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from pneumoscope.records import Estimate
from pneumoscope.report.content import SplitCount
from pneumoscope.report.model_card import HeldOutTest, ModelCardContent, model_card


@pytest.fixture
def content() -> ModelCardContent:
    return ModelCardContent(
        name='frozen "A" model',
        version="0.1.0",
        architecture="DenseNet121 without its top, frozen, with a small head.",
        weights_origin="ImageNet.",
        preprocessing=("To grey.", "To 224 × 224."),
        training=("Features once.", "Then the head."),
        data_name="chest_xray: *val*",
        kermany=True,
        counts=(SplitCount("train", 1140, 3293, 3106),),
        evaluated_on="the validation split, held out by patient",
        n=783,
        patients=548,
        threshold=0.4217,
        threshold_rule="highest balanced accuracy",
        level=0.95,
        metrics={
            "specificity": Estimate(0.9452, 0.912, 0.972),
            "auc": Estimate(0.99312, 0.988, 0.997),
            "npv": Estimate(None),
        },
        fingerprint="f00d",
        limitations=("Trained for a test.",),
    )


def parts(text: str) -> tuple[dict[str, Any], str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_front_matter_is_yaml_that_model_hubs_read(content: ModelCardContent) -> None:
    front, _ = parts(model_card(content))
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "keras"
    assert front["pipeline_tag"] == "image-classification"
    assert front["datasets"] == ["hf-vision/chest-xray-pneumonia"]
    assert "roc_auc" in front["metrics"]
    (entry,) = front["model-index"]
    assert entry["name"] == 'frozen "A" model'
    (result,) = entry["results"]
    assert result["dataset"]["name"] == "chest_xray: *val*"
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {"roc_auc": 0.9931, "specificity": 0.9452}


def test_body_states_numbers_with_intervals_and_gaps_with_reasons(
    content: ModelCardContent,
) -> None:
    _, body = parts(model_card(content))
    assert "| AUC | 0.993 | 0.988–0.997 |" in body
    assert "| Negative predictive value | – (nothing was predicted normal) | – |" in body
    assert "| train | 1,140 | 3,293 | 3,106 |" in body
    assert "On 783 X-rays of 548 patients" in body
    assert "at 0.422 or above (highest balanced accuracy)" in body
    assert "1. To grey.\n2. To 224 × 224.\n" in body
    assert "`f00d`" in body
    assert "- Trained for a test." in body


def test_every_section_is_there(content: ModelCardContent) -> None:
    _, body = parts(model_card(content))
    headings = [line[3:] for line in body.splitlines() if line.startswith("## ")]
    assert headings == [
        "Model description",
        "Intended use",
        "Out-of-scope use",
        "Training data",
        "Preprocessing",
        "Training procedure",
        "Evaluation",
        "Limitations",
        "How to use it",
        "Citation",
    ]
    assert "not a medical device" in body
    assert "CC BY 4.0" in body
    assert "10.17632/rscbjbr9sj.2" in body


def test_other_data_are_not_called_kermany(content: ModelCardContent) -> None:
    front, body = parts(model_card(replace(content, kermany=False, metrics={})))
    assert "Kermany" not in body
    assert "datasets" not in front
    assert "model-index" not in front


def test_the_ages_that_the_model_is_for_are_stated(content: ModelCardContent) -> None:
    _, body = parts(model_card(replace(content, made_for="children aged 1–5 years")))
    assert "for a frontal chest X-ray of children aged 1–5 years, and" in body


def test_names_can_not_change_the_markdown(content: ModelCardContent) -> None:
    hostile = "a|b\n# heading <script> `c` [d](e)"
    _, body = parts(model_card(replace(content, data_name=hostile, name=hostile)))
    assert "<script>" not in body.replace("\\<script\\>", "")
    assert "\n# heading" not in body
    assert "a\\|b \\# heading" in body


def test_same_content_gives_the_same_text(content: ModelCardContent) -> None:
    assert model_card(content) == model_card(content)
    assert model_card(content).endswith("\n")


def test_the_hub_client_reads_the_card_and_its_results(content: ModelCardContent) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = huggingface_hub.ModelCard(model_card(content))
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"roc_auc": 0.9931, "specificity": 0.9452}
    assert card.data.model_name == 'frozen "A" model'
    assert card.data.license == "apache-2.0"
    again = huggingface_hub.ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()


def test_a_held_out_test_is_shown_and_indexed_instead_of_validation(
    content: ModelCardContent,
) -> None:
    held_out = HeldOutTest(
        "The last patients: 40 X-rays.",
        {"auc": Estimate(0.8765, 0.801, 0.923)},
        details="### Changed\n\na table",
        limitations="- It fails at night.",
        data_name="last patients",
    )
    front, body = parts(model_card(replace(content, held_out=held_out)))
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert result["dataset"]["name"] == "last patients"
    assert [metric["value"] for metric in result["metrics"]] == [0.8765]
    tested = body.split("## Held-out test")[1].split("## Limitations")[0]
    for words in ("The last patients", "| AUC | 0.876 | 0.801–0.923 |", "### Changed", "a table"):
        assert words in tested
    assert "- It fails at night." in body.split("## Limitations")[1]
    assert "Held-out test" not in model_card(content)


def test_a_card_is_of_its_backbone(content: ModelCardContent) -> None:
    front, body = parts(model_card(replace(content, backbone="mobilenetv2", kermany=False)))
    assert "mobilenetv2" in front["tags"]
    assert "densenet121" not in front["tags"]
    assert "Densely Connected" not in body
    assert "of a child" not in body
    assert "Densely Connected" in parts(model_card(content))[1]
