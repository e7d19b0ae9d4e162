"""`ris-serve http` over loopback: answers, the cache, refusals, ids, tokens."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

for needed in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
    pytest.importorskip(needed, reason='not installed: pip install ".[http]"')

from http_helper import Client, form, serving, wait_until  # noqa: E402
from ris.runtime.masks import decode_rle  # noqa: E402
from ris.serving.http.command import http as http_command  # noqa: E402
from ris.serving.http.settings import HttpSettings  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402
from serving_helpers import picture_bytes  # noqa: E402

SMALL = Limits(
    image_bytes=200_000, pixels=1_000_000, expressions=4, characters=100, waiting=8, seconds=60
)


@pytest.fixture(scope="module")
def server(served_bundle):
    with serving(served_bundle, HttpSettings(limits=SMALL)) as running:
        yield running


@pytest.fixture
def client(server):
    made = Client(server.port)
    yield made
    made.close()


def expected(model, image, expressions, **more):
    return model.encode_image(Limits().decode(image)).segment_many(expressions, **more)


def filled(height, width, polygons):
    """The pixels inside of polygons whose rings run along the pixels' edges."""
    centres = np.zeros((height, width), bool)
    for polygon in polygons:
        for ring in [polygon["outer"], *polygon["holes"]]:
            for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
                if x0 == x1:  # a vertical edge turns all pixels to its right
                    centres[min(y0, y1) : max(y0, y1), x0:] ^= True
    return centres


# Answers


def test_answers_are_the_local_runtimes(client, served_model):
    image, texts = picture_bytes(11, 90, 70), ["left man", "the dog", "a red car"]
    reply = client.segment(image, texts, answer=["rle", "polygons", "png", "coco"])
    assert reply.status == 200
    found = reply.json
    assert (found["height"], found["width"]) == (70, 90)
    assert not found["from_cache"]
    for answer, wanted in zip(found["answers"], expected(served_model, image, texts), strict=True):
        assert answer["expression"] == wanted.expression
        assert answer["rle"] == dict(wanted.rle())
        np.testing.assert_array_equal(filled(70, 90, answer["polygons"]), wanted.mask)
        png = Image.open(io.BytesIO(base64.b64decode(answer["png"])))
        np.testing.assert_array_equal(np.asarray(png), wanted.mask)
        assert len(answer["coco"]) == len(answer["polygons"])
        assert answer["box"] == (list(wanted.box) if wanted.box else None)
        assert answer["area"] == wanted.mask.sum()
        assert answer["score"] == pytest.approx(wanted.score, abs=1e-6)
        assert answer["no_target"] == pytest.approx(wanted.no_target, abs=1e-6)
        assert answer["is_no_target"] == wanted.is_no_target
        assert answer["notes"] == list(wanted.notes)


def test_json_and_forms_answer_alike(client):
    image = picture_bytes(12)
    text = base64.b64encode(image).decode()
    of_form = client.segment(image, ["left man"]).json["answers"]
    for given in (text, f"data:image/png;base64,{text}"):
        assert client.segment_json(image=given, expression="left man").json["answers"] == of_form


def test_a_single_mask_comes_as_a_png_file(client, served_model):
    image = picture_bytes(13, 50, 40)
    reply = client.segment(image, ["left man"], accept="image/png")
    assert reply.headers["content-type"] == "image/png"
    [wanted] = expected(served_model, image, ["left man"])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(reply.body))), wanted.mask)
    assert client.segment(image, ["a", "b"], accept="image/png").status == 400


def test_the_threshold_is_the_requests(client, served_model):
    image = picture_bytes(14)
    [answer] = client.segment(image, ["left man"], no_target_threshold=0).json["answers"]
    assert answer["is_no_target"]
    assert not decode_rle(answer["rle"]).any()
    [wanted] = expected(served_model, image, ["left man"], no_target_threshold=None)
    for never in ("none", ""):
        [answer] = client.segment(image, ["left man"], no_target_threshold=never).json["answers"]
        assert answer["rle"] == dict(wanted.rle())


