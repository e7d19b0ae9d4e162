"""What runs inside tritonserver's Python backend.

Importable only there: Triton brings `triton_python_backend_utils`.

A request is one image (the bytes of a JPEG, PNG, ... file) and any number of expressions. Requests
that Triton hands over together are sorted by image; each image is encoded once, and kept for
requests that come later. Each is answered as soon as it is done, and is timed by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from ris.engines.errors import EngineError, ExpressionError, ImageError, RisError
from ris.engines.text import reason_of
from ris.runtime import Model, Scene, Segmentation, load, open_bundle
from ris.runtime.categories import AUTO
from ris.runtime.cost import expressions_at_once
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.serving.answering import Answerer
from ris.serving.limits import Deadline, LimitError, Limits, status_of
from ris.serving.triton.bls import triton_sessions
from ris.serving.triton.columns import Columns
from ris.serving.watchdog import end_after, let_live

_RUNNING = ("engine", "device", "threads", "compute", "overlap", "low_memory", "throughput")
_CODES = {400: "INVALID_ARG", 413: "INVALID_ARG", 504: "UNAVAILABLE"}  # INTERNAL for any other


@dataclass
class Ask:
    """One request, read and checked."""

    request: Any
    """As Triton hands it over."""

    image: bytes = b""
    """An image file."""

    expressions: list[str] = field(default_factory=list)
    """What is looked for."""

    categories: list[str] | None = None
    """One for each expression; None for models that do not ask by category."""

    threshold: float = 0.5
    """Above this no-target probability the mask is empty."""

    wanted: set[str] = field(default_factory=set)
    """The outputs that are asked for."""

    draws: Draws = ONE_DRAW
    """The random numbers, for models that draw any."""

    form: str | None = None
    """The form that the expressions are asked in; None where the model has none."""

    since: float = field(default_factory=lambda: time.monotonic())
    """When it was handed over, by the monotonic clock."""

    answers: Columns | None = None
    """One for each expression; None before it was asked, and where it was not asked."""

    error: RisError | None = None
    """Why there are no answers."""

    from_cache: bool = False
    """Whether the image had been encoded already."""

    answered: bool = False
    """Whether the response was sent."""


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
        form = settings.get("form")  # a repository may be older than this setting
        self._answerer = Answerer(model, self._limits, settings["cached_images"], form)
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
        """Answers each request as soon as it can be; one that fails costs no other.

        Returns:
            None for each: the responses were sent.
        """
        asks = [Ask(request) for request in requests]
        by_image: dict[bytes, list[Ask]] = {}
        for ask in asks:
            with _costs([ask]):
                self._read(ask)
                by_image.setdefault(hashlib.sha256(ask.image).digest(), []).append(ask)
            if ask.error:
                self._respond(ask)
        for group in by_image.values():
            self._answer(group)

        for ask in asks:
            self._respond(ask)
        self._metrics.count(self._answerer)
        if any(isinstance(ask.error, EngineError) for ask in asks):
            self._check_engine()
        return [None] * len(asks)

    def _check_engine(self) -> None:
        """Ends this process where the engine fails at everything.

        A device that is lost fails at every later request, and only a process that is started anew
        may find it again. `ris-serve start` sees the end of an instance, and ends, too.
        """
        with _ends_if_it_hangs(self._limits):
            is_well = self._answerer.is_well()
        if not is_well:
            pb_utils.Logger.log_error("the engine fails at everything; this instance ends")
            os._exit(1)

    def _read(self, ask: Ask) -> None:
        request = ask.request
        ask.wanted = set(request.requested_output_names()) & self._outputs
        ask.image = _strings(request, "image")[0]
        self._limits.check_file_size(ask.image)
        ask.expressions = _texts(request, "expression")
        self._limits.check_expressions(ask.expressions)
        ask.categories = self._categories(request, ask.expressions)

        threshold = pb_utils.get_input_tensor_by_name(request, "no_target_threshold")
        if threshold is not None:
            ask.threshold = float(threshold.as_numpy().reshape(-1)[0])
        ask.draws = self._draws(request)
        ask.form = self._form(request)

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

    def _form(self, request: Any) -> str | None:
        """The request's form; Triton knows the input where the model has forms."""
        text = self._answerer.model.bundle.manifest.host.text
        if not text.forms or pb_utils.get_input_tensor_by_name(request, "form") is None:
            return self._answerer.form
        [form] = _texts(request, "form")
        text.form_named(form)  # raises for an unknown one
        return form

    def _answer(self, group: list[Ask]) -> None:
        """All requests about one image."""
        ready = []
        for ask in group:
            with _costs([ask]):
                self._check_size(ask)
                ready.append(ask)

        for part in self._parts(ready):
            self._ask(part)
            first = part[0].error
            if len(part) > 1 and first and all(ask.error is first for ask in part):
                for ask in part:  # nobody pays for the others that he was joined with
                    ask.error = None
                    self._ask([ask])
            for ask in part:
                self._respond(ask)
        for ask in group:
            ask.image = b""

    def _check_size(self, ask: Ask) -> None:
        """Raises LimitError for more pixels in all masks than are allowed, before any work."""
        pixels = self._limits.pixels_of(ask.image)
        self._limits.check_answer(pixels, len(ask.expressions), "mask" in ask.wanted)

    def _parts(self, asks: list[Ask]) -> Iterator[list[Ask]]:
        """What is asked together: each request by itself, or joined up to the size of the largest.

        Those that are joined have one threshold, one seed and one form.
        """
        if not self._join:
            yield from ([ask] for ask in asks)
            return
        alike: dict[tuple[float, Draws, str | None], list[Ask]] = {}
        for ask in asks:
            alike.setdefault((ask.threshold, ask.draws, ask.form), []).append(ask)
        for together in alike.values():
            part: list[Ask] = []
            for ask in together:
                count = sum(len(other.expressions) for other in [*part, ask])
                if part and count > self._limits.expressions:
                    yield part
                    part = []
                part.append(ask)
            yield part

    def _ask(self, part: list[Ask]) -> None:
        """Requests about one image that are asked alike (`_parts`), in one pass of the graphs.

        Their time begins here: nothing of what others took counts as theirs.
        """
        part = [ask for ask in part if not ask.request.is_cancelled()]
        if not part:
            return
        with _costs(part), _ends_if_it_hangs(self._limits):
            deadline = self._limits.deadline()
            for ask in part:
                self._check_waiting(ask)
                scene, ask.from_cache = self._answerer.scene(ask.image)
            self._take(scene, part, deadline)

    def _check_waiting(self, ask: Ask) -> None:
        """Raises LimitError where those before it in the batch took too long."""
        if time.monotonic() - ask.since > self._limits.seconds:
            raise LimitError(f"the request waited longer than {self._limits.seconds:g} s", 504)

    def _take(self, scene: Scene, part: list[Ask], deadline: Deadline) -> None:
        """Asks, and gives each request its own answers."""
        expressions = [text for ask in part for text in ask.expressions]
        categories = None
        if part[0].categories is not None:
            categories = [name for ask in part for name in ask.categories or ()]

        first = part[0]
        found = self._answerer.each(
            scene, expressions, categories, first.threshold, deadline, first.draws, first.form
        )
        for ask in part:
            columns = Columns(len(ask.expressions), "mask" in ask.wanted)
            refused = None
            for answer in islice(found, len(ask.expressions)):
                if isinstance(answer, Segmentation):
                    columns.add(answer, ask.wanted)
                else:
                    refused = refused or answer
            ask.answers, ask.error = (None, refused) if refused else (columns, None)

    def _respond(self, ask: Ask) -> None:
        """Sends the response, unless it was sent, and drops what it was made of.

        One that is sent at once does not wait, in memory, for those of the whole batch.
        """
        if ask.answered:
            return
        ask.answered = True
        response = None
        with _costs([ask]):
            response = self._response(ask)
        if response is None:
            response = _failed(ask.error)
        ask.answers, ask.image = None, b""
        try:
            sender = ask.request.get_response_sender()
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:  # nobody to send it to
            pb_utils.Logger.log_error(traceback.format_exc())

    def _response(self, ask: Ask) -> Any:
        if ask.error is not None:
            return _failed(ask.error)
        if ask.answers is None:
            return _failure("the request was cancelled", "CANCELLED")

        tensors = [
            pb_utils.Tensor(name, ask.answers.output(name, ask.from_cache))
            for name in sorted(ask.wanted)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def finalize(self) -> None:
        """Gives the engines' memory back."""
        self._answerer.model.close()


@contextmanager
def _costs(asks: list[Ask]) -> Iterator[None]:
    """What goes wrong in the block is the error of these requests, and of no other."""
    try:
        yield
    except RisError as error:
        for ask in asks:
            ask.error = error
    except Exception as error:  # a fault of ours
        pb_utils.Logger.log_error(traceback.format_exc())
        ours = RisError(f"internal error: {type(error).__name__}: {reason_of(error)}")
        for ask in asks:
            ask.error = ours


@contextmanager
def _ends_if_it_hangs(limits: Limits) -> Iterator[None]:
    """Ends this process where the block does not come back, as where an engine fails at everything.

    It does so where a library holds Python's lock meanwhile, too.
    """
    end_after(limits.hang_seconds)
    try:
        yield
    finally:
        let_live()


def _failed(error: RisError | None) -> Any:
    """The response for an error, with its kind in front."""
    status = status_of(error) if error else 500
    return _failure(f"{status}: {error}", _CODES.get(status, "INTERNAL"))


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
