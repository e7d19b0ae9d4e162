"""Where an exported model comes from: made-up weights, the user's files, or the built-in demo."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ris import reference
from ris.engines.errors import CheckpointError, RisError
from ris.export.families import DESIGNS
from ris.reference.checkpoint import Inspection, WeightFiles, build_model, inspect
from ris.reference.families import FAMILIES, family_named
from ris.reference.family import Config
from ris.runtime.bundle import Bundle, sha256_of
from ris.runtime.manifest_source import ComponentFile, Source

DEMO_WEIGHTS = Path(reference.__file__).parent / "data" / "demo.safetensors"
"""The trained demo (docs/reference/models/demo.md)."""

COMPONENTS: tuple[Literal["sam", "clip", "bert"], ...] = ("sam", "clip", "bert")
"""What may come from a file of its own, by the names of `WeightFiles`."""

_OPTIONS = {
    "checkpoint": "--checkpoint",
    "sam": "--sam-checkpoint",
    "clip": "--clip-checkpoint",
    "bert": "--bert",
}


@dataclass(frozen=True)
class ModelSource:
    """A model to export."""

    origin: str
    """Where it comes from, in words."""

    family: str
    """Its family, a name of `ris.reference.families`."""

    config: Config
    """Its configuration."""

    make: Callable[[], Any]
    """Makes the model. Raises CheckpointError where the files do not fit."""

    describe: Callable[[], Source]
    """What the manifest says about it. Reads the files from end to end, to hash them."""

    vocabulary: Path | None = None
    """Its vocab.txt or tokenizer.json; None for the preset's own."""

    inspection: Inspection | None = None
    """What is in the user's files; None for made-up weights."""

    @property
    def warnings(self) -> list[str]:
        """What a user has to know beside the plan, in sentences.

        Trained weights that are missing, and files that do not belong to the checkpoint.
        """
        notes = self.inspection.notes if self.inspection else ()
        return [note for note in notes if note.startswith("WARNING")]


def made_up(
    preset: str,
    seed: int,
    variant: str | None = None,
    supplement: bool = False,
    chosen: Mapping[str, str] | None = None,
) -> ModelSource:
    """An untrained model.

    Args:
        preset: The architecture.
        seed: The seed of the weights.
        variant: "cls" or "category"; None for "cls".
        supplement: The architecture as the paper's supplement words it.
        chosen: What was chosen of the family's `choices`, by field; None for nothing.

    Raises:
        CheckpointError: Where the preset's family has no variants and one was asked for, or has no
            such choice.
    """
    family = next(one for one in FAMILIES.values() if preset in one.presets)
    config, variants = family.presets[preset], DESIGNS[family.name].variants
    if variants is not None:
        config = variants.choose(config, variant, supplement)
    elif variant is not None or supplement:
        raise _no_variants(family.name, preset)
    config = family.choose(config, chosen or {})
    source = Source(
        kind="deterministic", trained=False, seed=seed, checkpoint=None, checkpoint_sha256=None
    )
    return ModelSource(
        origin=f"made-up weights, seed {seed} (untrained)",
        family=family.name,
        config=config,
        make=lambda: family.made_up_model(config, seed),
        describe=lambda: source,
    )


def demo(
    variant: str | None = None,
    supplement: bool = False,
    chosen: Mapping[str, str] | None = None,
) -> ModelSource:
    """The built-in demo; the arguments are those of `made_up`.

    Raises CheckpointError where one of them contradicts it.
    """
    files = WeightFiles(checkpoint=DEMO_WEIGHTS)
    return from_files(files, "demo", variant, supplement, chosen=chosen)


def from_files(
    files: WeightFiles,
    preset: str | None = None,
    variant: str | None = None,
    supplement: bool = False,
    family: str | None = None,
    chosen: Mapping[str, str] | None = None,
) -> ModelSource:
    """The model of a training checkpoint and component files. Reads no weights yet.

    Keys that do not fit are in `ModelSource.inspection`, and `ModelSource.make` raises for them.

    Args:
        files: The files.
        preset: The architecture that was asked for; None for what the files say.
        variant: The variant that was asked for; None for what the files say.
        supplement: Whether the supplement's architecture was asked for.
        family: The name of the family that was asked for; None for what the keys say.
        chosen: What was chosen of the family's `choices`, by field; None for nothing.

    Raises:
        CheckpointError: As `reference.checkpoint.inspect` does, and where preset, variant or
            supplement contradicts the files.
    """
    inspection = inspect(files, family, chosen=chosen)
    config = inspection.config
    name = files.checkpoint or next(iter(inspection.weights.values()), "the given files")
    if preset is not None and preset != config.preset:
        raise _contradiction(f"--preset {preset}", f"{name} is {config.preset}")
    variants = DESIGNS[inspection.family.name].variants
    if variants is not None:
        if found := variants.contradiction(config, variant, supplement):
            raise _contradiction(found[0], f"{name} {found[1]}")
    elif variant is not None or supplement:
        raise _no_variants(inspection.family.name, name)

    def make() -> Any:
        from ris.export.held import held_model

        inspection.require()
        return held_model(inspection)

    return ModelSource(
        origin=" with ".join(str(path) for path in inspection.weights.values()),
        family=inspection.family.name,
        config=config,
        make=make,
        describe=lambda: describe(inspection),
        vocabulary=inspection.vocabulary,
        inspection=inspection,
    )


