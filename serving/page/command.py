"""`ris-demo-ui`: the server of `ris-serve http`, as it suits one person."""

from __future__ import annotations

import click

from ris.runtime.commands.console import RisCommand
from ris.runtime.commands.forms import default_form_option
from ris.runtime.commands.running import Running, running_options
from ris.serving.http.command import ProcessOptions, serve_bundle
from ris.serving.http.settings import HttpSettings
from ris.serving.limits import Limits
from ris.serving.options import host_option, limit_options


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@host_option
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True)
@limit_options(Limits(expressions=16, waiting=16), expressions_help="Asked at once.")
@default_form_option
@running_options
def main(
    bundle: str | None,
    host: str,
    port: int,
    limits: Limits,
    form: str | None,
    running: Running,
) -> None:
    """Opens a page: drop an image, type expressions, see masks, times and what really runs.

    Works without a network. Nobody but this machine can reach it unless --host says otherwise.

    \b
    Examples:
      ris-demo-ui
      ris-demo-ui ris-bundle --engine openvino --port 8080
    """
    settings = HttpSettings(limits=limits, parallel=1, cached_images=8, form=form)
    quiet = ProcessOptions(log_format="text", log_level="warning")
    serve_bundle(bundle, running, settings, host, port, quiet)
