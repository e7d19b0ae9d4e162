"""The contract with X-AnyLabeling's remote server, over a server on loopback."""

from __future__ import annotations

import base64

import numpy as np
import pytest

for needed in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
    pytest.importorskip(needed, reason='not installed: pip install ".[http]"')

from http_helper import serving  # noqa: E402
from label_helper import ask  # noqa: E402
from ris.runtime.outlines import polygons_of  # noqa: E402
from ris.serving.http.labelling.x_anylabeling import wanted  # noqa: E402
from ris.serving.http.settings import HttpSettings  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402
from serving_helpers import picture_bytes  # noqa: E402

PICTURE = picture_bytes(3, 90, 60)
DATA = "data:image/png;base64," + base64.b64encode(PICTURE).decode()

FIELDS = (
    "label shape_type points score description attributes difficult direction flags group_id"
    " kie_linking"
)

# what X-AnyLabeling 4.2.1 sends beside the text
SENT = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001}


@pytest.fixture(scope="module")
def server(served_bundle):
    with serving(served_bundle, HttpSettings()) as running:
        yield f"http://127.0.0.1:{running.port}"


@pytest.fixture(scope="module")
def expected(served_model):
    return served_model.encode_image(Limits().decode(PICTURE)).segment_many


def predicted(server, prompt, image=DATA, **params):
    body = {"model": "ris", "image": image, "params": SENT | {"text_prompt": prompt} | params}
    status, found = ask(f"{server}/v1/predict", body)
    assert status == 200
    return found


def shapes(server, prompt, **params):
    found = predicted(server, prompt, **params)
    assert found["success"]
    return found["data"]["shapes"]


def test_the_models_are_a_dictionary_with_widgets(server):
    status, found = ask(f"{server}/v1/models")
    assert (status, found["success"], list(found["data"])) == (200, True, ["ris"])
    model = found["data"]["ris"]
    assert model["batch_processing_mode"] == "text_prompt"
    assert {"edit_text", "button_send"} <= {widget["name"] for widget in model["widgets"]}
    assert ask(f"{server}/v1/models/ris/info")[1] == {"success": True, "data": model}


def test_a_text_prompt_gives_polygons_in_pixels(server, expected):
    found = shapes(server, "left man", epsilon_factor=0)
    [answer] = expected(["left man"])
    wanted_rings = [part.joined() for part in polygons_of(answer.mask)]
    assert len(found) == len(wanted_rings) > 0
    for shape, ring in zip(found, wanted_rings, strict=True):
        assert (shape["label"], shape["shape_type"]) == ("left man", "polygon")
        np.testing.assert_allclose(shape["points"], ring, atol=0.01)
        assert shape["score"] == pytest.approx(answer.score, abs=1e-6)


def test_the_parts_of_a_mask_share_a_group(server):
    found = shapes(server, "left man")
    groups = {shape["group_id"] for shape in found}
    assert groups == ({1} if len(found) > 1 else {None})


def test_every_field_that_the_client_reads_is_there(server):
    for shape in shapes(server, "left man"):
        assert set(shape) == set(FIELDS.split())


def test_fineness_is_a_share_of_the_rings_length(server):
    exact = shapes(server, "left man", epsilon_factor=0)
    coarse = shapes(server, "left man", epsilon_factor=0.05)
    assert sum(len(s["points"]) for s in coarse) < sum(len(s["points"]) for s in exact)


def test_several_phrases_stand_between_semicolons_with_labels_before_colons(server, expected):
    assert [(each.label, each.phrase) for each in wanted("left man; dog: the brown, old dog;")] == [
        ("left man", "left man"),
        ("dog", "the brown, old dog"),
    ]
    assert [each.phrase for each in wanted("the clock at 10:30; : ;dog:")] == [
        "the clock at 10:30",
        "dog",
    ]
    found = shapes(server, "man: left man; the tree")
    answers = expected(["left man", "the tree"])
    labels = [
        label for label, answer in zip(("man", "the tree"), answers, strict=True) if answer.box
    ]
    assert list(dict.fromkeys(shape["label"] for shape in found)) == labels
    assert {s["description"] for s in found if s["label"] == "man"} <= {"left man"}


def test_what_is_below_the_confidence_is_left_out_and_what_was_drawn_stays(server):
    data = predicted(server, "left man", conf_threshold=1.0)["data"]
    assert data == {"shapes": [], "description": "", "replace": False}


def test_raw_base64_is_taken_as_well(server):
    raw = base64.b64encode(PICTURE).decode()
    assert predicted(server, "left man", image=raw) == predicted(server, "left man")


@pytest.mark.parametrize(
    ("prompt", "more", "code", "sentence"),
    [
        ("", {}, "INFERENCE_ERROR", 'type what to look for, such as "left man", and send it'),
        ("left man", {"image": "@"}, "INVALID_IMAGE", "image is not base64"),
        (
            "left man",
            {"image": "aGVsbG8="},
            "INVALID_IMAGE",
            "the image is not an image that can be read",
        ),
        ("x" * 5000, {}, "INFERENCE_ERROR", "an expression has 5000 characters, at most"),
        ("", {"marks": [{"type": "point"}]}, "INFERENCE_ERROR", "this model takes words"),
    ],
)
def test_an_error_is_a_sentence_beside_the_picture_and_keeps_what_was_drawn(
    server, prompt, more, code, sentence
):
    found = predicted(server, prompt, **more)
    assert not found["success"]
    assert found["error"]["code"] == code
    assert sentence in found["error"]["message"]
    data = {"shapes": [], "description": found["error"]["message"], "replace": False}
    assert found["data"] == data


def test_shapes_have_the_servers_limit(served_bundle, server):
    with serving(served_bundle, HttpSettings(answer_bytes=100)) as running:
        found = predicted(f"http://127.0.0.1:{running.port}", "left man")
    assert "the shapes have more than 0.0001 MB" in found["error"]["message"]
    said = predicted(server, ";" * 100_000)["error"]["message"]
    assert said.startswith("the prompt has 100000 characters, at most ")


def test_another_model_is_not_found(server):
    body = {"model": "sam", "image": DATA, "params": {}}
    error = ask(f"{server}/v1/predict", body)[1]["error"]
    said = "there is no model 'sam' here; this one is called ris"
    assert error == {"code": "MODEL_NOT_FOUND", "message": said}
    assert ask(f"{server}/v1/models/sam/info")[1]["error"] == error


def test_the_clients_header_carries_the_token(served_bundle):
    with serving(served_bundle, HttpSettings(token="sesame")) as running:
        models = f"http://127.0.0.1:{running.port}/v1/models"
        assert ask(models)[0] == 401
        assert ask(models, Token="open")[0] == 401
        assert ask(models, Token="sesame")[0] == 200
