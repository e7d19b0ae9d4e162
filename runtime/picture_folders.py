"""Which files of a folder are pictures: those that are taken, and those that only look like it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ris.engines.errors import ImageError
from ris.engines.text import shown

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".avif",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".tga",
    ]
)
"""The suffixes that a folder is searched for. A file that is named outright may have any."""

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""What phones write and a plug-in of Pillow reads."""

OTHER_SUFFIXES = frozenset(
    [
        ".jxl",
        ".psd",
        ".psb",
        ".xcf",
        ".svg",
        ".exr",
        ".hdr",
        ".dds",
        ".jxr",
        ".raw",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".nrw",
        ".arw",
        ".orf",
        ".rw2",
        ".raf",
        ".pef",
        ".srw",
    ]
)
"""Pictures to whoever looks into the folder; some are read, where Pillow has a plug-in for them."""

NEEDS_HEIF = "HEIC needs pillow-heif (pip install pillow-heif)"
"""What to say of a HEIC file that is not read."""

_TO_CONVERT = "not a format that is read; convert it to JPEG or PNG"


@dataclass(frozen=True)
class FoundImages:
    """The pictures below a folder."""

    images: tuple[Path, ...]
    """Those that are taken, sorted."""

    passed_over: dict[Path, str]
    """What looks like a picture and is not taken, or a folder that cannot be opened -> why."""

    def notes(self) -> list[str]:
        """One sentence for each kind of file that was passed over: how many, the first, and why."""
        kinds: dict[tuple[str, str], list[Path]] = {}
        for path, reason in self.passed_over.items():
            kinds.setdefault((path.suffix.lower(), reason), []).append(path)
        return [
            f"passed over {_counted(len(paths), suffix)}, the first is {shown(paths[0])}: {reason}"
            for (suffix, reason), paths in kinds.items()
        ]


def _counted(number: int, suffix: str) -> str:
    what = f"{suffix} file" if suffix else "folder"
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def find_images(folder: Path, results: Path | None = None) -> FoundImages:
    """The pictures in a folder and in the folders below it.

    Linked folders are followed, and every folder is entered once. Hidden files and folders are left
    alone, with them what macOS puts beside pictures: `._NAME` and `__MACOSX`.

    Args:
        folder: The folder.
        results: Where results are written, which may be pictures: a folder below `folder` that is
            passed over. None: nowhere.

    Raises:
        ImageError: Where there is no picture; it says what was passed over.
    """
    Image.init()  # all of Pillow's formats, and those that were registered
    images: list[Path] = []
    passed_over: dict[Path, str] = {}
    for path in _files_below(folder, passed_over, results):
        suffix = path.suffix.lower()
        taken = _is_taken(suffix)
        if not taken and suffix not in HEIF_SUFFIXES | OTHER_SUFFIXES:
            continue
        if not path.is_file():
            passed_over[path] = "a link to nothing, or no regular file"
        elif taken:
            images.append(path)
        else:
            passed_over[path] = NEEDS_HEIF if suffix in HEIF_SUFFIXES else _TO_CONVERT

    found = FoundImages(tuple(sorted(images)), passed_over)
    if not images:
        said = "; ".join([f"{shown(folder)} has no images", *found.notes()])
        raise ImageError(f"{said} (looked for {' '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def _is_taken(suffix: str) -> bool:
    if suffix in IMAGE_SUFFIXES:
        return True
    if suffix in HEIF_SUFFIXES and importlib.util.find_spec("pillow_heif"):
        return True  # the reader registers it
    return suffix in OTHER_SUFFIXES | HEIF_SUFFIXES and Image.EXTENSION.get(suffix) in Image.OPEN


def _files_below(top: Path, passed_over: dict[Path, str], results: Path | None) -> Iterator[Path]:
    """The files, those of linked folders last; folders that are not entered go to the dict."""

    def note(error: OSError) -> None:
        passed_over[Path(error.filename)] = f"cannot be opened ({error.strerror})"

    written = None
    if results is not None and os.path.realpath(results) != os.path.realpath(top):
        written = os.path.realpath(results)
    entered: set[str] = set()
    waiting = [top]
    while waiting:
        for place, folders, files in os.walk(waiting.pop(0), onerror=note):
            real = os.path.realpath(place)
            if real == written:
                passed_over[Path(place)] = "the results are written there"
            if real in entered or real == written:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            waiting += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
            yield from (Path(place, name) for name in sorted(files) if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
