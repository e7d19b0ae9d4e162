"""`python -m ris.data.scenes --out DIR --count N --seed S --split heldout`: scenes as pictures to
look at.

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
    parser = argparse.ArgumentParser(prog="python -m ris.data.scenes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--count", type=int, default=6, help="how many scenes")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first scene; the others follow"
    )
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    parser.add_argument("--size", type=int, default=256, help="side of a scene in pixels")
    parser.add_argument(
        "--expressions", type=int, default=4, help="expressions a scene on the sheet"
    )
    args = parser.parse_args()
    if args.count < 1 or args.seed < 0 or args.size < 64:
        parser.error("--count is at least 1, --seed at least 0, --size at least 64")
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = range(args.seed, args.seed + args.count)
    for seed in seeds:
        Image.fromarray(make_scene(seed, args.split, args.size).image).save(
            args.out / f"scene-{args.split}-{seed}.png"
        )
    sheet = args.out / f"sheet-{args.split}.png"
    contact_sheet(args.split, seeds, args.expressions, args.size).save(sheet)
    print(f"{args.count} scenes and {sheet}")


if __name__ == "__main__":
    main()
