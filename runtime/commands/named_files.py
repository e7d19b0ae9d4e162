"""Published files by name where a command takes their paths: said, fetched, taken as paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ris.engines.errors import RisError
from ris.runtime.commands.console import size
from ris.runtime.commands.downloading import DownloadProgress
from ris.runtime.commands.models import announced
from ris.runtime.hub.given import GivenNames, entry_given, given_names
from ris.runtime.hub.models import PublishedFile


class FolderOrName(click.ParamType):
    """A folder that is there, or the name of a published data set."""

    name = "folder or name"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "FOLDER|NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        try:
            if entry_given(path) is not None:
                return path
        except RisError as error:
            self.fail(str(error), param, ctx)
        folder = click.Path(exists=True, file_okay=False, path_type=Path)
        found: Path = folder.convert(value, param, ctx)
        return found


def fetch_given(names: GivenNames, *, quiet: bool = False) -> dict[str, Path]:
    """The paths of what was named, which is fetched where it is not here yet.

    Says licence and source before the first byte. quiet: say nothing, as in a process beside the
    main one.
    """
    if not names.entries:
        return {}
    if quiet:
        return names.fetch()
    for entry in names.entries:
        click.echo("\n".join(announced(entry)), err=True)
    with DownloadProgress() as progress:
        paths = names.fetch(progress)
    for note in names.notes():
        click.echo(note, err=True)
    return paths


def with_named(files: Mapping[str, Path | None]) -> dict[str, Path | None]:
    """Weight files with what was named among them as paths; the others as they are.

    Raises HubError as `given_names` does, and where a file cannot be had.
    """
    return {**files, **fetch_given(given_names(files))}


def would_download(file: PublishedFile) -> str:
    """What a dry run says of a file that is not here."""
    known = "" if file.bytes is None else f", {size(file.bytes)}"
    return f"{file.name}{known}"
