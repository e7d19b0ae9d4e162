"""How far PyTorch's own bfloat16 moves a bundle's masks: what an engine in bfloat16 stands beside.

`python tests/autocast_run.py BUNDLE [CHECKPOINT]` asks the bundle's golden question of the PyTorch
reference under autocast and compares with the bundle's golden values, which are FP32's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ris.export.live_reference import live_reference
from ris.runtime.bundle import open_bundle
from ris.runtime.comparing import compare
from ris.runtime.parity import load_golden


def main(folder: str, checkpoint: str | None = None) -> None:
    bundle = open_bundle(Path(folder))
    golden = load_golden(bundle)
    expressions = [str(text) for text in golden["expressions"]]
    categories = [str(name) for name in golden["categories"]] if "categories" in golden else None
    files = {"checkpoint": Path(checkpoint)} if checkpoint else None
    with torch.autocast("cpu", torch.bfloat16):
        found = live_reference(bundle, golden["rgb"], expressions, categories, files)
    print("| value | relative error | mask IoU |\n|---|---|---|")
    for name, value in found.items():
        if name not in golden or value.dtype.kind != "f":
            continue
        iou = ""
        if name == bundle.manifest.answer.mask_logits:
            ours, theirs = value > 0, golden[name] > 0
            axes = tuple(range(1, ours.ndim))
            each = (ours & theirs).sum(axes) / (ours | theirs).sum(axes).clip(1)
            iou = " ".join(f"{one:.4f}" for one in each)
        print(f"| {name} | {compare(value, golden[name]).relative:.1e} | {iou} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
