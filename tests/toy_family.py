"""A family of two stages that only the tests know: one runs once an image, one for each question.

It is unlike `dfam` wherever a manifest may differ: one square, padding that is not 0, no text mask,
no categories, no no-target decision, a resize of what an image's stage gives, another threshold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.engines import TensorSpec
from ris.export.families import DESIGNS
from ris.export.families.design import FamilyDesign, IslandRules, Questions, StageDesign
from ris.export.sample import EXPRESSIONS, sample_image
from ris.reference.checkpoint.keys import KeyRules
from ris.reference.families import FAMILIES
from ris.reference.family import Choice, Family
from ris.reference.preprocess import normalise, resize_to_square
from ris.reference.tokenizer import SPECIAL, build_tokenizer
from ris.runtime.manifest import PICTURE, Answer, Host, HostImage, Resize, Source, Text
from ris.runtime.manifest_kinds import Taken

NAME = "toy"
PAD = 4
WORDS = ["left", "right", "man", "the", "red", "ball", "on", "second", "car", "from"]
VOCABULARY = [*SPECIAL[1:], SPECIAL[0], *WORDS]  # [PAD] is the fifth
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@dataclass(frozen=True)
class ToyConfig:
    """Its sizes."""

    preset: str = "toy"
    size: int = 32
    width: int = 16
    tokens: int = 9
    mask: int = 16
    bias: str = "kept"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ToyModel(nn.Module):
    """The reference."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(3, config.width, 4, stride=4)
        self.mix = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.words = nn.Embedding(len(VOCABULARY), config.width)
        self.project = nn.Linear(config.width, config.width)

    def look(self, view: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, C, S/4, S/4]."""
        return self.mix(F.gelu(self.patches(view)))

    def point(self, maps: Tensor, tokens: Tensor) -> Tensor:
        """Maps [N, C, m, m] and ids [N, T] -> logits [N, 1, m, m]."""
        real = (tokens != PAD).to(maps)[..., None]
        word = (self.words(tokens) * real).sum(1) / real.sum(1)
        return (self.project(word)[:, None] @ maps.flatten(2)).unflatten(2, tuple(maps.shape[2:]))


class Toy(Family[ToyConfig, ToyModel]):
    """Its row in the table of families."""

    name = NAME
    signs = ("patches.", "mix.")
    presets: Mapping[str, ToyConfig] = {"toy": ToyConfig()}
    small_presets = ("toy",)
    components: Mapping[str, str] = {}
    brings: Mapping[str, str] = {}
    choices = (Choice("bias", ("kept", "dropped"), "what becomes of the projection's bias"),)

    def derive_config(self, shapes: Any, heads: Any) -> ToyConfig:
        return ToyConfig()

    def carried_config(self, data: Any, source: object) -> ToyConfig:
        return ToyConfig(**data)

    def empty_model(self, config: ToyConfig, **options: bool) -> ToyModel:
        with torch.device("meta"):
            return ToyModel(config).eval()

    def made_up_model(self, config: ToyConfig, seed: int) -> ToyModel:
        model = ToyModel(config).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        return model

    def key_rules(self, config: ToyConfig) -> KeyRules:
        modules = tuple((part, f"{part}.") for part in ("patches", "mix", "words", "project"))
        return KeyRules(modules, not_loaded=re.compile("(?!)"), idle=())

    def shared_parts(self) -> Any:
        return ()

    def complete(self, entries: Any, config: ToyConfig) -> Any:
        key = "project.bias"
        if config.bias == "dropped":
            zeros = torch.zeros(config.width)
            changed = replace(entries[key], pieces=(lambda: zeros,), mapped=False)
            return entries | {key: changed}, [f"{key}: dropped"]
        return entries, []

    def tokenizer(self, vocabulary: Path | None, config: ToyConfig) -> Any:
        return build_tokenizer(VOCABULARY)

    def prepare(self, model: ToyModel, rgb: np.ndarray) -> dict[str, Tensor]:
        square = torch.tensor(resize_to_square(rgb, model.config.size))
        return {"view": normalise(square.permute(2, 0, 1)[None].float() / 255, MEAN, STD)}

    def encode(self, model: ToyModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = model.look(images["view"])
        wide = F.interpolate(features, size=(model.config.mask,) * 2, mode="bilinear")
        return {"features": features, "wide_features": wide}

    def ask(self, model: ToyModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": model.point(values["wide_features"], values["tokens"])}


class Look(nn.Module):
    """The stage that runs once an image."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__()
        self.patches, self.mix = model.patches, model.mix

    def forward(self, image: Tensor) -> Tensor:
        return self.mix(F.gelu(self.patches(image)))


class Point(nn.Module):
    """The stage that runs for each question."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__()
        self.words, self.project = model.words, model.project

    def forward(self, maps: Tensor, ids: Tensor, whose: Tensor) -> Tensor:
        real = (ids != PAD).to(maps)[..., None]
        word = (self.words(ids.long()) * real).sum(1) / real.sum(1)
        own = maps.index_select(0, whose.long())
        return (self.project(word)[:, None] @ own.flatten(2)).unflatten(2, tuple(maps.shape[2:]))


def _stages(config: ToyConfig) -> tuple[StageDesign, ...]:
    width, mask = config.width, config.mask
    image = ("images", 3, config.size, config.size)
    features = ("images", width, config.size // 4, config.size // 4)
    look = StageDesign(
        name="look",
        inputs=(Taken("image", "float32", image, "view"),),
        outputs=(TensorSpec("features", "float32", features),),
        build=lambda model, sampling: Look(model).eval(),
        int8_by_default=True,
    )
    point = StageDesign(
        name="point",
        inputs=(
            Taken("maps", "float32", ("images", width, mask, mask), "wide_features"),
            Taken("ids", "int32", ("expressions", config.tokens), "tokens"),
            Taken("whose", "int32", ("expressions",), "image_number"),
        ),
        outputs=(TensorSpec("logits", "float32", ("expressions", 1, mask, mask)),),
        build=lambda model, sampling: Point(model).eval(),
        islands=IslandRules({"project": "a product of one token"}),
        whole={"bf16": "a product of one token"},
    )
    return look, point


def _host(config: ToyConfig) -> Host:
    return Host(
        images={
            "view": HostImage(PICTURE, "square", config.size, "bilinear", True, 1, MEAN, STD),
        },
        text=Text("words.json", config.tokens, PAD, "tokens", None),
        image_index="image_number",
        categories=None,
        resizes={"wide_features": Resize("features", config.mask, "bilinear")},
    )


DESIGN = FamilyDesign(
    stages=_stages,
    host=_host,
    answer=lambda config: Answer("logits", None, "bilinear", 4.5),
    questions=lambda config, trained: Questions(sample_image(), EXPRESSIONS),
    words=lambda config: "a toy",
    repeated=lambda model: (),
)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the family into the tables."""
    monkeypatch.setitem(FAMILIES, NAME, Toy())
    monkeypatch.setitem(DESIGNS, NAME, DESIGN)


def export(out: Path, precision: str = "fp32") -> Path:
    """Exports it, and returns `out`."""
    from ris.export.bundle_writer import ExportOptions, export_bundle

    config, source = ToyConfig(), Source("deterministic", False, 0, None, None)
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        export_bundle(
            lambda: Toy().made_up_model(config, 0),
            config,
            out,
            family=NAME,
            source=source,
            options=ExportOptions(precision=precision),
        )
    return out
