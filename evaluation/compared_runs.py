"""The answers of a folder or a file as a `Run` of a comparison."""

from __future__ import annotations

from pathlib import Path

from ris.data.datasets.refer_files import ReferFiles
from ris.engines.errors import RisError
from ris.evaluation.benchmarks import score_showing, where_compared
from ris.evaluation.compare import Expression, Run
from ris.evaluation.metrics import Counting, Mask, Tally
from ris.evaluation.predictions import Predictions
from ris.evaluation.problems import problems, references_of
from ris.evaluation.protocols.table import PROTOCOLS
from ris.evaluation.results import Answered, figures_of, read_results, read_setup
from ris.evaluation.run import AT
from ris.evaluation.scoring import Scored, mask_and_truth, rules_of
from ris.evaluation.sources import SampleSource
from ris.runtime.masks import Rle, decode_rle

PLACES = dict(zip(AT, ("the image's own size", "the model's square", "480x480"), strict=True))
"""One of `AT` -> the same for people."""

MEANINGS = {
    "oIoU": "sum of the intersections over that of the unions",
    "cIoU": "sum of the intersections over that of the unions",
    "mIoU": "mean IoU",
    "gIoU": "mean IoU, with refusals in it",
    "T_acc": "share of the targeted expressions that are not refused",
    "N_acc": "share of the untargeted expressions that are refused",
    "acc": "share of the untargeted expressions with an empty mask",
    "gres_acc": "share of the untargeted expressions with an empty mask, counted on Ref-ZOM alone",
}
"""Figure of a published evaluator -> what it is; docs/reference/evaluation.md has the formulas."""

_PRECISION = "share of the expressions whose IoU reaches the number"
_COUNTS = ("cum_I", "cum_U", "count", "zero_count")  # of the evaluators' figures


def run_of_results(folder: Path, threshold: float) -> Run:
    """The answers of `ris-eval --out` to scenes or own pictures, by the images' names.

    Args:
        folder: The folder.
        threshold: Above this no-target probability an expression counts as refused.

    Raises:
        RisError: Where there are none.
    """
    setup = read_setup(folder)
    found = sorted(read_results(folder), key=lambda result: result.image)
    if not found:
        raise RisError(f"{folder} has no results yet")
    images = [result.image for result in found for _ in result.answers]
    answers = [answer for result in found for answer in result.answers]
    return Run(
        name=str(setup["name"]),
        samples=setup["samples"],
        where=PLACES[str(setup["at"])],
        expressions=tuple(
            Expression(image, answer.expression, answer.kind, answer.targeted)
            for image, answer in zip(images, answers, strict=True)
        ),
        figures=figures_of(answers, threshold),
        no_target=tuple(answer.no_target for answer in answers),
        masks=lambda i: _decoded(answers[i]),
        left_out=tuple(sentence for result in found for sentence in result.left_out),
    )


def _decoded(answer: Answered) -> tuple[Mask, Mask]:
    size = [answer.height, answer.width]
    mask, truth = (
        decode_rle(Rle(size=size, counts=code)) for code in (answer.mask, answer.truth_mask)
    )
    return mask, truth


def run_of_answers(
    name: str, path: Path, source: SampleSource, files: ReferFiles, protocol: str
) -> Run:
    """A file of answers to a published data set, as one evaluator counts it.

    Args:
        name: Whose answers, for people.
        path: The file.
        source: What was asked.
        files: The data set.
        protocol: One of `PROTOCOLS`.

    Raises:
        RisError: Where the file cannot be read, or the evaluator does not count the data set.
    """
    answers, split = Predictions(path), source.split or "val"
    scored = score_showing(files, split, protocol, answers)
    keys = [answers.find(q.reference_id, q.sentence_id, q.text) for q in scored.questions]
    left_out = [f"{name}: {sentence}" for sentence in problems([scored], answers.doubled)]
    if scored.stops:
        left_out.append(f"{protocol} would stop at {references_of(scored, sorted(scored.stops))}")
    return Run(
        name=name,
        samples=source.to_dict(),
        where=where_compared(protocol, files.name),
        expressions=expressions_of(scored, files),
        figures=scored.figures,
        no_target=tuple(None if key is None else answers.no_target(key) for key in keys),
        masks=lambda i: mask_and_truth(files, protocol, answers, scored.questions[i]),
        left_out=tuple(left_out),
    )


def expressions_of(scored: Scored, files: ReferFiles) -> tuple[Expression, ...]:
    """What an evaluator asked; an image's name is its number in instances.json."""
    return tuple(
        Expression(str(question.image_id), question.text, "expression", question.targeted)
        for question in scored.questions
    )


def published_counting(protocol: str, dataset: str) -> Counting:
    """A published evaluator's way of counting, with the figures under its own names.

    Raises:
        RisError: Where it does not count the data set.
    """
    rules = rules_of(protocol, dataset)
    names = [name for name in rules.metrics(Tally().figures()) if name not in _COUNTS]
    metrics = {name: MEANINGS.get(name, _PRECISION) for name in names}
    return Counting(protocol, PROTOCOLS[protocol].source, metrics, rules.metrics)
