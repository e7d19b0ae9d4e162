"""What a full-size export of EVF-SAM's golden weights needs, for the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evfsam_helper import official_keys

from ris.reference.evfsam.deterministic import make_tensor


def write_checkpoint(path: Path, version: str) -> Path:
    """A safetensors file with exactly the keys and shapes of an official one, golden weights.

    It is written tensor by tensor, so that it needs no more memory than the largest of them.
    """
    keys, header, end = official_keys(version), {}, 0
    for key, one in keys.items():
        size = 4
        for length in one["shape"]:
            size *= length
        header[key] = {"dtype": "F32", "shape": one["shape"], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, one in keys.items():
            file.write(make_tensor(key, one["shape"]).tobytes())
    return path


if __name__ == "__main__":  # by another process, whose memory does not count
    write_checkpoint(Path(sys.argv[1]), sys.argv[2])
