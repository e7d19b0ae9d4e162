"""Mixed requests from many threads on one model: the answers stay equal, the memory stays flat.

    python tests/soak.py --minutes 60 --engine openvino

Everything is asked once by one thread; then the threads ask at random, good requests and bad ones,
and keep some encoded images for later. Prints the memory every half minute and a verdict, and ends
with 1 where an answer differs, a request does not return, or the memory grows beyond the limit.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from ris.engines import ENGINE_NAMES
from ris.runtime import Model, RisError, Scene, Segmentation, load
from ris.runtime.image import ImageLike

REPO = Path(__file__).resolve().parent.parent
SIDES = (64, 161, 320, 640, 1001, 2400, 4000)
"""Pixels of the longer side of the pictures."""

WORDS = ("left man", "right man", "the tree", "the dog", "the red ball", "sky", "a bench", "hat")
KEPT_SCENES = 6  # by each thread
HANGS = 120.0  # seconds without an answer from a thread
SHOWN = 30.0  # seconds
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Picture:
    """Something to hand to `Model.encode_image`."""

    name: str
    """For messages."""

    image: ImageLike
    """The path, PIL image or array; some are broken."""

    draft: bool = False
    """Whether a JPEG file is decoded at a fraction of its size."""


@dataclass
class Found:
    """What the threads saw."""

    requests: int = 0
    """How many requests were answered or refused."""

    refused: int = 0
    """How many of them were refused, as they must be."""

    wrong: list[str] = field(default_factory=list)
    """A line for each answer that differs from the serial one."""

    memory: list[float] = field(default_factory=list)
    """The process's resident MiB, once a second."""

    @property
    def growth(self) -> float:
        """MiB from the second quarter of the run, as the first warms up, to the last."""
        quarter = max(len(self.memory) // 4, 1)
        after, end = self.memory[quarter : 2 * quarter] or self.memory, self.memory[-quarter:]
        return statistics.median(end) - statistics.median(after)


def pictures(folder: Path, largest: int) -> list[Picture]:
    """Pictures of every size and kind, and broken ones; files go to `folder`."""
    with Image.open(REPO / "examples/park.jpg") as park:
        rgb = park.convert("RGB")
    made: list[Picture] = []
    for side in (side for side in SIDES if side <= largest):
        small = rgb.resize((side, max(side * rgb.height // rgb.width, 1)))
        upright = small.rotate(90, expand=True)
        jpeg, png = folder / f"{side}.jpg", folder / f"{side}.png"
        small.save(jpeg)
        upright.save(png)
        kinds = {
            "JPEG": jpeg,
            "PNG": png,
            "PIL": upright,
            "array": np.asarray(small),
            "grey": np.asarray(small.convert("L")),
            "RGBA": np.asarray(upright.convert("RGBA")),
        }
        # all kinds of the small ones; of the large ones two, which take turns
        names = list(kinds) if side < 1000 else list(kinds)[len(made) % 5 :][:2]
        made += [Picture(f"{kind} {side}", kinds[kind]) for kind in names]
    made.append(Picture("draft", folder / f"{side}.jpg", draft=True))

    torn = folder / "torn.jpg"
    torn.write_bytes((folder / f"{SIDES[0]}.jpg").read_bytes()[:700])
    text = folder / "text.png"
    text.write_text("no picture")
    return [
        *made,
        Picture("torn", torn),
        Picture("text", text),
        Picture("missing", folder / "missing.png"),
        Picture("flat array", np.zeros(12, np.uint8)),
        Picture("complex array", np.zeros((8, 8), np.complex64)),
    ]


def questions() -> list[tuple[str, ...]]:
    """From one to eight expressions, and some that cannot be asked."""
    good = [WORDS[:count] for count in (1, 2, 3, 5, 8)]
    alone = [(word,) for word in WORDS[1:4]]
    return [*good, *alone, ("",), ("the tree", "   ")]


def digest(answers: Sequence[Segmentation]) -> str:
    """A hash of everything that a model answers."""
    seen = hashlib.sha256()
    for answer in answers:
        numbers = (answer.expression, answer.mask.shape, answer.score, answer.no_target)
        seen.update(repr((*numbers, answer.category, answer.notes)).encode())
        seen.update(np.packbits(answer.mask).tobytes())
        seen.update(answer.logits.tobytes())
    return seen.hexdigest()


def outcome(ask: Callable[[], list[Segmentation]]) -> str:
    """The digest of what `ask` answers, or the sentence with which it refuses.

    Any other exception is text as well, and no answer that anybody expects.
    """
    try:
        return digest(ask())
    except RisError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"crashed: {error!r}"


class Soak:
    """A model, what it is asked, and what it has to answer."""

    def __init__(self, model: Model, folder: Path, largest: int) -> None:
        """Asks everything once, in one thread."""
        self.found = Found()
        self._model = model
        self._pictures, self._questions = pictures(folder, largest), questions()
        self._expected: dict[tuple[str, tuple[str, ...]], str] = {}
        self._lock, self._end = threading.Lock(), 0.0
        self._last: dict[int, tuple[float, str]] = {}  # thread -> since when it asks what
        for picture in self._pictures:
            known: deque[tuple[Picture, Scene]] = deque(maxlen=1)  # encoded once
            for texts in self._questions:
                scene = known[0][1] if known else None
                ask = partial(self._answer, picture, scene, texts, known)
                self._expected[picture.name, texts] = outcome(ask)

    def run(self, seconds: float, threads: int, seed: int) -> Found:
        """Asks at random for that long, and returns what was seen."""
        start = time.monotonic()
        self._end = start + seconds
        asking = [
            threading.Thread(target=self._ask, args=(number, seed), daemon=True)
            for number in range(threads)
        ]
        for thread in asking:
            thread.start()
        self._watch(start, asking)
        return self.found

    def _watch(self, start: float, asking: list[threading.Thread]) -> None:
        """Notes and prints the memory until the threads end or one of them hangs."""
        process, shown = psutil.Process(), start
        while any(thread.is_alive() for thread in asking):
            time.sleep(1)
            now, resident = time.monotonic(), process.memory_info().rss / MEBIBYTE
            self.found.memory.append(resident)
            if now - shown >= SHOWN:
                shown = now
                done, wrong = self.found.requests, len(self.found.wrong)
                print(
                    f"{(now - start) / 60:6.1f} min {done:8} requests {wrong:4} wrong"
                    f" {resident:8.0f} MiB",
                    flush=True,
                )
            for since, what in list(self._last.values()):
                if now - since > HANGS:
                    self.found.wrong.append(f"{what}: no answer for {HANGS:.0f} s")
                    return

    def _ask(self, number: int, seed: int) -> None:
        """One thread: a request, a comparison, the next one."""
        draw = random.Random(f"{seed} {number}")
        kept: deque[tuple[Picture, Scene]] = deque(maxlen=KEPT_SCENES)
        while time.monotonic() < self._end:
            texts, scene = draw.choice(self._questions), None
            picture, how = draw.choice(self._pictures), "a new scene"
            if kept and draw.random() < 0.4:
                (picture, scene), how = draw.choice(kept), "a kept scene"
            elif len(texts) == 1 and not picture.draft and draw.random() < 0.5:
                how = "segment"
            keep_in = kept if scene is None and draw.random() < 0.3 else None

            what = f"{picture.name}, {how}, {texts}"
            self._last[number] = time.monotonic(), what
            if how == "segment":
                got = outcome(partial(self._segment, picture, texts[0]))
            else:
                got = outcome(partial(self._answer, picture, scene, texts, keep_in))
            self._note(got, self._expected[picture.name, texts], what)
        self._last.pop(number, None)

    def _segment(self, picture: Picture, text: str) -> list[Segmentation]:
        return [self._model.segment(picture.image, text, category=self._category)]

    def _answer(
        self,
        picture: Picture,
        scene: Scene | None,
        texts: Sequence[str],
        keep_in: deque[tuple[Picture, Scene]] | None = None,
    ) -> list[Segmentation]:
        """Asks a scene, or the picture where there is none, whose scene goes to `keep_in`."""
        if scene is None:
            scene = self._model.encode_image(picture.image, draft=picture.draft)
            if keep_in is not None:
                keep_in.append((picture, scene))
        categories = [self._category or "auto"] * len(texts)
        return scene.segment_many(texts, categories=categories)

    def _note(self, got: str, expected: str, what: str) -> None:
        with self._lock:
            self.found.requests += 1
            self.found.refused += expected.startswith("refused: ")
            if got != expected or got.startswith("crashed: "):
                self.found.wrong.append(f"{what}: {got}, expected {expected}")

    @property
    def _category(self) -> str | None:
        return "person" if self._model.categories else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=REPO / "runtime/demo-bundle")
    parser.add_argument("--engine", choices=ENGINE_NAMES, default="auto")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--largest", type=int, default=max(SIDES), help="pixels of a picture's side"
    )
    parser.add_argument("--growth", type=float, default=64, help="MiB after the warm-up, at most")
    asked = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="ris-soak-") as folder:
        model = load(asked.bundle, engine=asked.engine)
        soak = Soak(model, Path(folder), asked.largest)
        begun = psutil.Process().memory_info().rss / MEBIBYTE
        engine = model.sessions["fusion"].engine
        print(f"{engine}: every answer is known, {begun:.0f} MiB", flush=True)
        found = soak.run(asked.minutes * 60, asked.threads, asked.seed)
    for line in found.wrong[:20]:
        print(f"WRONG {line}")
    ok = not found.wrong and found.growth <= asked.growth
    print(
        f"{engine}, seed {asked.seed}: {found.requests} requests ({found.refused} of them refused)"
        f" from {asked.threads} threads in {asked.minutes:g} minutes, {len(found.wrong)} wrong;"
        f" memory {begun:.0f} MiB after the serial answers, {found.memory[-1]:.0f} at the end,"
        f" {found.growth:+.0f} from the second quarter to the last (limit {asked.growth:g}):"
        f" {'well' if ok else 'NOT WELL'}"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
