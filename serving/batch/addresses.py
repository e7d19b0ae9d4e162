"""Files of a batch by their addresses: paths of this machine, and `s3://...` or any of fsspec's.

An address that fsspec knows is a `UPath`, which has the methods of a `Path`. Writing to one is as
atomic as its storage: an object of S3 or GCS appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from ris import pip_install
from ris.engines.errors import RisError
from ris.engines.temporary import write_atomically
from ris.engines.text import echoed, reason_of
from ris.runtime.bundle import located
from ris.runtime.hub.address import is_address

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def is_remote(address: str | Path) -> bool:
    """Whether an address is fsspec's: it names a protocol."""
    return "://" in str(address)


def place(address: str | Path) -> Path:
    """The file or folder at an address.

    Raises RisError where the packages for it are missing.
    """
    if not isinstance(address, str):
        return address
    if not is_remote(address):
        return Path(address)
    try:
        from upath import UPath
    except ImportError:
        raise RisError(
            f"{echoed(address)} needs fsspec's paths: {pip_install('cpu', 'ray')}"
        ) from None
    try:
        found = UPath(address, use_listings_cache=False)  # other machines write there, too
        _ = found.fs  # imports what the protocol needs
    except (ImportError, ValueError) as error:
        raise RisError(f"{echoed(address)} cannot be used: {reason_of(error)}") from None
    return cast(Path, found)


def beside(path: Path, name: str) -> Path:
    """What a file calls `name`: an address, a whole path, or a name in the file's own folder."""
    if is_remote(name):
        return place(name)
    return path.parent / name


@contextmanager
def opened_table(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file, closed at the end of the block."""
    import pyarrow.parquet as pq

    if not is_remote(path):
        with pq.ParquetFile(path) as table:
            yield table
        return
    with path.open("rb") as file, pq.ParquetFile(file) as table:
        yield table


def write(path: Path, data: Any) -> None:
    """Writes bytes or an Arrow buffer to a file, whole or not at all.

    This holds also where another worker, on another machine, writes the same file.
    """
    if is_remote(path):
        try:
            path.write_bytes(memoryview(data).tobytes())
        except Exception as error:  # each storage has its own
            raise OSError(reason_of(error)) from error
        return

    def save(file: IO[bytes]) -> None:
        file.write(data)

    write_atomically(path, save, to_disk=True)


def remove_folder(path: Path) -> None:
    """Removes a folder with all that is in it, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        remote: Any = path
        remote.fs.rm(remote.path, recursive=True)


def files_below(folder: Path) -> list[Path]:
    """The files below a remote folder, sorted, but for hidden ones."""
    remote: Any = folder
    top = remote.path.rstrip("/")
    below = [name[len(top) :].lstrip("/") for name in remote.fs.find(top)]
    return [
        folder / name
        for name in sorted(below)
        if not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    ]


@contextmanager
def local_bundle(address: str) -> Iterator[Path]:
    """A bundle's folder on this machine: the folder itself, or a copy that lives for the block.

    One on a Hub is downloaded into Hugging Face's cache. Raises RisError where it cannot be had.
    """
    if is_address(address):
        yield located(address)
        return
    if not is_remote(address):
        yield Path(address)
        return
    remote: Any = place(address)
    with tempfile.TemporaryDirectory(prefix="ris-bundle-") as folder:
        copy = Path(folder, "ris-bundle")
        try:
            remote.fs.get(remote.path.rstrip("/") + "/", os.fspath(copy) + "/", recursive=True)
        except Exception as error:  # each storage has its own
            raise RisError(f"{echoed(address)} cannot be read: {reason_of(error)}") from None
        yield copy


class Address(click.ParamType):
    """A path or an address, as `place` returns it."""

    name = "address"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Refuses what `place` refuses."""
        try:
            return place(value)
        except RisError as error:
            self.fail(str(error), param, ctx)
