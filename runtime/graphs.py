"""The opened stages of a bundle, which take values by name, and the host's steps between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.engines import Session, Value
from ris.engines.errors import ExpressionError, RisError
from ris.runtime.bundle import Bundle
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.runtime.host import HostSide
from ris.runtime.interpolate import Float
from ris.runtime.segmentation import Timings, timed
from ris.runtime.text import Tokens

Values = Mapping[str, Value]
"""Arrays by the names of their values; those of stages are on the device where there is one."""


@dataclass(frozen=True)
class EncodedText:
    """N expressions, and what depends on their words alone."""

    expressions: tuple[str, ...]
    """What was encoded."""

    form: str | None
    """The form that they were asked in, as it was named; None for the model's own choice."""

    tokens: Tokens
    """Their ids."""

    values: Values
    """What the host and the stages that depend on the words alone made of them."""

    timings: Timings
    """Seconds by stage."""


class Graphs:
    """The opened stages. Several threads may use them at once."""

    sessions: dict[str, Session]
    """A session for each stage; none after `close`."""

    host: HostSide
    """What the host does."""

    def __init__(self, bundle: Bundle, sessions: Mapping[str, Session]) -> None:
        self.sessions = dict(sessions)
        self.host = HostSide(bundle)
        self._manifest, self._wiring = bundle.manifest, bundle.wiring
        stages = bundle.manifest.stages
        self._takes = {s.name: {spec.name: spec.value for spec in s.inputs} for s in stages}
        taken = {spec.value for stage in stages for spec in stage.inputs}
        # what only the answer takes comes to the host at once
        self._last = {
            s.name
            for s in stages
            if taken.isdisjoint(spec.name for spec in s.outputs)
            and not self._wiring.resizes[s.name]
        }

    def session(self, stage: str) -> Session:
        """The session of a stage. Raises RisError where the graphs are closed."""
        session = self.sessions.get(stage)
        if session is None:
            raise RisError("the model is closed; load the bundle again")
        return session

    def close(self) -> None:
        """Gives the engines' memory back; may be called twice."""
        for session in self.sessions.values():
            session.close()
        self.sessions.clear()

    def encode_image(
        self, images: Values, timings: Timings, pool: ThreadPoolExecutor | None = None
    ) -> dict[str, Value]:
        """Runs the stages that run once an image.

        Args:
            images: The host's images.
            timings: Gets the seconds of each stage, as "image.stage".
            pool: Runs stages that do not wait for each other side by side. None: one by one.

        Returns:
            What questions take of the image.
        """
        values, waiting = dict(images), list(self._wiring.image_stages)
        while waiting:
            ready = [s for s in waiting if values.keys() >= set(self._takes[s].values())]
            if pool is None:
                ready = ready[:1]

            def run(stage: str) -> Values:
                return self._run(stage, values, timings, f"image.{stage}")  # noqa: B023

            for outputs in pool.map(run, ready) if pool else map(run, ready):
                values |= outputs
            waiting = [stage for stage in waiting if stage not in ready]
        return {name: values[name] for name in self._wiring.kept}

    def encode_text(self, expressions: Sequence[str], form: str | None = None) -> EncodedText:
        """Runs the tokenizer and the stages that depend on the words alone.

        Args:
            expressions: What to find.
            form: The form that they stand in; None for the model's own choice.
        """
        timings: Timings = {}
        if form is None:
            form = self._manifest.host.text.form
        with timed(timings, "tokenize"):
            tokens = self.host.tokenize(expressions, form)
        values = self.host.texts(tokens)
        self._run_all(self._wiring.text_stages, values, timings)
        return EncodedText(tuple(expressions), form, tokens, values, timings)

    def encode_text_ahead(self, expressions: Sequence[str]) -> EncodedText | None:
        """None where one of the expressions is none: whoever asks it gets the error."""
        try:
            return self.encode_text(expressions)
        except ExpressionError:
            return None

    def ask(
        self,
        image: Values,
        text: EncodedText,
        categories: Sequence[int],
        timings: Timings,
        draws: Draws = ONE_DRAW,
    ) -> tuple[Float, list[float | None]]:
        """Runs what is left to run for N expressions about one image.

        Args:
            image: What `encode_image` returned.
            text: The expressions.
            categories: The row of each expression's category in the table; empty for models that
                ask by none.
            timings: Gets the seconds of each stage and of each resize, of all draws together.
            draws: The random numbers, for models that draw any.

        Returns:
            The mask logits, float32 [N, m, m], and for each expression the probability that it
            names nothing in the image, None for models that do not decide that. Of several draws
            both are those of the mean (`Answer.mean_of`).
        """
        count = len(text.expressions)
        values = {**image, **text.values, **self.host.asked(categories)}
        wiring, answer = self._wiring, self._manifest.answer
        later = {*wiring.text_stages, *wiring.drawn_stages, *wiring.mean_stages}
        self._run_all((s for s in wiring.question_stages if s not in later), values, timings)

        names = [name for name in (answer.mask_logits, answer.no_target_logits) if name]
        averaged = [answer.mean_of] if answer.mean_of else names
        totals: list[NDArray[np.float32]] = []
        for number in range(draws.count or 1):
            own = {**values, **self.host.drawn(count, draws.seed, number)}
            self._run_all(wiring.drawn_stages, own, timings)
            if draws.count:  # else a single draw stays where it is
                added = [_array(own[name]) for name in averaged]
                totals = [a + b for a, b in zip(totals, added, strict=True)] if totals else added
        own |= {n: t / np.float32(draws.count) for n, t in zip(averaged, totals, strict=False)}
        self._run_all(wiring.mean_stages, own, timings)
        logits = [_array(own[name]) for name in names]
        if answer.no_target_logits is None:
            return logits[0][:, 0], [None] * count
        return logits[0][:, 0], [*no_target_probabilities(logits[1])]

    def _run_all(self, stages: Iterable[str], values: dict[str, Value], timings: Timings) -> None:
        """Runs stages in order, which take from `values` and add to them."""
        for stage in stages:
            values |= self._run(stage, values, timings, stage)

    def _run(self, stage: str, values: Values, timings: Timings, clock: str) -> Values:
        """What a stage gives, resized where the host resizes it.

        clock: the name of the stage's seconds in `timings`.
        """
        session = self.session(stage)
        feeds = {name: values[value] for name, value in self._takes[stage].items()}
        if stage in self._last:
            with timed(timings, clock):
                return session.run(feeds)
        resizes: Timings = {}
        steps = self.host.steps(stage, resizes)
        own: Timings = {}
        with timed(own, clock):
            outputs = session.run_and_keep(feeds, steps) if steps else session.run_and_keep(feeds)
        prefix = clock.removesuffix(stage)
        spent = {clock: own[clock] - sum(resizes.values())}
        spent |= {f"{prefix}{name}": seconds for name, seconds in resizes.items()}
        for name, seconds in spent.items():
            timings[name] = timings.get(name, 0.0) + seconds
        return self.host.renamed(stage, outputs) if steps else outputs


def _array(value: Value) -> NDArray[np.float32]:
    """A value in the host's memory."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def no_target_probabilities(logits: NDArray[np.floating]) -> list[float]:
    """Softmax over logits [N, 2] of (target, no target); class 1 is "no target"."""
    difference = logits[:, 0].astype(np.float64) - logits[:, 1]
    return [float(p) for p in 1 / (1 + np.exp(difference))]
