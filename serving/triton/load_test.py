"""Many clients against a server, beside the plain runtime in a loop over the same requests."""

from __future__ import annotations

import io
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from ris.data.samples import scene_images
from ris.engines.errors import RisError
from ris.runtime import open_bundle
from ris.runtime.commands.console import track
from ris.runtime.commands.running import Running
from ris.serving.answering import Answerer
from ris.serving.limits import Limits
from ris.serving.triton.repository import ServerOptions, write_repository
from ris.serving.triton.server import Address, TritonServer

_SCENES = 40
_SIDES = (256, 480, 800)  # of the images, pixels
_REPEATS = 25  # how often each image of the second half is asked about


@dataclass(frozen=True)
class LoadRequest:
    """An image file's bytes and what is asked of it."""

    image: bytes
    expressions: tuple[str, ...]


@dataclass(frozen=True)
class Half:
    """Requests of one kind. per_second: requests; milliseconds: from a client's sending to its
    answer.
    """

    requests: int
    images: int
    loop_per_second: float
    server_per_second: float
    server_p50_ms: float
    server_p99_ms: float
    errors: int
    different_masks: int
    cache_hits: int

    @property
    def lost(self) -> float:
        """The share of the loop's throughput that the server loses; negative where it gains."""
        return 1 - self.server_per_second / self.loop_per_second


@dataclass(frozen=True)
class LoadReport:
    """clients that asked at once, and the two halves of their requests."""

    clients: int
    distinct: Half
    repeated: Half
    first_error: str | None

    def check(self) -> None:
        """Raises RisError where a request failed or a mask is not the loop's."""
        errors = self.distinct.errors + self.repeated.errors
        different = self.distinct.different_masks + self.repeated.different_masks
        if errors or different:
            first = f" ({self.first_error})" if self.first_error else ""
            raise RisError(
                f"{errors} requests failed{first}, {different} answers differ from the plain"
                " runtime's"
            )


