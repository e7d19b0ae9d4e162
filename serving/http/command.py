"""`ris-serve http`: a thin layer over `serve`."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from ris import pip_install
from ris.engines.errors import RisError
from ris.runtime import open_bundle
from ris.runtime.commands.console import RisCommand, print_json
from ris.runtime.commands.forms import default_form_option
from ris.runtime.commands.options import Command, add_options
from ris.runtime.commands.running import Running, running_options
from ris.runtime.hub.address import is_address
from ris.serving.http.labelling.pictures import KEY_VARIABLE, PictureSource
from ris.serving.http.settings import HttpSettings
from ris.serving.limits import Limits
from ris.serving.options import host_option, limit_options
from ris.serving.triton.load_report import LoadReport, table

TOKEN = "RIS_HTTP_TOKEN"
"""The variable that may hold the server's token."""

_NEEDS = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "fastapi_offline")

_HTTP_OPTIONS = (
    click.option(
        "--parallel",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Questions that a worker's model is asked at once, each with all of its threads.",
    ),
    click.option(
        "--cached-images",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        help="Encoded images kept a worker.",
    ),
    click.option(
        "--picture-mb",
        type=click.FloatRange(0, min_open=True),
        help="Memory of the pictures and masks of the questions at work, a worker. "
        "Default: what --parallel of the largest questions take.",
    ),
    click.option(
        "--body-mb",
        type=click.FloatRange(0, min_open=True),
        default=400.0,
        show_default=True,
        help="Memory of the requests that wait, and of answers that are not fetched yet, a worker.",
    ),
    click.option(
        "--answer-mb",
        type=click.FloatRange(0, min_open=True),
        default=32.0,
        show_default=True,
        help="The longest answer.",
    ),
    click.option(
        "--per-client",
        type=click.IntRange(1),
        help="Requests that one address may have waiting. Default: no limit.",
    ),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"A file with the token that clients must send. Default: ${TOKEN}, then none.",
    ),
    click.option(
        "--label-studio-url",
        envvar="LABEL_STUDIO_URL",
        metavar="URL",
        help="Label Studio, whose tasks' pictures are fetched from there with the key in "
        f"${KEY_VARIABLE}.",
    ),
    click.option(
        "--picture-host",
        "picture_hosts",
        metavar="HOST[:PORT]",
        multiple=True,
        help="Another host that pictures of tasks may be fetched from; several times for several.",
    ),
    default_form_option,
)


@dataclass(frozen=True)
class ProcessOptions:
    """How many processes serve, how they end, and what they write."""

    workers: int = 1
    """Processes."""

    drain_seconds: float = 30.0
    """Seconds that what was begun has to end, when the server is stopped."""

    log_format: str = "json"
    """One of `logs.FORMATS`."""

    log_level: str = "info"
    """The least level that is written."""


def http_options(command: Command) -> Command:
    """Adds what only this server has; the command gets it as one argument, `settings`."""
    return add_options(command, _HTTP_OPTIONS, "settings", _take)


def _take(given: dict[str, Any]) -> HttpSettings:
    picture_mb = given.pop("picture_mb")
    return HttpSettings(
        parallel=given.pop("parallel"),
        cached_images=given.pop("cached_images"),
        picture_bytes=None if picture_mb is None else round(picture_mb * 1e6),
        body_bytes=round(given.pop("body_mb") * 1e6),
        answer_bytes=round(given.pop("answer_mb") * 1e6),
        per_client=given.pop("per_client"),
        token=read_token(given.pop("token_file")),
        pictures=PictureSource(
            given.pop("label_studio_url"),
            os.environ.get(KEY_VARIABLE, "").strip() or None,
            frozenset(host.lower() for host in given.pop("picture_hosts")),
        ),
        form=given.pop("form"),
    )


