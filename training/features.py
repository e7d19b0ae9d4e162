"""The frozen encoders' outputs on disk, so that later passes do not run the encoders again.

This is the supplement's pre-extraction. An entry is found by content: the hash of the image's file
names it, and the folder's name holds a digest of the encoders' weights, the sizes of their input,
and the precision that they ran in. Outputs are rounded to float16 whether they are read or have
just been computed, so a run that fills the folder and one that finds it full give the same numbers.

A file is written under a temporary name and then renamed, so any number of processes may share a
folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ris.engines.errors import RisError
from ris.engines.temporary import clear_folder, write_atomically
from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.model import RISModel
from ris.reference.dfam.preprocess import CLIP_MEAN, CLIP_STD, SAM_MEAN, SAM_STD, prepare_squares
from ris.training.data import Batch, Kept
from ris.training.forward import encode
from ris.training.samples import StoredImage

_HEADERS = 1000  # bytes of an entry beside its values
_DAMAGED = (OSError, ValueError, KeyError, EOFError, ImportError, zipfile.BadZipFile, zlib.error)


def store_need(config: ModelConfig, images: int) -> int:
    """Bytes that the features of so many images take."""
    sam = config.prompt_width * config.sam.grid**2
    clip = config.clip.width * config.clip.grid**2
    return images * (2 * (sam + clip) + _HEADERS)


def store_sentence(folder: Path, config: ModelConfig, images: int) -> str:
    """What keeping the features of so many images in `folder` takes, and what there is."""
    needed = store_need(config, images) / 1e9
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free / 1e9
    enough = "" if free > needed else ", which is not enough"
    return (
        f"the features of {images} images take {needed:.1f} GB in {folder}; {free:.1f} GB are free"
        f"{enough}"
    )


def encoder_digest(model: RISModel, precision: str) -> str:
    """Sixteen hexadecimal digits of all that the encoders' outputs depend on but the image.

    precision: a word for what the encoders compute in.
    """
    config = model.config.to_dict()
    prepared = [SAM_MEAN, SAM_STD, CLIP_MEAN, CLIP_STD]
    about = [config["sam"], config["clip"], prepared, precision]
    digest = hashlib.sha256(json.dumps(about).encode())
    encoders = {"sam": model.sam.image_encoder, "clip": model.clip_dense.clip_model.visual}
    for prefix, module in encoders.items():
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{prefix}.{name}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureStore:
    """Features by the hash of an image's file, in `folder`/<digest of the model's encoders>.

    Args:
        folder: The folder, which several runs may share.
        model: The model with its frozen encoders.
        precision: A word for what the encoders compute in, such as "fp32" or "bf16".

    Raises:
        RisError: Where the folder cannot be made.
    """

    def __init__(self, folder: Path, model: RISModel, precision: str = "fp32") -> None:
        config = model.config
        self.folder = folder / encoder_digest(model, precision)
        self._shapes = (
            (config.prompt_width, config.sam.grid, config.sam.grid),
            (config.clip.grid**2, config.clip.width),
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RisError(f"{self.folder} cannot be made: {error.strerror}") from error
        clear_folder(self.folder)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.npz"

    def read(self, key: str) -> StoredImage | None:
        """One image's features; None where they are not stored, or damaged.

        key: the hash of the image's file.
        """
        try:
            with np.load(self._path(key), allow_pickle=False) as stored:
                sam, clip, frame = (stored[name] for name in ("sam", "clip", "frame"))
        except _DAMAGED:
            return None  # it will be made again
        if (sam.shape, clip.shape) != self._shapes or frame.shape != (3,):
            return None
        height, width, orientation = (int(number) for number in frame)
        return StoredImage(sam, clip, (height, width, orientation))

    def write(self, key: str, image: StoredImage) -> None:
        """Stores one image's features.

        Raises RisError where the file cannot be written.
        """
        path = self._path(key)
        frame = np.array(image.frame)
        try:
            write_atomically(
                path,
                lambda file: np.savez(file, sam=image.embeddings, clip=image.tokens, frame=frame),
            )
        except OSError as error:
            raise RisError(f"{path} cannot be written: {error.strerror}") from error

    def encode(self, model: RISModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both encoders' outputs for the batch, in its precision or float32, rounded to float16.

        Images that are not stored yet are encoded, and stored.

        Returns:
            Image embeddings float32 [B, C, s, s] and CLIP tokens float32 [B, P, w].

        Raises:
            RisError: Where a file cannot be written, or float16 cannot hold an output.
        """
        if batch.kept is None:
            return encode(model, batch.image, batch.clip_image, trained=False)

        device, kept = batch.squares.device, batch.kept
        found = {int(row): number for number, row in enumerate(kept.rows)}
        fresh = iter(range(len(batch.squares)))
        pairs = []
        for row in range(len(kept.keys)):
            if row in found:
                pairs.append((kept.embeddings[found[row]], kept.tokens[found[row]]))
            else:
                pairs.append(self._encode_one(model, batch, kept, row, next(fresh)))
        embeddings, tokens = zip(*pairs, strict=True)
        return (
            # float32 first: a CPU's autocast cannot stack float16
            torch.stack([one.to(device).float() for one in embeddings]),
            torch.stack([one.to(device).float() for one in tokens]),
        )

    def _encode_one(
        self, model: RISModel, batch: Batch, kept: Kept, row: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """The features of one image, float16 [C, s, s] and [P, w]; stores them.

        Image by image, because SAM's attention maps of a whole batch would need gigabytes, and
        because the numbers may not depend on what else is in the batch.

        Args:
            model: The model.
            batch: The batch.
            kept: What is stored of it.
            row: The image's number in the batch.
            number: Its number in the batch's `squares`.
        """
        one = prepare_squares(batch.squares[number : number + 1], model.config)
        embeddings, tokens = (value[0].half() for value in encode(model, *one, trained=False))
        if not (embeddings.isfinite().all() and tokens.isfinite().all()):
            raise RisError(
                "an image encoder's output does not fit into float16; run without --features"
            )
        image = StoredImage(embeddings.cpu().numpy(), tokens.cpu().numpy(), kept.frames[row])
        self.write(kept.keys[row], image)
        return embeddings, tokens
