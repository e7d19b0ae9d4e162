"""Tiny models whose large matrices are read from files, as those of full-size ones are."""

from __future__ import annotations

from ris.export.held import HeldBack
from ris.reference.checkpoint.entries import Entry
from ris.reference.families import FAMILIES
from ris.runtime.manifest import Source

UNTRAINED = Source(
    kind="deterministic", trained=False, seed=0, checkpoint=None, checkpoint_sha256=None
)

LEAST = 64
"""The weights of a matrix from which on it is held back here."""


class Files:
    """A tiny model, and its weights as entries of a file that count how often they are read."""

    def __init__(self, family, preset, folder):
        self.family, self.config = FAMILIES[family], FAMILIES[family].presets[preset]
        self.file = folder / "weights"
        self.file.write_text("stands for a checkpoint")
        whole = self.family.made_up_model(self.config, 0)
        self.weights = {name: value.detach() for name, value in whole.state_dict().items()}
        self.reads = []

    def entry(self, name):
        value = self.weights[name]

        def read():
            self.reads.append(name)
            return value

        return Entry(tuple(value.shape), value.dtype, self.file, (read,), mapped=False)

    def model(self):
        model = self.family.made_up_model(self.config, 0)
        HeldBack(model, {name: self.entry(name) for name in self.weights}, LEAST)
        return model
