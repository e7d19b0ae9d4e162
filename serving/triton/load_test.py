"""Many clients against a server, beside the plain runtime in a loop over the same requests."""

from __future__ import annotations

import importlib
import io
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageEnhance

from ris import pip_install
from ris.data.samples import scene_images
from ris.engines.errors import RisError
from ris.runtime import open_bundle
from ris.runtime.commands.console import track
from ris.runtime.commands.running import Running
from ris.serving.answering import Answerer
from ris.serving.limits import Limits
from ris.serving.triton.config import ServerOptions
from ris.serving.triton.load_report import KINDS, Half, LoadReport, half_line
from ris.serving.triton.repository import write_repository
from ris.serving.triton.server import Address, TritonServer, find_server

_SCENES = 40
_SIDES = (256, 480, 800)  # of the images, pixels
_REPEATS = 25  # how often each image of the second half is asked about


@dataclass(frozen=True)
class LoadOptions:
    """How many ask how much, and over which ports."""

    requests: int
    """Requests in both halves together."""

    clients: int
    """Clients that ask at once."""

    instances: int
    """Instances of the model in the server."""

    http: bool
    """Ask over HTTP in place of gRPC."""

    port: int
    """The first of three ports: HTTP, gRPC, metrics."""

    @property
    def address(self) -> Address:
        """Where the server listens."""
        return Address(http=self.port, grpc=self.port + 1, metrics=self.port + 2)


@dataclass(frozen=True)
class LoadRequest:
    """What one request asks."""

    image: bytes
    """An image file."""

    expressions: tuple[str, ...]
    """What is looked for in it."""


Answers = list[tuple[list[int], str]]
"""Size and run-length counts of the mask of each expression of a request."""

Connect = Callable[[], Callable[[LoadRequest], Answers]]
"""Makes a client for the thread that calls it."""


@dataclass(frozen=True)
class Loop:
    """What the plain runtime answered, in a loop over the requests of one half."""

    requests: list[LoadRequest]
    """The requests."""

    answers: list[Answers]
    """One for each request."""

    seconds: float
    """Of all requests together."""


@dataclass(frozen=True)
class ServedHalf:
    """What the server answered to the requests of one half."""

    answers: list[Answers | None]
    """One for each request; None where it failed."""

    seconds: float
    """From the start of all clients to the end of the last one."""

    times: list[float]
    """Seconds of each request that was answered."""

    errors: list[str]
    """What each failed request was told."""


