"""YOLO's segmentation labels, as ultralytics reads them.

`NAME.txt` for each image has a row for each part of a mask: the class's number, then x and y of
each point as shares of the image's width and height. Holes are joined to the ring of their part.
`data.yaml` has the classes' names, and the images' folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ris.engines.temporary import write_atomically
from ris.engines.text import shown
from ris.runtime.formats.places import Classes, Places
from ris.runtime.segmentation import Segmentation

NAME = "data.yaml"
"""The file of the classes, in the folder of the results."""

_SUFFIX = ".txt"
_DIGITS = 9  # more than float32 has, which ultralytics reads them as


class YoloFiles:
    """A file for each image, and one for the classes."""

    def __init__(self, places: Places, tolerance: float) -> None:
        self._places = places
        self._tolerance = tolerance
        self._classes = Classes()
        self._kept: dict[Path, str] = {}

    def files(self) -> list[Path]:
        """The files that will be written. Raises RisError where two images would have the same."""
        return [*self._places.check(_SUFFIX), self._places.folder / NAME]

    def add(self, image: Path, results: Sequence[Segmentation], more: bool) -> list[Path]:
        """Writes the answers about an image, with those that came before."""
        key = self._places.below(image)
        text = self._kept.pop(key, "") + "".join(map(self._rows, results))
        if more:
            self._kept[key] = text
        path = self._places.file(image, _SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
        return [path]

    def _rows(self, result: Segmentation) -> str:
        number = self._classes.number(result)
        height, width = result.mask.shape
        rows = ""
        for part in result.polygons(self._tolerance):
            shares = (part.joined() / (width, height)).ravel().tolist()
            rows += " ".join([str(number), *(f"{share:.{_DIGITS}g}" for share in shares)]) + "\n"
        return rows

    def finish(self) -> list[Path]:
        """Writes the classes' names."""
        root = _yaml_text(str(self._places.root))
        lines = [f"path: {root}", "train: .", "val: .", "names:"]
        lines += [f"  {i}: {_yaml_text(name)}" for i, name in enumerate(self._classes.names)]
        if not self._classes.names:
            lines[-1] += " {}"
        path = self._places.folder / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))
        return [path]


def _yaml_text(text: str) -> str:
    """Any text as YAML's double-quoted scalar, in ASCII."""
    plain = (
        one if one.isascii() and one.isprintable() and one not in '"\\' else f"\\U{ord(one):08x}"
        for one in shown(text)
    )
    return f'"{"".join(plain)}"'
