"""`ris-demo-ui`: the page. Thin over `serve_page`."""

from __future__ import annotations

import importlib.util
import os

import click

from ris import pip_install
from ris.engines.errors import RisError
from ris.runtime.commands.console import RisCommand, find_bundle
from ris.runtime.commands.running import Running, running_options
from ris.serving.answering import Answerer
from ris.serving.limits import Limits


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen; 0.0.0.0 lets other machines in.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option(
    "--max-image-mb", type=click.FloatRange(0, min_open=True), default=32.0, show_default=True
)
@click.option(
    "--max-megapixels", type=click.FloatRange(0, min_open=True), default=50.0, show_default=True
)
@click.option(
    "--max-expressions",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Asked at once.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Requests that may wait.",
)
@click.option(
    "--max-seconds", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True
)
@running_options
def main(
    bundle: str | None,
    host: str,
    port: int,
    max_image_mb: float,
    max_megapixels: float,
    max_expressions: int,
    max_queue: int,
    max_seconds: float,
    running: Running,
) -> None:
    """Opens a page: drop an image, type expressions, see masks, times and what really runs.

    Works without a network. Nobody but this machine can reach it unless --host says otherwise.

    \b
    Examples:
      ris-demo-ui
      ris-demo-ui ris-bundle --engine openvino --port 8080
    """
    if importlib.util.find_spec("gradio") is None:
        raise RisError(f"ris-demo-ui needs Gradio: {pip_install('cpu', 'ui')}")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = (
        "False"  # before Gradio is imported: it calls home otherwise
    )
    os.environ["HF_HUB_OFFLINE"] = "1"
    from ris.serving.page.page import serve_page

    limits = Limits(
        image_bytes=round(max_image_mb * 1e6),
        pixels=round(max_megapixels * 1e6),
        expressions=max_expressions,
        waiting=max_queue,
        seconds=max_seconds,
    )
    with running.load(find_bundle(bundle)) as model:
        click.echo(
            f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}   (Ctrl-C stops it)"
        )
        try:
            serve_page(Answerer(model, limits, cached_images=8), host, port)
        except OSError as error:
            raise RisError(f"the page cannot be served at {host}:{port}: {error}") from None
