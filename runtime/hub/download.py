"""One file, fetched by huggingface_hub into its own cache: resumable, and verified.

huggingface_hub 2 begins a file anew after it was interrupted, which is much for weights of several
gigabytes. So the transfer goes to a partial file in its cache that the next attempt appends to, and
becomes the cache's own file when its hash is right. All else, such as where a file is linked to, is
huggingface_hub's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ris import __version__, pip_install
from ris.engines.errors import HubError
from ris.engines.temporary import write_atomically
from ris.engines.user_folders import cache_folders
from ris.runtime.hub import failures

Report = Callable[[str, int, int | None], None]
"""Called as a file comes: its name, the bytes that are there, and those of the whole if known."""

_File = io.BufferedRandom | io.BufferedReader

VERIFYING = ", verifying"
"""What stands behind the name of a file that is hashed, and not downloaded."""

_OLDEST = 2  # tokenizers brings older ones, too
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


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

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2]

    @property
    def words(self) -> str:
        """The file in a sentence."""
        return f"{self.name} of {self.url.split('/')[2]}"


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

    Where the Hub cannot be asked, a file that was downloaded before stands for its branch.

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
    if cached is not None and verify:
        cached = _whole_or_removed(file, cached, report)
    if cached is not None and _COMMIT.fullmatch(file.revision):
        return Fetched(cached, file.revision)

    try:
        about = _ask(hub, file)
    except Exception as error:
        if cached is None or not failures.may_use_cache(error):
            raise failures.explained(error, file.words, file.repository) from None
        return Fetched(cached, _commit_of(cached, file))

    if cached is not None and _commit_of(cached, file) == about.commit:
        return Fetched(cached, about.commit)
    _require_expected(file, about)
    try:
        _store(hub, file, about, report)
        # of the commit, since a branch may have moved on while gigabytes came
        pinned = {"revision": about.commit, "repo_type": file.kind}
        path = Path(hub.hf_hub_download(file.repository, file.name, **pinned))
        _note_branch(hub, file, about.commit)
    except Exception as error:
        raise failures.explained(error, file.words, file.repository) from None
    return Fetched(path, about.commit)


def fetch_from_web(file: WebFile, report: Report = silent, *, verify: bool = False) -> Fetched:
    """`fetch` for a file that is on no Hub; it is kept in this package's own cache."""
    library()
    path = _own_place(file)
    try:
        if path.is_file() and verify and _digest_differs(file.sha256, path, file.name, report):
            path.unlink()
        if not path.is_file():
            size = file.bytes or _size_of(file.url)
            _download(file, _Target(path, file.url, None, size, file.sha256), report)
    except Exception as error:
        raise failures.explained(error, file.words, None) from None
    return Fetched(path, None)


def is_cached(file: HubFile | WebFile) -> bool:
    """Whether a file is here already, so that fetching it asks for no byte of it."""
    if isinstance(file, HubFile):
        return _cached(library(), file, file.revision) is not None
    return _own_place(file).is_file()


def _own_place(file: WebFile) -> Path:
    """Where a file that is on no Hub is kept. Raises HubError where no folder is known for it."""
    key = hashlib.sha256(file.url.encode()).hexdigest()[:16]
    for folder in cache_folders():
        return folder / "files" / key / file.name
    raise HubError(f"there is no folder to keep {file.words} in; set XDG_CACHE_HOME to one")


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
    if about.commit_hash is None or about.etag is None:
        raise hub.errors.FileMetadataError(f"{url} has no commit or no ETag")
    return _About(about.commit_hash, about.etag, about.size)


def _headers(hub: Any) -> dict[str, str]:
    """What a request says beside its address: the user's login, and which program asks."""
    built: dict[str, str] = hub.utils.build_hf_headers(
        library_name="ris-runtime", library_version=__version__
    )
    return built


def _require_expected(file: HubFile, about: _About) -> None:
    """Raises HubError where the Hub's own hash of the file is not the expected one."""
    if file.sha256 and _SHA256.fullmatch(about.etag) and about.etag != file.sha256:
        raise failures.other_content(file.words, about.etag, file.sha256, file.named_by)


def _whole_or_removed(file: HubFile, cached: Path, report: Report) -> Path | None:
    """A cached file whose hash is right; None where it was not, and it is out of the cache."""
    linked = cached.is_symlink()
    # one link further is a file named by its hash; behind that may be one that others share
    blob = cached.parent / cached.readlink() if linked else cached
    named = blob.name if linked else None
    if not _digest_differs(file.sha256 or named, blob, file.name, report):
        return cached
    blob.unlink(missing_ok=True)
    cached.unlink(missing_ok=True)
    return None


def _store(hub: Any, file: HubFile, about: _About, report: Report) -> None:
    """Puts the file's content where huggingface_hub looks for it before it downloads."""
    blob = _folder(hub, file) / "blobs" / about.etag
    if blob.exists():
        return
    url = hub.hf_hub_url(file.repository, file.name, revision=about.commit, repo_type=file.kind)
    expected = file.sha256 or about.etag
    _download(file, _Target(blob, url, _headers(hub), about.bytes, expected), report)


