"""One file, fetched by huggingface_hub into its own cache: resumable, and verified.

huggingface_hub 2 begins a file anew after it was interrupted, which is much for weights of several
gigabytes. So the transfer goes to a partial file in its cache that the next attempt appends to, and
becomes the cache's own file when its hash is right. All else, such as where a file is linked to, is
huggingface_hub's.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ris import __version__, pip_install
from ris.engines.errors import HubError
from ris.engines.temporary import write_atomically
from ris.engines.user_folders import cache_folders, make
from ris.runtime.hub import failures, transfer
from ris.runtime.hub.transfer import COMMIT, SHA256, Target, digest

Report = transfer.Report
"""Called as a file comes: its name, the bytes that are there, and those of the whole if known."""

_OLDEST = 2  # tokenizers brings older ones, too


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on a Hub."""

    repository: str
    """The repository, "org/name"."""

    name: str
    """The file's name in it, with "/" between folders."""

    revision: str = "main"
    """A branch, a tag or a commit."""

    kind: Literal["model", "dataset"] = "model"
    """What the repository is of."""

    sha256: str | None = None
    """The expected hash; None where only the Hub knows it."""

    named_by: str = "the table of models"
    """Who expects that hash, for the message about another one."""

    largest: int | None = None
    """The most bytes that are downloaded; None for any number."""

    @property
    def words(self) -> str:
        """The file in a sentence."""
        at = "" if self.revision == "main" else f" at {self.revision[:12]}"
        return f"{self.name} of {self.repository}{at}"


@dataclass(frozen=True)
class WebFile:
    """A file of a server that is no Hub."""

    url: str
    """Where it is."""

    bytes: int | None = None
    """Its size; None: the server says it."""

    sha256: str | None = None
    """The expected hash; None where nobody published it."""

    saved_as: str | None = None
    """The name to keep it under, without a folder; None for the end of its address."""

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.saved_as or self.url.rpartition("/")[2]

    @property
    def words(self) -> str:
        """The file in a sentence."""
        return f"{self.name} of {failures.without_login(self.url).split('/')[2]}"


@dataclass(frozen=True)
class Fetched:
    """A file that is here."""

    path: Path
    """Where it is, in the cache."""

    commit: str | None
    """The revision that it is of, 40 hexadecimal digits; None of a file that is on no Hub."""


@dataclass(frozen=True)
class _About:
    """What the Hub says of a file."""

    commit: str
    """The commit that the revision stands for."""

    etag: str
    """The sha256 of a large file, the git hash of a small one."""

    bytes: int | None
    """The size; None where the Hub does not say it."""


def silent(name: str, done: int, total: int | None) -> None:
    """The `Report` that says nothing."""


def library() -> Any:
    """huggingface_hub. Raises HubError where it is not installed, or too old."""
    needed = f"models by name and hf:// addresses need huggingface_hub {_OLDEST}"
    try:
        import huggingface_hub
        import huggingface_hub.file_download
    except ImportError:
        raise HubError(f"{needed}: {pip_install('hub')}") from None
    version = huggingface_hub.__version__
    if int(version.partition(".")[0]) < _OLDEST:
        raise HubError(f"{needed}, here is {version}: {pip_install('hub')}")
    return huggingface_hub


def fetch(file: HubFile, report: Report = silent, *, verify: bool = False) -> Fetched:
    """The file in the cache; what is not there is downloaded, after a part that is there already.

    Where the Hub cannot be reached, a file that was downloaded before stands for its branch, which
    a warning says.

    Args:
        file: The file.
        report: Called while it is downloaded.
        verify: Hash a file that was downloaded before, too, and download it again where it is
            damaged. What is downloaded now is verified in any case.

    Raises:
        HubError: Where it cannot be had, or is not the expected one.
    """
    hub = library()
    cached = _cached(hub, file, file.revision)
    wrong = _wrong_in_cache(file, cached, report) if cached is not None and verify else None
    if cached is not None and COMMIT.fullmatch(file.revision):
        if wrong is None:
            return Fetched(cached, file.revision)
        if not wrong.damaged:
            raise wrong.error

    try:
        about = _ask(hub, file)
    except Exception as error:
        if cached is None or not failures.may_use_cache(error):
            raise failures.explained(error, file.words, file.repository) from None
        if wrong is not None:
            raise wrong.error from None
        return _in_place_of_branch(file, cached, error)

    if cached is not None and wrong is None and _commit_of(cached, file) == about.commit:
        return Fetched(cached, about.commit)
    _require_expected(file, about)
    try:
        path = _kept(hub, file, about, _store(hub, file, about, report, verify), report)
        _note_branch(hub, file, about.commit)
    except Exception as error:
        raise failures.explained(error, file.words, file.repository) from None
    return Fetched(path, about.commit)


