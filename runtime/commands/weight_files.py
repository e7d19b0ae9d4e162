"""The options that name weight files, the same in every command that takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ris.engines.errors import CheckpointError

F = TypeVar("F", bound=Callable[..., Any])
NAMES = ("checkpoint", "sam", "clip", "bert")

_OPTIONS = (
    (
        "--checkpoint",
        "checkpoint",
        "FILE",
        "The training checkpoint: model_final.pth, a state dict, or safetensors.",
    ),
    ("--sam-checkpoint", "sam", "FILE", "SAM's own weights (sam_vit_b_01ec64.pth)."),
    (
        "--clip-checkpoint",
        "clip",
        "FILE",
        "CLIP's own weights: OpenAI's archive, open_clip's, or a CLIPModel folder.",
    ),
    (
        "--bert",
        "bert",
        "FOLDER",
        "BERT's folder: config.json, its weights, vocab.txt or tokenizer.json.",
    ),
)


def weight_file_options(only_with: str = "") -> Callable[[F], F]:
    """A decorator that adds the four options, as keyword arguments `checkpoint`, `sam`, `clip`,
    `bert` (Path or None).

    only_with: the flag they belong to, for the help text.
    """

    def decorate(command: F) -> F:
        for option, name, metavar, text in reversed(_OPTIONS):
            begun = (
                text if text[:2].isupper() else text[0].lower() + text[1:]
            )  # "SAM's", but "the training"
            words = f"With {only_with}: {begun}"
            command = click.option(
                option,
                name,
                type=click.Path(path_type=Path),
                metavar=metavar,
                help=words if only_with else text,
            )(command)
        return command

    return decorate


def require_flag(files: dict[str, Path | None], flag: str, given: bool) -> None:
    """Raises CheckpointError where weight files are given without the flag that uses them."""
    if any(files.values()) and not given:
        raise CheckpointError(f"--checkpoint and the component files need {flag}")
