"""Pictures of tasks are fetched from hosts that were named, within limits, and from no other."""

from __future__ import annotations

import base64
import json
import time

import pytest

from label_helper import host
from ris.engines.errors import ImageError, RisError
from ris.serving.http.labelling.pictures import PictureSource

MOST = 1000


@pytest.fixture
def studio():
    with host() as served:
        served.files["/data/upload/1/a.png"] = b"uploaded"
        yield served


@pytest.fixture
def elsewhere():
    with host() as served:
        served.files["/a.png"] = b"elsewhere"
        yield served


def redirect(place):
    def send(handler):
        handler.send_response(302)
        handler.send_header("Location", place)
        handler.end_headers()

    return send


def refusal(source, address, **more):
    with pytest.raises(ImageError) as raised:
        source.get(address, MOST, **more)
    return str(raised.value)


@pytest.mark.parametrize("path", ["/data/upload/1/a.png", "/upload/1/a.png", "upload/1/a.png"])
def test_an_upload_is_fetched_from_label_studio_with_its_key(studio, path):
    source = PictureSource(studio.address, "0123abcd")
    assert source.get(path, MOST) == b"uploaded"
    [(asked, headers, _)] = studio.asked
    assert asked == "/data/upload/1/a.png"
    assert headers["Authorization"] == "Token 0123abcd"


def test_a_personal_access_token_is_exchanged(studio):
    studio.files["/api/token/refresh/"] = json.dumps({"access": "short-lived"}).encode()
    source = PictureSource(studio.address, "head.body.signature")
    assert source.get("/data/upload/1/a.png", MOST) == b"uploaded"
    (first, plain, body), (_, headers, _) = studio.asked
    assert first == "/api/token/refresh/"
    assert json.loads(body) == {"refresh": "head.body.signature"}
    assert "Authorization" not in plain
    assert headers["Authorization"] == "Bearer short-lived"


def test_a_key_that_is_not_taken_is_a_sentence(studio):
    source = PictureSource(studio.address, "head.body.signature")
    assert "does not take the key in LABEL_STUDIO_API_KEY" in refusal(source, "/data/a.png")


def test_label_studio_may_stand_below_a_path(studio):
    studio.files["/tools/labels/data/a.png"] = b"below"
    source = PictureSource(f"{studio.address}/tools/labels/")
    assert source.get("/data/a.png", MOST) == b"below"


def test_a_cloud_address_is_resolved_by_label_studio(studio):
    coded = base64.urlsafe_b64encode(b"s3://bucket/a.png").decode()
    studio.files[f"/tasks/7/resolve/?fileuri={coded}"] = b"from the cloud"
    source = PictureSource(studio.address, "0123abcd")
    assert source.get("s3://bucket/a.png", MOST, task=7) == b"from the cloud"


def test_without_label_studio_its_paths_are_a_sentence():
    said = refusal(PictureSource(), "/data/upload/1/a.png")
    assert said.startswith("the picture /data/upload/1/a.png is in Label Studio itself; start this")
    assert "--label-studio-url" in said


def test_a_host_that_nobody_named_is_not_asked(studio, elsewhere):
    said = refusal(PictureSource(studio.address), f"{elsewhere.address}/a.png")
    assert f"--picture-host {elsewhere.name}" in said
    assert not elsewhere.asked


def test_a_host_that_was_named_gets_no_key(studio, elsewhere):
    source = PictureSource(studio.address, "0123abcd", frozenset({elsewhere.name}))
    assert source.get(f"{elsewhere.address}/a.png", MOST) == b"elsewhere"
    assert "Authorization" not in elsewhere.asked[0][1]


def test_a_redirection_to_a_host_that_nobody_named_is_not_followed(studio, elsewhere):
    studio.files["/data/a.png"] = redirect(f"{elsewhere.address}/a.png")
    said = refusal(PictureSource(studio.address, "0123abcd"), "/data/a.png")
    assert f"leads to {elsewhere.name}, a host that this server does not ask" in said
    assert not elsewhere.asked


