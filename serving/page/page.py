"""The page itself.

Everything it loads comes from this machine: a header forbids the browser anything else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ris.data.samples import scene_images
from ris.engines.errors import ImageError, RisError
from ris.serving.answering import Answerer
from ris.serving.page.answers import answer, refusal, running

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self'"
    " 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:;"
    " connect-src 'self' data: blob:; media-src 'self' data: blob:; frame-ancestors 'none'"
)
_STYLE = """
.ris-table { width: 100%; border-collapse: collapse; }
.ris-table th, .ris-table td { text-align: left; padding: .3em .6em; border: 0;
  border-bottom: 1px solid #8884 !important; }
.ris-table th[scope=row] { font-weight: 500; overflow-wrap: anywhere; min-width: 6em; }
.ris-swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em;
  border-radius: .2em; }
.ris-note { font-size: .85em; opacity: .8; }
.ris-error { color: #b00020; font-weight: 600; }
.dark .ris-error { color: #ff8a80; }
@media (max-width: 640px) { .ris-table th, .ris-table td { padding: .2em .3em; font-size: .85em; } }
"""


def hand_over_bytes(image: Any) -> None:
    """Makes an image input give the bytes of the file as it was sent, and refuse web addresses.

    Left alone, Gradio would open the file itself, and a broken one would be an error without a
    reason. The instance is changed because Gradio writes a stub file beside every module that has
    a component class of its own.
    """
    move = image.async_move_resource_to_block_cache

    async def move_no_address(url_or_file_path: Any) -> str | None:
        if str(url_or_file_path).lower().startswith(("http:", "https:", "ftp:", "//")):
            raise gr.Error("send the image itself, not an address")
        moved: str | None = await move(url_or_file_path)
        return moved

    def preprocess(payload: ImageData | None) -> bytes | None:
        # Gradio has checked that the path is that of an upload or of an example
        return None if payload is None or payload.path is None else Path(payload.path).read_bytes()

    image.async_move_resource_to_block_cache, image.preprocess = move_no_address, preprocess


class OnlyFromHere:
    """Adds the header that forbids the browser to load anything from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", _POLICY.encode())
                message["headers"] = [*message["headers"], header]
            await send(message)

        await self._app(scope, receive, with_header if scope["type"] == "http" else send)


def examples(folder: Path, category: bool) -> list[list[str]]:
    """Three drawn scenes with expressions, such as the model is evaluated on, as files.

    folder: for the files; category: whether the page has an input for it.
    """
    found = []
    for image in scene_images("heldout", 12, size=512):
        file = folder / f"{image.name}.png"
        Image.fromarray(image.rgb).save(file)
        texts = list(dict.fromkeys(truth.expression for truth in image.truths))
        found.append([str(file), "\n".join(texts[:3]), *(["auto"] if category else [])])
    return found


@dataclass(frozen=True)
class _Question:
    """The components with which a question is put."""

    image: Any
    """The image: bytes of a file."""

    text: Any
    """The expressions, one a line."""

    category: Any
    """The category asked; hidden where the model does not ask by category."""

    threshold: Any
    """The no-target threshold; hidden where the model has no no-target head."""

    button: Any
    """Asks."""


def build_page(answerer: Answerer, folder: Path) -> gr.Blocks:
    """The page over an open model. folder: for the examples' files."""
    asks_category = bool(answerer.model.categories)

    # what people sent is deleted after an hour, and all of it at the end
    with gr.Blocks(
        title="Referring image segmentation", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        _heading(answerer)
        with gr.Row():
            with gr.Column(min_width=300):
                question = _question(answerer)
            with gr.Column(min_width=300):
                picture, answers = _results()
        with gr.Accordion("Milliseconds by stage", open=True):
            times = gr.HTML()
        with gr.Accordion("What runs here", open=False):
            gr.HTML(running(answerer))

        category = [question.category] if asks_category else []
        inputs = [question.image, question.text, question.threshold, *category]
        ask = _asking(answerer)
        for event in (question.button.click, question.text.submit):
            event(ask, inputs, [picture, answers, times], api_visibility="private")
        gr.Examples(
            examples(folder, asks_category),
            [question.image, question.text, *category],
            label="Examples",
        )
    return page


def _heading(answerer: Answerer) -> None:
    gr.Markdown("# Image + “left man” → mask")
    if not answerer.model.trained:
        gr.Markdown(
            "**This bundle has made-up weights: its masks mean nothing.**",
            elem_id="ris-untrained",
        )


def _question(answerer: Answerer) -> _Question:
    """The left column."""
    limits, names = answerer.limits, answerer.model.categories
    image = gr.Image(
        label="Image",
        sources=["upload", "clipboard"],
        type="filepath",
        elem_id="ris-image",
        height=360,
    )
    hand_over_bytes(image)
    text = gr.Textbox(
        label="Expressions, one a line (Shift+Enter asks)",
        lines=3,
        max_lines=8,
        placeholder="left man\nthe red ball on the right",
        elem_id="ris-text",
        max_length=limits.expressions * (limits.characters + 1),
    )
    category = gr.Dropdown(
        ["auto", *names], value="auto", label="Category asked", visible=bool(names)
    )
    threshold = gr.Slider(
        0,
        1,
        0.5,
        step=0.01,
        label="No target above this probability",
        visible=answerer.model.bundle.manifest.no_target,
    )
    button = gr.Button("Segment", variant="primary", elem_id="ris-ask")
    return _Question(image, text, category, threshold, button)


def _results() -> tuple[Any, Any]:
    """The right column: the picture with the masks, and the answers."""
    picture = gr.Image(
        label="Masks",
        interactive=False,
        format="png",
        elem_id="ris-picture",
        buttons=["download", "fullscreen"],
        alt_text="The masks",
    )
    return picture, gr.HTML(elem_id="ris-result")


def _asking(answerer: Answerer) -> Callable[..., tuple[Any, str, str]]:
    """What the page runs for a question: values of the inputs to picture, answers and times."""

    def ask(
        image: bytes | None, text: str, threshold: float, category: str | None = None
    ) -> tuple[Any, str, str]:
        """An error is shown in place of the answers.

        Args:
            image: The bytes of a file, None before there is one.
            text: An expression a line.
            threshold: Above this no-target probability the mask is empty.
            category: For models that ask by category.
        """
        try:
            if image is None:
                raise ImageError("there is no image yet; drop one, or pick an example")
            shown = answer(answerer, image, text or "", category, threshold)
        except RisError as error:
            return None, refusal(error), ""
        return shown.picture, shown.answers, shown.times

    return ask


def serve_page(answerer: Answerer, host: str, port: int, wait: bool = True) -> gr.Blocks:
    """Starts the page's server.

    Args:
        answerer: The model behind its limits.
        host: Where to listen; "0.0.0.0" lets other machines in.
        port: The HTTP port.
        wait: Until the server is stopped. Otherwise the page is returned, for the caller to close.

    Raises:
        OSError: Where the port is taken.
    """
    folder = tempfile.TemporaryDirectory(prefix="ris-page-")
    page = build_page(answerer, Path(folder.name))
    page.examples_folder = folder  # removed with the page
    page.queue(max_size=answerer.limits.waiting, default_concurrency_limit=2, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=True,
        quiet=True,
        prevent_thread_lock=not wait,
        max_file_size=answerer.limits.image_bytes,
        footer_links=[],
        ssr_mode=False,
        css=_STYLE,
        theme=gr.themes.Default(),
        app_kwargs={"middleware": [Middleware(OnlyFromHere)]},
    )
    return page
