"""Which of the user's images and expressions a model can be calibrated with.

It is asked before graphs run for minutes or hours. What cannot be used is left out, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ris.engines.errors import ExpressionError, ImageError, RisError, Skipped
from ris.engines.text import quoted
from ris.runtime.categories import categories_to_ask
from ris.runtime.host import HostSide
from ris.runtime.image import load_rgb
from ris.runtime.requests import Request, together

Look = Callable[[Path], object]
"""Reads as much of an image as is to be checked; raises ImageError."""


def usable(
    requests: Iterable[Request], host: HostSide | None, look: Look, skipped: Skipped
) -> list[Request]:
    """The requests without what cannot be used.

    Args:
        requests: The user's images and expressions.
        host: The model's tokenizer and categories. None: the expressions are not checked.
        look: Called with each image that is asked something.
        skipped: Gets a sentence for each image and expression that is left out.

    Raises:
        RisError: Where nothing is left.
    """
    problems: list[str] = []
    found: list[Request] = []
    for request in requests:
        asked = request if host is None else _askable(request, host, problems.append)
        if asked is None:
            continue
        try:
            look(request.image)
        except ImageError as error:
            problems.append(refusal(request, error))
            continue
        found.append(asked)

    if not found:
        raise RisError(together(problems) or "there is nothing to calibrate with")
    for problem in problems:
        skipped(problem)
    return found


def refusal(request: Request, error: ImageError) -> str:
    """The sentence for an image that cannot be used, with its place where a file asks for it."""
    return f"{error} ({request.places[0]})" if request.places else str(error)


def prepared_by(host: HostSide) -> Look:
    """Reads the whole image, and does with it what the host does before the graphs."""

    def look(image: Path) -> None:
        rgb = load_rgb(image)
        try:
            host.images(rgb)
        except ImageError as error:
            raise ImageError(f"{image}: {error}") from None

    return look


def _askable(request: Request, host: HostSide, refused: Skipped) -> Request | None:
    """The request with the expressions that the model can be asked; None where there is none."""
    # models that do not ask by category are asked without
    categories = request.categories if host.categories else None
    kept: list[int] = []
    for number, expression in enumerate(request.expressions):
        category = categories[number : number + 1] if categories else None
        try:
            categories_to_ask(host.categories, [expression], category)
            host.tokenize([expression])
        except ExpressionError as error:
            where = request.places[number] if request.places else quoted(expression)
            refused(f"{where}: {error}")
            continue
        kept.append(number)
    return _only(request, kept) if kept else None


def _only(request: Request, numbers: Sequence[int]) -> Request:
    """The request with the expressions of these numbers."""

    def of(all_: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(all_[number] for number in numbers)

    return Request(
        request.image,
        of(request.expressions),
        of(request.categories) if request.categories else None,
        of(request.places) if request.places else None,
    )
