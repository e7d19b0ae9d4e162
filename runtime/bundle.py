"""The bundle: a directory with a manifest. `ris-export` writes what this module describes, the
runtime reads it.

`manifest.schema.json` beside this file states the same for other languages; a test keeps the two
together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ris.engines import Graph, TensorSpec
from ris.engines.errors import BundleError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BUILT_IN = Path(__file__).resolve().parent / "demo-bundle"
"""The demo's bundle (FP16), part of the package: what the commands use where no other is given or
found.
"""
ENGINES = "engines"  # the folder for what engines compile; no part of the manifest
STAGES = ("sam_image_encoder", "clip_image_encoder", "text_encoder", "fusion", "mask_decoder")
EMULATES = "ris-calibrate emulate"
"""The manifest's `writer` names this in a bundle whose graphs round as FP16 hardware does."""
BF16_STAGES = ("sam_image_encoder", "clip_image_encoder", "fusion")
"""The graphs that are worth running in bfloat16: most of the work, and not the most sensitive
(docs/reference/precision.md).
"""
BF16_FROM = {"fusion": "fused"}
"""By graph: the value from which on it may be bfloat16. What does not depend on it stays FP32."""
Precision = Literal["fp32", "bf16", "fp16"]
BundlePrecision = Literal[Precision, "int8"]


@dataclass(frozen=True)
class Int8:
    """How products of a graph came to be INT8, by QuantizeLinear and DequantizeLinear in the graph;
    the rest of it has the graph's own precision.

    layers: how many; calibrator: "minmax", "percentile" (of `percentile`) or "entropy"; alpha: of
    the smoothing, null for none; samples: expressions that it was calibrated with.
    """

    layers: int
    calibrator: str
    percentile: float | None
    alpha: float | None
    samples: int


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a graph's matrix products and convolutions, two for each
    multiply-add: `image` for each image, `expression` for each expression, `fixed` for each call.
    """

    fixed: int
    image: int
    expression: int

    def of(self, images: int, expressions: int) -> int:
        """The operations of one call."""
        return self.fixed + self.image * images + self.expression * expressions


@dataclass(frozen=True)
class GraphEntry:
    """One graph: where it is, what is in it, what goes in and out.

    file: relative to the bundle; sha256: of every file it needs, by relative name; fp32_islands:
    node name to reason for what stays FP32 in an FP16 graph and for products that do in an INT8
    graph, or "*" for a whole graph of an FP16 or bfloat16 bundle; sampling: "native" or "gather"
    bilinear sampling (fusion), else null; int8: null where nothing is INT8; operations: null where
    they were not counted; may be absent.
    """

    file: str
    sha256: dict[str, str]
    precision: Precision
    fp32_islands: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    sampling: str | None
    int8: Int8 | None = None
    operations: Operations | None = None

    @property
    def shown(self) -> str:
        """The precision for people."""
        return f"int8 and {self.precision}" if self.int8 else self.precision


@dataclass(frozen=True)
class SquareImage:
    """How an encoder's square is made: side in pixels, interpolation, and mean and std per
    channel.
    """

    size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Preprocess:
    """The two squares. SAM's levels are 0-255, CLIP's 0-1; CLIP's square is made from SAM's."""

    sam: SquareImage
    clip: SquareImage


@dataclass(frozen=True)
class Text:
    """tokenizer: its file; max_tokens: T; padding is id 0."""

    tokenizer: str
    max_tokens: int


@dataclass(frozen=True)
class DensePrompt:
    """The host-side link between fusion and mask decoder: from grid x grid to target x target."""

    grid: int
    target: int
    interpolation: Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Postprocess:
    """Bilinear resize of the mask logits to the image's size, then above `threshold` (a logit)."""

    interpolation: str
    threshold: float


@dataclass(frozen=True)
class Categories:
    """The category variant's table: names (JSON list) and text features (npy, [rows, width])."""

    names: str
    features: str


@dataclass(frozen=True)
class ComponentFile:
    """A file beside the checkpoint that gave weights: SAM's, CLIP's or BERT's own; file: its name
    alone.
    """

    component: Literal["sam", "clip", "bert"]
    file: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """What the bundle was made from.

    kind: "deterministic" (made-up weights of `seed`) or "checkpoint" (file name and sha256);
    `trained` is false where the masks mean nothing. components: further weight files; may be
    absent.
    """

    kind: Literal["deterministic", "checkpoint"]
    trained: bool
    seed: int | None
    checkpoint: str | None
    checkpoint_sha256: str | None
    components: tuple[ComponentFile, ...] = ()


@dataclass(frozen=True)
class StageParity:
    """How far an output is from its reference: absolute, in units of the reference's r.m.s., and as
    an angle.
    """

    max_abs: float
    mean_abs: float
    relative: float
    cosine: float


