"""A question that cannot be asked does not cost the others their answers."""

from __future__ import annotations

import pytest

from ris.engines.errors import ExpressionError
from ris.runtime import load
from ris.runtime.asking import ask_each, segment_each


@pytest.mark.parametrize("bad", [{0}, {6}, {2, 3}, set(range(7)), set()])
def test_each_question_has_its_answer_or_its_error(bad):
    asked = []

    def ask(numbers):
        if wrong := bad & set(numbers):
            raise ExpressionError(f"no {min(wrong)}")
        asked.append(len(numbers))
        return [number * 10 for number in numbers]

    found = ask_each(ask, range(7))
    said = [str(answer) if isinstance(answer, ExpressionError) else answer for answer in found]
    assert said == [f"no {i}" if i in bad else i * 10 for i in range(7)]
    assert sum(asked) == 7 - len(bad)
    assert bad or asked == [7]


def test_a_wordless_expression_among_others(tiny_bundle, picture):
    with load(tiny_bundle) as model:
        scene = model.encode_image(picture)
        found = segment_each(scene, ["left man", "\u200b", "tree"], None, 0.5, 2)
        alone = scene.segment("tree")
    assert "no words in it" in str(found[1])
    assert [answer.expression for answer in (found[0], found[2])] == ["left man", "tree"]
    assert (found[2].mask == alone.mask).all()
