"""The example scenes of this folder, and the README's picture of what a bundle answers about them.

    python examples/make_examples.py                                     # the scenes and
    expressions.jsonl python examples/make_examples.py --picture docs/images/examples.png  # the
    answers of the built-in bundle

Scenes are of the held-out split: training has seen neither these glyph variants nor these
backgrounds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ris.data.scenes import make_scene
from ris.runtime import BUILT_IN, load
from ris.runtime.masks import overlay

HERE = Path(__file__).parent
SIDE = 512  # pixels of a scene
TINT = (255, 0, 200)  # no thing has it
TILE, LINE = 256, 18  # pixels of a picture's tile, and of the line of text below it
SCENES = {  # name: number of the scene, expressions
    "park": (21240, ("left man", "right man", "the tree", "the dog")),
    "rain": (20557, ("woman on the right", "umbrella", "the cow", "all women")),
    "pets": (23055, ("cat", "both dogs", "dog at the bottom", "the horse")),
    "farm": (21139, ("left horse", "the child", "red book", "horse next to the child")),
    "table": (21755, ("red apple", "biggest apple", "the cup", "second apple from the left")),
}


def write_scenes() -> None:
    """NAME.jpg for each scene, and expressions.jsonl, which `ris-infer examples/expressions.jsonl`
    takes.
    """
    lines = []
    for name, (number, expressions) in SCENES.items():
        Image.fromarray(make_scene(number, "heldout", SIDE).image).save(
            HERE / f"{name}.jpg", quality=92
        )
        lines.append(json.dumps({"image": f"{name}.jpg", "expression": list(expressions)}))
    (HERE / "expressions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw_answers(bundle: Path, out: Path) -> None:
    """A row a scene: the scene, then each expression with its mask, as the bundle has it."""
    columns = 1 + max(len(expressions) for _, expressions in SCENES.values())
    sheet = Image.new("RGB", (columns * TILE, len(SCENES) * (TILE + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    with load(bundle) as model:
        for row, (name, (_, expressions)) in enumerate(SCENES.items()):
            scene = model.encode_image(HERE / f"{name}.jpg")
            picture = Image.open(HERE / f"{name}.jpg").convert("RGB")
            tiles = [(picture, f"{name}.jpg")]
            for answer in scene.segment_many(expressions):
                shown = Image.fromarray(overlay(np.asarray(picture), answer.mask, TINT))
                tiles.append(
                    (shown, f"{answer.expression}{': no target' if answer.is_no_target else ''}")
                )
            for column, (tile, text) in enumerate(tiles):
                place = (column * TILE, row * (TILE + LINE))
                sheet.paste(tile.resize((TILE - 4, TILE - 4), Image.Resampling.LANCZOS), place)
                draw.text((place[0] + 2, place[1] + TILE - 2), text, fill="black", font_size=13)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--picture", type=Path, help="write the answers there, in place of the scenes"
    )
    parser.add_argument(
        "--bundle", type=Path, default=BUILT_IN, help="whose answers; default: the built-in demo's"
    )
    given = parser.parse_args()
    if given.picture:
        draw_answers(given.bundle, given.picture)
    else:
        write_scenes()


if __name__ == "__main__":
    main()