@dataclass(frozen=True)
class Manifest:
    """Everything a program needs to know about a bundle. `files` has the sha256 of the files that
    are not graphs.
    """

    format_version: int
    writer: dict[str, str]
    source: Source
    model: dict[str, Any]
    precision: BundlePrecision
    graphs: dict[str, GraphEntry]
    preprocess: Preprocess
    text: Text
    dense_prompt: DensePrompt
    postprocess: Postprocess
    no_target: bool
    categories: Categories | None
    golden: str
    files: dict[str, str]
    parity: dict[str, StageParity]
    mask_iou: float

    def to_json(self) -> str:
        """Sorted keys, so that equal manifests are equal files."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"


def manifest_from_dict(data: Any) -> Manifest:
    """The manifest of parsed JSON. Raises BundleError naming every field that is missing or of the
    wrong kind.
    """
    problems: list[str] = []
    manifest = _build(Manifest, data, "", problems)
    if problems:
        raise BundleError("; ".join(problems))
    assert isinstance(manifest, Manifest)
    return manifest


def _build(kind: Any, value: Any, at: str, problems: list[str]) -> Any:
    """`value` as `kind`, a small subset of typing: dataclasses, tuples, dicts, unions with None,
    literals, scalars.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            return _wrong(at, "an object", value, problems)
        hints = typing.get_type_hints(kind)
        fields = dataclasses.fields(kind)
        missing = [
            f.name for f in fields if f.name not in value and f.default is dataclasses.MISSING
        ]
        problems += [f"{at}{name} is missing" for name in missing]
        names = [f.name for f in fields if f.name in value]
        found = {n: _build(hints[n], value[n], f"{at}{n}.", problems) for n in names}
        return None if missing else typing.cast(Any, kind)(**found)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        alternatives = [a for a in arguments if a is not type(None)]
        if len(alternatives) == 1:
            return _build(alternatives[0], value, at, problems)
        return (
            value
            if isinstance(value, tuple(alternatives))
            else _wrong(at, "one of several kinds", value, problems)
        )
    if origin is Literal:
        return (
            value
            if value in arguments
            else _wrong(at, " or ".join(map(repr, arguments)), value, problems)
        )
    if origin is tuple:
        if not isinstance(value, list):
            return _wrong(at, "a list", value, problems)
        return tuple(
            _build(arguments[0], item, f"{at}{i}.", problems) for i, item in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, dict):
            return _wrong(at, "an object", value, problems)
        return {
            key: _build(arguments[1], item, f"{at}{key}.", problems) for key, item in value.items()
        }
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return _wrong(at, kind.__name__, value, problems)
    return value


def _wrong(at: str, expected: str, value: Any, problems: list[str]) -> None:
    problems.append(
        f"{at.rstrip('.') or 'the manifest'} should be {expected}, found {str(value)[:40]!r}"
    )


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest

    def graph(self, stage: str) -> Graph:
        """The graph of `stage` as an engine takes it."""
        entry = self.manifest.graphs[stage]
        return Graph(
            stage,
            self.path / entry.file,
            entry.inputs,
            entry.outputs,
            sha256=entry.sha256,
            precision=entry.precision,
            fp32_islands=frozenset(entry.fp32_islands),
            sampling=entry.sampling,
            cache=None if self.path.resolve() == BUILT_IN else self.path / ENGINES,
            bf16=stage in BF16_STAGES,
            bf16_from=BF16_FROM.get(stage),
            int8=entry.int8 is not None,
        )

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names."""
        return self.path / name

    def hashes(self) -> dict[str, str]:
        """Expected sha256 of every file of the bundle but the manifest, by relative name."""
        expected = dict(self.manifest.files)
        for entry in self.manifest.graphs.values():
            expected.update(entry.sha256)
        return expected


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Reads the manifest and checks the files: present, and with `verify` unchanged since the
    export (sha256).

    Raises BundleError, with all missing and damaged files at once.
    """
    path = Path(path)
    if not path.exists():
        raise BundleError(f"{path}: no such bundle; make one with ris-export")
    if not path.is_dir():
        raise BundleError(f"{path} is a file; a bundle is the folder that ris-export writes")
    try:
        data = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{path} has no {MANIFEST}, so it is not a bundle; make one with ris-export"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path / MANIFEST} cannot be read ({error}); export the bundle again"
        ) from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has format version {version}, this ris-runtime reads up to {FORMAT_VERSION}; "
            "upgrade ris-runtime, or export the bundle again with this version"
        )
    try:
        manifest = manifest_from_dict(data)
    except BundleError as error:
        raise BundleError(
            f"{path / MANIFEST} is damaged: {error}; export the bundle again"
        ) from None
    missing_stages = [stage for stage in STAGES if stage not in manifest.graphs]
    if missing_stages:
        raise BundleError(
            f"{path / MANIFEST} is damaged: no graph {', '.join(missing_stages)}; export it again"
        )
    bundle = Bundle(path, manifest)
    problems = _damage(bundle, verify)
    if problems:
        raise BundleError(f"{path} is damaged: {'; '.join(problems)}. Export the bundle again")
    return bundle


def _damage(bundle: Bundle, verify: bool) -> list[str]:
    """What is wrong with the files, in the order of their names."""
    expected = sorted(bundle.hashes().items())
    outside = [name for name, _ in expected if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        return [f"{name} lies outside the bundle" for name in outside]

    def check(item: tuple[str, str]) -> str | None:
        name, sha256 = item
        file = bundle.path / name
        if not file.is_file():
            return f"{name} is missing"
        if verify and sha256_of(file) != sha256:
            return f"{name} is not the file that was exported (sha256 differs)"
        return None

    with ThreadPoolExecutor(4) as pool:  # hashing releases the GIL
        return [problem for problem in pool.map(check, expected) if problem]


def sha256_of(path: Path) -> str:
    """sha256 of a file, in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 by name, of files below `folder`."""
    return {name: sha256_of(folder / name) for name in names}