def fetch_from_web(file: WebFile, report: Report = silent, *, verify: bool = False) -> Fetched:
    """`fetch` for a file that is on no Hub; it is kept in this package's own cache.

    What has no expected hash is not verified, and its transfer goes on in the same call alone.
    """
    library()
    try:
        path, damaged = _own_place(file), None
        hashed = file.sha256 if verify and path.is_file() else None
        if hashed is not None and digest(path, hashed, file.name, report) != hashed:
            damaged = path.stat()
        if damaged is not None or not path.is_file():
            target = Target(
                path,
                file.name,
                file.words,
                file.url,
                headers=None,
                bytes=file.bytes or _size_of(file.url),
                expected=file.sha256,
                named_by="the table of models",
                place="XDG_CACHE_HOME",
                damaged=damaged,
            )
            transfer.download(target, report)
    except Exception as error:
        raise failures.explained(error, file.words, None) from None
    return Fetched(path, None)


def is_cached(file: HubFile | WebFile) -> bool:
    """Whether a file is here already, so that fetching it asks for no byte of it."""
    if isinstance(file, HubFile):
        return _cached(library(), file, file.revision) is not None
    return any(map(os.path.isfile, _own_places(file)))


def _own_place(file: WebFile) -> Path:
    """Where a file that is on no Hub is kept, or is to be.

    Raises HubError where no folder is known for it, OSError where none can be written.
    """
    places = _own_places(file)
    refused: OSError | None = None
    for place in places:
        if os.path.isfile(place):
            return place
    for place in places:
        try:
            make(place.parent)
        except OSError as error:
            refused = refused or error
        else:
            if os.access(place.parent, os.W_OK):
                return place
            refused = refused or PermissionError(13, "Permission denied", str(place.parent))
    raise refused or HubError(
        f"there is no folder to keep {file.words} in; set XDG_CACHE_HOME to one"
    )


def _own_places(file: WebFile) -> list[Path]:
    """Where a file that is on no Hub may be kept, in the order in which that is tried."""
    if file.name in ("", ".", "..") or "/" in file.name or "\0" in file.name:
        raise HubError(f"{failures.without_login(file.url)} does not end in the name of a file")
    key = hashlib.sha256(file.url.encode()).hexdigest()[:16]
    return [folder / "files" / key / file.name for folder in cache_folders()]


def _where(file: HubFile) -> dict[str, str]:
    return {"revision": file.revision, "repo_type": file.kind}


def _cached(hub: Any, file: HubFile, revision: str) -> Path | None:
    """The file in the cache, as of this revision; None where it is not there."""
    try:
        found = hub.try_to_load_from_cache(
            file.repository, file.name, revision=revision, repo_type=file.kind
        )
    except (OSError, ValueError) as error:
        raise failures.explained(error, file.words, file.repository) from None
    return Path(found) if isinstance(found, str) else None


def _commit_of(path: Path, file: HubFile) -> str:
    """The commit in whose folder of the cache a file lies."""
    return path.parents[file.name.count("/")].name


def _ask(hub: Any, file: HubFile) -> _About:
    """Asks the Hub what a file is."""
    url = hub.hf_hub_url(file.repository, file.name, **_where(file))
    about = hub.get_hf_file_metadata(url, headers=_headers(hub))
    commit, etag = about.commit_hash or "", about.etag or ""
    # both become names of files, so that a server could lead anywhere with them
    if not COMMIT.fullmatch(commit) or not transfer.is_hash(etag):
        raise hub.errors.FileMetadataError(f"{url} has no commit, or no hash as its ETag")
    return _About(commit, etag, about.size)


def _headers(hub: Any) -> dict[str, str]:
    """What a request says beside its address: the user's login, and which program asks."""
    built: dict[str, str] = hub.utils.build_hf_headers(
        library_name="ris-runtime", library_version=__version__
    )
    return built


def _require_expected(file: HubFile, about: _About) -> None:
    """Raises HubError where the Hub's own hash of the file is not the expected one."""
    if file.sha256 and SHA256.fullmatch(about.etag) and about.etag != file.sha256:
        raise failures.other_content(file.words, about.etag, file.sha256, file.named_by)
    if file.largest is not None and about.bytes is not None and about.bytes > file.largest:
        raise HubError(f"{file.words} has more than {file.largest >> 20} MB")


@dataclass(frozen=True)
class _Wrong:
    """What is wrong with a file of the cache."""

    damaged: bool
    """Whether it is damaged, or else as it was on the Hub, and another than the expected one."""

    error: HubError
    """The sentence, for where the Hub cannot help."""


def _wrong_in_cache(file: HubFile, cached: Path, report: Report) -> _Wrong | None:
    """What is wrong with a file of the cache; None where its hash is right, or not known."""
    # one link further is a file named by its hash; behind that may be one that others share
    return _wrong(file, _behind(cached) if cached.is_symlink() else cached, report)


