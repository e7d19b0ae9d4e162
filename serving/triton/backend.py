"""What runs inside tritonserver's Python backend.

Importable only there: Triton brings `triton_python_backend_utils`.

A request is one image (the bytes of a JPEG, PNG, ... file) and any number of expressions. Requests
that Triton hands over together are sorted by image; each image is encoded once, and kept for
requests that come later.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ris.engines.errors import ExpressionError, ImageError, RisError
from ris.runtime import Model, Scene, Segmentation, load, open_bundle
from ris.runtime.categories import AUTO
from ris.runtime.cost import expressions_at_once
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.serving.answering import Answerer
from ris.serving.limits import Deadline, Limits, status_of
from ris.serving.triton.bls import triton_sessions

_RUNNING = ("engine", "device", "threads", "compute", "overlap", "low_memory", "throughput")
_CODES = {400: "INVALID_ARG", 413: "INVALID_ARG", 504: "UNAVAILABLE"}  # INTERNAL for any other


@dataclass
class Ask:
    """One request, read and checked."""

    number: int
    """Its place among the requests handed over together."""

    image: bytes
    """An image file."""

    expressions: list[str]
    """What is looked for."""

    categories: list[str] | None
    """One for each expression; None for models that do not ask by category."""

    threshold: float
    """Above this no-target probability the mask is empty."""

    deadline: Deadline
    """When it has taken too long."""

    draws: Draws = ONE_DRAW
    """The random numbers, for models that draw any."""

    answers: list[Segmentation] | None = None
    """One for each expression; None before it was asked, and where it was not asked."""

    error: RisError | None = None
    """Why there are no answers."""

    from_cache: bool = False
    """Whether the image had been encoded already."""


class TritonPythonModel:
    """The model as Triton's Python backend calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the bundle in the model's own folder with the settings of config.pbtxt."""
        config = json.loads(args["model_config"])
        settings = json.loads(config["parameters"]["ris"]["string_value"])
        if args["model_instance_kind"] == "GPU":
            os.environ["CUDA_VISIBLE_DEVICES"] = args["model_instance_device_id"]

        self._join = bool(settings["join"])
        self._outputs = {output["name"] for output in config["output"]}
        self._limits = Limits(**settings["limits"])
        bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
        model = self._open(bundle, settings)
        self._answerer = Answerer(model, self._limits, settings["cached_images"])
        self._metrics = Metrics(args["model_name"], args["model_instance_name"])

        running = "; ".join(
            f"{stage} {info.engine} {info.where}" for stage, info in model.sessions.items()
        )
        pb_utils.Logger.log_info(f"{args['model_instance_name']}: {running}")

    def _open(self, bundle: Path, settings: dict[str, Any]) -> Model:
        if not settings["graphs"]:
            return load(bundle, **{name: settings[name] for name in _RUNNING})

        around = open_bundle(bundle, graphs=False)  # they are models of their own
        most = expressions_at_once(around.manifest)
        return Model(around, triton_sessions(around, settings["graphs"]), max_expressions=most)

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response to each request, in order; a refused one does not touch the others."""
        asks = [self._read(number, request) for number, request in enumerate(requests)]

        by_image: dict[bytes, list[Ask]] = {}
        for ask in asks:
            if ask.error is None and not requests[ask.number].is_cancelled():
                by_image.setdefault(hashlib.sha256(ask.image).digest(), []).append(ask)
        for group in by_image.values():
            self._answer(group)

        self._metrics.count(self._answerer)
        return [self._respond(ask, request) for ask, request in zip(asks, requests, strict=True)]

    def _read(self, number: int, request: Any) -> Ask:
        ask = Ask(number, b"", [], None, 0.5, self._limits.deadline())
        try:
            ask.image = _strings(request, "image")[0]
            ask.expressions = _texts(request, "expression")
            self._limits.check_expressions(ask.expressions)
            ask.categories = self._categories(request, ask.expressions)

            threshold = pb_utils.get_input_tensor_by_name(request, "no_target_threshold")
            if threshold is not None:
                ask.threshold = float(threshold.as_numpy().reshape(-1)[0])
            ask.draws = self._draws(request)
        except RisError as error:
            ask.error = error
        return ask

    def _categories(self, request: Any, expressions: list[str]) -> list[str] | None:
        """The request's categories; "auto" for each expression where it names none."""
        if pb_utils.get_input_tensor_by_name(request, "category") is None:
            return [AUTO] * len(expressions) if self._answerer.model.categories else None

        categories = _texts(request, "category")
        if len(categories) != len(expressions):
            raise ExpressionError(f"{len(expressions)} expressions need as many categories")
        return categories

    def _draws(self, request: Any) -> Draws:
        """The request's seed; Triton knows the input where the model draws random numbers."""
        drawn = self._answerer.model.bundle.manifest.host.drawn
        seed = pb_utils.get_input_tensor_by_name(request, "seed") if drawn else None
        if seed is None:
            return ONE_DRAW
        draws = Draws(int(seed.as_numpy().reshape(-1)[0]))
        try:
            draws.check(drawn)
        except RisError as error:
            raise ExpressionError(str(error)) from None  # the client's mistake
        return draws

    def _answer(self, group: list[Ask]) -> None:
        """All requests about one image."""
        try:
            for ask in group:
                scene, ask.from_cache = self._answerer.scene(ask.image)
        except RisError as error:
            for ask in group:
                ask.error = error
            return

        if self._join:
            together: dict[tuple[float, Draws], list[Ask]] = {}
            for ask in group:
                together.setdefault((ask.threshold, ask.draws), []).append(ask)
            parts = list(together.values())
        else:
            parts = [[ask] for ask in group]
        for part in parts:
            self._ask(scene, part)

    def _ask(self, scene: Scene, part: list[Ask]) -> None:
        """Requests with one threshold and one seed, in one pass of the graphs."""
        expressions = [text for ask in part for text in ask.expressions]
        categories = None
        if part[0].categories is not None:
            categories = [name for ask in part for name in ask.categories or ()]

        try:
            first = part[0]
            found = self._answerer.ask(
                scene, expressions, categories, first.threshold, first.deadline, first.draws
            )
        except RisError as error:
            for ask in part:
                ask.error = error
            return

        start = 0
        for ask in part:
            own = found[start : start + len(ask.expressions)]
            start += len(ask.expressions)
            refused = [answer for answer in own if isinstance(answer, ExpressionError)]
            ask.error = refused[0] if refused else None
            ask.answers = [answer for answer in own if isinstance(answer, Segmentation)]

    def _respond(self, ask: Ask, request: Any) -> Any:
        if ask.error is not None:
            status = status_of(ask.error)
            return _failure(f"{status}: {ask.error}", _CODES.get(status, "INTERNAL"))
        if ask.answers is None:
            return _failure("the request was cancelled", "CANCELLED")

        wanted = set(request.requested_output_names()) & self._outputs
        tensors = [pb_utils.Tensor(name, _output(name, ask)) for name in sorted(wanted)]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def finalize(self) -> None:
        """Gives the engines' memory back."""
        self._answerer.model.close()