def _note_branch(hub: Any, file: HubFile, commit: str) -> None:
    """Keeps which commit a branch or a tag was, as huggingface_hub does."""
    if not _COMMIT.fullmatch(file.revision):
        reference = _folder(hub, file) / "refs" / file.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(reference, lambda handle: handle.write(commit.encode()))


def _folder(hub: Any, file: HubFile) -> Path:
    """The folder of a repository in huggingface_hub's cache."""
    names = {"repo_id": file.repository, "repo_type": file.kind}
    return Path(hub.constants.HF_HUB_CACHE) / hub.file_download.repo_folder_name(**names)


@dataclass(frozen=True)
class _Target:
    """What a transfer is from and to."""

    path: Path
    """Where the file is to be."""

    url: str
    """Where it comes from."""

    headers: dict[str, str] | None
    """What the request says beside its address."""

    bytes: int | None
    """The size of the whole; None where it is not known, and a part is of no use then."""

    expected: str | None
    """The hash: a sha256 of 64 digits, or git's of 40; None where it is not known."""


def _download(file: HubFile | WebFile, target: _Target, report: Report) -> None:
    """Transfers a file to its place, by way of a partial one beside it."""
    path = target.path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.ris-partial")
    with _alone(partial) as handle:
        if path.exists():  # another process was faster
            partial.unlink(missing_ok=True)
            return
        try:
            _append_rest(file, target, handle, report)
        except BaseException:
            if not os.fstat(handle.fileno()).st_size:
                partial.unlink(missing_ok=True)
            raise
        if target.expected and _digest(handle, target.expected) != target.expected:
            found = _digest(handle, target.expected)
            partial.unlink(missing_ok=True)
            whose = "the Hub"
            if isinstance(file, WebFile):
                whose = "the table of models"
            elif file.sha256:
                whose = file.named_by
            raise failures.wrong_content(file.words, found, target.expected, whose)
        os.fchmod(handle.fileno(), 0o666 & ~_umask())
        partial.replace(path)


def _append_rest(file: HubFile | WebFile, target: _Target, handle: _File, report: Report) -> None:
    """Downloads what the partial file lacks."""
    have = handle.seek(0, os.SEEK_END)
    if target.bytes is None or have > target.bytes:
        handle.truncate(0)
        have = handle.seek(0)
    if target.bytes is not None:
        _require_space(target.path.parent, target.bytes - have, file.words)
    report(file.name, have, target.bytes)
    counted = _Counted(handle, file.name, have, target.bytes, report)
    with _quiet():
        library().file_download.http_get(
            target.url,
            counted,
            resume_size=have,
            headers=target.headers,
            expected_size=target.bytes,
            tqdm_class=_NoBar,
        )
    handle.flush()


class _NoBar:
    """A bar as huggingface_hub wants one; what there is to show is `Report`'s."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, count: float = 1) -> None:
        """More bytes came."""


class _Counted:
    """A file that says how much is in it whenever something is written."""

    def __init__(
        self, file: _File, name: str, done: int, total: int | None, report: Report
    ) -> None:
        self._file, self._name, self._done, self._total = file, name, done, total
        self._report = report

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._done += len(data)
        self._file.flush()  # or what is in the buffer is lost with the process
        self._report(self._name, self._done, self._total)
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int) -> int:
        return self._file.seek(place)

    def truncate(self) -> int:
        self._done = self._file.truncate()  # the server sends the whole from here on
        return self._done


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[_File]:
    """The partial file, open, and locked where the file system has locks.

    Where it has none, two processes that fetch the same file at once spoil it, which its hash
    shows.
    """
    while True:
        with partial.open("ab+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if _is_there(handle, partial):  # or the one before renamed it while this one waited
                yield handle
                return


def _is_there(handle: _File, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without huggingface_hub's warning of each new attempt."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _require_space(folder: Path, needed: int, words: str) -> None:
    """Raises HubError where the disk has less than that many bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise failures.full_disk(folder, words, needed - free)


def _size_of(url: str) -> int | None:
    """The size that a server says a file has; None where it says none."""
    response = library().get_session().head(url)
    response.raise_for_status()
    length = response.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None


def _digest_differs(expected: str | None, path: Path, name: str, report: Report) -> bool:
    """Whether a file has another hash than the expected one; False where none is expected."""
    if expected is None or not (_SHA256.fullmatch(expected) or _COMMIT.fullmatch(expected)):
        return False
    if not path.is_file():
        return True
    report(f"{name}{VERIFYING}", 0, None)
    with path.open("rb") as file:
        return _digest(file, expected) != expected


def _digest(file: _File, like: str) -> str:
    """The hash of a file: its sha256, or git's where `like` is as short as that."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if len(like) == 64:
        return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    """The mask of new files' modes, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
