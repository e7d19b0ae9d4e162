"""The published evaluators, a row each: where they differ, and what they share.

/docs/reference/evaluation.md has the rules in words, with their sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ris.evaluation.protocols import counting, questions
from ris.evaluation.protocols.counting import Count, Metrics, Sum
from ris.evaluation.protocols.printed import cgformer_lines, dmmi_lines, lavt_lines, plain_lines
from ris.evaluation.protocols.questions import Asking, Fault
from ris.evaluation.protocols.truths import OWN, OwnSize, Scaled, Truth

REFCOCO = ("refcoco", "refcoco+", "refcocog")
"""The data sets with one object a reference."""


@dataclass(frozen=True)
class Rules:
    """How one evaluator treats one kind of data set."""

    asking: Callable[[str], Asking]
    """The split that is asked -> which expressions are asked."""

    truth: Truth
    """How the truth of an expression is made."""

    refusals: bool
    """Whether the no-target head is read."""

    count: Count
    """What one answer adds."""

    metrics: Sum
    """The figures of all answers."""

    lines: Callable[[Metrics], list[str]] = plain_lines
    """What it prints of them."""


@dataclass(frozen=True)
class Protocol:
    """A published evaluator."""

    name: str
    """As `--protocol` takes it."""

    source: str
    """Whose code it is."""

    rules: dict[str, Rules]
    """Data set -> its rules; a data set that is not here cannot be counted by this evaluator."""


def _always(asking: Asking) -> Callable[[str], Asking]:
    return lambda split: asking


def _layers_asking(text: Callable[[object], str], *more: Fault, shorter: bool = True) -> Asking:
    """Of the loaders that decode an outline's layers as they are."""
    faults = (
        questions.unknown_annotation,
        *more,
        questions.unreadable_layers,
        questions.not_numbers,
    )
    return Asking(text, faults, shorter=shorter)


def _one_object(split: str) -> Asking:
    """ReLA's and the released code's loader of RefCOCO/+/g."""
    return Asking(
        questions.raw,
        (
            questions.other_split(split),
            questions.unknown_annotation,
            questions.other_image,
            questions.empty_box,
            questions.empty_outline,
            questions.no_polygon,
            questions.only_crowds,
            questions.run_length_code,
            questions.not_numbers,
        ),
        drops=(questions.no_polygon,),
    )


_ANY_OBJECTS = Asking(
    questions.raw,
    (
        questions.mixed_no_target,
        questions.unknown_object,
        questions.without_object,
        questions.empty_outline,
        questions.no_polygon,
        questions.only_crowds,
        questions.run_length_code,
        questions.not_numbers,
    ),
    exact_split=True,
)

_ZOM = Asking(
    questions.raw,
    (
        questions.without_source,
        questions.unknown_annotation,
        questions.without_object,
        questions.unreadable_layers,
        questions.not_numbers,
    ),
    later_truth=True,
)

_LAVT = Rules(
    _always(_layers_asking(questions.raw, questions.without_sentence_ids)),
    OwnSize(480, overlap=False),
    refusals=False,
    count=counting.plain,
    metrics=counting.lavt_metrics,
    lines=lavt_lines,
)
_DMMI = Rules(
    _LAVT.asking,
    OwnSize(480, overlap=True),
    refusals=False,
    count=counting.plain,
    metrics=counting.lavt_metrics,
    lines=dmmi_lines,
)
_DMMI_ZOM = Rules(
    _always(_ZOM),
    OwnSize(480, overlap=True),
    refusals=False,
    count=counting.plain,
    metrics=counting.dmmi_zom_metrics,
    lines=dmmi_lines,
)
_CGFORMER = Rules(
    _always(_layers_asking(questions.sent, questions.empty_box, shorter=False)),
    OwnSize(None, overlap=False),
    refusals=False,
    count=counting.softened,
    metrics=counting.cgformer_metrics,
    lines=cgformer_lines,
)
_LISA = Rules(
    _always(
        Asking(
            questions.lower_sent,
            (
                questions.unknown_annotation,
                questions.unreadable_layers_if_any,
                questions.not_numbers,
            ),
        )
    ),
    OwnSize(OWN, overlap=False),
    refusals=False,
    count=counting.nothing_is_right,
    metrics=counting.lisa_metrics,
)


def _rela(asking: Callable[[str], Asking]) -> Rules:
    return Rules(asking, Scaled(480), True, counting.generalised, counting.rela_metrics)


def _released(asking: Callable[[str], Asking], refusals: bool) -> Rules:
    return Rules(asking, Scaled(1024), refusals, counting.emptied, counting.released_metrics)


_RELEASED_ZOM = Rules(
    _always(_ZOM),
    OwnSize(480, overlap=True),
    refusals=True,
    count=counting.emptied,
    metrics=counting.released_zom_metrics,
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("lavt", "LAVT's test.py", dict.fromkeys(REFCOCO, _LAVT)),
        Protocol(
            "rela",
            "ReLA's refer_evaluation.py",
            dict.fromkeys(REFCOCO, _rela(_one_object)) | {"grefcoco": _rela(_always(_ANY_OBJECTS))},
        ),
        Protocol(
            "released",
            "the model's released my_evaluation.py",
            dict.fromkeys(REFCOCO, _released(_one_object, refusals=False))
            | {"grefcoco": _released(_always(_ANY_OBJECTS), refusals=True)}
            | {"ref-zom": _RELEASED_ZOM},
        ),
        Protocol(
            "dmmi",
            "DMMI's test.py",
            dict.fromkeys(REFCOCO, _DMMI) | {"ref-zom": _DMMI_ZOM},
        ),
        Protocol("cgformer", "CGFormer's engine.py", dict.fromkeys(REFCOCO, _CGFORMER)),
        Protocol("lisa", "LISA's train_ds.py", dict.fromkeys(REFCOCO, _LISA)),
    )
}
"""Name, as `--protocol` takes it -> the evaluator."""

DEFAULTS = dict.fromkeys(REFCOCO, "lavt") | {"grefcoco": "rela", "ref-zom": "dmmi"}
"""Data set -> the evaluator that its papers use."""
