"""Which stage takes which value from where, and what in a manifest contradicts itself.

A value is an array with a name. The host gives some (`Host`), every stage gives its outputs. A
stage with an input that has the axis `expressions` runs for each question; every other stage runs
once an image, and the values that questions take from it are kept. Nothing else decides what runs
when.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ris.engines import TensorSpec
from ris.runtime.manifest import PICTURE, GraphEntry, HostImage, Manifest, Resize

Shape = tuple[int | str | None, ...]
"""Sizes of axes; "images", "expressions" or "tokens" for as many as there are; None for any."""

_KEPT_NAMES = frozenset({PICTURE, "rgb", "expressions", "categories", "file", "allow_pickle"})
"""Of no value: what golden.npz has beside values, and what `numpy.savez` takes."""

_HOST_STEPS = frozenset({"load", "prepare", "tokenize", "mask"})
"""Of no stage and no resize: the host's own steps in `Segmentation.timings`."""


class Given(NamedTuple):
    """A value, and what gives it."""

    by: str
    """The stage's name; "" for the host."""

    place: str
    """What gives it, in words."""

    dtype: str
    """Of its elements."""

    shape: Shape
    """Its shape."""


def runs_once_an_image(stage: GraphEntry) -> bool:
    """Whether no input of the stage belongs to an expression."""
    return not any("expressions" in spec.shape for spec in stage.inputs)


class Wiring:
    """What depends on what in a manifest without `problems`."""

    image_stages: tuple[str, ...]
    """The stages that run once an image, in order."""

    question_stages: tuple[str, ...]
    """The stages that run for each question, in order."""

    text_stages: tuple[str, ...]
    """Those of them that depend on the words alone: on no image, category or random number."""

    drawn_stages: tuple[str, ...]
    """Those of the stages of questions that run for each draw of random numbers."""

    mean_stages: tuple[str, ...]
    """Those that run once all draws are averaged (`Answer.mean_of`)."""

    kept: tuple[str, ...]
    """The values that questions take of an image: of its stages, and of the host's images."""

    resizes: dict[str, dict[str, Resize]]
    """For each stage its outputs that the host resizes: name of the result -> how."""

    def __init__(self, manifest: Manifest) -> None:
        stages, host = manifest.stages, manifest.host
        self.image_stages = tuple(s.name for s in stages if runs_once_an_image(s))
        questions = [s for s in stages if not runs_once_an_image(s)]
        self.question_stages = tuple(s.name for s in questions)

        of_image = set(host.images)
        for stage in stages:
            if runs_once_an_image(stage):
                of_image.update(_values_of(stage, host.resizes))
        taken = dict.fromkeys(spec.value for stage in questions for spec in stage.inputs)
        self.kept = tuple(name for name in taken if name in of_image)

        beside_words = {*self.kept, *([host.categories.value] if host.categories else [])}
        not_text = _behind({*beside_words, *host.drawn}, questions, host.resizes)
        self.text_stages = tuple(s.name for s in questions if s.name not in not_text)
        mean = [manifest.answer.mean_of] if manifest.answer.mean_of else []
        self.drawn_stages = _behind(host.drawn, questions, host.resizes, mean)
        self.mean_stages = _behind(mean, questions, host.resizes)
        self.resizes = {
            stage.name: {
                name: resize
                for name, resize in host.resizes.items()
                if any(spec.name == resize.of for spec in stage.outputs)
            }
            for stage in stages
        }


def _behind(
    values: Iterable[str],
    stages: Sequence[GraphEntry],
    resizes: dict[str, Resize],
    without: Iterable[str] = (),
) -> tuple[str, ...]:
    """Those of the stages, in their order, that take one of the values or what is made of it.

    Nothing counts as made of the values `without`.
    """
    return tuple(stage.name for stage in _made_of(values, stages, resizes, without)[1])


def _made_of(
    values: Iterable[str],
    stages: Sequence[GraphEntry],
    resizes: dict[str, Resize],
    without: Iterable[str] = (),
) -> tuple[set[str], list[GraphEntry]]:
    """The values with all that is made of them, and the stages of `_behind`."""
    known, found = set(values), []
    for stage in stages:
        if known.intersection(spec.value for spec in stage.inputs):
            known.update(set(_values_of(stage, resizes)).difference(without))
            found.append(stage)
    return known, found


