"""The frozen encoders' outputs on disk, so that later epochs do not run the encoders again.

This is the supplement's pre-extraction: one .npz an image, in float16. A file is written under a
temporary name and then renamed, so that several runs may share a folder. The folder's name holds a
digest of the encoders' weights and sizes, so that features of other weights are never read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ris.engines.errors import RisError
from ris.engines.temporary import write_atomically
from ris.reference.model import RISModel
from ris.training.data import Batch
from ris.training.forward import encode


def encoder_digest(model: RISModel) -> str:
    """Sixteen hexadecimal digits of the two image encoders' weights and configuration."""
    config = model.config.to_dict()
    digest = hashlib.sha256(json.dumps([config["sam"], config["clip"]]).encode())
    encoders = {"sam": model.sam.image_encoder, "clip": model.clip_dense.clip_model.visual}
    for prefix, module in encoders.items():
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{prefix}.{name}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureStore:
    """Features by image key, in `folder`/<digest of the model's encoders>."""

    def __init__(self, folder: Path, model: RISModel) -> None:
        self.folder = folder / encoder_digest(model)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".npz")

    def read(self, key: str) -> tuple[Tensor, Tensor] | None:
        """One image's features: (image embeddings [C, s, s], CLIP tokens [P, w]), float32.

        None where they are not stored, or damaged.
        """
        try:
            with np.load(self._path(key), allow_pickle=False) as stored:
                sam, clip = (torch.from_numpy(stored[name]).float() for name in ("sam", "clip"))
                return sam, clip
        except (OSError, ValueError, KeyError, EOFError, ImportError):
            return None
        except Exception as error:
            # errors of zipfile and zlib: the file is damaged, and will be made again
            if type(error).__name__ in ("BadZipFile", "error"):
                return None
            raise

    def write(self, key: str, embeddings: Tensor, tokens: Tensor) -> None:
        """Stores one image's features, [C, s, s] and [P, w].

        Raises RisError where the file cannot be written.
        """
        path = self._path(key)
        sam, clip = (x.detach().cpu().half().numpy() for x in (embeddings, tokens))
        try:
            write_atomically(path, lambda file: np.savez(file, sam=sam, clip=clip))
        except OSError as error:
            raise RisError(f"{path} cannot be written: {error.strerror}") from error

    def encode(self, model: RISModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both encoders' outputs for the batch: (image embeddings, CLIP tokens).

        Images that are not stored yet are encoded, and stored. Raises RisError where a file cannot
        be written.
        """
        keys = batch.raw.image_keys
        if keys is None:
            return encode(model, batch.image, batch.clip_image, trained=False)

        found = [self.read(key) for key in keys]
        pairs = [pair or self._encode_one(model, batch, i) for i, pair in enumerate(found)]
        device = batch.image.device
        embeddings = torch.stack([sam.to(device) for sam, _ in pairs])
        tokens = torch.stack([clip.to(device) for _, clip in pairs])
        return embeddings, tokens

    def _encode_one(self, model: RISModel, batch: Batch, i: int) -> tuple[Tensor, Tensor]:
        """The features of image `i` of the batch, float32; stores them.

        Image by image, because SAM's attention maps of a whole batch would need gigabytes.
        """
        image, clip_image = batch.image[i : i + 1], batch.clip_image[i : i + 1]
        embeddings, tokens = encode(model, image, clip_image, trained=False)
        assert batch.raw.image_keys is not None
        self.write(batch.raw.image_keys[i], embeddings[0], tokens[0])
        return embeddings[0].float(), tokens[0].float()
