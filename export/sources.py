"""Where an exported model comes from: made-up weights, the user's files, or the built-in demo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ris.engines.errors import CheckpointError
from ris.reference import config as config_module
from ris.reference.checkpoint import Inspection, WeightFiles, build_model, inspect
from ris.reference.config import PRESETS, ModelConfig
from ris.reference.deterministic import deterministic_model
from ris.reference.model import RISModel
from ris.runtime.bundle import Bundle, ComponentFile, Source, sha256_of

DEMO_WEIGHTS = Path(config_module.__file__).parent / "data" / "demo.safetensors"
"""The trained demo (docs/reference/models/demo.md)."""
COMPONENTS: tuple[Literal["sam", "clip", "bert"], ...] = ("sam", "clip", "bert")


@dataclass(frozen=True)
class ModelSource:
    """A model to export: where it is from in words, its configuration, how to make it, and its
    tokenizer.

    describe() is what the manifest says of it; it hashes the files. inspection: of the user's
    files.
    """

    origin: str
    config: ModelConfig
    make: Callable[[], RISModel]
    describe: Callable[[], Source]
    vocabulary: Path | None = None
    inspection: Inspection | None = None

    @property
    def warnings(self) -> list[str]:
        """What a user has to know beyond the plan: trained weights that are missing, files that do
        not belong.
        """
        notes = self.inspection.notes if self.inspection else ()
        return [note for note in notes if note.startswith("WARNING")]


def made_up(
    preset: str, seed: int, variant: str | None = None, supplement: bool = False
) -> ModelSource:
    """An untrained model of a preset; variant "cls" or "category", [CLS] by default."""
    config = PRESETS[preset]
    if variant == "category":
        config = config.with_category_query()
    if supplement:
        config = config.with_supplement()
    source = Source(
        kind="deterministic", trained=False, seed=seed, checkpoint=None, checkpoint_sha256=None
    )
    origin = f"made-up weights, seed {seed} (untrained)"
    return ModelSource(origin, config, lambda: deterministic_model(config, seed), lambda: source)


def demo(variant: str | None = None, supplement: bool = False) -> ModelSource:
    """The built-in demo. Raises CheckpointError where variant or supplement say something else than
    it is.
    """
    return from_files(WeightFiles(checkpoint=DEMO_WEIGHTS), "demo", variant, supplement)


def from_files(
    files: WeightFiles,
    preset: str | None = None,
    variant: str | None = None,
    supplement: bool = False,
) -> ModelSource:
    """The model of a training checkpoint and component files. Nothing of the weights is read yet.

    Raises CheckpointError as `reference.checkpoint.inspect` does, and where preset, variant or
    supplement say something else than the files. Keys that do not fit are in the inspection, and
    `make` raises for them.
    """
    inspection = inspect(files)
    config = inspection.config
    name = files.checkpoint or next(iter(inspection.weights.values()), "the given files")
    is_supplement = config.sparse_branch == "additive" or config.dense_grid == "clip"
    contradictions = (
        (
            preset is not None and preset != config.preset,
            f"--preset {preset}",
            f"{name} is {config.preset}",
        ),
        (
            variant is not None and variant != config.query,
            f"--variant {variant}",
            (
                f"{name} is the {config.query} variant (it has"
                f" {'no' if config.no_target == 'none' else 'a'} no-target head)"
            ),
        ),
        (
            supplement and not is_supplement,
            "--supplement",
            f"{name} is as the released code has it",
        ),
    )
    for wrong, flag, found in contradictions:
        if wrong:
            raise CheckpointError(
                f"{found}, which contradicts {flag}; leave {flag} out, the files say it"
            )

    def make() -> RISModel:
        inspection.require()
        return build_model(inspection)

    origin = " with ".join(str(path) for path in inspection.weights.values())
    return ModelSource(
        origin, config, make, lambda: describe(inspection), inspection.vocabulary, inspection
    )


def describe(inspection: Inspection) -> Source:
    """What a manifest says of the files that gave weights: names and sha256. Reads them from end to
    end.
    """
    inspection.require()
    checkpoint = inspection.weights["checkpoint"]
    used = inspection.files_used
    return Source(
        kind="checkpoint",
        trained=True,
        seed=None,
        checkpoint=checkpoint.name,
        checkpoint_sha256=sha256_of(checkpoint),
        components=tuple(
            ComponentFile(name, inspection.weights[name].name, sha256_of(inspection.weights[name]))
            for name in COMPONENTS
            if inspection.weights.get(name) in used
        ),
    )


def rebuild_model(bundle: Bundle, files: WeightFiles | None = None) -> RISModel:
    """The reference model that a bundle was exported from: made up again, from the same files, or
    the built-in demo.

    Raises CheckpointError where a file of the export is not given, is not the same (sha256), or was
    not part of it.
    """
    source, config = bundle.manifest.source, ModelConfig.from_dict(bundle.manifest.model)
    if not files and source.checkpoint_sha256 == sha256_of(DEMO_WEIGHTS):
        files = WeightFiles(checkpoint=DEMO_WEIGHTS)
    files = files or WeightFiles()
    if source.kind == "deterministic" and source.seed is not None:
        if files:
            raise CheckpointError(
                f"{bundle.path} was made with made-up weights; leave --checkpoint and the"
                " others out"
            )
        return deterministic_model(config, source.seed)
    options = {"sam": "--sam-checkpoint", "clip": "--clip-checkpoint", "bert": "--bert"}
    wanted = {"--checkpoint": (source.checkpoint, source.checkpoint_sha256)}
    wanted |= {options[c.component]: (c.file, c.sha256) for c in source.components}
    given = {
        "--checkpoint": files.checkpoint,
        "--sam-checkpoint": files.sam,
        "--clip-checkpoint": files.clip,
        "--bert": files.bert,
    }
    lacking = [f"{option} {name}" for option, (name, _) in wanted.items() if given[option] is None]
    if lacking:
        raise CheckpointError(
            f"{bundle.path} was made from weights that are not part of it; give"
            f" {' and '.join(lacking)}, or compare with its golden outputs alone"
        )
    inspection = inspect(files)
    used = {"--checkpoint": inspection.weights["checkpoint"]}
    used |= {
        options[c]: inspection.weights[c]
        for c in COMPONENTS
        if inspection.weights.get(c) in inspection.files_used
    }
    if extra := sorted(used.keys() - wanted.keys()):
        raise CheckpointError(
            f"{bundle.path} was made without {' and '.join(extra)}; leave that out"
        )
    for option, (name, sha256) in wanted.items():
        path = used.get(option)
        if path is None or sha256_of(path) != sha256:
            raise CheckpointError(
                f"{path or given[option]}, given as {option}, is not the {name} that {bundle.path}"
                " was made from (sha256 differs); give that file, or export again"
            )
    inspection.require()
    return build_model(inspection)