def _values_of(stage: GraphEntry, resizes: dict[str, Resize]) -> list[str]:
    """The values that a stage gives, and what they are resized to."""
    own = [spec.name for spec in stage.outputs]
    return own + [name for name, resize in resizes.items() if resize.of in own]


def problems(manifest: Manifest) -> list[str]:
    """What in a manifest contradicts itself, a sentence for each; libris says the same."""
    host = manifest.host  # in the order of names, as libris has them
    host = replace(
        host,
        images=dict(sorted(host.images.items())),
        resizes=dict(sorted(host.resizes.items())),
        drawn=dict(sorted(host.drawn.items())),
    )
    manifest = replace(manifest, host=host)
    found = [*_names(manifest), *_images(manifest)]
    if found:  # what follows would say it again
        return found
    given = _given(manifest)
    found += [
        *_forms(manifest),
        *_lengths(manifest),
        *_resizes(manifest, given),
        *_stages(manifest, given),
    ]
    found += _drawn(manifest)
    return [*found, *_answer(manifest, given), *_mean(manifest, given), *_mask_rule(manifest)]


def _given(manifest: Manifest) -> dict[str, Given]:
    """All values by name."""
    return dict(_all_given(manifest))


def _all_given(manifest: Manifest) -> Iterator[tuple[str, Given]]:
    """Every value; a name that is given twice comes twice."""
    host = manifest.host
    for name, image in host.images.items():
        square: Shape = ("images", 3, image.size, image.size)
        yield name, Given("", f"host.images.{name}", "float32", square)
    text = host.text
    row: Shape = ("expressions", "tokens" if text.lengths else text.max_tokens)
    yield text.ids, Given("", "host.text.ids", "int32", row)
    if text.mask is not None:
        yield text.mask, Given("", "host.text.mask", "float32", row)
    if host.image_index is not None:
        yield host.image_index, Given("", "host.image_index", "int32", ("expressions",))
    if (table := host.categories) is not None:
        yield table.value, Given("", "host.categories", "float32", ("expressions", None))
    for name, drawn in host.drawn.items():
        numbers: Shape = ("expressions", *drawn.shape)
        yield name, Given("", f"host.drawn.{name}", "float32", numbers)
    outputs: dict[str, TensorSpec] = {}
    for stage in manifest.stages:
        for spec in stage.outputs:
            outputs[spec.name] = spec
            place = f"the stage {stage.name!r}"
            yield spec.name, Given(stage.name, place, spec.dtype, spec.shape)
    makers = {spec.name: stage.name for stage in manifest.stages for spec in stage.outputs}
    for name, resize in host.resizes.items():
        of = outputs.get(resize.of)
        maps: Shape = (*of.shape[:2], resize.size, resize.size) if of else ()
        yield name, Given(makers.get(resize.of, ""), f"host.resizes.{name}", "float32", maps)


def _names(manifest: Manifest) -> Iterator[str]:
    """A sentence for each name that two stages or two values have, or one may not have."""
    seen: set[str] = set()
    for stage in manifest.stages:
        if stage.name in seen:
            yield f"two stages are called {stage.name!r}"
        seen.add(stage.name)
    clocks = [(f"the stage {stage.name!r}", stage.name, _HOST_STEPS) for stage in manifest.stages]
    for name in manifest.host.resizes:
        clocks.append((f"host.resizes.{name}", name, _HOST_STEPS | seen))
    for place, name, taken in clocks:
        if name in taken:
            yield f"{place} has the name of another step, and steps are timed by their names"
    first: dict[str, str] = {}
    for name, given in _all_given(manifest):
        if name in _KEPT_NAMES:
            yield f"the value {name!r} has a name that is kept for something else"
        elif name in first:
            yield f"the value {name!r} is given twice, by {first[name]} and by {given.place}"
        first.setdefault(name, given.place)


