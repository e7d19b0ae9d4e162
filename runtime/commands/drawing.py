"""The options that say which random numbers a model is asked with, the same in every command."""

from __future__ import annotations

import click

from ris.runtime.commands.options import Command, add_options
from ris.runtime.drawn import MOST_DRAWS, Draws
from ris.runtime.manifest_kinds import LARGEST_SEED

_OPTIONS = (
    click.option(
        "--seed",
        type=click.IntRange(0, LARGEST_SEED),
        help="For a model that takes random numbers: what they are drawn from. Default: the "
        "bundle's own seed, so that an answer is the same every time.",
    ),
    click.option(
        "--draws",
        type=click.IntRange(1, MOST_DRAWS),
        help="For such a model: average the mask logits of so many draws. What does not depend on "
        "the numbers runs once.",
    ),
)


def draw_options(command: Command) -> Command:
    """Adds --seed and --draws; the command gets them as `draws`."""
    return add_options(
        command, _OPTIONS, "draws", lambda given: Draws(given.pop("seed"), given.pop("draws"))
    )
