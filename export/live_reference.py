"""The PyTorch reference as arrays, as what is timed, and as what answers questions.

The commands of the runtime reach this module through `ris.runtime.reference`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from ris.calibration.samples import SampleSet
from ris.engines.devices import CUDA, kind_of
from ris.engines.errors import RisError
from ris.engines.processor import core_limit
from ris.evaluation.run import Answer
from ris.export.families import DESIGNS
from ris.export.reference_pass import Arrays, Asked, Image, reference_pass, text_values
from ris.export.sources import checked_files, rebuild_model
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.families import family_named
from ris.runtime.bundle import Bundle
from ris.runtime.letterbox import letterbox_size
from ris.runtime.manifest import PICTURE, mask_rule
from ris.runtime.masks import MaskRule


def require_files(bundle: Bundle, files: Mapping[str, Path | None]) -> None:
    """Raises CheckpointError where the files are not those that the bundle was made from.

    files: By the names of `WeightFiles`.
    """
    checked_files(bundle, WeightFiles(**files))


def live_reference(
    bundle: Bundle,
    image: Image,
    expressions: Sequence[str],
    categories: Sequence[str] | None,
    files: Mapping[str, Path | None] | None = None,
) -> Arrays:
    """The reference's arrays for an image and expressions, for `ris-parity --reference`.

    Args:
        bundle: A bundle of the same model.
        image: The image.
        expressions: What to ask.
        categories: A category for each expression; None for models that do not ask by category.
        files: The weight files of a bundle that was made from a checkpoint, by the names of
            `WeightFiles`; None for other bundles.

    Raises:
        CheckpointError: Where the files are not those that the bundle was made from.
    """
    tokenizer = _tokenizer(bundle)
    model = rebuild_model(bundle, WeightFiles(**(files or {})))
    asked = Asked([image], expressions, list(categories or ()), [0] * len(expressions))
    family = family_named(bundle.manifest.family)
    return reference_pass(family, model, tokenizer, bundle.manifest.host, asked).arrays


def timed_reference(
    bundle: Bundle,
    image: Image,
    expressions: tuple[str, str],
    threads: int | None,
    files: Mapping[str, Path | None] | None = None,
    compiled: bool = False,
    precision: str = "fp32",
) -> Callable[[], tuple[float, float]]:
    """PyTorch, ready to be timed, for `ris-bench --pytorch` and `--torch-compile`.

    Args:
        bundle: A bundle of the same model.
        image: The image.
        expressions: What to ask first, and what next.
        threads: CPU threads; None for PyTorch's own choice.
        files: The weight files of a bundle that was made from a checkpoint, by the names of
            `WeightFiles`; None for other bundles.
        compiled: Compile the blocks that repeat with `torch.compile`, at the first call.
        precision: "fp32", or "bf16": autocast, the weights of layers that multiply converted once.

    Returns:
        A function that measures once: the seconds from pixels to a mask, and the seconds of a
        further expression on that image.

    Raises:
        CheckpointError: Where the files are not those that the bundle was made from.
    """
    manifest = bundle.manifest
    family, design = family_named(manifest.family), DESIGNS[manifest.family]
    model = rebuild_model(bundle, WeightFiles(**(files or {})))
    half = precision == "bf16"
    if half:  # autocast alone would convert them at each call
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                layer.to(torch.bfloat16)
    if compiled:
        for block in design.repeated(model):
            block.compile(dynamic=False)
    tokenizer = _tokenizer(bundle)
    if threads is not None:
        torch.set_num_threads(threads)
    size = image.shape[:2]

    def ask(encoded: Mapping[str, Tensor], expression: str) -> None:
        texts = text_values(family, model, tokenizer, manifest.host, [expression], [None])
        logits = family.ask(model, {**encoded, **texts})[manifest.answer.mask_logits].float()
        _mask(logits, size, manifest.mask_rule).numpy()

    def run() -> tuple[float, float]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            start = time.perf_counter()
            images = family.prepare(model, image)
            encoded = images | family.encode(model, images)
            ask(encoded, expressions[0])
            middle = time.perf_counter()
            ask(encoded, expressions[1])
        return middle - start, time.perf_counter() - middle

    return run


def calibrate_weights(
    model: Mapping[str, Any],
    samples: Callable[[], SampleSet],
    out: Path,
    running: Mapping[str, Any],
) -> dict[str, tuple[float, float]]:
    """Writes levels for a model's matrices, for `ris-calibrate weights`.

    Args:
        model: What the command line says of the model, by the fields of `Request`.
        samples: Makes what its layers' inputs are taken from.
        out: The file to write.
        running: The fields of `ris.export.weight_calibration.Running`, and `threads`.

    Returns:
        By matrix what rounding it changed in its products: with the nearest levels, and with those
        of the file.

    Raises:
        RisError: As `ris.export.weight_calibration.calibrate_weights` does, and for options that
            contradict each other.
    """
    from ris.export.weight_calibration import calibrate_request

    return calibrate_request(model, samples, out, running)


def _tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer.from_file(str(bundle.file(bundle.manifest.host.text.tokenizer)))


class ReferenceSegmenter:
    """The PyTorch model of weight files in FP32, for `ris-eval --pytorch`.

    The tokenizer is that of the files, else the preset's.

    Args:
        files: The weight files, under the names of `WeightFiles`.
        threads: CPU threads; None: all cores.
        device: "cpu", "cuda" or "cuda:1" (or "gpu", the first), or "auto", a CUDA GPU where there
            is one.
        family: The name of the model's family; None: what the checkpoint's keys say.
        chosen: What was chosen of the family's `choices`, by field; None: nothing.

    Raises:
        CheckpointError: As `load_model` does.
        RisError: Where PyTorch does not find the device.
    """

    square: int
    """The side in pixels of the largest square that the model sees."""

    rule: MaskRule
    """The way from its logits to a mask."""

    device: torch.device
    """Where the model computes."""

    family: str
    """The name of the model's family."""

    chosen: dict[str, str]
    """Of the family's `choices` what the model computes with, by field; the defaults are in it."""

    def __init__(
        self,
        files: Mapping[str, Path | None],
        threads: int | None = None,
        device: str = "auto",
        family: str | None = None,
        chosen: Mapping[str, str] | None = None,
    ) -> None:
        if threads := threads or core_limit():
            torch.set_num_threads(threads)
        self.device = _torch_device(device)
        model, inspection = load_model(WeightFiles(**files), family, chosen)
        self._family, self.family = inspection.family, inspection.family.name
        design, config = DESIGNS[self.family], inspection.config
        self.chosen = self._family.chosen(config.to_dict())
        self._model = model.to(self.device)
        self._tokenizer = self._family.tokenizer_of(inspection.vocabulary, config, trained=True)
        self._host, self._answer = design.host(config), design.answer(config)
        sizes = [image.size for image in self._host.images.values() if image.of == PICTURE]
        self.square, self.rule = max(sizes), mask_rule(self._host, self._answer)

    @torch.no_grad()
    def answer(
        self, rgb: Image, expressions: Sequence[str], categories: Sequence[str | None]
    ) -> list[Answer]:
        """An answer for each expression, in order.

        An expression without a category is asked as the family says.
        """
        family, model = self._family, self._model
        images = self._here(family.prepare(model, rgb))
        texts = text_values(family, model, self._tokenizer, self._host, expressions, categories)
        encoded = images | family.encode(model, images)
        count = len(expressions)
        repeated = {name: rows.expand(count, *rows.shape[1:]) for name, rows in encoded.items()}
        out = family.ask(model, repeated | self._here(texts))

        logits = out[self._answer.mask_logits][:, 0].cpu().numpy()
        if self._answer.no_target_logits is None:
            return [Answer(low, None) for low in logits]
        probabilities = out[self._answer.no_target_logits].softmax(1)[:, 1].tolist()
        return [Answer(low, p) for low, p in zip(logits, probabilities, strict=True)]

    def _here(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values on the model's device."""
        return {name: value.to(self.device) for name, value in values.items()}


def _mask(logits: Tensor, size: tuple[int, int], rule: MaskRule) -> Tensor:
    """The masks, bool [N, 1, *size], of logits [N, 1, m, m], as a runtime makes them."""

    def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
        corners = rule.align_corners
        return F.interpolate(values, size, mode=rule.interpolation, align_corners=corners)

    if rule.letterbox is not None:
        height, width = letterbox_size(*size, rule.letterbox)
        logits = resized(logits, (rule.letterbox,) * 2)[..., :height, :width]
    values = logits.sigmoid() if rule.of == "probabilities" else logits
    return resized(values, size) > rule.threshold


def _torch_device(name: str) -> torch.device:
    """The device of a name of `ReferenceSegmenter`; on a GPU, FP32 is FP32 (no TF32)."""
    there = torch.cuda.is_available()
    if (kind_of(name) == CUDA or name == "gpu") and not there:
        raise RisError(f"--device {name}: PyTorch {torch.__version__} finds no CUDA GPU here")
    if name == "npu":
        raise RisError("--device npu: the PyTorch model runs on the CPU or on a CUDA GPU")
    if name == "cpu" or not there:
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(name if kind_of(name) == CUDA else CUDA)