def _images(manifest: Manifest) -> Iterator[str]:
    """A sentence for each image that cannot be made."""
    images = manifest.host.images
    if all(image.of != PICTURE for image in images.values()):
        yield f"host.images has no image of the {PICTURE}"
    for name, image in images.items():
        if image.of != PICTURE and image.of not in images:
            yield f"host.images.{name} is made of {image.of!r}, which is no image of the host"
        elif image.of != PICTURE and images[image.of].of != PICTURE:
            yield f"host.images.{name} is made of {image.of!r}, which is not made of the {PICTURE}"
        elif image.of != PICTURE and images[image.of].fit != "square":
            kind = f"a {images[image.of].fit} and no square"
            yield f"host.images.{name} is made of {image.of!r}, which is {kind}"
        elif image.of != PICTURE and not images[image.of].antialias:
            yield f"host.images.{name} is made of {image.of!r}, which has no 8-bit levels"
        elif not _is_made_here(image):
            smoothed = "with" if image.antialias else "without"
            yield (
                f"host.images.{name} is made in a way that this version does not have: of"
                f" {image.of!r}, fit {image.fit}, {image.filter}, {smoothed} antialias"
            )


def _is_made_here(image: HostImage) -> bool:
    if image.of == PICTURE and image.antialias:
        return image.filter == ("bicubic" if image.fit == "crop" else "bilinear")
    return image.fit == "square" and not image.antialias


def _forms(manifest: Manifest) -> Iterator[str]:
    """A sentence where the form of who names none is not there."""
    text = manifest.host.text
    if text.form is None and text.forms:
        yield "host.text.form is null, and host.text.forms has some"
    elif text.form is not None and text.form not in text.forms:
        yield f"host.text.form is {text.form!r}, which is none of host.text.forms"


def _lengths(manifest: Manifest) -> Iterator[str]:
    """A sentence where the longest row is not the last of the lengths of rows."""
    text = manifest.host.text
    if text.lengths and text.lengths[-1] != text.max_tokens:
        yield (
            f"host.text.lengths ends with {text.lengths[-1]}, and host.text.max_tokens is"
            f" {text.max_tokens}"
        )


def _resizes(manifest: Manifest, given: dict[str, Given]) -> Iterator[str]:
    """A sentence for each resize that has no meaning."""
    taken = {spec.value for stage in manifest.stages for spec in stage.inputs}
    answer = manifest.answer
    taken |= {answer.mask_logits, answer.no_target_logits or "", answer.mean_of or ""}
    outputs = {spec.name for stage in manifest.stages for spec in stage.outputs}
    seen: set[str] = set()
    for name, resize in manifest.host.resizes.items():
        place = f"host.resizes.{name} is of the value {resize.of!r}, which"
        if resize.of not in outputs:
            yield f"{place} no stage gives"
            continue
        of = given[resize.of]
        if of.dtype != "float32" or len(of.shape) != 4 or isinstance(of.shape[3], str):
            yield f"{place} is {_words(of)}, no maps [N, channels, height, width] of float32"
        elif resize.of in taken or resize.of in seen:
            # the engine hands the resized maps on in its place
            yield f"{place} is also taken as it is, or resized twice"
        seen.add(resize.of)


def _stages(manifest: Manifest, given: dict[str, Given]) -> Iterator[str]:
    """A sentence for each input and output that does not fit."""
    ran: set[str] = set()
    for stage in manifest.stages:
        for spec in stage.inputs:
            takes = f"the stage {stage.name!r} takes the value {spec.value!r}"
            value = given.get(spec.value)
            if value is None:
                yield f"{takes}, which nothing gives"
            elif value.by and value.by not in ran:
                yield f"{takes}, which the stage {value.by!r} gives, and that runs no earlier"
            elif not _fits(spec, value.dtype, value.shape):
                yield f"{takes} as {_words(spec)}; it is {_words(value)}"
        axis = "images" if runs_once_an_image(stage) else "expressions"
        for out in stage.outputs:
            if out.shape[:1] != (axis,) or any(isinstance(n, str) for n in out.shape[1:]):
                yield (
                    f"the stage {stage.name!r} gives the value {out.name!r} as {_words(out)}; its"
                    f" inputs say that the first axis is {axis}, and the only one that varies"
                )
        ran.add(stage.name)