def test_the_category_is_the_requests(served_category_bundle):
    image = picture_bytes(15)
    with serving(served_category_bundle) as running:
        client = running.client()
        for given, asked in (({}, "person"), ({"category": "dog"}, "dog")):
            [answer] = client.segment(image, ["left man"], **given).json["answers"]
            assert answer["category"] == asked
        refused = client.segment(image, ["left man"], category=["dog", "cat"])
        assert (refused.status, refused.message) == (400, "1 expressions need as many categories")
        found = client.segment(image, ["left man", "qqq zzz"]).json["answers"]
        assert "rle" in found[0]
        assert found[1]["error"]["status"] == 400


@pytest.mark.parametrize("usual", ["phrase", "sentence"])
def test_the_form_is_the_requests_or_the_servers(formed_bundle, formed_model, usual):
    image = picture_bytes(16)
    wanted = {
        form: dict(expected(formed_model, image, ["Left man"], form=form)[0].rle())
        for form in ("phrase", "sentence")
    }
    assert wanted["phrase"] != wanted["sentence"]
    settings = HttpSettings(form=None if usual == "phrase" else usual)
    with serving(formed_bundle, settings) as running:
        client = running.client()
        described = client.get("/v1/model").json
        assert (described["forms"], described["form"]) == (["phrase", "sentence"], usual)
        first = client.segment(image, ["Left man"]).json
        text = base64.b64encode(image).decode()
        for form in ("phrase", "sentence"):  # about one encoded image
            by_form = client.segment(image, ["Left man"], form=form).json
            by_json = client.segment_json(image=text, expression="Left man", form=form).json
            assert by_form["answers"] == by_json["answers"]
            [answer] = by_form["answers"]
            assert (answer["form"], answer["rle"]) == (form, wanted[form])
            assert by_form["from_cache"]
            assert (first["answers"] == by_form["answers"]) == (form == usual)
        refused = client.segment(image, ["left man"], form="riddle")
        said = "there is no form 'riddle'; the model has phrase and sentence"
        assert (refused.status, refused.message) == (400, said)
        for given in (["phrase", "sentence"], "x" * 5000):
            refused = client.segment(image, ["left man"], form=given)
            assert refused.status == 400
            assert len(refused.message) < 150


def test_a_server_has_no_form_that_its_model_has_not(served_bundle):
    done = CliRunner().invoke(http_command, [str(served_bundle), "--form", "sentence"])
    assert done.exit_code == 2
    assert "the model asks every expression as it is; leave the form 'sentence' out" in done.output


# The cache


def test_the_second_question_needs_no_upload(server, client):
    image = picture_bytes(20)
    before = server.service.answerer.cache.misses
    first = client.segment(image, ["left man"]).json
    second = client.segment(image, ["left man"]).json
    third = client.segment(None, ["left man"], image_id=first["image_id"]).json
    assert [one["from_cache"] for one in (first, second, third)] == [False, True, True]
    assert first["answers"] == second["answers"] == third["answers"]
    assert server.service.answerer.cache.misses == before + 1
    assert "image.load" in first["seconds"]
    assert "image.load" not in third["seconds"]


def test_one_picture_that_many_send_at_once_is_encoded_once(server):
    image = picture_bytes(21)
    before = server.service.answerer.cache.misses

    def ask(text):
        return Client(server.port).segment(image, [text]).status

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, ["left man", "the dog", "a red car"] * 2)) == {200}
    assert server.service.answerer.cache.misses == before + 1


def test_an_image_that_is_not_kept_is_asked_for(client):
    reply = client.segment(None, ["left man"], image_id="0" * 64)
    assert reply.status == 404
    assert reply.message == "no image of this image_id is kept; send the image itself"


# Refusals

