"""The backend's contract with Label Studio, over a server on loopback.

The requests are those that Label Studio 1.23.2 sent. `make label-studio` drives the real one.
"""

from __future__ import annotations

import base64
import functools
import json
from copy import deepcopy

import numpy as np
import pytest

for needed in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
    pytest.importorskip(needed, reason='not installed: pip install ".[http]"')

from conftest import GOLDEN  # noqa: E402
from http_helper import serving  # noqa: E402
from label_helper import ask, brush_mask, host  # noqa: E402
from ris.runtime.outlines import polygons_of  # noqa: E402
from ris.serving.http.labelling.pictures import PictureSource  # noqa: E402
from ris.serving.http.settings import HttpSettings  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402
from serving_helpers import picture_bytes  # noqa: E402

SENT = json.loads((GOLDEN / "labelling" / "label_studio.json").read_text())
PICTURE = picture_bytes(3, 90, 60)
FIELDS = "id type from_name to_name original_width original_height image_rotation score value meta"
UPLOAD = SENT["predict"]["tasks"][0]["data"]["image"]


@pytest.fixture(scope="module")
def studio():
    with host() as served:
        served.files[UPLOAD] = PICTURE
        yield served


def settings(studio, **more):
    pictures = PictureSource(studio.address, "0123abcd")
    return HttpSettings(limits=Limits(expressions=4), pictures=pictures, **more)


@pytest.fixture(scope="module")
def backend(served_bundle, studio):
    with serving(served_bundle, settings(studio)) as server:
        yield f"http://127.0.0.1:{server.port}/label-studio"


def predicted(backend, body):
    """The predictions for a request."""
    status, found = ask(f"{backend}/predict", body)
    assert status == 200
    assert set(found) == {"results", "model_version"}
    assert len(found["results"]) == len(body["tasks"])
    return found["results"]


def typed(*texts, config=None, data=None):
    """The request that an annotator's phrases make."""
    body = deepcopy(SENT["interactive"])
    body["params"]["context"]["result"][-1]["value"]["text"] = list(texts)
    if config:
        body["label_config"] = config
    if data:
        body["tasks"][0]["data"] = data
    return body


def config(*tags):
    """A labelling configuration with these tags beside picture and text field."""
    head = '<Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
    return f"<View>{head}{''.join(tags)}</View>"


def regions(prediction):
    return [result for result in prediction["result"] if result["type"] != "textarea"]


def said(prediction):
    return [
        line
        for result in prediction["result"]
        if result["type"] == "textarea"
        for line in result["value"]["text"]
    ]


@pytest.fixture(scope="module")
def expected(served_model):
    """The local runtime's answers to phrases."""
    scene = served_model.encode_image(Limits().decode(PICTURE))

    def answers(*phrases):
        return scene.segment_many(phrases, no_target_threshold=0.5)

    return answers


# The contract


def test_health_setup_versions_and_webhook_have_label_studios_form(backend):
    assert ask(f"{backend}/health") == (200, {"status": "UP", "model_class": "ris"})
    status, found = ask(f"{backend}/setup", SENT["setup"])
    assert (status, list(found)) == (200, ["model_version"])
    assert found["model_version"].startswith("ris-dfam-")
    assert ask(f"{backend}/versions") == (200, {"versions": [found["model_version"]]})
    assert ask(f"{backend}/webhook", {"action": "PROJECT_UPDATED"})[0] == 201


def test_a_project_may_connect_before_it_has_labels(backend):
    body = SENT["setup"] | {"schema": "<View></View>"}
    assert ask(f"{backend}/setup", body)[0] == 200


def test_a_prediction_has_every_field_that_label_studio_reads(backend):
    [prediction] = predicted(backend, typed("left man"))
    assert set(prediction) == {"result", "score", "model_version"}
    for region in regions(prediction):
        assert set(region) == set(FIELDS.split())
        assert (region["from_name"], region["to_name"]) == ("mask", "image")
        assert (region["original_width"], region["original_height"]) == (90, 60)