def make_requests(count: int, repeats: int) -> list[LoadRequest]:
    """Requests about drawn scenes in several sizes, in random order.

    Each image is asked about `repeats` times, with one to three of its scene's expressions.
    """
    images = -(-count // repeats)
    drawn = list(scene_images("heldout", 4 * min(_SCENES, images)))
    rng = np.random.default_rng(0)
    requests = []
    for number in range(images):
        scene = drawn[number % len(drawn)]
        side = _SIDES[number % len(_SIDES)]
        brightness = 0.6 + 0.8 * number / images  # gives each image bytes of its own
        data = _jpeg(scene.rgb, side, brightness)

        texts = [truth.expression for truth in scene.truths]
        for _ in range(repeats):
            chosen = rng.permutation(len(texts))[: rng.integers(1, 4)]
            requests.append(LoadRequest(data, tuple(texts[i] for i in chosen)))

    order = rng.permutation(len(requests))
    return [requests[i] for i in order][:count]


def _jpeg(rgb: np.ndarray, side: int, brightness: float) -> bytes:
    picture = Image.fromarray(rgb).resize((side, side * 3 // 4))
    picture = ImageEnhance.Brightness(picture).enhance(brightness)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def run_load_test(bundle: Path, running: Running, options: LoadOptions) -> LoadReport:
    """Runs the loop, starts a server that runs the bundle alike, and lets the clients at it.

    Raises RisError where something that the server needs is missing, which is seen before the loop,
    and where the loop fails or the server does not start. What goes wrong with single requests is
    in the report.
    """
    require_triton(options)
    limits = patient_limits(options.clients)
    loops, category = loops_over(bundle, running, options.requests, limits)
    return ask_triton(bundle, running, options, loops, category)


def require_triton(options: LoadOptions) -> None:
    """Raises RisError where there is no tritonserver or client, or a port is taken."""
    find_server()
    _client_module(options.http)
    address = options.address
    with ExitStack() as held:
        for port in (address.http, address.grpc, address.metrics):
            try:
                held.enter_context(socket.create_server((address.host, port)))
            except OSError as error:
                raise RisError(
                    f"nothing can listen at {address.host}, port {port}: {error}; choose another"
                    " --port, the first of three that are free"
                ) from None


def _client_module(http: bool) -> Any:
    """Triton's client over HTTP or gRPC. Raises RisError where it is not installed."""
    name = f"tritonclient.{'http' if http else 'grpc'}"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RisError(
            f"the load test needs {name} ({error}): {pip_install('cpu', 'triton')}"
        ) from None


def patient_limits(clients: int) -> Limits:
    """Limits that refuse none of so many clients."""
    return Limits(waiting=max(64, clients), seconds=600)


def loops_over(
    bundle: Path, running: Running, count: int, limits: Limits
) -> tuple[list[Loop], str | None]:
    """So many requests, an image each and then repeated images, answered by the plain runtime.

    What each half took is said at once on standard error: what comes after it may fail.

    Args:
        bundle: The bundle.
        running: What runs it.
        count: Requests in both halves together.
        limits: What is accepted.

    Returns:
        Both halves, and the category that is asked, for models that ask by category.
    """
    halves = [make_requests(count - count // 2, 1), make_requests(count // 2, _REPEATS)]
    with running.load(bundle) as model:
        # which category is asked does not matter here
        category = model.categories[0] if model.categories else None
        answerer = Answerer(model, limits, cached_images=0)
        loops = []
        for kind, requests in zip(KINDS, halves, strict=True):
            loops.append(plain_loop(answerer, requests, category))
            per_second = len(requests) / loops[-1].seconds
            click.echo(f"Plain runtime, {kind}: {per_second:.1f} requests/s", err=True)
        return loops, category


def ask_triton(
    bundle: Path, running: Running, options: LoadOptions, loops: list[Loop], category: str | None
) -> LoadReport:
    """Starts tritonserver, and lets the clients ask what the loops asked.

    Args:
        bundle: The bundle.
        running: What runs it.
        options: How many ask, and where.
        loops: The requests of both halves, with the plain runtime's answers.
        category: Asked with every expression, for models that ask by category.
    """
    limits = patient_limits(options.clients)
    server_options = ServerOptions(
        running, instances=options.instances, cached_images=64, limits=limits
    )
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        write_repository(open_bundle(bundle), repository, server_options)
        log = (Path(folder) / "log").open("w")
        with log, TritonServer(repository, options.address, log) as server:
            connect = triton_clients(options.http, options.address, category)
            return ask_halves(loops, options.clients, connect, lambda: _hits(server), "Triton")


def ask_halves(
    loops: list[Loop],
    clients: int,
    connect: Connect,
    hits: Callable[[], float],
    server: str,
) -> LoadReport:
    """Lets the clients ask what the loops asked, one half after the other.

    The figures of each half are said at once on standard error: the other half may fail.

    Args:
        loops: The requests of both halves, with the plain runtime's answers.
        clients: How many ask at once.
        connect: Makes a client, in its thread.
        hits: How many images the server has found in its cache so far.
        server: The server's name, for the progress.
    """
    found: list[Half] = []
    first_error = None
    for kind, loop in zip(KINDS, loops, strict=True):
        before = hits()
        served = ask_from(loop.requests, clients, connect, server)
        found.append(_half_of(loop, served, round(hits() - before)))
        click.echo(f"{server}, {kind}: {half_line(found[-1])}", err=True)
        first_error = first_error or next(iter(served.errors), None)
    return LoadReport(clients, found[0], found[1], first_error)


def _half_of(loop: Loop, served: ServedHalf, cache_hits: int) -> Half:
    """The figures of a server's answers beside the loop's."""
    pairs = zip(served.answers, loop.answers, strict=True)
    # what failed has no answer, and is counted as failed alone
    different = sum(answer is not None and answer != expected for answer, expected in pairs)
    p50, p99 = np.percentile(served.times, [50, 99]) * 1000 if served.times else (0.0, 0.0)
    count = len(loop.requests)
    return Half(
        requests=count,
        images=len({request.image for request in loop.requests}),
        loop_per_second=count / loop.seconds,
        server_per_second=count / served.seconds,
        server_p50_ms=float(p50),
        server_p99_ms=float(p99),
        errors=len(served.errors),
        different_masks=different,
        cache_hits=cache_hits,
    )


def _hits(server: TritonServer) -> float:
    return sum(
        value
        for name, value in server.metrics().items()
        if name.startswith("ris_image_cache_hits_total")
    )


def plain_loop(answerer: Answerer, requests: list[LoadRequest], category: str | None) -> Loop:
    """Each request by itself, nothing kept."""
    expected = []
    start = time.perf_counter()
    for request in track(requests, len(requests), "Plain runtime"):
        scene, _ = answerer.scene(request.image)
        categories = [category] * len(request.expressions) if category else None
        answers: Answers = []
        for answer in answerer.ask(scene, request.expressions, categories):
            if isinstance(answer, RisError):
                raise answer
            rle = answer.rle()
            answers.append((rle["size"], rle["counts"]))
        expected.append(answers)
    return Loop(requests, expected, time.perf_counter() - start)


def triton_clients(http: bool, address: Address, category: str | None) -> Connect:
    """Clients of the server at this address. Raises RisError where the client is missing."""
    client_module = _client_module(http)

    def connect() -> Callable[[LoadRequest], Answers]:
        url = f"{address.reach}:{address.http if http else address.grpc}"
        patience: dict[str, Any] = {"network_timeout": 600.0, "connection_timeout": 60.0}
        client = client_module.InferenceServerClient(url, **(patience if http else {}))
        outputs = [client_module.InferRequestedOutput(name) for name in ("rle_counts", "rle_size")]

        def ask(request: LoadRequest) -> Answers:
            inputs = []
            for name, values in _inputs(request, category).items():
                inputs.append(client_module.InferInput(name, [1, len(values)], "BYTES"))
                inputs[-1].set_data_from_numpy(np.array([values], np.object_))
            response = client.infer("ris", inputs, outputs=outputs)

            size = [int(side) for side in response.as_numpy("rle_size")[0]]
            return [(size, counts.decode()) for counts in response.as_numpy("rle_counts")[0]]

        return ask

    return connect


def _inputs(request: LoadRequest, category: str | None) -> dict[str, list[bytes]]:
    values = {
        "image": [request.image],
        "expression": [text.encode() for text in request.expressions],
    }
    if category:
        values["category"] = [category.encode()] * len(request.expressions)
    return values


def ask_from(
    requests: Sequence[LoadRequest], clients: int, connect: Connect, server: str
) -> ServedHalf:
    """So many clients, each of which takes the next request as soon as it has an answer.

    Args:
        requests: What is asked.
        clients: How many ask at once.
        connect: Makes a client, in its thread.
        server: The server's name, for the progress.
    """
    answers: list[Answers | None] = [None] * len(requests)
    times: list[float] = []
    errors: list[str] = []
    numbers = track(range(len(requests)), len(requests), server)
    lock = threading.Lock()

    def work() -> None:
        ask = connect()
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return

            began = time.perf_counter()
            try:
                answers[number] = ask(requests[number])
            except Exception as error:  # whatever a client raises is a failed request
                with lock:
                    errors.append(str(error))
            else:
                with lock:
                    times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers.close()  # clients that cannot connect leave some
    return ServedHalf(answers, time.perf_counter() - start, times, errors)