def require_http() -> None:
    """Raises RisError where a package of the server is missing."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise RisError(f"this needs {missing[0]}: {pip_install('cpu', 'http')}")


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@host_option
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes with a model each. From two on, one that dies is started anew.",
)
@http_options
@limit_options(Limits(), expressions_help="Of a request.")
@click.option(
    "--drain-seconds",
    type=click.FloatRange(1),
    default=30.0,
    show_default=True,
    help="How long SIGTERM lets requests end that have begun.",
)
@click.option(
    "--log-format", type=click.Choice(("json", "text")), default="json", show_default=True
)
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    show_default=True,
)
@running_options
def http(
    bundle: str | None,
    host: str,
    port: int,
    workers: int,
    settings: HttpSettings,
    limits: Limits,
    drain_seconds: float,
    log_format: str,
    log_level: str,
    running: Running,
) -> None:
    """Serves a bundle over HTTP, with a page to try it at / and the API's pages at /docs.

    SIGHUP opens the bundle anew without losing a request. SIGTERM ends the server when what was
    begun is answered.

    \b
    Examples:
      ris-serve http ris-bundle
      ris-serve http ris-bundle --host 0.0.0.0 --port 8080 --token-file token --workers 2
    """
    process = ProcessOptions(workers, drain_seconds, log_format, log_level)
    serve_bundle(bundle, running, replace(settings, limits=limits), host, port, process)


def serve_bundle(
    bundle: str | None,
    running: Running,
    settings: HttpSettings,
    host: str,
    port: int,
    process: ProcessOptions,
) -> None:
    """Opens the bundle, says where it is served, and serves it until the server is stopped.

    Args:
        bundle: As on the command line.
        running: What runs it.
        settings: What requests may do.
        host: Where to listen.
        port: The port; 0 for any that is free.
        process: Workers and logs.

    Raises:
        RisError: Where a package is missing, or the bundle or the port cannot be used.
        ExpressionError: Where the model has no form of that name.
    """
    require_http()
    from ris.serving.http.server import Serving, listen, serve

    listen(host, port).close()  # a port that is taken shows before a download, or hashing
    place = bundle or os.environ.get("RIS_BUNDLE")
    found = running.find_bundle(bundle)
    # a mistake shows here, before workers start
    open_bundle(found, verify=False).manifest.host.text.form_named(settings.form)
    again = place if place and is_address(place) else str(found.absolute())
    serving = Serving(again, running, settings, host, port, **vars(process))

    listening = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    reached = "127.0.0.1" if host == "0.0.0.0" else shown
    click.echo(f"http://{reached}:{listening.getsockname()[1]}   (Ctrl-C stops it)", err=True)
    if settings.token is None and host not in ("127.0.0.1", "::1", "localhost"):
        click.echo("Note: other machines reach this server, and no token is asked", err=True)
    serve(serving, listening)


def read_token(file: Path | None) -> str | None:
    """The server's token, of a file or of the environment; None where there is none.

    Raises RisError for one that no client could send.
    """
    if file is not None:
        try:
            token = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RisError(f"{file}: the token cannot be read: {error}") from None
        where = str(file)
    elif TOKEN in os.environ:
        token, where = os.environ[TOKEN].strip(), f"${TOKEN}"
    else:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise RisError(f"{where}: a token is a line of ASCII characters without spaces")
    return token


@click.command("load-test-http", cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option("--requests", type=click.IntRange(2), default=2000, show_default=True)
@click.option("--clients", type=click.IntRange(1), default=16, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--parallel", type=click.IntRange(1), default=1, show_default=True)
@click.option("--triton", is_flag=True, help="Ask Triton as well, over HTTP.")
@click.option(
    "--port",
    type=click.IntRange(1, 65533),
    default=18000,
    show_default=True,
    help="The first of Triton's three.",
)
@running_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def load_test_http(
    bundle: str | None,
    requests: int,
    clients: int,
    workers: int,
    parallel: int,
    triton: bool,
    port: int,
    running: Running,
    as_json: bool,
) -> None:
    """Compares `ris-serve http` with the plain runtime, and with Triton, in one run.

    The requests, and what is compared, are those of `ris-serve load-test`.

    \b
    Examples:
      ris-serve load-test-http ris-bundle
      ris-serve load-test-http ris-bundle --triton --requests 400
    """
    require_http()
    from ris.serving.http.load_test import HttpLoadOptions, run_http_load_test

    options = HttpLoadOptions(requests, clients, workers, parallel, triton, port)
    reports: dict[str, LoadReport] = {}
    try:
        for name, report in run_http_load_test(running.find_bundle(bundle), running, options):
            reports[name] = report
            if not as_json:
                click.echo(f"{name}: {table(report)}")
    finally:  # what is done is not lost where the next server fails
        if as_json and reports:
            print_json({name: asdict(report) for name, report in reports.items()}, indent=1)
    for report in reports.values():
        report.check()