def test_label_studio_sdk_takes_the_predictions(backend):
    """Where label-studio-sdk is installed, as in `make label-studio`."""
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="no SDK")
    for body in (SENT["predict"], typed("left man")):
        [prediction] = predicted(backend, body)
        assert interface.LabelInterface(body["label_config"]).validate_prediction(prediction)


def test_what_is_no_request_is_one_sentence(backend):
    status, found = ask(f"{backend}/predict", {"tasks": []})
    assert (status, found["error"]["message"]) == (400, "label_config: Field required")
    status, found = ask(f"{backend}/predict", b"[[[")
    assert status == 400
    assert found["error"]["message"].startswith("the request: Invalid JSON")


def test_run_lengths_of_old_regions_do_not_count(backend):
    """Annotated tasks come with all their masks."""
    body = typed("left man")
    body["tasks"][0]["predictions"][0]["result"][0]["value"]["rle"] = [7] * 1_200_000
    [prediction] = predicted(backend, body)
    assert "error" not in prediction


def test_a_request_of_a_million_parts_is_refused(backend):
    body = b'{"tasks": [], "label_config": "", "x": [' + b"1," * 1_000_001 + b"1]}"
    status, found = ask(f"{backend}/predict", body)
    assert status == 413
    assert "too many parts" in found["error"]["message"]


def test_tasks_phrases_and_regions_have_limits(served_bundle, studio, monkeypatch, backend):
    from ris.serving.http.labelling import tasks

    failed = failure(backend, typed("\n".join(map(str, range(1001)))))
    assert failed["error"] == "more than 1000 phrases for a picture"
    monkeypatch.setattr(tasks, "_MOST_TASKS", 1)
    status, found = ask(f"{backend}/predict", SENT["predict"] | {"tasks": [{}, {}]})
    assert (status, found["error"]["message"]) == (413, "2 tasks, at most 1 are answered at once")
    with serving(served_bundle, settings(studio, answer_bytes=100)) as server:
        small = f"http://127.0.0.1:{server.port}/label-studio"
        assert "regions have more than 0.0001 MB" in failure(small, typed("left man"))["error"]


# Phrases and labels


def test_a_typed_phrase_becomes_the_mask_of_the_local_runtime(backend, expected):
    [prediction] = predicted(backend, typed("left man"))
    [answer] = expected("left man")
    assert answer.box is not None
    [region] = regions(prediction)
    mask = brush_mask(region["value"]["rle"], 60, 90)
    np.testing.assert_array_equal(mask, answer.mask)
    assert region["score"] == pytest.approx(answer.score, abs=1e-6)
    assert region["value"]["brushlabels"] == ["person"]
    assert region["meta"] == {"text": ["left man"]}


def test_several_phrases_get_a_region_each_with_the_label_that_they_name(backend, expected):
    texts = ["left man\nthe dog", "dog: the brown one", "the dog"]
    [prediction] = predicted(backend, typed(*texts))
    phrases = [("left man", "person"), ("the dog", "dog"), ("the brown one", "dog")]
    answers = expected(*(phrase for phrase, _ in phrases))
    wanted = [
        (phrase, label)
        for (phrase, label), answer in zip(phrases, answers, strict=True)
        if answer.box
    ]
    found = [
        (region["meta"]["text"][0], region["value"]["brushlabels"][0])
        for region in regions(prediction)
    ]
    assert found == wanted
    assert len(said(prediction)) == 3


def test_more_labels_than_a_question_may_have_are_asked_in_several(backend, expected):
    names = [f"thing {number}" for number in range(9)]
    labels = "".join(f'<Label value="{name}"/>' for name in names)
    tag = f'<BrushLabels name="mask" toName="image">{labels}</BrushLabels>'
    [prediction] = predicted(backend, SENT["predict"] | {"label_config": config(tag)})
    wanted = [answer.expression for answer in expected(*names) if answer.box]
    assert [region["meta"]["text"][0] for region in regions(prediction)] == wanted


