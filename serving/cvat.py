"""An auto-annotation function for CVAT: phrases to masks, on the machine that runs `cvat-cli`.

    cvat-cli task auto-annotate 42 --function-module ris.serving.cvat \\
        -p bundle=str:ris-bundle -p "phrases=str:person=left man; dog=the brown dog"

CVAT's server sends the pictures and takes the shapes; it needs nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from ris.engines.errors import EngineError, ExpressionError, ImageError, RisError
from ris.engines.text import echoed
from ris.runtime import Model, Segmentation, load
from ris.runtime.asking import segment_each
from ris.runtime.categories import AUTO
from ris.runtime.commands.console import find_bundle


class Context(Protocol):
    """What CVAT says about a picture: `cvat_sdk.auto_annotation.DetectionFunctionContext`."""

    @property
    def frame_name(self) -> str:
        """The picture's name in the task."""

    @property
    def conf_threshold(self) -> float | None:
        """The least score of what is returned; None: any."""

    @property
    def conv_mask_to_poly(self) -> bool:
        """Whether polygons are wanted in place of masks."""


@dataclass(frozen=True)
class Wanted:
    """A label of the task, and what is looked for in its name."""

    label: str
    """The label's name in CVAT."""

    phrases: tuple[str, ...]
    """At least one; each may give a shape."""


def read_phrases(text: str) -> list[Wanted]:
    """The labels and phrases of "person=left man|right man; dog=the brown dog; tree".

    A label without a phrase is asked by its name.

    Raises:
        RisError: Where there is none, or a label is there twice.
    """
    found: dict[str, Wanted] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        label, equals, rest = (piece.strip() for piece in part.partition("="))
        phrases = tuple(filter(None, (phrase.strip() for phrase in rest.split("|"))))
        if not label or (equals and not phrases):
            raise RisError(f"{echoed(part)} is not a label and its phrase, such as dog=the dog")
        if label in found:
            raise RisError(f"the label {echoed(label)} is there twice; write {label}=one|another")
        found[label] = Wanted(label, phrases or (label,))
    if not found:
        raise RisError(
            'there is nothing to look for: add -p "phrases=str:person=left man; dog=the brown dog"'
        )
    return list(found.values())


class PhraseFunction:
    """CVAT's detection function: each phrase is asked, and marked with its label."""

    def __init__(
        self,
        model: Model,
        wanted: Sequence[Wanted],
        no_target_threshold: float,
        tolerance: float,
        form: str | None = None,
    ) -> None:
        """Over an open model.

        Args:
            model: Asked for every picture.
            wanted: What to look for.
            no_target_threshold: Above this no-target probability nothing is marked.
            tolerance: Of polygons, in pixels.
            form: The form that phrases are asked in. None: the model's own choice.

        Raises:
            RisError: For numbers out of range, and for an expression that no picture can be asked.
        """
        if not 0 <= no_target_threshold <= 1:
            raise RisError(f"no_target is a probability from 0 to 1, not {no_target_threshold}")
        if not tolerance >= 0:
            raise RisError(f"the tolerance is a number of pixels from 0 up, not {tolerance}")
        self._model, self._wanted = model, wanted
        self._threshold, self._tolerance, self._form = no_target_threshold, tolerance, form
        self._asked = [
            (number, phrase) for number, each in enumerate(wanted) for phrase in each.phrases
        ]
        # what cannot be asked is said now, and not after the first thousand pictures
        self._answers(Image.new("RGB", (64, 64)))

    @property
    def spec(self) -> Any:
        """CVAT's `DetectionFunctionSpec`: the labels, by their place in `wanted`."""
        import cvat_sdk.auto_annotation as cvataa

        return cvataa.DetectionFunctionSpec(
            labels=[
                cvataa.label_spec(each.label, number, type="mask")
                for number, each in enumerate(self._wanted)
            ]
        )

    def detect(self, context: Context, image: Image.Image) -> list[Any]:
        """The shapes of a picture; none for a phrase that means nothing in it.

        Raises:
            RisError: That names the picture, where it cannot be answered.
        """
        try:
            answers = self._answers(image)
        except (ImageError, EngineError) as error:
            raise type(error)(f"{echoed(context.frame_name)}: {error}") from error
        least = context.conf_threshold or 0.0
        return [
            shape
            for (number, _), answer in zip(self._asked, answers, strict=True)
            if answer.score >= least
            for shape in self._shapes(number, answer, context.conv_mask_to_poly)
        ]

    def _answers(self, image: Image.Image) -> list[Segmentation]:
        known = self._model.categories
        categories = [
            label if label in known else AUTO
            for label in (self._wanted[number].label for number, _ in self._asked)
        ]
        scene = self._model.encode_image(image)
        answers = segment_each(
            scene,
            [phrase for _, phrase in self._asked],
            categories if known else None,
            self._threshold,
            self._model.max_expressions,
            form=self._form,
        )
        for answer in answers:
            if isinstance(answer, ExpressionError):
                raise answer
        return [answer for answer in answers if isinstance(answer, Segmentation)]

    def _shapes(self, label: int, answer: Segmentation, polygons: bool) -> Iterator[Any]:
        import cvat_sdk.auto_annotation as cvataa
        from cvat_sdk.masks import encode_mask

        if answer.box is None:
            return
        if not polygons:
            x, y, width, height = answer.box
            yield cvataa.mask(label, encode_mask(answer.mask, [x, y, x + width, y + height]))
            return
        for part in answer.polygons(self._tolerance):
            yield cvataa.polygon(label, part.joined().reshape(-1).tolist())


def create(
    bundle: str = "",
    phrases: str = "",
    engine: str = "auto",
    threads: int = 0,
    no_target: float = 0.5,
    tolerance: float = 1.0,
    form: str = "",
) -> PhraseFunction:
    """What `cvat-cli` calls, with the values of its `-p`.

    Args:
        bundle: The bundle. "": as for `ris-infer`.
        phrases: Labels of the task and what to look for, as `read_phrases` has them.
        engine: As for `ris-infer --engine`.
        threads: Of the engine. 0: all cores.
        no_target: Above this no-target probability nothing is marked.
        tolerance: Of polygons, in pixels; for `--conv-mask-to-poly`.
        form: As for `ris-infer --form`. "": the model's own choice.

    Raises:
        RisError: For whatever cannot be opened or asked, in one sentence.
    """
    wanted = read_phrases(phrases)
    model = load(find_bundle(bundle or None), engine=engine, threads=threads or None)
    return PhraseFunction(model, wanted, no_target, tolerance, form or None)
