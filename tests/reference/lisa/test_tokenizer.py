"""The tokenizer of questions: its ids, and what does not fit the model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from lisa_helper import added_tokens_of, write_json

from conftest import GOLDEN
from ris.engines.errors import CheckpointError
from ris.reference.lisa.config import PRESETS, AddedTokens
from ris.reference.lisa.family import LisaFamily
from ris.reference.lisa.templates import question_text

LISA = LisaFamily()
TINY = PRESETS["tiny-lisa"]


@pytest.fixture
def vocabulary(tmp_path):
    """The small vocabulary as a released folder has LLaMA's."""
    shutil.copy(GOLDEN / "lisa" / "tokenizer_small.model", tmp_path / "tokenizer.model")
    tokens = added_tokens_of(TINY) | {"<im_patch>": 800}
    write_json(tmp_path / "added_tokens.json", tokens)
    return tmp_path / "tokenizer.model"


def test_questions_have_the_authors_ids(vocabulary):
    """By the user's file, and by the one of made-up weights."""
    data = json.loads((GOLDEN / "lisa" / "tokenizer_tests.json").read_text())
    for path in (vocabulary, vocabulary.parent, None):
        tokenizer = LISA.tokenizer(path, TINY)
        for row in data["template"]:
            text = question_text(row["expression"], row["form"], row["template"])
            ids = row["ids"][row["ids"].index(-200) + 2 :]
            assert tokenizer.encode(text).ids == ids[: ids.index(803)]


def test_a_vocabulary_has_to_fit_the_model(vocabulary):
    other = replace(TINY, tokens=AddedTokens(801, 802, 800))
    with pytest.raises(CheckpointError) as caught:
        LISA.tokenizer(vocabulary, other)
    assert str(caught.value) == (
        f"{vocabulary} does not fit the model: [SEG] has id 803, the model has 800"
    )
    write_json(vocabulary.parent / "added_tokens.json", {"<im_patch>": 800, "<im_start>": 801})
    with pytest.raises(CheckpointError, match=r"no <im_end>; no \[SEG\]"):
        LISA.tokenizer(vocabulary, TINY)


def test_a_vocabulary_that_is_not_llamas_is_refused(vocabulary):
    """The words in front of the picture are a constant of the model's ids."""
    with pytest.raises(CheckpointError) as caught:
        LISA.tokenizer(vocabulary, PRESETS["lisa-7b"])
    assert "it has other ids for the words in front of the picture" in str(caught.value)