def test_without_a_phrase_each_label_is_asked(backend, expected):
    """Label Studio annotates tasks ahead: `predicted_values`, or the label's own name."""
    [prediction] = predicted(backend, SENT["predict"])
    answers = expected("left man", "dog")
    wanted = [label for label, answer in zip(("person", "dog"), answers, strict=True) if answer.box]
    assert [region["value"]["brushlabels"][0] for region in regions(prediction)] == wanted
    assert not said(prediction)


def test_a_phrase_in_the_tasks_data_is_asked(backend):
    tags = config('<BrushLabels name="mask" toName="image"><Label value="thing"/></BrushLabels>')
    body = deepcopy(SENT["predict"])
    body["label_config"] = tags.replace('name="prompt"', 'name="prompt" value="$phrase"')
    body["tasks"][0]["data"]["phrase"] = "left man"
    [prediction] = predicted(backend, body)
    assert [region["meta"]["text"] for region in regions(prediction)] == [["left man"]]


def test_a_phrase_that_was_taken_away_leaves_nothing(backend):
    body = typed()
    body["params"]["context"]["result"] = []
    [prediction] = predicted(backend, body)
    assert prediction["result"] == []


def test_an_alias_is_what_the_region_carries(backend):
    label = '<Label value="left man" alias="person-1"/>'
    tag = f'<BrushLabels name="mask" toName="image">{label}</BrushLabels>'
    [prediction] = predicted(backend, SENT["predict"] | {"label_config": config(tag)})
    assert [region["value"]["brushlabels"] for region in regions(prediction)] == [["person-1"]]


def test_nothing_meant_gives_no_region_and_a_line(served_bundle, studio, monkeypatch):
    """A threshold of 0: the model's answer is "no target" to everything."""
    from ris.serving.http.labelling import label_studio

    never = functools.partial(label_studio.Question, no_target_threshold=0.0)
    monkeypatch.setattr(label_studio, "Question", never)
    with serving(served_bundle, settings(studio)) as server:
        backend = f"http://127.0.0.1:{server.port}/label-studio"
        [prediction] = predicted(backend, typed("left man"))
    assert regions(prediction) == []
    assert prediction["score"] == 0.0
    [line] = said(prediction)
    assert line.startswith("left man: nothing in the picture is meant (no target: 0.")


def test_somebody_who_draws_and_types_nothing_is_told_so(backend):
    """A smart tool of Label Studio sends what was drawn."""
    body = typed()
    body["params"]["context"]["result"] = [{"type": "keypointlabels", "from_name": "point"}]
    [prediction] = predicted(backend, body)
    assert said(prediction) == ["this model takes words: type a phrase into the text field"]


# Kinds of regions


def test_polygons_are_percent_of_the_picture(backend, expected):
    tag = '<PolygonLabels name="outline" toName="image"><Label value="man"/></PolygonLabels>'
    [prediction] = predicted(backend, typed("left man", config=config(tag)))
    [answer] = expected("left man")
    wanted = [part.joined() for part in polygons_of(answer.mask, 1.0)]
    found = regions(prediction)
    assert len(found) == len(wanted) > 0
    for region, ring in zip(found, wanted, strict=True):
        assert region["type"] == "polygonlabels"
        assert region["value"]["closed"]
        points = np.array(region["value"]["points"]) * [0.9, 0.6]
        np.testing.assert_allclose(points, ring, atol=1e-3)


def test_a_box_is_percent_of_the_picture(backend, expected):
    tag = '<RectangleLabels name="box" toName="image"><Label value="man"/></RectangleLabels>'
    [prediction] = predicted(backend, typed("left man", config=config(tag)))
    [answer] = expected("left man")
    [region] = regions(prediction)
    value = region["value"]
    found = [value["x"] * 0.9, value["y"] * 0.6, value["width"] * 0.9, value["height"] * 0.6]
    np.testing.assert_allclose(found, answer.box, atol=1e-3)
    assert (value["rotation"], value["rectanglelabels"]) == (0, ["man"])