def _wrong(file: HubFile, blob: Path, report: Report) -> _Wrong | None:
    """`_wrong_in_cache` of a blob, which has its hash as its name, or of another file."""
    own = blob.name if transfer.is_hash(blob.name) else None
    expected = file.sha256 or own
    if expected is None:
        return None
    found = digest(blob, expected, file.name, report)
    if found == expected:
        return None
    if found is not None and own is not None and own != expected:
        as_named = found if len(own) == len(expected) else digest(blob, own, file.name, report)
        if as_named == own:
            other = failures.other_content(file.words, found, expected, file.named_by)
            return _Wrong(False, other)
    return _Wrong(True, failures.damaged(file.words, blob))


def _store(hub: Any, file: HubFile, about: _About, report: Report, verify: bool) -> Path:
    """Puts the file's content where huggingface_hub looks for it before it downloads.

    A damaged one stays there until the right one is here.
    """
    blob = _folder(hub, file) / "blobs" / about.etag
    damaged = None
    if blob.exists():
        wrong = _wrong(file, blob, report) if verify or file.sha256 else None
        if wrong is None:
            return blob
        if not wrong.damaged:
            raise wrong.error
        damaged = blob.stat()
    target = Target(
        blob,
        file.name,
        file.words,
        hub.hf_hub_url(file.repository, file.name, revision=about.commit, repo_type=file.kind),
        headers=_headers(hub),
        bytes=about.bytes,
        expected=file.sha256 or about.etag,
        named_by=file.named_by if file.sha256 else "the Hub",
        place="HF_HOME",
        damaged=damaged,
    )
    transfer.download(target, report)
    return blob


def _kept(hub: Any, file: HubFile, about: _About, blob: Path, report: Report) -> Path:
    """Has huggingface_hub link a file that is here to where it belongs, and returns that place.

    It asks the Hub once more what the file is. Raises HubError where it then has another one.
    """
    expected = file.sha256 or about.etag
    # of the commit, since a branch may have moved on while gigabytes came
    pinned = {"revision": about.commit, "repo_type": file.kind}
    _remove_copy(_cached(hub, file, about.commit), expected, file, report)
    path = Path(hub.hf_hub_download(file.repository, file.name, **pinned))
    if path.resolve() != blob.resolve():  # a copy, where the disk has no links, or another file
        found = digest(path, expected, file.name, report)
        if found != expected:
            _remove(path, blob.parent)
            raise failures.wrong_content(
                file.words,
                found or "none",
                expected,
                file.named_by if file.sha256 else "the Hub",
            )
    return path


def _remove_copy(path: Path | None, expected: str, file: HubFile, report: Report) -> None:
    """Removes a damaged file that is no link, or huggingface_hub would return it."""
    if path is None or path.is_symlink():
        return
    if digest(path, expected, file.name, report) != expected:
        path.unlink(missing_ok=True)


def _remove(path: Path, blobs: Path) -> None:
    """Removes a file from the cache, with the blob that it is a link to."""
    if path.is_symlink():
        blob = _behind(path)
        if blob.parent == blobs:  # never anything of the user's that a server led to
            blob.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _behind(link: Path) -> Path:
    """What a link leads to, itself a link perhaps."""
    return Path(os.path.normpath(link.parent / link.readlink()))


def _in_place_of_branch(file: HubFile, cached: Path, error: Exception) -> Fetched:
    """A file that stands for its branch, since the Hub cannot be asked."""
    commit = _commit_of(cached, file)
    if not failures.is_offline(error):  # that was the user's own word
        reason = failures.explained(error, file.words, file.repository)
        warnings.warn(
            f"{reason}. Commit {commit[:12]} of the cache stands for {file.revision}",
            stacklevel=3,
        )
    return Fetched(cached, commit)


def _note_branch(hub: Any, file: HubFile, commit: str) -> None:
    """Keeps which commit a branch or a tag was, as huggingface_hub does."""
    if not COMMIT.fullmatch(file.revision):
        reference = _folder(hub, file) / "refs" / file.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(reference, lambda handle: handle.write(commit.encode()))


def _folder(hub: Any, file: HubFile) -> Path:
    """The folder of a repository in huggingface_hub's cache."""
    names = {"repo_id": file.repository, "repo_type": file.kind}
    return Path(hub.constants.HF_HUB_CACHE) / hub.file_download.repo_folder_name(**names)


def _size_of(url: str) -> int | None:
    """The size that a server says a file has; None where it says none, or has no such question."""
    hub = library()
    response = hub.get_session().head(
        url,
        headers={"Accept-Encoding": "identity"},  # or it is the size of what is compressed
        timeout=hub.constants.HF_HUB_ETAG_TIMEOUT,
    )
    if response.status_code in (405, 501):
        return None
    response.raise_for_status()
    length = response.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None
