"""The PyTorch reference as arrays: what an export is checked against, what golden.npz holds, and
`--reference`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ris.evaluation.run import Answer
from ris.export.sources import rebuild_model
from ris.reference.categories import COCO_PANOPTIC
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.model import RISModel
from ris.reference.preprocess import prepare_image, resize_logits, resize_to_square, token_ids
from ris.reference.tokenizer import tokenizer_from
from ris.runtime.bundle import Bundle


def reference_arrays(
    model: RISModel,
    tokenizer: Tokenizer,
    images: Sequence[NDArray[np.uint8]],
    expressions: Sequence[str],
    categories: Sequence[str],
    image_index: Sequence[int],
) -> dict[str, NDArray[Any]]:
    """One pass of the reference over B images and N expressions; the arrays of
    `ris.runtime.parity`, batched.

    Also `image` [B, 3, S, S] and `image_index` int32 [N], which golden.npz leaves out.
    """
    config = model.config
    ids = token_ids(tokenizer, expressions, config.max_tokens)
    rows = torch.tensor([COCO_PANOPTIC.index(name) for name in categories])
    with torch.no_grad():
        prepared = [prepare_image(image, config) for image in images]
        image = torch.cat([p[0] for p in prepared])
        clip_image = torch.cat([p[1] for p in prepared])
        # image by image: SAM's attention maps of a batch would need gigabytes
        embeddings = torch.cat([model.encode_sam(image[i : i + 1]) for i in range(len(images))])
        clip_tokens = torch.cat(
            [model.encode_clip(clip_image[i : i + 1]) for i in range(len(images))]
        )
        index = torch.tensor(list(image_index))
        out = model.ask(embeddings[index], clip_tokens[index], ids, rows)
        arrays: dict[str, NDArray[Any]] = {
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


def first_image_only(
    arrays: dict[str, NDArray[Any]], expressions: int | None = None
) -> dict[str, NDArray[Any]]:
    """The part of `reference_arrays` that belongs to the first image, at most `expressions` of its
    expressions.
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
    image: NDArray[np.uint8],
    expressions: Sequence[str],
    categories: Sequence[str] | None,
    files: Mapping[str, Path | None] | None = None,
) -> dict[str, NDArray[Any]]:
    """The reference's arrays for an image and expressions of the user's own, for `ris-parity
    --reference`.

    files: the weight files of a bundle that was made from a checkpoint, by the names of
    `WeightFiles`.
    """
    tokenizer = Tokenizer.from_file(str(bundle.file(bundle.manifest.text.tokenizer)))
    names = list(categories) if categories else ["person"] * len(expressions)
    model = rebuild_model(bundle, WeightFiles(**(files or {})))
    return reference_arrays(model, tokenizer, [image], expressions, names, [0] * len(expressions))


def timed_reference(
    bundle: Bundle,
    image: NDArray[np.uint8],
    expressions: tuple[str, str],
    threads: int | None,
    files: Mapping[str, Path | None] | None = None,
    compiled: bool = False,
) -> Callable[[], tuple[float, float]]:
    """PyTorch FP32 on one image and two expressions, for `ris-bench --pytorch` and
    `--torch-compile`.

    Each call of the result returns the seconds from pixels to a mask, and of a further expression
    on that image. compiled: torch.compile for each kind of block that repeats (SAM's, CLIP's,
    BERT's, the pixel decoder's layers), nearly all of the work; compiling the model as a whole
    takes many times as long. The first call compiles.
    """
    model = rebuild_model(bundle, WeightFiles(**(files or {})))
    if compiled:
        visual: Any = model.clip_dense.clip_model.visual
        repeated = (
            model.sam.image_encoder.blocks,
            visual.transformer.resblocks,
            model.text_encoder.encoder.layer,
            model.clip_pixel_decoder.transformer.encoder.layers,
        )
        for blocks in repeated:
            for block in blocks:
                block.compile(dynamic=False)
    tokenizer = Tokenizer.from_file(str(bundle.file(bundle.manifest.text.tokenizer)))
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


class ReferenceSegmenter:
    """The PyTorch model of weight files (names of `WeightFiles`), FP32, for `ris-eval --pytorch`.

    Its tokenizer is the --bert folder's, else the preset's. Raises CheckpointError as `load_model`
    does.
    """

    def __init__(self, files: Mapping[str, Path | None], threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._model, inspection = load_model(WeightFiles(**files))
        self._tokenizer = tokenizer_from(inspection.vocabulary, self._model.config)
        self.square, self.threshold = self._model.config.sam.image_size, 0.0

    @torch.no_grad()
    def answer(
        self, rgb: NDArray[np.uint8], expressions: Sequence[str], categories: Sequence[str | None]
    ) -> list[Answer]:
        """One answer an expression, in order; what has no category is asked as "background", as in
        training.
        """
        model = self._model
        image, clip_image = prepare_image(rgb, model.config)
        ids = token_ids(self._tokenizer, expressions, model.config.max_tokens)
        rows = torch.tensor([COCO_PANOPTIC.index(name or "background") for name in categories])
        count = (len(expressions), -1, -1)
        embeddings, tokens = model.encode_sam(image), model.encode_clip(clip_image)
        out = model.ask(embeddings.expand(*count, -1), tokens.expand(count), ids, rows)
        logits = out.mask_logits[:, 0].numpy()
        if out.no_target_logits is None:
            return [Answer(low, None) for low in logits]
        probabilities = out.no_target_logits.softmax(1)[:, 1].tolist()
        return [
            Answer(low, probability) for low, probability in zip(logits, probabilities, strict=True)
        ]