# What cannot be answered


def failure(backend, body):
    [prediction] = predicted(backend, body)
    return prediction


def test_a_picture_that_cannot_be_fetched_is_a_sentence_where_the_annotator_looks(backend):
    body = typed("left man", data={"image": "http://example.org/a.png"})
    failed = failure(backend, body)
    assert "--picture-host example.org" in failed["error"]
    assert said(failed) == [failed["error"]]


def test_a_task_without_a_picture_costs_no_other(backend):
    body = deepcopy(SENT["predict"])
    body["tasks"].append(body["tasks"][0] | {"id": 2, "data": {"text": "no picture"}})
    first, second = predicted(backend, body)
    assert first["result"] is not None
    assert second["error"] == "the task has no picture: its data has no address as image"
    assert "result" not in second  # Label Studio keeps no prediction of it


def test_a_damaged_picture_is_a_sentence(backend):
    address = "data:image/png;base64," + base64.b64encode(PICTURE[:100]).decode()
    failed = failure(backend, typed("left man", data={"image": address}))
    assert failed["error"].startswith("the image is damaged or cut short: ")


def test_a_phrase_that_is_too_long_is_a_sentence(backend):
    failed = failure(backend, typed("x" * 5000))
    assert "an expression has 5000 characters, at most" in failed["error"]


def test_a_configuration_without_labels_is_a_sentence(backend):
    failed = failure(backend, SENT["predict"] | {"label_config": "<View/>"})
    assert failed["error"].startswith("the labelling configuration has no <Image")


# Models that ask by category


def test_a_category_is_the_labels_own(served_category_bundle, studio):
    """`category` of the label, its name, or what the typed phrase names."""
    labels = '<Label value="left man" category="person"/><Label value="dog"/>'
    tag = f'<BrushLabels name="mask" toName="image">{labels}</BrushLabels>'
    with serving(served_category_bundle, settings(studio)) as server:
        backend = f"http://127.0.0.1:{server.port}/label-studio"
        [ahead] = predicted(backend, SENT["predict"] | {"label_config": config(tag)})
        [named] = predicted(backend, typed("the brown dog"))
        [failed] = predicted(backend, typed("xyzzy"))
    assert "error" not in ahead
    assert "error" not in named
    assert "category" in failed["error"]


# A server with a token


def test_label_studios_basic_authentication_carries_the_token(served_bundle, studio):
    with serving(served_bundle, settings(studio, token="sesame")) as server:
        health = f"http://127.0.0.1:{server.port}/label-studio/health"
        assert ask(health)[0] == 401
        right = base64.b64encode(b"anybody:sesame").decode()
        wrong = base64.b64encode(b"sesame:else").decode()
        assert ask(health, Authorization=f"Basic {wrong}")[0] == 401
        assert ask(health, Authorization="Basic @")[0] == 401
        assert ask(health, Authorization=f"Basic {right}")[0] == 200


def test_tasks_are_asked_in_the_servers_form_and_the_version_says_it(
    formed_bundle, formed_model, studio
):
    """Label Studio keeps the predictions of a version, and asks again for another one."""
    versions, scene = [], formed_model.encode_image(Limits().decode(PICTURE))
    for form in ("phrase", "sentence"):
        with serving(formed_bundle, settings(studio, form=form)) as server:
            backend = f"http://127.0.0.1:{server.port}/label-studio"
            [found] = predicted(backend, SENT["predict"])
            versions.append(found["model_version"])
        region = found["result"][0]
        wanted = scene.segment(region["meta"]["text"][0], form=form).mask
        np.testing.assert_array_equal(brush_mask(region["value"]["rle"], *wanted.shape), wanted)
    assert versions[0].startswith("ris-dfam-")
    assert versions[1] == f"{versions[0]}-sentence"