def _no_variants(family: str, name: object) -> CheckpointError:
    return CheckpointError(
        f"{name} is of the family {family}, which has no variants; leave --variant and --supplement"
        " out"
    )


def _contradiction(flag: str, found: str) -> CheckpointError:
    return CheckpointError(f"{found}, which contradicts {flag}; leave {flag} out, the files say it")


def describe(inspection: Inspection) -> Source:
    """What a manifest says about the files that gave weights: their names and sha256.

    Reads them from end to end. Raises CheckpointError where they do not fit.
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


def rebuild_model(bundle: Bundle, files: WeightFiles | None = None) -> Any:
    """The reference model that a bundle was exported from.

    It is made up again, or read from the same files. The built-in demo needs none.

    Raises CheckpointError as `checked_files` does.
    """
    inspection = checked_files(bundle, files)
    if inspection is not None:
        return build_model(inspection)
    source, family = bundle.manifest.source, family_named(bundle.manifest.family)
    assert source.seed is not None
    return family.made_up_model(
        family.carried_config(bundle.manifest.model, bundle.path), source.seed
    )


def checked_files(bundle: Bundle, files: WeightFiles | None = None) -> Inspection | None:
    """What is in the files that a bundle was exported from; None for made-up weights.

    The built-in demo needs no files.

    Raises CheckpointError where a file of the export is not given, is not the same (sha256), or was
    not part of it.
    """
    source, family = bundle.manifest.source, family_named(bundle.manifest.family)
    if not files and source.checkpoint_sha256 == sha256_of(DEMO_WEIGHTS):
        files = WeightFiles(checkpoint=DEMO_WEIGHTS)
    files = files or WeightFiles()
    if source.kind == "deterministic" and source.seed is not None:
        if files:
            raise CheckpointError(
                f"{bundle.path} was made with made-up weights; leave --checkpoint and the others "
                "out"
            )
        return None

    wanted = _wanted(source)
    _require_given(bundle, wanted, files)
    chosen = family.chosen(bundle.manifest.model)
    inspection = inspect(files, family.name, chosen=chosen)
    _require_same(bundle, wanted, files, inspection)
    inspection.require()
    return inspection


class _Wanted(NamedTuple):
    """A file that a bundle was made from."""

    name: str | None
    """Its name, without a folder."""

    sha256: str | None
    """Its hash."""


def _wanted(source: Source) -> dict[str, _Wanted]:
    """The files that a bundle was made from, by option."""
    wanted = {"--checkpoint": _Wanted(source.checkpoint, source.checkpoint_sha256)}
    for part in source.components:
        if part.component not in _OPTIONS:
            raise RisError(
                f"the bundle was made from {part.file}, a file of its {part.component}, for which"
                " there is no option"
            )
        wanted[_OPTIONS[part.component]] = _Wanted(part.file, part.sha256)
    return wanted


def _given(files: WeightFiles) -> dict[str, Path | None]:
    """The files by option."""
    return {option: getattr(files, name) for name, option in _OPTIONS.items()}


def _require_given(bundle: Bundle, wanted: dict[str, _Wanted], files: WeightFiles) -> None:
    """Raises CheckpointError where a wanted file is not given."""
    given = _given(files)
    lacking = [f"{option} {file.name}" for option, file in wanted.items() if given[option] is None]
    if lacking:
        raise CheckpointError(
            f"{bundle.path} was made from weights that are not part of it; "
            f"give {' and '.join(lacking)}, or compare with its golden outputs alone"
        )


def _hash_of(path: Path) -> str:
    """The sha256 of a file, which is asked for twice where it is checked before it is used."""
    about = path.stat()
    return _hash_once(path, (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))


@functools.lru_cache(maxsize=16)
def _hash_once(path: Path, state: tuple[int, ...]) -> str:
    """state: what changes where the file does."""
    return sha256_of(path)


def _require_same(
    bundle: Bundle, wanted: dict[str, _Wanted], files: WeightFiles, inspection: Inspection
) -> None:
    """Raises CheckpointError where the files that give weights are not exactly the wanted ones."""
    used = {"--checkpoint": inspection.weights["checkpoint"]}
    for name in COMPONENTS:
        if inspection.weights.get(name) in inspection.files_used:
            used[_OPTIONS[name]] = inspection.weights[name]

    if extra := sorted(used.keys() - wanted.keys()):
        raise CheckpointError(
            f"{bundle.path} was made without {' and '.join(extra)}; leave that out"
        )
    given = _given(files)
    for option, file in wanted.items():
        path = used.get(option)
        if path is None or _hash_of(path) != file.sha256:
            raise CheckpointError(
                f"{path or given[option]}, given as {option}, is not the {file.name} that "
                f"{bundle.path} was made from (sha256 differs); give that file, or export again"
            )
