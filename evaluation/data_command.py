"""`ris-data check`: what of the referring data sets is there, whole, and what is wrong with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ris.data.datasets.refer_files import DATASETS, WHERE
from ris.engines.errors import RisError
from ris.evaluation.data_check import Check, Track, check, present
from ris.runtime.commands.console import RisCommand, RisGroup, print_json, track
from ris.runtime.commands.named_files import FolderOrName, fetch_given
from ris.runtime.hub.given import given_names

_NAMED = 20  # things that are named; --json has all


@click.group(cls=RisGroup)
def main() -> None:
    """Looks after the data sets that models are trained and evaluated on.

    \b
    Examples:
      ris-data check data     what is there, whole, and what is wrong with it
    """


@main.command("check", cls=RisCommand)
@click.argument("root", type=FolderOrName())
@click.option("--data", type=click.Choice(list(DATASETS)), help="Default: all that are there.")
@click.option("--images", type=FolderOrName(), help="The folder of COCO's images, or a name.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def check_data(root: Path, data: str | None, images: Path | None, as_json: bool) -> None:
    """Says which data sets are below ROOT, whether they are whole, and what is wrong with them.

    ROOT may be the name of a published data set, which is fetched and unpacked into the cache.
    Sizes are compared with those that the authors state. The header of every image file is read. A
    reference that a published loader drops, or stops at, is named with the reason.

    \b
    Examples:
      ris-data check data
      ris-data check data --data refcocog --json
      ris-data check refcocog --images data/images/train2014
    """
    paths = fetch_given(given_names({}, {"ROOT": root, "images": images}))
    root, images = paths.get("ROOT", root), paths.get("images", images)
    wanted = [(name, by) for name, by in present(root) if data in (None, name)]
    if not wanted:
        raise RisError(f"{root} has no list of references of {data or 'any data set'}; {WHERE}")
    found = [
        check(root, name, by, images, _tracking(f"{name}, {by}: images")) for name, by in wanted
    ]
    if as_json:
        print_json([dataclasses.asdict(one) | {"whole": one.whole} for one in found], indent=1)
    else:
        for one in found:
            _print(one)
        absent = [name for name in DATASETS if name not in {one.name for one in found}]
        if absent and data is None:
            click.echo(f"Not there: {', '.join(absent)}")
    if not all(one.whole for one in found):
        raise RisError("not everything is whole; it is named above")


def _tracking(title: str) -> Track:
    """`track` over the ids of images."""
    return lambda numbers: track(numbers, len(numbers), title)


def _print(found: Check) -> None:
    title = f"{found.name}, {found.split_by}"
    if found.missing is not None:
        click.echo(f"{title}: {found.missing}")
        return
    table = Table(title=title)
    for column in ("", "found", "published"):
        table.add_column(column, justify="left" if not column else "right")
    for size in found.sizes:
        stated = "not stated" if size.published is None else str(size.published)
        table.add_row(size.what, str(size.found), f"{stated} !" if size.differs else stated)
    Console(width=100).print(table)
    _list(f"{len(found.images)} images", found.images)
    for evaluator, reasons in found.left_out.items():
        said = [f"reference {number}: {reason}" for number, reason in reasons.items()]
        _list(f"{evaluator}'s loader leaves out {len(said)} references", said)


def _list(title: str, sentences: list[str]) -> None:
    """Some of the sentences under a title; nothing where there are none."""
    if not sentences:
        return
    click.echo(f"{title}:")
    for sentence in sentences[:_NAMED]:
        click.echo(f"  {sentence}")
    if len(sentences) > _NAMED:
        click.echo(f"  and {len(sentences) - _NAMED} more")
