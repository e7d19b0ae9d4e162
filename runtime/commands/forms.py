"""The option that says in which form expressions are asked, the same in every command."""

from __future__ import annotations

import click

_FORMS = (
    "phrase for what names a thing, sentence for what stands by itself. Default: the model's own "
    "choice, phrase."
)

form_option = click.option(
    "--form",
    metavar="NAME",
    help=f"For a model that asks in forms: {_FORMS}",
)
"""Adds --form."""

default_form_option = click.option(
    "--form",
    metavar="NAME",
    help=f"The form of requests that name none, for a model that asks in forms: {_FORMS}",
)
"""Adds the --form of a server."""