def _failure(message: str, code: str) -> Any:
    error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    return pb_utils.InferenceResponse(error=error)


def _strings(request: Any, name: str) -> list[bytes]:
    """The elements of a BYTES input of one row."""
    values = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    if values.shape[0] != 1:
        raise ExpressionError(
            f"a request is about one image: {name} must be [1, ...], it is {list(values.shape)}"
        )
    if not all(isinstance(value, bytes) for value in values.flat):
        raise ImageError(
            f"{name} did not arrive as it was sent: this Triton's Python backend needs numpy"
            " below 2"
        )
    return [bytes(value) for value in values.flat]


def _texts(request: Any, name: str) -> list[str]:
    """The elements of a BYTES input as texts."""
    try:
        return [value.decode("utf-8") for value in _strings(request, name)]
    except UnicodeDecodeError:
        raise ExpressionError(f"the {name} is not valid UTF-8 text") from None


def _output(name: str, ask: Ask) -> np.ndarray:
    """One output of a request with N expressions.

    Shapes: [1, N]; of rle_size [1, 2], of from_cache [1, 1], of mask [1, N, H, W].
    """
    answers = ask.answers or []
    if name == "mask":
        return np.stack([answer.mask for answer in answers]).astype(np.uint8)[None]
    if name == "rle_size":
        return np.array([answers[0].mask.shape], np.int32)
    if name == "from_cache":
        return np.array([[ask.from_cache]])
    if name == "score":
        return np.array([[answer.score for answer in answers]], np.float32)
    if name == "no_target":
        return np.array([[answer.no_target for answer in answers]], np.float32)
    if name == "is_no_target":
        return np.array([[answer.is_no_target for answer in answers]], np.bool_)

    texts = {
        "rle_counts": lambda answer: answer.rle()["counts"],
        "note": lambda answer: "; ".join(answer.notes),
        "category_asked": lambda answer: answer.category or "",
    }
    return np.array([[texts[name](answer).encode() for answer in answers]], np.object_)


class Metrics:
    """Counters beside Triton's own, at its /metrics.

    They count encoded images found and not found, and say how many are kept.
    """

    def __init__(self, model: str, instance: str) -> None:
        labels = {"model": model, "instance": instance}
        self._before = {"hits": 0, "misses": 0}
        self._families = []  # a family lives as long as its object
        self._counters = {}
        for name, said in (("hits", "found in"), ("misses", "not found in")):
            family = pb_utils.MetricFamily(
                name=f"ris_image_cache_{name}_total",
                description=f"Requests whose image was {said} the cache of encoded images",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            self._families.append(family)
            self._counters[name] = family.Metric(labels=labels)

        family = pb_utils.MetricFamily(
            name="ris_image_cache_images",
            description="Encoded images that are kept",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._families.append(family)
        self._kept = family.Metric(labels=labels)

    def count(self, answerer: Answerer) -> None:
        """Brings the counters up to the cache's."""
        cache = answerer.cache
        for name, now in (("hits", cache.hits), ("misses", cache.misses)):
            if now > self._before[name]:
                self._counters[name].increment(now - self._before[name])
                self._before[name] = now
        self._kept.set(len(cache))
