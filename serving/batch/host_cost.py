"""What the host pays beside the graphs, for the paper's sizes, in CPU milliseconds.

It reads the image file, prepares the image, and makes the mask and its run lengths.

    python -m ris.serving.batch.host_cost
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from ris.data.samples import scene_images
from ris.runtime.host import prepare_images
from ris.runtime.manifest import PICTURE, HostImage
from ris.runtime.masks import encode_rle, mask_from_logits
from ris.serving.limits import Limits

_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # the values do not change the work
IMAGES = {
    "large": HostImage(PICTURE, "square", 1024, "bilinear", True, 255, _MEAN, _STD),
    "small": HostImage("large", "square", 336, "bicubic", False, 1, _MEAN, _STD),
}
"""How an image is prepared for the paper's two image encoders."""


def cpu_milliseconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Processor time of one call, the first one left out.

    Processor time has no part in which the process waits for a busy machine.
    """
    work()
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats * 1000


def host_cost(side: int) -> dict[str, float]:
    """Milliseconds by step, and bytes.

    Of a JPEG of side x 3/4 side pixels, and of the mask of one of its objects.
    """
    [scene] = scene_images("heldout", 4, size=1024)
    width, height = side, side * 3 // 4
    picture = Image.fromarray(scene.rgb).resize((width, height))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    data = buffer.getvalue()

    truth = next(truth for truth in scene.truths if truth.targeted)
    wide = Image.fromarray(truth.mask.astype(np.float32) * 8 - 4)
    logits = np.asarray(wide.resize((256, 256), Image.Resampling.BILINEAR))

    rgb, mask = Limits().decode(data), mask_from_logits(logits, height, width)
    return {
        "file_bytes": len(data),
        "decode_ms": cpu_milliseconds(lambda: Limits().decode(data)),
        "prepare_ms": cpu_milliseconds(lambda: prepare_images(rgb, IMAGES)),
        "mask_ms": cpu_milliseconds(lambda: mask_from_logits(logits, height, width)),
        "rle_ms": cpu_milliseconds(lambda: encode_rle(mask)),
        "rle_bytes": len(encode_rle(mask)["counts"]),
    }


if __name__ == "__main__":
    for side in (640, 1024, 2048):
        cost = {name: round(value, 1) for name, value in host_cost(side).items()}
        print(f"{side}x{side * 3 // 4}:", cost)