def make_requests(count: int, repeats: int) -> list[LoadRequest]:
    """Drawn scenes in several sizes with one to three of their expressions; each image is asked
    `repeats` times.
    """
    images = -(-count // repeats)
    drawn = list(scene_images("heldout", 4 * min(_SCENES, images)))
    rng = np.random.default_rng(0)
    requests = []
    for number in range(images):
        scene = drawn[number % len(drawn)]
        side = _SIDES[number % len(_SIDES)]
        picture = Image.fromarray(scene.rgb).resize((side, side * 3 // 4))
        picture = ImageEnhance.Brightness(picture).enhance(
            0.6 + 0.8 * number / images
        )  # bytes of its own
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        for _ in range(repeats):
            texts = [truth.expression for truth in scene.truths]
            chosen = rng.permutation(len(texts))[: rng.integers(1, 4)]
            requests.append(LoadRequest(buffer.getvalue(), tuple(texts[i] for i in chosen)))
    order = rng.permutation(len(requests))
    return [requests[i] for i in order][:count]


def run_load_test(
    bundle: Path, running: Running, count: int, clients: int, instances: int, http: bool, port: int
) -> LoadReport:
    """Runs the loop, starts a server with the same options, and lets the clients at it. Raises
    RisError.
    """
    halves = [make_requests(count - count // 2, 1), make_requests(count // 2, _REPEATS)]
    limits = Limits(waiting=max(64, clients), seconds=600)
    loops = []
    with running.load(bundle) as model:
        category = (
            model.categories[0] if model.categories else None
        )  # which one does not matter here
        for requests in halves:
            loops.append(_loop(Answerer(model, limits, cached_images=0), requests, category))
    device = "cpu" if running.device == "auto" else running.device
    options = ServerOptions(
        instances, **{**vars(running), "device": device}, cached_images=64, limits=limits
    )
    address = Address(http=port, grpc=port + 1, metrics=port + 2)
    found: list[Half] = []
    first_error = None
    with tempfile.TemporaryDirectory() as folder:
        write_repository(open_bundle(bundle), Path(folder) / "models", options)
        log = (Path(folder) / "log").open("w")
        with log, TritonServer(Path(folder) / "models", address, log) as server:
            for requests, (expected, loop_seconds) in zip(halves, loops, strict=True):
                before = _hits(server)
                answers, seconds, times, errors = _clients(
                    requests, clients, _asker(http, address, category)
                )
                different = sum(
                    a is not None and a != e for a, e in zip(answers, expected, strict=True)
                )  # what failed is counted as failed
                first_error = first_error or next(iter(errors), None)
                p50, p99 = np.percentile(times, [50, 99]) * 1000 if times else (0.0, 0.0)
                images = len({request.image for request in requests})
                found.append(
                    Half(
                        len(requests),
                        images,
                        len(requests) / loop_seconds,
                        len(requests) / seconds,
                        float(p50),
                        float(p99),
                        len(errors),
                        different,
                        round(_hits(server) - before),
                    )
                )
    return LoadReport(clients, found[0], found[1], first_error)


def _hits(server: TritonServer) -> float:
    return sum(
        value
        for name, value in server.metrics().items()
        if name.startswith("ris_image_cache_hits_total")
    )


Answers = list[tuple[list[int], str]]


def _loop(
    answerer: Answerer, requests: Sequence[LoadRequest], category: str | None
) -> tuple[list[Answers], float]:
    """Each request by itself, nothing kept. Returns size and counts of each mask, and the
    seconds.
    """
    expected = []
    start = time.perf_counter()
    for request in track(requests, len(requests), "Plain runtime"):
        scene, _ = answerer.scene(request.image)
        categories = [category] * len(request.expressions) if category else None
        found = answerer.ask(scene, request.expressions, categories)
        answers: Answers = []
        for answer in found:
            if isinstance(answer, RisError):
                raise answer
            rle = answer.rle()
            answers.append((rle["size"], rle["counts"]))
        expected.append(answers)
    return expected, time.perf_counter() - start


def _asker(
    http: bool, address: Address, category: str | None
) -> Callable[[], Callable[[LoadRequest], Answers]]:
    """Makes a client for a thread of its own."""
    if http:
        import tritonclient.http as client_module
    else:
        import tritonclient.grpc as client_module

    def connect() -> Callable[[LoadRequest], Answers]:
        url = f"{address.reach}:{address.http if http else address.grpc}"
        more: dict[str, Any] = (
            {"network_timeout": 600.0, "connection_timeout": 60.0} if http else {}
        )
        client = client_module.InferenceServerClient(url, **more)
        outputs = [client_module.InferRequestedOutput(name) for name in ("rle_counts", "rle_size")]

        def ask(request: LoadRequest) -> Answers:
            values = {
                "image": [request.image],
                "expression": [text.encode() for text in request.expressions],
            }
            if category:
                values["category"] = [category.encode()] * len(request.expressions)
            inputs = [
                client_module.InferInput(name, [1, len(each)], "BYTES")
                for name, each in values.items()
            ]
            for tensor, each in zip(inputs, values.values(), strict=True):
                tensor.set_data_from_numpy(np.array([each], np.object_))
            response = client.infer("ris", inputs, outputs=outputs)
            size = [int(side) for side in response.as_numpy("rle_size")[0]]
            return [(size, counts.decode()) for counts in response.as_numpy("rle_counts")[0]]

        return ask

    return connect


def _clients(
    requests: Sequence[LoadRequest],
    clients: int,
    connect: Callable[[], Callable[[LoadRequest], Answers]],
) -> tuple[list[Answers | None], float, list[float], list[str]]:
    """Answers in order (None where one failed), the seconds in all, the seconds of each, and what
    went wrong.
    """
    answers: list[Answers | None] = [None] * len(requests)
    times: list[float] = []
    errors: list[str] = []
    numbers = iter(range(len(requests)))
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
    return answers, time.perf_counter() - start, times, errors


def table(report: LoadReport) -> str:
    """The report for people."""
    lines = [f"{report.clients} clients"]
    for name, half in (("an image each", report.distinct), ("repeated images", report.repeated)):
        change = (
            f"{half.lost:.1%} lost" if half.lost >= 0 else f"{1 - half.lost:.2f} times the loop"
        )
        lines.append(
            f"{name}: {half.requests} requests, {half.images} images: plain loop"
            f" {half.loop_per_second:.1f} requests/s, server {half.server_per_second:.1f}"
            f" ({change}); p50 {half.server_p50_ms:.0f} ms, p99 {half.server_p99_ms:.0f} ms;"
            f" {half.cache_hits} found in the cache; {half.errors} errors, {half.different_masks}"
            " different"
        )
    return "\n".join(lines)
