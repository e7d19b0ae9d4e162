"""`ris-models`: what is published under which name, and how it gets here.

Thin over `ris.runtime.hub`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ris.engines.errors import RisError
from ris.engines.text import one_line
from ris.runtime.bundle import Bundle, open_bundle
from ris.runtime.commands.console import RisCommand, RisGroup, print_json, size
from ris.runtime.commands.downloading import DownloadProgress
from ris.runtime.hub.address import Address, is_address, parse
from ris.runtime.hub.bundles import fetch_bundle
from ris.runtime.hub.entries import (
    OPTIONS,
    FetchedEntry,
    by_hand,
    fetch_entry,
    option_of,
    place,
    require_accepted,
    unverified,
)
from ris.runtime.hub.models import Entry, PublishedFile, as_data, is_known, read_table
from ris.runtime.hub.push import Pushed, push, require_publishable

_KINDS = {"model": "Models", "part": "Parts of models", "data": "Data sets"}

_json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@click.group(cls=RisGroup)
def main() -> None:
    """Published models by name: what there is, and how it gets here.

    `ris-export --model NAME` fetches a model and makes a bundle of it. This command shows what
    there is, fetches without exporting, and publishes bundles.

    \b
    Examples:
      ris-models list
      ris-models show rela-swin-base
      ris-models fetch bert-base-uncased --out checkpoints/bert
      ris-models fetch hf://org/name@v1
      ris-models push ris-bundle hf://org/name --licence apache-2.0
    """


@main.command("list", cls=RisCommand)
@_json_option
def list_models(as_json: bool) -> None:
    """Lists what has a name: models, parts that models are made with, data sets.

    \b
    Examples:
      ris-models list
      ris-models list --json
    """
    table = read_table()
    known = [entry for entry in table.entries if is_known(entry)]
    if as_json:
        print_json([as_data(entry) for entry in known], indent=2)
        return
    width = max((len(entry.name) for entry in known), default=0)
    for kind, title in _KINDS.items():
        entries = [entry for entry in known if entry.kind == kind and not entry.refused]
        if entries:
            click.echo(f"{title}:")
            for entry in entries:
                size_of = f"{_download_size(entry):>9}"
                click.echo(one_line(f"  {entry.name:<{width}}  {size_of}  {entry.title}"))
    if refused := [entry.name for entry in known if entry.refused]:
        click.echo(f"Refused, `ris-models show` says why: {', '.join(refused)}")
    if others := [entry.name for entry in table.entries if not is_known(entry)]:
        click.echo(f"Of families that this version does not have: {', '.join(others)}")


@main.command(cls=RisCommand)
@click.argument("name")
@_json_option
def show(name: str, as_json: bool) -> None:
    """Shows what is known of NAME: files, licences, published scores, costs.

    What nobody stated is not there.

    \b
    Examples:
      ris-models show evf-sam-multitask
      ris-models show refcoco --json
    """
    entry = read_table().named(name)
    if as_json:
        print_json(as_data(entry), indent=2)
    else:
        click.echo("\n".join(map(one_line, _lines(entry))))


@main.command(cls=RisCommand)
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder to put copies of the files in, too.",
)
@click.option(
    "--accept-licence",
    metavar="WORD",
    help="Terms that you accept, where NAME asks for it; `ris-models show` has the word.",
)
@_json_option
def fetch(name: str, out: Path | None, accept_licence: str | None, as_json: bool) -> None:
    """Fetches the files of NAME, or a bundle at hf://ORGANISATION/NAME@REVISION.

    Says licence and source of NAME first, then downloads what is not in the cache, verifies each
    file whose hash is known, and prints where the files are. A download that was interrupted goes
    on where it was, but for a file whose hash is not known. HF_HOME says where the cache is,
    HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HTTPS_PROXY are honoured.

    \b
    Examples:
      ris-models fetch sam-vit-b
      ris-models fetch bert-base-uncased --out checkpoints/bert
      ris-models fetch hf://org/name
    """
    if is_address(name):
        if out is not None:
            raise RisError("a bundle stays in the cache, so leave --out out; copy its folder")
        _fetch_bundle(parse(name), as_json)
        return

    entry = read_table().named(name)
    require_accepted(entry, accept_licence)
    click.echo("\n".join(announced(entry)), err=True)
    with DownloadProgress() as progress:
        fetched = fetch_entry(entry, progress, verify=True)
    for file in unverified(entry):
        click.echo(f"{file.name}: no hash is known, so it is not verified", err=True)
    if out is not None:
        fetched = place(fetched, out)
    if as_json:
        print_json(_as_data(fetched), indent=2)
    elif fetched.files:
        click.echo("\n".join(_fetched_lines(fetched)))
    if entry.by_hand:
        file = entry.by_hand[0]
        way = "give its path to the command that wants it"
        if _can_be_exported(entry):
            way = f"ris-export --model {entry.name} {option_of(file)} {file.name}"
        raise by_hand(entry, file, way)


@main.command("push", cls=RisCommand)
@click.argument("bundle", type=click.Path())
@click.argument("address")
@click.option(
    "--licence",
    metavar="WORD",
    help="The licence that the weights allow the bundle to be published under, such as apache-2.0.",
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@_json_option
def push_bundle(
    bundle: str, address: str, licence: str | None, private: bool, as_json: bool
) -> None:
    """Publishes BUNDLE at ADDRESS, hf://ORGANISATION/NAME, with a model card.

    The card is written from the manifest. The files are verified first, and appear in one commit.

    \b
    Examples:
      ris-models push ris-bundle hf://org/name --licence apache-2.0
      ris-models push ris-bundle hf://org/name --licence mit --private
    """
    target = parse(address)
    require_publishable(open_bundle(bundle, verify=False).manifest, target, licence)
    pushed = push(open_bundle(bundle), target, licence, private=private)
    if as_json:
        print_json(pushed_data(pushed), indent=2)
    else:
        click.echo(pushed_line(pushed))


def pushed_line(pushed: Pushed) -> str:
    """What was published, and how it is opened."""
    return (
        f"Published {pushed.files} files: {pushed.url}\n  ris-infer --bundle {pushed.address} ..."
    )


def pushed_data(pushed: Pushed) -> dict[str, Any]:
    """The same for programs."""
    return {"address": str(pushed.address), "url": pushed.url, "files": pushed.files}


def announced(entry: Entry) -> list[str]:
    """What a user has to know before an entry is downloaded: source and licences."""
    places = dict.fromkeys(file.place for file in entry.files)
    lines = [f"{entry.name}: {entry.title}"]
    lines += [f"  from {place}" for place in places]
    lines += [f"  {line}" for line in _licence_lines(entry)]
    return [one_line(line) for line in lines]


def _fetch_bundle(address: Address, as_json: bool) -> None:
    with DownloadProgress() as progress:
        folder = fetch_bundle(address, progress, verify=True)
    bundle: Bundle = open_bundle(folder, verify=False)
    if as_json:
        print_json({"address": str(address), "bundle": str(folder)}, indent=2)
        return
    manifest = bundle.manifest
    click.echo(str(folder))
    click.echo(f"{address}: {manifest.family}, {manifest.precision}, verified", err=True)


def _fetched_lines(fetched: FetchedEntry) -> Iterator[str]:
    """Where the files are, and the options that take them."""
    yield from map(str, fetched.files.values())
    for repository, commit in fetched.commits.items():
        yield f"  of {repository}, commit {commit}"
    for role, path in fetched.options.items():
        yield f"  {OPTIONS[role]} {path}"
    if _can_be_exported(fetched.entry) and not fetched.entry.by_hand:
        yield f"Next: ris-export --model {fetched.entry.name}"


def _can_be_exported(entry: Entry) -> bool:
    return entry.kind == "model" and is_known(entry) and not entry.refused


def _as_data(fetched: FetchedEntry) -> dict[str, Any]:
    return {
        "name": fetched.entry.name,
        "files": {name: str(path) for name, path in fetched.files.items()},
        "commits": dict(fetched.commits),
        "options": {OPTIONS[role]: str(path) for role, path in fetched.options.items()},
        "by_hand": {file.name: file.page for file in fetched.entry.by_hand},
    }


def _download_size(entry: Entry) -> str:
    if entry.by_hand:
        return "by hand"
    return "" if entry.bytes is None else size(entry.bytes)


def _licence_lines(entry: Entry) -> Iterator[str]:
    stated = entry.licences
    whats = (("code", stated.code), ("weights", stated.weights), ("data", stated.data))
    known = [f"{what} {word}" for what, word in whats if word]
    if entry.kind != "data" and stated.weights is None:
        known.append("weights not stated")
    yield f"licences: {', '.join(known) or 'not stated'}"
    if stated.note:
        yield f"  {stated.note}"


def _lines(entry: Entry) -> Iterator[str]:
    """All that is known of an entry, for people."""
    yield f"{entry.name}: {entry.title}"
    if entry.refused:
        yield f"  cannot be exported: it {entry.refused}"
    elif not is_known(entry):
        yield f"  cannot be exported: this version has no family {entry.family}"
    if entry.family:
        preset = f", preset {entry.preset}" if entry.preset else ""
        yield f"  family {entry.family}{preset}"
    if entry.page:
        yield f"  page: {entry.page}"
    if entry.parameters is not None:
        yield f"  {entry.parameters:.1f} M parameters"
    for line in _licence_lines(entry):
        yield f"  {line}"
    if entry.terms:
        yield f"  asks for --accept-licence {entry.terms.word}: {entry.terms.words}"
    yield from _cost_lines(entry)
    yield "  files:"
    for file in entry.files:
        yield from _file_lines(file)
    if entry.scores:
        yield "  published scores, percent:"
    for score in entry.scores:
        yield f"    {score.data:<16} {score.measure:<5} {score.value:6.2f}  {score.source}"
    for note in entry.notes:
        yield f"  {note}"


def _cost_lines(entry: Entry) -> Iterator[str]:
    cost = entry.operations
    parts = (("a first mask", cost.first_mask), ("the next of that picture", cost.next_mask))
    known = [f"{what} {value:,.1f}" for what, value in parts if value is not None]
    if known:
        yield f"  10^9 operations: {', '.join(known)}"
    if entry.export_memory is not None:
        yield f"  an export takes up to {entry.export_memory:.1f} GB of memory"


def _file_lines(file: PublishedFile) -> Iterator[str]:
    by_hand = ", by hand" if file.source is None else ""
    known = [] if file.bytes is None else [size(file.bytes)]
    known += [] if file.sha256 is None else [f"sha256 {file.sha256}"]
    yield f"    {file.name}  {file.place}{by_hand}"
    if known:
        yield f"      {', '.join(known)}"
    if file.note:
        yield f"      {file.note}"
