"""The option that says in which form expressions are asked, the same in every command."""

from __future__ import annotations

import click

form_option = click.option(
    "--form",
    metavar="NAME",
    help="For a model that asks in forms: phrase for what names a thing, sentence for what stands "
    "by itself. Default: the model's own choice, phrase.",
)
"""Adds --form."""
