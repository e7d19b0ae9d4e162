"""Publishing a bundle on a Hub: its files and a model card, in one commit."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

from ris.engines.errors import BundleError, HubError
from ris.engines.text import quoted
from ris.runtime.bundle import MANIFEST, Bundle, read_manifest
from ris.runtime.from_json import LARGEST
from ris.runtime.hub import failures
from ris.runtime.hub.address import Address
from ris.runtime.hub.card import LIBRARY, model_card
from ris.runtime.hub.download import HubFile, fetch, library
from ris.runtime.hub.models import VARIABLE, Entry, Table, read_table
from ris.runtime.manifest import Manifest

CARD = "README.md"
"""The model card's file."""

_OURS = f"library_name: {LIBRARY}"
_WORD = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Pushed:
    """What was published."""

    address: Address
    """The bundle's address, of this very commit."""

    url: str
    """The commit's page."""

    files: int
    """How many files the bundle has, with the card."""


def require_licence(
    licence: str | None, entry: Entry | None, manifest: Manifest | None = None
) -> str:
    """The licence word to publish under.

    Args:
        licence: What the publisher says; None for nothing.
        entry: The published model that the bundle is made from; None where it has no name.
        manifest: The bundle's manifest, where there is one already.

    Raises:
        HubError: Where the model's terms forbid it, no word was said, it is none, or the weights'
            licence contradicts it.
    """
    stated = entry.licences.weights if entry else None
    if entry is not None and entry.terms is not None:
        raise HubError(f"a bundle of {entry.name} is not published from here: {entry.terms.words}")
    if licence is None:
        raise _without_word(entry, manifest)
    if not _WORD.fullmatch(licence):
        raise HubError(
            f"--licence {quoted(licence)} is no licence word of a Hub; they are of small letters,"
            f" digits, '.', '+' and '-', such as {stated or 'other'}"
        )
    if entry is not None and stated is not None and licence != stated:
        raise HubError(
            f"the weights of {entry.name} are under {stated}, which contradicts --licence"
            f" {licence}; say --licence {stated}"
        )
    return licence


def _without_word(entry: Entry | None, manifest: Manifest | None) -> HubError:
    """No licence word was said. An example stands there where the weights' licence is known."""
    right = "It has to be one that lets you pass the weights on"
    if manifest is not None and not manifest.source.trained:
        whose, how = "that you give it", "--licence WORD"
    elif entry is None:
        whose, how = "of its weights", "--licence WORD"
    elif entry.licences.weights is None:
        note = f": {entry.licences.note.rstrip('.')}" if entry.licences.note else ""
        whose = f"of its weights, and {entry.name} states none{note}"
        how = "--licence WORD, once you know it"
    else:
        stated = entry.licences.weights
        whose, how = f"of its weights ({entry.name}: {stated})", f"such as --licence {stated}"
    return HubError(f"a bundle is published under the licence {whose}; say which, {how}. {right}")


def entry_of(manifest: Manifest, table: Table | None = None) -> Entry | None:
    """The published model that a bundle was made from by name.

    table: where it is looked up; None for `read_table`. None where the bundle has no name. Raises
    HubError where the table does not have it.
    """
    published = manifest.source.published
    if published is None:
        return None
    found = (table or read_table()).by_name.get(published.name)
    if found is None:
        raise HubError(
            f"the bundle was made from {published.name}, which the table of models does not have,"
            f" so that its licence is not known here; name a table that has it in ${VARIABLE}"
        )
    return found


def require_login(address: Address) -> None:
    """Raises HubError where nobody is logged in. It is asked before an export that takes long."""
    hub = library()
    if address.folder:
        raise HubError(
            f"{address} names a folder; a bundle is published as a repository of its own"
        )
    try:
        hub.HfApi().whoami()
    except Exception as error:
        raise failures.explained(error, f"publishing at {address}", address.repository) from None


def require_publishable(manifest: Manifest, address: Address, licence: str | None) -> str:
    """The licence word to publish a bundle under, by somebody who is logged in.

    It is asked before files are read, which may take minutes. Raises HubError as `push` does.
    """
    word = require_licence(licence, entry_of(manifest), manifest)
    require_login(address)
    return word


def push(bundle: Bundle, address: Address, licence: str | None, *, private: bool = False) -> Pushed:
    """Publishes a bundle: the files that its manifest names, the manifest, and a card.

    Large files go to the Hub's large-file storage first, and all appears in one commit, in which
    the files of an older bundle go that this one does not have. What the Hub has already is not
    sent again.

    Args:
        bundle: The bundle, whose files were verified when it was opened.
        address: The repository, and the branch where it is not the main one. It is made where it is
            not there.
        licence: The licence word.
        private: Make a new repository private.

    Raises:
        HubError: Where the licence word is missing or wrong (`require_licence`), the repository is
            public and was to be private, its README.md is somebody's, or the Hub refuses.
    """
    word = require_publishable(bundle.manifest, address, licence)
    hub = library()
    api = hub.HfApi(library_name="ris-runtime")
    card = model_card(bundle, address, word, entry_of(bundle.manifest))
    names = [*sorted(bundle.hashes()), MANIFEST]
    operations = [hub.CommitOperationAdd(name, str(bundle.path / name)) for name in names]
    operations.append(hub.CommitOperationAdd(CARD, card.encode()))
    files = len(operations)
    try:
        with warnings.catch_warnings(action="ignore"):
            api.create_repo(address.repository, private=private or None, exist_ok=True)
            old = _old_files(api, address, private)
            operations += [hub.CommitOperationDelete(name) for name in sorted(old - {*names})]
            commit = api.create_commit(
                address.repository,
                operations,
                commit_message=f"A bundle of {bundle.manifest.family}, {bundle.manifest.precision}",
                revision=address.revision,
            )
    except Exception as error:
        what = f"publishing at {address}"
        raise failures.explained(error, what, address.repository) from None
    return Pushed(Address(address.repository, commit.oid), commit.commit_url, files)


def _old_files(api: Any, address: Address, private: bool) -> set[str]:
    """The files of the bundle that the repository has already; empty where it has none.

    private: whether it was to be private. Raises HubError where it is public then, or has a
    README.md that is not a bundle's.
    """
    about = api.repo_info(address.repository, revision=address.revision)
    page = f"{failures.endpoint()}/{address.repository}"
    if private and not about.private:
        raise HubError(
            f"{page} is there already and is public; make it private on its page, or name another"
            " repository"
        )
    there = {file.rfilename for file in about.siblings or ()}
    old = _old_bundle(address, about.sha) if MANIFEST in there else None
    if old is not None:
        return there & {*old.hashes()}
    if CARD in there:
        card = fetch(HubFile(address.repository, CARD, about.sha)).path
        if _OURS not in card.read_text(encoding="utf-8", errors="replace"):
            raise HubError(
                f"{page} has a {CARD} that is not of ris-runtime; name another repository, or"
                " remove that file there"
            )
    return set()


def _old_bundle(address: Address, commit: str) -> Bundle | None:
    """The bundle that is there, as its manifest says; None where that is no bundle's."""
    manifest = HubFile(address.repository, MANIFEST, commit, largest=LARGEST)
    folder = fetch(manifest).path.parent
    try:
        return Bundle(folder, read_manifest(folder))
    except BundleError:
        return None
