"""What a family of models tells the code that works for all of them.

A family is an architecture with its own checkpoints. `ris.reference.families` has the table of
them. This module is imported where PyTorch is missing, so it imports none of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from ris.engines.errors import CheckpointError
from ris.engines.text import quoted

if TYPE_CHECKING:
    import re
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor

    from ris.reference.checkpoint.entries import Entry
    from ris.reference.checkpoint.keys import KeyRules
    from ris.reference.checkpoint.merging import SharedPart


class Config(Protocol):
    """What the configurations of all families have."""

    @property
    def preset(self) -> str:
        """Name of the preset with these sizes; "custom" or a name of its own where none has."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""


C = TypeVar("C", bound=Config)
"""The family's kind of configuration."""

M = TypeVar("M")
"""The family's model, a torch.nn.Module."""


class Choice(NamedTuple):
    """What weights do not say and a person may choose: a field of the configuration."""

    field: str
    """The field's name; with hyphens on the command line, as `option` has it."""

    values: tuple[str, ...]
    """What it may be; the first is the default."""

    words: str
    """What it chooses, for the help text."""

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return f"--{self.field.replace('_', '-')}"


class Relative(NamedTuple):
    """Checkpoints of a near relation of a family, which no family here can load."""

    pattern: re.Pattern[str]
    """Found in a key of theirs, and in no key of any family."""

    words: str
    """What they are and what to give instead, to follow "it is"."""


class Family(ABC, Generic[C, M]):
    """An architecture with its own checkpoints, as a row of the table.

    What needs PyTorch is imported by the methods.
    """

    name: str
    """Its name in manifests and on the command line."""

    signs: tuple[str, ...]
    """Beginnings of keys that a checkpoint of this family has, and no other file."""

    presets: Mapping[str, C]
    """The usual configurations by name; the first is the one that is published."""

    small_presets: tuple[str, ...] = ()
    """Those of `presets` that are for tests and demonstrations: an export of them needs no
    weights."""

    components: Mapping[str, str]
    """The weight files that a part of the model may come from: "sam", "clip", "bert".

    Each with what the part's keys in the whole model begin with.
    """

    brings: Mapping[str, str]
    """The option whose file brings a module that a checkpoint may lack, by the module in words."""

    relatives: tuple[Relative, ...] = ()
    """Checkpoints that may be taken for this family's and are refused by name."""

    own_vocabulary: str = ""
    """The file that is published beside a checkpoint with its vocabulary; empty for a common one.

    Other models' words are no use to such a checkpoint. Made-up weights have made-up words.
    """

    choices: tuple[Choice, ...] = ()
    """What a person may choose, beside what the weights say."""

    def choose(self, config: C, chosen: Mapping[str, str]) -> C:
        """The configuration with what was chosen, values by the fields of `choices`.

        Raises CheckpointError for a choice that this family does not have.
        """
        known = {choice.field: choice for choice in self.choices}
        for name, value in chosen.items():
            if name not in known:
                option = Choice(name, (), "").option
                raise CheckpointError(
                    f"{option} is of no use to the family {self.name}; leave it out"
                )
            if value not in known[name].values:
                raise CheckpointError(
                    f"{known[name].option} is {quoted(value)}; it takes"
                    f" {' or '.join(known[name].values)}"
                )
        given: Any = config  # a dataclass, as all configurations are
        changed: C = replace(given, **chosen) if chosen else config
        return changed

    def chosen(self, model: Mapping[str, Any]) -> dict[str, str]:
        """What was chosen of `choices`, by field, in a configuration as `Config.to_dict` has it."""
        return {one.field: model[one.field] for one in self.choices if one.field in model}

    @abstractmethod
    def derive_config(self, shapes: Mapping[str, tuple[int, ...]], heads: Mapping[str, int]) -> C:
        """The configuration of weights with these shapes, by the model's key names.

        heads: attention heads that the components' config.json files tell. Raises CheckpointError
        where the shapes do not say enough.
        """

    def settle(self, config: C, folder: Path | None) -> C:
        """What `derive_config` gave, with what the files beside the weights say, such as an eps.

        folder: that of the checkpoint; None where a file alone was given. Raises CheckpointError
        where they tell of another model.
        """
        return config

    @abstractmethod
    def carried_config(self, data: Any, source: object) -> C:
        """The configuration that a checkpoint or a manifest carries as JSON data.

        Raises CheckpointError, naming the source, where it is none.
        """

    @abstractmethod
    def empty_model(self, config: C, **options: bool) -> M:
        """The model without weights, on the meta device, in eval mode.

        It is filled with `load_state_dict(assign=True)`. options: the family's own.
        """

    @abstractmethod
    def made_up_model(self, config: C, seed: int) -> M:
        """The model with made-up weights that are the same everywhere, float32, eval mode."""

    @abstractmethod
    def key_rules(self, config: C) -> KeyRules:
        """Which keys of a checkpoint matter to a model of this configuration."""

    @abstractmethod
    def shared_parts(self) -> tuple[SharedPart, ...]:
        """The parts that component files may have too; the first that fits is a key's."""

    def complete(self, entries: dict[str, Entry], config: C) -> tuple[dict[str, Entry], list[str]]:
        """The entries with what can be computed from them, and notes on that."""
        return entries, []

    def vocabulary_beside(self, checkpoint: Path) -> Path | None:
        """The vocabulary that a checkpoint was published with; None where it is not beside it."""
        path = checkpoint.parent / self.own_vocabulary
        return path if self.own_vocabulary and path.is_file() else None

    def tokenizer_of(self, vocabulary: Path | None, config: C, trained: bool) -> Tokenizer:
        """`tokenizer`, of a checkpoint or of made-up weights.

        Raises CheckpointError, too, where a trained model lacks the vocabulary it was trained with.
        """
        if trained and vocabulary is None and self.own_vocabulary:
            raise CheckpointError(
                f"a checkpoint of the family {self.name} reads its own vocabulary, and there is no"
                f" {self.own_vocabulary} beside it; put the one that was published with the"
                " checkpoint there (ris-export takes one from elsewhere as --vocabulary)"
            )
        return self.tokenizer(vocabulary, config)

    @abstractmethod
    def tokenizer(self, vocabulary: Path | None, config: C) -> Tokenizer:
        """The tokenizer that goes into a bundle.

        vocabulary: a vocab.txt, a tokenizer.json or the family's `own_vocabulary`; None for the
        preset's own. Raises CheckpointError where it does not fit the model.
        """

    @abstractmethod
    def prepare(self, model: M, rgb: np.ndarray) -> dict[str, Tensor]:
        """A picture, uint8 RGB [H, W, 3], as the host's images by value, [1, 3, S, S] each."""

    def category_features(self, model: M, categories: Sequence[str | None]) -> Tensor:
        """The rows of N categories, [N, E]; for a family that asks by category."""
        raise NotImplementedError(f"{self.name} does not ask by category")

    @abstractmethod
    def encode(self, model: M, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What depends on B images alone, by value.

        images: those of `prepare`, of B rows. Returns what the stages give that run once an image,
        and what is resized of it, float32; empty where there is no such stage.
        """

    @abstractmethod
    def ask(self, model: M, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What depends on N expressions, by value.

        values: those of `prepare` and `encode`, a row for each expression, and the host's values of
        the text: ids int64 [N, T], their mask, the categories' rows. Returns what the other stages
        give, and what is resized of it, float32.
        """
