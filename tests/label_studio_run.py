"""Drives a real Label Studio: a phrase is typed in a browser, and its mask compared.

`make label-studio` runs it, by the Python of an environment with label-studio and playwright; the
runtime is in another, of which the commands are called. Everything is on loopback, and what Label
Studio keeps is in a folder that goes at the end.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image
from playwright.sync_api import Page, sync_playwright

REPO = Path(__file__).parent.parent
PHOTO = REPO / "examples" / "park.jpg"
PHRASE = "left man"
USER, PASSWORD = "annotator@example.org", uuid.uuid4().hex
PATIENCE = 120.0  # seconds

CONFIG = """<View>
  <TextArea name="prompt" toName="image" smart="true" maxSubmissions="1" editable="true"
      placeholder="What to mark: left man"/>
  <TextArea name="answer" toName="image" editable="false" maxSubmissions="1"/>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image">
    <Label value="person" background="#e34948"/>
    <Label value="dog" background="#2a78d6"/>
  </BrushLabels>
</View>"""

OUTLINES = """<View>
  <Image name="image" value="$image"/>
  <PolygonLabels name="outline" toName="image">
    <Label value="person" predicted_values="left man, right man"/>
    <Label value="tree" predicted_values="the tree"/>
  </PolygonLabels>
</View>"""


def say(text: str) -> None:
    """A line of what was seen."""
    print(text, flush=True)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], log: Path, ready: str, **environment: str) -> Iterator[None]:
    """A server, from when it answers at an address to the end of the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **environment}, cwd=log.parent
        )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(ready, timeout=5).close()
                break
            time.sleep(0.3)
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


