"""What a SentencePiece `.model` file says: its pieces, and how it normalises a text.

The file is one protocol buffer, `ModelProto` of SentencePiece's sentencepiece_model.proto
(Apache-2.0). Protobuf reads it by the few fields that are declared here; what else is in the file
is skipped.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from ris.engines.errors import CheckpointError
from ris.engines.text import quoted, reason_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""The types of pieces: ModelProto.SentencePiece.Type."""

_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
"""The types of models: TrainerSpec.ModelType."""

_MOST_BYTES = 64 << 20
"""A vocabulary has a few megabytes; what has more is another file."""

_FIELDS: dict[str, dict[str, tuple[int, str, Any]]] = {
    "Piece": {
        "piece": (1, "string", ""),
        "score": (2, "float", 0.0),
        "type": (3, "int32", NORMAL),
    },
    "Trainer": {
        "model_type": (3, "int32", 1),
        "treat_whitespace_as_suffix": (24, "bool", False),
        "byte_fallback": (35, "bool", False),
    },
    "Normalizer": {
        "precompiled_charsmap": (2, "bytes", b""),
        "add_dummy_prefix": (3, "bool", True),
        "remove_extra_whitespaces": (4, "bool", True),
        "escape_whitespaces": (5, "bool", True),
    },
    "Model": {
        "pieces": (1, "*Piece", None),
        "trainer_spec": (2, "Trainer", None),
        "normalizer_spec": (3, "Normalizer", None),
    },
}
"""Message -> field -> its number, type and default value; `*` stands before what is repeated."""


@dataclass(frozen=True)
class Piece:
    """A piece; its place in the file is its id in SentencePiece."""

    text: str
    """With `▁` for a blank; `<0x0A>` and the like for a byte."""

    score: float
    """The logarithm of its probability, or minus its rank in BPE."""

    type: int
    """NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE."""


@dataclass(frozen=True)
class SentencePieceModel:
    """A SentencePiece vocabulary as it was trained."""

    path: Path
    """Where it was read, for messages."""

    kind: str
    """"unigram", "bpe", "word" or "char"."""

    pieces: tuple[Piece, ...]
    """All pieces, the special ones too."""

    byte_fallback: bool
    """Whether an unknown character becomes its UTF-8 bytes' pieces."""

    charsmap: bytes
    """The normaliser as SentencePiece compiled it; empty where the text is left as it is."""

    add_dummy_prefix: bool
    """Whether a text gets a blank in front."""

    remove_extra_whitespaces: bool
    """Whether blanks at both ends are dropped, and runs of them become one."""

    escape_whitespaces: bool
    """Whether a blank becomes `▁`."""

    treat_whitespace_as_suffix: bool
    """Whether a piece ends with its blank; it begins with it everywhere else."""

    def first_pieces(self) -> tuple[tuple[str, int], ...]:
        """Texts and types of the first three pieces, which are the special ones."""
        return tuple((piece.text, piece.type) for piece in self.pieces[:3])


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a `.model` file.

    Raises CheckpointError where it cannot be read, is cut short, or is no SentencePiece model.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MOST_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from None
    if size > _MOST_BYTES:
        raise CheckpointError(
            f"{path} has {size >> 20} MiB, a SentencePiece model has at most {_MOST_BYTES >> 20};"
            " give the vocabulary's .model file"
        )

    model = _model_class()()
    try:
        model.ParseFromString(data)
        pieces = tuple(Piece(one.piece, one.score, one.type) for one in model.pieces)
    except (message.DecodeError, UnicodeDecodeError):
        raise CheckpointError(
            f"{path} is no SentencePiece model, or is cut short; fetch it again"
        ) from None
    kind = _KINDS.get(model.trainer_spec.model_type)
    # a file of another kind may pass as a message of fields that are not known here, and one that
    # was cut between two fields as a whole one
    whole = model.HasField("trainer_spec") and model.HasField("normalizer_spec")
    if not pieces or kind is None or not whole:
        raise CheckpointError(f"{path} is no whole SentencePiece model; fetch it again")
    _check_pieces(pieces, path)

    normalizer = model.normalizer_spec
    return SentencePieceModel(
        path,
        kind,
        pieces,
        model.trainer_spec.byte_fallback,
        normalizer.precompiled_charsmap,
        normalizer.add_dummy_prefix,
        normalizer.remove_extra_whitespaces,
        normalizer.escape_whitespaces,
        model.trainer_spec.treat_whitespace_as_suffix,
    )


def read_added_tokens(path: Path) -> dict[str, int]:
    """An added_tokens.json: ids by token; nothing where there is no such file.

    Raises CheckpointError where it cannot be read, or is no object of ids from 0 on.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} should be an object of ids, found {quoted(data)}")
    for token, number in data.items():
        if not token or type(number) is not int or not 0 <= number < 1 << 31:
            raise CheckpointError(
                f"{path}: {quoted(token)} should have an id from 0 on, found {quoted(number)}"
            )
    if len(set(data.values())) < len(data):
        raise CheckpointError(f"{path} gives two tokens the same id")
    return data


def _check_pieces(pieces: tuple[Piece, ...], path: Path) -> None:
    """Refuses pieces that no vocabulary has."""
    texts = {piece.text for piece in pieces}
    if "" in texts or len(texts) < len(pieces):
        raise CheckpointError(f"{path} has an empty piece, or one piece twice; fetch it again")
    if not all(math.isfinite(piece.score) for piece in pieces):
        raise CheckpointError(f"{path} has scores that are no finite numbers; fetch it again")


@cache
def _model_class() -> Any:
    """The message `Model` of `_FIELDS`, in a pool of its own."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="ris_sentencepiece.proto", package="ris.sentencepiece", syntax="proto2"
    )
    for name, fields in _FIELDS.items():
        entry = file.message_type.add(name=name)
        for label, (number, kind, default) in fields.items():
            one = entry.field.add(name=label, number=number, label=field.LABEL_OPTIONAL)
            if default is None:
                if kind.startswith("*"):
                    one.label = field.LABEL_REPEATED
                one.type = field.TYPE_MESSAGE
                one.type_name = f".{file.package}.{kind.removeprefix('*')}"
                continue
            one.type = getattr(field, f"TYPE_{kind.upper()}")
            if default and kind != "bytes":
                one.default_value = str(default).lower()
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Model"))