def _fits(tensor: TensorSpec | Given, dtype: str, shape: Shape) -> bool:
    """Whether a tensor is of that kind; None in the shape is any number."""
    return (
        tensor.dtype == dtype
        and len(tensor.shape) == len(shape)
        and all(
            has == wanted or (wanted is None and isinstance(has, int))
            for has, wanted in zip(tensor.shape, shape, strict=True)
        )
    )


def _answer(manifest: Manifest, given: dict[str, Given]) -> Iterator[str]:
    """A sentence for each value of the answer that is not what it should be."""
    answer = manifest.answer
    outputs = {spec.name for stage in manifest.stages for spec in stage.outputs}
    wanted: list[tuple[str, str | None, Shape]] = [
        ("mask_logits", answer.mask_logits, ("expressions", 1, None, None)),
        ("no_target_logits", answer.no_target_logits, ("expressions", 2)),
    ]
    for field, name, shape in wanted:
        if name is None:
            continue
        place = f"answer.{field} is the value {name!r}, which"
        if name not in outputs:
            yield f"{place} no stage gives"
            continue
        value = given[name]
        if not _fits(value, "float32", shape) or value.shape[2:3] != value.shape[3:4]:
            sides = ", ".join("side" if n is None else str(n) for n in shape)
            yield f"{place} is {_words(value)}, not float32 [{sides}]"


def _mean(manifest: Manifest, given: dict[str, Given]) -> Iterator[str]:
    """A sentence for each reason why draws cannot be averaged where the manifest says."""
    answer, host, stages = manifest.answer, manifest.host, manifest.stages
    name = answer.mean_of
    if name is None:
        return
    place = f"answer.mean_of is the value {name!r}, which"
    if all(spec.name != name for stage in stages for spec in stage.outputs):
        yield f"{place} no stage gives"
        return
    if given[name].dtype != "float32":
        yield f"{place} is {_words(given[name])}, not float32"
    if name not in _made_of(host.drawn, stages, host.resizes)[0]:
        yield f"{place} depends on no random numbers"
        return
    beside, drawn = _made_of(host.drawn, stages, host.resizes, [name])
    averaged = _made_of([name], stages, host.resizes)[1]
    for stage in averaged:
        if stage in drawn:
            yield f"the stage {stage.name!r} takes random numbers beside answer.mean_of"
    for field, value in (
        ("mask_logits", answer.mask_logits),
        ("no_target_logits", answer.no_target_logits),
    ):
        if value in beside:
            yield f"answer.{field} depends on random numbers beside answer.mean_of"


def _drawn(manifest: Manifest) -> Iterator[str]:
    """A sentence for each drawn value without a use."""
    taken = {spec.value for stage in manifest.stages for spec in stage.inputs}
    for name in manifest.host.drawn:
        if name not in taken:
            yield f"host.drawn.{name} is a value that no stage takes"


def _mask_rule(manifest: Manifest) -> Iterator[str]:
    """A sentence for each thing that makes no mask of logits."""
    answer, images = manifest.answer, manifest.host.images
    if answer.of == "probabilities" and not 0 <= answer.threshold <= 1:
        yield (
            f"answer.threshold is {answer.threshold:g}, no probability from 0 to 1, and the answer"
            " is of probabilities"
        )
    letterboxes = [name for name, image in images.items() if image.fit == "letterbox"]
    if answer.letterbox_of is None and letterboxes:
        yield (
            f"answer.letterbox_of names none of the letterboxes of host.images:"
            f" {', '.join(letterboxes)}"
        )
    elif answer.letterbox_of is not None and answer.letterbox_of not in letterboxes:
        place = f"answer.letterbox_of is {answer.letterbox_of!r}"
        yield f"{place}, which is no letterbox of host.images"


def _words(tensor: TensorSpec | Given) -> str:
    """The dtype and shape for people."""
    sizes = ("any" if size is None else str(size) for size in tensor.shape)
    return f"{tensor.dtype} [{', '.join(sizes)}]"
