"""Bundles on a Hub: downloaded as their manifest names their files, and opened where they lie.

A bundle stays in Hugging Face's cache: the folder `snapshots/COMMIT` of its repository, or one
below it. libris opens it there, too.
"""

from __future__ import annotations

from pathlib import Path

from ris.engines.errors import BundleError, HubError
from ris.runtime.bundle import MANIFEST, Bundle, read_manifest
from ris.runtime.from_json import LARGEST
from ris.runtime.hub.address import Address
from ris.runtime.hub.download import Fetched, HubFile, Report, fetch, silent
from ris.runtime.hub.failures import MissingFileError


def fetch_bundle(address: Address, report: Report = silent, *, verify: bool = False) -> Path:
    """The folder of a bundle that is on a Hub; what is not there of it is downloaded.

    Each file is held to the hash in the bundle's manifest as it comes. `open_bundle` verifies all
    of them once more.

    Args:
        address: The bundle's address.
        report: Called while a file is downloaded.
        verify: Hash the files that were downloaded before, too, and download those again that are
            damaged.

    Raises:
        HubError: Where a file cannot be had, or is not the one that the manifest names.
        BundleError: Where the manifest is damaged or too new.
    """
    manifest = _fetch_manifest(address, report, verify)
    folder = manifest.path.parent
    try:
        bundle = Bundle(folder, read_manifest(folder))
    except BundleError as error:
        said = str(error).removesuffix("; export the bundle again")
        raise BundleError(f"{address}: {said}; tell those who published it") from None

    assert manifest.commit is not None, "a file of a Hub is of a commit"
    whose = f"the manifest of {address}"
    for name, sha256 in sorted(bundle.hashes().items()):
        file = HubFile(
            address.repository,
            address.file(name),
            manifest.commit,
            sha256=sha256,
            named_by=whose,
        )
        fetch(file, report, verify=verify)
    return folder


def _fetch_manifest(address: Address, report: Report, verify: bool) -> Fetched:
    """The manifest, which says what else there is."""
    name, revision = address.file(MANIFEST), address.revision or "main"
    file = HubFile(address.repository, name, revision, largest=LARGEST)
    try:
        found = fetch(file, report, verify=verify)
    except MissingFileError:
        raise HubError(
            f"{address} has no {MANIFEST}, so it is not a bundle; name the folder that has one"
            f" behind the repository, or export the model with ris-export"
        ) from None
    if found.path.stat().st_size > LARGEST:
        raise HubError(f"{address}: its {MANIFEST} has more than {LARGEST >> 20} MB")
    return found
