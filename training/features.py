"""The frozen encoders' outputs on disk, so that later epochs do not run them again (the
supplement's pre-extraction).

One .npz an image in float16, written to a temporary file that is then renamed: several runs may
share a folder. The folder's name holds a digest of the encoders' weights and sizes, so features of
other weights are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ris.engines.errors import RisError
from ris.reference.model import RISModel
from ris.training.data import Batch
from ris.training.forward import encode


def encoder_digest(model: RISModel) -> str:
    """Sixteen hexadecimal digits that change with the two image encoders' weights or
    configuration.
    """
    digest = hashlib.sha256(
        json.dumps([model.config.to_dict()[k] for k in ("sam", "clip")]).encode()
    )
    parts = {"sam": model.sam.image_encoder, "clip": model.clip_dense.clip_model.visual}
    for prefix, module in parts.items():
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{prefix}.{name}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureStore:
    """Features by image key under `folder`/<digest>. Raises RisError where a file cannot be
    written.
    """

    def __init__(self, folder: Path, model: RISModel) -> None:
        self.folder = folder / encoder_digest(model)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".npz")

    def read(self, key: str) -> tuple[Tensor, Tensor] | None:
        """(image embeddings [C, s, s], clip tokens [P, w]) float32, or None where they are not
        stored or damaged.
        """
        try:
            with np.load(self._path(key), allow_pickle=False) as stored:
                return tuple(torch.from_numpy(stored[name]).float() for name in ("sam", "clip"))  # type: ignore[return-value]
        except (OSError, ValueError, KeyError, EOFError, ImportError):
            return None
        except Exception as error:  # zipfile's own errors: a damaged file is made again
            if type(error).__name__ in ("BadZipFile", "error"):
                return None
            raise

    def write(self, key: str, embeddings: Tensor, tokens: Tensor) -> None:
        """Stores one image's features, [C, s, s] and [P, w]."""
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        try:
            with temporary.open("wb") as file:
                sam, clip = (x.detach().cpu().half().numpy() for x in (embeddings, tokens))
                np.savez(file, sam=sam, clip=clip)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RisError(f"{path} cannot be written: {error.strerror}") from error

    def encode(self, model: RISModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both encoders' outputs for the batch; images that are not stored yet are encoded, and
        stored.
        """
        keys = batch.raw.image_keys
        if keys is None:
            return encode(model, batch.image, batch.clip_image, trained=False)
        found = [self.read(key) for key in keys]
        for i in [i for i, features in enumerate(found) if features is None]:
            # image by image: SAM's attention maps of a batch would need gigabytes
            one = encode(model, batch.image[i : i + 1], batch.clip_image[i : i + 1], trained=False)
            self.write(keys[i], one[0][0], one[1][0])
            found[i] = (one[0][0].float(), one[1][0].float())
        device = batch.image.device
        pairs = [pair for pair in found if pair is not None]
        return torch.stack([p[0].to(device) for p in pairs]), torch.stack(
            [p[1].to(device) for p in pairs]
        )
