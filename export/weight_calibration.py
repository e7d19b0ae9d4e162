"""`ris-calibrate weights`: levels for a model's matrices, of the inputs that their layers have.

The reference runs over samples, in FP32. Each layer's inputs X are summed up as X'X, which is as
large as the layer is wide. Where all of these are too many for the memory that is allowed, the
samples are run again for the next layers. The file is written matrix by matrix, and a run that was
stopped goes on behind the last: what the file has of a matrix is of one run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from ris.calibration.samples import CalibrationSample, SampleSet
from ris.calibration.weights.data import Part, journal_of, write_data
from ris.calibration.weights.gptq import output_error, round_for_inputs
from ris.calibration.weights.groups import Rounded, WeightFormat, group_of, round_in_groups
from ris.engines.errors import RisError
from ris.engines.processor import core_limit
from ris.engines.text import quoted
from ris.export.alone import alone, kept_folder
from ris.export.families import DESIGNS
from ris.export.families.design import StageDesign
from ris.export.held import held_back
from ris.export.places import layer_places
from ris.export.reference_pass import text_values
from ris.export.request import Request
from ris.export.rounded_file import (
    About,
    Errors,
    Form,
    Record,
    RoundedFile,
    digest_of,
    forms_of,
    header,
    length_of,
)
from ris.export.sources import ModelSource
from ris.export.weights import formats_of
from ris.reference.families import FAMILIES
from ris.runtime.bundle_folder import behind_links

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Running:
    """How a calibration runs, and what is told of it."""

    memory: int = 4 << 30
    """The bytes that the sums over inputs may have at once; those of one layer in any case."""

    track: Callable[[Iterable[int], int, str], Iterable[int]] = lambda items, total, title: items
    """Shows the progress of a pass over the samples; takes what `track` of the commands takes."""

    say: Callable[[str], None] = lambda line: None
    """Called with a line for each matrix."""


@dataclass(frozen=True)
class _Target:
    """A matrix to round."""

    name: str
    """Its name in the model, or in a stage's module where that computed it."""

    layer: nn.Linear
    """The layer that multiplies with it."""

    format: WeightFormat
    """What to store it in."""

    group: int
    """How many rows share a scale."""

    stage: str | None
    """The stage whose module has to run for its inputs; None where the reference runs it."""

    @property
    def width(self) -> int:
        """The length K of its sums."""
        return self.layer.in_features

    @property
    def tensors(self) -> tuple[Form, ...]:
        """What the file has of it."""
        return forms_of(self.name, self.layer.in_features, self.layer.out_features, self.group)


def calibrate_weights(
    source: ModelSource,
    samples: SampleSet,
    out: Path,
    asked: Mapping[str, WeightFormat],
    *,
    vocabulary: Path | None = None,
    running: Running = Running(),
) -> RoundedFile:
    """Writes levels for the matrices of a model to the file `out`, which it replaces.

    Args:
        source: The model.
        samples: What its layers' inputs are taken from.
        out: The file.
        asked: What to store matrices in, as of `parse_formats`.
        vocabulary: The model's vocabulary; None for that of the source.
        running: The memory it may take, and what is told of it.

    Raises:
        CheckpointError: As `ModelSource.make` does, and for a vocabulary that does not fit.
        RisError: Where no graph, or no matrix of a graph, is there to be rounded, a layer's inputs
            are not finite, or another run writes the file.
    """
    stages = DESIGNS[source.family].stages(source.config)
    formats = formats_of(stages, asked)
    target = behind_links(out)
    with alone(out):  # before the weight files are hashed
        about = About(
            source.family, source.config, source.describe(), formats, inputs=samples.fingerprint
        )
        kept = kept_folder(out) / "weights.safetensors"
        model = _Model(source, about, vocabulary or source.vocabulary)
        targets = model.targets([stage for stage in stages if stage.name in formats])
        parts, recipe = _Work(model, targets, samples, running).parts(about)
        write_data(kept, parts, recipe=recipe)
        kept.replace(target)
        journal_of(kept).unlink()
    return RoundedFile(out)