class Studio:
    """Label Studio's API."""

    def __init__(self, address: str, token: str) -> None:
        self.address, self._token = address, token

    def ask(self, method: str, path: str, body: Any = None, file: Path | None = None) -> Any:
        """The JSON of an answer. file: is sent as a form in place of a body."""
        headers = {"Authorization": f"Token {self._token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        if file:
            mark = uuid.uuid4().hex
            headers["Content-Type"] = f"multipart/form-data; boundary={mark}"
            head = (
                f'--{mark}\r\nContent-Disposition: form-data; name="file"; '
                f'filename="{file.name}"\r\nContent-Type: image/jpeg\r\n\r\n'
            )
            data = head.encode() + file.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            found = answer.read()
        return json.loads(found) if found else None

    def project(self, title: str, config: str, backend: str) -> int:
        """A project with the park in it, connected to a backend."""
        options = {"show_collab_predictions": False, "evaluate_predictions_automatically": False}
        made = self.ask("POST", "/api/projects", {"title": title, "label_config": config} | options)
        number = int(made["id"])
        self.ask("POST", f"/api/projects/{number}/import", file=PHOTO)
        connection = {"url": backend, "project": number, "title": "ris", "is_interactive": True}
        found = self.ask("POST", "/api/ml", connection)
        assert found["state"] == "CO", found
        say(f"{title}: connected, model version {found['model_version']}")
        return number

    def tasks(self, project: int) -> list[int]:
        """The numbers of a project's tasks, in order."""
        found = self.ask("GET", f"/api/tasks?project={project}")["tasks"]
        return sorted(int(task["id"]) for task in found)


def local_masks(commands: Path, folder: Path, phrases: list[str]) -> list[np.ndarray]:
    """What `ris-infer` says, bool [H, W] each."""
    out = folder / "local"
    subprocess.run(
        [commands / "ris-infer", PHOTO, *phrases, "--out", out], check=True, capture_output=True
    )
    names = [out / f"park.{phrase.replace(' ', '-')}.mask.png" for phrase in phrases]
    return [np.asarray(Image.open(name).convert("L")) > 127 for name in names]


def brush_of(result: dict[str, Any]) -> np.ndarray:
    """A brush region's mask as Label Studio's own package reads it."""
    shape = result["original_height"], result["original_width"], 4
    return decode_rle(result["value"]["rle"]).reshape(shape)[..., 3] > 127


class Annotator:
    """Somebody at Label Studio's page."""

    def __init__(self, page: Page, studio: Studio) -> None:
        self.page, self._studio = page, studio
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(f"{studio.address}/user/login")
        page.locator("input[name=email]").fill(USER)
        page.locator("input[name=password]").fill(PASSWORD)
        page.locator("button[type=submit]").click()
        page.wait_for_load_state("networkidle")

    def open(self, project: int, task: int) -> None:
        """A task, with auto-annotation on."""
        self.page.goto(f"{self._studio.address}/projects/{project}/data?task={task}")
        toggle = self.page.get_by_test_id("bottombar-auto-annotation-toggle")
        toggle.wait_for(state="attached")
        self.page.get_by_placeholder("What to mark").wait_for()
        if not toggle.is_checked():
            self.page.get_by_text("Auto-Annotation").click()

    def type(self, phrase: str) -> dict[str, Any]:
        """Types a phrase; returns what the backend's answer to it was."""
        box = self.page.get_by_placeholder("What to mark")
        with self.page.expect_response("**/interactive-annotating*") as answered:
            box.fill(phrase)
            box.press("Enter")
        found: dict[str, Any] = answered.value.json()
        assert "errors" not in found, found
        return found["data"]

    def accept(self) -> None:
        """Takes what was suggested."""
        self.page.get_by_test_id("bottombar-accept-suggestions-button").click()
        self.page.locator(".lsf-outliner-item").first.wait_for()

    def submit(self) -> None:
        """Keeps the annotation."""
        with self.page.expect_response(re.compile(r"/api/tasks/\d+/annotations")):
            self.page.get_by_test_id("bottombar-submit-button").click()

    def reads(self, sentence: str) -> None:
        """The sentence stands on the page."""
        self.page.get_by_text(sentence).first.wait_for()


def check_typed_phrase(
    annotator: Annotator, studio: Studio, project: int, wanted: np.ndarray, picture: Path
) -> None:
    """A phrase, its mask on the page, accepted and submitted: the local runtime's, exactly."""
    [task] = studio.tasks(project)
    annotator.open(project, task)
    prediction = annotator.type(PHRASE)
    assert LabelInterface(CONFIG).validate_prediction(prediction), prediction
    annotator.accept()
    annotator.reads(f"{PHRASE}: person, score")
    annotator.page.wait_for_timeout(1500)  # the mask is drawn
    annotator.page.screenshot(path=picture)
    annotator.submit()

    [annotation] = studio.ask("GET", f"/api/tasks/{task}/annotations/")
    [region] = [each for each in annotation["result"] if each["type"] == "brushlabels"]
    assert region["value"]["brushlabels"] == ["person"], region["value"]["brushlabels"]
    found = brush_of(region)
    assert np.array_equal(found, wanted), f"{(found != wanted).sum()} pixels differ"
    say(f"typed {PHRASE!r}: {found.sum()} pixels, submitted, equal to ris-infer's in every one")


def check_sentence(annotator: Annotator, studio: Studio, project: int) -> None:
    """A picture that the backend does not fetch: the annotator reads why."""
    before = set(studio.tasks(project))
    place = "http://photos.example/a.jpg"
    studio.ask("POST", f"/api/projects/{project}/import", [{"data": {"image": place}}])
    [task] = set(studio.tasks(project)) - before
    annotator.open(project, task)
    annotator.type(PHRASE)
    annotator.reads("is on a host that this server does not ask")
    say("a picture on a host that nobody named: the sentence stands on the page")


def check_ahead(studio: Studio, project: int, wanted: list[np.ndarray]) -> None:
    """Predictions for a whole project, as polygons, without anybody's phrase."""
    action = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}"
    studio.ask("POST", action, {"selectedItems": {"all": True, "excluded": []}})
    [task] = studio.tasks(project)
    end = time.monotonic() + PATIENCE
    while not (found := studio.ask("GET", f"/api/predictions?task={task}")):
        assert time.monotonic() < end, "no prediction came"
        time.sleep(0.5)

    regions = found[0]["result"]
    labels = [region["value"]["polygonlabels"][0] for region in regions]
    assert labels == ["person", "person", "tree"], labels
    for region, mask in zip(regions, wanted, strict=True):
        area, pixels = polygon_area(region), int(mask.sum())
        assert abs(area - pixels) < 0.02 * pixels, (area, pixels)
    say(f"annotated ahead: {labels} as polygons, each within 2 % of its mask's area")


