"""How often a precision changes what the no-target head decides: a bundle beside its FP32.

    python examples/measure_no_target.py --samples 2000 --compute bf16

Both are asked the same about drawn scenes. The reference is run by ONNX Runtime, which computes
FP16 and bfloat16 weights in FP32 on a CPU.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from ris.data.samples import AnnotatedImage, scene_images
from ris.runtime import BUILT_IN, Model, load

Array = NDArray[np.float64]


def probabilities(model: Model, image: AnnotatedImage) -> list[float | None]:
    """The no-target probability of everything that is asked of the scene."""
    asked = [truth.expression for truth in image.truths]
    return [answer.no_target for answer in model.encode_image(image.rgb).segment_many(asked)]


def report(want: Array, got: Array) -> None:
    """Prints what differs.

    Args:
        want: The reference's probabilities, [N].
        got: Those of the other precision, [N].
    """
    other = (want > 0.5) != (got > 0.5)
    moved = np.abs(got - want)
    print(
        f"refused: {np.count_nonzero(want > 0.5)} by the reference, {np.count_nonzero(got > 0.5)}"
        f" by the other; decided differently: {np.count_nonzero(other)} ({other.mean():.2%})"
    )
    if other.any():
        far = np.abs(want[other] - 0.5)
        print(
            "the reference's probability where they differ: from 0.5"
            f" {np.median(far):.3f} (median), {far.max():.3f} (largest)"
        )
    for within in (0.05, 0.1, 0.2):
        print(f"within {within} of 0.5: {np.count_nonzero(np.abs(want - 0.5) <= within)}")
    print(
        f"the probability moved by {np.median(moved):.1e} (median),"
        f" {np.quantile(moved, 0.99):.1e} (99th percentile), {moved.max():.1e} (largest)"
    )


def main() -> None:
    """Draws, asks and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--bundle", default=str(BUILT_IN))
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--compute", help="what the engine computes in; default: the bundle's")
    parser.add_argument("--reference", help="the FP32 bundle of the same weights; default: BUNDLE")
    options = parser.parse_args()

    reference = load(options.reference or options.bundle, engine="onnxruntime")
    other = load(options.bundle, engine=options.engine, compute=options.compute)
    pairs: list[tuple[float | None, float | None]] = []
    scenes = 0
    for image in scene_images("heldout", options.samples):
        scenes += 1
        pairs += zip(probabilities(reference, image), probabilities(other, image), strict=True)

    want, got = np.array(pairs, np.float64).T
    ran = ", ".join(f"{stage} {info.precision}" for stage, info in other.sessions.items())
    print(f"{len(pairs)} expressions about {scenes} scenes; {ran}")
    report(want, got)


if __name__ == "__main__":
    main()
