"""The page in headless Chromium, end to end: what people do with it.

It loads nothing from elsewhere: every test checks this at its end.
$RIS_SCREENSHOTS names a folder that gets a picture of each step.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

for needed in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
    pytest.importorskip(needed, reason='not installed: pip install ".[http]", make test-serving')
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (make test-serving)"
)
CHROMIUM = os.environ.get("RIS_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
)
if CHROMIUM is None:
    pytest.skip("there is no Chromium here", allow_module_level=True)

from conftest import REPO  # noqa: E402
from http_helper import serving  # noqa: E402
from ris.serving.http.settings import HttpSettings  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402

PHOTO = REPO / "examples" / "park.jpg"
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def address(served_bundle):
    limits = Limits(image_bytes=2_000_000, pixels=1_000_000, expressions=4)
    with serving(served_bundle, HttpSettings(limits=limits)) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page in a window of a given size.

    At the end nothing may have been asked of another host, and no script may have failed.
    """
    asked, failed, contexts = [], [], []

    def open_page(width=1280, height=900, at=address):
        context = browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(at, timeout=PATIENCE)
        page.locator("#ris-running").wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked
    assert not [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert not failed


def upload(page, file):
    page.locator("#ris-image input[type=file]").set_input_files(file)
    page.locator("#ris-image img").wait_for()


def ask(page, text):
    page.locator("#ris-expressions").fill(text)
    page.locator("#ris-ask").click()


def picture(page, name):
    if folder := os.environ.get("RIS_SCREENSHOTS"):
        page.wait_for_timeout(1500)  # the picture fades in
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_two_expressions_get_coloured_masks_times_and_what_runs(visit, served_model):
    page = visit()
    upload(page, PHOTO)
    ask(page, "left man\nthe tree")
    page.locator("#ris-answers tbody tr").nth(1).wait_for()
    rows = page.locator("#ris-answers tbody tr").all_inner_texts()
    answers = served_model.encode_image(PHOTO).segment_many(["left man", "the tree"])
    for row, answer in zip(rows, answers, strict=True):
        assert answer.expression in row
        assert f"{answer.no_target:.2f}" in row
        assert ("no target" in row) == answer.is_no_target
    assert page.locator("#ris-picture").is_visible()
    assert page.locator("#ris-times tbody tr").count() >= 6
    page.get_by_text("What runs here").click()
    running = page.locator("#ris-running tbody tr")
    running.first.wait_for(state="visible")
    assert running.count() == len(served_model.bundle.stages) == 6
    assert "onnxruntime" in running.first.inner_text()
    assert served_model.bundle.manifest.graphs["fusion"].precision in running.first.inner_text()
    assert page.locator("#ris-untrained").is_visible()
    picture(page, "two-expressions")


def test_the_masks_are_painted_where_they_are(visit, served_model):
    page = visit()
    upload(page, PHOTO)
    ask(page, "left man")
    page.locator("#ris-answers tbody tr").first.wait_for()
    before = "document.querySelector('#ris-picture').getContext('2d').getImageData({}, {}, 1, 1)"
    [answer] = served_model.encode_image(PHOTO).segment_many(["left man"])
    ys, xs = answer.mask.nonzero()
    assert len(ys)
    middle = len(ys) // 2
    read = "Array.from(" + before.format(xs[middle], ys[middle]) + ".data)"
    painted = page.evaluate(read)
    page.locator("#ris-answers .ris-swatch").click()
    page.wait_for_function(
        f"JSON.stringify({read}) !== '{json.dumps(painted, separators=(',', ':'))}'"
    )


def test_the_second_question_needs_no_upload(visit):
    page = visit()
    sent = []
    page.on("request", lambda request: sent.append(request))
    upload(page, PHOTO)
    ask(page, "left man")
    page.locator("#ris-answers", has_text="left man").wait_for()
    ask(page, "the tree")
    page.locator("#ris-answers", has_text="the tree").wait_for()
    assert "kept from before" not in page.locator("#ris-times").inner_text()  # nothing was encoded
    _, second = [request for request in sent if request.url.endswith("/v1/segment")]
    assert b"image_id" in second.post_data_buffer
    assert b"filename" not in second.post_data_buffer


def test_polygons_and_coco_are_downloaded(visit, served_model, tmp_path):
    page = visit()
    upload(page, PHOTO)
    ask(page, "left man\nthe tree")
    page.locator("#ris-answers tbody tr").nth(1).wait_for()
    answers = served_model.encode_image(PHOTO).segment_many(["left man", "the tree"])

    def downloaded(press):
        with page.expect_download() as waiting:
            press()
        return waiting.value.suggested_filename, json.loads(waiting.value.path().read_text())

    name, shapes = downloaded(page.locator("#ris-polygons").click)
    assert name == "park.geojson"
    for feature, answer in zip(shapes["features"], answers, strict=True):
        parts = answer.polygons()
        assert feature["properties"]["expression"] == answer.expression
        for rings, part in zip(feature["geometry"]["coordinates"], parts, strict=True):
            assert rings[0] == [*part.outer.tolist(), part.outer[0].tolist()]
            assert len(rings) == 1 + len(part.holes)

    page.locator("h1").click()
    name, coco = downloaded(lambda: page.keyboard.press("c"))
    assert name == "park.coco.json"
    [image] = coco["images"]
    assert (image["height"], image["width"]) == answers[0].mask.shape
    found = [answer for answer in answers if answer.box]
    assert len(coco["annotations"]) == len(found) >= 1
    for annotation, answer in zip(coco["annotations"], found, strict=True):
        assert annotation["bbox"] == list(answer.box)
        assert annotation["area"] == answer.mask.sum()
        assert coco["categories"][annotation["category_id"] - 1]["name"] == answer.expression
        assert annotation["segmentation"] == [
            part.joined().ravel().tolist() for part in answer.polygons()
        ]


def test_an_expression_for_nothing_says_so(visit):
    page = visit()
    upload(page, PHOTO)
    page.locator("#ris-threshold").fill("0")
    ask(page, "the purple elephant")
    page.locator("#ris-answers", has_text="nothing in the image is meant").wait_for()
    picture(page, "no-target")


def test_a_broken_file_is_refused_in_words_and_the_page_goes_on(visit, tmp_path):
    page = visit()
    (tmp_path / "broken.jpg").write_bytes(PHOTO.read_bytes()[:20000])
    page.locator("#ris-image input[type=file]").set_input_files(tmp_path / "broken.jpg")
    ask(page, "left man")
    page.locator("#ris-refusal", has_text="the image is damaged or cut short").wait_for()
    picture(page, "broken-file")
    upload(page, PHOTO)
    ask(page, "left man")
    page.locator("#ris-answers tbody tr").first.wait_for()


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(visit, tmp_path):
    page = visit()
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    (tmp_path / "large.png").write_bytes(b"x" * 2_000_001)
    page.locator("#ris-image input[type=file]").set_input_files(tmp_path / "large.png")
    page.locator("#ris-refusal", has_text="at most 2 MB").wait_for()
    assert not [url for url in sent if url.endswith("/v1/segment")]


def test_markup_in_an_expression_is_text(visit):
    page = visit()
    upload(page, PHOTO)
    ask(page, "<img src=x onerror=document.title='bad'>")
    page.locator("#ris-answers tbody tr").first.wait_for()
    page.locator("#ris-history-box").click()
    assert page.locator("#ris-answers img, #ris-history img").count() == 0
    assert page.title() != "bad"


def test_keyboard_alone_and_a_small_screen(visit):
    page = visit(390, 844)
    upload(page, PHOTO)
    page.keyboard.press("/")
    page.keyboard.type("left man")
    page.keyboard.press("Shift+Enter")
    page.locator("#ris-answers tbody tr").first.wait_for()
    assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.locator(".ris-swatch[aria-pressed=false]").wait_for()
    picture(page, "small-screen")


def test_what_was_asked_is_remembered_until_it_is_forgotten(visit):
    page = visit()
    upload(page, PHOTO)
    for text in ("left man", "the tree\nthe dog"):
        ask(page, text)
        page.locator("#ris-answers", has_text=text.split("\n")[0]).wait_for()
    page.reload()
    text = page.locator("#ris-expressions")
    text.fill("half a")
    for key, found in (("Up", "the tree\nthe dog"), ("Up", "left man"), ("Up", "left man")):
        text.press(f"Alt+Arrow{key}")
        assert text.input_value() == found
    for _ in range(2):
        text.press("Alt+ArrowDown")
    assert text.input_value() == "half a"
    page.locator("#ris-history-box summary").click()
    assert page.locator("#ris-history li").count() == 2
    page.locator("#ris-forget").click()
    assert page.locator("#ris-history li").count() == 0


def test_an_example_fills_the_page(visit):
    page = visit()
    page.locator("#ris-examples button").nth(2).click()
    page.locator("#ris-image img").wait_for()
    page.wait_for_function("document.querySelector('#ris-expressions').value")
    page.locator("#ris-ask").click()
    page.locator("#ris-answers tbody tr").first.wait_for()


def test_the_form_is_chosen_where_the_model_has_some(visit, formed_bundle):
    assert visit().locator("#ris-form-label").is_hidden()
    with serving(formed_bundle, HttpSettings(form="sentence")) as server:
        page = visit(at=f"http://127.0.0.1:{server.port}")
        assert page.locator("#ris-form").input_value() == "sentence"
        upload(page, PHOTO)
        for form in ("sentence", "phrase"):
            page.locator("#ris-form").select_option(form)
            ask(page, "left man")
            page.locator("#ris-answers", has_text=f"asked as a {form}").wait_for()
        picture(page, "form")


def test_a_token_is_asked_for_and_used(served_bundle, browser):
    with serving(served_bundle, HttpSettings(token="secret")) as server:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}")
        page.locator("#ris-refusal", has_text="token").wait_for()
        page.locator("#ris-token").fill("secret")
        page.keyboard.press("Tab")
        page.locator("#ris-running").wait_for(state="attached")
        upload(page, PHOTO)
        ask(page, "left man")
        page.locator("#ris-answers tbody tr").first.wait_for()
        page.close()
