"""`ris-serve`: a Triton model repository from a bundle, a server over it, and a load test."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from ris.runtime import open_bundle
from ris.runtime.commands.console import RisCommand, RisGroup, disk_errors, find_bundle
from ris.runtime.commands.forms import default_form_option
from ris.runtime.commands.running import Running, running_options
from ris.serving.http.command import http, load_test_http
from ris.serving.limits import Limits
from ris.serving.options import host_option, limit_options
from ris.serving.triton.config import Graphs, ServerOptions
from ris.serving.triton.load_report import table
from ris.serving.triton.repository import write_repository
from ris.serving.triton.server import Address, ServerDiedError, TritonServer


@click.group(cls=RisGroup)
def main() -> None:
    """Serves a bundle over HTTP, or with Triton Inference Server.

    \b
    Examples:
      ris-serve http ris-bundle
      ris-serve triton ris-bundle --out models
      ris-serve start models
      ris-serve load-test ris-bundle --requests 200
    """


main.add_command(http)
main.add_command(load_test_http)


@main.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("models"),
    show_default=True,
    help="The model repository.",
)
@click.option("--force", is_flag=True, help="Replace a repository that is there.")
@click.option(
    "--graphs",
    type=click.Choice(["onnx", "tensorrt"]),
    help="A Triton model for each graph, run by the server's own ONNX Runtime or TensorRT backend, "
    "which the official container has. Default: all in one process, run by --engine.",
)
@click.option(
    "--instances",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes with a model each.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Requests handed over together.",
)
@click.option(
    "--delay",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Milliseconds to wait for more of them.",
)
@click.option(
    "--cached-images",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Encoded images kept a process.",
)
@click.option(
    "--join",
    is_flag=True,
    help="Ask several requests about one image in one pass of the graphs.",
)
@limit_options(Limits(), expressions_help="Of a request.")
@click.option(
    "--max-answer-megapixels",
    type=click.FloatRange(0, min_open=True),
    default=Limits().answer_pixels / 1e6,
    show_default=True,
    help="Width times height times expressions of a request.",
)
@click.option(
    "--max-mask-mb",
    type=click.FloatRange(0, min_open=True),
    default=Limits().mask_bytes / 1e6,
    show_default=True,
    help="Of masks that a request has sent whole, not as run lengths.",
)
@click.option(
    "--max-held-mb",
    type=click.FloatRange(0, min_open=True),
    default=Limits().held_bytes / 1e6,
    show_default=True,
    help="Of all requests that are inside at once.",
)
@default_form_option
@running_options
def triton(
    bundle: str | None,
    out: Path,
    force: bool,
    graphs: Graphs | None,
    instances: int,
    batch: int,
    delay: float,
    cached_images: int,
    join: bool,
    limits: Limits,
    max_answer_megapixels: float,
    max_mask_mb: float,
    max_held_mb: float,
    form: str | None,
    running: Running,
) -> None:
    """Writes a model repository that tritonserver loads as it is.

    \b
    Examples:
      ris-serve triton ris-bundle --out models
      ris-serve triton ris-bundle --out models --engine openvino --instances 2 --threads 1 --force
      ris-serve triton ris-bundle --out models --graphs tensorrt --device cuda
    """
    limits = dataclasses.replace(
        limits,
        answer_pixels=round(max_answer_megapixels * 1e6),
        mask_bytes=round(max_mask_mb * 1e6),
        held_bytes=round(max_held_mb * 1e6),
    )
    options = ServerOptions(
        running,
        instances=instances,
        batch=batch,
        delay_us=round(delay * 1000),
        cached_images=cached_images,
        join=join,
        graphs=graphs,
        limits=limits,
        form=form,
    )
    with disk_errors(out):
        names = write_repository(open_bundle(find_bundle(bundle)), out, options, force=force)

    click.echo(f"wrote {out}: {', '.join(names)}")
    click.echo(
        f"Next:\n  ris-serve start {out}\n  tritonserver --model-repository={out.absolute()}"
    )


@main.command(cls=RisCommand)
@click.argument("repository", type=click.Path(path_type=Path))
@host_option
@click.option("--http-port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--grpc-port", type=click.IntRange(1, 65535), default=8001, show_default=True)
@click.option("--metrics-port", type=click.IntRange(1, 65535), default=8002, show_default=True)
def start(repository: Path, host: str, http_port: int, grpc_port: int, metrics_port: int) -> None:
    """Runs tritonserver over a repository until it is stopped, behind a guard.

    Takes the tritonserver on the PATH, the container's, or nvidia-pytriton's. Clients cannot load
    models, register shared memory, or change logging and tracing. Where the server or an instance
    of a model dies, this ends with exit code 1, so that whatever started it starts it again.

    \b
    Examples:
      ris-serve start models
      ris-serve start models --host 0.0.0.0 --http-port 9000
    """
    address = Address(host, http_port, grpc_port, metrics_port)
    with TritonServer(repository, address) as server:
        name = address.name
        click.echo(
            f"ready: http {name}:{http_port}, grpc {name}:{grpc_port}, "
            f"metrics {name}:{metrics_port}"
        )
        raise ServerDiedError(server.wait())


@main.command("load-test", cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option("--requests", type=click.IntRange(2), default=2000, show_default=True)
@click.option("--clients", type=click.IntRange(1), default=16, show_default=True)
@click.option("--instances", type=click.IntRange(1), default=1, show_default=True)
@click.option("--http", is_flag=True, help="Ask over HTTP. Default: gRPC.")
@click.option(
    "--port",
    type=click.IntRange(1, 65533),
    default=18000,
    show_default=True,
    help="The first of three.",
)
@running_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def load_test(
    bundle: str | None,
    requests: int,
    clients: int,
    instances: int,
    http: bool,
    port: int,
    running: Running,
    as_json: bool,
) -> None:
    """Compares a server with the plain runtime: the same requests in a loop, and from many clients
    at once.

    Half of the requests have an image of their own, half ask about a few images again and again.
    Every mask is compared with the loop's. Ends with an error where one differs or a request fails.

    \b
    Examples:
      ris-serve load-test ris-bundle
      ris-serve load-test ris-bundle --requests 200 --clients 4 --http
    """
    from ris.serving.triton.load_test import LoadOptions, run_load_test

    options = LoadOptions(requests, clients, instances, http, port)
    report = run_load_test(running.find_bundle(bundle), running, options)
    click.echo(json.dumps(dataclasses.asdict(report), indent=1) if as_json else table(report))
    report.check()
