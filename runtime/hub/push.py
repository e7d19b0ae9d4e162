"""Publishing a bundle on a Hub: its files and a model card, in one commit."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

from ris.engines.errors import HubError
from ris.engines.text import quoted
from ris.runtime.bundle import MANIFEST, Bundle
from ris.runtime.hub import failures
from ris.runtime.hub.address import Address
from ris.runtime.hub.card import model_card
from ris.runtime.hub.download import library
from ris.runtime.hub.models import Entry, Table, read_table
from ris.runtime.manifest import Manifest

CARD = "README.md"
"""The model card's file."""

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
        HubError: Where no word was said, it is none, or the weights' licence contradicts it.
    """
    stated = entry.licences.weights if entry else None
    example = stated or "apache-2.0"
    if licence is None:
        made_up = manifest is not None and not manifest.source.trained
        known = f" ({entry.name}: {stated})" if entry and stated else ""
        whose = "that you give it" if made_up else f"of its weights{known}"
        raise HubError(
            f"a bundle is published under the licence {whose}; say which, such as"
            f" --licence {example}. It has to be one that lets you pass the weights on"
        )
    if not _WORD.fullmatch(licence):
        raise HubError(
            f"--licence {quoted(licence)} is no licence word of a Hub; they are like {example}, or"
            " other"
        )
    if entry is not None and stated is not None and licence != stated:
        raise HubError(
            f"the weights of {entry.name} are under {stated}, which contradicts --licence"
            f" {licence}; say --licence {stated}"
        )
    return licence


def entry_of(manifest: Manifest, table: Table | None = None) -> Entry | None:
    """The published model that a bundle was made from by name.

    table: where it is looked up; None for `read_table`. None where it has no name, or the table
    does not have it any more.
    """
    published = manifest.source.published
    return None if published is None else (table or read_table()).by_name.get(published.name)


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


def push(bundle: Bundle, address: Address, licence: str | None, *, private: bool = False) -> Pushed:
    """Publishes a bundle: the files that its manifest names, the manifest, and a card.

    Large files go to the Hub's large-file storage first, and all appears in one commit. What the
    Hub has already is not sent again.

    Args:
        bundle: The bundle, whose files were verified when it was opened.
        address: The repository, and the branch where it is not the main one. It is made where it is
            not there.
        licence: The licence word.
        private: Make a new repository private.

    Raises:
        HubError: Where the licence word is missing or wrong (`require_licence`), or the Hub
            refuses.
    """
    entry = entry_of(bundle.manifest)
    word = require_licence(licence, entry, bundle.manifest)
    require_login(address)
    hub = library()
    api = hub.HfApi(library_name="ris-runtime")
    card = model_card(bundle, address, word, entry)
    names = [*sorted(bundle.hashes()), MANIFEST]
    additions = [hub.CommitOperationAdd(name, str(bundle.path / name)) for name in names]
    additions.append(hub.CommitOperationAdd(CARD, card.encode()))
    try:
        with warnings.catch_warnings(action="ignore"):
            api.create_repo(address.repository, private=private or None, exist_ok=True)
            commit = api.create_commit(
                address.repository,
                additions,
                commit_message=f"A bundle of {bundle.manifest.family}, {bundle.manifest.precision}",
                revision=address.revision,
            )
    except Exception as error:
        what = f"publishing at {address}"
        raise failures.explained(error, what, address.repository) from None
    return Pushed(Address(address.repository, commit.oid), commit.commit_url, len(additions))