PICTURE = picture_bytes(1)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (form(b"/etc/passwd", ["x"]), 400, "the image is not an image that can be read"),
        (form(b"x" * 250_000, ["x"]), 413, "the image file has 0.2 MB, at most 0.2 MB"),
        (form(b"x" * 900_000, ["x"]), 413, "the request has 0.9 MB, at most"),
        (
            form(picture_bytes(1, 1300, 1000, "JPEG"), ["x"]),
            413,
            "the image is 1300x1000 pixels, the limit is 1 megapixels",
        ),
        (form(PICTURE, ["x"] * 5), 413, "5 expressions, at most 4"),
        (form(PICTURE, ["x" * 101]), 413, "an expression has 101 characters, at most 100"),
        (form(PICTURE, ["  "]), 400, "the expression is empty"),
        (form(PICTURE, []), 400, "expression: Field required"),
        (form(None, ["x"]), 400, "there is no image; send image, or the image_id"),
        (form(PICTURE, ["x"], image_id="0" * 64), 400, "send the image or an image_id, not both"),
        (form(PICTURE, ["x"], no_target_threshold=2), 400, "no_target_threshold is a probability"),
        (form(PICTURE, ["x"], category="dog"), 400, "this model does not ask by category"),
        (form(PICTURE, ["x"], seed=3), 400, "seed"),
        (form(PICTURE, ["x"], form="phrase"), 400, "leave the form 'phrase' out"),
        (form(PICTURE, ["x"], answer="gif"), 400, "answer.0: Input should be 'rle'"),
        (form(PICTURE, ["x"], tolerance=-1), 400, "tolerance: Input should be greater"),
        (form(PICTURE, ["x"], colour="red"), 400, "colour: Extra inputs are not permitted"),
        (form(PICTURE, ["x"], timeout=["1", "2"]), 400, "timeout may be given once"),
        (form(PICTURE, ["x"] * 80), 400, "the form cannot be read: Too many fields"),
        ((b"x", "multipart/form-data"), 400, "the form cannot be read"),
        ((b"x", "multipart/form-data; boundary=y"), 400, "the form cannot be read: Invalid"),
        ((b"x", "text/plain"), 415, "send multipart/form-data or application/json, not text/plain"),
        ((b"{", "application/json"), 400, "Invalid JSON"),
        ((b"[" * 900, "application/json"), 400, "Invalid JSON"),
        ((b'{"expression": [' + b'"",' * 9000 + b'""]}', "application/json"), 413, "many parts"),
        ((b'{"expression": "x", "image": "?"}', "application/json"), 400, "image is not base64"),
        ((b'{"expression": "\xff"}', "application/json"), 400, "JSON"),
    ],
)
def test_what_is_refused_and_how(client, body, status, said):
    content, kind = body
    reply = client.ask("POST", "/v1/segment", content, Content_Type=kind)
    assert said in reply.message
    assert reply.status == reply.json["error"]["status"] == status
    assert reply.json["error"]["request_id"] == reply.headers["x-request-id"]


def test_a_refused_request_leaves_the_next_alone(server):
    refused = Client(server.port).segment(b"x" * 900_000, ["x"])
    assert refused.status == 413
    assert Client(server.port).segment(PICTURE, ["left man"]).status == 200
    wait_until(lambda: server.service.door.requests == server.service.door.bytes == 0)


