"""The page in headless Chromium, end to end: what people do with it.

It loads nothing from elsewhere: every test checks this at its end.
$RIS_SCREENSHOTS names a folder that gets a picture of each step.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip(
    "gradio",
    minversion="5",
    reason='Gradio is not installed: pip install ".[ui]", make test-serving',
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (make test-serving)"
)
CHROMIUM = os.environ.get("RIS_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
)
if CHROMIUM is None:
    pytest.skip("there is no Chromium here", allow_module_level=True)

from conftest import REPO  # noqa: E402
from ris.serving.answering import Answerer  # noqa: E402
from ris.serving.limits import Limits  # noqa: E402
from serving_helpers import free_ports  # noqa: E402

PHOTO = REPO / "examples" / "park.jpg"
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def address(served_model):
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from ris.serving.page.page import serve_page

    [port] = free_ports(1)
    limits = Limits(image_bytes=2_000_000, pixels=1_000_000, expressions=4)
    page = serve_page(Answerer(served_model, limits), "127.0.0.1", port, wait=False)
    yield f"http://127.0.0.1:{port}"
    page.close()


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

    At the end nothing may have been asked of another host.
    """
    asked, contexts = [], []

    def open_page(width=1280, height=900):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address, timeout=PATIENCE)
        page.locator("#ris-ask").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked
    from_here = (address, "data:", "blob:", "ws://127.0.0.1")
    assert not [url for url in asked if not url.startswith(from_here)]


def upload(page, file):
    page.locator("#ris-image input[type=file]").set_input_files(file)
    page.locator("#ris-image img").first.wait_for()


def ask(page, text):
    page.locator("#ris-text textarea").fill(text)
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
    assert page.locator("#ris-picture img").count() == 1
    assert page.locator("#ris-times tbody tr").count() >= 6
    page.get_by_text("What runs here").click()
    running = page.locator("#ris-running tbody tr")
    running.first.wait_for(state="visible")
    assert running.count() == len(served_model.bundle.stages) == 6
    assert "onnxruntime" in running.first.inner_text()
    assert served_model.bundle.manifest.graphs["fusion"].precision in running.first.inner_text()
    picture(page, "two-expressions")


def test_an_expression_for_nothing_says_so(visit):
    page = visit()
    upload(page, PHOTO)
    page.get_by_label("number input for No target above this probability").fill("0")
    page.keyboard.press("Tab")
    ask(page, "the purple elephant")
    page.locator("#ris-answers", has_text="nothing in the image is meant").wait_for()
    picture(page, "no-target")


def test_a_broken_file_is_refused_in_words_and_the_page_goes_on(visit, tmp_path):
    page = visit()
    (tmp_path / "broken.jpg").write_bytes(PHOTO.read_bytes()[:20000])
    page.locator("#ris-image input[type=file]").set_input_files(tmp_path / "broken.jpg")
    page.wait_for_timeout(3000)  # nothing to wait for: a broken picture has no element that appears
    ask(page, "left man")
    page.locator("#ris-refusal", has_text="the image is damaged or cut short").wait_for()
    picture(page, "broken-file")
    upload(visit(), PHOTO)


def test_markup_in_an_expression_is_text(visit):
    page = visit()
    upload(page, PHOTO)
    ask(page, "<img src=x onerror=document.title='bad'>")
    page.locator("#ris-answers tbody tr").first.wait_for()
    assert page.locator("#ris-answers img").count() == 0
    assert page.title() != "bad"


def test_keyboard_alone_and_a_small_screen(visit):
    page = visit(390, 844)
    upload(page, PHOTO)
    page.locator("#ris-text textarea").focus()
    page.keyboard.type("left man")
    page.keyboard.press("Shift+Enter")
    page.locator("#ris-answers tbody tr").first.wait_for()
    assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
    picture(page, "small-screen")


def test_an_example_fills_the_page(visit):
    page = visit()
    page.locator(".gallery-item, table tbody tr").first.wait_for()
    page.get_by_text("Examples").scroll_into_view_if_needed()
    page.locator(".gr-samples-table tbody tr, table:has(img) tbody tr").first.click()
    page.locator("#ris-image img").first.wait_for()
    assert page.locator("#ris-text textarea").input_value()


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../../etc/hostname", "http://127.0.0.1:9/x.png"]
)
def test_paths_and_addresses_in_a_request_are_not_opened(address, path):
    """What a program could send instead of an upload."""
    data = {
        "data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "left man", 0.5],
        "fn_index": 0,
        "session_hash": "test",
    }
    headers = {"Content-Type": "application/json"}
    join = f"{address}/gradio_api/queue/join"
    request = urllib.request.Request(join, json.dumps(data).encode(), headers)
    try:
        urllib.request.urlopen(request, timeout=60).read()
    except urllib.error.HTTPError as error:
        status = error.code
    else:
        status, events = 200, []
        queue = f"{address}/gradio_api/queue/data?session_hash=test"
        for line in urllib.request.urlopen(queue, timeout=60):
            if line.startswith(b"data:"):
                events.append(json.loads(line[5:]))
                if events[-1]["msg"] in ("process_completed", "close_stream"):
                    break
        assert events[-1]["msg"] == "process_completed"
        assert not events[-1]["success"]
    assert status == 200 or 400 <= status < 500
