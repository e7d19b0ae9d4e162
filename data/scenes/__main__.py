"""Draws scenes as pictures to look at.

    python -m ris.data.scenes --out DIR --count N --seed S --split heldout

Writes each scene as `scene-SPLIT-SEED.png` and all of them, with expressions and masks, as
`sheet-SPLIT.png`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from ris.data.scenes.scene import make_scene
from ris.data.scenes.sheet import contact_sheet


def main() -> None:
    """The command line."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = range(args.seed, args.seed + args.count)
    for seed in seeds:
        image = Image.fromarray(make_scene(seed, args.split, args.size).image)
        image.save(args.out / f"scene-{args.split}-{seed}.png")

    sheet = args.out / f"sheet-{args.split}.png"
    contact_sheet(args.split, seeds, args.expressions, args.size).save(sheet)
    print(f"{args.count} scenes and {sheet}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ris.data.scenes", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the pictures")
    add("--count", type=int, default=6, help="how many scenes")
    add("--seed", type=int, default=0, help="seed of the first scene; the others follow")
    add("--split", choices=("train", "heldout"), default="train")
    add("--size", type=int, default=256, help="side of a scene in pixels")
    add("--expressions", type=int, default=4, help="expressions a scene on the sheet")

    args = parser.parse_args()
    if args.count < 1 or args.seed < 0 or args.size < 64:
        parser.error("--count is at least 1, --seed at least 0, --size at least 64")
    return args


if __name__ == "__main__":
    main()
