"""A run's weights in FP16, to give away: `python -m ris.training.publish`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ris.engines.errors import CheckpointError

_HELP = """`python -m ris.training.publish RUN/model.safetensors OUT`: a run's weights in FP16, to
give away.

Half the size; every value is checked to survive. Metadata (the model's sizes, the step) is kept.
With `--began-from WEIGHTS --share 0.25` a quarter of every value is that of the weights the run
began from: a mean of the two often does better than either on what training does not show (Wortsman
et al., "Robust fine-tuning of zero-shot models", 2022).
"""


def publish(weights: Path, out: Path, began_from: Path | None = None, share: float = 0.0) -> int:
    """Writes `weights` in float16 to `out`.

    Args:
        weights: A run's safetensors file; its metadata is kept.
        out: The file to write.
        began_from: Weights of the same names and shapes to mix in, or None.
        share: How much of them is in every value, 0 to 1.

    Returns:
        The size of `out` in bytes.

    Raises:
        CheckpointError: Where a value overflows, or where the two files are not of one model.
    """
    other = load_file(began_from) if began_from is not None else None
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
        halves = {}
        for name in file.keys():  # noqa: SIM118 - the handle is no mapping
            value = file.get_tensor(name)
            if not value.is_floating_point():
                halves[name] = value
                continue

            if other is not None:
                if name not in other or other[name].shape != value.shape:
                    raise CheckpointError(
                        f"{began_from} has no {name} of shape {tuple(value.shape)}: another model"
                    )
                value = torch.lerp(value.float(), other[name].float(), share)
            halves[name] = _halved(value, f"{weights}: {name}")

    save_file(halves, out, metadata=metadata)
    out.chmod(0o644)  # safetensors writes for the owner alone
    return out.stat().st_size


def _halved(value: Tensor, name: str) -> Tensor:
    """The tensor in float16; raises CheckpointError where that is not finite."""
    half = value.to(torch.float16)
    if not torch.isfinite(half.float()).all():
        raise CheckpointError(f"{name} has values that float16 cannot hold")
    return half


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ris.training.publish", description=_HELP)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--began-from", type=Path, help="weights to mix in")
    parser.add_argument("--share", type=float, default=0.0, help="how much of them, 0 to 1")
    args = parser.parse_args()

    if not 0 <= args.share <= 1 or bool(args.share) != bool(args.began_from):
        parser.error("--began-from and a --share between 0 and 1 belong together")

    try:
        size = publish(args.weights, args.out, args.began_from, args.share)
    except (CheckpointError, SafetensorError, OSError) as error:
        raise SystemExit(f"Error: {error}") from None
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
