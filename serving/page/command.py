"""`ris-demo-ui`: the page. A thin layer over `serve_page`."""

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
from ris.serving.options import host_option, limit_options


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@host_option
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@limit_options(Limits(expressions=16, waiting=16), expressions_help="Asked at once.")
@running_options
def main(bundle: str | None, host: str, port: int, limits: Limits, running: Running) -> None:
    """Opens a page: drop an image, type expressions, see masks, times and what really runs.

    Works without a network. Nobody but this machine can reach it unless --host says otherwise.

    \b
    Examples:
      ris-demo-ui
      ris-demo-ui ris-bundle --engine openvino --port 8080
    """
    if importlib.util.find_spec("gradio") is None:
        raise RisError(f"ris-demo-ui needs Gradio: {pip_install('cpu', 'ui')}")

    # before Gradio is imported: it calls home otherwise
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    from ris.serving.page.page import serve_page

    with running.load(find_bundle(bundle)) as model:
        reached_at = "127.0.0.1" if host == "0.0.0.0" else host
        click.echo(f"http://{reached_at}:{port}   (Ctrl-C stops it)")
        try:
            serve_page(Answerer(model, limits, cached_images=8), host, port)
        except OSError as error:
            raise RisError(f"the page cannot be served at {host}:{port}: {error}") from None
