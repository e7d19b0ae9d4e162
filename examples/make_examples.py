"""The example scenes of this folder, and expressions.jsonl, which asks about them.

    python examples/make_examples.py

Scenes are of the held-out split: training has seen neither these glyph variants nor these
backgrounds. draw_answers.py draws the README's picture.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from ris.data.scenes import make_scene

HERE = Path(__file__).parent
SIDE = 512  # pixels of a scene
SCENES = {  # name: number of the scene, expressions
    "park": (21240, ("left man", "right man", "the tree", "the dog")),
    "rain": (20557, ("woman on the right", "umbrella", "the cow", "all women")),
    "pets": (23055, ("cat", "both dogs", "dog at the bottom", "the horse")),
    "farm": (21139, ("left horse", "the child", "red book", "horse next to the child")),
    "table": (21755, ("red apple", "biggest apple", "the cup", "second apple from the left")),
}


def write_scenes() -> None:
    """NAME.jpg for each scene, and expressions.jsonl, which `ris-infer` takes."""
    lines = []

    for name, (number, expressions) in SCENES.items():
        scene = make_scene(number, "heldout", SIDE)
        Image.fromarray(scene.image).save(HERE / f"{name}.jpg", quality=92)
        lines.append(json.dumps({"image": f"{name}.jpg", "expression": list(expressions)}))

    (HERE / "expressions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_scenes()
