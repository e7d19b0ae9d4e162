"""A family that only the tests know, whose masks are drawn: `toy_family` and a third stage.

It has what that one lacks: a letterbox, random numbers of two shapes, and an answer of
probabilities, bicubic with aligned corners.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_family
from PIL import Image
from torch import Tensor, nn

from ris.engines import TensorSpec
from ris.export.families import DESIGNS
from ris.export.families.design import IslandRules, StageDesign
from ris.reference.families import FAMILIES
from ris.reference.preprocess import normalise
from ris.runtime.letterbox import letterbox_size
from ris.runtime.manifest import Answer, Drawn, Host, Source
from ris.runtime.manifest_kinds import Taken

NAME = "noisy"
SEED = 7


class Noisy(toy_family.Toy):
    """Its row in the table of families."""

    name = NAME

    def prepare(self, model: toy_family.ToyModel, rgb: np.ndarray) -> dict[str, Tensor]:
        side = model.config.size
        height, width = letterbox_size(*rgb.shape[:2], side)
        small = np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
        levels = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
        view = torch.zeros(1, 3, side, side)
        view[..., :height, :width] = normalise(levels, toy_family.MEAN, toy_family.STD)
        return {"view": view}

    def ask(self, model: toy_family.ToyModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rough = model.point(values["wide_features"], values["tokens"])
        return {"rough": rough, "logits": shaken(rough, values["grain"], values["tilt"])}


def shaken(rough: Tensor, grain: Tensor, tilt: Tensor) -> Tensor:
    """Logits [N, 1, m, m] with random numbers for each place [N, m, m] and for all [N, 1]."""
    return rough + 0.1 * grain[:, None] + 0.2 * tilt[..., None, None]


class Shake(nn.Module):
    """The stage that takes random numbers."""

    def forward(self, rough: Tensor, grain: Tensor, tilt: Tensor) -> Tensor:
        return shaken(rough, grain, tilt)


def _stages(config: toy_family.ToyConfig) -> tuple[StageDesign, ...]:
    look, point = toy_family.DESIGN.stages(config)
    mask = config.mask
    maps = ("expressions", 1, mask, mask)
    shake = StageDesign(
        name="shake",
        inputs=(
            Taken("rough", "float32", maps, "rough"),
            Taken("grain", "float32", ("expressions", mask, mask), "grain"),
            Taken("tilt", "float32", ("expressions", 1), "tilt"),
        ),
        outputs=(TensorSpec("logits", "float32", maps),),
        build=lambda model, sampling: Shake().eval(),
        islands=IslandRules(),
        whole={"bf16": "nothing but sums", "fp16": "nothing but sums"},
    )
    return look, replace(point, outputs=(TensorSpec("rough", "float32", maps),)), shake


def _host(config: toy_family.ToyConfig) -> Host:
    host = toy_family.DESIGN.host(config)
    letterbox = replace(host.images["view"], fit="letterbox")
    drawn = {
        "tilt": Drawn("logistic", (1,), SEED),
        "grain": Drawn("logistic", (config.mask, config.mask), SEED),
    }
    return replace(host, images={"view": letterbox}, drawn=drawn)


def _answer(config: toy_family.ToyConfig) -> Answer:
    way: dict[str, Any] = {"of": "probabilities", "align_corners": True, "letterbox_of": "view"}
    return Answer("logits", None, "bicubic", 0.98, **way)


DESIGN = replace(toy_family.DESIGN, stages=_stages, host=_host, answer=_answer)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the family into the tables."""
    monkeypatch.setitem(FAMILIES, NAME, Noisy())
    monkeypatch.setitem(DESIGNS, NAME, DESIGN)


def export(out: Path) -> Path:
    """Exports it in FP32, and returns `out`."""
    from ris.export.bundle_writer import ExportOptions, export_bundle

    config, source = toy_family.ToyConfig(), Source("deterministic", False, 0, None, None)
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        export_bundle(
            lambda: Noisy().made_up_model(config, 0),
            config,
            out,
            family=NAME,
            source=source,
            options=ExportOptions(precision="fp32"),
        )
    return out
