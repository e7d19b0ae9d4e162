"""Encoded images on disk, so that another evaluation need not encode them again.

Entries are found by content: the pixels, the files of the stages that run once an image, what ran
them, what the host does beside them, and which values questions take. They are written whole or not
at all, and any number of processes may share a folder. When it is full, the entries that were used
longest ago go. Each process counts only what it writes itself and looks at the whole folder when
that fills it, so several at once may pass the limit by what the others write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ris.engines import Value
from ris.engines.errors import RisError
from ris.engines.temporary import clear_folder, write_atomically
from ris.runtime import Model, Scene
from ris.runtime.host import prepare_images

_KEPT = 0.9  # of the limit, after old entries went


class FeatureCache:
    """A folder of encoded images, 6.5 MB each at full size. Not for several threads.

    `hits` and `misses` count the images that were there and those that were not.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Opens or makes the folder, which may hold `limit` bytes.

        Raises:
            RisError: Where it cannot be made.
        """
        self.folder, self.limit = folder, limit
        self.hits = self.misses = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RisError(f"{folder} cannot be made: {error.strerror}") from error

        clear_folder(folder)
        self._size = sum(size for _, size, _ in self._entries())

    def encode(self, model: Model, rgb: NDArray[np.uint8]) -> Scene:
        """`model.encode_image`, from the folder where it has the image.

        A damaged entry is written anew. Where no stage runs once an image, none is written or
        looked for.

        Raises:
            RisError: Where the folder cannot be written.
        """
        if not model.bundle.wiring.image_stages:
            return model.encode_image(rgb)
        kept = _kept_of_stages(model)
        path = self.folder / f"{self._key(model, rgb)}.npz"
        try:
            with np.load(path, allow_pickle=False) as found:
                values: dict[str, Value] = {name: found[name] for name in kept}
            os.utime(path)  # the time of the last use
            self.hits += 1
            height, width = rgb.shape[:2]
            return Scene(model, height, width, values | _images(model, rgb), {})
        except FileNotFoundError:
            pass
        except Exception:  # zipfile, numpy and the OS have many words for "damaged"
            path.unlink(missing_ok=True)

        self.misses += 1
        scene = model.encode_image(rgb)
        self._write(path, {name: _host(scene.values[name]) for name in kept})
        return scene

    def _key(self, model: Model, rgb: NDArray[np.uint8]) -> str:
        """A hash of all that an entry depends on."""
        manifest, wiring = model.bundle.manifest, model.bundle.wiring
        stages = wiring.image_stages
        files = [manifest.graphs[stage].sha256 for stage in stages]
        # another engine, version or precision rounds differently
        ran = [model.sessions[stage] for stage in stages]
        engines = [
            [info.engine, info.version, info.device, info.providers, info.activations]
            for info in ran
        ]
        images = {name: asdict(image) for name, image in manifest.host.images.items()}
        resizes = [
            {name: asdict(resize) for name, resize in wiring.resizes[stage].items()}
            for stage in stages
        ]
        host = [images, resizes, _kept_of_stages(model)]
        about = json.dumps([files, engines, host, rgb.shape], sort_keys=True)
        return hashlib.sha256(about.encode() + np.ascontiguousarray(rgb).tobytes()).hexdigest()

    def _write(self, path: Path, values: dict[str, NDArray[Any]]) -> None:
        size = sum(value.nbytes for value in values.values())
        if size > self.limit:
            return

        def save(file: IO[bytes]) -> None:
            np.savez(file, **values)  # type: ignore[arg-type]

        try:
            write_atomically(path, save)
        except OSError as error:
            raise RisError(f"{self.folder} cannot be written: {error.strerror}") from error
        self._size += size
        if self._size > self.limit:
            self._trim()

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, file) of every entry, the one used longest ago first."""
        found = []
        for path in self.folder.glob("*.npz"):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def _trim(self) -> None:
        """Removes old entries and counts what the folder holds."""
        entries = self._entries()
        self._size = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if self._size <= _KEPT * self.limit:
                break
            path.unlink(missing_ok=True)
            self._size -= size


def _kept_of_stages(model: Model) -> list[str]:
    """The values of an image that stages gave and questions take."""
    images = model.bundle.manifest.host.images
    return [name for name in model.bundle.wiring.kept if name not in images]


def _images(model: Model, rgb: NDArray[np.uint8]) -> dict[str, Value]:
    """The host's images that questions take; they are made anew."""
    images = model.bundle.manifest.host.images
    kept = images.keys() & set(model.bundle.wiring.kept)
    made = prepare_images(rgb, images) if kept else {}
    return {name: made[name] for name in kept}


def _host(value: Value) -> NDArray[Any]:
    """An engine's output in the host's memory."""
    return value if isinstance(value, np.ndarray) else value.numpy()