def polygon_area(region: dict[str, Any]) -> float:
    """Of a polygon region, in pixels."""
    size = np.array([region["original_width"], region["original_height"]])
    x, y = (np.array(region["value"]["points"]) / 100 * size).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def access_token(studio: Studio) -> str:
    """A personal access token, as a user copies it from the page."""
    token: str = studio.ask("POST", "/api/token/", {})["token"]
    payload = token.split(".")[1]
    kind = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["token_type"]
    assert kind == "refresh", kind
    return token


def drive(commands: Path, folder: Path, picture: Path, chromium: str) -> None:
    """Everything, with servers that live as long."""
    legacy, studio_port, port = uuid.uuid4().hex, free_port(), free_port()
    studio = Studio(f"http://127.0.0.1:{studio_port}", legacy)
    start = [Path(sys.executable).parent / "label-studio", "start", "--no-browser"]
    start += ["--data-dir", folder / "studio"]
    start += ["--port", studio_port, "--internal-host", "127.0.0.1"]
    start += ["--username", USER, "--password", PASSWORD, "--user-token", legacy]
    start += ["--enable-legacy-api-token"]
    quiet = {"COLLECT_ANALYTICS": "False", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}
    quiet |= {"LATEST_VERSION_CHECK": "False", "USE_DEFAULT_BANNED_SUBNETS": "false"}
    log = folder / "label-studio.log"
    with running([str(part) for part in start], log, f"{studio.address}/health", **quiet):
        serve = [commands / "ris-serve", "http", "--port", port]
        serve += ["--label-studio-url", studio.address]
        ready = f"http://127.0.0.1:{port}/ready"
        key = {"LABEL_STUDIO_API_KEY": access_token(studio)}
        with running([str(part) for part in serve], folder / "ris-serve.log", ready, **key):
            backend = f"http://127.0.0.1:{port}/label-studio"
            masks = local_masks(commands, folder, [PHRASE, "right man", "the tree"])
            check(studio, backend, masks, picture, chromium)


def check(
    studio: Studio, backend: str, masks: list[np.ndarray], picture: Path, chromium: str
) -> None:
    """The checks, one after the other. masks: what `ris-infer` says to the labels' phrases."""
    outlines = studio.project("Outlines", OUTLINES, backend)
    check_ahead(studio, outlines, masks)

    project = studio.project("Phrases", CONFIG, backend)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        annotator = Annotator(page, studio)
        try:
            check_typed_phrase(annotator, studio, project, masks[0], picture)
            check_sentence(annotator, studio, project)
        except Exception:
            page.screenshot(path=picture.with_name("failed.png"))
            raise
        finally:
            browser.close()


def main() -> None:
    """Parses the arguments and drives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=Path, required=True, help="Where ris-serve is.")
    parser.add_argument("--picture", type=Path, required=True, help="Where the screenshot goes.")
    given = parser.parse_args()
    found = (os.environ.get("RIS_CHROMIUM"), *map(shutil.which, ("chromium", "google-chrome")))
    chromium = next(filter(None, found), None)
    if chromium is None:
        sys.exit("there is no Chromium here: apt-get install chromium")
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ris-label-studio-") as folder:
        drive(given.commands.absolute(), Path(folder), given.picture.absolute(), chromium)


if __name__ == "__main__":
    main()