def test_a_body_without_a_length_has_the_same_limit(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    pieces = (b"x" * 100_000 for _ in range(20))
    kind = {"Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/segment", pieces, kind, encode_chunked=True)
    except OSError:
        pass  # the server may have closed what it does not read
    else:
        assert connection.getresponse().status == 413
    finally:
        connection.close()
    wait_until(lambda: server.service.door.requests == server.service.door.bytes == 0)


def test_one_bad_expression_costs_itself_alone(client):
    found = client.segment(PICTURE, ["left man", " ", "the dog"]).json["answers"]
    assert [("rle" in one, "error" in one) for one in found] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    assert "the expression is empty" in found[1]["error"]["message"]


def test_an_answer_is_no_longer_than_its_limit(served_bundle):
    with serving(served_bundle, HttpSettings(answer_bytes=300)) as running:
        reply = running.client().segment(picture_bytes(3, 300, 200), ["a man"] * 8, answer="png")
        assert reply.status == 413
        assert "the answer has more than 0.0003 MB" in reply.message


# Ids, state, documents


def test_a_request_has_an_id(client):
    named = client.get("/health", X_Request_ID="mine-1").headers["x-request-id"]
    made = [client.get("/health").headers["x-request-id"] for _ in range(2)]
    unfit = client.get("/health", X_Request_ID="a b").headers["x-request-id"]
    assert named == "mine-1"
    assert len({*made, unfit, "a b"}) == 4


def test_the_figures_count_what_happened(client):
    def figures():
        lines = client.get("/metrics").body.decode().splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }

    before = figures()
    client.segment(picture_bytes(31), ["left man", " "])
    client.segment(picture_bytes(31), ["left man"])
    client.segment(b"", ["x"])
    after = figures()

    def grown(name):
        return after.get(name, 0) - before.get(name, 0)

    assert grown('ris_http_requests_total{route="/v1/segment",status="200"}') == 2
    assert grown('ris_http_requests_total{route="/v1/segment",status="400"}') == 1
    assert grown('ris_image_cache_total{found="hit"}') == 1
    assert grown('ris_image_cache_total{found="miss"}') == 1
    assert grown('ris_expressions_total{answer="refused"}') == 1
    assert grown('ris_stage_seconds_count{stage="queue"}') == 2
    assert grown('ris_http_request_seconds_count{route="/v1/segment"}') == 3
    assert after["ris_requests_inside"] == 0
    assert after["ris_image_cache_images"] >= 1


def test_unknown_paths_are_one_line_of_the_figures(client):
    for number in range(3):
        assert client.get(f"/no-{number}").status == 404
    page = client.get("/metrics").body.decode()
    assert "no-1" not in page
    assert 'route="other",status="404"' in page


def test_the_documents_ask_no_other_host(client):
    for path in ("/docs", "/redoc"):
        page = client.get(path).body.decode()
        files = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(files) >= 2
        for file in files:
            assert "//" not in file
            assert client.get(f"/{file}").status == 200
    described = client.get("/openapi.json").json
    bodies = described["paths"]["/v1/segment"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "application/json"}
    for body in bodies.values():
        assert {"image", "expression", "form"} <= set(body["schema"]["properties"])
    assert "form" in described["components"]["schemas"]["Answer"]["properties"]


def test_the_model_is_described(client, served_model):
    found = client.get("/v1/model").json
    assert set(found["graphs"]) == set(served_model.bundle.stages)
    assert found["limits"]["pixels"] == SMALL.pixels
    assert found["trained"] is False
    assert (found["forms"], found["form"]) == ([], None)


# Tokens


def test_a_token_is_asked_where_there_is_one(served_bundle):
    with serving(served_bundle, HttpSettings(token="secret")) as running:
        without, wrong = running.client(), running.client("secret2")
        for client in (without, wrong):
            for path in ("/metrics", "/v1/model", "/nothing"):
                reply = client.get(path)
                assert reply.status == 401
                assert reply.headers["www-authenticate"] == "Bearer"
            assert client.segment(PICTURE, ["x"]).status == 401
            assert client.ask("POST", "/v1/reload").status == 401
            for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
                assert client.get(path).status == 200
        right = running.client("secret")
        assert right.segment(PICTURE, ["left man"]).status == 200
        assert right.ask("POST", "/v1/reload").json == {"reload": "done"}


def test_without_a_token_nobody_reloads_over_http(client):
    assert client.ask("POST", "/v1/reload").status == 403


def test_the_log_is_json_with_the_requests_id(caplog):
    import logging

    from ris.serving.http.logs import JsonFormatter, TextFormatter

    record = logging.LogRecord("ris.http", logging.INFO, "", 0, "request", None, None)
    record.fields = {"request_id": "a\nb", "path": "/\ud800"}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["request_id"] == "a\nb"
    assert "request" in TextFormatter().format(record)
