"""The PyTorch reference as arrays, as what is timed, and as what answers questions.

An export is checked against the arrays, and golden.npz holds them. The commands of the runtime
reach this module through `ris.runtime.reference`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ris.engines.errors import RisError
from ris.engines.processor import core_limit
from ris.evaluation.run import Answer
from ris.export.sources import rebuild_model
from ris.reference.categories import COCO_PANOPTIC
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.model import RISModel
from ris.reference.preprocess import prepare_image, resize_logits, resize_to_square, token_ids
from ris.reference.tokenizer import tokenizer_from
from ris.runtime.bundle import Bundle

Arrays = dict[str, NDArray[Any]]
"""Arrays by the names of `ris.runtime.parity`."""

Image = NDArray[np.uint8]
"""RGB [H, W, 3]."""

_PER_IMAGE = ("clip_image", "image_embeddings", "clip_tokens", "image")
_PER_EXPRESSION = (
    "input_ids",
    "text_features",
    "category_feature",
    "dense_prompt",
    "dense_embedding",
    "sparse_prompt",
    "mask_logits",
    "no_target_logits",
    "expressions",
    "categories",
)


@torch.no_grad()
def reference_arrays(
    model: RISModel,
    tokenizer: Tokenizer,
    images: Sequence[Image],
    expressions: Sequence[str],
    categories: Sequence[str],
    image_index: Sequence[int],
) -> Arrays:
    """One pass of the reference over B images and N expressions.

    Args:
        model: The reference model.
        tokenizer: Its tokenizer.
        images: The images, of any sizes.
        expressions: What to ask.
        categories: A category for each expression, by its COCO name.
        image_index: The image of each expression.

    Returns:
        The arrays that `ris.runtime.parity` describes, batched; `rgb` and `square` are of the first
        image. Also `image` [B, 3, S, S] and `image_index` int32 [N], which golden.npz leaves out.
    """
    config = model.config
    ids = token_ids(tokenizer, expressions, config.max_tokens)
    rows = torch.tensor([COCO_PANOPTIC.index(name) for name in categories])
    prepared = [prepare_image(image, config) for image in images]
    image = torch.cat([sam_image for sam_image, _ in prepared])
    clip_image = torch.cat([clip_image for _, clip_image in prepared])

    # image by image: SAM's attention maps of a batch would need gigabytes
    embeddings = torch.cat([model.encode_sam(one) for one in image.split(1)])
    clip_tokens = torch.cat([model.encode_clip(one) for one in clip_image.split(1)])
    index = torch.tensor(list(image_index))
    out = model.ask(embeddings[index], clip_tokens[index], ids, rows)

    arrays: Arrays = {
        "rgb": images[0],
        "square": resize_to_square(images[0], config.sam.image_size),
        "image": image.numpy(),
        "clip_image": clip_image.numpy(),
        "input_ids": ids.numpy().astype(np.int32),
        "image_index": np.asarray(image_index, np.int32),
        "image_embeddings": embeddings.numpy(),
        "clip_tokens": clip_tokens.numpy(),
        "text_features": out.text_features.numpy(),
        "category_feature": model.text_embeddings[rows].numpy(),
        "dense_prompt": out.dense_prompt.numpy(),
        "dense_embedding": out.dense_embedding.numpy(),
        "sparse_prompt": out.sparse_prompt.numpy(),
        "mask_logits": out.mask_logits.numpy(),
        "expressions": np.asarray(expressions),
        "categories": np.asarray(categories),
    }
    if out.no_target_logits is not None:
        arrays["no_target_logits"] = out.no_target_logits.numpy()
    return arrays


def first_image_only(arrays: Arrays, expressions: int | None = None) -> Arrays:
    """The part of `reference_arrays` that belongs to the first image.

    Of its expressions at most the first `expressions` are taken; None: all.
    """
    chosen = np.flatnonzero(arrays["image_index"] == 0)[:expressions]
    part = dict(arrays)
    for name in _PER_IMAGE:
        part[name] = arrays[name][:1]
    for name in _PER_EXPRESSION:
        if name in arrays:
            part[name] = arrays[name][chosen]
    part["image_index"] = np.zeros(len(chosen), np.int32)
    return part


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
    names = list(categories) if categories else ["person"] * len(expressions)
    index = [0] * len(expressions)
    return reference_arrays(model, tokenizer, [image], expressions, names, index)


def timed_reference(
    bundle: Bundle,
    image: Image,
    expressions: tuple[str, str],
    threads: int | None,
    files: Mapping[str, Path | None] | None = None,
    compiled: bool = False,
) -> Callable[[], tuple[float, float]]:
    """PyTorch FP32, ready to be timed, for `ris-bench --pytorch` and `--torch-compile`.

    Args:
        bundle: A bundle of the same model.
        image: The image.
        expressions: What to ask first, and what next.
        threads: CPU threads; None for PyTorch's own choice.
        files: The weight files of a bundle that was made from a checkpoint, by the names of
            `WeightFiles`; None for other bundles.
        compiled: Compile the blocks that repeat with `torch.compile`, at the first call.

    Returns:
        A function that measures once: the seconds from pixels to a mask, and the seconds of a
        further expression on that image.

    Raises:
        CheckpointError: Where the files are not those that the bundle was made from.
    """
    model = rebuild_model(bundle, WeightFiles(**(files or {})))
    if compiled:
        for block in _repeated_blocks(model):
            block.compile(dynamic=False)
    tokenizer = _tokenizer(bundle)
    if threads is not None:
        torch.set_num_threads(threads)
    size = image.shape[:2]

    def ask(embeddings: torch.Tensor, tokens: torch.Tensor, expression: str) -> None:
        ids = token_ids(tokenizer, [expression], model.config.max_tokens)
        out = model.ask(embeddings, tokens, ids, torch.tensor([0]))
        (resize_logits(out.mask_logits, *size) > 0).numpy()

    def run() -> tuple[float, float]:
        with torch.no_grad():
            start = time.perf_counter()
            sam_image, clip_image = prepare_image(image, model.config)
            embeddings, tokens = model.encode_sam(sam_image), model.encode_clip(clip_image)
            ask(embeddings, tokens, expressions[0])
            middle = time.perf_counter()
            ask(embeddings, tokens, expressions[1])
        return middle - start, time.perf_counter() - middle

    return run


def _repeated_blocks(model: RISModel) -> Iterable[Any]:
    """The blocks of SAM, CLIP and BERT and the pixel decoder's layers, nearly all of the work.

    torch.compile compiles each kind of them once. The model as a whole takes many times as long.
    """
    visual: Any = model.clip_dense.clip_model.visual
    yield from model.sam.image_encoder.blocks
    yield from visual.transformer.resblocks
    yield from model.text_encoder.encoder.layer
    yield from model.clip_pixel_decoder.transformer.encoder.layers


def _tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer.from_file(str(bundle.file(bundle.manifest.text.tokenizer)))


class ReferenceSegmenter:
    """The PyTorch model of weight files in FP32, for `ris-eval --pytorch`.

    The tokenizer is that of the --bert folder, else the preset's.

    Args:
        files: The weight files, under the names of `WeightFiles`.
        threads: CPU threads; None: all cores.
        device: "cpu", "cuda" (or "gpu", the same), or "auto", a CUDA GPU where there is one.

    Raises:
        CheckpointError: As `load_model` does.
        RisError: Where PyTorch does not find the device.
    """

    square: int
    """The side in pixels of the square that SAM sees."""

    threshold: float
    """Logits above it are in the mask."""

    device: torch.device
    """Where the model computes."""

    def __init__(
        self,
        files: Mapping[str, Path | None],
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        if threads := threads or core_limit():
            torch.set_num_threads(threads)
        self.device = _torch_device(device)
        model, inspection = load_model(WeightFiles(**files))
        self._model = model.to(self.device)
        self._tokenizer = tokenizer_from(inspection.vocabulary, self._model.config)
        self.square, self.threshold = self._model.config.sam.image_size, 0.0

    @torch.no_grad()
    def answer(
        self, rgb: Image, expressions: Sequence[str], categories: Sequence[str | None]
    ) -> list[Answer]:
        """An answer for each expression, in order.

        An expression without a category is asked as "background", as in training.
        """
        model = self._model
        image, clip_image = prepare_image(rgb, model.config)
        ids = token_ids(self._tokenizer, expressions, model.config.max_tokens)
        rows = torch.tensor([COCO_PANOPTIC.index(name or "background") for name in categories])
        image, clip_image, ids, rows = (x.to(self.device) for x in (image, clip_image, ids, rows))

        count = (len(expressions), -1, -1)
        embeddings, tokens = model.encode_sam(image), model.encode_clip(clip_image)
        out = model.ask(embeddings.expand(*count, -1), tokens.expand(count), ids, rows)

        logits = out.mask_logits[:, 0].cpu().numpy()
        if out.no_target_logits is None:
            return [Answer(low, None) for low in logits]
        probabilities = out.no_target_logits.softmax(1)[:, 1].tolist()
        return [Answer(low, p) for low, p in zip(logits, probabilities, strict=True)]


def _torch_device(name: str) -> torch.device:
    """The device of a name of `ReferenceSegmenter`; on a GPU, FP32 is FP32 (no TF32)."""
    there = torch.cuda.is_available()
    if name in ("cuda", "gpu") and not there:
        raise RisError(f"--device {name}: PyTorch {torch.__version__} finds no CUDA GPU here")
    if name == "npu":
        raise RisError("--device npu: the PyTorch model runs on the CPU or on a CUDA GPU")
    if name == "cpu" or not there:
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")
