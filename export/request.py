"""What `ris-export` was asked for, and whether it fits together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ris.engines import EngineSpec, create, select
from ris.engines.errors import CheckpointError, EngineError, RisError
from ris.reference.families import FAMILIES
from ris.runtime.commands.compile import Compiling
from ris.runtime.commands.weight_files import require_checkpoint
from ris.runtime.hub.address import Address, parse
from ris.runtime.hub.entries import OPTIONS
from ris.runtime.hub.given import entry_given
from ris.runtime.hub.models import Entry
from ris.runtime.manifest import Precision

if TYPE_CHECKING:
    from ris.calibration.numerics import Ranges
    from ris.calibration.weights.groups import WeightFormat
    from ris.export.named import Named
    from ris.export.options import Resizing
    from ris.export.rounded_file import RoundedFile
    from ris.export.sources import ModelSource
    from ris.reference.layers.deformable import Sampling

_SMALL = {name for family in FAMILIES.values() for name in family.small_presets}


@dataclass(frozen=True)
class Request:
    """What the command line asked for, besides how to show it."""

    files: dict[str, Path]
    """The weight files that were given, by the names of `WeightFiles`; empty without any."""

    family: str | None
    """The name of the checkpoint's family; None for what its keys say."""

    out: Path
    """The bundle to write."""

    precision: Precision
    """What the graphs compute in."""

    fp32: tuple[str, ...]
    """The graphs that stay FP32."""

    weight_format: tuple[str, ...]
    """What matrices are stored in, words such as "int4" and "GRAPH=int8"."""

    random_weights: int | None
    """The seed of made-up weights; None where they were not asked for."""

    preset: str | None
    """The architecture; None for what the weights say."""

    variant: str | None
    """What the sparse branch asks with, "cls" or "category"; None for what the weights say."""

    supplement: bool
    """Whether the architecture is to be as the paper's supplement words it."""

    chosen: dict[str, str]
    """What was chosen of the families' `choices`, by field."""

    grid_sample: Sampling | None = None
    """The form of the bilinear sampling; None for what the engine needs."""

    resizing: Resizing = "host"
    """What resizes maps between two graphs."""

    engine: str | None = None
    """The engine to compile for; None for no engine."""

    compiling: Compiling | None = None
    """How to compile; None with no engine alone."""

    vocabulary: Path | None = None
    """A vocab.txt; None for that of --bert, else the preset's own."""

    ranges_file: Path | None = None
    """What `ris-calibrate ranges` wrote; None where it was not given."""

    force: bool = False
    """Replace the bundle if it exists."""

    weights_from: Path | None = None
    """What `ris-calibrate weights` wrote; None where it was not given."""

    model: str | None = None
    """The name of a published model; None where none is named."""

    accept_licence: str | None = None
    """The word of the terms that the user accepts; None for none."""

    push: str | None = None
    """Where to publish the bundle, an address on a Hub; None for nowhere."""

    licence: str | None = None
    """The licence word to publish under; None where none was said."""

    private: bool = False
    """Whether a new repository is to be private."""

    named: Named | None = None
    """The published model with its files, once they are here (`with_files`)."""

    @property
    def is_demo(self) -> bool:
        """Whether the built-in demo is exported: nobody gave weights or asked for others."""
        has_others = bool(self.files) or self.random_weights is not None or self.model is not None
        return not has_others and self.preset in (None, "demo")

    @cached_property
    def entry(self) -> Entry | None:
        """What is published under the name; None where none was named.

        Raises HubError where there is no such name, it cannot be exported, or its terms were not
        accepted.
        """
        from ris.export.named import look_up

        return None if self.model is None else look_up(self.model, self.accept_licence)

    @cached_property
    def target(self) -> Address | None:
        """Where to publish; None for nowhere. Raises HubError for what is no address."""
        return None if self.push is None else parse(self.push)

    def check(self) -> None:
        """Raises RisError for options that contradict each other."""
        if self.model is None:
            require_checkpoint({"checkpoint": None, **self.files}, self.family)
        if (named := entry_given(self.files.get("checkpoint"))) is not None:
            raise RisError(
                f"--checkpoint takes a file; --model {named.name} exports what is published so"
            )
        self._check_name()
        self._check_publishing()
        if self.ranges_file and self.precision != "fp16":
            raise RisError("--ranges says what FP16 has to spare; it belongs to --precision fp16")
        if self.fp32 and self.precision == "fp32" and not self.weights:
            raise RisError(
                "--fp32 names graphs of a narrower bundle; give --precision or --weight-format as"
                " well"
            )
        if self.weights and self.precision == "fp16":
            raise RisError(
                "--weight-format is for products in FP32 or bfloat16; leave --precision fp16 out"
            )
        if self.weights_from and not self.weights:
            raise RisError(
                "--weights-from has levels for narrow weights; give --weight-format as well"
            )
        if self.files and self.random_weights is not None:
            raise CheckpointError(
                "--random-weights and weight files contradict each other; give one of them"
            )
        if self.preset is not None and self.preset not in _SMALL and not self._has_weights:
            raise CheckpointError(
                f"there are no weights for {self.preset}; --random-weights 0 exports it untrained, "
                "for benchmarks, and --checkpoint with trained ones"
            )

    @property
    def _has_weights(self) -> bool:
        return bool(self.files) or self.random_weights is not None or self.model is not None

    def _check_name(self) -> None:
        """Raises RisError for options that contradict `--model`, or need it."""
        if self.accept_licence is not None and self.model is None:
            raise RisError("--accept-licence accepts the terms of a --model; give that as well")
        if self.model is None:
            return
        for flag, value in (("--random-weights", self.random_weights), ("--family", self.family)):
            if value is not None:
                raise RisError(f"--model {self.model} says what to export; leave {flag} out")
        self._check_published()

    def _check_published(self) -> None:
        """Raises RisError for options that contradict what is published, before the download."""
        entry = self.entry
        assert entry is not None, "it was named"
        assert entry.family is not None, "a model has one"
        if self.preset is not None and entry.preset not in (None, self.preset):
            raise RisError(
                f"{entry.name} is {entry.preset}, which contradicts --preset {self.preset}; leave"
                " --preset out"
            )
        for name in self.files:
            if name != "checkpoint" and name not in FAMILIES[entry.family].components:
                raise CheckpointError(
                    f"a model of the family {entry.family} has no part that {OPTIONS[name]} could"
                    " give; leave it out"
                )
        self._check_variant(entry)
        self._check_graphs(entry)

    def _check_variant(self, entry: Entry) -> None:
        """Raises RisError for a variant that the published model has not."""
        if self.variant is None and not self.supplement:
            return
        from ris.export.families import DESIGNS

        assert entry.family is not None, "a model has one"
        if DESIGNS[entry.family].variants is None:
            raise RisError(
                f"{entry.name} is of the family {entry.family}, which has no variants; leave"
                " --variant and --supplement out"
            )
        if None not in (self.variant, entry.variant) and self.variant != entry.variant:
            raise RisError(
                f"{entry.name} is the {entry.variant} variant, which contradicts --variant"
                f" {self.variant}; leave --variant out"
            )

    def _check_graphs(self, entry: Entry) -> None:
        """Raises RisError for what the published model's family or its graphs do not have."""
        if not (self.chosen or self.fp32 or self.weights) and self.resizing == "host":
            return  # without the seconds that the imports take
        from ris.export.families import DESIGNS
        from ris.export.families.design import keep_fp32
        from ris.export.resizing import require_resizes
        from ris.export.weights import formats_of

        assert entry.family is not None, "a model has one"
        family, design = FAMILIES[entry.family], DESIGNS[entry.family]
        for config in family.presets.values():
            if config.preset == entry.preset:
                family.choose(config, self.chosen)
                stages = keep_fp32(design.stages(config), self.fp32, self.precision)
                formats_of(stages, self.weights)
                if self.resizing == "graph":
                    require_resizes(design.host(config), entry.family)

    def _check_publishing(self) -> None:
        """Raises RisError where what `--push` needs is missing or wrong, before the export."""
        if self.target is None:
            if self.licence is not None or self.private:
                flag = "--private" if self.licence is None else "--licence"
                raise RisError(f"{flag} says how to publish the bundle; give --push as well")
            return
        from ris.runtime.hub.push import require_licence

        require_licence(self.licence, self.entry)

    @cached_property
    def weights(self) -> dict[str, WeightFormat]:
        """What matrices are stored in, by stage; under "" that of the stages that a family names.

        Raises RisError for a format that there is not.
        """
        from ris.export.weights import parse_formats

        return parse_formats(self.weight_format) if self.weight_format else {}

    def read_ranges(self) -> Ranges | None:
        """The measured ranges, where a file was named. Raises RisError for another file."""
        if self.ranges_file is None:
            return None
        from ris.calibration.numerics import read_ranges

        return read_ranges(self.ranges_file)

    def read_rounded(self) -> RoundedFile | None:
        """The levels, where a file was named. Raises RisError for another file."""
        if self.weights_from is None:
            return None
        from ris.export.rounded_file import RoundedFile

        return RoundedFile(self.weights_from)

    def engine_row(self) -> EngineSpec | None:
        """The engine to compile for; None for no engine.

        Raises EngineError where it cannot compile here, or not with these options. So that is known
        before anything is written.
        """
        if self.engine is None:
            return None
        assert self.compiling is not None, "an engine comes with it"
        row = select(self.engine)
        create(row.name, self.compiling.engine_options(row, None))
        if self.engine == "auto":
            click.echo(f"--engine auto: {row.name}", err=True)
        if self.precision not in row.precisions:
            raise EngineError(
                f"engine {row.name!r} does not run {self.precision} graphs; it runs"
                f" {', '.join(row.precisions)}"
            )
        if row.needs_gathers and self.grid_sample == "native":
            raise EngineError(
                f"engine {row.name!r} needs --grid-sample gather; leave --grid-sample out"
            )
        return row

    def sampling(self, row: EngineSpec | None) -> Sampling:
        """The form of the bilinear sampling: as asked, else as the engine needs it."""
        needed: Sampling = "gather" if row is not None and row.needs_gathers else "native"
        return self.grid_sample or needed

    def find(self) -> ModelSource:
        """The model to export. Raises CheckpointError for files that do not fit."""
        from ris.export import sources
        from ris.reference.checkpoint import WeightFiles

        if self.files:
            files = WeightFiles(**self.files)
            asked = self.preset, self.variant, self.supplement
            found = sources.from_files(files, *asked, family=self.family, chosen=self.chosen)
            return found if self.named is None else self.named.checked(found)
        if self.is_demo:
            return sources.demo(self.variant, self.supplement, self.chosen)
        preset, seed = self.preset or "vitb-vitl336", self.random_weights or 0
        return sources.made_up(preset, seed, self.variant, self.supplement, self.chosen)

    def with_files(self, named: Named) -> Request:
        """The request with the files of the model that it names."""
        return replace(self, files={**named.files, **self.files}, named=named)
