"""What the host pays beside the graphs, for the paper's sizes: CPU milliseconds of reading,
preparing, masks and RLE.

python -m ris.serving.batch.host_cost
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from ris.data.samples import scene_images
from ris.runtime.bundle import Preprocess, SquareImage
from ris.runtime.image import prepare_image
from ris.runtime.masks import encode_rle, mask_from_logits
from ris.serving.limits import Limits

_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # the values do not change the work
PREPROCESS = Preprocess(
    SquareImage(1024, "bilinear", _MEAN, _STD), SquareImage(336, "bicubic", _MEAN, _STD)
)


def cpu_milliseconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Processor time of one call, which waiting for a busy machine is no part of; the first call
    does not count.
    """
    work()
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats * 1000


def host_cost(side: int) -> dict[str, float]:
    """For a JPEG of side x 3/4 side pixels and the mask of one of its objects: milliseconds by
    step, and bytes.
    """
    [scene] = scene_images("heldout", 4, size=1024)
    picture = Image.fromarray(scene.rgb).resize((side, side * 3 // 4))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()
    truth = next(truth for truth in scene.truths if truth.targeted)
    small = Image.fromarray(truth.mask.astype(np.float32) * 8 - 4).resize(
        (256, 256), Image.Resampling.BILINEAR
    )
    logits = np.asarray(small)
    height, width = side * 3 // 4, side
    rgb, mask = Limits().decode(data), mask_from_logits(logits, height, width)
    return {
        "file_bytes": len(data),
        "decode_ms": cpu_milliseconds(lambda: Limits().decode(data)),
        "prepare_ms": cpu_milliseconds(lambda: prepare_image(rgb, PREPROCESS)),
        "mask_ms": cpu_milliseconds(lambda: mask_from_logits(logits, height, width)),
        "rle_ms": cpu_milliseconds(lambda: encode_rle(mask)),
        "rle_bytes": len(encode_rle(mask)["counts"]),
    }


if __name__ == "__main__":
    for side in (640, 1024, 2048):
        print(
            f"{side}x{side * 3 // 4}:",
            {name: round(value, 1) for name, value in host_cost(side).items()},
        )
