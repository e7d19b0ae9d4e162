"""One pass of the PyTorch reference as arrays by the names of a bundle's values.

An export is checked against them, and golden.npz holds those of its first image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from ris.reference.families import Family
from ris.reference.preprocess import token_ids
from ris.runtime.drawn import draw, for_each
from ris.runtime.host import fit_picture
from ris.runtime.manifest import PICTURE, Host

Arrays = dict[str, NDArray[Any]]
"""Arrays by the names of values, and the others that `ris.runtime.parity` describes."""

Image = NDArray[np.uint8]
"""RGB [H, W, 3]."""


@dataclass(frozen=True)
class Asked:
    """B images, and N expressions about them."""

    images: Sequence[Image]
    """The images, of any sizes."""

    expressions: Sequence[str]
    """What is asked."""

    categories: Sequence[str]
    """The category of each expression; heeded by a model that asks by category alone."""

    image_index: Sequence[int]
    """The image of each expression."""


@dataclass(frozen=True)
class ReferencePass:
    """What the reference made of B images and N expressions."""

    rgb: Image
    """The first image."""

    by_image: Arrays
    """The host's images, and what depends on an image alone; B rows each."""

    by_expression: Arrays
    """What depends on an expression, and what was asked; N rows each."""

    image_index: NDArray[np.int32]
    """The image of each expression [N]."""

    host: Host
    """How the host's values are made."""

    @property
    def arrays(self) -> Arrays:
        """Everything by name."""
        found: Arrays = {"rgb": self.rgb} | self.by_image | self.by_expression
        if (name := self.host.image_index) is not None:
            found[name] = self.image_index
        return found

    def first_image(self, expressions: int | None = None) -> ReferencePass:
        """The part that belongs to the first image.

        Of its expressions at most the first `expressions` are taken; None: all.
        """
        chosen = np.flatnonzero(self.image_index == 0)[:expressions]
        return replace(
            self,
            by_image={name: rows[:1] for name, rows in self.by_image.items()},
            by_expression={name: rows[chosen] for name, rows in self.by_expression.items()},
            image_index=np.zeros(len(chosen), np.int32),
        )

    def golden(self) -> Arrays:
        """What golden.npz holds, of a pass over one image.

        Images that Pillow resizes from the picture are there as 8-bit levels, a letterbox without
        its zeros. What a reader makes of them, of the ids, of the number of expressions and of
        seeds is left out.
        """
        found = self.arrays
        for name in (self.host.text.mask, self.host.image_index, *self.host.drawn):
            found.pop(name or "", None)
        for name, image in self.host.images.items():
            if image.of == PICTURE and image.antialias:
                found[name] = fit_picture(self.rgb, image, self.rgb.shape[:2])
        return found


@torch.no_grad()
def reference_pass(
    family: Family, model: Any, tokenizer: Tokenizer, host: Host, asked: Asked
) -> ReferencePass:
    """One pass of the reference.

    Args:
        family: The model's family.
        model: The reference model.
        tokenizer: Its tokenizer.
        host: How the host's values are made.
        asked: The images and the expressions.
    """
    prepared = [family.prepare(model, image) for image in asked.images]
    # image by image: an encoder's attention maps of a batch may need gigabytes
    encoded = [images | family.encode(model, images) for images in prepared]
    of_images = {name: torch.cat([one[name] for one in encoded]) for name in encoded[0]}

    index = torch.tensor(list(asked.image_index))
    texts = text_values(family, model, tokenizer, host, asked.expressions, asked.categories)
    per_question = {name: rows[index] for name, rows in of_images.items()}
    answers = family.ask(model, per_question | texts)

    by_expression = _numpy(texts | answers) | {"expressions": np.asarray(asked.expressions)}
    if host.categories is not None:
        by_expression["categories"] = np.asarray(asked.categories)
    return ReferencePass(
        rgb=asked.images[0],
        by_image=_numpy(of_images),
        by_expression=by_expression,
        image_index=index.numpy().astype(np.int32),
        host=host,
    )


def text_values(
    family: Family,
    model: Any,
    tokenizer: Tokenizer,
    host: Host,
    expressions: Sequence[str],
    categories: Sequence[str | None],
    form: str | None = None,
) -> dict[str, Tensor]:
    """The host's values of N expressions: ids, mask, rows of categories, random numbers.

    Args:
        family: The model's family.
        model: The reference model.
        tokenizer: Its tokenizer.
        host: How the host's values are made.
        expressions: What is asked.
        categories: The category of each expression, where the model asks by one; None for none.
        form: The form that the expressions stand in; None for the model's own choice.
    """
    text = host.text
    inside = text.form_named(form)
    asked = [inside.asked(expression) if inside else expression for expression in expressions]
    ids = token_ids(tokenizer, asked, text.max_tokens, text.pad_id, text.end_id)
    values = {text.ids: ids}
    if text.mask is not None:
        values[text.mask] = (ids != text.pad_id).float()
    if host.categories is not None:
        values[host.categories.value] = family.category_features(model, categories)
    drawn = for_each(draw(host.drawn), len(expressions))
    return values | {name: torch.from_numpy(rows) for name, rows in drawn.items()}


def _numpy(values: Mapping[str, Tensor]) -> Arrays:
    """The values as arrays; ids of 64 bits become those of 32 that graphs take.

    numpy has no bfloat16, which a pass under autocast gives: such values become float32.
    """
    taken = {torch.int64: torch.int32, torch.bfloat16: torch.float32}
    return {
        name: value.to(taken.get(value.dtype, value.dtype)).numpy()
        for name, value in values.items()
    }