def test_a_redirection_does_not_take_the_key_along(studio, elsewhere):
    studio.files["/data/a.png"] = redirect(f"{elsewhere.address}/a.png")
    studio.files["/data/b.png"] = redirect("/data/upload/1/a.png")
    source = PictureSource(studio.address, "0123abcd", frozenset({elsewhere.name}))
    assert source.get("/data/a.png", MOST) == b"elsewhere"
    assert "Authorization" not in elsewhere.asked[0][1]
    assert source.get("/data/b.png", MOST) == b"uploaded"
    assert studio.asked[-1][1]["Authorization"] == "Token 0123abcd"


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/hostname",
        "ftp://example.org/a.png",
        "gopher://example.org/",
        "http://user@example.org/a.png",
        "http://[::1/a.png",
        "\\\\share\\a.png",
    ],
)
def test_other_addresses_are_not_opened(address):
    hosts = frozenset({"example.org", "user@example.org", ""})
    assert "picture" in refusal(PictureSource(None, None, hosts), address)


def test_a_path_cannot_leave_label_studio(studio, elsewhere):
    source = PictureSource(studio.address)
    assert "404" in refusal(source, f"//{elsewhere.name}/a.png")
    assert not elsewhere.asked


@pytest.mark.parametrize("before", ["/" * 12, " " * 13, "/ " * 9, "\t" * 13, "upload/../////"])
def test_what_stands_before_an_address_does_not_hide_its_host(studio, elsewhere, before):
    source = PictureSource(studio.address, "0123abcd")
    assert "picture" in refusal(source, f"{before}{elsewhere.address}/a.png")
    assert not elsewhere.asked


@pytest.mark.parametrize(
    ("address", "task"),
    [
        ("aaaaaaaaaaaa://x/y", 1),
        ("mailto:x", 1),
        ("s3://bucket/a.png", [1]),
        ("s3://bucket/a.png", float("inf")),
        ("s3://bucket/a.png", "x"),
    ],
)
def test_whatever_a_task_has_is_a_sentence(studio, address, task):
    assert "picture" in refusal(PictureSource(studio.address), address, task=task)
    assert not studio.asked


def test_a_picture_that_is_too_large_is_not_read_to_its_end(studio):
    studio.files["/data/big.png"] = bytes(MOST + 1)
    said = refusal(PictureSource(studio.address), "/data/big.png")
    assert "has more than 0.001 MB, which are accepted" in said


def test_a_host_that_sends_for_ever_is_left(studio):
    def trickle(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    studio.files["/data/slow.png"] = trickle
    said = refusal(PictureSource(studio.address, seconds=0.2), "/data/slow.png")
    assert "did not come within 0.2 s" in said


def test_what_the_host_refuses_is_a_sentence_that_says_what_to_do(studio):
    def refuse(handler):
        handler.send_response(401)
        handler.end_headers()

    studio.files["/data/a.png"] = refuse
    assert "put a personal access token" in refusal(PictureSource(studio.address), "/data/a.png")
    said = refusal(PictureSource(studio.address, "0123"), "/data/a.png")
    assert "the key in LABEL_STUDIO_API_KEY does not open it" in said


def test_a_host_that_is_not_there_is_a_sentence(studio):
    address = studio.address
    studio.shutdown()
    studio.server_close()
    assert "cannot be fetched: " in refusal(PictureSource(address), "/data/a.png")


def test_a_data_address_is_decoded_within_the_limit():
    coded = base64.b64encode(b"picture").decode()
    assert PictureSource().get(f"data:image/png;base64,{coded}", MOST) == b"picture"
    large = base64.b64encode(bytes(MOST + 3)).decode()
    assert "more than 0.001 MB" in refusal(PictureSource(), f"data:image/png;base64,{large}")
    assert "not of a picture" in refusal(PictureSource(), f"data:text/html;base64,{coded}")
    assert "damaged" in refusal(PictureSource(), "data:image/png;base64,@@@@")


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://host", "http://", "http://host?x=1"])
def test_an_address_that_is_no_label_studio_is_refused(address):
    with pytest.raises(RisError, match="is not the address of a Label Studio"):
        PictureSource(address)


def test_the_key_is_not_shown():
    assert "secret" not in repr(PictureSource("http://localhost:8080", "secret"))