def calibrate_request(
    asked: Mapping[str, Any],
    samples: Callable[[], SampleSet],
    out: Path,
    running: Mapping[str, Any],
) -> dict[str, tuple[float, float]]:
    """The same as a command line asks for it.

    Args:
        asked: By the fields of `Request`.
        samples: Makes those of `calibrate_weights`. Called when the options are found to fit
            together, and before anything is downloaded.
        out: As of `calibrate_weights`.
        running: By the fields of `Running`, and the number of CPU `threads`; None for all.

    Returns:
        The errors of each matrix, as `Errors` has them.

    Raises:
        RisError: Also for options that contradict each other.
    """
    from ris.export.command import PRESET_NAMES, with_files

    how = dict(running)
    threads = how.pop("threads", None) or core_limit()
    request = Request(out=out, precision="fp32", fp32=(), **asked)
    if request.preset not in (None, *PRESET_NAMES):
        raise RisError(
            f"there is no preset {quoted(str(request.preset))}; there are {', '.join(PRESET_NAMES)}"
        )
    request.check()
    made = samples()
    request = with_files(request)
    source = request.find()
    with on_threads(threads):
        found = calibrate_weights(
            source,
            made,
            out,
            request.weights,
            vocabulary=request.vocabulary,
            running=Running(**how),
        )
    return {name: (one.nearest, one.chosen) for name, one in found.errors().items()}


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """PyTorch and numpy's matrix products use at most so many threads; None: as they are set."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


class _Model:
    """A reference model that answers samples, while its layers' inputs are looked at."""

    def __init__(self, source: ModelSource, about: About, vocabulary: Path | None) -> None:
        self._family, design = FAMILIES[source.family], DESIGNS[source.family]
        self._config = source.config
        self._host = design.host(source.config)
        self._formats = about.formats
        self._tokenizer = self._family.tokenizer_of(vocabulary, source.config, about.source.trained)
        self._model = source.make()
        self._held = held_back(self._model)
        self._modules: dict[str, tuple[StageDesign, nn.Module]] = {}

    def targets(self, stages: Sequence[StageDesign]) -> list[_Target]:
        """The matrices of some stages, each once.

        A stage's module has layers of the model, which the reference runs, or layers of its own,
        with matrices that were computed of the model's. Such a module is run itself.
        """
        modules = {stage.name: self._build(stage) for stage in stages}
        own_layers = {id(layer) for layer in self._model.modules()}
        found: dict[int, _Target] = {}
        for stage in stages:
            layers = _layers(modules[stage.name])
            if not layers:
                raise RisError(
                    f"{stage.name} has no layer whose sums are over a multiple of 64 weights, so"
                    " there is nothing to round; leave it out of --weight-format"
                )
            itself = any(id(layer) not in own_layers for layer, _ in layers.values())
            names = layer_places(self._model, stage.name, modules[stage.name])
            if itself:
                self._modules[stage.name] = stage, modules[stage.name]
            for own, (layer, group) in layers.items():
                name = names[own]
                format, runs = self._formats[stage.name], stage.name if itself else None
                one = found.setdefault(id(layer), _Target(name, layer, format, group, runs))
                if one.format != format:
                    raise RisError(
                        f"{stage.name} shares {name} with another graph that stores it in"
                        f" {one.format}; give both the same --weight-format"
                    )
        return list(found.values())

    @property
    def computes(self) -> str:
        """What its layers' inputs depend on beside weights and samples."""
        return json.dumps([self._config.to_dict(), self._tokenizer.to_str()])

    def _build(self, stage: StageDesign) -> nn.Module:
        def make() -> nn.Module:
            return stage.build(self._model, "native")

        return make() if self._held is None else self._held.build(make)

    def matrix(self, layer: nn.Linear) -> Floats:
        """A layer's matrix [K, N]."""
        held = None if self._held is None else self._held.read(layer)
        if held is not None:
            return held
        return np.ascontiguousarray(layer.weight.detach().numpy().T)

    @torch.no_grad()
    def add_inputs(self, sample: CalibrationSample, grams: Mapping[_Target, Floats]) -> None:
        """Runs a sample, and adds X'X of the layers' inputs."""
        with _watching({one: gram for one, gram in grams.items() if one.stage is None}):
            values = self._run(sample)
        for name in sorted({one.stage for one in grams if one.stage is not None}):
            stage, module = self._modules[name]
            with _watching({one: gram for one, gram in grams.items() if one.stage == name}):
                module(*(_as_taken(values[spec.value]) for spec in stage.module_inputs))

    def _run(self, sample: CalibrationSample) -> dict[str, Tensor]:
        """Every value of a sample: those of its picture, of one row, and of its expressions."""
        family, model, count = self._family, self._model, len(sample.expressions)
        images = family.prepare(model, sample.rgb)
        encoded = images | family.encode(model, images)
        categories = sample.categories or (None,) * count
        texts = text_values(
            family, model, self._tokenizer, self._host, sample.expressions, categories
        )
        texts = self._without_padding(texts)
        repeated = {name: rows.expand(count, *rows.shape[1:]) for name, rows in encoded.items()}
        values = encoded | texts | family.ask(model, repeated | texts)
        if self._host.image_index is not None:
            values[self._host.image_index] = torch.zeros(count, dtype=torch.int32)
        return values

    def _without_padding(self, texts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The texts without the columns that are padding in all rows, where rows may be shorter."""
        text = self._host.text
        if not text.lengths or text.mask is None:
            return texts
        count = int(texts[text.mask].sum(1).max())
        return texts | {name: texts[name][:, :count] for name in (text.ids, text.mask)}


def _layers(module: nn.Module) -> dict[str, tuple[nn.Linear, int]]:
    """The layers whose matrices can be rounded, each with the rows that share a scale, by name.

    Those inside of PyTorch's own attention are among them, though it runs them unseen.
    """
    return {
        name: (layer, group)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and layer.out_features > 1
        and (group := group_of(layer.in_features)) is not None
    }


@contextmanager
def _watching(grams: Mapping[_Target, Floats]) -> Iterator[None]:
    """Adds X'X of the inputs of layers that run."""

    def watch(gram: Floats) -> Callable[[nn.Module, Any], None]:
        def add(layer: nn.Module, given: Any) -> None:
            rows = given[0].detach().flatten(0, -2).numpy()
            gram[...] += rows.T @ rows

        return add

    hooks = [one.layer.register_forward_pre_hook(watch(gram)) for one, gram in grams.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _as_taken(value: Tensor) -> Tensor:
    """A value as a graph takes it: ids and indices are int32."""
    return value.int() if value.dtype == torch.int64 else value


class _Work:
    """The matrices' levels, made as the file comes to them."""

    def __init__(
        self, model: _Model, targets: Sequence[_Target], samples: SampleSet, running: Running
    ) -> None:
        self._model, self._targets = model, targets
        self._samples, self._running = samples, running
        self._grams: dict[_Target, Floats] = {}

    def parts(self, about: About) -> tuple[list[Part], str]:
        """What the file has, and the recipe: everything that it depends on, as a hash."""
        told = about.metadata()
        tensors = [tensor for one in self._targets for tensor in one.tensors]
        begin = header(told, tensors)
        parts = [Part("header", len(begin), lambda: begin)]
        parts += [self._part(one, told) for one in self._targets]
        versions = f"torch {torch.__version__} numpy {np.__version__}"
        recipe = hashlib.sha256(begin.tobytes())
        recipe.update(f"{versions} {self._model.computes}".encode())
        return parts, recipe.hexdigest()

    def _part(self, one: _Target, told: Mapping[str, str]) -> Part:
        """All that the file has of a matrix, in one part.

        Another run may compute other last bits, with other threads, and its scales do not fit these
        levels.
        """

        def make() -> NDArray[np.uint8]:
            if one not in self._grams:
                self._sum_inputs(one)
            return self._round(one, self._grams.pop(one)).whole(told, one.name)

        return Part(one.name, sum(map(length_of, one.tensors)), make)

    def _sum_inputs(self, first: _Target) -> None:
        """X'X of a matrix, and of as many behind it as the memory allows."""
        chosen: list[_Target] = []
        left = self._running.memory
        for one in self._targets[self._targets.index(first) :]:
            left -= 4 * one.width**2
            if chosen and left < 0:
                break
            chosen.append(one)
        self._grams = {one: np.zeros((one.width, one.width), np.float32) for one in chosen}
        numbers = range(len(self._samples))
        title = f"Inputs of {chosen[0].name} and {len(chosen) - 1} more"
        for i in self._running.track(numbers, len(numbers), title):
            self._model.add_inputs(self._samples[i], self._grams)

    def _round(self, one: _Target, gram: Floats) -> Record:
        """The better of GPTQ's levels and the nearest. Raises RisError for odd inputs."""
        matrix = self._model.matrix(one.layer)
        digest = digest_of(matrix, one.format)

        def record(rounded: Rounded, before: float, after: float) -> Record:
            """What the file gets."""
            errors = np.array(Errors(before, after), np.float32)
            values = np.frombuffer(digest, np.uint8)
            return Record(rounded.levels, rounded.scales, values, errors)

        nearest = round_in_groups(matrix, one.format, one.group)
        if not gram.any():
            self._running.say(f"{one.name}: none of its inputs were seen; nearest levels")
            return record(nearest, math.nan, math.nan)
        if not np.isfinite(gram).all():
            raise RisError(
                f"the inputs of {one.name} are not finite on these samples, so no levels can be"
                " chosen for them; look for the sample with ris-calibrate ranges"
            )
        before = output_error(matrix, nearest, gram)
        try:
            found = round_for_inputs(matrix, gram, one.format, one.group)
        except np.linalg.LinAlgError:
            self._running.say(f"{one.name}: its inputs are too much alike; nearest levels")
            return record(nearest, before, before)
        after = output_error(matrix, found, gram)
        kept, word = (found, "") if after < before else (nearest, "; nearest levels kept")
        self._running.say(f"{one.name}: error {before:.2e} nearest, {after:.2e} GPTQ{word}")
        return record(kept, before, min(before, after))
