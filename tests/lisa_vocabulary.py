"""A stand-in for LLaMA's tokenizer.model: it has the ids that LISA's golden files ask with.

LLaMA's own pieces may not be given away. Here are those that the words of the goldens are cut into,
at their own ids; every other id has a piece that nobody writes, or a beginning of one of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as proto

from golden.lisa.inputs import EXPRESSIONS
from ris.reference.lisa.templates import LLAMA_PIECES, system_ids

SYSTEM = """▁A ▁chat ▁between ▁a ▁curious ▁human ▁and ▁an ▁artificial ▁intelligence ▁assistant .
▁The ▁assistant ▁gives ▁helpful , ▁detailed , ▁and ▁pol ite ▁answers ▁to ▁the ▁human ' s ▁questions
. ▁US ER :"""
ASKED = {
    "▁What ▁is": [1724, 338],
    "▁in ▁this ▁image ?": [297, 445, 1967, 29973],
    "▁Please ▁output ▁segment ation ▁mask .": [3529, 1962, 10768, 362, 11105, 29889],
    "▁A SS IST ANT :": [319, 1799, 9047, 13566, 29901],
}
TEXTS = (
    "▁left ▁man",
    "▁the ▁bro cc oli ▁closest ▁to ▁the ▁k etch up ▁bott le",
    "▁the ▁person ▁is ▁waiting ▁at ▁the ▁crossing . ▁which ▁thing ▁in ▁this ▁picture ▁tells ▁them"
    " ▁when ▁to ▁go ?",
)
BLANK = 29871
_BYTES = 256


def _known() -> Iterator[tuple[str, int]]:
    """The pieces of the golden words with their ids."""
    yield from zip(SYSTEM.split(), system_ids("llava_v1", LLAMA_PIECES)[1:], strict=True)
    for pieces, ids in ASKED.items():
        yield from zip(pieces.split(), ids, strict=True)
    for pieces, (ids, _) in zip(TEXTS, EXPRESSIONS.values(), strict=True):
        yield from zip(pieces.split(), map(int, ids.split()), strict=True)
    yield "▁", BLANK


def write_vocabulary(like: Path, path: Path) -> Path:
    """Writes the stand-in. like: a file with LLaMA's settings, of any size."""
    model = proto.ModelProto()
    model.ParseFromString(like.read_bytes())
    first = [(piece.piece, piece.type) for piece in model.pieces[: 3 + _BYTES]]
    known = dict(_known())
    placed = {number: text for text, number in known.items()}
    assert len(placed) == len(known)

    letters = {letter for text in known for letter in text}
    inner = [text[:end] for text in known for end in range(2, len(text))]
    missing = sorted({*letters, *inner}.difference(known))
    free = (number for number in range(len(first), LLAMA_PIECES) if number not in placed)
    placed |= {next(free): text for text in missing}

    del model.pieces[:]
    for number in range(LLAMA_PIECES):
        is_first = number < len(first)
        text, kind = first[number] if is_first else (placed.get(number, f"☃{number}"), 1)
        # words are put together from their beginnings on, before anything inside of them
        score = 0.0 if is_first else -number - (0 if text.startswith("▁") else LLAMA_PIECES)
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.vocab_size = LLAMA_PIECES
    path.write_bytes(model.SerializeToString())
    return path
