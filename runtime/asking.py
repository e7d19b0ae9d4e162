"""Many questions at once, so that one that cannot be asked does not cost the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ris.engines.errors import ExpressionError
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.runtime.model import Scene
from ris.runtime.segmentation import Segmentation

T = TypeVar("T")


def ask_each(
    ask: Callable[[Sequence[int]], Sequence[T]], numbers: Sequence[int]
) -> list[T | ExpressionError]:
    """The answer to each question, or the error that says why it cannot be asked.

    Args:
        ask: Answers the questions of these numbers together. It raises ExpressionError where one of
            them cannot be asked; then each half is asked by itself.
        numbers: The questions' numbers.
    """
    try:
        return list(ask(numbers))
    except ExpressionError as error:
        if len(numbers) == 1:
            return [error]
    middle = len(numbers) // 2
    return ask_each(ask, numbers[:middle]) + ask_each(ask, numbers[middle:])


def segment_each(
    scene: Scene,
    expressions: Sequence[str],
    categories: Sequence[str] | None,
    no_target_threshold: float | None,
    step: int,
    check: Callable[[], None] = lambda: None,
    draws: Draws = ONE_DRAW,
    form: str | None = None,
) -> list[Segmentation | ExpressionError]:
    """`Scene.segment_many`, with an error in the place of each answer that cannot be given.

    Args:
        scene: An encoded image.
        expressions: What to find.
        categories: One for each expression, for models that ask by category.
        no_target_threshold: As for `Scene.segment_many`.
        step: How many expressions are asked together, `Model.max_expressions`.
        check: Called before the model is asked; what it raises ends the asking.
        draws: The random numbers, for a model that draws any.
        form: As for `Scene.segment_many`.

    Raises:
        RisError: Where the model draws nothing, and a seed or a number of draws is given.
    """

    def ask(numbers: Sequence[int]) -> list[Segmentation]:
        check()
        return scene.segment_many(
            [expressions[i] for i in numbers],
            categories=None if categories is None else [categories[i] for i in numbers],
            no_target_threshold=no_target_threshold,
            seed=draws.seed,
            draws=draws.count,
            form=form,
        )

    answers: list[Segmentation | ExpressionError] = []
    for start in range(0, len(expressions), step):
        answers += ask_each(ask, range(start, min(start + step, len(expressions))))
    return answers
