"""`python -m ris.reference.training.publish RUN/model.safetensors OUT`: a run's weights in FP16, to give away.

Half the size; every value is checked to survive. Metadata (the model's sizes, the step) is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ris.engines.errors import CheckpointError


def publish(weights: Path, out: Path) -> int:
    """Writes `weights` in float16 to `out`; returns its size in bytes. Raises CheckpointError where one overflows."""
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
        halves = {}
        for name in file.keys():  # noqa: SIM118 - the handle is no mapping
            value = file.get_tensor(name)
            half = value.to(torch.float16) if value.is_floating_point() else value
            if not torch.isfinite(half.float()).all():
                raise CheckpointError(f"{weights}: {name} has values that float16 cannot hold")
            halves[name] = half
    save_file(halves, out, metadata=metadata)
    out.chmod(0o644)  # safetensors writes for the owner alone
    return out.stat().st_size


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ris.reference.training.publish", description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    print(f"{args.out}: {publish(args.weights, args.out) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
