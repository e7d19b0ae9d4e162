"""The options that name weight files, the same in every command that takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ris.engines.errors import CheckpointError
from ris.runtime.commands.options import Command, Option, add_options
from ris.runtime.reference import Choice

NAMES = ("checkpoint", "sam", "clip", "bert")
"""The weight files, by the field names of `WeightFiles`."""


def weight_file_options(only_with: str = "") -> Option:
    """A decorator that adds the four options; the command gets them as one argument, `files`.

    `files` has a path or None for each of `NAMES`. only_with: the flag that the options belong to,
    for the help text.
    """

    def decorate(command: Command) -> Command:
        return add_options(command, _options(only_with), "files", _take_files)

    return decorate


def family_option(only_with: str = "") -> Option:
    """A decorator that adds `--family`; the command gets a name, or None, as `family`.

    only_with: as of `weight_file_options`.
    """
    return click.option(
        "--family",
        metavar="NAME",
        help=_help(
            only_with,
            "The family of models that --checkpoint is of. Default: what its keys say.",
        ),
    )


def choice_options(choices: Sequence[Choice], only_with: str = "") -> Option:
    """A decorator that adds an option for each choice of any family.

    The command gets what was chosen as one argument, `chosen`, values by field. only_with: as of
    `weight_file_options`.
    """
    options = [
        click.option(
            choice.option,
            type=click.Choice(choice.values),
            help=_help(
                only_with,
                f"{choice.words[0].upper()}{choice.words[1:]}. Default: {choice.values[0]}.",
            ),
        )
        for choice in choices
    ]

    def take(given: dict[str, Any]) -> dict[str, str]:
        found = {choice.field: given.pop(choice.field) for choice in choices}
        return {field: value for field, value in found.items() if value is not None}

    return lambda command: add_options(command, options, "chosen", take)


def require_checkpoint(files: Mapping[str, Path | None], family: str | None) -> None:
    """Raises CheckpointError where a family is named and there is no checkpoint to be of it."""
    if family is not None and files["checkpoint"] is None:
        raise CheckpointError("--family says what --checkpoint is of; give that too")


def require_no_choice(choices: Sequence[Choice], chosen: Mapping[str, str], flag: str) -> None:
    """Raises CheckpointError where something was chosen without the flag that it belongs to."""
    if chosen:
        options = " and ".join(choice.option for choice in choices if choice.field in chosen)
        raise CheckpointError(f"{options} needs {flag}; a bundle has what its export chose")


def require_flag(files: Mapping[str, Path | None], flag: str, given: bool) -> None:
    """Raises CheckpointError where weight files are given without the flag that uses them."""
    if any(files.values()) and not given:
        raise CheckpointError(f"--checkpoint and the component files need {flag}")


def _options(only_with: str) -> tuple[Option, ...]:
    path = click.Path(path_type=Path)
    return (
        click.option(
            "--checkpoint",
            type=path,
            metavar="FILE",
            help=_help(
                only_with,
                "The training checkpoint: model_final.pth, a state dict, or safetensors.",
            ),
        ),
        click.option(
            "--sam-checkpoint",
            "sam",
            type=path,
            metavar="FILE|NAME",
            help=_help(only_with, "SAM's own weights (sam_vit_b_01ec64.pth, or sam-vit-b)."),
        ),
        click.option(
            "--clip-checkpoint",
            "clip",
            type=path,
            metavar="FILE|NAME",
            help=_help(
                only_with,
                "CLIP's own weights: OpenAI's archive, open_clip's, or a CLIPModel folder.",
            ),
        ),
        click.option(
            "--bert",
            type=path,
            metavar="FOLDER|NAME",
            help=_help(
                only_with,
                "BERT's folder: config.json, its weights, vocab.txt or tokenizer.json.",
            ),
        ),
    )


def _help(only_with: str, text: str) -> str:
    """The help text, with the flag that the option belongs to in front of it."""
    if not only_with:
        return text
    begins_with_name = text[:2].isupper()  # "SAM's" keeps its capital letter, "The" does not
    continued = text if begins_with_name else text[0].lower() + text[1:]
    return f"With {only_with}: {continued}"


def _take_files(given: dict[str, Any]) -> dict[str, Path | None]:
    """The weight files in the order of the command line, in which ris-eval names them."""
    return {name: given.pop(name) for name in list(given) if name in NAMES}
