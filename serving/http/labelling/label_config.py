"""What a Label Studio project asks for: its labelling configuration, read.

https://labelstud.io/tags has the tags. Three attributes are read that the page itself ignores:
`predicted_values` of a label, as Label Studio's own backends have it, `category` of a label, and
nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from xml.etree import ElementTree

from ris.engines.errors import RisError
from ris.engines.text import echoed

BRUSH, POLYGON, BOX = "brushlabels", "polygonlabels", "rectanglelabels"
"""The kinds of region that are written, as results name them."""

ANSWER = "answer"
"""The name of the text field that gets what the model said; it holds no phrase."""

_KINDS = {"BrushLabels": BRUSH, "PolygonLabels": POLYGON, "RectangleLabels": BOX}
_LONGEST = 1_000_000  # characters of a configuration
_MOST_TAGS = 20_000  # of a configuration; one takes some 40 times its characters
_LONGEST_NAME = 1000  # characters of a label
_MOST_CONTROLS = 100  # tags that mark regions
MOST_LABELS = 1000
"""Labels of a configuration, and phrases of all of them."""


class LabelConfigError(RisError):
    """A labelling configuration that leaves no place for a mask."""


@dataclass(frozen=True)
class Label:
    """A label that a region may get."""

    name: str
    """What a region carries: the label's alias, or else its value."""

    shown: str
    """Its value, which the page shows."""

    phrases: tuple[str, ...]
    """What is asked where nobody typed a phrase: `predicted_values`, or the value."""

    category: str | None
    """The category to ask for, of models that ask by category. None: that of its name, or auto."""

    control: str
    """The name of the tag that it stands in, `from_name` of results."""

    kind: str
    """`BRUSH`, `POLYGON` or `BOX`."""

    def says(self, phrase: str) -> int | None:
        """Where the phrase has the label's value or name in it, as whole words."""
        found = self._pattern.search(phrase)
        return found.start() if found else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = "|".join(map(re.escape, sorted({self.shown, self.name})))
        return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class LabelConfig:
    """The parts of a labelling configuration that a mask needs."""

    image: str
    """The name of the image tag, `to_name` of results."""

    field: str
    """The field of a task's data that has the picture."""

    labels: tuple[Label, ...]
    """At least one, in the order of the configuration; of two with one name, the first."""

    prompts: dict[str, str | None]
    """The text fields for phrases: their name, and the field of a task's data that fills them."""

    answer: bool
    """Whether there is a text field for what the model said."""

    def label_for(self, phrase: str) -> tuple[Label, str]:
        """Which label a typed phrase is for, and the phrase itself.

        "Dog: the brown one" says it. Otherwise it is the label that the phrase names first, and the
        first of all where it names none.
        """
        head, colon, rest = phrase.partition(":")
        if colon and rest.strip():
            label = self._by_name.get(head.strip().casefold())
            if label:
                return label, rest.strip()

        named = [
            (place, -len(label.shown), number)
            for number, label in enumerate(self.labels)
            if (place := label.says(phrase)) is not None
        ]
        return self.labels[min(named)[2] if named else 0], phrase

    @cached_property
    def _by_name(self) -> dict[str, Label]:
        """The labels by value and name in small letters; of several, the first."""
        found: dict[str, Label] = {}
        for label in self.labels:
            found.setdefault(label.shown.casefold(), label)
            found.setdefault(label.name.casefold(), label)
        return found


def read_label_config(text: str) -> LabelConfig:
    """Reads a configuration.

    Raises:
        LabelConfigError: Where it is no XML, or has no picture or no labels to mark in it.
    """
    root = _parsed(text)
    images = [tag for tag in root.iter("Image") if tag.get("name")]
    if not images:
        raise LabelConfigError(
            'the labelling configuration has no <Image name="image" value="$image"/>'
        )

    image = images[0]
    name = image.get("name", "")
    value = image.get("value", "")
    if not re.fullmatch(r"\$\w+", value):
        raise LabelConfigError(
            f"<Image> of the labelling configuration has value={echoed(value)}; the name of a"
            ' field with a dollar sign is expected, such as value="$image"'
        )

    labels = tuple(islice(_labels(root, name), MOST_LABELS + 1))
    if len(labels) > MOST_LABELS or sum(len(each.phrases) for each in labels) > MOST_LABELS:
        raise LabelConfigError(
            f"the labelling configuration has more than {MOST_LABELS} labels, or phrases of labels"
        )
    if not labels:
        raise LabelConfigError(
            f"the labelling configuration has no labels to mark in {echoed(name)}: it needs"
            f' <BrushLabels name="mask" toName={echoed(name)}>, <PolygonLabels> or'
            " <RectangleLabels> with a <Label> in it"
        )
    texts = {tag.get("name", ""): tag.get("value", "") for tag in root.iter("TextArea")}
    prompts = {
        prompt: value[1:] if re.fullmatch(r"\$\w+", value) else None
        for prompt, value in texts.items()
        if prompt != ANSWER
    }
    return LabelConfig(name, value[1:], labels, prompts, ANSWER in texts)


def _parsed(text: str) -> ElementTree.Element:
    if len(text) > _LONGEST:
        raise LabelConfigError(f"the labelling configuration has {len(text)} characters")
    if (tags := text.count("<")) > _MOST_TAGS:
        raise LabelConfigError(f"the labelling configuration has {tags} tags")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities may grow beyond all bounds
        raise LabelConfigError("the labelling configuration has a document type, which is not read")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise LabelConfigError(f"the labelling configuration is not valid XML: {error}") from None


def _labels(root: ElementTree.Element, image: str) -> Iterator[Label]:
    """The labels of every tag that marks regions of the image, in the configuration's order."""
    seen = set()
    controls = 0
    for tag in root.iter():
        kind = _KINDS.get(tag.tag)
        if kind is None or tag.get("toName") != image or not tag.get("name"):
            continue
        controls += 1
        if controls > _MOST_CONTROLS:  # they may stand in one another
            raise LabelConfigError(
                f"the labelling configuration has more than {_MOST_CONTROLS} tags with labels"
            )
        for child in tag.iter("Label"):
            value = (child.get("value") or "").strip()
            name = (child.get("alias") or value).strip()
            if max(len(value), len(name), len(tag.get("name", ""))) > _LONGEST_NAME:
                raise LabelConfigError(
                    f"a label of the labelling configuration has more than {_LONGEST_NAME}"
                    " characters"
                )
            if value and name not in seen:
                seen.add(name)
                yield Label(
                    name=name,
                    shown=value,
                    phrases=_phrases(child.get("predicted_values")) or (value,),
                    category=child.get("category"),
                    control=tag.get("name", ""),
                    kind=kind,
                )


def _phrases(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in (text or "").split(","))))
